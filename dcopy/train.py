"""Pretraining: the step, the loop around it, and the run folder it leaves behind.

As a command: `python -m dcopy.train dataset=digits method=directcopy epochs=60 --out-dir runs`.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from . import augment, checkpoint, data, health, results
from .config import TrainConfig
from .interrupt import Interrupted, StopSignals
from .models import Network, ema_update
from .predictors import build_predictor
from .progress import Progress


class Trainer:
    """Online network, target, predictor and optimizer of one run, and the step that moves them.

    Args:
        config: the run.
        channels: of the images.
        device: where the tensors live.
    """

    def __init__(self, config: TrainConfig, channels: int, device="cpu"):
        self.config, self.device = config, torch.device(device)
        with seeded(config.seed, "weights"):
            self.online = Network(config, channels)
        if config.target_start == "copy":
            self.target = copy.deepcopy(self.online)
        else:
            with seeded(config.seed, "target"):
                self.target = Network(config, channels)
        with seeded(config.seed, "predictor"):
            self.predictor = build_predictor(config)
        for module in (self.online, self.target, self.predictor):
            module.to(self.device, memory_format=torch.channels_last).train()
        self.target.requires_grad_(False)
        self.named_parameters = {
            name: parameter
            for name, parameter in itertools.chain(
                self.online.named_parameters("online"), self.predictor.named_parameters("predictor")
            )
        }
        self.optimizer = torch.optim.SGD(
            self.named_parameters.values(),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            fused=self.device.type == "cuda",
        )

    def step(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        """One step on two views of a batch, in the order below, which tests hold it to.

        Args:
            x1, x2: (N, C, H, W) float32, augmented on their own.

        Returns:
            The loss () and the online projections of the first view (N, D), both detached.
        """
        both = self.config.symmetric_loss
        # 1. online: views to projections
        z = self._forward(self.online, (x1, x2) if both else (x1,))
        # 2. correlation: F and W_p from the projections of this step, without gradient
        self.predictor.update(torch.cat(z).detach())
        # 3. predictor
        p = self._views(self.predictor, z)
        # 4. target, without gradient; each prediction meets the other view's projection
        with torch.no_grad():
            z_target = self._forward(self.target, (x2, x1) if both else (x2,))
        # 5. loss: both directions
        loss = sum(negative_cosine(p_i, z_i) for p_i, z_i in zip(p, z_target, strict=True))
        # 6. optimizer step
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        # 7. EMA
        ema_update(self.target, self.online, self.config.ema)
        return loss.detach(), z[0].detach()

    def _forward(self, network: nn.Module, views: tuple[Tensor, ...]) -> list[Tensor]:
        """Projections (N, D) in float32, one tensor a view."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            return [z.float() for z in self._views(network, views)]

    def _views(self, module: nn.Module, views) -> list[Tensor]:
        """One pass a view, each with its own BatchNorm statistics, or one pass over all of them."""
        if self.config.batchnorm == "per-view":
            return [module(view) for view in views]
        return list(module(torch.cat(tuple(views))).chunk(len(views)))

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name."""
        state = {}
        for part in ("online", "target", "predictor"):
            for name, tensor in getattr(self, part).state_dict().items():
                state[f"{part}.{name}"] = tensor
        for name, parameter in self.named_parameters.items():
            if "momentum_buffer" in self.optimizer.state[parameter]:
                state[f"momentum.{name}"] = self.optimizer.state[parameter]["momentum_buffer"]
        return state

    def load_tensors(self, state: dict[str, Tensor]) -> None:
        """The inverse of `tensors`; every name must be there and none may be left over."""
        for part in ("online", "target", "predictor"):
            prefix = f"{part}."
            own = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
            getattr(self, part).load_state_dict(own, strict=True)
        for name, parameter in self.named_parameters.items():
            buffer = state[f"momentum.{name}"]
            layout = torch.empty_like(parameter, requires_grad=False)
            self.optimizer.state[parameter]["momentum_buffer"] = layout.copy_(buffer)


def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """-2 cos(p, z), mean over the batch: BYOL's loss, which is this plus 2 (arXiv 2006.07733, eq. 2).

    Args:
        p: (N, D) predictions.
        z: (N, D) projections of the target.
    """
    return -2 * nn.functional.cosine_similarity(p, z, dim=1).mean()


def derive_seed(seed: int, stream: str, *counters: int) -> int:
    """A seed for one purpose at one moment, so that methods meet the same noise and resuming replays none."""
    text = "/".join(map(str, (seed, stream, *counters)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


@contextlib.contextmanager
def seeded(seed: int, stream: str):
    """Run the block with torch's global generator at a derived seed, and put it back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, stream))
        yield


