"""Where results lie and how they are written: the only module that writes files.

Every file appears under a temporary name and is renamed when it is complete, so a reader never
sees half of one, and a full disk or a kill leaves the file that was there before.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

from . import __version__, hardware

try:
    import fcntl
except ImportError:  # Windows: no lock
    fcntl = None


def project_root() -> Path:
    """The checkout that the working directory is in, or the working directory itself (Colab)."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "pyproject.toml").is_file() and (folder / "dcopy").is_dir():
            return folder
    return here


def resolve(path: str | Path) -> Path:
    """`path` as an absolute path; a relative one counts from the project's root.

    So a notebook finds the same results when it is opened in JupyterLab (which works in the
    notebook's folder) and when papermill runs it (which works in the caller's).
    """
    return project_root() / Path(path).expanduser()


@contextlib.contextmanager
def atomic(path: str | Path, keep: Path | None = None):
    """Yield a temporary path beside `path`; rename it over `path` if the block succeeds.

    Args:
        keep: where to move the file that was there before; None: it is replaced.

    Raises:
        OSError: the folder cannot be written or the disk is full; `path` is as it was before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        if keep and path.exists():
            path.replace(keep)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> Path:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | Path, value) -> Path:
    """Write `value` as JSON; NaN and infinity are refused, since JSON has neither."""
    return write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: str | Path):
    """Raises ValueError, naming the file, where it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is not a complete JSON file ({error}); delete it to make it again"
        ) from None


def read_jsonl(path: str | Path) -> list[dict]:
    """One record a line; a last line that a kill cut short is left out."""
    records = []
    for line in Path(path).read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            records.append(json.loads(line))
    return records


def append_jsonl(path: str | Path, record: dict) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record, allow_nan=False) + "\n")


def keep_jsonl(path: str | Path, wanted) -> None:
    """Drop the records for which `wanted(record)` is false."""
    records = read_jsonl(path) if Path(path).exists() else []
    write_text(path, "".join(json.dumps(record) + "\n" for record in records if wanted(record)))


@contextlib.contextmanager
def locked(folder: str | Path, wait: bool = False):
    """Hold a folder for this process while the block runs; a kill releases it.

    Args:
        wait: until another process lets go of it, instead of raising.

    Raises:
        ValueError: another process holds it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                message = f"another process is at work in {folder}; wait for it or stop it"
                raise ValueError(message) from None
        yield


def write_csv(path: str | Path, rows: list[dict]) -> Path:
    """Write rows that share their keys as CSV, in the order of the first row's keys."""
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return Path(path)


def commit() -> str:
    """The commit of this code, with `+changes` where tracked files differ from it; else 'unknown'."""
    here = Path(__file__)

    def git(*arguments):
        return subprocess.run(
            ["git", "-C", str(here.parent), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # or it is installed inside another repository
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":/!results")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def provenance(device="cpu") -> dict:
    """Where a number comes from: commit, versions, device and time, for every result file."""
    packages = ("torch", "torchvision", "numpy", "scikit-learn")
    versions = {"dcopy": __version__}  # which need not be installed
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "commit": commit(),
        "versions": {"python": platform.python_version(), **versions},
        "device": hardware.name(device),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def print_environment() -> None:
    """Say what a notebook runs on: versions, device, and what to change where there is no GPU."""
    try:
        device, precision = hardware.choose(precision="auto")
        kind, line = device.type, f"{hardware.name(device)}; precision=auto is {precision}"
    except ValueError as error:  # said here, and raised by what computes
        kind, line = None, str(error)
    print(", ".join(f"{name} {version}" for name, version in provenance()["versions"].items()))
    print(f"device: {line}")
    if kind == "cpu":
        advice = (
            "Runtime > Change runtime type > GPU" if "google.colab" in sys.modules else "digits need none"
        )
        print(f"no GPU: {advice}; the larger data sets do")
