"""Several processes that train one run: torchrun starts them, torch.distributed joins them.

The global batch is the run. Each rank takes its part of the same batches and of the same augmentation, and
what belongs to the whole batch is summed over the ranks: F, BatchNorm's statistics, loss and gradients. So
any number of processes trains the run of that name and continues it from the checkpoint of another number.
Rank 0 alone reads and writes the run's folder. Where one process stops, all of them stop.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import time
from datetime import timedelta

import torch
from torch import Generator, Tensor, distributed

from .. import hardware, machine, results
from ..config import TrainConfig, require
from . import checkpoint, interrupt, parallel
from .interrupt import ORPHANED, REASONS, Interrupted, by_torchrun, orphaned

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
_runs = itertools.count()


class Alone:
    """One process: nothing to share. `Ranks` says what each method does where there are several."""

    rank, size = 0, 1

    def first(self, function):
        return function()

    def in_turn(self, function):
        return function()

    def require_same(self, **facts) -> None: ...

    def part(self, indices: Tensor) -> Tensor:
        return indices

    def sample(self, augmentation, images: Tensor, generator: Generator) -> list[dict[str, Tensor]]:
        return augmentation.sample(images.shape, generator)

    def parallelize(self, trainer) -> None: ...

    def mean(self, loss: Tensor) -> Tensor:
        return loss

    def gather(self, z: Tensor) -> Tensor:
        return z

    def agree(self, reason: str | None, due: bool) -> tuple[str | None, bool]:
        return reason, due

    def require_equal(self, state: dict[str, Tensor], when: str) -> None: ...


class Ranks(Alone):
    """This process among all that train a run; see `joined`.

    Args:
        store: where the processes leave word for each other.
        rank, size: of this process, and how many there are.
        config: the run.
        device: cpu, or cuda for the GPU that this process has taken.
        minutes: after which a process that does not answer is given up.
    """

    def __init__(self, store, rank: int, size: int, config: TrainConfig, device, minutes: float):
        N = self.batch_size = config.batch_size
        self.store, self.rank, self.size, self.checks = store, rank, size, 0
        own = {"commit": results.commit(), "device": str(device)}
        own["precision"] = hardware.precision_on(device, config.precision)
        self.require_same(**config.to_dict() | results.versions() | own)
        require("processes", size, size <= N, f"at most batch_size={N}")
        k = config.accumulate
        allowed = f"a number that divides the {N // k} images in each of accumulate={k} parts of a batch"
        require("processes", size, k == 1 or N // k % size == 0, allowed)
        require("device", str(device), str(device) in ("cpu", "cuda"), "cpu or cuda with several processes")
        is_cuda = device.type == "cuda"
        if is_cuda:
            here, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
            require("processes on one machine", here, here <= gpus, f"at most its {gpus} GPUs")
        self.own = slice(rank * N // size, (rank + 1) * N // size)  # of each batch
        self.share = (self.own.stop - self.own.start) * size / N  # 1 where all parts are equal
        limit = timedelta(minutes=minutes)
        distributed.init_process_group(
            "nccl" if is_cuda else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            # NCCL's own watchdog would end the process without a word, so it is given more time.
            timeout=2 * limit if is_cuda else limit,
        )
        self.control = distributed.new_group(backend="gloo", timeout=limit)  # of what is on the host
        if rank > 0:
            logging.getLogger("dcopy").setLevel(logging.ERROR)  # rank 0 gives the same warnings
        elif N % size:
            low = N // size
            log.warning("batch_size=%d over %d processes: %d or %d images each", N, size, low, low + 1)

    def first(self, function):
        """Call the function on rank 0; every rank gets what it returns, or an error that it raises."""
        told, error = [None, None], None
        if self.rank == 0:
            try:
                told[0] = function()
            except (ValueError, OSError) as problem:
                error, told[1] = problem, machine.explain(problem)
        distributed.broadcast_object_list(told, src=0, group=self.control)
        if told[1] is not None:
            raise error or ValueError(told[1])
        return told[0]

    def in_turn(self, function):
        """Call the function on rank 0, however long it takes, then on the others: data are fetched once."""
        mine = []

        def fetch():
            try:
                mine.append(function())
            finally:
                self.store.set("fetched", "")

        while self.rank > 0 and not self.store.check(["fetched"]):
            time.sleep(POLL_SECONDS)
        self.first(fetch)
        return mine[0] if mine else function()

    def require_same(self, **facts) -> None:
        """Raise ValueError on every rank where a fact differs between two of them."""
        self.checks = self.checks + 1
        keys = [f"check {self.checks} of rank {rank}" for rank in range(self.size)]
        self.store.set(keys[self.rank], json.dumps(facts))
        first, *others = (json.loads(self.store.get(key)) for key in keys)
        for rank, other in enumerate(others, start=1):
            for name, value in first.items():
                own = other.get(name)
                require(f"{name} on rank {rank}", own, own == value, f"{value!r}, as on rank 0")

    def part(self, indices: Tensor) -> Tensor:
        """The images of this rank among those of a batch (N,)."""
        return indices[self.own]

    def sample(self, augmentation, images: Tensor, generator: Generator) -> list[dict[str, Tensor]]:
        """Parameters for the images of this rank, out of those that are drawn for the whole batch."""
        drawn = augmentation.sample((self.batch_size, *images.shape[1:]), generator)
        return [{name: value[self.own] for name, value in params.items()} for params in drawn]

    def parallelize(self, trainer) -> None:
        """Have the trainer's steps be those of the whole batch, each rank holding its part of it."""
        parallel.parallelize(trainer, self.share)

    def mean(self, loss: Tensor) -> Tensor:
        """The loss of the whole batch from those that the ranks' steps return."""
        distributed.all_reduce(loss)
        return loss / self.size

    def gather(self, z: Tensor) -> Tensor:
        """Projections of the whole batch (N, D) from those of this rank's images."""
        whole = z.new_zeros(self.batch_size, z.shape[1])
        whole[self.own] = z
        distributed.all_reduce(whole)
        return whole

    def agree(self, reason: str | None, due: bool) -> tuple[str | None, bool]:
        """Why to stop, and whether to save, as soon as one rank has a reason to."""
        reason = ORPHANED if orphaned(reason == "SIGINT") else reason
        reasons = [None, *REASONS]
        flags = torch.tensor([reasons.index(reason), int(due)])
        distributed.all_reduce(flags, distributed.ReduceOp.MAX, group=self.control)
        number, due = flags.tolist()
        return reasons[number], bool(due)

    def require_equal(self, state: dict[str, Tensor], when: str) -> None:
        """Raise FloatingPointError on every rank where one has another state than rank 0."""
        every = [None] * self.size
        distributed.all_gather_object(every, checkpoint.digest(state), group=self.control)
        other = next((rank for rank, digits in enumerate(every) if digits != every[0]), None)
        if other is not None:
            raise FloatingPointError(
                f"rank {other} has other weights than rank 0 {when}, so their machines compute differently; "
                "the same command goes on from the last checkpoint"
            )


