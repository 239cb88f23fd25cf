"""How fast the flow gets there, in formulas; letters and conventions are those of `closed_forms`."""

from __future__ import annotations

from torch import Tensor

from .closed_forms import Number, check, fixed_points, tensors


def edge_time(start: Number, end: Number, variance: Number, alpha: Number = 1.0) -> Tensor:
    """Time in which q falls from `start` to `end` on the threshold, eta = 1/(4c), where q+ = q- = 1/(2c).

    The integral of dq / (2 alpha c q (q - q+)²): late, q - q+ falls as 1/(alpha t), not exponentially.

    Args:
        start, end: eigenvalues of W_p with start > end > q+.
        variance: σ².
        alpha: power of F.

    Returns:
        The time, broadcast shape.

    >>> round((edge_time(1.0, 0.5001, 0.0) * 0.0001).item(), 2)
    1.0
    """
    start, end, variance, alpha = tensors(start, end, variance, alpha)
    c = 1 + variance
    a = 1 / (2 * c)

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
        beta: rate of the EMA, 1/time; infinity is no EMA.

    Returns:
        mu, 1/time, broadcast shape.

    >>> import torch
    >>> fast, slow = ema_rate(0.21, 0.0, 1.0, torch.tensor([1e9, 0.1]))
    >>> round(fast.item(), 4), round(slow.item(), 4)
    (0.56, 0.0425)
    """
    check(eta, variance, alpha)
    variance, alpha, beta = tensors(variance, alpha, beta)
    q = fixed_points(eta, variance)[1]
    R = 2 * alpha * q * (2 * (1 + variance) * q - 1)
    total = q + R + beta
    return 2 * beta * R / (total + (total.square() - 4 * beta * R).sqrt())
