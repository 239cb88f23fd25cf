"""A run on several processes as one call: torchrun as a child, its lines as our own."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

from .. import data, machine
from ..config import TrainConfig, require
from .interrupt import Interrupted
from .runs import Run, finished_run, load_run, on_images

REASON = re.compile(r"error: (?P<error>.*)|stopped by (?P<reason>.+?) (?P<where>after .*); saved in ")
TORCHRUNS = re.compile(r"[WE]\d{4} .* torch/distributed/")  # what it logs when processes have ended


def pretrain(config: TrainConfig, out_dir, processes: int, images, data_root, skip_bad, **options) -> Run:
    """As `dcopy.pretrain`, by processes that load the data set themselves.

    Args:
        images: None, or those of the data set.
        options: of `python -m dcopy`, by name.

    Raises:
        ValueError: `images` are others than those of the data set.
        ChildProcessError: the run failed; the message is that of its processes.
        Interrupted: it was stopped, or this process was asked to stop; the state is saved.
    """
    own = data.load(config.dataset, data_root, image_size=config.image_size, skip_bad=skip_bad).pretrain()
    fingerprint = data.fingerprint(own)
    given = fingerprint if images is None else data.fingerprint(images)
    require("images", given, given == fingerprint, f"those of dataset={config.dataset}, which processes load")
    config = on_images(config, out_dir, fingerprint, len(own))
    folder = Path(out_dir) / config.name
    run = finished_run(config, folder)
    if run is None:
        options |= {"out_dir": out_dir, "data_root": data_root, "skip_bad": skip_bad or None}
        torchrun([*words(config), *flags(options)], processes, folder)
        run = load_run(folder)
    return run


def words(config: TrainConfig) -> list[str]:
    """The fields that differ from their defaults as `name=value`."""
    fields = ((field, getattr(config, field.name)) for field in dataclasses.fields(config))
    return [f"{field.name}={value!r}" for field, value in fields if value != field.default]


def flags(options: dict) -> list[str]:
    """Options as the command line has them; None leaves one out."""
    given = {name.replace("_", "-"): value for name, value in options.items() if value is not None}
    switches = {True: "--{}", False: "--no-{}"}
    return [
        switches[value].format(name) if isinstance(value, bool) else f"--{name}={value}"
        for name, value in given.items()
    ]


def torchrun(arguments: list[str], processes: int, folder: Path) -> None:
    """Run `python -m dcopy` in several processes; signals are handed on, and none outlives this process."""
    job = slurm_job()
    command = [*on_nodes(job, processes), "-m", "dcopy", *arguments]
    threads = max(1, machine.cores() // processes)
    environment = {"OMP_NUM_THREADS": str(threads), "DCOPY_PROGRESS": "lines"} | os.environ
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def end_with_parent():
        if libc is not None:
            libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG

    child, stopping = None, []

    def hand_on(number: int, frame=None) -> None:
        stopping.append(number)
        if child is not None:
            if job:  # srun would not hand it on, but kill
                subprocess.run(["scancel", "--signal=TERM", job.id])
            else:
                child.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    is_main = threading.current_thread() is threading.main_thread()
    before = machine.on_signals(hand_on) if is_main else {}
    try:
        child = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C comes from us alone
            preexec_fn=end_with_parent,
        )
        if stopping:
            hand_on(stopping[0])
        said = relay(child.stdout, stopping, folder)
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if said and said["reason"]:
        raise Interrupted(said["reason"], said["where"], folder)
    if stopping and code:
        raise KeyboardInterrupt
    if code:
        raise ChildProcessError(said["error"] if said else f"torchrun ended with exit code {code}; see above")


class Job(NamedTuple):
    """A job of Slurm's that has several nodes."""

    id: str
    nodes: int


def slurm_job() -> Job | None:
    """The one that this process is in. Snakemake hides all of Slurm's variables but its number."""
    number = os.environ.get("SLURM_JOB_ID")
    if not number or not shutil.which("squeue"):  # as in a container
        return None
    answer = subprocess.run(["squeue", f"--jobs={number}", "--noheader", "--format=%D"], capture_output=True)
    nodes = answer.stdout.strip()
    return Job(number, int(nodes)) if nodes.isdigit() and int(nodes) > 1 else None


def on_nodes(job: Job | None, processes: int) -> list[str]:
    """torchrun with these processes on this machine, or, started by srun, on all nodes of the job.

    Raises:
        ValueError: the processes cannot be shared equally by the nodes.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    if job is None:
        return [*torchrun, "--standalone", f"--nproc-per-node={processes}"]
    require("processes", processes, processes % job.nodes == 0, f"a multiple of the job's {job.nodes} nodes")
    with socket.socket() as probe:
        probe.bind(("", 0))
        place = f"{socket.gethostname()}:{probe.getsockname()[1]}"
    srun = ["srun", f"--nodes={job.nodes}", f"--ntasks={job.nodes}"]
    return [*srun, *torchrun, f"--nnodes={job.nodes}", f"--nproc-per-node={processes // job.nodes}",
            "--rdzv-backend=c10d", f"--rdzv-endpoint={place}"]  # fmt: skip


def relay(lines, stopping: list, folder: Path) -> re.Match | None:
    """Print what the processes print while they train; returns why they stopped, if they say so."""
    said, quiet = None, False
    for line in lines:
        reason = REASON.match(line)
        said, quiet = said or reason, quiet or TORCHRUNS.match(line)
        if not (reason or quiet or stopping or line.endswith(f", {machine.shown(folder)}\n")):
            print(line, end="", flush=True)
    return said
