"""Jobs on a cluster: Snakemake's profile with the words of the command line in it, and no job left behind.

`--slurm` takes profiles/slurm. `--profile DIR` takes another: a copy of that one for a site, or one for any
other executor of Snakemake's, which is handed through as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import signal
import subprocess
import time
from collections import Counter
from copy import deepcopy
from pathlib import Path

from .. import results
from ..config import parse_options, require

SLURM = Path(__file__).parents[2] / "profiles" / "slurm"
TRAINING = ("pretrain", "linear_probe")  # the rules that use a GPU
RESOURCES = {
    "partition": "slurm_partition",
    "account": "slurm_account",
    "time": "runtime",
    "memory": "mem_mb",
}
COUNTS = ("cores", "gpus", "nodes")
ASK_SECONDS = 20  # between two questions for why jobs wait
UNITS = {"": 1, "m": 1, "h": 60, "d": 24 * 60, "M": 1, "G": 1000}


def split(options: list[str]) -> tuple[list[str], dict]:
    """The options of the preset, and the words for the cluster with their values.

    Raises:
        ValueError: a word is not of the form name=value, or has a value that is not allowed.

    >>> split(["seeds=2", "partition=gpu", "time=1-12:00:00", "memory=16G", "gpus=1"])
    (['seeds=2'], {'partition': 'gpu', 'time': 2160, 'memory': 16000, 'gpus': 1})
    """
    ours = [word for word in options if word.partition("=")[0] in (*RESOURCES, *COUNTS)]
    words = parse_options(ours)
    for name, value in words.items():
        if name == "time":
            words[name] = minutes(str(value))
        elif name == "memory":
            found = re.fullmatch(r"(\d+)([MG])", str(value))
            require(name, value, found, "a number with its unit, as 500M or 16G")
            words[name] = int(found[1]) * UNITS[found[2]]
        elif name in COUNTS:
            require(name, value, type(value) is int and value >= 1, "an integer of at least 1")
    return [word for word in options if word not in ours], words


def minutes(text: str) -> int:
    """A time limit, as Slurm or Snakemake write it.

    >>> minutes("90"), minutes("4h"), minutes("04:30:00"), minutes("2-00:00:00")
    (90, 240, 270, 2880)
    """
    if found := re.fullmatch(r"(\d+)([mhd]?)", text):
        total = int(found[1]) * UNITS[found[2]]
    elif found := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text):
        days, hours, rest, seconds = (int(part or 0) for part in found.groups())
        total = (24 * days + hours) * 60 + rest + (seconds > 0)
    else:
        total = 0
    require("time", text, total >= 1, "minutes, as 90, or as 4h, 2d, HH:MM:SS or D-HH:MM:SS")
    return total


def read_profile(folder: Path) -> dict:
    """Raises ValueError where there is no profile of Snakemake's there."""
    import yaml  # comes with Snakemake; words are checked before there is one

    found = sorted(folder.glob("config*.yaml"))
    if not found:
        raise ValueError(f"--profile {folder} is no profile of Snakemake's; it has no config.yaml")
    settings = yaml.safe_load(found[-1].read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        raise ValueError(f"{found[-1]} is no profile of Snakemake's; it must be made of name: value")
    return settings


def merged(settings: dict, words: dict) -> dict:
    """The profile with the words in it; what they say goes for every rule."""
    parts = ("default-resources", "set-resources", "set-threads")
    common, single, threads = (deepcopy(settings.get(part) or {}) for part in parts)
    for word, resource in RESOURCES.items():
        if word in words:
            common[resource] = words[word]
            for values in single.values():
                values.pop(resource, None)
    if "gpus" in words:
        for rule in TRAINING:
            single.setdefault(rule, {}).update(gres=f"gpu:{words['gpus']}", tasks_per_gpu=0)
    if words.get("nodes", 1) > 1:  # where `training.launch` calls srun
        single.setdefault("pretrain", {}).update(nodes=words["nodes"], tasks=words["nodes"], mpi="srun")
    if "cores" in words:
        threads = dict.fromkeys(threads, words["cores"])
    single = {rule: values for rule, values in single.items() if values}
    changed = {part: value for part, value in zip(parts, (common, single, threads), strict=True) if value}
    return {name: value for name, value in settings.items() if name not in parts} | changed


class Executor:
    """Where Snakemake runs the jobs; without a profile, on this machine.

    Attributes:
        name: of Snakemake's executor.
        arguments: for Snakemake.
        retries: of jobs that the cluster cut off.
        stop_signal: for Snakemake and its children, to stop it.
    """

    name, retries, stop_signal = "local", 0, signal.SIGINT

    def __init__(self, arguments: list[str]):
        self.arguments = arguments

    @staticmethod
    def of_profile(profile: Path | None, words: dict, folder: Path) -> Executor:
        """Of this profile of Snakemake's, with the words of the command line, for these results.

        Raises:
            ValueError: no profile, or words for an executor that is not Slurm.
            OSError: no Slurm answers, or its plugin is not installed.
        """
        if profile is None:
            return Executor([])
        settings = read_profile(profile)
        name = settings.get("executor", "local")
        if name == "slurm":
            return Slurm(merged(settings, words), folder / "logs" / "slurm")
        if words:
            word = next(iter(words))
            raise ValueError(f"{word}=... is for Slurm; the executor in {profile} is {name}")
        executor = Executor(["--profile", str(profile)])
        executor.name = name
        return executor

    def lines(self, process: subprocess.Popen, jobs: list):
        """What the notebooks print while Snakemake runs."""
        yield from process.stdout

    def cancel(self) -> int:
        """Cancel what runs without Snakemake; how many jobs there were."""
        return 0


class Slurm(Executor):
    """Jobs of Slurm's.

    Args:
        settings: a profile of Snakemake's.
        logs: folder for Slurm's logs, and for the profile as Snakemake reads it.
    """

    name = "slurm"
    stop_signal = signal.SIGKILL  # Snakemake would wait for its next look at the jobs; `cancel` does the rest

    def __init__(self, settings: dict, logs: Path):
        try:
            import snakemake_executor_plugin_slurm  # noqa: F401
        except ImportError:
            message = "Slurm needs the package snakemake-executor-plugin-slurm and Python 3.11 or later"
            raise OSError(message) from None
        if "accounting_storage/none" in answer("scontrol", "show", "config"):  # sacct has no answers
            settings = {"slurm-no-account": True, "slurm-status-command": "squeue"} | settings
        self.retries = settings.pop("retries", 0)  # Snakemake would try again what failed for good, too
        import yaml

        logs = logs.resolve()  # Snakemake works in the folder of results
        results.write_text(logs / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
        # Names of jobs begin with this, so that those of a start that was killed are found.
        self.prefix = "dcopy-" + hashlib.sha256(str(logs).encode()).hexdigest()[:10]
        super().__init__(["--profile", str(logs), "--slurm-logdir", str(logs)])
        self.arguments += ["--slurm-jobname-prefix", self.prefix]

    def lines(self, process: subprocess.Popen, jobs: list):
        """What the logs get, since the notebooks run elsewhere; and why jobs wait, which may be for ever."""
        shown = {job.log: size(job.log) for job in jobs}
        over, asked, waiting = False, time.monotonic(), ""
        while not over:
            over = process.poll() is not None
            for job in jobs:
                if size(job.log) < shown[job.log]:  # begun anew
                    shown[job.log] = 0
                with contextlib.suppress(FileNotFoundError), open(job.log, "rb") as log:
                    log.seek(shown[job.log])
                    whole, newline, _ = log.read().rpartition(b"\n")
                    shown[job.log] += len(whole + newline)
                    for line in whole.decode(errors="replace").splitlines():
                        yield f"{job.label} | {line}\n"
            if not over and time.monotonic() - asked > ASK_SECONDS:
                asked, before, waiting = time.monotonic(), waiting, self.waiting()
                if waiting not in ("", before):
                    yield f"Slurm | {waiting}\n"
            time.sleep(0 if over else 1)

    def waiting(self) -> str:
        """How many jobs wait, and for what in Slurm's words."""
        reasons = Counter(row[2] for row in self.queue("PENDING") if row[2] != "None")
        return ", ".join(f"{count} jobs wait: {reason}" for reason, count in sorted(reasons.items()))

    def queue(self, states: str) -> list[list[str]]:
        """Id, name and reason of the jobs in these states."""
        command = ("squeue", "--me", "--noheader", f"--states={states}", "--format=%i|%j|%r")
        rows = [line.split("|") for line in answer(*command).splitlines()]
        return [row for row in rows if row[1].startswith(self.prefix)]

    def cancel(self) -> int:
        """Cancel all jobs, of earlier starts too, and wait until they have saved and are gone."""
        cancelled: set[str] = set()
        time.sleep(1)  # for what is being sent
        while ids := {row[0] for row in self.queue("PENDING,CONFIGURING,RUNNING,SUSPENDED,COMPLETING")}:
            if ids - cancelled:
                answer("scancel", *sorted(ids - cancelled))
            cancelled |= ids
            time.sleep(1)
        return len(cancelled)


def size(path: str) -> int:
    return Path(path).stat().st_size if Path(path).exists() else 0


def answer(*command: str) -> str:
    """What a command of Slurm's prints; raises OSError where it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        raise OSError(f"there is no Slurm here: {command[0]} is not in the PATH") from None
    except subprocess.CalledProcessError as error:
        reason = next(iter(error.stderr.splitlines()), f"exit code {error.returncode}")
        raise OSError(f"Slurm does not answer: {reason}") from None
