"""The gradient flow of a linear network trained without negatives, batched over a grid.

A state is the matrices that move, side by side: `[W]`, `[W, W_a]` with an EMA target, and with
the learned predictor behind them. Every function takes leading grid dimensions. W is (k, d):
k outputs, d features; W_a is (k, d); W_p and F are (k, k); auto and cross are (d, d).

A set predictor is a power of a correlation, and `convention` says of which one. "views": of the
projected views, W (X + X') Wᵀ, as the algorithm has it. "data": of the projected data without the
noise of augmentation, W X Wᵀ, as the theory of Wang et al. (arXiv 2110.04947) has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from ..config import require

CONVENTIONS = ("views", "data")

Moment = TypeVar("Moment", Tensor, float)


def copied(views: Moment, data: Moment, convention: str) -> Moment:
    """The moment that a set predictor copies: that of the views, or that of the data without noise.

    Args:
        views: X + X', or x + σ² of one feature.
        data: X, or x.
        convention: "views" (the algorithm) or "data" (the paper's theory).

    Returns:
        One of the two.

    Raises:
        ValueError: there is no such convention.

    >>> copied(2.0, 1.0, "data")
    1.0
    """
    if convention not in CONVENTIONS:
        raise ValueError(
            f"convention={convention!r} is not allowed; it must be views (the algorithm) or data (the paper)"
        )
    return views if convention == "views" else data


def moments(x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
    """Second moments that the flow needs, from samples: auto = E[x1 x1ᵀ] = X + X', cross = E[x2 x1ᵀ] = X.

    Both directions of the loss are averaged, as in training; the mean is not subtracted.

    Args:
        x1: (*grid, n, d), first views.
        x2: (*grid, n, d), second views of the same points.

    Returns:
        auto and cross, each (*grid, d, d) and symmetric.

    >>> auto, cross = moments(torch.eye(2), torch.eye(2))
    >>> auto.tolist() == cross.tolist() == [[0.5, 0.0], [0.0, 0.5]]
    True
    """
    n = x1.shape[-2]
    if n == 0:
        raise ValueError(f"x1 has shape {tuple(x1.shape)}: there is no sample to take moments of")
    auto = (x1.mT @ x1 + x2.mT @ x2) / (2 * n)  # (*grid, d, d)
    cross = x2.mT @ x1 / n
    return auto, (cross + cross.mT) / 2


def correlation(W: Tensor, auto: Tensor) -> Tensor:
    """Correlation of the projections, F = W (X + X') Wᵀ.

    Args:
        W: (*grid, k, d).
        auto: (*grid, d, d), X + X'.

    Returns:
        (*grid, k, k).

    >>> correlation(2 * torch.eye(2), torch.eye(2)).diagonal().tolist()
    [4.0, 4.0]
    """
    return W @ auto @ W.mT


def set_predictor(F: Tensor, alpha: float = 1.0, eps: Tensor | float = 0.0) -> Tensor:
    """DirectSet(alpha): W_p = F^alpha + eps I.

    alpha = 1 is DirectCopy, alpha = 1/2 is DirectPred, alpha = 0 is no predictor (W_p = I).
    Whole powers are products of F; only a fractional one costs an eigendecomposition.

    Args:
        F: (*grid, k, k), symmetric and positive semi-definite.
        alpha: power, at least 0.
        eps: added to every eigenvalue; a tensor broadcasts against F.

    Returns:
        (*grid, k, k).

    >>> set_predictor(torch.diag(torch.tensor([4.0, 9.0])), alpha=0.5, eps=0.1).diagonal().tolist()
    [2.0999999046325684, 3.0999999046325684]
    """
    require("alpha", alpha, 0 <= alpha < math.inf, "a number of at least 0")
    if float(alpha).is_integer():
        P = torch.linalg.matrix_power(F, int(alpha))
    else:
        s, U = torch.linalg.eigh((F + F.mT) / 2)
        P = (U * s.clamp(min=0).pow(alpha).unsqueeze(-2)) @ U.mT
    return P + eps * torch.eye(F.shape[-1], dtype=F.dtype, device=F.device)


def descent(
    W: Tensor, W_a: Tensor, W_p: Tensor, auto: Tensor, cross: Tensor, stop_gradient: bool = True
) -> Tensor:
    """Minus the gradient in W of ½ E‖W_p W x1 - W_a x2‖², without weight decay.

    W_pᵀ(W_a X - W_p W (X + X')), as Tian et al. 2021, Lemma 1. Without stop-gradient the target
    is W itself and is differentiated too, which adds W_p W X - W (X + X').

    Args:
        W: (*grid, k, d), online.
        W_a: (*grid, k, d), target.
        W_p: (*grid, k, k), predictor, a constant in this gradient.
        auto: (*grid, d, d), X + X'.
        cross: (*grid, d, d), X.
        stop_gradient: False lets the gradient through the target.

    Returns:
        (*grid, k, d).

    >>> I = torch.eye(2)
    >>> descent(I, I, I, 2 * I, I).diagonal().tolist()
    [-1.0, -1.0]
    """
    step = W_p.mT @ (W_a @ cross - W_p @ W @ auto)
    return step if stop_gradient else step + W_p @ W @ cross - W_a @ auto


def directset(
    state: Tensor,
    auto: Tensor,
    cross: Tensor,
    eta: Tensor | float = 0.0,
    eps: Tensor | float = 0.0,
    beta: Tensor | float | None = None,
    alpha: float = 1.0,
    stop_gradient: bool = True,
    convention: str = "views",
    pull: Callable[..., Tensor] = descent,
) -> Tensor:
    """Velocity of DirectSet(alpha): dW/dt = W_pᵀ(W_a X - W_p W (X + X')) - eta W, W_p = F^alpha + eps I.

    With `beta` the target follows, dW_a/dt = beta (W - W_a); without it W_a = W.

    Args:
        state: (*grid, k, d) = W, or (*grid, k, 2d) = [W, W_a] with `beta`.
        auto: (*grid, d, d), X + X'.
        cross: (*grid, d, d), X.
        eta: weight decay; a tensor broadcasts against W.
        eps: regularizer of the predictor.
        beta: rate of the EMA, 1/time; None for W_a = W.
        alpha: power of F; 0 is no predictor.
        stop_gradient: False differentiates the target too (then without `beta`).
        convention: whose correlation F is, see the top of the module.
        pull: `descent`, of the quadratic loss, or `cosine.cosine_descent`.

    Returns:
        Velocity, shaped as `state`.

    Source: Tian et al. 2021 (arXiv 2102.06810), Lemma 1; Wang et al. (arXiv 2110.04947), DirectSet.

    >>> I = torch.eye(2, dtype=torch.float64)
    >>> directset(I, 2 * I, I, eta=0.1).diagonal().tolist()  # q = 2: 2 - 2 * 4 - 0.1
    [-6.1, -6.1]
    """
    d = auto.shape[-1]
    W = state[..., :d]
    W_a = W if beta is None else state[..., d:]
    W_p = set_predictor(correlation(W, copied(auto, cross, convention)), alpha, eps)
    dW = pull(W, W_a, W_p, auto, cross, stop_gradient) - eta * W
    return dW if beta is None else torch.cat([dW, beta * (W - W_a)], dim=-1)


def learned(
    state: Tensor, auto: Tensor, cross: Tensor, eta: Tensor | float = 0.0, rate: float = 1.0
) -> Tensor:
    """Velocity with a linear predictor learned by the same gradient flow, state [W, W_p].

    dW_p/dt = rate (W X - W_p W (X + X')) Wᵀ - eta W_p (Tian et al. 2021, Lemma 1).

    Args:
        state: (*grid, k, d + k) = [W, W_p].
        auto: (*grid, d, d), X + X'.
        cross: (*grid, d, d), X.
        eta: weight decay of both matrices.
        rate: learning rate of the predictor over that of W.

    Returns:
        Velocity, shaped as `state`.

    >>> I = torch.eye(1, dtype=torch.float64)
    >>> learned(torch.cat([I, I], dim=-1), 2 * I, I, eta=0.1).tolist()
    [[-1.1, -1.1]]
    """
    d = auto.shape[-1]
    W, W_p = state[..., :d], state[..., d:]
    residual = W @ cross - W_p @ W @ auto  # (*grid, k, d)
    return torch.cat([W_p.mT @ residual - eta * W, rate * residual @ W.mT - eta * W_p], dim=-1)


def feature(
    lam: Tensor,
    variance: Tensor | float,
    eta: Tensor | float = 0.0,
    alpha: Tensor | float = 1.0,
    eps: Tensor | float = 0.0,
    signal: Tensor | float = 1.0,
    tau: Tensor | float = 1.0,
    convention: str = "views",
) -> Tensor:
    """The flow of one feature: dλ/dt = λ (-(x + σ²) q² + tau x q - eta), q = (s λ²)^alpha + eps.

    What `directset` becomes when W, X and X' share their eigenvectors; W_a = tau W. The predictor
    copies s = x + σ², or s = x in the paper's convention: there q = |λ|^(2 alpha) with x = 1.

    Args:
        lam: λ, the weights of the features; every argument broadcasts against it.
        variance: σ², variance under augmentation.
        eta: weight decay.
        alpha: power of F, positive.
        eps: regularizer of the predictor.
        signal: x, variance over the data (1 in the paper).
        tau: scale of the target.
        convention: "views" (s = x + σ²) or "data" (s = x).

    Returns:
        Velocity, shaped as `lam`.

    >>> feature(torch.tensor([1.0], dtype=torch.float64), variance=1.0, eta=0.1).tolist()
    [-6.1]
    """
    c = signal + variance
    q = (copied(c, signal, convention) * lam.square()) ** alpha + eps
    return lam * (tau * signal * q - c * q.square() - eta)
