"""README.md says what the files say, and its example runs."""

import re
import shutil

import nbformat
import pandas as pd
import pytest
from helpers.records import BENCH, LIGHTLY, PROBE, result_of

import dcopy
from dcopy import results
from dcopy.config import TrainConfig
from dcopy.report import ablations, published, readme, statements, tables
from dcopy.workflow import plan, presets

README = plan.ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")


def test_the_readme_agrees_with_the_files():
    assert readme.fill(TEXT, plan.ROOT) == TEXT, "`python -m dcopy.report.readme` writes it anew"


def test_what_a_reader_sees_first_is_read_in_three_minutes():
    unfolded = re.sub(r"<details>.*?</details>|```.*?```|<!--.*?-->", "", TEXT, flags=re.DOTALL)
    words = re.findall(r"[^\W\d_]{2,}", re.sub(r"\]\([^)]+\)", "", unfolded))
    assert len(words) <= 640  # 200 a minute; 600, and a few more with links to Colab
    for line in unfolded.splitlines():
        assert not line.startswith("|") or line.count("|") <= 6, line  # at most five columns


def test_the_readme_lists_the_presets():
    assert readme.presets_part() in TEXT
    assert all(preset.summary in TEXT for preset in presets.PRESETS.values())


@pytest.fixture
def project(tmp_path):
    """A project with the results of two digits runs, one claim and one run of Table 1."""
    folder = tmp_path / "results/reference"
    results.write_text(folder / "published.csv", _published())
    quick = folder / "quick"
    methods = [
        {"method": "DirectCopy", "health (no labels used)": "healthy 3/3", "1 a class": "84.9 ± 1.0"},
        {"method": "no predictor", "health (no labels used)": "collapsed 3/3", "1 a class": "30.5 ± 2.0"},
    ]
    tables.write_table(pd.DataFrame(methods), quick / "tables/methods", "Digits, in percent.")
    rows = [
        {"claim": 3, "relative_error": 2.5e-9, "pass": True},
        {"claim": 3, "relative_error": 1e-9, "pass": True},
        {"claim": 10, "relative_error": 0.7, "pass": False},
    ]
    results.write_csv(quick / "theory/claims.csv", rows)
    for name, seconds in (("01_linear_theory", 65.0), ("03_pretrain-a", 50.0), ("03_pretrain-b", 40.0)):
        notebook = nbformat.v4.new_notebook(metadata={"papermill": {"duration": seconds}})
        results.write_text(quick / f"notebooks/{name}.ipynb", nbformat.writes(notebook))
    results.write_text(quick / "notebooks/03_pretrain-c.failed.ipynb", "{}")
    _run(quick, TrainConfig(dataset="digits"), finished="2024-01-01")
    _run(folder / "cifar10", TrainConfig(dataset="cifar10"), finished="2024-02-02")
    return tmp_path


@pytest.fixture
def full_project(project):
    """The same with all that the README can show."""
    folder = project / "results/reference"
    small = folder / "cifar10-small"
    methods = pd.DataFrame([{"method": "DirectCopy", "1 a class": "23.4 ± 0.5"}])
    tables.write_table(methods, small / "tables/methods", "In percent; cifar10.", ["a note below"])
    _run(small, TrainConfig(dataset="cifar10", width=8), finished="2024-03-03", commit="def", device="a CPU")
    _run(folder / "ablations", TrainConfig(eps=0.1), finished="2024-04-04", commit="fed", device="a CPU")
    findings = [
        {"ablation": "eps", "sentence": "ε: best 0.3."},
        {"ablation": "variance", "sentence": "ρ -0.4."},
    ]
    results.write_json(folder / "ablations/tables/findings.json", findings)
    photographs = folder / "ablations-cifar10-small"
    _run(photographs, TrainConfig(dataset="cifar10", eps=0.1), finished="2024-04-05", commit="eda")
    results.write_json(photographs / "tables/findings.json", [{"sentence": "ε: best 0.5."}])
    results.write_json(folder / "comparison/lightly.json", LIGHTLY)
    results.write_json(folder / "bench/cpu.json", BENCH)
    clocked = BENCH["step"] | {"clocks": {"clocks.sm": 1980.0}, "ms": 20.0}
    device = {"provenance": {"device": "some accelerator"}}
    results.write_json(folder / "bench/step.json", BENCH | device | {"step": clocked})
    return project


def _published() -> str:
    return (plan.ROOT / "results/reference/published.csv").read_text(encoding="utf-8")


