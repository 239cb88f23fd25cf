"""What this machine allows: where files may be written, how many cores there are, what to say of an error.

`import dcopy` calls `settle`, so that what lies underneath (torch, matplotlib, Jupyter, Snakemake) finds
a place to write and a user name also where there is none: in a stripped container, a batch job, a
shared installation.
"""

from __future__ import annotations

import contextlib
import errno
import getpass
import os
import signal
import stat
import tempfile
from pathlib import Path

# Variables that say where the libraries underneath write, and where in the home they do otherwise.
PLACES = {
    "XDG_CACHE_HOME": ".cache",
    "XDG_CONFIG_HOME": ".config",
    "XDG_DATA_HOME": ".local/share",
    "MPLCONFIGDIR": ".config/matplotlib",
    "IPYTHONDIR": ".ipython",
    "JUPYTER_CONFIG_DIR": ".jupyter",
    "JUPYTER_DATA_DIR": ".local/share/jupyter",
    "JUPYTER_RUNTIME_DIR": ".local/share/jupyter/runtime",
    "TORCH_HOME": ".cache/torch",
    "TRITON_CACHE_DIR": ".triton/cache",
    "CUDA_CACHE_PATH": ".nv/ComputeCache",
}
# What asks a process to stop: Ctrl-C, `kill`, a closed terminal, batch systems before a time limit.
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
WAYS_OUT = {
    errno.ENOSPC: "make room, then the same command goes on",
    errno.EDQUOT: "make room, then the same command goes on",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "choose a place that you may use",
    errno.EPERM: "choose a place that you may use",
}


def settle() -> None:
    """Point the libraries underneath to places that can be written; what is fine already is left alone."""
    environment = os.environ
    if not environment.get("HOME", "/").startswith("/"):
        del environment["HOME"]  # empty or relative: another one in every folder
    with contextlib.suppress(OSError):  # there is no place to write at all: what needs one will say so
        wish = environment.get("TMPDIR", "/")
        if "TMPDIR" in environment and not (wish.startswith("/") and writable(Path(wish))):
            environment["TMPDIR"] = tempfile.gettempdir()  # which Python found by trying
        if home() is None:
            environment["HOME"] = str(scratch())
        for name, usual in PLACES.items():
            if not writable(Path(environment.get(name) or home() / usual)):
                environment[name] = str(scratch() / name.lower())
    try:
        getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        environment["LOGNAME"] = f"uid{os.getuid()}"
    environment.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # what Apple's GPU lacks, the processor does
    if cores() < _affinity():  # by a quota, which OpenMP does not know
        environment.setdefault("OMP_NUM_THREADS", str(cores()))


def home() -> Path | None:
    """The home folder, which need not exist; None where nothing says where it is."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def expand(path: str | Path) -> Path:
    """`path` with `~` for the home; any other name that begins with `~` is a name.

    >>> expand("~no such user/a")
    PosixPath('~no such user/a')
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def writable(folder: Path) -> bool:
    """Can files be made in this folder, which may have to be made first? Finds out without writing."""
    try:
        while not folder.exists():
            folder = folder.parent
        space = os.statvfs(folder)
    except OSError:
        return False
    full = space.f_blocks > 0 and space.f_bavail == 0  # some network drives report no blocks at all
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK) and not full


def scratch() -> Path:
    """A folder of this user alone for what can be made again, under the folder for temporary files.

    Raises:
        OSError: no folder for temporary files can be written.
    """
    folder = Path(tempfile.gettempdir(), f"dcopy-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and writable(folder):
        return folder
    return Path(tempfile.mkdtemp(prefix="dcopy-"))  # somebody else took the name


def cache() -> Path:
    """Where data sets lie if nobody says otherwise: `~/.cache/dcopy`, else a folder for temporary files."""
    usual = expand("~/.cache/dcopy")
    return usual if usual.is_dir() or writable(usual) else scratch() / "data"


def cores() -> int:
    """The processors that this process may use: by affinity, and by the quotas of its control groups."""
    return max(1, int(min(_affinity(), _quota())))


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quota(root: Path = Path("/sys/fs/cgroup"), mine: Path = Path("/proc/self/cgroup")) -> float:
    """Processors that Linux' control groups grant; infinity without a quota."""
    found = _limits("cpu", ("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us"), root, mine)
    return min((quota / period for quota, period in found if quota > 0), default=float("inf"))


def memory(root: Path = Path("/sys/fs/cgroup"), mine: Path = Path("/proc/self/cgroup")) -> float:
    """Bytes of memory that this process may use: of the machine, and by the limits of its control groups."""
    found = _limits("memory", ("memory.max",), ("memory.limit_in_bytes",), root, mine)
    with contextlib.suppress(ValueError, OSError, AttributeError):
        found += [[os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]]
    return min((limit[0] for limit in found), default=float("inf"))


def _limits(
    controller: str, files: tuple[str, ...], files_v1: tuple[str, ...], root: Path, mine: Path
) -> list[list[int]]:
    """The numbers in files of Linux' control groups, versions 2 and 1.

    A limit binds all groups below it, and in a container the group's own path may not be visible:
    all on the way up to the root are read.
    """
    found = []
    with contextlib.suppress(OSError):
        for line in mine.read_text(encoding="utf-8").splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers == "":
                tops, names = ("", "unified"), files
            elif controller in controllers.split(","):
                tops, names = (controller, controllers), files_v1
            else:
                continue
            for top in tops:
                lowest = root / top / group.strip("/")
                for folder in (lowest, *lowest.parents):
                    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
                        words = " ".join((folder / name).read_text() for name in names).split()
                        found.append([int(word) for word in words])
    return found


def signals() -> set[signal.Signals]:
    """The SIGNALS that this system has; Windows lacks most."""
    return {getattr(signal, name) for name in SIGNALS if hasattr(signal, name)}


def on_signals(handler) -> dict:
    """Let `handler` have the SIGNALS, but a SIGHUP that `nohup` ignores; returns the handlers before."""
    before = {}
    for number in signals():
        if not (number.name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN):
            before[number] = signal.signal(number, handler)
    return before


@contextlib.contextmanager
def signals_held():
    """Processes that start meanwhile never hear the SIGNALS: who starts them decides when to stop."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def explain(error: BaseException) -> str:
    """An error as one line, with the file that it is about and, where there is one, the way out.

    >>> explain(OSError(28, "No space left on device", "a/b"))
    'a/b: No space left on device; make room, then the same command goes on'
    """
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        text += "; ".join(filter(None, (error.strerror, WAYS_OUT.get(error.errno))))
    return " ".join(text.splitlines())


def shown(text) -> str:
    r"""A path as any terminal can show it on one line: what is no text or cannot be printed is escaped.

    >>> shown("caf\udce9\n")
    'caf\\xe9\\n'
    """
    text = str(text).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
