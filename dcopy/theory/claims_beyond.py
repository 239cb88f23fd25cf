"""Claim 12: phase diagrams, depth, correlated noise, discrete steps, and the learned predictor."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from . import closed_forms as theory
from .evidence import Evidence, exact, experiment
from .flow import CONVENTIONS, correlation, descent, directset, feature, learned
from .grid import ALPHAS, both, cell_centres, random_basis
from .layers import deep_feature, depth_threshold
from .sample_forms import check_step
from .solver import edge, integrate, limit, survives


@experiment
def phase_diagrams(device="cpu", grid: int = 80) -> Evidence:
    """Over (eta, σ²) a feature survives below the curve 1/(4(1 + σ²)) and nowhere else, for every alpha."""
    eta, variance = (cell_centres(0.0, high, grid).to(device) for high in (0.3, 3.0))
    variances, etas = torch.meshgrid(variance, eta, indexing="ij")  # (grid, grid)
    predicted = etas < theory.threshold(variances)  # the start, 1, lies above q- everywhere
    start, rows, weights = torch.ones_like(etas), [], {}
    for alpha in ALPHAS:
        final = both(
            lambda convention, alpha=alpha: limit(
                partial(feature, alpha=alpha, convention=convention),
                start,
                (variances, etas),
                state_dims=0,
                rtol=1e-8,
            )
        )  # (conventions, grid, grid)
        weights[alpha] = dict(zip(CONVENTIONS, final, strict=True))
        wrong = ((final > 1e-3) != predicted).sum()
        cells = f"cells of {grid} x {grid} that are wrong; both conventions"
        rows.append(exact(12, f"phase diagram, alpha = {alpha:g}: {cells}", 0.0, wrong))
    return Evidence(rows, {"eta": eta, "variance": variance, "weights": weights})


@experiment
def depth(device="cpu") -> Evidence:
    """Depth lowers the threshold, and more for features of high variance."""
    variances = torch.tensor([0.0, 0.5, 1.0, 2.0, 4.0], dtype=torch.float64, device=device)
    low, high = torch.full_like(variances, 1e-3), torch.full_like(variances, 0.5)
    rows, measured = [], {}
    for L, convention in itertools.product((1, 2, 3), CONVENTIONS):
        field = partial(deep_feature, depth=L, convention=convention)

        def alive(etas, field=field):  # (5, points)
            return survives(field, torch.ones_like(etas), (variances[:, None], etas), state_dims=0)

        measured[L, convention] = edge(alive, low, high)
        predicted = depth_threshold(variances, L, convention=convention)
        predictor = {"views": "the algorithm's predictor", "data": "the paper's"}[convention]
        statement = f"weight decay threshold of {L} linear layer{'s' * (L > 1)}, {predictor}"
        rows.append(exact(12, statement, predicted, measured[L, convention]))
    return Evidence(rows, {"variances": variances, "measured": measured})


@experiment
def correlated_noise(device="cpu", d: int = 5) -> Evidence:
    """Noise in any basis, and data of any variance in the same basis, change the basis of the result only."""
    U = random_basis(d, seed=3, device=device)
    signal = torch.tensor([1.0, 1.5, 0.8, 1.0, 2.0], dtype=torch.float64, device=device)
    variances = torch.tensor([0.0, 0.3, 0.1, 2.0, 9.0], dtype=torch.float64, device=device)
    eta, alpha = 0.15, 1.0
    X, noise = (U @ torch.diag(v) @ U.mT for v in (signal, variances))

    def distance(convention):
        field = partial(directset, convention=convention)
        W = limit(field, torch.eye(d).to(X), (X + noise, X, eta), state_dims=2)
        weights = theory.final_weight(1.0, eta, variances, alpha, signal=signal, convention=convention)
        return (W - U @ torch.diag(weights) @ U.mT).norm()

    statement = (
        "correlated noise, unequal data variances: distance from the rotated weights; both conventions"
    )
    return Evidence([exact(12, statement, 0.0, both(distance))])


def descend(
    W: Tensor, auto: Tensor, cross: Tensor, eta: float, lr: float, rho: Tensor, freq: Tensor, steps: int
) -> Iterator[Tensor]:
    """Full-batch gradient descent with a running F, the predictor set every `freq` steps and held between.

    Args:
        W: (*grid, d, d), starts.
        auto: (d, d), X + X'.
        cross: (d, d), X = I.
        eta: weight decay.
        lr: step size.
        rho: (*grid, 1, 1), rate of the running F.
        freq: (*grid, 1, 1), steps between two settings of the predictor.
        steps: number of steps.

    Yields:
        (*grid, d, d), W after each step.

    Raises:
        ValueError: the step size is unstable, or rho or freq outside its range.

    >>> I = torch.eye(2, dtype=torch.float64)
    >>> one = torch.ones(1, 1)
    >>> [round(W[0, 0].item(), 3) for W in descend(I, I, I, 0.2, 0.5, 0 * one, one, steps=3)]
    [0.9, 0.879, 0.868]
    """
    check_step(lr, eta, (auto - cross).diagonal())
    theory.check(rho=rho, freq=freq)
    F = W_p = correlation(W, auto)
    for step in range(steps):
        F = rho * F + (1 - rho) * correlation(W, auto)
        W_p = torch.where(step % freq == 0, F, W_p)
        W = W + lr * (descent(W, W, W_p, auto, cross) - eta * W)
        yield W


@experiment
def discrete_steps(device="cpu", steps: int = 8000) -> Evidence:
    """A finite step, a running F and a held predictor share the flow's limit, while they are stable."""
    eta, lr = 0.2, 0.1
    variances = torch.tensor([0.0, 1.0], dtype=torch.float64, device=device)
    eye = torch.eye(2, dtype=torch.float64, device=device)
    auto, final = eye + torch.diag(variances), torch.diag(theory.final_weight(1.0, eta, variances))

    rho = torch.tensor([0.0, 0.3, 0.9, 0.99], dtype=torch.float64, device=device)[:, None, None, None]
    freq = torch.tensor([1, 5, 20], device=device)[:, None, None]
    path = list(descend(0.9 * eye.expand(4, 3, 2, 2), auto, eye, eta, lr, rho, freq, steps))
    statement = "gradient descent, rho in {0, .3, .9, .99}, freq in {1, 5, 20}: W"
    rows = [exact(12, statement, final.expand(4, 3, 2, 2), path[-1])]

    # Holding W_p for freq steps acts as one step of size freq lr: stable for freq lr R < 2.
    freqs = torch.arange(20, 41, device=device)[:, None, None]
    start = final + 1e-3 * (final > 0)
    held = descend(start.expand(21, 2, 2), auto, eye, eta, lr, torch.zeros_like(freqs), freqs, steps)
    last = torch.stack(list(held)[-80:])  # (80, 21, d, d): two holds or more
    stable = (last - final).abs().amax((0, 2, 3)) < 1e-3
    q = theory.fixed_points(eta, 0.0)[1]
    predicted = (2 / (lr * 2 * q * (2 * q - 1))).floor()
    rows.append(exact(12, "longest stable hold: freq < 2/(lr R)", predicted, freqs.flatten()[stable].max()))
    signal = torch.stack(path[:1500])[..., 0, 0]  # (T, rho, freq)
    return Evidence(
        rows, {"rho": rho.flatten(), "freq": freq.flatten(), "signal": signal, "lr": lr, "limit": final[0, 0]}
    )


