"""A copy of results on another disk: it follows, comes back, and is never a reason to stop."""

import shutil
import threading
import time

import pytest

from dcopy.workflow import mirror
from dcopy.workflow.mirror import Mirror


@pytest.fixture
def places(tmp_path):
    local, drive = tmp_path / "local", tmp_path / "drive"
    for name in ("runs/a/metrics.jsonl", "runs/a/checkpoint.safetensors", "tables/t.md", ".done/a.json"):
        (local / name).parent.mkdir(parents=True, exist_ok=True)
        (local / name).write_text(name)
    drive.mkdir()
    return local, drive / "quick"


def contents(folder) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()
    }


def test_what_is_copied_comes_back_with_its_times_before_work_begins(places, monkeypatch):
    local, remote = places
    copy = mirror.copy
    monkeypatch.setattr(mirror, "copy", lambda *files: time.sleep(0.02) or copy(*files))
    for name in (".lock", "features/f.npy", "runs/a/.0a.tmp", ".snakemake/log"):
        (local / name).parent.mkdir(parents=True, exist_ok=True)
        (local / name).touch()
    with Mirror(local, remote):
        (local / "tables/t.md").write_text("newer")
    expected = contents(remote)
    assert expected.keys() == {
        "runs/a/metrics.jsonl",
        "runs/a/checkpoint.safetensors",
        "tables/t.md",
        ".done/a.json",
    }
    assert expected["tables/t.md"] == "newer"
    times = {name: (local / name).stat().st_mtime_ns for name in expected}
    shutil.rmtree(local)
    (local / "tables").mkdir(parents=True)
    (local / "tables/t.md").write_text("what is here stays")
    with Mirror(local, remote):
        assert contents(local) == expected | {"tables/t.md": "what is here stays"}
    assert contents(local) == contents(remote)
    del times["tables/t.md"]
    assert times == {name: (local / name).stat().st_mtime_ns for name in times}


def test_a_lost_mount_is_told_once_and_caught_up_with_when_it_is_back(places, capsys):
    local, remote = places
    follower = Mirror(local, remote)
    follower.send()
    drive, away = remote.parent, remote.parent.with_name("away")
    drive.rename(away)
    (local / "tables/t.md").write_text("meanwhile")
    follower.send()
    follower.send()
    assert not drive.exists()  # nothing is written where the mount was
    away.rename(drive)
    follower.send()
    assert contents(remote) == contents(local)
    lost, back = capsys.readouterr().out.splitlines()
    assert "is lost (" in lost and back.endswith("is back, and has everything")


@pytest.mark.parametrize("broken", ["metrics.jsonl", "checkpoint.safetensors"])
def test_metrics_are_never_behind_the_checkpoint(places, monkeypatch, broken):
    """A run goes on from a checkpoint and the epochs up to it."""
    local, remote = places
    follower, copy = Mirror(local, remote), mirror.copy
    follower.send()
    for name in ("checkpoint.safetensors", "metrics.jsonl"):  # the latter may be of an epoch later
        (local / "runs/a" / name).write_text("next epoch")

    def fail(source, target):
        if target.name == broken:
            raise OSError("no space left")
        copy(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(mirror, "copy", fail)
        follower.send()
    assert contents(remote)["runs/a/checkpoint.safetensors"] != "next epoch"
    follower.send()
    assert contents(remote) == contents(local)


def test_a_mount_that_hangs_holds_nothing_up(places, monkeypatch, capsys):
    local, remote = places
    forever = threading.Event()
    monkeypatch.setattr(mirror, "files", lambda folder: forever.wait() and [])
    with Mirror(local, remote, seconds=0, patience=0.1):
        pass
    said = capsys.readouterr().out
    assert "does not answer" in said and "not everything was copied" in said
    forever.set()


def test_a_folder_that_is_not_there_is_refused(places):
    local, remote = places
    with pytest.raises(ValueError, match=r"^mirror='.*nowhere' is not allowed; it must be a folder"):
        Mirror(local, remote.parent / "nowhere" / "quick")
