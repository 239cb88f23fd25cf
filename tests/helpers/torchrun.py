"""Runs under torchrun that something happens to: `python -m helpers.torchrun FOLDER`.

Prints a line `what happened: exit code of torchrun, seconds until all processes were gone` for each;
training/test_ranks.py starts this once and reads FOLDER/NAME.log. torchrun's agent and its processes are
forks, since each would take longer to import torch than to run.
"""

import errno
import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from dcopy import data
from dcopy.__main__ import main
from dcopy.training import checkpoint, loop  # noqa: F401  imported here, not in each fork
from dcopy.training.step import Trainer

torch.set_num_threads(1)
OPTIONS = ["epochs=100000", "width=2", "batch_size=640", "--device=cpu"]
TIMEOUT_MINUTES = 0.05

SIGNALS = {  # to which process of the run: torchrun or a rank
    "rank 1 is killed": (signal.SIGKILL, 1),
    "rank 0 is killed": (signal.SIGKILL, 0),
    "rank 1 is asked to stop": (signal.SIGTERM, 1),
    "torchrun is asked to stop": (signal.SIGTERM, "torchrun"),
    "torchrun is interrupted": (signal.SIGINT, "torchrun"),
    "torchrun is killed": (signal.SIGKILL, "torchrun"),
}


def fill_the_disk(rank: int) -> None:
    """The third checkpoint does not fit."""
    save, calls = checkpoint.save_file, iter(range(1000))

    def full(*args, **kwargs):
        if next(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*args, **kwargs)

    checkpoint.save_file = full


def hang(rank: int) -> None:
    """The fifth step of rank 1 does not end."""
    step, calls = Trainer.step, iter(range(1000))

    def hanging(*args):
        if next(calls) == 4:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # or torchrun would wait 30 s before it kills
            time.sleep(1000)
        return step(*args)

    if rank == 1:
        Trainer.step = hanging


FAULTS = {"the disk is full": fill_the_disk, "rank 1 hangs": hang}


def work(folder: str, fault) -> None:
    signal.alarm(120)  # none outlives the tests
    if fault:
        fault(int(os.environ["RANK"]))
    sys.exit(main([*OPTIONS, f"--timeout-minutes={TIMEOUT_MINUTES}", f"--out-dir={folder}"]))


def torchrun(folder: Path, fault) -> int:
    """Fork torchrun's agent, which forks two processes; what they print goes to FOLDER.log."""
    child = os.fork()
    if child:
        return child
    log = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    config = LaunchConfig(
        **{"min_nodes": 1, "max_nodes": 1, "nproc_per_node": 2, "max_restarts": 0, "start_method": "fork"},
        **{"run_id": "test", "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"},
    )
    try:
        elastic_launch(config, work)(str(folder), fault)
    finally:
        os._exit(1)


def children(pid: int) -> list[int]:
    return [
        int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    ]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    FOLDER = Path(sys.argv[1])
    signal.alarm(300)
    data.load("digits")  # here, since it imports scikit-learn
    for name in [*SIGNALS, *FAULTS]:
        agent = torchrun(FOLDER / name, FAULTS.get(name))
        while not list(FOLDER.glob(f"{name}/*/checkpoint.safetensors")):  # of the first epoch
            time.sleep(0.05)
        ranks, started = children(agent), time.monotonic()
        if name in SIGNALS:
            number, who = SIGNALS[name]
            os.kill(agent if who == "torchrun" else ranks[who], number)
        _, status = os.waitpid(agent, 0)
        while any(map(alive, ranks)):
            time.sleep(0.05)
        seconds = time.monotonic() - started
        print(f"{name}: {os.waitstatus_to_exitcode(status)}, {seconds:.1f}", flush=True)
