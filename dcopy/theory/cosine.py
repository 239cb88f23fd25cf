"""The flow with the loss that networks are trained with, the cosine instead of the quadratic one.

L = -E[<p, z>] / sqrt(E|p|² E|z|²), p = W_p W x1 and z = sg(W_a x2): the cosine with the norms at their
expectations. That is what E[cos(p, z)] tends to in many dimensions, where norms concentrate; what is
left at finite d is of relative order 1/d and measured in `claims_cosine`. Bao 2023 (arXiv 2309.16109)
takes the same limit for a learned predictor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .closed_forms import Number, check
from .flow import copied


def _trace(A: Tensor, B: Tensor) -> Tensor:
    return (A * B).sum((-1, -2), keepdim=True)  # tr(A Bᵀ), (*grid, 1, 1)


def cosine_descent(
    W: Tensor, W_a: Tensor, W_p: Tensor, auto: Tensor, cross: Tensor, stop_gradient: bool = True
) -> Tensor:
    """Minus the gradient in W of the cosine loss, without weight decay; takes the place of `flow.descent`.

    W_pᵀ (W_a X / (|p| |z|) - C W_p W (X + X') / |p|²) with |p|² = E|p|², |z|² = E|z|² and C the cosine.
    It is orthogonal to W, as the loss does not see the norm of W.

    Args: as `flow.descent`.

    Returns:
        (*grid, k, d).

    >>> I = torch.eye(2)
    >>> cosine_descent(I, I, I, I, I).abs().max().item()  # p = z: nothing to gain
    0.0
    """
    P, V = W_p @ W, W_p @ W @ auto
    p2, z2 = _trace(P, V), _trace(W_a, W_a @ auto)  # E|p|², E|z|²
    norms = (p2 * z2).sqrt()
    C = _trace(P @ cross, W_a) / norms
    step = W_p.mT @ (W_a @ cross / norms - C * V / p2)
    return step if stop_gradient else step + P @ cross / norms - C * W_a @ auto / z2


def cosine_shares(variance: Number, alpha: float = 1.0, convention: str = "views") -> Tensor:
    """Where the cosine flow rests without eps: weights λ_j / |λ|, the same for every weight decay and start.

    Every feature is kept, at q_j in proportion to 1/(1 + σ_j²), as without weight decay. Not in the paper.

    Args:
        variance: (d,), σ² of each feature.
        alpha: power of F.
        convention: whose correlation F is.

    Returns:
        (d,), of norm 1.

    >>> cosine_shares(torch.tensor([0.0, 1.0])).square().round(decimals=9).tolist()
    [0.8, 0.2]
    """
    check(variance=variance, alpha=alpha)
    c = 1 + torch.as_tensor(variance, dtype=torch.float64)
    lam = (c ** (-1 / alpha) / copied(c, torch.ones_like(c), convention)).sqrt()
    return lam / lam.norm()
