"""What came of a preset's jobs: times and tables, or what went wrong, in a person's words."""

from __future__ import annotations

import re
import sys
import time
from functools import partial
from pathlib import Path

from .. import results
from . import plan

# What Snakemake says of a failed job: the cluster's reason, and the job's marker. Not of a local one.
COMPLAINT = re.compile(
    r"^Error in rule .*\n    message: (?!None)(.*?)(?:For further.*)?\n(?:.*\n)*?    output: (\S+)", re.M
)
INTERRUPTED = re.compile("'(TIMEOUT|PREEMPTED|NODE_FAIL|BOOT_FAIL)'")

say = partial(print, flush=True)
complain = partial(print, file=sys.stderr, flush=True)


def report(jobs: list[plan.Job], folder: Path, started: float) -> None:
    """The time that each notebook took, the main table once all is there, and where everything lies."""
    seconds: dict[str, list[float]] = {}
    for job in jobs:
        if Path(job.marker).exists():
            record = results.read_json(job.marker)
            seconds.setdefault(job.notebook, []).append(record["seconds"])
    say("\nnotebook              runs    time")
    for notebook, values in seconds.items():
        say(f"{notebook:20}  {len(values):4}  {clock(sum(values)):>6}")
    say(f"this start, start to end    {clock(time.time() - started):>6}")
    table = folder / "tables" / "methods.md"
    if sum(map(len, seconds.values())) == len(jobs) and table.exists():
        say(f"\n{table.read_text(encoding='utf-8').strip()}")
    say()
    for name, content in {
        "figures": "figures",
        "tables": "tables",
        "notebooks": "executed notebooks",
    }.items():
        if any(folder.glob(f"{name}/*")):
            say(f"{content}: {folder / name}")


def report_failures(jobs: list[plan.Job], folder: Path, started: float) -> None:
    left = [job for job in jobs if not Path(job.marker).exists()]
    why, chatter = reasons(folder), (folder / "logs" / "snakemake.log").read_text(encoding="utf-8")
    if "Execute " not in chatter:
        complain(
            f"\nSnakemake does not start: {next(iter(chatter.strip().splitlines()[-1:]), 'no reason given')}"
        )
    complain(f"\n{len(left)} of {len(jobs)} notebooks did not finish:")
    for job in left:
        complain(f"  {job.name}: {last_words(job, started, why.get(job.done))}")
    complain(f"Their logs and Snakemake's own are in {folder / 'logs'}; the same command tries them again.")


def reasons(folder: Path) -> dict[str, str]:
    """Marker of a job that failed: why, in the cluster's words. Empty without a cluster."""
    chatter = (folder / "logs" / "snakemake.log").read_text(encoding="utf-8")
    return {marker: reason for reason, marker in COMPLAINT.findall(chatter)}


def cut_off(jobs: list[plan.Job], folder: Path) -> list[plan.Job]:
    """The jobs that a cluster ended before they did, which go on from their checkpoints."""
    why = reasons(folder)
    return [job for job in jobs if INTERRUPTED.search(why.get(job.done, ""))]


def last_words(job: plan.Job, started: float, reason: str | None) -> str:
    """What a job's log ends with, or else what the cluster gave as the reason of its end."""
    log, last = Path(job.log), ""
    if log.exists() and log.stat().st_mtime >= started:
        last = next(iter(log.read_text(encoding="utf-8").splitlines()[-1:]), "ended without a word")
    elif not reason:
        return "not started, since something before it did not finish"
    return last if last.startswith("failed") or not reason else f"{reason} {last}".strip()


def clock(seconds: float) -> str:
    """
    >>> clock(65.4), clock(3661)
    ('1:05', '1:01:01')
    """
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
