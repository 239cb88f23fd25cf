"""The words that run_all.sh takes, and what follows from them: how many jobs, threads and processes."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from .. import machine
from .cluster import SLURM


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bash run_all.sh",
        description="Set up what is missing, then run a preset of notebooks. What is finished is skipped.",
        epilog="bash run_all.sh test [...] runs the tests; its arguments go to pytest. bash run_all.sh check "
        "[PRESET] holds a run against the reference, adopt PRESET makes it the reference, and site [PRESET] "
        "makes its pages anew.",
    )
    add = parser.add_argument
    add("preset", nargs="?", default="quick", metavar="PRESET", help="default: quick; --list shows all")
    add("options", nargs="*", metavar="name=value", help="for example seeds=5 or methods=directcopy,none")
    add("-n", "--dry-run", action="store_true", help="only say what would run, and what it costs")
    here = f"notebooks at a time; here {default_jobs()}, on a cluster as the profile says"
    add("-j", "--jobs", type=int, help=here)
    add(
        "--slurm",
        dest="profile",
        action="store_const",
        const=SLURM,
        help="each notebook is a job of Slurm's, as profiles/slurm says; options may then be partition=NAME, "
        "account=NAME, time=4h, memory=16G, cores=4, gpus=8 (on a node) and nodes=2 (for a run), too; gpus=8 "
        "alone goes without Slurm",
    )
    add("--profile", type=Path, metavar="DIR", help="the same with another profile of Snakemake's")
    add("--list", action="store_true", help="list the presets")
    add("--results", metavar="DIR", help="folder of all results; default: $DCOPY_RESULTS, else results")
    add(
        "--mirror",
        type=Path,
        metavar="DIR",
        help="a folder, such as on a mounted Drive, that results are copied to, and come back from",
    )
    add("--check", action="store_true", help=argparse.SUPPRESS)  # refuse wrong words, run nothing
    given = parser.parse_intermixed_args(arguments)
    if given.jobs is None and not given.profile:
        given.jobs = default_jobs()
    if given.jobs is not None and given.jobs < 1:
        parser.error(f"-j {given.jobs} is not allowed; it must be an integer of at least 1")
    return given


def default_jobs() -> int:
    """Two notebooks at a time on a processor; one on a GPU, whose memory they would have to share."""
    gpu = os.path.exists("/dev/nvidia0") or shutil.which("nvidia-smi") is not None
    return 1 if gpu or machine.cores() == 1 else 2


def local(given: argparse.Namespace) -> str:
    return f"{given.jobs} at a time, OMP_NUM_THREADS={threads(given)} for each"


def threads(given: argparse.Namespace) -> int:
    """What OMP_NUM_THREADS asks for, else a fair share of the cores."""
    wish = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(wish) if wish.isdecimal() else machine.cores() // (given.jobs or 1))


def processes(given: argparse.Namespace) -> int:
    """How many share a run."""
    return given.words.get("gpus", 1) * given.words.get("nodes", 1)