@dataclass(frozen=True)
class Run:
    """A finished pretraining run.

    Attributes:
        config: what was run.
        folder: its folder, with config.json, metrics.jsonl, result.json and the checkpoint.
        encoder: frozen, in eval mode; takes uint8 images (N, C, H, W), gives representations (N, d).
        metrics: one record per epoch.
        result: the content of result.json.
    """

    config: TrainConfig
    folder: Path
    encoder: nn.Module
    metrics: list[dict]
    result: dict


class FrozenEncoder(nn.Module):
    """An encoder for evaluation: clean images in, representations before the projector out."""

    def __init__(self, encoder: nn.Module, config: TrainConfig):
        super().__init__()
        self.augmentation = augment.build(config.recipe.augmentation)
        self.encoder = encoder
        self.requires_grad_(False).train(False)

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Stays in eval mode, so that no BatchNorm statistic moves while probing."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) uint8 -> (N, d) float32"""
        return self.encoder(self.augmentation.clean(images)).float()


def pretrain(
    config: TrainConfig,
    out_dir: str | Path = "runs",
    *,
    images: Tensor | None = None,
    data_root: str | Path | None = None,
    device: str | None = None,
    checkpoint_minutes: float = 5.0,
    stop_after: float | None = None,
    progress: bool = True,
) -> Run:
    """Pretrain, or continue, or return what is finished: the folder decides.

    The run lives in `out_dir/config.name`. A checkpoint is written after every epoch and every
    `checkpoint_minutes`; the same call then goes on from it, on the CPU bitwise as if it had never
    stopped. SIGINT, SIGTERM and SIGUSR1 finish the step, save and raise Interrupted.

    Args:
        config: the run.
        out_dir: folder of run folders.
        images: (N, C, H, W) uint8 to pretrain on, instead of the data set's own.
        data_root: where data sets lie, see `dcopy.data.load`.
        device: default a GPU where there is one.
        stop_after: seconds after which to save and raise Interrupted.
        progress: show a bar (terminal, JupyterLab) or a line per epoch (elsewhere).

    Raises:
        ValueError: bad images, a batch larger than the data, a broken checkpoint, a folder that
            belongs to another configuration, or another process at work in it.
        FloatingPointError: the loss became NaN or infinite; the message names the step.
        Interrupted: stopped by a signal or by `stop_after`; the state is saved.
    """
    device = device or results.default_device()
    folder = Path(out_dir) / config.name
    with results.locked(folder):
        finished = _finished(config, folder)
        if finished is not None:
            return finished
        if images is None:
            images = data.load(config.dataset).pretrain()
        data.check_images(images)
        if config.batch_size > len(images):
            raise ValueError(
                f"batch_size={config.batch_size} is not allowed; it must be at most the {len(images)} images"
            )
        results.write_json(folder / "config.json", config.to_dict())
        loop = _Loop(config, folder, images, device, checkpoint_minutes, stop_after)
        loop.run(progress)
    return load_run(folder)


