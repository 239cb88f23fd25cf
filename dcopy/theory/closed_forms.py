"""What the flow does, in formulas: fixed points, thresholds, limits, basins, rates.

Letters: x `signal` (variance of a feature over the data, 1 in the paper), σ² `variance` (its
variance under augmentation), c = x + σ², q the feature's eigenvalue of W_p, λ its weight. All
arguments are numbers or tensors that broadcast; results are float64 tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

Number = Tensor | float


def _tensors(*values: Number) -> list[Tensor]:
    return [torch.as_tensor(v, dtype=torch.float64) for v in values]


def check(
    eta: Number = 0.0, variance: Number = 0.0, alpha: Number = 1.0, eps: Number = 0.0, delta: Number = 1.0
) -> None:
    """Refuse parameters outside the model, saying what would go wrong.

    Args:
        eta: weight decay, at least 0.
        variance: σ², at least 0.
        alpha: power of F, positive.
        eps: regularizer, at least 0.
        delta: start W(0) = delta I, positive.

    Raises:
        ValueError: a value is outside its range.

    >>> check(variance=-1.0)
    Traceback (most recent call last):
    ValueError: variance=-1.0 is not allowed: X' = diag(variance) has to be positive semi-definite
    """
    rules = (  # name, value, allowed, what would happen
        ("eta", eta, lambda v: v >= 0, "weight decay is at least 0: below it the weights grow without bound"),
        ("variance", variance, lambda v: v >= 0, "X' = diag(variance) has to be positive semi-definite"),
        (
            "alpha",
            alpha,
            lambda v: v > 0,
            "DirectSet needs alpha > 0: at 0 there is no predictor, and W collapses",
        ),
        ("eps", eps, lambda v: v >= 0, "eps is at least 0: below it the predictor flips the small features"),
        (
            "delta",
            delta,
            lambda v: v > 0,
            "the start is positive: W(0) = 0 is a fixed point, nothing is learned",
        ),
    )
    for name, value, allowed, why in rules:
        (value,) = _tensors(value)
        if not allowed(value).all():  # NaN is refused too
            raise ValueError(f"{name}={value[~allowed(value)].flatten()[0].item()} is not allowed: {why}")


def threshold(variance: Number, signal: Number = 1.0, tau: Number = 1.0) -> Tensor:
    """Largest weight decay that a feature survives: eta* = (tau x)² / (4 (x + σ²)).

    With x = tau = 1 this is the paper's 1 / (4 (1 + σ²)).

    Args:
        variance: σ².
        signal: x.
        tau: scale of the target, W_a = tau W.

    Returns:
        eta*, broadcast shape.

    >>> threshold(torch.tensor([0.0, 1.0])).tolist()
    [0.25, 0.125]
    """
    check(variance=variance)
    variance, signal, tau = _tensors(variance, signal, tau)
    return (tau * signal) ** 2 / (4 * (signal + variance))


def fixed_points(
    eta: Number, variance: Number, signal: Number = 1.0, tau: Number = 1.0
) -> tuple[Tensor, Tensor]:
    """Roots of c q² - tau x q + eta = 0: q- (unstable) and q+ (stable); NaN above the threshold.

    Args:
        eta: weight decay.
        variance: σ².
        signal: x.
        tau: scale of the target.

    Returns:
        q- and q+, broadcast shape.

    >>> [round(q.item(), 4) for q in fixed_points(0.21, 0.0)]
    [0.3, 0.7]
    """
    check(eta=eta, variance=variance)
    eta, variance, signal, tau = _tensors(eta, variance, signal, tau)
    c, b = signal + variance, tau * signal
    root = (b.square() - 4 * eta * c).sqrt()  # NaN above the threshold
    q_plus = (b + root) / (2 * c)
    return eta / (c * q_plus), q_plus  # the product of the roots is eta / c; no cancellation in q-


def weight(
    q: Number, variance: Number, alpha: Number = 1.0, eps: Number = 0.0, signal: Number = 1.0
) -> Tensor:
    """The weight whose predictor eigenvalue is q: λ = sqrt((q - eps)^(1/alpha) / c), 0 where q < eps.

    Args:
        q: eigenvalue of W_p.
        variance: σ².
        alpha: power of F.
        eps: regularizer.
        signal: x.

    Returns:
        λ, broadcast shape.

    >>> weight(0.5, variance=1.0).item()
    0.5
    """
    q, variance, alpha, eps, signal = _tensors(q, variance, alpha, eps, signal)
    return ((q - eps).clamp(min=0) ** (1 / alpha) / (signal + variance)).sqrt()


def critical_start(
    eta: Number,
    variance: Number,
    alpha: Number = 1.0,
    eps: Number = 0.0,
    signal: Number = 1.0,
    tau: Number = 1.0,
) -> Tensor:
    """Edge of the basin of collapse: starts below this weight go to 0, starts above survive.

    0 where eps > q- (the origin is unstable); infinity above the threshold and where eps >= q+.

    Args:
        eta: weight decay.
        variance: σ².
        alpha: power of F.
        eps: regularizer.
        signal: x.
        tau: scale of the target.

    Returns:
        Critical delta, broadcast shape.

    >>> round(critical_start(0.21, 0.0).item() ** 2, 4)
    0.3
    """
    check(alpha=alpha, eps=eps)
    q_minus, q_plus = fixed_points(eta, variance, signal, tau)
    (eps,) = _tensors(eps)
    edge = weight(q_minus, variance, alpha, eps, signal)
    hopeless = q_plus.isnan() | (eps >= q_plus)
    return torch.where(hopeless, torch.inf, edge)


def final_weight(
    delta: Number,
    eta: Number,
    variance: Number,
    alpha: Number = 1.0,
    eps: Number = 0.0,
    signal: Number = 1.0,
    tau: Number = 1.0,
) -> Tensor:
    """Limit of a feature's weight from λ(0) = delta: the weight at q+, or 0 if it collapses.

    Args:
        delta: start.
        eta: weight decay.
        variance: σ².
        alpha: power of F.
        eps: regularizer.
        signal: x.
        tau: scale of the target.

    Returns:
        λ(∞), broadcast shape.

    >>> final_weight([0.1, 0.6], eta=0.21, variance=0.0).square().round(decimals=9).tolist()
    [0.0, 0.7]
    """
    check(delta=delta)
    (delta,) = _tensors(delta)
    survives = delta > critical_start(eta, variance, alpha, eps, signal, tau)
    q_plus = fixed_points(eta, variance, signal, tau)[1]
    return torch.where(survives, weight(q_plus, variance, alpha, eps, signal), 0.0)


def theorem_1(eta: float, variance: float, alpha: float = 1.0, delta: float = 1.0) -> float:
    """The paper's Theorem 1: W → ((1 + sqrt(1 - 4 eta)) / 2)^(1 / (2 alpha)) P_S; returns that factor.

    Args:
        eta: weight decay, inside 1 / (4 (1 + variance)) < eta < 1/4.
        variance: σ² of the nuisance features; the features of S have none.
        alpha: power of F.
        delta: start W(0) = delta I, above ((1 - sqrt(1 - 4 eta)) / 2)^(1 / (2 alpha)).

    Returns:
        The factor in front of P_S.

    Raises:
        ValueError: a condition fails; the message says which, and what happens instead.

    >>> round(theorem_1(eta=0.21, variance=1.0), 6)
    0.83666
    >>> theorem_1(eta=0.1, variance=1.0)
    Traceback (most recent call last):
    ValueError: eta=0.1 is not above 1/(4(1+variance))=0.125, a condition of Theorem 1: nuisance ...
    """
    check(eta, variance, alpha, delta=delta)
    low = threshold(variance).item()
    if eta >= 0.25:
        raise ValueError(f"eta={eta} is not below 1/4, a condition of Theorem 1: every feature decays to 0")
    if eta <= low:
        raise ValueError(
            f"eta={eta} is not above 1/(4(1+variance))={low:.6g}, a condition of Theorem 1: "
            "nuisance features survive too"
        )
    edge = critical_start(eta, 0.0, alpha).item()
    if delta <= edge:
        raise ValueError(f"delta={delta} is not above {edge:.6g}, a condition of Theorem 1: W collapses to 0")
    return final_weight(delta, eta, 0.0, alpha).item()


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

    >>> fast, slow = ema_rate(0.21, 0.0, 1.0, torch.tensor([1e9, 0.1]))
    >>> round(fast.item(), 4), round(slow.item(), 4)
    (0.56, 0.0425)
    """
    check(eta, variance, alpha)
    variance, alpha, beta = _tensors(variance, alpha, beta)
    q = fixed_points(eta, variance)[1]
    R = 2 * alpha * q * (2 * (1 + variance) * q - 1)
    total = q + R + beta
    return 2 * beta * R / (total + (total.square() - 4 * beta * R).sqrt())


def depth_threshold(variance: Number, depth: int, alpha: Number = 1.0) -> Tensor:
    """Largest weight decay per layer that a feature survives in a balanced linear network of `depth`.

    With m = (L - 1)/L and s = m/alpha: eta* = c^-(1+m+s) ((1+s)/(2+s))^(1+s) / (2+s), which is
    1/(4c) at L = 1. The power of c grows with depth: a deeper network separates features by
    variance more sharply. Not in the paper.

    Args:
        variance: σ².
        depth: L, number of layers.
        alpha: power of F.

    Returns:
        eta*, broadcast shape.

    >>> depth_threshold(1.0, depth=1).item()
    0.125
    """
    check(variance=variance, alpha=alpha)
    variance, alpha = _tensors(variance, alpha)
    m = (depth - 1) / depth
    s = m / alpha
    return (1 + variance) ** -(1 + m + s) * ((1 + s) / (2 + s)) ** (1 + s) / (2 + s)
