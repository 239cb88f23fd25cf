"""The workflow over notebooks in miniature: plan, order, skipping, and words it refuses."""

import itertools
import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import toy_project
from helpers.toy_project import ONE, ORDER, markers, would_run

from dcopy import machine
from dcopy.config import TrainConfig
from dcopy.workflow import options, plan, preset, presets


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A project, with a reference, in which `smoke methods=directcopy` has run, and what that printed."""
    root = toy_project.make(tmp_path_factory.mktemp("finished") / "project")
    (root / "results/reference/smoke/runs").mkdir(parents=True)
    (root / "results/reference/smoke/runs/README").touch()
    shutil.copy(plan.ROOT / ".gitignore", root)
    git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message=all")
    code, output = toy_project.finish(root, *ONE)
    assert code == 0, output
    return root, output


def git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout


# the plan


def test_every_run_is_pretrained_and_probed_with_the_other_seeds_of_its_variant():
    jobs = plan.jobs("quick", [], "results/quick")
    runs = presets.get("quick").runs()
    pretrained = [dict(job.parameters) for job in jobs if job.notebook == "03_pretrain"]
    seeds = [job.pop("seeds") for job in pretrained]
    assert seeds == [[0, 1, 2, 3, 4]] * 2 + [[0, 1, 2]] * (len(presets.QUICK_METHODS) - 2)
    assert pretrained == [
        {name: value for name, value in run.to_dict().items() if name != "seed"}
        | {"results_dir": "results/quick"}
        for run in runs
        if run.seed == 0
    ]
    probed = [job.parameters["runs"] for job in jobs if job.notebook == "04_linear_probe"]
    assert [len(names) for names in probed] == [len(own) for own in seeds]
    (tables,) = (job for job in jobs if job.notebook == "05_paper_tables")
    assert list(itertools.chain(*probed)) == [run.name for run in runs] == tables.parameters["runs"]


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_no_two_jobs_share_a_file_or_a_label(preset):
    jobs = plan.jobs(preset, [], "results")
    assert len({job.name for job in jobs}) == len({job.label for job in jobs}) == len(jobs)


def test_more_epochs_wait_for_fewer_of_the_same_runs_whose_jobs_keep_their_names():
    several = plan.jobs("cifar10", ["epochs=500,100,300", "seeds=1"], "r")
    trained = {job.done: job for job in several if job.notebook == "03_pretrain"}
    for job in trained.values():
        fewer = {100: None, 300: 100, 500: 300}[job.parameters["epochs"]]
        before = trained[job.after].parameters if job.after else None
        assert before == (fewer and job.parameters | {"epochs": fewer})
    alone = [
        job.name for epochs in (500, 100, 300) for job in plan.jobs("cifar10", [f"epochs={epochs}"], "r")
    ]
    assert [job.name for job in several if "pretrain" in job.name] == [
        name for name in alone if "pretrain" in name
    ]


def test_what_a_job_is_told_reads_back_as_its_parameters():
    config = TrainConfig(dataset="digits", method="none", epochs=3)
    job = plan.Job("name", "03_pretrain", config.to_dict(), "label", "results")
    words = job.arguments()
    pairs = [words[i + 1].split("=", 1) for i, word in enumerate(words) if word == "-p"]
    kinds = {
        name: plan.Parameter(field.type, None) for name, field in TrainConfig.__dataclass_fields__.items()
    }
    assert {name: kinds[name].parse(text) for name, text in pairs} == config.to_dict()


@pytest.mark.parametrize(
    ("cells", "complaint"),
    [
        ("[]", "needs one cell tagged parameters, and has 0"),
        ('["grid = 3"]', "'grid = 3' among the parameters is not name: type = literal"),
        ('["grid: int = 3 * n"]', "among the parameters is not name: type = literal"),
    ],
)
def test_a_parameters_cell_that_is_not_plain_is_refused(tmp_path, cells, complaint):
    notebook = toy_project.write_notebook(tmp_path / "a.ipynb", "".join(json.loads(cells)))
    if cells == "[]":
        notebook.write_text(notebook.read_text().replace('["parameters"]', "[]"))
    with pytest.raises(ValueError, match="parameters") as caught:
        plan.declared(notebook)
    assert complaint in str(caught.value)


# starts that finish


def test_jobs_run_in_order_and_leave_marker_log_and_executed_notebook(finished):
    root, _ = finished
    written = markers(root)
    assert sorted(written) == ORDER
    assert written["03_pretrain"] < written["04_linear_probe"] < written["02_sample_complexity"]
    assert max(written.values()) == written["05_paper_tables"]
    results = root / "results/smoke"
    (marker,) = (results / ".done").glob("03_pretrain-digits-directcopy-*.json")
    record = json.loads(marker.read_text())
    assert record["notebook"] == "03_pretrain" and record["seconds"] > 0
    given = record["parameters"]
    assert (given["method"], given["epochs"], given["results_dir"]) == ("directcopy", 2, "results/smoke")
    assert "epoch 1" in (results / f"logs/{marker.stem}.log").read_text()
    assert sorted(path.name.split("-")[0].split(".")[0] for path in results.glob("notebooks/*")) == ORDER
    executed = (results / f"notebooks/{marker.stem}.ipynb").read_text()
    assert str(root) not in executed  # nobody's home is published


def test_training_of_more_epochs_starts_when_that_of_fewer_has_ended(project):
    code, output = toy_project.finish(project, *ONE, "epochs=20,10", "-j", "3")
    told = [line.split("] ")[1] for line in output.splitlines() if "03 directcopy" in line]
    labels = {epochs: TrainConfig(method="directcopy", epochs=epochs).hash[:6] for epochs in (10, 20)}
    ends = [line for line in told if "starts" in line or "finished" in line]
    assert code == 0 and [line.split(" | ")[0].split("-")[1] for line in ends] == [
        *(labels[10], labels[10], labels[20], labels[20])
    ]


def test_a_person_can_follow(finished):
    _, output = finished
    assert "5 notebooks to execute, 0 of them done before" in output
    assert "] 03 directcopy-" in output and "| epoch 1\n" in output
    assert "\n[5/5 " in output
    assert "03_pretrain              1 " in output  # the time that each part took
    assert "\n| 1 runs |\n" in output
    *_, last, verdict, page = output.rstrip().splitlines()
    assert last == "executed notebooks: results/smoke/notebooks"
    assert verdict.startswith("results/smoke holds none of the preset's runs")  # held against the reference
    assert page.startswith("page: results/smoke/site/index.html")


def test_a_site_that_fails_costs_a_line_and_nothing_else(finished):
    root, _ = finished
    page, wrench = root / "results/smoke/site/index.html", root / "results/smoke/no-site"
    page.unlink()
    wrench.touch()
    try:
        code, output = toy_project.finish(root, *ONE)
        (line,) = [line for line in output.splitlines() if "page" in line]
        assert code == 0 and "RuntimeError: the pages cannot be made; `bash run_all.sh site smoke`" in line
    finally:
        wrench.unlink()
    code, output = toy_project.finish(root, *ONE)
    assert code == 0 and page.read_text() == "smoke methods=directcopy"


def test_a_run_leaves_the_checkout_as_it_was(finished):
    root, _ = finished
    assert git(root, "status", "--porcelain", "--", "results", ".snakemake", "dcopy", "profiles") == ""
    assert "results/smoke/" in git(root, "status", "--porcelain", "--ignored")


def test_a_lost_session_goes_on_from_its_mirror(finished, tmp_path):
    root, _ = finished
    shutil.copytree(root / "results/smoke", tmp_path / "drive/smoke", ignore=shutil.ignore_patterns(".s*"))
    words = ("--results", str(tmp_path / "here"), "--mirror", str(tmp_path / "drive"))
    code, output = toy_project.finish(root, *ONE, *words)
    assert code == 0 and f"files have come back from {tmp_path / 'drive/smoke'}" in output
    assert "5 notebooks to execute, 5 of them done before" in output


def test_cores_are_shared_among_the_notebooks_that_run_at_once(finished):
    _, output = finished
    expected = max(1, machine.cores() // options.default_jobs())
    assert f"| threads {expected}\n" in output


@pytest.mark.parametrize(("wish", "threads"), [("3", 3), ("0", 1), ("4,2", 4), ("\u00b2", 4), ("", 4)])
def test_threads_are_what_openmp_is_asked_for_else_a_fair_share(monkeypatch, wish, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", wish)
    monkeypatch.setattr(machine, "cores", lambda: 8)
    assert options.threads(SimpleNamespace(jobs=2)) == threads


def test_a_second_start_has_nothing_to_do(finished):
    root, _ = finished
    before = markers(root)
    for notebook in (root / "notebooks").iterdir():
        notebook.touch()  # as a checkout of git does
    code, output = toy_project.finish(root, *ONE)
    assert code == 0
    assert "5 of them done before" in output and "| 1 runs |" in output
    assert markers(root) == before


def test_other_options_are_other_jobs(finished):
    root, _ = finished
    assert would_run(root, *ONE, "seeds=2") == ORDER[1:]
    assert would_run(root, *ONE, "epochs=3") == ["02_sample_complexity", *ORDER[2:]]


CHANGES = {
    "a parameter": ("dcopy/workflow/presets.py", '"draws": 2', '"draws": 3'),
    "a cell": ("notebooks/04_linear_probe.ipynb", "print(runs, draws)", "print(draws, runs)"),
}


@pytest.mark.parametrize(("name", "old", "new"), CHANGES.values(), ids=CHANGES)
def test_what_changed_runs_again_with_what_depends_on_it(finished, name, old, new):
    root, _ = finished
    source = (root / name).read_text()
    assert old in source
    (root / name).write_text(source.replace(old, new))
    assert would_run(root, *ONE) == ["02_sample_complexity", "04_linear_probe", "05_paper_tables"]
    (root / name).write_text(source)


def test_a_clone_with_results_but_no_markers_runs_everything(finished):
    root, _ = finished
    done = root / "results/smoke/.done"
    done.rename(root / "elsewhere")
    try:
        assert would_run(root, *ONE) == ORDER
    finally:
        (root / "elsewhere").rename(done)


def test_results_can_go_elsewhere(project, tmp_path):
    place = tmp_path / "elsewhere"
    place.touch()
    code, output = toy_project.finish(project, *ONE, "--results", str(place))
    assert code == 1 and output.startswith(f"cannot write to {place}/smoke: ")
    assert not (project / "results").exists()
    environment = toy_project.environment(project, DCOPY_RESULTS=str(place))
    assert toy_project.finish(project, *ONE, env=environment) == (code, output)


# wrong words


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["nope"], "preset 'nope' does not exist; it must be one of smoke"),
        (["smoke", "epoch=3"], "option 'epoch' is unknown; it must be one of seeds, methods, "),
        (["smoke", "epochs=0"], "epochs=0 is not allowed; it must be an integer of at least 1"),
        (["smoke", "seeds"], "option 'seeds' is not of the form name=value"),
        (["smoke", "-j", "0"], "-j 0 is not allowed"),
        (["smoke", "--fast"], "--fast"),
    ],
)
def test_wrong_words_are_refused_with_exit_code_2(project, words, complaint):
    code, output = toy_project.finish(project, *words)
    assert code == 2 and complaint in output
    assert not (project / "results").exists()


def test_ablations_of_several_protocols_are_refused():
    with pytest.raises(ValueError, match=r"the runs differ in epochs \(20, 40\), which no ablation varies"):
        presets.with_options(presets.get("ablations"), ["epochs=20,40"])
    presets.with_options(presets.get("quick"), ["epochs=20,40"])
    presets.with_options(presets.get("ablations"), ["epochs=20", "eps=0.1,0.3", "seeds=2"])


def test_a_parameter_that_a_notebook_does_not_declare_is_refused_before_anything_runs(project):
    toy_project.write_notebook(project / "notebooks/05_paper_tables.ipynb", toy_project.RESULTS, "1")
    code, output = toy_project.finish(project, *ONE)
    assert code == 2
    assert output == "notebooks/05_paper_tables.ipynb has no parameter 'runs'; it has results_dir\n"
    assert not (project / "results").exists()


def test_list_names_every_preset_in_a_line():
    code, output = toy_project.finish(toy_project.ROOT, "--list")
    assert code == 0
    assert [line.split()[0] for line in output.splitlines()] == list(presets.PRESETS)


# large presets


def test_a_model_that_does_not_exist_is_refused_before_anything_runs():
    given = preset.parse(["quick", "encoder=timm:vit_smal_patch16_224"])
    with pytest.raises(ValueError, match="is not a model of timm; names near it: vit_small_patch16_224"):
        preset.check_models(given)


@pytest.mark.parametrize("name", ["imagenet", "quick"])
def test_imagenet_does_not_start_without_saying_what_it_costs(name, tmp_path, monkeypatch):
    """And eight GPUs share a run without Slurm, too."""
    given, said = preset.parse([name]), []
    given.words = {"gpus": 8}
    jobs = plan.jobs(name, [], str(tmp_path))
    (tmp_path / ".done").mkdir()
    monkeypatch.setattr(preset, "say", lambda text, **_: said.append(text))
    monkeypatch.setattr(preset, "unfinished", lambda *_: jobs)
    monkeypatch.setattr(preset.cost, "estimate", lambda *_: ["disk: much"])
    monkeypatch.setattr(preset, "report", lambda *_: said.append("over"))
    monkeypatch.setattr(preset, "follow", lambda command, *_: said.append(f"runs {command}") or 0)
    monkeypatch.setattr(preset.results, "reference", lambda: tmp_path)
    monkeypatch.setattr(preset, "make_site", lambda *_: None)
    assert preset.run(given, jobs, tmp_path) == 0
    start = next(i for i, text in enumerate(said) if text.startswith("runs"))
    told = [text for text in said[:start] if "GPU hours" in text or text == "disk: much"]
    assert len(told) == (3 if name == "imagenet" else 0) and "processes=8" in said[start]