def take_gpu() -> None:
    """Make `cuda` the GPU of this process, where torchrun has started one for each."""
    number = int(os.environ["LOCAL_RANK"]) if by_torchrun() else 0
    if 0 < number < torch.cuda.device_count():
        torch.cuda.set_device(number)


@contextlib.contextmanager
def joined(config: TrainConfig, device: torch.device, minutes: float):
    """Join the processes that torchrun has started; yields `Alone` where there is one.

    Raises:
        ValueError: more processes than images in a batch, or than GPUs; other versions or options on one.
        ConnectionError: a process ended, or did not answer in time.
    """
    if not by_torchrun() or os.environ["WORLD_SIZE"] == "1":
        yield Alone()
        return
    try:
        store, rank, size = next(distributed.rendezvous("env://", timeout=timedelta(minutes=minutes)))
        store = distributed.PrefixStore(f"run {next(_runs)}", store)  # one process may train several
        interrupt.parent, interrupt.store = os.getppid(), store
        yield Ranks(store, rank, size, config, device, minutes)
    except RuntimeError as error:
        text = str(error).lower()
        if not isinstance(error, distributed.DistError) and "gloo" not in text and "nccl" not in text:
            raise
        late = "timed out" in text or "timeout" in text
        what = f"did not answer for {minutes:g} minutes" if late else "has ended"
        raise ConnectionError(
            f"a process of this run {what}, so all stop; the same command goes on from the last checkpoint"
        ) from None
    except Interrupted:  # all of them, at the same step
        distributed.destroy_process_group()
        raise
    distributed.destroy_process_group()
