"""Has training collapsed? Measures that need no label, and a verdict.

The loss does not say: it is lowest when every image has the same projection.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from . import checkpoint

# Below the first limit a run is collapsed, below the second partially so.
STD_LIMITS = (0.1, 0.5)  # of the normalized projections, in units of 1/sqrt(D)
RANK_LIMITS = (1.5, 3.0)  # effective rank of F


def projection_std(z: Tensor) -> float:
    """Standard deviation of the l2-normalized projections, mean over dimensions, times sqrt(D).

    1 where they spread evenly over the sphere, 0 where all are the same point
    (Chen and He 2021, arXiv 2011.10566, section 4.1).

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


def verdict(std: float, rank: float) -> str:
    """healthy, partial collapse or collapsed, from `projection_std` and `effective_rank`."""
    for name, std_limit, rank_limit in zip(
        ("collapsed", "partial collapse"), STD_LIMITS, RANK_LIMITS, strict=True
    ):
        if not (std >= std_limit and rank >= rank_limit):  # nor is NaN healthy
            return name
    return "healthy"


def measure(z: Tensor, F: Tensor) -> dict:
    """All of the above for one epoch's record; the spectrum with five digits."""
    eigenvalues = spectrum(F)
    std, rank = projection_std(z), effective_rank(eigenvalues)
    return {
        "projection_std": std,
        "effective_rank": rank,
        "verdict": verdict(std, rank),
        "spectrum": [float(f"{value:.5g}") for value in eigenvalues.tolist()],
    }


def alignment(folder: str | Path) -> float | None:
    """How well W_p and F of a finished run share eigenvectors: ||diag(U^T W_p U)|| / ||W_p||.

    U are the eigenvectors of F; 1 is full alignment (Tian et al. 2021, arXiv 2102.06810, section 3).

    Args:
        folder: of the run.

    Returns:
        A number in [0, 1], or None where the predictor is no matrix.
    """
    tensors, _ = checkpoint.read(Path(folder) / checkpoint.NEWEST)
    names = ("predictor.weight", "predictor.linear.weight")
    weight = next((tensors[name].double() for name in names if name in tensors), None)
    if weight is None:
        return None
    _, U = torch.linalg.eigh(tensors["predictor.F"].double())
    return ((U.T @ weight @ U).diagonal().norm() / weight.norm()).item()
