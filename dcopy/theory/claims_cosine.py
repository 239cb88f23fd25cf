"""Claim 13: the cosine loss instead of the quadratic one; which claims stay, and which move."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from .cosine import cosine_descent, cosine_shares
from .evidence import Evidence, exact, experiment, measured_only, statistical
from .flow import correlation, directset, moments
from .grid import ALPHAS, both
from .samples import sample_views, slope
from .solver import integrate, limit

cosine = partial(directset, pull=cosine_descent)


def unit(W: Tensor) -> Tensor:
    """W / |W|: all that the cosine loss sees."""
    return W / torch.linalg.matrix_norm(W, keepdim=True)


def moments_of(variances: Tensor) -> tuple[Tensor, Tensor]:
    """X + X' and X (d, d) of features with these variances under augmentation."""
    eye = torch.eye(len(variances), dtype=variances.dtype, device=variances.device)
    return eye + torch.diag(variances), eye


def clock(time: float, eta: float) -> float:
    """The time without weight decay that brings W / |W| as far, while |W| shrinks by exp(-eta time).

    >>> clock(2.0, 0.0), round(clock(2.0, 0.5), 4)
    (2.0, 6.3891)
    """
    return time if eta == 0 else torch.expm1(torch.tensor(2 * eta * time).double()).item() / (2 * eta)


@experiment
def cosine_loss(device="cpu", seed: int = 0) -> Evidence:
    """Normalization takes weight decay's power: it shrinks |W|, and neither discards nor collapses."""
    variances = torch.tensor([0.0, 0.25, 0.5, 1.0, 2.0, 4.0], dtype=torch.float64, device=device)
    generator = torch.Generator().manual_seed(seed)
    W0 = torch.randn(6, 6, generator=generator, dtype=torch.float64).to(device)
    rows = [
        *_norm_and_clock(W0, variances),
        *_nothing_is_discarded(variances),
        *_what_selects(variances),
    ]
    times = torch.linspace(
        0, 12, 73
    )  # later the flow with the cosine is too fast: it speeds up as |W| shrinks
    return Evidence(rows, {"times": times, "variances": variances, "paths": _paths(times, variances)})


def _norm_and_clock(W0: Tensor, variances: Tensor, eta: float = 0.2) -> list[dict]:
    """The loss does not see |W|, so only weight decay moves it; and the smaller |W|, the faster the rest."""
    auto, cross = moments_of(variances)
    times = [0.5, 2.0, 5.0]
    norms, ahead = [], []
    for alpha in (0.0, *ALPHAS):
        field = partial(cosine, alpha=alpha)
        path = integrate(field, W0, times, (auto, cross, eta, 0.3), state_dims=2)  # (T, d, d)
        norms.append(torch.linalg.matrix_norm(path) / torch.linalg.matrix_norm(W0))
        with_decay = integrate(field, W0, times, (auto, cross, eta), state_dims=2)
        without = integrate(field, W0, [clock(t, eta) for t in times], (auto, cross, 0.0), state_dims=2)
        ahead.append(torch.linalg.matrix_norm(unit(with_decay) - unit(without)))
    shrinks = torch.exp(-eta * torch.tensor(times).to(W0))
    sooner = "eps = 0: W/|W| at t is that without weight decay at (exp(2 eta t) - 1)/(2 eta): distance"
    return [
        exact(13, "|W(t)| = |W(0)| exp(-eta t), whatever the predictor", shrinks, torch.stack(norms)),
        exact(13, sooner, 0.0, torch.stack(ahead)),
    ]


def _nothing_is_discarded(variances: Tensor) -> list[dict]:
    """Without eps all features stay, at the same ratios for every weight decay and from every start."""
    auto, cross = moments_of(variances)
    found, predicted = [], []
    for alpha in ALPHAS:
        for eta, delta in ((0.0, 1.0), (0.15, 1.0), (0.3, 0.05)):
            until = 800 * delta**2  # the flow is 1/delta² times as fast, and |W| shrinks on top
            time = (
                until if eta == 0 else torch.log1p(torch.tensor(2 * eta * until).double()).item() / (2 * eta)
            )
            field = partial(cosine, alpha=alpha)
            ends = both(
                lambda convention, field=field, eta=eta, delta=delta, time=time: integrate(
                    partial(field, convention=convention),
                    delta * cross,
                    [time],
                    (auto, cross, eta),
                    state_dims=2,
                )[0]
            )
            found.append(unit(ends))
            predicted.append(both(lambda c, alpha=alpha: torch.diag(cosine_shares(variances, alpha, c))))
    quadratic = limit(directset, cross, (auto, cross, 0.3), state_dims=2)
    statement = (
        "eps = 0, eta = 0, 0.15 and 0.3, delta = 1 or 0.05: W/|W| has q in proportion to 1/(1+variance)"
    )
    return [
        exact(13, f"{statement}; both conventions", torch.stack(predicted), torch.stack(found)),
        exact(13, "eta = 0.3 with the quadratic loss: W tends to 0", 0.0, quadratic.norm()),
    ]


