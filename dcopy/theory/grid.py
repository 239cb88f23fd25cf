"""What the experiments share: grids of cells, both conventions side by side, random bases."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .flow import CONVENTIONS, feature
from .solver import limit

ALPHAS = (0.5, 1.0, 2.0)  # DirectPred's power, DirectCopy's, and one beyond


def axes(*values, device="cpu") -> list[Tensor]:
    """Axes of a grid as tensors that broadcast: the first varies slowest."""
    tensors = [torch.as_tensor(v, dtype=torch.float64, device=device) for v in values]
    return list(torch.meshgrid(*tensors, indexing="ij"))


def cell_centres(low: float, high: float, n: int) -> Tensor:
    """Centres of n equal cells: no cell lies on a boundary that starts at a round number."""
    return low + (high - low) * (torch.arange(n, dtype=torch.float64) + 0.5) / n


def both(measure: Callable[[str], Tensor]) -> Tensor:
    """What `measure` finds in each convention, stacked along a new first dimension."""
    return torch.stack([measure(convention) for convention in CONVENTIONS])


def resting_weights(delta, variance, eta, alpha, eps=0.0, convention: str = "views") -> Tensor:
    """Weights at which the flow of one feature rests, measured; the arguments broadcast."""
    args = (torch.as_tensor(a, dtype=torch.float64) for a in (delta, variance, eta, alpha, eps))
    args = torch.broadcast_tensors(*args)
    return limit(partial(feature, convention=convention), args[0], args[1:], state_dims=0)


def random_basis(d: int, seed: int = 0, device="cpu") -> Tensor:
    """Random orthonormal basis (d, d): the first r columns span S, the others B."""
    gaussian = torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(gaussian).Q.to(device)
