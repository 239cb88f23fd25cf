"""Runs in processes of their own, killed or stopped from outside: `python -m helpers.processes FOLDER`.

Prints a line `what happened: exit code` for each; training/test_loop.py starts this once and looks at what is
left in FOLDER. The processes are forks, since each would take longer to import torch than to run.
"""

import os
import runpy
import signal
import sys
import time
from pathlib import Path

from helpers.tiny import tiny_config, tiny_run

from dcopy import data, results
from dcopy.training import checkpoint
from dcopy.training.step import Trainer

CONFIG = tiny_config(method="directpred", freq=2)  # 3 epochs of 3 steps; freq needs the count of steps


def kill(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def kill_within_a_write(tensors, path, metadata):
    Path(path).write_bytes(b"half")
    kill()


KILLS = {  # the n-th call of a function, which is replaced by a kill
    "killed within an epoch": (Trainer, "step", 5, kill),
    "killed within a write": (checkpoint, "save_file", 5, kill_within_a_write),
    "killed between two renames": (Path, "replace", 6, kill),
    "killed after the last epoch": (results, "provenance", 1, kill),
}
SIGNALS = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 138}


def killed_run(folder: Path, owner, name: str, n: int, action) -> None:
    function, count = getattr(owner, name), iter(range(1, 1000))
    setattr(owner, name, lambda *args, **kw: (action if next(count) == n else function)(*args, **kw))
    tiny_run(folder, CONFIG, checkpoint_minutes=0)  # saves after every step


def endless_command(folder: Path) -> None:
    options = [
        "epochs=100000",
        "width=2",
        "batch_size=640",
        "--device",
        "cpu",
        "--out-dir",
        str(folder),
        "seed=1",
    ]
    sys.argv = ["dcopy", *options]
    runpy.run_module("dcopy", run_name="__main__", alter_sys=True)


def start(name: str, function, *args) -> int:
    """Fork a process that calls the function, with what it prints in FOLDER/NAME.log."""
    child = os.fork()
    if child == 0:
        signal.alarm(120)  # none of them outlives the tests
        log = os.open(f"{FOLDER / name}.log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        function(*args)
        sys.exit()
    return child


def report(name: str, child: int) -> None:
    _, status = os.waitpid(child, 0)
    print(f"{name}: {os.waitstatus_to_exitcode(status)}", flush=True)


if __name__ == "__main__":
    FOLDER = Path(sys.argv[1])
    signal.alarm(300)
    data.load("digits")  # here, since it imports scikit-learn
    for name, moment in KILLS.items():
        report(name, start(name, killed_run, FOLDER / name, *moment))
    for name in SIGNALS:
        first = start(name, endless_command, FOLDER / name)
        while not list(FOLDER.glob(f"{name}/*/checkpoint.safetensors")):  # of its first epoch
            time.sleep(0.05)
        if name == "SIGINT":
            report("second", start("second", endless_command, FOLDER / name))
        os.kill(first, getattr(signal, name))
        report(name, first)
