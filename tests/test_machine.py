"""What the machine allows: places to write, cores, one line for an error."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dcopy import machine
from dcopy.workflow.plan import ROOT

NOWHERE = "/dev/null/home"  # cannot be made, by root neither


def python(code: str, *prefix: str, **environment: str) -> subprocess.CompletedProcess:
    """Run code in an otherwise empty environment."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment}
    command = [*prefix, sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """An environment without any of the variables, and a folder for temporary files."""
    for name in ("HOME", "TMPDIR", "LOGNAME", "USER", "OMP_NUM_THREADS", *machine.PLACES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(machine.tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "home").mkdir()
    return tmp_path


def test_a_home_that_can_be_written_changes_nothing(bare, monkeypatch):
    monkeypatch.setenv("HOME", str(bare / "home"))
    before = dict(os.environ)
    machine.settle()
    assert dict(os.environ) == before and not list((bare / "home").iterdir())


@pytest.mark.parametrize("home", [NOWHERE, "", "relative", None])
def test_without_a_home_every_library_gets_a_place_to_write(bare, monkeypatch, home):
    if home is not None:
        monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(machine, "home", lambda: Path(os.environ["HOME"]) if "HOME" in os.environ else None)
    machine.settle()
    if home == NOWHERE:
        assert os.environ["HOME"] == NOWHERE  # whose files can perhaps be read
        assert all(Path(os.environ[name]).is_relative_to(machine.scratch()) for name in machine.PLACES)
    else:
        assert os.environ["HOME"] == str(machine.scratch())
    assert machine.scratch().stat().st_mode & 0o777 == 0o700


def test_only_what_cannot_be_written_is_pointed_elsewhere(bare, monkeypatch):
    monkeypatch.setenv("HOME", str(bare / "home"))
    monkeypatch.setenv("MPLCONFIGDIR", NOWHERE)
    monkeypatch.setenv("IPYTHONDIR", str(bare / "ipython"))
    machine.settle()
    assert os.environ["MPLCONFIGDIR"] == str(machine.scratch() / "mplconfigdir")
    assert os.environ["IPYTHONDIR"] == str(bare / "ipython") and "XDG_CACHE_HOME" not in os.environ


@pytest.mark.parametrize("place", [NOWHERE, "", "relative", "a file"])
def test_a_bad_folder_for_temporary_files_is_replaced(bare, place):
    if place == "a file":
        place = str(bare / "file")
        Path(place).touch()
    answer = python("import dcopy, os; print(os.environ['TMPDIR'])", TMPDIR=place, HOME=str(bare))
    assert os.access(answer.stdout.strip(), os.W_OK), answer


def test_somebody_elses_folder_is_not_used(bare):
    (bare / "tmp" / f"dcopy-{os.getuid()}").symlink_to(bare / "home")
    assert machine.scratch().parent == bare / "tmp" and not machine.scratch().is_symlink()


def test_libraries_are_silent_without_home_and_without_a_name():
    """As in `docker run -u 12345`; only root may take such a user id here."""
    prefix = ("setpriv", "--reuid", "12345", "--clear-groups") if os.getuid() == 0 else ()
    code = """
import dcopy, getpass, os, matplotlib.font_manager
from jupyter_core.paths import jupyter_runtime_dir
getpass.getuser()
os.makedirs(jupyter_runtime_dir(), exist_ok=True)
"""
    for home in ({"HOME": NOWHERE}, {}):
        answer = python(code, *prefix, MPLBACKEND="agg", **home)
        assert (answer.returncode, answer.stdout + answer.stderr) == (0, "")


@pytest.mark.parametrize("full", [False, True])
def test_a_full_disk_is_no_place_to_write(tmp_path, monkeypatch, full):
    class Space:
        f_blocks, f_bavail = 10, 0 if full else 1

    monkeypatch.setattr(os, "statvfs", lambda path: Space)
    assert machine.writable(tmp_path / "new" / "er") is not full


def test_data_lie_in_the_home_or_where_files_may_be_written(bare, monkeypatch):
    monkeypatch.setenv("HOME", str(bare / "home"))
    assert machine.cache() == bare / "home/.cache/dcopy"
    monkeypatch.setenv("HOME", NOWHERE)
    assert machine.cache() == machine.scratch() / "data"


def test_files_are_utf8_and_lines_are_shown_in_any_locale(tmp_path):
    """As with a locale of C, POSIX or Latin-1; ruff asks for an encoding wherever text is read or written."""
    code = f"""
import sys
from dcopy import results
assert sys.getfilesystemencoding() == "ascii"
results.write_json("{tmp_path}/a.json", ["\\u03b5 \\xb1"])
results.write_csv("{tmp_path}/a.csv", [dict(a="\\u03b5 \\xb1")])
results.append_jsonl("{tmp_path}/a.jsonl", dict(a="\\u03b5"))
sys.argv[1:] = ["--list"]
import runpy; runpy.run_module("dcopy.workflow.preset", run_name="__main__")
"""
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    answer = python(code, HOME=str(tmp_path), **ascii_only)
    assert (answer.returncode, answer.stderr) == (0, "") and "smoke" in answer.stdout
    assert (tmp_path / "a.csv").read_text(encoding="utf-8").splitlines() == ["a", "ε ±"]


# cores

QUOTA, PERIOD = "/cpu.cfs_quota_us", "/cpu.cfs_period_us"  # of version 1


@pytest.mark.parametrize(
    ("group", "files", "quota"),
    [
        ("0::/", {"cpu.max": "max 100000"}, float("inf")),
        ("0::/", {"cpu.max": "250000 100000"}, 2.5),
        ("0::/a/b", {"a/cpu.max": "50000 100000", "a/b/cpu.max": "max 100000"}, 0.5),  # by the group above
        ("0::/not/visible", {"cpu.max": "200000 100000"}, 2),  # as in a container
        ("0::/a", {"unified/a/cpu.max": "100000 100000"}, 1),  # both versions at once
        ("4:cpu,cpuacct:/a", {"cpu,cpuacct/a" + QUOTA: "150000", "cpu,cpuacct/a" + PERIOD: "100000"}, 1.5),
        ("1:cpu:/docker/1", {"cpu" + QUOTA: "300000", "cpu" + PERIOD: "100000"}, 3),
        ("1:cpu:/", {"cpu" + QUOTA: "-1", "cpu" + PERIOD: "100000"}, float("inf")),
        ("3:cpuset:/a\n2:name=systemd:/a", {"cpu/a" + QUOTA: "1", "cpu/a" + PERIOD: "1"}, float("inf")),
        ("garbage: :", {}, float("inf")),
    ],
)  # fmt: skip
def test_quotas_of_control_groups_are_found(tmp_path, group, files, quota):
    (tmp_path / "mine").write_text(group + "\n")
    for name, content in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    assert machine._quota(tmp_path / "cgroup", tmp_path / "mine") == quota


@pytest.mark.parametrize(("quota", "cores"), [(float("inf"), 8), (2.5, 2), (0.5, 1), (64, 8)])
def test_cores_are_what_affinity_and_quota_leave(bare, monkeypatch, quota, cores):
    monkeypatch.setenv("HOME", str(bare / "home"))
    monkeypatch.setattr(machine, "_affinity", lambda: 8)
    monkeypatch.setattr(machine, "_quota", lambda: quota)
    assert machine.cores() == cores
    machine.settle()
    assert os.environ.get("OMP_NUM_THREADS") == (None if cores == 8 else str(cores))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    machine.settle()
    assert os.environ["OMP_NUM_THREADS"] == "3"  # what the user says counts


def test_without_control_groups_the_affinity_counts(tmp_path):
    assert machine._quota(tmp_path, tmp_path / "none") == float("inf")


# errors


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Denied", "/a/b"), "/a/b: Denied; choose a place that you may use"),
        (OSError(30, "Read-only", b"/a\xff"), "/a\udcff: Read-only; choose a place that can be written"),
        (OSError(28, "No space"), "No space; make room, then the same command goes on"),
        (FileNotFoundError(2, "No such file or directory", "x"), "x: No such file or directory"),
        (ValueError("two\nlines"), "two lines"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_an_error_is_one_line(error, line):
    assert machine.explain(error) == line
