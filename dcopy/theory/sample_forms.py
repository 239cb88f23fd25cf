"""What finite samples and finite steps do to the flow's limit, in formulas: SGD's ball, labels needed."""

from __future__ import annotations

import torch
from torch import Tensor

from ..predictors.running import is_whole
from .closed_forms import Number, check, fixed_points, theorem_1


def sgd_ball(
    eta: float, variance: float, lr: float, batch: int, rho: float, dim: int, rank: int
) -> tuple[float, float]:
    """Where minibatch SGD with DirectCopy's running F ends: shift of the centre, and radius around it.

    First order in lr, 1/batch and lr/(1 - rho), with q = q+ on S, c = sqrt(q), R = 2q(2q - 1):
    shift (per feature of S) = c q (1 - rho)(1 - q/(1+rho) - 2q) (rank+1)/(batch R), whatever lr;
    radius² = lr/batch [ rank(rank+1) (c q (2 - 3q))²/(2R) + rank (dim-rank)(c q (1-q))² (1+σ²)/(σ² q²) ].
    Distances are those of `polar(W)`, since a rotation of the outputs meets no force. Not in the paper.

    Args:
        eta: weight decay.
        variance: σ² of the nuisance features.
        lr: step size.
        batch: pairs in a batch.
        rho: rate of the running F, F ← rho F + (1 - rho) mean(z zᵀ), updated before it is used.
        dim: d, number of features.
        rank: r, dimension of S.

    Returns:
        shift and radius, floats, in units of W.

    Raises:
        ValueError: rank > dim, a condition of `theorem_1` fails, a step size at which the discrete steps
            are unstable, or batch or rho outside its range.

    >>> shift, radius = sgd_ball(0.16, 1.0, lr=0.02, batch=64, rho=0.9, dim=4, rank=2)
    >>> round(shift, 4), round(radius, 4)
    (-0.0036, 0.0126)
    """
    check_rank(rank, dim)
    check(batch=batch, rho=rho)
    theorem_1(eta, variance)
    check_step(lr, eta, torch.tensor([0.0, variance]))
    q = fixed_points(eta, 0.0)[1].item()
    c, R = q**0.5, 2 * q * (2 * q - 1)
    shift = c * q * (1 - rho) * (1 - q / (1 + rho) - 2 * q) * (rank + 1) / (batch * R)
    within = rank * (rank + 1) * (c * q * (2 - 3 * q)) ** 2 / (2 * R)
    across = rank * (dim - rank) * (c * q * (1 - q)) ** 2 * (1 + variance) / (variance * q * q)
    return shift, (lr / batch * (within + across)) ** 0.5


def finite_sample_error(pairs: Number, eta: float, variance: float, dim: int, rank: int) -> Tensor:
    """Root mean square of |polar(W_n) - c P_S| when the flow sees n Gaussian pairs, to leading order.

    n error² = rank(rank+1) g² + 2 rank (dim-rank) (c (1-q))² (1 + σ²/2) / (σ⁴ q²), with q = q+ on S,
    c = sqrt(q) and g = (eta/sqrt(1 - 4 eta) - q)/(2c), the change of c with the feature's variance.
    Both directions of the loss are averaged. Not in the paper.

    Args:
        pairs: n, unlabelled pairs.
        eta: weight decay.
        variance: σ² of the nuisance features.
        dim: d, number of features.
        rank: r, dimension of S.

    Returns:
        Error in units of W, shaped as `pairs`.

    Raises:
        ValueError: rank > dim, or a condition of `theorem_1` fails.

    >>> errors = finite_sample_error(torch.tensor([100.0, 400.0]), 0.18, 1.0, dim=6, rank=3)
    >>> round((errors[0] / errors[1]).item(), 6)
    2.0
    """
    check_rank(rank, dim)
    check(pairs=pairs)
    theorem_1(eta, variance)
    q = fixed_points(eta, 0.0)[1].item()
    c = q**0.5
    g = (eta / (1 - 4 * eta) ** 0.5 - q) / (2 * c)
    within = rank * (rank + 1) * g**2
    across = 2 * rank * (dim - rank) * (c * (1 - q)) ** 2 * (1 + variance / 2) / (variance * q) ** 2
    return ((within + across) / torch.as_tensor(pairs, dtype=torch.float64)).sqrt()


def check_rank(rank: int, dim: int) -> None:
    """Raises ValueError unless 1 <= rank <= dim, both whole: S is a subspace of the d features."""
    if not (is_whole(rank, 1) and is_whole(dim, 1) and rank <= dim):
        raise ValueError(
            f"r={rank} is not allowed with d={dim}: S is a subspace of dimension 1 <= r <= d; "
            "no W has a row space larger than its input"
        )


def check_step(lr: float, eta: float, variance: Number, alpha: float = 1.0, delta: float = 1.0) -> None:
    """Raises ValueError for a step size at which gradient descent cannot follow the flow.

    A step multiplies a small deviation from q+ by 1 - lr R, R = 2 alpha q+ (2 c q+ - 1), and a start
    above q+ by 1 - lr (c q² - q + eta); both must stay above -1.
    """
    check(alpha=alpha, delta=delta)
    variance = torch.as_tensor(variance, dtype=torch.float64)
    c, q = 1 + variance, fixed_points(eta, variance)[1]
    at_rest = (2 * alpha * q * (2 * c * q - 1)).nan_to_num(nan=0.0)
    start = (c * delta**2) ** alpha
    rate = torch.maximum(at_rest, c * start.square() - start + eta).max().item()
    most = 2 / rate if rate > 0 else torch.inf  # at rest on the threshold
    if not 0 < lr < most:
        raise ValueError(
            f"lr={lr} is not allowed: gradient descent follows the flow only for "
            f"0 < lr < 2/rate = {most:.4g}; above it W jumps from side to side of its limit or diverges"
        )


def excess_risk(labels: Number, dim: int, noise: float, missed: float = 0.0) -> Tensor:
    """Mean excess risk of least squares on `dim` isotropic Gaussian features with `labels` labels.

    (noise² + missed) dim/(labels - dim - 1) + missed, exact for labels > dim + 1.

    Args:
        labels: n.
        dim: features used: r after pretraining, d on the raw input.
        noise: standard deviation of the label noise.
        missed: |w*|² outside the features' span, label noise to them.

    Returns:
        E (y_hat - y)² - noise², broadcast shape.

    >>> excess_risk(43, dim=2, noise=1.0).item()
    0.05
    """
    check(dim=dim, noise=noise, missed=missed)
    labels = torch.as_tensor(labels, dtype=torch.float64)
    if not (labels > dim + 1).all():
        few = labels.min().item()
        raise ValueError(
            f"{few:g} labels for {dim} features: the mean excess risk is infinite up to {dim + 1}"
        )
    return (noise**2 + missed) * dim / (labels - dim - 1) + missed


def labels_needed(excess: float, dim: int, noise: float) -> float:
    """Labels at which least squares on `dim` features has mean excess risk `excess`.

    dim (1 + noise²/excess) + 1, from `excess_risk`.

    Args:
        excess: target excess risk, positive.
        dim: features used.
        noise: standard deviation of the label noise.

    Returns:
        n, a real number.

    >>> labels_needed(0.05, dim=2, noise=1.0)
    43.0
    """
    check(excess=excess, dim=dim, noise=noise)
    return dim * (1 + noise**2 / excess) + 1
