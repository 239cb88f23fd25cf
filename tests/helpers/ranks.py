"""A function on several ranks: processes of this machine, joined by gloo."""

import torch
from torch import distributed, multiprocessing


def on_ranks(function, folder, ranks: int = 2) -> list:
    """What `function(rank)` returns on each rank; `folder` is an empty one to meet in.

    The processes are forks, since each would take longer to import torch than to run.
    """
    multiprocessing.start_processes(
        _one, (function, folder, ranks), nprocs=ranks, start_method="fork", join=True
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(ranks)]


def _one(rank: int, function, folder, ranks: int) -> None:
    torch.set_num_threads(1)  # threads of the parent's do not survive the fork
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=ranks
    )
    torch.save(function(rank), folder / f"{rank}.pt")
    distributed.destroy_process_group()
