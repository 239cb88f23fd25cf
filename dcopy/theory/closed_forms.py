"""What the flow does, in formulas: fixed points, thresholds, limits, basins; `rates` has how fast.

All arguments are numbers or tensors that broadcast; results are float64 tensors. Their letters:

    eta         η, weight decay, at least 0
    variance    σ², the feature's variance under augmentation, at least 0
    alpha       the power of the correlation in W_p, positive
    eps         ε, added to every eigenvalue of W_p, at least 0
    signal      x, the feature's variance over the data, 1 in the paper, at least 0; c = x + σ²
    tau         scale of the target, W_a = tau W, at least 0
    delta       the start, W(0) = delta I, positive
    convention  which correlation W_p copies, "views" or "data", see `flow`

λ is the feature's weight and q = (s λ²)^alpha + ε its eigenvalue of W_p, with s = c in the views'
convention and s = x in the data's, the paper's. In q both obey the same equation, so what is said
of q (fixed points, thresholds, rates) holds for both.

At an edge two formulas meet, and rounding would choose between them. So parameters closer to an edge
than a relative 1e-13 are on it: there q- and q+ are one half-stable point, which attracts from above.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .flow import copied

Number = Tensor | float

ROUNDING = 1e-13  # relative distance below which two numbers are the same


def tensors(*values: Number) -> list[Tensor]:
    """Each as float64."""
    return [torch.as_tensor(v, dtype=torch.float64) for v in values]


def _same(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs() < ROUNDING * torch.maximum(a.abs(), b.abs())  # infinity is not the same


def _counts(v: Tensor) -> Tensor:
    return (v >= 1) & (v % 1 == 0)


RULES = {  # letter: what is allowed, and what would go wrong
    "eta": (lambda v: v >= 0, "weight decay is at least 0: below it the weights grow without bound"),
    "variance": (lambda v: v >= 0, "X' = diag(variance) has to be positive semi-definite"),
    "alpha": (lambda v: v > 0, "DirectSet needs alpha > 0: at 0 there is no predictor, and W collapses"),
    "eps": (lambda v: v >= 0, "eps is at least 0: below it the predictor flips the small features"),
    "delta": (lambda v: v > 0, "the start is positive: W(0) = 0 is a fixed point, nothing is learned"),
    "signal": (lambda v: (v >= 0) & v.isfinite(), "X = diag(signal) has to be positive semi-definite"),
    "tau": (lambda v: (v >= 0) & v.isfinite(), "the target's scale is at least 0: below it all features die"),
    "rho": (lambda v: (v >= 0) & (v < 1), "it is a share of the old F, in [0, 1)"),
    "beta": (lambda v: v >= 0, "the target's rate is at least 0: below it the target runs away from W"),
    "batch": (_counts, "pairs are counted, from 1"),
    "pairs": (lambda v: v >= 1, "nothing is learned from fewer pairs than 1"),
    "freq": (_counts, "steps between two settings of W_p are counted, from 1"),
    "depth": (_counts, "layers are counted, from 1"),
    "dim": (_counts, "features are counted, from 1"),
    "noise": (lambda v: v >= 0, "a standard deviation is at least 0"),
    "missed": (lambda v: v >= 0, "|w*|² outside the span is at least 0"),
    "excess": (lambda v: v > 0, "the risk aimed at is positive: no number of labels brings it to 0"),
}


def check(**letters: Number) -> None:
    """Refuse parameters outside the model, saying what would go wrong.

    Args:
        letters: values by the names of RULES.

    Raises:
        ValueError: a value is outside its range.

    >>> check(eta=0.1, variance=-1.0)
    Traceback (most recent call last):
    ValueError: variance=-1.0 is not allowed: X' = diag(variance) has to be positive semi-definite
    """
    for name, value in letters.items():
        allowed, why = RULES[name]
        (value,) = tensors(value)
        good = allowed(value)
        if not good.all():  # NaN is refused too
            raise ValueError(f"{name}={value[~good].flatten()[0].item()} is not allowed: {why}")


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
    check(variance=variance, signal=signal, tau=tau)
    variance, signal, tau = tensors(variance, signal, tau)
    # A feature that is not in the data is not kept, though without noise this would be 0/0.
    return torch.where(signal > 0, (tau * signal) ** 2 / (4 * (signal + variance)), 0.0)


def fixed_points(
    eta: Number, variance: Number, signal: Number = 1.0, tau: Number = 1.0
) -> tuple[Tensor, Tensor]:
    """Roots of c q² - tau x q + eta = 0: q- (unstable) and q+ (stable).

    Args: see the top of the module.

    Returns:
        q- and q+, broadcast shape; NaN above the threshold, and one half-stable point on it.

    >>> [round(q.item(), 4) for q in fixed_points(0.21, 0.0)]
    [0.3, 0.7]
    >>> [q.item() for q in fixed_points(0.25, 0.0)]
    [0.5, 0.5]
    """
    check(eta=eta, variance=variance, signal=signal, tau=tau)
    eta, variance, signal, tau = tensors(eta, variance, signal, tau)
    c, b = signal + variance, tau * signal
    on_edge = _same(b.square(), 4 * eta * c)
    root = torch.where(on_edge, 0.0, b.square() - 4 * eta * c).sqrt()  # NaN above the threshold
    q_plus = (b + root) / (2 * c)
    q_minus = eta / (c * q_plus)  # the product of the roots is eta / c; no cancellation
    return torch.where(on_edge, q_plus, q_minus), q_plus


def weight(
    q: Number,
    variance: Number,
    alpha: Number = 1.0,
    eps: Number = 0.0,
    signal: Number = 1.0,
    convention: str = "views",
) -> Tensor:
    """The weight whose predictor eigenvalue is q: λ = sqrt((q - eps)^(1/alpha) / s), 0 where q <= eps.

    Args: q, an eigenvalue of W_p; the others see the top of the module.

    Returns:
        λ, broadcast shape.

    >>> weight(0.5, variance=1.0).item(), weight(0.25, variance=1.0, convention="data").item()
    (0.5, 0.5)
    """
    check(variance=variance, alpha=alpha, eps=eps, signal=signal)
    q, variance, alpha, eps, signal = tensors(q, variance, alpha, eps, signal)
    above = torch.where(_same(q, eps), 0.0, q - eps).clamp(min=0)  # a large alpha would blow rounding up
    return (above ** (1 / alpha) / copied(signal + variance, signal, convention)).sqrt()


def critical_start(
    eta: Number,
    variance: Number,
    alpha: Number = 1.0,
    eps: Number = 0.0,
    signal: Number = 1.0,
    tau: Number = 1.0,
    convention: str = "views",
) -> Tensor:
    """Edge of the basin of collapse: starts below this weight go to 0, starts above survive.

    0 where eps >= q- (the origin is unstable); infinity above the threshold and where eps >= q+. On
    the threshold it is the half-stable point itself, and a start there survives.

    Args: see the top of the module.

    Returns:
        Critical delta, broadcast shape.

    >>> round(critical_start(0.21, 0.0).item() ** 2, 4)
    0.3
    """
    edge, top = (
        weight(q, variance, alpha, eps, signal, convention) for q in fixed_points(eta, variance, signal, tau)
    )
    return torch.where(top > 0, edge, torch.inf)


def final_weight(
    delta: Number,
    eta: Number,
    variance: Number,
    alpha: Number = 1.0,
    eps: Number = 0.0,
    signal: Number = 1.0,
    tau: Number = 1.0,
    convention: str = "views",
) -> Tensor:
    """Limit of a feature's weight from λ(0) = delta: the weight at q+, or 0 if it collapses.

    A start on the edge of the basin stays there, unstably.

    Args: see the top of the module.

    Returns:
        λ(∞), broadcast shape.

    >>> final_weight([0.1, 0.6], eta=0.21, variance=0.0).square().round(decimals=9).tolist()
    [0.0, 0.7]
    """
    check(delta=delta)
    (delta,) = tensors(delta)
    edge = critical_start(eta, variance, alpha, eps, signal, tau, convention)
    top = weight(fixed_points(eta, variance, signal, tau)[1], variance, alpha, eps, signal, convention)
    return torch.where(_same(delta, edge), edge, torch.where(delta > edge, top, 0.0))


def theorem_1(eta: float, variance: float, alpha: float = 1.0, delta: float = 1.0) -> float:
    """The paper's Theorem 1†: W → ((1 + sqrt(1 - 4 eta)) / 2)^(1 / (2 alpha)) P_S; returns that factor.

    The same in both conventions, as S has no noise. † The number is recalled, not read in a copy of
    the paper; the statement is what is checked.

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
    check(eta=eta, variance=variance, alpha=alpha, delta=delta)
    low = threshold(variance).item()
    if eta >= 0.25 * (1 - ROUNDING):
        raise ValueError(
            f"eta={eta} is not below 1/4, a condition of Theorem 1: above it every feature decays to 0, "
            "on it any push down does"
        )
    if eta <= low * (1 + ROUNDING):
        raise ValueError(
            f"eta={eta} is not above 1/(4(1+variance))={low:.6g}, a condition of Theorem 1: "
            "nuisance features survive too"
        )
    edge = critical_start(eta, 0.0, alpha).item()
    if delta <= edge * (1 + ROUNDING):
        raise ValueError(
            f"delta={delta} is not above {edge:.6g}, a condition of Theorem 1: below it W collapses to 0, "
            "on it W stays until it is pushed"
        )
    return final_weight(delta, eta, 0.0, alpha).item()
