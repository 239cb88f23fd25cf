"""The linear model with data instead of expectations: views, SGD, and least squares downstream."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from .closed_forms import check
from .flow import correlation, descent
from .sample_forms import check_rank, check_step


def sample_views(
    n: int, variances: Tensor, generator: torch.Generator, grid: tuple = ()
) -> tuple[Tensor, Tensor]:
    """Pairs of views x1 = x + noise1, x2 = x + noise2 with x ~ N(0, I), noise ~ N(0, diag(variances)).

    Args:
        n: pairs.
        variances: (d,), σ² of each feature.
        generator: its device is where the samples are drawn.
        grid: leading dimensions, independent draws.

    Returns:
        x1 and x2, each (*grid, n, d) float64.

    >>> x1, x2 = sample_views(5, torch.tensor([0.0, 1.0]), torch.Generator().manual_seed(0))
    >>> x1.shape, torch.equal(x1[:, 0], x2[:, 0])
    (torch.Size([5, 2]), True)
    """
    check(variance=variances)
    shape = (*grid, n, len(variances))
    x, noise1, noise2 = (
        torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device)
        for _ in range(3)
    )
    std = variances.to(x).sqrt()
    return x + std * noise1, x + std * noise2


def sgd(
    W: Tensor,
    variances: Tensor,
    eta: float,
    lr: float,
    batch: int,
    rho: float,
    steps: int,
    generator: torch.Generator,
) -> Iterator[Tensor]:
    """Minibatch SGD with DirectCopy's running correlation; yields W after every step.

    One step: draw pairs, F ← rho F + (1 - rho) mean(z1 z1ᵀ), W_p = F, then
    W ← W + lr (W_pᵀ(W mean(x2 x1ᵀ) - W_p W mean(x1 x1ᵀ)) - eta W).

    Args:
        W: (chains, d, d), starts; F starts at its expectation.
        variances: (d,), σ² of each feature.
        eta: weight decay.
        lr: step size.
        batch: pairs in a step, fresh ones each time.
        rho: rate of the running F, in [0, 1).
        steps: number of steps.
        generator: source of the samples, on the device of W.

    Yields:
        (chains, d, d).

    Raises:
        ValueError: the step size is unstable, or batch or rho outside its range.

    >>> W = torch.eye(2, dtype=torch.float64)[None]
    >>> states = sgd(W, torch.zeros(2), 0.16, 0.1, 8, 0.9, 3, torch.Generator().manual_seed(0))
    >>> [W.shape for W in states] == [torch.Size([1, 2, 2])] * 3
    True
    """
    check_step(lr, eta, variances)
    check(batch=batch, rho=rho)
    F = correlation(W, torch.diag(1 + variances).to(W))
    for _ in range(steps):
        x1, x2 = sample_views(batch, variances, generator, grid=(len(W),))  # (chains, batch, d)
        auto, cross = x1.mT @ x1 / batch, x2.mT @ x1 / batch  # (chains, d, d)
        F = rho * F + (1 - rho) * correlation(W, auto)
        W = W + lr * (descent(W, W, F, auto, cross) - eta * W)
        yield W


def polar(W: Tensor) -> Tensor:
    """W up to a rotation of its outputs: (WᵀW)^(1/2), symmetric and positive semi-definite.

    No force of the flow, of SGD, or of a downstream task sees such a rotation.

    Args:
        W: (*grid, k, d).

    Returns:
        (*grid, d, d).

    >>> polar(torch.tensor([[0.0, 2.0], [-1.0, 0.0]])).diagonal().tolist()
    [1.0, 2.0]
    """
    _, s, Vh = torch.linalg.svd(W, full_matrices=False)
    return Vh.mT @ (s.unsqueeze(-1) * Vh)


def row_space(W: Tensor, rank: int) -> Tensor:
    """Orthonormal basis of the strongest `rank` directions that W reads, its leading right singular vectors.

    Args:
        W: (*grid, k, d).
        rank: r.

    Returns:
        (*grid, d, r).

    >>> row_space(torch.diag(torch.tensor([0.0, 3.0, 1.0])), 1).abs().flatten().tolist()
    [0.0, 1.0, 0.0]
    """
    check_rank(rank, min(W.shape[-2:]))
    return torch.linalg.svd(W, full_matrices=False).Vh[..., :rank, :].mT


def sine_to(basis: Tensor, S: Tensor) -> Tensor:
    """Sine of the largest principal angle between the spans of two orthonormal bases.

    Args:
        basis: (*grid, d, r).
        S: (d, s), s >= r.

    Returns:
        (*grid,), 0 where the span lies inside S; exact also for tiny angles.

    >>> sine_to(torch.eye(3)[:, :1], torch.eye(3)[:, 1:]).item()
    1.0
    """
    outside = basis - S @ (S.mT @ basis)  # (*grid, d, r)
    return torch.linalg.matrix_norm(outside, ord=2)


def least_squares_excess(
    basis: Tensor, w: Tensor, labels: list[int], noise: float, generator: torch.Generator
) -> Tensor:
    """Excess risk of least squares on basisᵀ x, x ~ N(0, I), with growing numbers of labels.

    One design per replicate, shared by all tasks of the replicate; more labels extend the design.

    Args:
        basis: (reps, d, p), orthonormal columns; the identity is the raw input.
        w: (reps, d, tasks), true weights; y = wᵀx + noise.
        labels: increasing label counts, each at least p + 2.
        noise: standard deviation of the label noise.
        generator: source of designs and noise.

    Returns:
        (reps, len(labels)), excess risk averaged over the tasks of a replicate.

    Raises:
        ValueError: fewer labels than features, or label counts that do not increase.

    >>> I = torch.eye(2, dtype=torch.float64)[None]
    >>> least_squares_excess(I, I, [10], 0.0, torch.Generator().manual_seed(0)).round(decimals=12).item()
    0.0
    """
    check(noise=noise)
    reps, d, p = basis.shape
    tasks = w.shape[-1]
    if len(labels) == 0 or any(b <= a for a, b in itertools.pairwise(labels)):
        raise ValueError(f"labels={labels} is not allowed: label counts must increase")
    if labels[0] < p + 2:
        raise ValueError(f"{labels[0]} labels for {p} features: the mean risk is finite from {p + 2}")
    gram, target, seen, curve = 0.0, 0.0, 0, []
    for n in labels:
        draw = {"generator": generator, "dtype": basis.dtype, "device": generator.device}
        x = torch.randn(reps, n - seen, d, **draw)
        y = x @ w + noise * torch.randn(reps, n - seen, tasks, **draw)  # (reps, new labels, tasks)
        h = x @ basis  # (reps, new labels, p)
        gram, target, seen = gram + h.mT @ h, target + h.mT @ y, n
        error = basis @ torch.linalg.solve(gram, target) - w  # (reps, d, tasks)
        curve.append(error.square().sum(1).mean(1))
    return torch.stack(curve, dim=1)


def crossing(counts: Tensor, curve: Tensor, level: float) -> Tensor:
    """Where falling curves pass `level`, between grid points by a straight line in log-log.

    Args:
        counts: (m,), increasing.
        curve: (*grid, m), positive.
        level: the level.

    Returns:
        (*grid,), counts at the last passage from above; NaN where the curve does not pass.

    >>> crossing(torch.tensor([1.0, 100.0]), torch.tensor([1.0, 0.01]), 0.1).item()
    10.0
    """
    x, y = counts.log(), curve.log() - torch.tensor(level).log()
    down = (y[..., :-1] > 0) & (y[..., 1:] <= 0)
    last = (down * torch.arange(1, y.shape[-1], device=y.device)).amax(-1, keepdim=True)  # 0: never
    i = (last - 1).clamp(min=0)
    y0, y1, x0, x1 = y.gather(-1, i), y.gather(-1, i + 1), x[i], x[i + 1]
    found = (x0 + (x1 - x0) * y0 / (y0 - y1)).exp()
    return torch.where(last > 0, found, torch.nan).squeeze(-1)


def slope(x: Tensor, y: Tensor) -> Tensor:
    """Least-squares slope of log y against log x.

    Args:
        x: (m,), positive.
        y: (*grid, m), positive.

    Returns:
        (*grid,).

    >>> round(slope(torch.tensor([1.0, 10.0, 100.0]), torch.tensor([5.0, 0.5, 0.05])).item(), 5)
    -1.0
    """
    x = x.log() - x.log().mean()
    return (x * y.log()).sum(-1) / x.square().sum()