def alignment(F: Tensor, W_p: Tensor) -> Tensor:
    """Cosine between u and W_p u for each eigenvector u of F, averaged with the eigenvalues as weights.

    Args:
        F: (*grid, k, k), symmetric.
        W_p: (*grid, k, k).

    Returns:
        (*grid,), 1 where all eigenvectors of F that carry variance are eigenvectors of W_p.

    >>> F = torch.diag(torch.tensor([2.0, 1.0]))
    >>> alignment(F, 3 * F).item(), alignment(F, torch.tensor([[0.0, 1.0], [1.0, 0.0]])).item()
    (1.0, 0.0)
    """
    s, U = torch.linalg.eigh((F + F.mT) / 2)
    image = W_p @ U  # (*grid, k, k): column i is W_p u_i
    cosine = (U * image).sum(-2) / image.norm(dim=-2).clamp(min=1e-300)
    return (s * cosine).sum(-1) / s.sum(-1)


@experiment
def learned_predictor(device="cpu", starts: int = 10, seed: int = 0, d: int = 5) -> Evidence:
    """A predictor learned by gradient descent has the same threshold, and aligns with F by itself."""
    eta, variances = 0.1, torch.tensor([0.0, 0.2, 0.5, 0.9, 4.0], dtype=torch.float64, device=device)[:d]
    eye = torch.eye(d, dtype=torch.float64, device=device)
    args = ((eye + torch.diag(variances))[None], eye[None], eta)
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(2, starts, d, d, generator=generator, dtype=torch.float64)
    start = torch.cat(list(draws.to(device)), dim=-1)  # [W, W_p]
    times = torch.cat([torch.zeros(1), torch.logspace(-1.5, 2.2, 75)])
    path = integrate(learned, start, times, args, state_dims=2, rtol=1e-11)
    W, W_p = path[..., :d], path[..., d:]  # (T, starts, d, d)
    F = correlation(W, args[0])
    cosines = alignment(F, W_p)  # (T, starts)
    aligned = f"each eigenvector of F is one of W_p, worst of {starts} starts: cosine"
    rows = [
        _learned_threshold(device),
        _imbalance(W, W_p, times, eta),
        exact(12, aligned, 1.0, cosines[-1].min()),
        _learned_limits(path[-1], args, variances),
    ]
    _, U = torch.linalg.eigh(F[:, 0])  # of the first start
    in_basis = (U.mT @ W_p[:, 0] @ U).abs()  # (T, d, d)
    return Evidence(rows, {"times": times, "cosines": cosines, "first": in_basis[0], "last": in_basis[-1]})