def _run(folder, config, **result):
    path = folder / "runs" / config.name
    results.write_json(path / "result.json", result_of(config, **result))
    probe = PROBE | {"linear": {"accuracy": 0.8125, "converged": True}, "reference": {"best": 0.8225}}
    results.write_json(path / "probe.json", probe | {"commit": "cba", "finished": "2024-01-01"})


def row(part: str, start: str) -> list[str]:
    (line,) = (line for line in part.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_number_comes_from_its_file(project):
    part = readme.results_part(project / "results/reference")
    assert row(part, "DirectSet(α) learns")[2:] == ["2 of 2 met, error up to 3e-09"]
    assert row(part, "The labels needed")[2:] == ["0 of 1 met, error up to 0.7"]
    health = "DirectCopy healthy 3/3, no predictor collapsed 3/3"
    assert row(part, "Digits: training collapses")[2:] == [health]
    assert (
        row(part, "Digits, % with one label per class: DirectCopy keeps")[2] == "DirectCopy 84.9 ± 1.0"
    )  # no other method was run
    assert row(part, "With q₋")[2] == "not run"
    assert "01 1:05, 02 —, 03 1:30, 04 —" in part  # of 03, both copies that finished
    assert "| DirectCopy | healthy 3/3 | 84.9 ± 1.0 |" in part
    assert (project / "results/reference/quick/tables/methods.md").read_text().strip() in part
    table = part[part.index("| STL-10, 100") :]
    assert row(table, "DirectCopy |")[4].endswith("† / 81.2 (82.2)")
    assert row(table, "DirectCopy |")[5].endswith("† / not run")
    assert published.DAGGER in part


def test_each_preset_names_its_commits_and_devices(full_project):
    folder = full_project / "results/reference"
    _run(folder / "quick", TrainConfig(seed=1), finished="2024-05-05", commit="bcd")
    part = readme.results_part(folder)
    assert [line for line in part.splitlines() if line.startswith("- `")] == [
        "- `ablations`: 1 runs, from fed on a CPU, probed by cba; the last file is of 2024-04-04.",
        "- `ablations-cifar10-small`: 1 runs, from eda on a GPU, probed by cba; the last file is of "
        "2024-04-05.",
        "- `cifar10`: 1 runs, from abc on a GPU, probed by cba; the last file is of 2024-02-02.",
        "- `cifar10-small`: 1 runs, from def on a CPU, probed by cba; the last file is of 2024-03-03.",
        "- `quick`: 2 runs, from abc, bcd on a GPU, probed by cba; the last file is of 2024-05-05.",
    ]
    assert readme.origin(folder) in part
    (copied,) = (folder / "cifar10/runs").iterdir()
    shutil.copytree(copied, copied.with_name(f"{copied.name} copy"))
    _run(folder / "smoke", TrainConfig(dataset="cifar10"), finished="2025")
    _run(folder / "mine", TrainConfig(lr=0.1), finished="2025")  # of which the README shows nothing
    assert readme.results_part(folder) == part


def test_every_part_is_shown_where_its_file_is(full_project):
    folder = full_project / "results/reference"
    part = readme.results_part(folder)
    assert (folder / "cifar10-small/tables/methods.md").read_text().strip() in part
    assert "\n- ε: best 0.3.\n- ρ -0.4.\n" in part and "\n- ε: best 0.5.\n" in part
    assert row(part, "BYOL, lightly, fp32")[1:] == ["95.5 ± 0.7", "90.0 ± 0.0", "2", "12", "1.00"]
    assert "lightly 1.5.20" in part and "7 workers" in part
    assert row(part, "cpu |")[1] == "a processor, 2 threads"
    assert row(part, "step |")[1] == "some accelerator"
    assert part.count("<details>") == part.count("</details>") == 6
    assert "a GPU: not run" not in part and "preset: not run" not in part and "small: not run" not in part
    (folder / "bench/step.json").unlink()
    assert "Speed on a GPU: not run." in readme.results_part(folder)


def test_what_peeks_and_which_protocols_differ_is_said_with_table_1(project):
    (text,) = (
        line for line in readme.results_part(project / "results/reference").splitlines() if "peeks at" in line
    )
    for word in ("In brackets", "not a result", "probe", "target's start", "bf16", published.DAGGER):
        assert word in text


def test_a_probe_that_did_not_converge_is_marked(project):
    (path,) = project.glob("results/reference/cifar10/runs/*/probe.json")
    probe = results.read_json(path)
    results.write_json(path, probe | {"linear": probe["linear"] | {"converged": False}})
    part = readme.results_part(project / "results/reference")
    assert row(part[part.index("| STL-10, 100") :], "DirectCopy |")[4].endswith("† / 81.2‡ (82.2)")
    assert [line for line in part.splitlines() if line.startswith("‡") and "1 of 1" in line]


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("quick/tables/methods.md", "84.9", "85.9"),
        ("quick/tables/methods.csv", "84.9", "85.9"),
        ("quick/theory/claims.csv", "2.5e-09", "2.5e-03"),
        ("published.csv", "77.86", "77.96"),
        ("cifar10/runs/*/probe.json", "0.8125", "0.7125"),
        ("cifar10/runs/*/probe.json", "0.8225", "0.7225"),
        ("cifar10-small/tables/methods.md", "23.4", "24.4"),
        ("cifar10-small/runs/*/result.json", "def", "fed"),
        ("ablations/tables/findings.json", "0.3", "0.4"),
        ("ablations-cifar10-small/tables/findings.json", "0.5", "0.6"),
        ("ablations-cifar10-small/runs/*/result.json", "eda", "ade"),
        ("comparison/lightly.json", "0.95", "0.85"),
        ("comparison/lightly.json", "1.5.20", "1.5.21"),
        ("bench/cpu.json", "0.015", "0.025"),
    ],
)
def test_a_change_in_any_file_shows(full_project, path, old, new):
    before = readme.fill(TEXT, full_project)
    assert readme.fill(before, full_project) == before
    (file,) = (full_project / "results/reference").glob(path)
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")
    assert readme.fill(before, full_project) != before


