"""A function on several ranks: processes of this machine, joined by gloo."""

import os
import socket
import time

import torch
from torch import distributed, multiprocessing

# The first backward pass of a process decides whether autograd has threads for devices, and with such threads
# no fork can train. So it is taken here, when tests are collected, before any test feigns a device.
torch.ones(1, requires_grad=True).sum().backward()


def on_ranks(function, folder, ranks: int = 2) -> list:
    """What `function(rank)` returns on each rank; `folder` is an empty one to meet in.

    The processes are forks, since each would take longer to import torch than to run.
    """
    return _forks(_joined, function, folder, ranks)


def as_torchrun(function, folder, ranks: int = 2) -> list:
    """What `function(rank)` returns, or raises, on each rank of processes that have yet to join.

    Each has the environment that torchrun gives; files of the ranks go to `folder`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.makedirs(folder, exist_ok=True)
    return _forks(lambda *args: _as_torchrun(port, *args), function, folder, ranks)


def _forks(target, function, folder, ranks: int) -> list:
    multiprocessing.start_processes(target, (function, folder, ranks), nprocs=ranks, start_method="fork")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(ranks)]


def _joined(rank: int, function, folder, ranks: int) -> None:
    torch.set_num_threads(1)  # threads of the parent's do not survive the fork
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=ranks
    )
    torch.save(function(rank), folder / f"{rank}.pt")
    distributed.destroy_process_group()


def _as_torchrun(port: int, rank: int, function, folder, ranks: int) -> None:
    torch.set_num_threads(1)
    for name in ("RANK", "LOCAL_RANK"):
        os.environ[name] = str(rank)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        os.environ[name] = str(ranks)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    try:
        outcome = function(rank)
    except (Exception, KeyboardInterrupt) as error:
        outcome = f"{type(error).__name__}: {error}"
    torch.save(outcome, folder / f"{rank}.pt")
    while rank == 0 and len(list(folder.glob("*.pt"))) < ranks:  # as it has the store, and torchrun's stays
        time.sleep(0.01)
