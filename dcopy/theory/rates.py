"""How fast the flow gets there, in formulas; letters and conventions are those of `closed_forms`."""

from __future__ import annotations

import torch
from torch import Tensor

from .closed_forms import Number, check, fixed_points, tensors


def edge_time(start: Number, end: Number, variance: Number, alpha: Number = 1.0) -> Tensor:
    """Time in which q falls from `start` to `end` on the threshold, eta = 1/(4c), where q+ = q- = 1/(2c).

    The integral of dq / (2 alpha c q (q - q+)²): late, q - q+ falls as 1/(alpha t), not exponentially.

    Args:
        start, end: eigenvalues of W_p with start > end > q+, finite.
        variance: σ².
        alpha: power of F.

    Returns:
        The time, broadcast shape.

    Raises:
        ValueError: q never falls from `start` to `end`, or a parameter is outside its range.

    >>> round((edge_time(1.0, 0.5001, 0.0) * 0.0001).item(), 2)
    1.0
    """
    check(variance=variance, alpha=alpha)
    start, end, variance, alpha = tensors(start, end, variance, alpha)
    c = 1 + variance
    a = 1 / (2 * c)
    good = (start > end) & (end > a) & start.isfinite()
    if not good.all():
        first, last, rest = (v[~good][0].item() for v in torch.broadcast_tensors(start, end, a))
        raise ValueError(
            f"start={first:g}, end={last:g} is not allowed: q falls towards q+ = {rest:g}, from a finite "
            "start to an end between the two"
        )

    def antiderivative(q):
        return (q / (q - a)).log() / a**2 - 1 / (a * (q - a))

    return (antiderivative(start) - antiderivative(end)) / (2 * alpha * c)


def ema_rate(eta: Number, variance: Number, alpha: Number, beta: Number) -> Tensor:
    """Slowest rate of approach to q+ with an EMA target; below the rate without EMA for every beta.

    With R = 2 alpha q+ (2 c q+ - 1), the rate without EMA, it is the smaller root of
    mu² - (q+ + R + beta) mu + beta R = 0.

    Args:
        eta: weight decay.
        variance: σ².
        alpha: power of F.
        beta: rate of the EMA, 1/time, at least 0; infinity is no EMA.

    Returns:
        mu, 1/time, broadcast shape; NaN above the threshold, where there is no q+.

    >>> fast, slow = ema_rate(0.21, 0.0, 1.0, torch.tensor([1e9, 0.1]))
    >>> round(fast.item(), 4), round(slow.item(), 4)
    (0.56, 0.0425)
    """
    check(eta=eta, variance=variance, alpha=alpha, beta=beta)
    variance, alpha, beta = tensors(variance, alpha, beta)
    q = fixed_points(eta, variance)[1]
    R = 2 * alpha * q * (2 * (1 + variance) * q - 1)
    total = q + R + beta
    with_ema = 2 * beta * R / (total + (total.square() - 4 * beta * R).sqrt())
    return torch.where(beta.isinf(), R, with_ema)
