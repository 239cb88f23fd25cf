"""Pretraining: the loop around the step, and the run folder that it leaves behind."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from pathlib import Path

import torch
from torch import Tensor

from .. import data, hardware, models, results
from ..config import TrainConfig, require
from ..data import augment
from ..data.stored import StoredImages
from ..predictors.running import is_finite, is_whole
from ..progress import Progress
from . import batches, checkpoint, health, launch, ranks
from .graphs import FastStep
from .interrupt import Interrupted, StopSignals, by_torchrun
from .runs import (
    Run,
    begin_again,
    end_again,
    finished_run,
    go_on_from_fewer_epochs,
    load_run,
    on_images,
    read_config,
    read_metrics,
)
from .step import Trainer, derive_seed

log = logging.getLogger(__name__)

SAVING = 0.1  # part of the time that checkpoints at the ends of epochs may take
NO_MEMORY = re.compile("out of memory|allocate memory|size calculation overflowed")  # what torch says


def pretrain(
    config: TrainConfig,
    out_dir: str | Path = "runs",
    *,
    images: Tensor | StoredImages | None = None,
    data_root: str | Path | None = None,
    skip_bad: bool = False,
    device: str | None = None,
    compile: bool | None = None,
    checkpoint_minutes: float = 5.0,
    stop_after: float | None = None,
    processes: int = 1,
    timeout_minutes: float = 10.0,
    progress: bool = True,
) -> Run:
    """Pretrain, or continue, or return what is finished: the folder decides.

    The run lives in `out_dir/config.name`; on other images than those of a run that is there already,
    beside it (see `runs.on_images`). Where fewer epochs of it are in `out_dir`, it goes on from those (see
    `runs.go_on_from_fewer_epochs`). A checkpoint is written every `checkpoint_minutes` and after every epoch,
    but not so often that it takes a tenth of the time. The same call then goes on from it, wherever the
    folder was moved: with as many threads on the same kind of processor bitwise as if it had never stopped,
    on a GPU up to the order in which kernels sum (0.2 % of the loss over six steps is what the test allows).
    SIGINT, SIGTERM, SIGHUP and SIGUSR1 finish the step, save and raise Interrupted.

    Several processes train the run together, whether torchrun has started this one among others or
    `processes` has it started: each has its part of every batch, so the run is the same whatever their
    number, up to the order of sums.

    Args:
        config: the run.
        out_dir: folder of run folders.
        images: (N, C, H, W) uint8 to pretrain on, instead of the data set's own; see `data.ImageData`.
        data_root: where data sets lie, see `dcopy.data.load`.
        skip_bad: leave unreadable files of a folder of images out, instead of raising.
        device: cpu, cuda, cuda:1, gpu, mps or the number of a GPU; default: a GPU where there is one.
        compile: use torch.compile and, on a GPU, CUDA graphs; default: on a GPU. On a CPU the minutes
            that it takes seldom come back.
        stop_after: seconds after which to save and raise Interrupted.
        processes: start this many by torchrun, a GPU each; they load the data set themselves.
        timeout_minutes: with several processes, after which one that does not answer is given up.
        progress: show a bar (terminal, JupyterLab) or a line per epoch (elsewhere).

    Raises:
        ValueError: no such device, bad images, a batch larger than the data, a broken checkpoint, a
            folder that belongs to another configuration, or another process at work in it; more
            processes than images in a batch, or processes of different versions or options.
        ConnectionError: one of several processes ended, or did not answer in time.
        FloatingPointError: the loss became NaN or infinite; the message names the step.
        Interrupted: stopped by a signal or by `stop_after`; the state is saved.
    """
    require("processes", processes, is_whole(processes, 1), "an integer of at least 1")
    good = is_finite(checkpoint_minutes) and checkpoint_minutes >= 0
    require("checkpoint_minutes", checkpoint_minutes, good, "a number of at least 0")
    good = stop_after is None or (is_finite(stop_after) and stop_after >= 0)
    require("stop_after", stop_after, good, "a number of at least 0")
    good = is_finite(timeout_minutes) and 0 < timeout_minutes <= 1e6
    require("timeout_minutes", timeout_minutes, good, "a positive number, at most 1e6")
    models.check_names(config)  # before data are fetched
    if processes > 1 and not by_torchrun():
        options = {"device": device, "compile": compile, "checkpoint_minutes": checkpoint_minutes}
        options |= {"stop_after": stop_after, "timeout_minutes": timeout_minutes}
        return launch.pretrain(config, out_dir, processes, images, data_root, skip_bad, **options)
    ranks.take_gpu()
    device, _ = hardware.choose(device, config.precision)
    with ranks.joined(config, device, timeout_minutes) as group, contextlib.ExitStack() as held:
        if images is None:
            said = progress and group.rank == 0
            options = {"image_size": config.image_size, "skip_bad": skip_bad, "progress": said}
            images = group.in_turn(lambda: data.load(config.dataset, data_root, **options)).pretrain()
        data.check_images(images)
        allowed = f"at most the {len(images)} images"
        require("batch_size", config.batch_size, config.batch_size <= len(images), allowed)
        fingerprint = data.fingerprint(images)
        group.require_same(data_fingerprint=fingerprint)
        config = group.first(lambda: on_images(config, out_dir, fingerprint, len(images)))
        folder = Path(out_dir) / config.name
        group.first(lambda: held.enter_context(results.locked(folder)))
        group.first(lambda: end_again(folder))
        finished = group.first(lambda: finished_run(config, folder, fingerprint))
        if finished is not None:
            return finished
        place = group.first(lambda: begin(config, folder, fingerprint, len(images)))
        try:
            loop = _Loop(config, place, images, fingerprint, device, compile, group)
            loop.run(60 * checkpoint_minutes, stop_after, progress)
        except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
            if isinstance(error, RuntimeError) and not NO_MEMORY.search(str(error)):
                raise
            raise ValueError(
                f"batch_size={config.batch_size} with width={config.width}, hidden_dim={config.hidden_dim}, "
                f"projection_dim={config.projection_dim} does not fit in the memory of {device}; "
                f"accumulate={2 * config.accumulate} computes a batch in parts, and several GPUs share it"
            ) from None
        group.first(lambda: end_again(folder))
        return group.first(lambda: load_run(folder))


def begin(config: TrainConfig, folder: Path, fingerprint: str, count: int) -> Path:
    """Write what is run; where there is no checkpoint, take that of a run of fewer epochs.

    Returns:
        Where to train: `folder`, or inside it where that holds a finished run, see `begin_again`.
    """
    results.write_json(folder / "config.json", config.to_dict())
    place = begin_again(folder) if (folder / "result.json").exists() else folder
    if checkpoint.load(place) is None:
        go_on_from_fewer_epochs(config, folder, fingerprint, count, place)
    return place


class _Loop:
    """The epochs of one run, with all that lets them be stopped and continued."""

    def __init__(self, config, folder, images, fingerprint, device, compile, group):
        self.config, self.folder, self.fingerprint, self.group = config, folder, fingerprint, group
        self.device, self.count, self.channels = device, len(images), images.shape[1]
        self.begun = group.first(lambda: checkpoint.load(folder))
        began = self.begun[1].get("precision") if self.begun else None
        self.trainer = Trainer(config, self.channels, device, began)
        if began not in (None, here := hardware.precision_on(device, config.precision)):
            log.warning("%s goes on in %s, as it began; here auto would be %s", config.name, began, here)
        augmentation = augment.build(config.recipe.augmentation, config.image_size)
        self.batches, augmentation = batches.build(images, config, augmentation, device, group)
        self.fast_step = FastStep(self.trainer, augmentation, compile, group)
        self.steps = self.batches.steps  # of an epoch
        self.losses = torch.zeros(self.steps, device=device)  # of this epoch; read once, at its end
        self.epoch, self.step, self.seconds = 0, 0, 0.0
        self.went_on_from = self.begun[1].get("went_on_from") if self.begun else None
        before = self.begun[1].get("ran_on", []) if self.begun else []
        self.ran_on = [*dict.fromkeys([*before, hardware.name(device)])]
        self.started = self.saved = time.monotonic()
        self.saving = 0.0  # seconds that the last checkpoint took

    @property
    def runs_on(self) -> str:
        line = hardware.describe(self.device, self.trainer.precision)
        if self.went_on_from:
            line += ", on from epoch {epoch}, step {step} of {run}".format(**self.went_on_from)
        if before := [name for name in self.ran_on if name != hardware.name(self.device)]:
            line += f", before on {' and '.join(before)}: the same up to rounding"
        return line

    def run(self, checkpoint_seconds: float, stop_after: float | None, show_progress: bool) -> None:
        self.checkpoint_seconds, self.stop_after = checkpoint_seconds, stop_after
        self.restore()
        self.group.parallelize(self.trainer)
        show_progress &= self.group.rank == 0
        with (
            StopSignals() as signals,
            Progress(self, show_progress) as progress,
            contextlib.closing(self.batches.begin(self.epoch, self.step)) as images,
        ):
            while self.epoch < self.config.epochs:
                for _ in range(self.step, self.steps):
                    z = self.one_step(next(images))
                    progress.step()
                    if self.step == self.steps:
                        progress.epoch(self.end_epoch(z))
                    self.maybe_stop(signals)
        self.group.first(self.finish)

    def one_step(self, images: Tensor) -> Tensor:
        """A step on this rank's images of a batch, see `FastStep`; their projections (n, D)."""
        seed = derive_seed(self.config.seed, "augment", self.epoch, self.step)
        generator = torch.Generator(self.device).manual_seed(seed)
        self.trainer.set_rates(self.epoch * self.steps + self.step, self.steps)
        loss, z = self.fast_step(images, generator)
        # NaN as soon as F overflows
        self.losses[self.step] = self.group.mean(loss) + 0 * self.trainer.predictor.F.trace()
        self.step += 1
        return z

    def end_epoch(self, z: Tensor) -> dict:
        self.check_finite()
        self.epoch, self.step = self.epoch + 1, 0
        self.group.require_equal(self.trainer.tensors(), f"at the end of epoch {self.epoch}")
        record = {
            "epoch": self.epoch,
            "loss": self.losses.mean().item(),
            **health.measure(self.group.gather(z), self.trainer.predictor.F),
            "seconds": round(self.elapsed(), 3),
            **self.batches.facts(),
        }
        self.group.first(lambda: results.append_jsonl(self.folder / "metrics.jsonl", record))
        return record

    def check_finite(self) -> None:
        """Called before each save, so that what is saved can be gone on from."""
        bad = (~torch.isfinite(self.losses)).nonzero().flatten().tolist()
        if not all(torch.isfinite(p).all() for p in self.trainer.named_parameters.values()):
            bad.append(self.step - 1)  # the loss of a step is older than the weights it leaves
        if bad:
            raise FloatingPointError(
                f"the loss or the weights are not finite at epoch {self.epoch + 1}, "
                f"step {bad[0] + 1} of {self.steps}; a smaller lr than {self.config.lr:g} may help"
            )

    def elapsed(self) -> float:
        """Seconds of training, those before a resume included."""
        return self.seconds + time.monotonic() - self.started

    def maybe_stop(self, signals: StopSignals) -> None:
        reason = signals.received
        if self.stop_after is not None and time.monotonic() - self.started > self.stop_after:
            reason = reason or "stop_after"
        unsaved, at_end = time.monotonic() - self.saved, self.step == 0  # of an epoch
        due = unsaved > self.checkpoint_seconds or (at_end and SAVING * unsaved > self.saving)
        reason, due = self.group.agree(reason, due or self.epoch == self.config.epochs)
        if reason or due:
            if not at_end:  # where `end_epoch` has checked
                self.check_finite()
            self.save()
        if reason:
            done = f"after {self.epoch} of {self.config.epochs} epochs and {self.step} of {self.steps} steps"
            raise Interrupted(reason, done, self.folder)

    def save(self) -> None:
        header = {"config": self.config.to_dict(), "channels": self.channels}
        header["precision"] = self.trainer.precision
        header |= {"epoch": self.epoch, "step": self.step, "seconds": self.elapsed()}
        header |= {"data_fingerprint": self.fingerprint, "went_on_from": self.went_on_from}
        header["ran_on"] = self.ran_on
        tensors = {**self.trainer.tensors(), "losses": self.losses}
        started = time.monotonic()
        self.group.first(lambda: checkpoint.save(self.folder, tensors, header))
        self.saved = time.monotonic()
        self.saving = self.saved - started

    def restore(self) -> None:
        """Go on from the newest checkpoint, if there is one.

        Raises:
            ValueError: it is of another run, or it or the metrics beside it are not whole.
        """
        self.group.first(self.tidy)
        if self.begun is None:
            return
        tensors, header = self.begun
        self.begun = None
        where = f"the checkpoint in {self.folder}"
        if read_config(header["config"], where) != self.config:
            raise ValueError(f"{where} belongs to another configuration; move it away")
        if header.get("data_fingerprint", self.fingerprint) != self.fingerprint:
            raise ValueError(f"{where} was made with other images; move it away")
        with checkpoint.complete(where):
            losses = tensors.pop("losses")
            self.trainer.load_tensors(tensors)
        if losses.shape != self.losses.shape:
            raise ValueError(f"{where} was made with other images; move it away")
        self.losses.copy_(losses)
        self.epoch, self.step, self.seconds = header["epoch"], header["step"], header["seconds"]
        last = (self.config.epochs, 0)
        if not (self.epoch >= 0 and 0 <= self.step < self.steps and (self.epoch, self.step) <= last):
            raise ValueError(
                f"{where} is at epoch {self.epoch}, step {self.step}, of a run of {self.config.epochs} "
                f"epochs of {self.steps} steps; delete it to go on without"
            )
        self.group.first(self.keep_metrics)

    def keep_metrics(self) -> None:
        """Drop the records of epochs after the checkpoint, which come again."""
        records = read_metrics(self.folder, self.epoch)
        results.write_jsonl(self.folder / "metrics.jsonl", records)

    def tidy(self) -> None:
        """Remove what a kill left half done."""
        for leftover in self.folder.glob(".*.tmp"):
            leftover.unlink()
        if self.begun is None:
            (self.folder / "metrics.jsonl").unlink(missing_ok=True)

    def finish(self) -> None:
        record = read_metrics(self.folder, self.config.epochs)[-1]
        result = {
            "name": self.config.name,
            "label": self.config.label,
            "config": self.config.to_dict(),
            "metrics": record,
            "images": self.count,
            "data_fingerprint": self.fingerprint,
            "precision": self.trainer.precision,
            "processes": self.group.size,
            "encoder_fingerprint": checkpoint.fingerprint(self.trainer.online.encoder),
            "seconds": round(self.elapsed(), 3),
            "went_on_from": self.went_on_from,
            "ran_on": self.ran_on,
            **results.provenance(self.device),
        }
        results.write_json(self.folder / "result.json", result)
