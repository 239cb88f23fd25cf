"""The same flow through several linear layers: of the network, of one feature, and its threshold."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import require
from ..predictors.running import is_whole
from .closed_forms import Number, check
from .flow import copied, correlation, descent, set_predictor


def deep(
    state: Tensor,
    auto: Tensor,
    cross: Tensor,
    eta: Tensor | float,
    depth: int,
    alpha: float = 1.0,
    convention: str = "views",
) -> Tensor:
    """Velocity of a linear network W = W_L ... W_1 of square layers under DirectSet(alpha).

    dW_i/dt = (W_L ... W_{i+1})ᵀ G (W_{i-1} ... W_1)ᵀ - eta W_i with G the descent direction of W.

    Args:
        state: (*grid, d, L d) = [W_1, ..., W_L].
        auto: (*grid, d, d), X + X'.
        cross: (*grid, d, d), X.
        eta: weight decay of every layer.
        depth: L.
        alpha: power of F.
        convention: whose correlation F is.

    Returns:
        Velocity, shaped as `state`.

    >>> from dcopy.theory import directset
    >>> I = torch.eye(2, dtype=torch.float64)
    >>> torch.equal(deep(I, 2 * I, I, 0.1, depth=1), directset(I, 2 * I, I, 0.1))
    True
    """
    _check_depth(depth)
    layers = state.chunk(depth, dim=-1)
    identity = torch.eye(auto.shape[-1], dtype=state.dtype, device=state.device).expand_as(layers[0])
    below = [identity]  # below[i] = W_i ... W_1
    for layer in layers:
        below.append(layer @ below[-1])
    W = below[-1]
    W_p = set_predictor(correlation(W, copied(auto, cross, convention)), alpha)
    G, above, velocity = descent(W, W, W_p, auto, cross), identity, []
    for i in reversed(range(depth)):
        velocity.insert(0, above.mT @ G @ below[i].mT - eta * layers[i])
        above = above @ layers[i]
    return torch.cat(velocity, dim=-1)


def deep_feature(
    w: Tensor, variance: Tensor | float, eta: Tensor | float, depth: int, convention: str = "views"
) -> Tensor:
    """The flow of one feature in `deep` with balanced layers, each of weight w, under DirectCopy.

    dw/dt = w (w^(2L-2) (q - c q²) - eta) with λ = w^L and q = s λ²; s = c = 1 + σ², or 1.

    Args:
        w: weight of every layer.
        variance: σ²; broadcasts against w.
        eta: weight decay of every layer.
        depth: L.
        convention: "views" (s = 1 + σ²) or "data" (s = 1).

    Returns:
        Velocity, shaped as `w`.

    >>> from dcopy.theory import feature
    >>> w = torch.tensor([0.9], dtype=torch.float64)
    >>> torch.equal(deep_feature(w, 1.0, 0.1, depth=1), feature(w, 1.0, 0.1))
    True
    """
    _check_depth(depth)
    c = 1 + variance
    q = copied(c, 1.0, convention) * w.pow(2 * depth)
    return w * (w.pow(2 * depth - 2) * (q - c * q.square()) - eta)


def _check_depth(depth: int) -> None:  # of the fields, which are called at every stage of a step
    require("depth", depth, is_whole(depth, 1), "an integer of at least 1")


def depth_threshold(variance: Number, depth: int, alpha: Number = 1.0, convention: str = "views") -> Tensor:
    """Largest weight decay per layer that a feature survives in a balanced linear network of `depth`.

    With m = (L - 1)/L and s' = m/alpha: eta* = s^-m c^-(1+s') ((1+s')/(2+s'))^(1+s') / (2+s'), which
    is 1/(4c) at L = 1. The power of c grows with depth: a deeper network separates features by
    variance more sharply, in the paper's convention (s = 1) less so. Not in the paper.

    Args:
        variance: σ².
        depth: L, number of layers.
        alpha: power of F.
        convention: whose correlation F is.

    Returns:
        eta*, broadcast shape.

    >>> depth_threshold(1.0, depth=1).item()
    0.125
    """
    check(variance=variance, alpha=alpha, depth=depth)
    variance, alpha = (torch.as_tensor(v, dtype=torch.float64) for v in (variance, alpha))
    c, m = 1 + variance, (depth - 1) / depth
    power = 1 + m / alpha
    height = (power / (1 + power)) ** power / (1 + power)  # of u^power (1 - u) at its maximum
    return height * c**-power * copied(c, torch.ones_like(c), convention) ** -m