def test_a_claim_on_photographs_has_the_numbers_of_its_own_preset(project):
    rows = [{"method": name, "all labels": value} for name, value in (("DirectCopy", 62), ("DirectPred", 63))]
    results.write_csv(project / "results/reference/cifar10-small/tables/methods.csv", rows)
    table = readme.results_part(project / "results/reference").split("\n\n")[0]
    assert table.splitlines()[-1].endswith(" | DirectCopy 62, DirectPred 63 |")


def test_without_results_all_is_not_run(tmp_path):
    results.write_text(tmp_path / "results/reference/published.csv", _published())
    part = readme.results_part(tmp_path / "results/reference")
    assert part.split("\n\n")[0].count("| not run |") == len(statements.CLAIMS)
    assert "No run has finished yet." in part
    ablated = [f"Ablations on {name}" for name in ablations.BESIDE]
    for what in (*(f"`{name}`" for name in readme.LISTED), *ablated, "The comparison with lightly"):
        assert f"\n\n{what}: not run." in part
    assert "Speed on a GPU: not run." in part


def test_two_protocols_of_one_cell_are_both_listed(project):
    _run(
        project / "results/reference/cifar10",
        TrainConfig(dataset="cifar10", precision="bf16"),
        finished="2024",
    )
    part = readme.results_part(project / "results/reference")
    assert row(part[part.index("| STL-10, 100") :], "DirectCopy |")[4].endswith(
        "† / 81.2 (82.2), 81.2 (82.2)"
    )


def test_only_the_generated_parts_are_written(project):
    def handwritten(text):
        return re.sub(r"(<!-- (\w+):begin -->).*?(<!-- \2:end -->)", r"\1\3", text, flags=re.DOTALL)

    assert handwritten(readme.fill(TEXT, project)) == handwritten(TEXT)
    with pytest.raises(ValueError, match="results:end"):
        readme.fill(TEXT.replace("<!-- results:end -->", ""), project)


def test_the_example_of_the_library_runs(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    verdict, accuracy = capsys.readouterr().out.splitlines()[-2:]
    assert verdict in ("healthy", "partial collapse", "collapsed")
    assert 0.5 < float(accuracy) <= 1
    assert names["p"].shape == (256, 128)


def test_the_notation_uses_names_of_the_code():
    (table,) = re.findall(r"\| letter \|(.*?)\n\n", TEXT, flags=re.DOTALL)
    named = {name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.split("|")[-3])}
    sources = "".join(path.read_text(encoding="utf-8") for path in (plan.ROOT / "dcopy").rglob("*.py"))
    assigned = set(re.findall(r"\b(\w+)(?:, \w+)*(?:: [^=\n]+)? = |\b(\w+): ", sources, flags=re.M))
    assert len(named) > 10 and named - {name for pair in assigned for name in pair} == set()


def test_what_it_links_to_and_shows_is_there():
    for link in re.findall(r"\]\((?!https?://)([^)#]+)\)|src=\"([^\"]+)\"", TEXT):
        link = "".join(link)
        assert (plan.ROOT / link).exists(), link


def test_it_is_cited_with_its_version():
    assert f"version = {{{dcopy.__version__}}}" in TEXT
