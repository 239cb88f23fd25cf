"""One notebook at a time: `python -m dcopy.workflow.notebook`."""

import errno
import json
import os
import signal
import sys
import time
from pathlib import Path

import papermill
import pytest
from helpers import toy_project

from dcopy import results
from dcopy.workflow import kernel
from dcopy.workflow import notebook as notebook_runner

GRID = "grid: int = 3  # points\neps: float | None = None\nname: str = 'a'\n"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to run in, outside of the checkout; signals, environment and folder are put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DCOPY_PROGRESS", "")
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    yield tmp_path
    for number, handler in before.items():
        if signal.getsignal(number) != handler:
            signal.signal(number, handler)


def run(path, *words: str) -> int:
    return notebook_runner.main([str(path), "--results-dir", "out", *words])


def outputs(path) -> str:
    cells = json.loads(path.read_text())["cells"]
    return "".join("".join(output.get("text", "")) for cell in cells for output in cell.get("outputs", []))


def test_parameters_arrive_with_their_types(place, capsys):
    notebook = toy_project.write_notebook(place / "a.ipynb", GRID, "print([grid, eps, name])")
    assert run(notebook, "-p", "grid=40", "-p", "name=40") == 0
    assert outputs(place / "out/notebooks/a.ipynb") == "[40, None, '40']\n"
    assert kernel.Kernel.latest.transport == "ipc"
    assert "a | [40, None, '40']\n" in capsys.readouterr().out


def test_of_an_epoch_a_line_the_executed_copy_keeps_the_last_and_the_log_all(place):
    epochs = "for n in (1, 2, 3):\n    print(f'epoch {n}/3  loss {-n}', flush=True)\n"
    code = f"print('before')\n{epochs}print('after')"
    notebook = toy_project.write_notebook(place / "a.ipynb", GRID, code)
    assert run(notebook) == 0
    assert outputs(place / "out/notebooks/a.ipynb") == "before\nepoch 3/3  loss -3\nafter\n"
    assert (place / "out/logs/a.log").read_text().count("epoch ") == 3


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("gird=4", "a.ipynb has no parameter 'gird'; it has grid, eps, name"),
        ("grid=4.5", "a.ipynb: grid=4.5 is not of type int"),
        ("grid=many", "a.ipynb: grid='many' is not of type int"),
        ("eps=True", "a.ipynb: eps=True is not of type float | None"),
        ("grid", "-p grid is not of the form NAME=VALUE"),
    ],
)
def test_wrong_parameters_are_refused(place, capsys, word, complaint):
    notebook = toy_project.write_notebook(place / "a.ipynb", GRID, "1")
    with pytest.raises(SystemExit) as exit:
        run(notebook, "-p", word)
    assert exit.value.code == 2 and capsys.readouterr().err == complaint + "\n"
    assert not (place / "out").exists()


def test_the_kernel_is_this_interpreter_in_the_projects_root(place, monkeypatch):
    source = "import os, sys\nprint(sys.executable, os.getcwd(), os.environ['DCOPY_PROGRESS'])"
    notebook = toy_project.write_notebook(place / "a.ipynb", "n: int = 1", source, kernel="julia-0.3")
    project = toy_project.make(place / "project")
    expected = {place: place, project / "notebooks": project}  # called from: works in
    for folder, root in expected.items():
        monkeypatch.chdir(folder)
        assert run(notebook) == 0
        assert outputs(root / "out/notebooks/a.ipynb") == f"{sys.executable} {root} lines\n"
    executed = json.loads((place / "out/notebooks/a.ipynb").read_text())
    assert executed["metadata"]["kernelspec"]["name"] == "julia-0.3"  # the copy keeps what the source says


def test_bars_become_lines_and_warnings_go_to_the_log(place, capsys):
    source = "import sys\nprint('1 %\\r2 %\\r3 %')\nprint('a warning', file=sys.stderr)\nprint('end', end='')"
    notebook = toy_project.write_notebook(place / "a.ipynb", "n: int = 1", source)
    assert run(notebook) == 0
    shown = capsys.readouterr().out
    assert "a | 3 %\n" in shown and "2 %" not in shown and "a warning" not in shown and "a | end\n" in shown
    log = (place / "out/logs/a.log").read_text().splitlines()
    assert "3 %" in log and "a warning" in log and log[-1].startswith("finished in ")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise ValueError('first\\nsecond')", "ValueError: first"),
        ("import os; os.kill(os.getpid(), 9)", "the kernel died (SIGKILL, as when memory runs out)"),
        ("import os; os._exit(3)", "the kernel died (exit code 3)"),
    ],
)
def test_a_failure_keeps_what_there_is_and_never_looks_finished(place, capsys, source, reason):
    notebook = toy_project.write_notebook(place / "a.ipynb", "n: int = 1", "print('before')", "print('well')")
    assert run(notebook) == 0
    marker, executed = place / "out/.done/a.json", place / "out/notebooks/a.ipynb"
    failed = executed.with_suffix(".failed.ipynb")
    assert marker.exists() and executed.exists()

    toy_project.write_notebook(notebook, "n: int = 1", "print('before')", source, "print('after')")
    assert run(notebook) == 1
    assert f"a | failed in cell [3]: {reason}\n" in capsys.readouterr().out
    assert (place / "out/logs/a.log").read_text().endswith(f"failed in cell [3]: {reason}\n")
    assert not marker.exists() and not executed.exists()
    assert outputs(failed) == "before\n"

    toy_project.write_notebook(notebook, "n: int = 1", "1")
    assert run(notebook) == 0
    assert marker.exists() and sorted(path.name for path in executed.parent.iterdir()) == ["a.ipynb"]