def load_run(folder: str | Path) -> Run:
    """A finished run from its folder.

    Raises:
        ValueError: the run is not finished, or a file in it is broken or of another configuration.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not the folder of a run; there is no config.json in it")
    config = TrainConfig.from_dict(results.read_json(folder / "config.json"))
    run = _finished(config, folder)
    if run is None:
        raise ValueError(f"{folder} holds no finished run; the command that began it continues it")
    return run


def _finished(config: TrainConfig, folder: Path) -> Run | None:
    path = folder / "result.json"
    if not path.exists():
        return None
    result = results.read_json(path)
    if result.get("config") != config.to_dict():
        raise ValueError(f"{path} belongs to another configuration than {config.name}; move it away")
    loaded = checkpoint.load(folder)
    if loaded is None:  # a fresh clone has results, but no weights
        return None
    tensors, header = loaded
    if header["epoch"] != config.epochs:
        return None
    network = Network(config, header["channels"])
    prefix = "online."
    online = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
    network.load_state_dict(online, strict=True)
    metrics = results.read_jsonl(folder / "metrics.jsonl")
    return Run(config, folder, FrozenEncoder(network.encoder, config), metrics, result)


class _Loop:
    """The epochs of one run, with all that lets them be stopped and continued."""

    def __init__(self, config, folder, images, device, checkpoint_minutes, stop_after):
        self.config, self.folder = config, folder
        self.images = images.to(device)  # (n, C, H, W) uint8, the whole data set on the device
        self.augment = augment.build(config.recipe.augmentation)
        self.trainer = Trainer(config, images.shape[1], device)
        self.steps = len(images) // config.batch_size  # a partial last batch is dropped
        self.losses = torch.zeros(self.steps, device=device)  # of this epoch; read once, at its end
        self.epoch, self.step, self.seconds = 0, 0, 0.0
        self.started = self.saved = time.monotonic()
        self.checkpoint_seconds, self.stop_after = 60 * checkpoint_minutes, stop_after

    def run(self, show_progress: bool) -> None:
        self.restore()
        with StopSignals() as signals, Progress(self, show_progress) as progress:
            while self.epoch < self.config.epochs:
                order = self.order()
                while self.step < self.steps:
                    z = self.one_step(order)
                    progress.step()
                    self.maybe_stop(signals)
                record = self.end_epoch(z)
                progress.epoch(record)
        self.finish(record)

    def order(self) -> Tensor:
        """The epoch's batches: indices (steps, batch_size)."""
        generator = torch.Generator().manual_seed(derive_seed(self.config.seed, "order", self.epoch))
        order = torch.randperm(len(self.images), generator=generator).to(self.images.device)
        return order[: self.steps * self.config.batch_size].view(self.steps, -1)

    def one_step(self, order: Tensor) -> Tensor:
        seed = derive_seed(self.config.seed, "augment", self.epoch, self.step)
        generator = torch.Generator(self.images.device).manual_seed(seed)
        batch = self.images[order[self.step]]
        loss, z = self.trainer.step(self.augment(batch, generator), self.augment(batch, generator))
        self.losses[self.step] = loss
        self.step += 1
        return z

    def end_epoch(self, z: Tensor) -> dict:
        bad = (~torch.isfinite(self.losses)).nonzero()
        if len(bad):
            raise FloatingPointError(
                f"the loss is not finite at epoch {self.epoch + 1}, step {int(bad[0]) + 1} of {self.steps}; "
                f"a smaller lr than {self.config.lr:g} may help"
            )
        self.epoch, self.step = self.epoch + 1, 0
        record = {
            "epoch": self.epoch,
            "loss": self.losses.mean().item(),
            **health.measure(z, self.trainer.predictor.F),
            "seconds": round(self.elapsed(), 3),
        }
        results.append_jsonl(self.folder / "metrics.jsonl", record)
        self.save()
        return record

    def elapsed(self) -> float:
        """Seconds of training, those before a resume included."""
        return self.seconds + time.monotonic() - self.started

    def maybe_stop(self, signals: StopSignals) -> None:
        reason = signals.received
        if self.stop_after is not None and time.monotonic() - self.started > self.stop_after:
            reason = reason or "stop_after"
        if reason or time.monotonic() - self.saved > self.checkpoint_seconds:
            self.save()
        if reason:
            raise Interrupted(reason, f"epoch {self.epoch + 1}, step {self.step} of {self.steps}", self.folder)

    def save(self) -> None:
        header = {"config": self.config.to_dict(), "channels": self.images.shape[1]}
        header |= {"epoch": self.epoch, "step": self.step, "seconds": self.elapsed()}
        checkpoint.save(self.folder, {**self.trainer.tensors(), "losses": self.losses}, header)
        self.saved = time.monotonic()

    def restore(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        loaded = checkpoint.load(self.folder, self.images.device)
        if loaded is None:
            (self.folder / "metrics.jsonl").unlink(missing_ok=True)
            return
        tensors, header = loaded
        if header["config"] != self.config.to_dict():
            raise ValueError(f"the checkpoint in {self.folder} belongs to another configuration; move it away")
        if len(tensors["losses"]) != self.steps:
            raise ValueError(f"the checkpoint in {self.folder} was made with another number of images")
        self.losses.copy_(tensors.pop("losses"))
        self.trainer.load_tensors(tensors)
        self.epoch, self.step, self.seconds = header["epoch"], header["step"], header["seconds"]
        results.keep_jsonl(self.folder / "metrics.jsonl", lambda record: record["epoch"] <= self.epoch)

    def finish(self, record: dict) -> None:
        result = {
            "name": self.config.name,
            "label": self.config.label,
            "config": self.config.to_dict(),
            "metrics": record,
            "images": len(self.images),
            "encoder_fingerprint": checkpoint.fingerprint(self.trainer.online.encoder),
            "seconds": round(self.elapsed(), 3),
            **results.provenance(self.images.device),
        }
        results.write_json(self.folder / "result.json", result)
