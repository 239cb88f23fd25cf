"""The running correlation F that every predictor keeps of its inputs."""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import Tensor, distributed, nn

from ..config import require


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor itself, or in float32 where it is coarser."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def is_whole(value: object, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= least


def is_finite(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


@torch.no_grad()
def correlation(z: Tensor) -> Tensor:
    """mean(z z^T) over the samples of all ranks, neither centred nor normalized; (N, D) -> (D, D).

    In a process group of several ranks each of them has to call it, as in training with
    DistributedDataParallel. They may hold different numbers of samples: sums and numbers are added up,
    so all ranks get the same matrix. No gradient flows.

    Raises:
        ValueError: there is no sample.
    """
    N, D = z.shape
    total = z.T @ z  # (D, D)
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        packed = torch.cat((total.flatten(), total.new_full((1,), N)))  # (D * D + 1,), one message
        distributed.all_reduce(packed)
        total, N = packed[:-1].view(D, D), packed[-1]
    elif N == 0:
        raise ValueError(f"z has shape {tuple(z.shape)}: there is no sample to take a correlation of")
    return total / N


class Predictor(nn.Module):
    """Base of all predictors; keeps the running correlation F of its inputs.

    F <- rho F + (1 - rho) mean(z z^T), neither centred nor normalized, started at the first
    step's mean (`facebookresearch/luckmatters:ssl/real-dataset/byol_trainer.py`, Accumulator).
    A learned predictor keeps it too: its spectrum shows whether training has collapsed.

    Args:
        dim: D, the dimension of the projections.
        rho: how much of the old F stays at each step, in [0, 1).
        freq: `set_weight` is called every `freq` steps.
    """

    def __init__(self, dim: int, rho: float = 0.3, freq: int = 1):
        super().__init__()
        require("dim", dim, is_whole(dim, 1), "an integer of at least 1")
        require("rho", rho, is_finite(rho) and 0 <= rho < 1, "a number in [0, 1)")
        require("freq", freq, is_whole(freq, 1), "an integer of at least 1")
        self.dim, self.rho, self.freq = dim, rho, freq
        self.calls_per_step = 0  # of forward; see SetPredictor
        self.steps = 0  # that are complete
        self.calls = 0  # of the step that is not
        self.register_buffer("F", torch.zeros(dim, dim))

    @torch.compiler.disable  # counts and the fallback of eigh are for Python: one graph break, no recompiling
    @torch.no_grad()
    def update(self, z: Tensor) -> None:
        """Move F by one step and set W_p from it, in float32 or better; no gradient flows.

        Args:
            z: (N, D) projections of one step, both views, or of one of its `calls_per_step`; with several
                processes, those of this rank.

        Raises:
            ValueError: z has another shape, or no sample.
        """
        if z.ndim != 2 or z.shape[1] != self.dim:
            raise ValueError(f"z has shape {tuple(z.shape)}; it must be (N, {self.dim})")
        with torch.autocast(z.device.type, enabled=False):
            self._move(correlation(z.to(at_least_float32(self.F))))
            if self.steps % self.freq == 0:
                self.set_weight()
        self.calls += 1
        if self.calls >= self.calls_per_step:
            self.steps, self.calls = self.steps + 1, 0

    def _move(self, C: Tensor) -> None:
        """Move F towards C (D, D), or towards the mean of C over the calls of this step so far."""
        F = self.F.to(C)
        if self.calls_per_step > 1 and self.calls == 0:
            self._F_before = F.clone()  # of this step
        before = self._F_before if self.calls_per_step > 1 else F
        moved = C if self.steps == 0 else before.lerp(C, 1 - self.rho)
        self.F.copy_(moved if self.calls == 0 else F.lerp(moved, 1 / (self.calls + 1)))

    def set_weight(self) -> None:
        """Set W_p from F; a learned predictor leaves it to the optimizer."""

    # The step count is a plain number, so that a step on the GPU waits for nothing, and a tensor
    # in the state_dict, so that a checkpoint has it.
    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.steps)

    def set_extra_state(self, state: Tensor) -> None:
        self.steps, self.calls = int(state), 0
