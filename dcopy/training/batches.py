"""The images of each step: from memory, or read from disk by worker processes, a few steps ahead.

Which images a step gets follows from seed, epoch and step, and so do the crops that the workers cut. So
neither the number of workers nor that of ranks matters, and a run that goes on needs no state of theirs.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .. import machine
from ..config import TrainConfig
from ..data.augment import Augmentation, RandomResizedCrop
from ..data.stored import StoredImages
from .ranks import Alone
from .step import derive_seed

AHEAD = 2  # batches that a worker is asked for in advance


def build(
    images: Tensor | StoredImages, config: TrainConfig, augmentation: Augmentation, device, ranks: Alone
) -> tuple[InMemory, Augmentation]:
    """The batches of a run, and what of the augmentation is left for the device."""
    if not isinstance(images, StoredImages):
        return InMemory(images.to(device), config, ranks), augmentation
    crop, rest = augmentation.after_crop()
    return FromDisk(images, config, ranks, crop, device), rest


class InMemory:
    """Batches of images (n, C, H, W) uint8 that lie on the device as a whole."""

    def __init__(self, images: Tensor, config: TrainConfig, ranks: Alone):
        self.images, self.config, self.ranks = images, config, ranks
        self.steps = len(images) // config.batch_size  # a partial last batch is dropped

    def begin(self, epoch: int, step: int) -> Iterator[Tensor]:
        """This rank's images of each batch, from a step on, to the end of the run."""
        for _, _, indices in self.plan(epoch, step, self.images.device):
            yield self.images[self.ranks.part(indices)]

    def plan(self, epoch: int, step: int, device="cpu") -> Iterator[tuple[int, int, Tensor]]:
        """Epoch, step and indices (batch_size,) of each batch.

        The indices of an epoch go to a GPU together: the host waits for it at each copy.
        """
        for now in range(epoch, self.config.epochs):
            generator = torch.Generator().manual_seed(derive_seed(self.config.seed, "order", now))
            order = torch.randperm(len(self.images), generator=generator)
            order = order[: self.steps * self.config.batch_size].view(self.steps, -1).to(device)
            yield from ((now, i, order[i]) for i in range(step if now == epoch else 0, self.steps))

    def facts(self) -> dict:
        """What the record of an epoch says of reading."""
        return {}


class FromDisk(InMemory):
    """Batches of two crops of each image, (n, 2, 3, h, w) uint8, that worker processes read and cut."""

    def __init__(self, images: StoredImages, config: TrainConfig, ranks: Alone, crop, device):
        super().__init__(images, config, ranks)
        self.device, self.is_cuda = device, device.type == "cuda"
        own = ranks.part(torch.arange(config.batch_size))
        self.reader = Reader(images, crop, config.seed, slice(own[0].item(), own[-1].item() + 1))

    def begin(self, epoch: int, step: int) -> Iterator[Tensor]:
        self.waited, self.since = 0.0, time.monotonic()
        loader = DataLoader(
            self.reader,
            batch_size=None,  # the reader makes whole batches
            sampler=_Plan(self, epoch, step),
            num_workers=workers(),
            prefetch_factor=AHEAD,
            pin_memory=self.is_cuda,
            generator=torch.Generator(),  # from which a base seed is drawn that nobody uses
        )
        read = last = None
        others = {*multiprocessing.active_children()}
        try:
            with machine.signals_held():  # the process that trains decides, from their first moment on
                read = iter(loader)  # which raises if a worker ends meanwhile
            while True:
                if self.is_cuda:  # The host runs one step ahead, no more: where it waits, so does the GPU.
                    last, before = torch.cuda.Event(), last
                    last.record()
                    if before is not None:
                        before.synchronize()
                started = time.monotonic()
                crops = next(read, None)  # (n, 2, h, w, 3)
                self.waited += time.monotonic() - started
                if crops is None:
                    return
                # a copy: a worker fills this memory again once the next batch is asked for
                yield crops.to(self.device, non_blocking=self.is_cuda).permute(0, 1, 4, 2, 3).contiguous()
        except (RuntimeError, ValueError) as error:
            raise _explained(error) from None
        finally:  # An error's traceback would keep the workers, and the interpreter would wait for them.
            begun = read._workers if read is not None else {*multiprocessing.active_children()} - others
            try:
                if read is not None:
                    read._shutdown_workers()
            finally:
                for worker in begun:  # one that hangs would not hear SIGTERM
                    worker.kill()

    def facts(self) -> dict:
        """data_wait: the part of the time since the last call that steps have waited for images."""
        now = time.monotonic()
        share = self.waited / (now - self.since)
        self.waited, self.since = 0.0, now
        return {"data_wait": round(share, 5)}


class _Plan:
    """What the workers are to read: epoch, step and indices of each batch."""

    def __init__(self, batches: FromDisk, epoch: int, step: int):
        self.batches, self.start = batches, (epoch, step)

    def __iter__(self):
        # NumPy's arrays go to a worker by value; a tensor would take shared memory.
        return ((epoch, step, indices.numpy()) for epoch, step, indices in self.batches.plan(*self.start))


class Reader(torch.utils.data.Dataset):
    """Reads a batch: each image is decoded once and gives two crops.

    Args:
        images: on disk.
        crop: draws the crops.
        seed: of the run.
        own: which part of a batch to read; the crops are drawn for all of it.
    """

    def __init__(self, images: StoredImages, crop: RandomResizedCrop, seed: int, own: slice):
        self.images, self.crop, self.seed, self.own = images, crop, seed, own
        self.places = None

    def __getitem__(self, batch: tuple[int, int, np.ndarray]) -> Tensor:
        """The crops (n, 2, h, w, 3) uint8 of a batch, given its epoch, step and indices (N,).

        They lie in memory that processes share, and that the call after AHEAD others overwrites.
        """
        epoch, step, indices = batch
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "crop", epoch, step))
        shape = (len(indices), 3, *self.images.sizes(indices))
        drawn = [torch.stack([*self.crop.sample(shape, generator).values()], 1) for _ in range(2)]
        boxes = torch.stack(drawn, 1).int()[self.own].tolist()  # (n, 2, 4): top, left, height, width
        if self.places is None:  # by each worker for itself: nothing is copied to the process that trains
            shape = (AHEAD + 1, len(boxes), 2, *self.crop.size, 3)
            self.places = itertools.cycle(torch.empty(shape, dtype=torch.uint8).share_memory_())
        crops = next(self.places)
        for index, pair, out in zip(indices[self.own].tolist(), boxes, crops.numpy(), strict=True):
            self.images.crops(index, pair, out)
        return crops


def workers() -> int:
    """Worker processes: a core each, where this process has its share of the machine's cores."""
    return max(1, machine.cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def _explained(error: RuntimeError | ValueError) -> Exception:
    """An error of a worker process as one line, without the traceback that comes with it."""
    text = str(error)
    if isinstance(error, ValueError):
        return ValueError(text.strip().splitlines()[-1].removeprefix("ValueError: "))
    why = f"{text} {error.__cause__}"  # that it ended, and there what ended it
    if "Bus error" in why or "shared memory" in why:
        return OSError(
            "the processes that read images have no shared memory left; give the container more, as by "
            "`docker run --shm-size=8g`"
        )
    if "worker" in text and ("exited" in text or "killed" in text):
        return OSError(
            f"a process that reads images has ended ({text.splitlines()[0]}), often for want of memory; "
            "the same command goes on from the last checkpoint"
        )
    return error