def _what_selects(variances: Tensor) -> list[dict]:
    """A predictor that is all eps, or none: then the lowest variance wins, over every other feature."""
    clean = torch.cat([variances.new_zeros(1), variances[:1], variances[2:]])  # two features without noise
    auto, cross = moments_of(clean)
    shrunk = both(
        lambda convention: integrate(
            partial(cosine, convention=convention), cross, [18.0], (auto, cross, 0.2, 0.3), state_dims=2
        )[0]
    )
    P_S = torch.diag((clean == 0).to(clean))
    auto, cross = moments_of(variances + 0.1)
    no_predictor = integrate(partial(cosine, alpha=0), cross, [400.0], (auto, cross, 0.0), state_dims=2)[0]
    no_stop = integrate(
        partial(cosine, stop_gradient=False), cross, [400.0], (auto, cross, 0.0), state_dims=2
    )[0]
    selects = "eps = 0.3: |W|² falls below eps, W_p becomes eps I, and W/|W| tends to P_S/r^(1/2): distance"
    rank = "no stop-gradient: rank of F (of 6) at t = 400, (tr F)²/tr F²"
    F = correlation(no_stop, auto)
    return [
        exact(13, f"{selects}; both conventions", 0.0, torch.linalg.matrix_norm(unit(shrunk) - unit(P_S))),
        exact(
            13,
            "no predictor: the feature of lowest variance alone remains: its share",
            1.0,
            unit(no_predictor)[0, 0],
        ),
        measured_only(13, rank, F.trace() ** 2 / (F * F).sum()),
    ]


def _paths(times: Tensor, variances: Tensor) -> dict:
    """Weights (T, d) under both losses, by eta and name; the cosine's over the norm of W."""
    auto, cross = moments_of(variances)
    paths = {}
    for eta in (0.15, 0.3):
        for name, field, eps in (
            ("quadratic", directset, 0.0),
            ("cosine", cosine, 0.0),
            ("cosine", cosine, 0.3),
        ):
            path = integrate(field, cross, times, (auto, cross, eta, eps), state_dims=2)
            shown = path if name == "quadratic" else unit(path)
            paths[eta, name, eps] = shown.diagonal(dim1=-2, dim2=-1)
    return paths


def sampled_pull(W: Tensor, W_p: Tensor, x1: Tensor, x2: Tensor) -> Tensor:
    """Minus the gradient in W (k, d) of the mean of -cos(W_p W x1, sg(W x2)), each sample by its own norms.

    Args:
        W: (k, d).
        W_p: (k, k).
        x1: (n, d).
        x2: (n, d).

    Returns:
        (k, d).
    """
    p, z = x1 @ (W_p @ W).mT, x2 @ W.mT  # (n, k)
    length = p.norm(dim=1, keepdim=True)
    p, z = p / length, z / z.norm(dim=1, keepdim=True)
    return W_p.mT @ ((z - p * (p * z).sum(1, keepdim=True)) / length).mT @ x1 / len(x1)


@experiment
def concentration(device="cpu", repeats: int = 6, seed: int = 0, samples: int = 4000) -> Evidence:
    """How far the cosine of every sample is from the flow's limit of many dimensions: about 1/d."""
    generator = torch.Generator(device=device).manual_seed(seed)
    dims, differences = (16, 32, 64, 128), []
    for d in dims:
        variances = torch.cat([torch.zeros(d // 2), torch.ones(d // 2)]).double().to(device)
        W = torch.diag(0.9 - 0.4 * variances)
        off = []
        for _ in range(repeats):
            x1, x2 = sample_views(samples, variances, generator)
            auto, cross = moments(x1, x2)
            W_p = correlation(W, torch.diag(1 + variances))
            single = (sampled_pull(W, W_p, x1, x2) + sampled_pull(W, W_p, x2, x1)) / 2
            whole = cosine_descent(W, W, W_p, auto, cross)
            parts = [v.diagonal().view(2, -1).mean(1) for v in (single, whole)]  # of S and of B
            off.append((parts[0] - parts[1]).norm() / parts[1].norm())
        differences.append(torch.stack(off))
    differences = torch.stack(differences, dim=1)  # (repeats, dims)
    slopes = slope(torch.tensor(dims, dtype=torch.float64, device=device), differences)
    statement = "cosine of each sample against the limit of many dimensions, relative difference: power of d"
    rows = [
        statistical(13, statement, -1.0, slopes, allowance=0.1),
        measured_only(13, "that difference at d = 64, the digits' projections", differences[:, 2].mean()),
    ]
    return Evidence(rows, {"dims": dims, "differences": differences})
