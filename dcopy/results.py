"""Where results lie and how they are written: the only module that writes files.

Every file appears under a temporary name and is renamed when it is complete, so a reader never
sees half of one, and a full disk or a kill leaves the file that was there before.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import importlib.metadata
import json
import logging
import os
import platform
import secrets
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

from . import __version__, hardware, machine

try:
    import fcntl
except ImportError:  # Windows: no lock
    fcntl = None

log = logging.getLogger(__name__)
# What file systems answer that lack an operation: network drives, buckets, some containers' mounts.
UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK, errno.EPERM, errno.EACCES}


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
    return project_root() / machine.expand(path)


def root() -> Path:
    """The folder of all results of one's own: $DCOPY_RESULTS, else results/ in the project."""
    return resolve(os.environ.get("DCOPY_RESULTS") or "results")


def reference() -> Path:
    """The folder of the committed results, which the README and the published numbers are read from."""
    return resolve("results/reference")


def own_or_reference(path: str | Path) -> Path:
    """A folder of results where something was measured in it, else the committed one of the same name.

    So `results/quick` is `results/reference/quick` until a run of one's own has finished there.
    """
    own = resolve(path)
    committed = reference() / own.name
    measured = any(own.glob("runs/*/result.json")) or any(own.glob("*.json"))
    is_one = own.parent.name == reference().name  # the reference itself, whatever is missing there
    return own if measured or is_one or not committed.is_dir() else committed


@contextlib.contextmanager
def atomic(path: str | Path, keep: Path | None = None):
    """Yield a temporary path beside `path`; rename it over `path` if the block succeeds.

    Args:
        keep: where to move the file that was there before; None: it is replaced.

    Raises:
        OSError: the folder cannot be written or the disk is full; `path` is as it was before.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    with _named(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # less the umask
        try:
            yield temporary
            with open(temporary, "rb+") as file, _where_supported():
                os.fsync(file.fileno())
            if keep and path.exists():
                replace(path, keep)
            replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def require_writable(path: str | Path) -> None:
    """Raises OSError, naming the file, where it cannot be written: before the work rather than after."""
    if Path(path).is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with contextlib.suppress(InterruptedError), atomic(path) as temporary:
        temporary.write_bytes(bytes(4096))  # a full disk may still take an empty one
        raise InterruptedError  # so that what is there stays


@contextlib.contextmanager
def _named(path: Path, temporary: Path | None = None):
    """Give an OSError the name of the file that was to be written; a write to a full disk gives none."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, temporary, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


@contextlib.contextmanager
def _where_supported():
    try:
        yield
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def replace(source: Path, target: Path) -> None:
    """Rename over what is there; where the file system cannot, take that away first, or copy."""
    try:
        source.replace(target)
    except OSError as error:
        if error.errno not in UNSUPPORTED | {errno.EEXIST, errno.EXDEV, errno.EBUSY}:
            raise
        target.unlink(missing_ok=True)
        shutil.move(source, target, copy_function=shutil.copyfile)


def write_text(path: str | Path, text: str) -> Path:
    with atomic(path) as temporary:  # a folder of photos may have a name that is no text
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return Path(path)


def write_json(path: str | Path, value) -> Path:
    """Write `value` as JSON; NaN and infinity are refused, since JSON has neither."""
    return write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: str | Path):
    """Raises ValueError, naming the file, where it is not JSON, or has NaN or infinity as a number."""

    try:
        return _parse(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is not a complete JSON file ({error}); delete it to make it again"
        ) from None


def lacking(record, names) -> list[str]:
    """Those of the names that a record does not have; a dot leads into a record in it.

    >>> lacking({"linear": {"accuracy": 0.5}}, ["linear.accuracy", "linear.converged", "knn"])
    ['linear.converged', 'knn']
    """

    def has(name: str) -> bool:
        part = record
        for key in name.split("."):
            if not (isinstance(part, dict) and key in part):
                return False
            part = part[key]
        return True

    return [name for name in names if not has(name)]


def _parse(text: str):
    def refuse(constant: str):
        raise ValueError(f"{constant} is no number")

    return json.loads(text, parse_constant=refuse)


def read_jsonl(path: str | Path) -> list[dict]:
    """One record a line; a last line that a kill cut short is left out.

    Raises:
        ValueError: a line is no record; the message names the file and the line.
    """
    records = []
    for number, line in enumerate(Path(path).read_bytes().split(b"\n")[:-1], start=1):
        try:
            records.append(_parse(line.decode("utf-8")))
            if not isinstance(records[-1], dict):
                raise ValueError("no object")
        except ValueError as error:
            raise ValueError(f"{path}: line {number} is no record ({error})") from None
    return records


def append_jsonl(path: str | Path, record: dict) -> None:
    with _named(Path(path)), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record, allow_nan=False) + "\n")
        with _where_supported():  # on disk before the checkpoint that needs it
            file.flush()
            os.fsync(file.fileno())


def write_jsonl(path: str | Path, records: list[dict]) -> Path:
    return write_text(path, "".join(json.dumps(record, allow_nan=False) + "\n" for record in records))


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
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(folder / ".lock", "w", encoding="utf-8"))
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            message = f"another process is at work in {folder}; wait for it or stop it"
            raise ValueError(message) from None
        except OSError as error:
            if error.errno in UNSUPPORTED:
                log.warning("%s cannot be locked (%s); start nothing else there", folder, error.strerror)
            elif error.errno != errno.EROFS:  # where what is finished can be read, and nothing spoilt
                raise
        yield


def write_csv(path: str | Path, rows: list[dict]) -> Path:
    """Write rows that share their keys as CSV, in the order of the first row's keys."""
    with (
        atomic(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return Path(path)


def commit() -> str:
    """The commit of this code, with `+changes` where tracked files differ from it; else 'unknown'."""
    here = Path(__file__)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments):
        # Whoever owns the checkout: we run its code already.
        command = ["git", "-c", "safe.directory=*", "-C", str(here.parent), *arguments]
        answer = subprocess.run(command, capture_output=True, check=True, env=environment)
        return os.fsdecode(answer.stdout).strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":/!results")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except OSError as error:
        reason = machine.explain(error)
    except subprocess.CalledProcessError as error:
        reason = "" if error.returncode == 1 else os.fsdecode(error.stderr).partition("\n")[0]
    if reason and any((folder / ".git").exists() for folder in here.parents):
        log.warning("results will not name the commit of this code: %s", reason)
    return "unknown"  # also where it is installed inside another repository


def versions() -> dict[str, str]:
    """Versions of this package and of those that its numbers depend on."""
    found = {"dcopy": __version__}  # which need not be installed
    for package in ("torch", "torchvision", "numpy", "scikit-learn"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def provenance(device="cpu") -> dict:
    """Where a number comes from: commit, versions, device and time, for every result file."""
    return {
        "commit": commit(),
        "versions": {"python": platform.python_version(), **versions()},
        "device": hardware.name(device),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def precision(record: dict) -> str:
    """In what a run or a benchmark was computed: fp32, bf16 or fp16, where the configuration may say auto."""
    return record.get("precision", record["config"]["precision"])  # older files have it there alone


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
