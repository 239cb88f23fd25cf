"""Predictors: what maps the online projection z to a prediction of the target's projection.

All share one interface. `update(z)` sees the projections of one step before they are predicted;
`forward(z)` predicts. A learned predictor is moved by the optimizer, a set one by `update`, or by
`forward` itself in a trainer that knows nothing of `update` (`calls_per_step`).
The letters are the paper's: F is the correlation of the projections, W_p the predictor.
"""

from __future__ import annotations

import logging
import warnings

import torch
from torch import Tensor, distributed, nn

from .config import TrainConfig, one_of, require

log = logging.getLogger(__name__)


NEVER_SET = (
    "{}'s W_p is still the identity, so it predicts like no predictor at all; call update(z) before "
    "forward(z), or build it with calls_per_step"
)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor itself, or in float32 where it is coarser."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@torch.no_grad()
def correlation(z: Tensor) -> Tensor:
    """mean(z z^T) over the samples of all ranks, neither centred nor normalized; (N, D) -> (D, D).

    In a process group of several ranks each of them has to call it, as in training with
    DistributedDataParallel. They may hold different numbers of samples: sums and numbers are added up,
    so all ranks get the same matrix. No gradient flows.
    """
    N, D = z.shape
    total = z.T @ z  # (D, D)
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        packed = torch.cat((total.flatten(), total.new_full((1,), N)))  # (D * D + 1,), one message
        distributed.all_reduce(packed)
        total, N = packed[:-1].view(D, D), packed[-1]
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
        require("dim", dim, dim >= 1, "an integer of at least 1")
        require("rho", rho, 0 <= rho < 1, "a number in [0, 1)")
        require("freq", freq, freq >= 1, "an integer of at least 1")
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
            z: (N, D) projections of one step, both views; with several processes, those of this rank.

        Raises:
            ValueError: z has another shape.
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


class SetPredictor(Predictor):
    """A linear predictor p = W_p z whose weight is computed from F instead of learned.

    With freq=1 the weight is a buffer. With freq > 1 it is a parameter, which the optimizer moves
    in between.

    As a part of a trainer that does not call `update`, it takes `calls_per_step`. Then `forward` in train
    mode moves F and sets W_p from its own input before it predicts, as BatchNorm does with its
    statistics; in eval mode nothing moves.

    - 1: each call is a step. `predictor(torch.cat((z1, z2))).chunk(2)` is the step of dcopy's own trainer.
    - 2: a call for each view, as in BYOL's and SimSiam's usual loops. F ends a step where that of dcopy's
      trainer does. The second view is predicted with the same W_p as there, the first one with a W_p
      that has not seen the second view's projections yet.
    - 2 k: likewise, where the optimizer steps once in k batches, so that F moves once for all of them.

    In a process group F is averaged over the ranks (see `correlation`).
    """

    def __init__(self, dim: int, rho: float, eps: float, freq: int = 1, calls_per_step: int = 0):
        super().__init__(dim, rho, freq)
        require("eps", eps, eps >= 0, "a number of at least 0")
        good = isinstance(calls_per_step, int) and calls_per_step >= 0
        require("calls_per_step", calls_per_step, good, "an integer of at least 0")
        self.eps, self.calls_per_step = eps, calls_per_step
        self.eigh_fallbacks = 0  # decompositions that the GPU could not do
        if freq == 1:
            self.register_buffer("weight", torch.eye(dim))
        else:
            self.weight = nn.Parameter(torch.eye(dim))

    def forward(self, z: Tensor) -> Tensor:
        """(N, D) -> (N, D), in float32 or better. The gradient flows to z, not to the W_p that was set."""
        if self.training and self.calls_per_step:
            self.update(z)
        elif self.training and not torch.compiler.is_compiling() and self.steps == 0 and z.requires_grad:
            warnings.warn(NEVER_SET.format(type(self).__name__), stacklevel=2)
        weight = self.weight.clone()  # the next update writes into W_p, perhaps before this p's backward
        with torch.autocast(z.device.type, enabled=False):
            dtype = torch.promote_types(z.dtype, weight.dtype)
            return nn.functional.linear(z.to(dtype), weight.to(dtype))

    def eigh(self, F: Tensor) -> tuple[Tensor, Tensor]:
        """Eigenvalues (D,), ascending and clipped at 0, and eigenvectors (D, D) of a correlation.

        cuSOLVER fails on some matrices of low rank, which is what collapse makes (pytorch/pytorch#105359);
        those are decomposed on the CPU and counted in `eigh_fallbacks`. NaN and infinity give NaN, for
        the training loop to report.
        """
        F = at_least_float32(F)
        symmetric = (F + F.T) / 2
        try:
            s, U = torch.linalg.eigh(symmetric)
        except torch.linalg.LinAlgError:
            if not torch.isfinite(symmetric).all():
                return torch.full_like(symmetric[0], torch.nan), torch.full_like(symmetric, torch.nan)
            self.eigh_fallbacks += 1
            log.warning("eigh failed on %s; fallback %d to the CPU", F.device, self.eigh_fallbacks)
            s, U = (part.to(symmetric) for part in torch.linalg.eigh(symmetric.cpu().double()))
        return s.clamp(min=0), U

    def extra_repr(self) -> str:
        calls = f", calls_per_step={self.calls_per_step}" if self.calls_per_step else ""
        return f"{self.dim}, rho={self.rho}, eps={self.eps}, freq={self.freq}{calls}"


