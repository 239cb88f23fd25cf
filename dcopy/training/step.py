"""The algorithm: one training step, and the state that it moves."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import hardware
from ..config import TrainConfig
from ..models import Network, ema_update, require_timm
from ..predictors import build_predictor
from . import checkpoint, schedule

LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}  # of the networks under autocast
SCALER = ("scale", "_growth_tracker")  # what of a GradScaler's state moves


class Trainer:
    """Online network, target, predictor and optimizer of one run, and the step that moves them.

    SimSiam has no network of its own for the target: there, `target` is the online network.

    Args:
        config: the run.
        channels: of the images.
        device: where the tensors live.
        precision: in which the run began; None: as the configuration says, `auto` being what the device
            is fast in.
    """

    def __init__(self, config: TrainConfig, channels: int, device="cpu", precision: str | None = None):
        self.config, self.device = config, torch.device(device)
        self.precision = hardware.precision_on(device, precision or config.precision)
        with seeded(config.seed, "weights"):
            self.online = Network(config, channels)
        if config.method == "simsiam":
            self.target = self.online
        elif config.target_start == "copy":
            self.target = copy.deepcopy(self.online)
        else:
            with seeded(config.seed, "target"):
                self.target = Network(config, channels)
        with seeded(config.seed, "predictor"):
            self.predictor = build_predictor(config)
        # With other widths oneDNN's kernels for channels_last overrun their buffers (width 2 and 4, AVX2).
        is_cuda = self.device.type == "cuda"
        fits = is_cuda if config.library else config.width % 8 == 0 and self.device.type != "mps"
        layout = torch.channels_last if fits else torch.contiguous_format
        self.parts = {"online": self.online, "target": self.target, "predictor": self.predictor}
        if self.target is self.online:
            del self.parts["target"]
        else:
            self.target.requires_grad_(False)
        for module in self.parts.values():
            module.to(self.device, memory_format=layout).train()
        self.named_parameters = {
            name: parameter
            for name, parameter in itertools.chain(
                self.online.named_parameters("online"), self.predictor.named_parameters("predictor")
            )
            if parameter.requires_grad
        }
        rates = {"lr": config.lr, "momentum": config.momentum, "weight_decay": config.weight_decay}
        if config.optimizer == "lars":  # in timm, eta is 1e-3
            optimizer = require_timm("optimizer=lars").optim.Lars
            self.optimizer = optimizer(self._groups(), **rates, always_adapt=True)
        else:
            fused = is_cuda and self.precision != "fp16"
            self.optimizer = torch.optim.SGD(self._groups(), **rates, fused=fused)
        self.ema = config.ema  # of the next step
        # fp16 cannot hold small gradients: the loss is scaled up, and a step that overflows is left out.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def _groups(self) -> list[dict]:
        """The trained parameters, those apart that are neither decayed nor adapted, or keep their lr."""
        keeps_lr = self.config.method == "simsiam" and self.config.lr_schedule == "cosine"
        groups: dict[tuple, dict] = {}
        for name, parameter in self.named_parameters.items():
            is_plain = self.config.decay == "weights" and parameter.ndim < 2  # bias or norm
            is_constant = keeps_lr and name.startswith("predictor.")  # as in `facebookresearch/simsiam`
            own = {"weight_decay": 0.0, "always_adapt": False} if is_plain else {}
            group = groups.setdefault((is_plain, is_constant), {"params": [], "constant": is_constant, **own})
            group["params"].append(parameter)
        return list(groups.values())

    def set_rates(self, step: int, steps: int) -> None:
        """Give the next step its learning rate and its momentum of the target; see `schedule`."""
        lr = self.config.lr * schedule.lr_factor(self.config, step, steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr if group["constant"] else lr
        self.ema = schedule.ema(self.config, step, steps)

    def step(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        """One step on two views of a batch, in the order below, which tests hold it to.

        Args:
            x1, x2: (N, C, H, W) float32, augmented on their own.

        Returns:
            The loss () and the online projections of the first view (N, D), both detached.
        """
        if self.config.accumulate > 1:
            return self._step_in_parts(x1, x2)
        loss, z = self.forward(x1, x2)
        self.descend(loss)
        return loss.detach(), z.detach()

    def _step_in_parts(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        """A step that computes a batch in `accumulate` parts, of which each has every k-th image.

        F, W_p, weights and target move once. Before any part is predicted, a pass without gradient projects
        all of them, so F and W_p are those of the whole batch. But for BatchNorm this is the step on the
        whole batch, up to the order of sums. BatchNorm takes its statistics from one part at a time, as
        they have to be in memory together: networks with it train as with smaller batches there, which is
        why `accumulate` is a part of a run's name.
        """
        k, losses, z = self.config.accumulate, [], []
        parts = [(x1[i::k], x2[i::k]) for i in range(k)]
        with torch.no_grad(), running_statistics_kept(self.online):
            self.predictor.update(torch.cat([z_i for part in parts for z_i in self.project(*part)]))
        self.optimizer.zero_grad()
        for i, part in enumerate(parts):
            # several processes exchange gradients once, after the last part
            last = i == k - 1 or not hasattr(self.forward, "no_sync")
            with contextlib.nullcontext() if last else self.forward.no_sync():
                loss, z_i = self.forward(*part)
                self.scaler.scale(loss / k).backward()
            losses.append(loss.detach())
            z.append(z_i.detach())
        self._move()
        return torch.stack(losses).mean(), torch.stack(z, dim=1).flatten(0, 1)  # (N, D), in order

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        """The passes of a step: the loss () and the online projections of the first view (N, D)."""
        # 1. online: views to projections
        z = self.project(x1, x2)
        # 2. correlation: F and W_p from the projections of this step, without gradient
        if self.config.accumulate == 1:
            self.predictor.update(torch.cat(z).detach())
        return self.loss(z, x1, x2), z[0]

    def project(self, x1: Tensor, x2: Tensor) -> list[Tensor]:
        """Online projections (N, D) of the views that are predicted from."""
        return self._project(self.online, (x1, x2) if self.config.symmetric_loss else (x1,))

    def loss(self, z: list[Tensor], x1: Tensor, x2: Tensor) -> Tensor:
        """The loss () of predicting the target's projections from `z`, once F and W_p are those of `z`."""
        # 3. predictor
        p = self._views(self.predictor, z)
        # 4. target, without gradient; each prediction meets the other view's projection
        z_target = self.targets(z, x1, x2)
        # 5. loss: both directions
        return sum(negative_cosine(p_i, z_i) for p_i, z_i in zip(p, z_target, strict=True))

    def descend(self, loss: Tensor) -> None:
        """The rest of the step: the weights move."""
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self._move()

    def _move(self) -> None:
        # 6. optimizer step
        self.scaler.step(self.optimizer)
        self.scaler.update()
        # 7. EMA
        if self.target is not self.online:
            ema_update(self.target, self.online, self.ema)

    @torch.no_grad()
    def targets(self, z: list[Tensor], x1: Tensor, x2: Tensor) -> list[Tensor]:
        """What each prediction from `z` shall meet, (N, D) without gradient: the other view's projection."""
        if self.target is self.online and len(z) == 2:  # they are there already
            return [z_i.detach() for z_i in reversed(z)]
        return self._project(self.target, (x2, x1)[: len(z)])

    def _project(self, network: nn.Module, views: tuple[Tensor, ...]) -> list[Tensor]:
        """Projections (N, D) in float32 or better, one tensor a view."""
        low = LOW.get(self.precision)
        with torch.autocast(self.device.type, low, enabled=low is not None):
            z = self._views(network, views)
        return [z_i.to(torch.promote_types(z_i.dtype, torch.float32)) for z_i in z]

    def _views(self, module: nn.Module, views) -> list[Tensor]:
        """One pass a view, each with its own BatchNorm statistics, or one pass over all of them."""
        if self.config.batchnorm == "per-view":
            return [module(view) for view in views]
        return list(module(torch.cat(tuple(views))).chunk(len(views)))

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name."""
        state = {}
        for part, module in self.parts.items():
            for name, tensor in module.state_dict().items():
                state[f"{part}.{name}"] = tensor
        for name, parameter in self.named_parameters.items():
            if "momentum_buffer" in self.optimizer.state[parameter]:
                state[f"momentum.{name}"] = self.optimizer.state[parameter]["momentum_buffer"]
        for name in SCALER if self.scaler.is_enabled() else ():
            state[f"scaler.{name}"] = torch.tensor(self.scaler.state_dict()[name])
        return state

    def load_tensors(self, state: dict[str, Tensor]) -> None:
        """The inverse of `tensors`; every name must be there and none may be left over."""
        for name, module in self.parts.items():
            module.load_state_dict(checkpoint.part(state, name), strict=True)
        if self.scaler.is_enabled():
            scale = {name: state[f"scaler.{name}"].item() for name in SCALER}
            self.scaler.load_state_dict(self.scaler.state_dict() | scale)
        buffers = checkpoint.part(state, "momentum")
        # SGD keeps nothing, or all steps so far had overflowed
        if self.config.momentum == 0 or (self.scaler.is_enabled() and not buffers):
            return
        for name, parameter in self.named_parameters.items():
            buffer = buffers[name]
            if buffer.shape != parameter.shape:  # where copy_ might broadcast
                raise RuntimeError(f"momentum.{name} has the shape {tuple(buffer.shape)}")
            layout = torch.empty_like(parameter, requires_grad=False)
            self.optimizer.state[parameter]["momentum_buffer"] = layout.copy_(buffer)


@contextlib.contextmanager
def running_statistics_kept(network: nn.Module):
    """Passes in the block leave the running statistics of BatchNorm as they are."""
    layers = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


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
