"""Results: files appear whole or not at all, and lie where every caller finds them."""

import csv
import errno
import json
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch

from dcopy import results
from dcopy.workflow.plan import ROOT


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# atomic


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "deep" / "er" / "file"
    with results.atomic(path) as temporary:
        temporary.write_text("new")
        assert not path.exists() and temporary.parent == path.parent
    assert path.read_text() == "new" and names(path.parent) == ["file"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_who_may_read_a_file_is_what_the_umask_says(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        path = results.write_text(tmp_path / "file", "")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = results.write_text(tmp_path / "file", "old")
    with pytest.raises(type(error)), results.atomic(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and names(tmp_path) == ["file"]


def test_the_old_file_can_be_kept(tmp_path):
    for text in ("1", "2", "3"):
        with results.atomic(tmp_path / "file", keep=tmp_path / "before") as temporary:
            temporary.write_text(text)
    assert (tmp_path / "file").read_text() == "3" and (tmp_path / "before").read_text() == "2"


def test_a_path_that_cannot_be_is_an_os_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        results.write_json(tmp_path / "file" / "x.json", {})


def lacking(code: int):
    def operation(*arguments, **options):
        raise OSError(code, os.strerror(code))

    return operation


@pytest.mark.parametrize(
    "lost", [("fsync",), ("replace",), ("replace", "rename"), ("fsync", "chmod", "utime")]
)
@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_need_not_have_every_operation(tmp_path, monkeypatch, lost, code):
    path = results.write_text(tmp_path / "file", "old")
    for name in lost:
        monkeypatch.setattr(os, name, lacking(code))
    monkeypatch.setattr(Path, "replace", lambda self, target: os.replace(self, target))
    with results.atomic(path, keep=tmp_path / "kept") as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and (tmp_path / "kept").read_text() == "old"
    assert names(tmp_path) == ["file", "kept"]


@pytest.mark.parametrize("operation", ["write_text", "fsync", "replace"])
def test_a_full_disk_is_told_with_the_file_and_costs_nothing(tmp_path, monkeypatch, operation):
    path = results.write_text(tmp_path / "file", "old")
    owner = os if operation == "fsync" else Path
    monkeypatch.setattr(owner, operation, lacking(errno.ENOSPC))
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        results.write_text(path, "new")
    assert path.read_text() == "old" and names(tmp_path) == ["file"]


def test_a_file_name_may_have_any_legal_length_and_bytes(tmp_path):
    for name in ("x" * 255, os.fsdecode(b"caf\xe9 #1\n{'\""), "-"):
        assert results.read_json(results.write_json(tmp_path / name, 1)) == 1


# formats


def test_json_comes_back_and_holds_no_nan(tmp_path):
    value = {"name": "ε ± 1", "numbers": [1, 2.5, None]}
    path = results.write_json(tmp_path / "a.json", value)
    assert results.read_json(path) == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.write_json(path, {"loss": float("nan")})
    assert results.read_json(path) == value


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe"])
def test_broken_json_is_refused_with_its_name(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} is not a complete JSON file"):
        results.read_json(path)


def test_jsonl_grows_by_lines_and_forgives_a_last_one_cut_short(tmp_path):
    path = tmp_path / "a.jsonl"
    for epoch in (1, 2, 3):
        results.append_jsonl(path, {"epoch": epoch})
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"epoch": 4')
    assert results.read_jsonl(path) == [{"epoch": 1}, {"epoch": 2}, {"epoch": 3}]
    results.write_jsonl(path, results.read_jsonl(path)[:2])
    assert path.read_text() == '{"epoch": 1}\n{"epoch": 2}\n'


@pytest.mark.parametrize("line", [b"garbage", b"", b"\xff\xfe", b"[1]", b'{"loss": NaN}'])
def test_a_line_that_is_no_record_is_refused_with_its_file_and_number(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"epoch": 1}\n' + line + b'\n{"epoch": 3}\n')
    with pytest.raises(ValueError, match=rf"^{path}: line 2 is no record \(.+\)$"):
        results.read_jsonl(path)


def test_csv_keeps_the_order_of_the_first_rows_keys(tmp_path):
    rows = [{"method": "a, b", "n": 3}, {"n": 4, "method": 'c "d"'}]
    path = results.write_csv(tmp_path / "a.csv", rows)
    with open(path, newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["method", "n"], ["a, b", "3"], ['c "d"', "4"]]


# places


def test_names_that_are_no_text_can_be_written(tmp_path):
    """As of a folder of photos, in the rows and titles of tables."""
    name = os.fsdecode(b"caf\xe9")
    assert results.write_text(tmp_path / "a.md", name).read_text() == "caf\\udce9"
    assert results.write_csv(tmp_path / "a.csv", [{"name": name}]).read_text() == "name\ncaf\\udce9\n"
    assert results.read_json(results.write_json(tmp_path / "a.json", name)) == name


def test_a_relative_path_is_the_same_from_a_notebook_and_from_the_root(tmp_path, monkeypatch):
    for folder in (ROOT, ROOT / "notebooks", ROOT / "dcopy"):
        monkeypatch.chdir(folder)
        assert results.resolve("results/quick") == ROOT / "results" / "quick"
    monkeypatch.chdir(tmp_path)
    assert results.resolve("results/quick") == tmp_path / "results" / "quick"  # Colab: no checkout
    assert results.resolve(tmp_path / "a") == tmp_path / "a"
    assert results.resolve("~/a") == Path.home() / "a"
    assert results.resolve("~no such user") == tmp_path / "~no such user"


# locks


def test_a_folder_is_held_by_one_at_a_time(tmp_path):
    with results.locked(tmp_path / "run"):
        message = f"another process is at work in {tmp_path / 'run'}"
        with pytest.raises(ValueError, match=message), results.locked(tmp_path / "run"):
            pass
        with results.locked(tmp_path / "other"):
            pass
    with results.locked(tmp_path / "run"):
        pass


def test_waiting_for_a_folder_goes_on_when_it_is_free(tmp_path):
    events = []

    def wait():
        with results.locked(tmp_path, wait=True):
            events.append("second")

    thread = threading.Thread(target=wait)
    with results.locked(tmp_path):
        thread.start()
        time.sleep(0.1)
        events.append("first")
    thread.join()
    assert events == ["first", "second"]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_nothing_can_be_locked_work_goes_on_with_a_word(tmp_path, monkeypatch, caplog, code):
    monkeypatch.setattr(results.fcntl, "flock", lacking(code))
    with results.locked(tmp_path):
        pass
    assert caplog.messages == [f"{tmp_path} cannot be locked ({os.strerror(code)}); start nothing else there"]


def test_what_is_finished_can_be_read_where_nothing_can_be_written(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("builtins.open", lacking(errno.EROFS))
    with results.locked(tmp_path):
        pass
    assert not caplog.messages


# provenance


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with one commit that holds a copy of the module; a function to run git in it."""
    module = tmp_path / "dcopy" / "results.py"
    results.write_text(module, "code")
    monkeypatch.setattr(results, "__file__", str(module))

    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True)

    try:
        git("init")
    except FileNotFoundError:
        pytest.skip("git is not installed")
    return git


def test_the_commit_is_that_of_the_code(checkout, tmp_path):
    results.write_text(tmp_path / "results" / "table.md", "old")
    checkout("add", "results")
    checkout("commit", "-m", "no code")
    assert results.commit() == "unknown"  # as when installed in an environment inside another repository
    checkout("add", ".")
    checkout("commit", "-m", "code")
    head = checkout("rev-parse", "HEAD").stdout.decode()[:12]
    results.write_text(tmp_path / "results" / "table.md", "new")
    results.write_text(tmp_path / "notes", "untracked")
    assert results.commit() == head
    results.write_text(tmp_path / "dcopy" / "results.py", "other code")
    assert results.commit() == f"{head}+changes"


def test_the_commit_is_found_in_somebody_elses_checkout_and_whatever_git_is_told(
    checkout, tmp_path, monkeypatch
):
    checkout("add", ".")
    checkout("commit", "-m", "code")
    head = checkout("rev-parse", "HEAD").stdout.decode()[:12]
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "another repository"))
    if os.geteuid() == 0:
        for path in (tmp_path, *tmp_path.rglob("*")):
            os.chown(path, 12345, 12345)
    assert results.commit() == head


def test_a_checkout_whose_commit_cannot_be_found_gets_a_warning(checkout, tmp_path, monkeypatch, caplog):
    (tmp_path / ".git" / "HEAD").write_text("broken")
    assert results.commit() == "unknown"
    assert "results will not name the commit of this code: fatal: not a git repository" in caplog.text
    monkeypatch.setenv("PATH", "")
    assert results.commit() == "unknown" and "git: No such file or directory" in caplog.text


def test_the_commit_is_unknown_without_a_repository(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(results, "__file__", str(tmp_path / "results.py"))
    assert results.commit() == "unknown" and not caplog.messages


def test_provenance_names_commit_versions_device_and_time():
    record = results.provenance()
    assert json.loads(json.dumps(record)) == record
    assert torch.__version__.startswith(record["versions"]["torch"])
    assert {"python", "dcopy", "torchvision", "numpy", "scikit-learn"} <= record["versions"].keys()
    assert record["device"].endswith(f"{torch.get_num_threads()} threads")
    assert record["finished"].endswith("+00:00")


@pytest.mark.parametrize("colab", [True, False])
def test_the_environment_says_what_to_change_without_a_gpu(colab, capsys, monkeypatch):
    monkeypatch.setenv("DCOPY_DEVICE", "cpu")
    monkeypatch.setitem(results.sys.modules, "google.colab", object()) if colab else None
    results.print_environment()
    versions, device, advice = capsys.readouterr().out.splitlines()
    assert f"torch {results.provenance()['versions']['torch']}, " in versions and device.startswith(
        "device: "
    )
    assert advice.startswith("no GPU: ") and ("Change runtime type" in advice) == colab


def test_own_results_come_before_the_reference(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DCOPY_RESULTS", raising=False)
    committed = tmp_path / "results/reference/quick"
    results.write_json(committed / "runs/a/result.json", {})
    own = tmp_path / "results/quick"
    results.write_json(own / "tables/claims.json", [])  # made from the reference, no measurement
    assert results.own_or_reference("results/quick") == committed
    assert results.own_or_reference("results/nobody-ran") == tmp_path / "results/nobody-ran"
    assert results.own_or_reference(tmp_path / "results/reference/other").parent == results.reference()
    monkeypatch.setenv("DCOPY_RESULTS", str(tmp_path / "scratch"))
    assert results.own_or_reference(results.root() / "quick") == committed
    results.write_json(results.root() / "quick/runs/a/result.json", {})
    assert results.own_or_reference(results.root() / "quick") == tmp_path / "scratch/quick"
    assert results.own_or_reference(own) == committed
