"""The workflow when something goes wrong: a notebook fails, a signal comes, a name is odd."""

import json
import os
import signal

import pytest
from helpers import toy_project
from helpers.pictures import put
from helpers.toy_project import LONG, ONE, ORDER, logs, markers, saved, start_long, wait_for, would_run


def test_a_failure_is_named_and_stops_only_what_needs_it(project):
    code, output = toy_project.finish(project, "smoke")
    assert code == 1
    notebooks = project / "results/smoke/notebooks"
    good, bad = ("directcopy", "none")
    assert list(notebooks.glob(f"03_pretrain-*{bad}*")) == list(notebooks.glob(f"*{bad}*.failed.ipynb"))
    assert list(notebooks.glob(f"04_linear_probe-*{good}*.ipynb"))
    assert sorted(markers(project)) == ["01_linear_theory", "03_pretrain", "04_linear_probe"]
    left = output[output.index("4 of 7 notebooks did not finish:") :]
    assert "digits-none-" in left and ": failed in cell [3]: ValueError: this method fails\n" in left
    assert left.count("not started, since something before it did not finish") == 3
    assert "goes on about it" not in left
    assert "tables: results" not in output and output.endswith("the same command tries them again.\n")

    notebook = project / "notebooks/03_pretrain.ipynb"  # the next start, once the cause is gone
    notebook.write_text(notebook.read_text().replace("raise ValueError", "print"))
    code, output = toy_project.finish(project, "smoke")
    assert code == 0, output
    assert not list(notebooks.glob("*.failed.ipynb"))


def test_a_results_folder_that_cannot_be_written_is_one_line_before_any_work(project):
    (project / "results").write_text("a file where the folder should be")
    code, output = toy_project.finish(project, *ONE)
    assert code == 1
    assert output.startswith("cannot write to results/smoke: ") and output.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_results_folder_is_one_line_before_any_work(project):
    (project / "results").mkdir(mode=0o500)
    code, output = toy_project.finish(project, *ONE)
    assert (code, output.count("\n")) == (1, 1)
    assert output.startswith("cannot write to results/smoke: Permission denied; --results DIR")


@pytest.mark.parametrize(
    ("number", "as_background_job"),
    [(signal.SIGINT, False), (signal.SIGTERM, True), (signal.SIGUSR1, False), (signal.SIGHUP, False)],
)
def test_a_signal_lets_training_save_and_the_next_start_goes_on(project, number, as_background_job):
    def ignore():  # what a shell does to the background jobs of a script
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    process = start_long(project, preexec_fn=ignore if as_background_job else toy_project.hear_hangups)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    line = f"Stopped by {number.name}; what was trained is saved. The same command goes on from here.\n"
    assert output.endswith(line) and "Traceback" not in output
    assert len(saved(project)) == len(logs(project)) == 1  # and nothing else was begun
    assert "03_pretrain" not in markers(project)
    assert not list((project / "results/smoke/notebooks").glob("03*.running.ipynb"))
    assert would_run(project, *LONG).count("03_pretrain") == 1


def test_nothing_goes_on_after_the_workflow_is_killed(project):
    process = start_long(project)
    process.kill()
    process.wait()
    wait_for(lambda: saved(project), seconds=20)


def test_a_second_start_is_refused_while_the_first_one_works(project):
    process = start_long(project)
    try:
        code, output = toy_project.finish(project, *LONG)
        assert (code, output.count("\n")) == (1, 1)
        assert "another process is at work in results/smoke" in output
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


# odd places


ODD = os.fsdecode(b"-run #2: {a} {b 'c\" $d `e` \\f * ;&|<>\t\n caf\xc3\xa9 \xf0\x9f\x98\x80 \xe9 %20")


def test_checkout_results_and_photos_may_have_any_name_and_other_photos_are_other_runs(tmp_path, monkeypatch):
    root, place, photos = toy_project.make(tmp_path / ODD), tmp_path / "results" / ODD, tmp_path / f"of {ODD}"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # where the photos are decoded to
    put(photos / ODD)
    words = (*ONE, f"dataset=folder:{photos}", f"--results={place}")
    code, output = toy_project.finish(root, *words)
    assert code == 0, output
    assert "| 1 runs |" in output and (place / "smoke/tables/methods.md").exists()
    (executed,) = (place / "smoke/notebooks").glob("03*.ipynb")
    parameters = json.loads(executed.read_text(encoding="utf-8"))["metadata"]["papermill"]["parameters"]
    assert parameters["results_dir"] == str(place / "smoke") and parameters["dataset"] == words[2][8:]
    assert parameters["data_fingerprint"] and not would_run(root, *words)
    put(photos / "another.png")
    assert would_run(root, *words) == ORDER[1:]
    (photos / "another.png").unlink()
    assert not would_run(root, *words)
    (photos / ODD).rename(tmp_path / "elsewhere.png")
    code, output = toy_project.finish(root, *words)
    assert code == 2 and "holds no images in a known layout" in output.splitlines()[-1]