def _learned_threshold(device) -> dict:
    """The largest weight decay that one feature survives, [W, W_p] from [1, 1]."""
    sigma2 = torch.tensor([0.0, 0.5, 1.0, 2.0], dtype=torch.float64, device=device)
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64, device=device)

    def alive(etas):  # (4, points)
        start = torch.ones(*etas.shape, 1, 2, dtype=torch.float64, device=device)
        auto = (1 + sigma2)[:, None, None, None]
        return survives(learned, start, (auto, one, etas[..., None, None]), state_dims=2)

    measured = edge(alive, torch.full_like(sigma2, 0.01), torch.full_like(sigma2, 0.5))
    statement = "learned predictor: the threshold is the same 1/(4(1+variance))"
    return exact(12, statement, theory.threshold(sigma2), measured)


def _imbalance(W: Tensor, W_p: Tensor, times: Tensor, eta: float) -> dict:
    """How W Wᵀ - W_pᵀ W_p (T, starts, d, d) decays, relative to its start."""
    imbalance = W @ W.mT - W_p.mT @ W_p
    decay = torch.exp(-2 * eta * times.to(W))[:, None, None, None]
    drift = (imbalance - decay * imbalance[0]).abs().max() / imbalance[0].abs().max()
    statement = "W Wᵀ - W_pᵀ W_p decays as exp(-2 eta t): largest difference over its start"
    return exact(12, statement, 0.0, drift)


def _learned_limits(state: Tensor, args: tuple, variances: Tensor) -> dict:
    """Distance of the singular values of W_p at rest from the q+ of the features and 0."""
    d = len(variances)
    rest = limit(learned, state, args, state_dims=2)[..., d:]
    q_plus = theory.fixed_points(args[2], variances)[1]
    allowed = torch.cat([q_plus[~q_plus.isnan()], q_plus.new_zeros(1)])
    distance = (torch.linalg.svdvals(rest).unsqueeze(-1) - allowed).abs().amin(-1).max()
    statement = "singular values of W_p end at a feature's q+ or at 0: worst distance"
    return exact(12, statement, 0.0, distance)