class DirectPred(SetPredictor):
    """W_p = U diag(sqrt(s / max s) + eps) U^T, where F = U diag(s) U^T.

    Tian et al. 2021 (arXiv 2102.06810), section 3.2; scaling and eps as in
    `facebookresearch/luckmatters:ssl/real-dataset/byol_trainer.py`, compute_w_corr.
    It pays for an eigendecomposition at every set; freq=5 is the paper's cheaper variant.

    >>> predictor = DirectPred(dim=2)
    >>> predictor.update(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))  # F = diag(2, 1/2)
    >>> predictor.weight
    tensor([[1.1000, 0.0000],
            [0.0000, 0.6000]])
    """

    def __init__(self, dim: int, rho: float = 0.3, eps: float = 0.1, freq: int = 1, calls_per_step: int = 0):
        super().__init__(dim, rho, eps, freq, calls_per_step)

    @torch.no_grad()
    def set_weight(self) -> None:
        s, U = self.eigh(self.F)  # (D,), (D, D)
        p = (s / s.max().clamp(min=torch.finfo(s.dtype).tiny)).sqrt() + self.eps  # (D,)
        self.weight.copy_((U * p) @ U.T)


class DirectSet(SetPredictor):
    """W_p = F^alpha + eps I, after scaling F as `normalize` says.

    Wang et al. 2021 (arXiv 2110.04947), section 5. Public codes disagree on the scaling: none in
    `facebookresearch/luckmatters:ssl/real-dataset/byol_trainer.py`, Frobenius norm in
    `miszkur/SelfSupervisedLearning:models/mlp_head.py`, largest eigenvalue in
    `fmi-basel/implicit-var-reg:solo/methods/directpred.py`. Here it is an argument.
    A whole alpha takes matrix products only; others need an eigendecomposition.

    Args:
        dim: D, the dimension of the projections.
        alpha: the power, above 0.
        rho: how much of the old F stays at each step, in [0, 1).
        eps: added to every eigenvalue, at least 0.
        normalize: "none", "frobenius" (F / ||F||_F) or "spectral" (F / largest eigenvalue).
        freq: set W_p every `freq` steps, let the optimizer move it in between.
        calls_per_step: of `forward`, which then moves F and sets W_p; 0 leaves that to `update`.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(
        self,
        dim: int,
        alpha: float,
        rho: float = 0.3,
        eps: float = 0.3,
        normalize: str = "none",
        freq: int = 1,
        calls_per_step: int = 0,
    ):
        super().__init__(dim, rho, eps, freq, calls_per_step)
        require("alpha", alpha, alpha > 0, "a positive number")
        scales = {"none": None, "frobenius": torch.linalg.matrix_norm, "spectral": self._largest_eigenvalue}
        require("normalize", normalize, normalize in scales, one_of(scales))
        self.alpha, self._scale = alpha, scales[normalize]
        if normalize == "spectral":
            start = nn.functional.normalize(torch.arange(dim).float().cos(), dim=0)  # no structure, so
            self.register_buffer("top", start)  # (D,) that no F has it orthogonal to its leading eigenvector

    @torch.no_grad()
    def set_weight(self) -> None:
        F = at_least_float32(self.F)
        if self._scale is not None:
            F = F / self._scale(F).clamp(min=torch.finfo(F.dtype).tiny)
        self.weight.copy_(self._power(F)).diagonal().add_(self.eps)

    def _power(self, F: Tensor) -> Tensor:
        if self.alpha == int(self.alpha):
            return torch.linalg.matrix_power(F, int(self.alpha))
        s, U = self.eigh(F)
        return (U * s.pow(self.alpha)) @ U.T

    def _largest_eigenvalue(self, F: Tensor, squarings: int = 8, turns: int = 4) -> Tensor:
        """Power iteration that goes on from the last step's vector.

        Eigenvalues that training brings close together take it a thousand turns. So a turn here is
        one with F^256, which costs eight products.
        """
        power, top, tiny = F, self.top.to(F), torch.finfo(F.dtype).tiny
        for _ in range(squarings):
            power = power / torch.linalg.matrix_norm(power).clamp(min=tiny)
            power = power @ power
        for _ in range(turns):
            turned = power @ top  # (D,)
            norm = turned.norm()
            top = torch.where(norm > 0, turned / norm, top)  # F may be zero at the start
        self.top.copy_(top)
        return top @ F @ top


class DirectCopy(DirectSet):
    """W_p = F + eps I: DirectSet(1), the paper's method. No eigendecomposition.

    Wang et al. 2021 (arXiv 2110.04947), section 5.

    >>> predictor = DirectCopy(dim=2, eps=0.3)
    >>> predictor.update(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))  # F = diag(2, 1/2)
    >>> predictor.weight
    tensor([[2.3000, 0.0000],
            [0.0000, 0.8000]])
    """

    def __init__(
        self,
        dim: int,
        rho: float = 0.3,
        eps: float = 0.3,
        normalize: str = "none",
        freq: int = 1,
        calls_per_step: int = 0,
    ):
        super().__init__(dim, 1, rho, eps, normalize, freq, calls_per_step)


class LinearPredictor(Predictor):
    """p = W_p z (+ b), learned by the optimizer (Tian et al. 2021, section 2).

    Args:
        symmetric: replace W_p by (W_p + W_p^T) / 2 at every step (their Tables 3 and 5).
    """

    def __init__(self, dim: int, bias: bool = False, symmetric: bool = False, rho: float = 0.3):
        super().__init__(dim, rho)
        self.linear = nn.Linear(dim, dim, bias=bias)
        self.symmetric = symmetric

    @property
    def weight(self) -> Tensor:
        return self.linear.weight

    @torch.no_grad()
    def set_weight(self) -> None:
        if self.symmetric:
            self.weight.copy_((self.weight + self.weight.T) / 2)

    def forward(self, z: Tensor) -> Tensor:
        return self.linear(z)


class MLPPredictor(Predictor):
    """BYOL's predictor: linear, BatchNorm, ReLU, linear (Grill et al. 2020, arXiv 2006.07733).

    SimSiam's has a bottleneck, hidden = dim / 4 (Chen and He 2021, arXiv 2011.10566, section 4.2).
    """

    def __init__(self, dim: int, hidden: int = 512, rho: float = 0.3):
        super().__init__(dim, rho)
        self.layers = nn.Sequential(
            nn.Linear(dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim)
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


class IdentityPredictor(Predictor):
    """p = z: no predictor. Training collapses; it is here to be seen to (theory, claim 6)."""

    def __init__(self, dim: int, rho: float = 0.3):
        super().__init__(dim, rho)

    def forward(self, z: Tensor) -> Tensor:
        return z


def build_predictor(config: TrainConfig) -> Predictor:
    """The predictor of a run."""
    c, dim = config, config.projection_dim
    builders = {
        "directcopy": lambda: DirectCopy(dim, c.rho, c.eps, c.normalize, c.freq),
        "directpred": lambda: DirectPred(dim, c.rho, c.eps, c.freq),
        "directset": lambda: DirectSet(dim, c.alpha, c.rho, c.eps, c.normalize, c.freq),
        "linear": lambda: LinearPredictor(dim, c.predictor_bias, c.predictor_symmetric, c.rho),
        "mlp": lambda: MLPPredictor(dim, c.hidden_dim, c.rho),
        "simsiam": lambda: MLPPredictor(dim, max(1, dim // 4), c.rho),
        "none": lambda: IdentityPredictor(dim, c.rho),
    }
    return builders[config.method]()