def test_the_marker_is_written_last_and_without_it_nothing_looks_finished(place, monkeypatch, capsys):
    notebook = toy_project.write_notebook(place / "a.ipynb", "n: int = 1", "1")

    def full(path, value):
        assert (place / "out/notebooks/a.ipynb").exists()
        raise OSError("No space left on device")

    monkeypatch.setattr(results, "write_json", full)
    assert run(notebook) == 1
    assert "a | failed in writing its results: No space left on device\n" in capsys.readouterr().out
    assert [path.name for path in (place / "out/notebooks").iterdir()] == ["a.failed.ipynb"]


@pytest.mark.parametrize(("cells_run", "attempts"), [(0, 3), (1, 1)])
def test_a_start_is_tried_again_only_when_no_cell_has_run(place, monkeypatch, capsys, cells_run, attempts):
    notebook = toy_project.write_notebook(place / "a.ipynb", "n: int = 1", "1")
    calls = []

    def fail(*arguments, on_cell_execute, kernel_manager_class, **options):
        calls.append(on_cell_execute)
        if cells_run:
            on_cell_execute.__self__.cells = cells_run
        raise RuntimeError("Address already in use")

    monkeypatch.setattr(papermill, "execute_notebook", fail)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert run(notebook) == 1
    assert len(calls) == attempts
    assert "Address already in use" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["x" * 100, "{odd} é", "read-only"])
def test_a_kernel_starts_with_any_folder_for_temporary_files(place, tmp_path, monkeypatch):
    monkeypatch.setattr(kernel.tempfile, "tempdir", str(tmp_path / place))
    if place != "read-only":
        (tmp_path / place).mkdir()
    with kernel.socket_folder() as folder:
        assert len(folder) < 60 and Path(folder).parent != tmp_path / place


def test_where_no_sockets_can_be_made_a_kernel_listens_on_ports(place, monkeypatch):
    def bind(self, address):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(kernel.socket, "socket", type("NoSockets", (kernel.socket.socket,), {"bind": bind}))
    assert kernel.socket_folder() is None
    monkeypatch.undo()
    monkeypatch.chdir(place)
    monkeypatch.setattr(kernel, "socket_folder", lambda: None)
    notebook = toy_project.write_notebook(place / "a.ipynb", "n: int = 1", "print(n)")
    assert run(notebook) == 0 and kernel.Kernel.latest.transport == "tcp"


def test_a_kernel_that_does_not_start_is_told_within_two_minutes(place, monkeypatch, capsys):
    """A server that takes the start and never answers, as a hanging network drive makes it."""
    assert notebook_runner.START_SECONDS < 120
    monkeypatch.setattr(notebook_runner, "START_SECONDS", 3)
    slow = [sys.executable, "-c", "import time; time.sleep(600)"]
    monkeypatch.setattr(kernel.Kernel, "kernel_spec", kernel.KernelSpec(argv=slow))
    notebook = toy_project.write_notebook(place / "a.ipynb", "n: int = 1", "1")
    started = time.monotonic()
    assert run(notebook) == 1 and time.monotonic() - started < 60
    assert "a | failed because no kernel starts: Kernel didn't respond in" in capsys.readouterr().out


def test_a_users_own_start_up_changes_nothing(place, monkeypatch):
    profile = place / "ipython/profile_default/startup"
    profile.mkdir(parents=True)
    for file in (place / "python.py", profile / "ipython.py"):
        file.write_text(f"import builtins\nbuiltins.own_{file.stem} = True")
    monkeypatch.setenv("MPLBACKEND", "tkagg")
    monkeypatch.setenv("PYTHONSTARTUP", str(place / "python.py"))
    monkeypatch.setenv("IPYTHONDIR", str(place / "ipython"))
    source = "import builtins, os\nprint([name for name in dir(builtins) if name.startswith('own_')])"
    source += "\nprint(os.environ['MPLBACKEND'][:6])"
    notebook = toy_project.write_notebook(place / "a.ipynb", "n: int = 1", source)
    assert run(notebook) == 0 and outputs(place / "out/notebooks/a.ipynb") == "[]\nmodule\n"


def test_a_full_disk_is_one_line_and_the_log_need_not_fit(place, monkeypatch, capsys):
    def full(self, text, path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(notebook_runner.Files, "write", full)
    notebook = toy_project.write_notebook(place / "a.ipynb", "n: int = 1", "print(n)")
    assert run(notebook) == 1
    assert "No space left on device; make room, then the same command goes on\n" in capsys.readouterr().out
    with open("/dev/full", "wb", buffering=0) as log:
        notebook_runner.note(log, "a line")


def test_kernels_that_start_together_do_not_meet(place):
    notebook = toy_project.write_notebook(place / "a.ipynb", "n: int = 1", "print(n * 11)")
    words = [str(notebook), "--results-dir", "out"]
    together = [
        toy_project.start(place, *words, "--name", f"a{n}", "-p", f"n={n}", module="dcopy.workflow.notebook")
        for n in range(4)
    ]
    for n, process in enumerate(together):
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        assert outputs(place / f"out/notebooks/a{n}.ipynb") == f"{n * 11}\n"


def test_a_cell_that_ignores_ctrl_c_is_killed_by_the_second_one(place):
    source = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("in it", flush=True)
time.sleep(600)
"""
    notebook = toy_project.write_notebook(place / "a.ipynb", "n: int = 1", source)
    process = toy_project.start(
        place, str(notebook), "--results-dir", "out", module="dcopy.workflow.notebook"
    )
    assert any("in it" in line for line in iter(process.stdout.readline, ""))
    process.send_signal(signal.SIGINT)
    time.sleep(1)  # two at once would be one
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=notebook_runner.STOP_SECONDS / 2)
    assert process.returncode == 130
    assert (place / "out/notebooks/a.failed.ipynb").exists() and not (place / "out/.done/a.json").exists()
