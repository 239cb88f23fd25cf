"""Predictors that are set from F: DirectCopy, DirectPred and DirectSet."""

from __future__ import annotations

import logging
import warnings

import torch
from torch import Tensor, nn

from ..config import one_of, require
from .running import Predictor, at_least_float32, is_finite, is_whole

log = logging.getLogger(__name__)

NEVER_SET = (
    "{}'s W_p is still the identity, so it predicts like no predictor at all; call update(z) before "
    "forward(z), or build it with calls_per_step"
)


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

    Blocks that `torch.utils.checkpoint` computes twice move F twice, as they do BatchNorm's statistics; keep
    the predictor outside of them. In a process group F is averaged over the ranks (see `correlation`).
    """

    def __init__(self, dim: int, rho: float, eps: float, freq: int = 1, calls_per_step: int = 0):
        super().__init__(dim, rho, freq)
        require("eps", eps, is_finite(eps) and eps >= 0, "a number of at least 0")
        require("calls_per_step", calls_per_step, is_whole(calls_per_step, 0), "an integer of at least 0")
        self.eps, self.calls_per_step = eps, calls_per_step
        self.eigh_fallbacks = 0  # decompositions that the GPU could not do
        if freq == 1:
            self.register_buffer("weight", torch.eye(dim))
        else:
            self.weight = nn.Parameter(torch.eye(dim))

    def forward(self, z: Tensor) -> Tensor:
        """(N, D) -> (N, D), in float32 or better. The gradient flows to z and, with freq > 1, to W_p."""
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

    Tian et al. 2021 (arXiv 2102.06810); scaling and eps as in
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

    Wang et al. 2021 (arXiv 2110.04947). Public codes disagree on the scaling: none in
    `facebookresearch/luckmatters:ssl/real-dataset/byol_trainer.py`, Frobenius norm in
    `miszkur/SelfSupervisedLearning:models/mlp_head.py`, largest eigenvalue in
    `fmi-basel/implicit-var-reg:solo/methods/directpred.py`. Here it is an argument.
    A whole alpha takes matrix products only; others need an eigendecomposition.

    Args:
        dim: D, the dimension of the projections.
        alpha: the power, above 0.
        rho: how much of the old F stays at each step, in [0, 1).
        eps: added to every eigenvalue, at least 0.
        normalize: "none", "frobenius" (F / ||F||_F) or "spectral" (F / largest eigenvalue, whose search takes
            eight products of D x D matrices: about as long as the decomposition that DirectCopy avoids).
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
        require("alpha", alpha, is_finite(alpha) and alpha > 0, "a positive number")
        scales = {"none": None, "frobenius": torch.linalg.matrix_norm, "spectral": self._largest_eigenvalue}
        require("normalize", normalize, normalize in list(scales), one_of(scales))
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

    Wang et al. 2021 (arXiv 2110.04947).

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
