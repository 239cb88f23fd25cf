"""Has training collapsed? Measures that need no label, and a verdict.

The loss does not say: it is lowest when every image has the same projection. Works on the projections of
any trainer: `verdict_of(z)`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from . import checkpoint

# Below the first limit a run is collapsed, below the second partially so. Set by what probes found with
# labels afterwards, and held to that by a test: `report.health_limits`.
STD_LIMITS = (0.15, 0.6)  # of the normalized projections, in units of 1/sqrt(D)
RANK_LIMITS = (1.25, 3.0)  # effective rank of F


def projection_std(z: Tensor) -> float:
    """Standard deviation of the l2-normalized projections, mean over dimensions, times sqrt(D).

    1 where they spread evenly over the sphere, 0 where all are the same point
    (Chen and He 2021, arXiv 2011.10566, section 4.1). A projector that ends with BatchNorm, as SimSiam's,
    keeps it near 1; there the rank alone tells.

    Args:
        z: (N, D) projections of one view.
    """
    _, D = z.shape
    z = torch.nn.functional.normalize(z.detach().float(), dim=1)
    return (z.std(dim=0).mean() * D**0.5).item()


def spectrum(F: Tensor) -> Tensor:
    """Eigenvalues (D,) of a correlation matrix, descending, clipped at 0, in float64 on the CPU."""
    F = F.detach().cpu().double()
    return torch.linalg.eigvalsh((F + F.T) / 2).flip(0).clamp(min=0)


def effective_rank(eigenvalues: Tensor) -> float:
    """exp of the entropy of the eigenvalues scaled to sum 1, between 1 and D (Roy and Vetterli 2007).

    >>> round(effective_rank(torch.tensor([1.0, 1.0, 0.0])), 6)
    2.0
    """
    p = eigenvalues / eigenvalues.sum().clamp(min=torch.finfo(eigenvalues.dtype).tiny)
    return torch.special.entr(p).sum().exp().item()


def verdict(std: float, rank: float, std_limits=STD_LIMITS, rank_limits=RANK_LIMITS) -> str:
    """healthy, partial collapse or collapsed, from `projection_std` and `effective_rank`."""
    for name, std_limit, rank_limit in zip(
        ("collapsed", "partial collapse"), std_limits, rank_limits, strict=True
    ):
        if not (std >= std_limit and rank >= rank_limit):  # nor is NaN healthy
            return name
    return "healthy"


def judged(record: dict) -> dict:
    """A record of `measure` with the verdict that today's limits give it, whatever was written then."""
    return record | {"verdict": verdict(record["projection_std"], record["effective_rank"])}


def measure(z: Tensor, F: Tensor | None = None) -> dict:
    """All of the above for one epoch's record; the spectrum with five digits.

    Args:
        z: (N, D) projections of one view, of at least two images. Take a hundred: N of them have a rank of
            at most N.
        F: (D, D) running correlation of the projections; default: that of z alone.

    Raises:
        ValueError: z has another shape, or is not finite.
    """
    z = torch.as_tensor(z)
    if z.ndim != 2 or len(z) < 2:
        raise ValueError(f"z has shape {tuple(z.shape)}; it must be (N, D) with N at least 2")
    z = z.detach().float()
    if not z.isfinite().all():
        raise ValueError(f"of {z.numel()} numbers in z, {(~z.isfinite()).sum()} are not finite")
    eigenvalues = spectrum(z.T @ z / len(z) if F is None else F)
    record = {"projection_std": projection_std(z), "effective_rank": effective_rank(eigenvalues)}
    digits = [float(f"{value:.5g}") for value in eigenvalues.tolist()]
    return judged(record) | {"spectrum": digits}


def verdict_of(z: Tensor) -> str:
    """healthy, partial collapse or collapsed, from projections (N, D) of one view and nothing else.

    >>> z = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
    >>> verdict_of(z), verdict_of(z[:1] + 0.1 * z)  # spread out, and close to one point
    ('healthy', 'collapsed')
    """
    return measure(z)["verdict"]


def alignment(folder: str | Path) -> float | None:
    """How well W_p and F of a finished run share eigenvectors: ||diag(U^T W_p U)|| / ||W_p||.

    U are the eigenvectors of F; 1 is full alignment (Tian et al. 2021, arXiv 2102.06810, section 3).

    Args:
        folder: of the run.

    Returns:
        A number in [0, 1], or None where the predictor is no matrix.

    Raises:
        ValueError: the checkpoint is not complete.
    """
    path = Path(folder) / checkpoint.NEWEST
    tensors, _ = checkpoint.read(path)
    names = ("predictor.weight", "predictor.linear.weight")
    weight = next((tensors[name].double() for name in names if name in tensors), None)
    if weight is None:
        return None
    with checkpoint.complete(path):
        _, U = torch.linalg.eigh(tensors["predictor.F"].double())
        return ((U.T @ weight @ U).diagonal().norm() / weight.norm()).item()
