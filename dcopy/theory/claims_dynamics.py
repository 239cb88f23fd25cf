"""Claims 6 to 8: what collapses without its parts, what EMA changes, and random starts."""

from __future__ import annotations

from functools import partial

import torch

from . import closed_forms as theory
from .claims_features import random_basis
from .evidence import Evidence, exact, experiment
from .flow import directset, feature
from .samples import row_space, sine_to
from .solver import edge, integrate, limit, survives


def _gaussian(*shape: int, seed: int, device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device)


@experiment
def claim_6(device="cpu", seed: int = 0) -> Evidence:
    """W collapses without the predictor or without stop-gradient, not without EMA or weight decay."""
    eta, variances = 0.2, torch.tensor([0.0, 1.0], dtype=torch.float64, device=device)
    eye = torch.eye(2, dtype=torch.float64, device=device)
    auto = eye + torch.diag(variances)
    W0, time = _gaussian(2, 2, seed=seed, device=device), 3.0
    no_predictor, no_stop = partial(directset, alpha=0), partial(directset, stop_gradient=False)
    W = integrate(no_predictor, W0, [time], (auto, eye, eta), state_dims=2)[0]
    rows = [
        exact(
            6,
            "no predictor: W(t) = W(0) exp(-(X' + eta) t), from any start",
            W0 * torch.exp(-(variances + eta) * time),
            W,
        ),
        exact(
            6,
            "no predictor and no weight decay: a feature without noise stays where it is",
            W0[:, 0],
            integrate(no_predictor, W0, [time], (auto, eye, 0.0), state_dims=2)[0, :, 0],
        ),
        exact(
            6,
            "no stop-gradient: W tends to 0",
            0.0,
            limit(no_stop, W0, (auto, eye, eta), state_dims=2).norm(),
        ),
    ]
    late = integrate(no_stop, 1e-5 * eye, [2.0], (auto, eye, eta), state_dims=2)[0].diagonal()
    rows.append(
        exact(
            6,
            "no stop-gradient: rate at the origin is -(1 + variance + eta)",
            -(1 + variances + eta),
            (late / 1e-5).log() / 2,
        )
    )
    times = torch.cat([torch.linspace(0, 6, 16), torch.linspace(9, 120, 38)])
    start = 0.8 * eye
    both = torch.cat([start, start], dim=-1)  # [W, W_a]
    variants = {  # name: field, start, arguments
        "all parts": (directset, both, (auto, eye, eta, 0.0, 0.5)),
        "no predictor": (no_predictor, both, (auto, eye, eta, 0.0, 0.5)),
        "no stop-gradient": (no_stop, start, (auto, eye, eta)),
        "no EMA": (directset, start, (auto, eye, eta)),
        "no weight decay": (directset, both, (auto, eye, 0.0, 0.0, 0.5)),
    }
    paths = {}
    for name, (field, initial, args) in variants.items():
        states = integrate(field, initial, times, args, state_dims=2)
        paths[name] = states[..., :2].diagonal(dim1=-2, dim2=-1)  # (T, 2)
    return Evidence(rows, {"times": times, "paths": paths, "eta": eta, "variances": variances})


@experiment
def claim_7(device="cpu") -> Evidence:
    """A target scaled by tau narrows the window to tau²/(4(1+variance)); EMA slows, and moves nothing."""
    eta, variance = 0.2, 0.0
    tau = torch.tensor([0.7, 0.8, 0.9, 1.0], dtype=torch.float64, device=device)
    sigma2 = torch.tensor([[0.0], [1.0]], dtype=torch.float64, device=device).expand(2, 4)

    def alive(etas):  # (2, 4, points)
        args = (sigma2[..., None], etas, 1.0, 0.0, 1.0, tau[:, None])  # alpha, eps and signal as in the paper
        return survives(feature, torch.ones_like(etas), args, state_dims=0)

    low, high = torch.full_like(sigma2, 0.01), torch.full_like(sigma2, 0.5)
    rows = [
        exact(
            7,
            "W_a = tau W: a feature survives iff eta < tau²/(4(1+variance))",
            theory.threshold(sigma2, tau=tau),
            edge(alive, low, high),
        )
    ]
    beta = torch.tensor([0.05, 0.2, 1.0, 5.0], dtype=torch.float64, device=device)
    one = torch.ones(1, 1, 1, dtype=torch.float64, device=device)  # one feature: d = k = 1
    shape = {"state_dims": 2, "args": (one[None], one[None], eta, 0.0, beta[:, None, None, None])}

    def ema_start(deltas, target=1.0):  # (4, points) -> (4, points, 1, 2), W_a started as `target` times W
        return deltas[..., None, None] * torch.tensor([[1.0, target]], dtype=torch.float64, device=device)

    def grows(deltas):
        return integrate(directset, ema_start(deltas), [100.0], rtol=1e-8, **shape)[0, ..., 0, 0] > deltas

    from_copy = torch.full((4, 1), 0.8, dtype=torch.float64, device=device)
    at_rest = limit(directset, ema_start(from_copy), **shape)
    rows.append(exact(7, "EMA does not move the limit", theory.final_weight(0.8, eta, variance), at_rest))
    critical = theory.critical_start(eta, variance).to(device).expand(4)
    measured = edge(grows, 0.5 * critical, 1.5 * critical, points=129)
    rows.append(exact(7, "nor the basin, if the target starts as a copy", critical, measured))
    strong = torch.tensor([0.6, 1.0, 2.0, 4.0], dtype=torch.float64, device=device).expand(4, 4)
    survives_zero_target = survives(directset, ema_start(strong, target=0.0), **shape).any(1)  # (4,)

    def slowest(b):
        state = torch.full((1, 2), theory.final_weight(0.8, eta, variance).item(), dtype=torch.float64)
        field = partial(
            directset, auto=torch.ones(1, 1).double(), cross=torch.ones(1, 1).double(), eta=eta, beta=b
        )
        jacobian = torch.autograd.functional.jacobian(field, state).reshape(2, 2)
        return -torch.linalg.eigvals(jacobian).real.max()

    rates = torch.stack([slowest(b) for b in beta.tolist()])
    predicted = theory.ema_rate(eta, variance, 1.0, beta.cpu())
    rows.append(exact(7, "EMA slows: rate of the last approach", predicted, rates))

    times = torch.linspace(0, 60, 61)
    start = torch.full((4, 1, 2), 0.6, dtype=torch.float64, device=device)
    args = (one, one, eta, 0.0, beta[:, None, None])
    paths = integrate(directset, start, times, args, state_dims=2)[..., 0, 0]  # (T, 4)
    data = {"times": times, "paths": paths, "beta": beta, "survives_zero_target": survives_zero_target}
    return Evidence(rows, data | {"limit": theory.final_weight(0.8, eta, variance)})


@experiment
def claim_8(device="cpu", starts: int = 20, seed: int = 0, d: int = 6, rank: int = 3) -> Evidence:
    """From generic starts, not multiples of I, the row space that W learns becomes S."""
    eta, variance, eps = 0.2, 1.0, 0.4
    Q = random_basis(d, seed, device)
    S, B = Q[:, :rank], Q[:, rank:]
    eye = torch.eye(d, dtype=torch.float64, device=device)
    W0 = 0.1 * _gaussian(starts, d, d, seed=seed + 1, device=device)
    times = torch.linspace(0, 120, 61)
    auto = (eye + variance * B @ B.mT)[None]
    path = integrate(directset, W0, times, (auto, eye[None], eta, eps), state_dims=2)  # (T, starts, d, d)
    sines = sine_to(row_space(path, rank), S)  # (T, starts)
    nuisance = torch.linalg.matrix_norm(path @ B)  # (T, starts)
    bound = nuisance[0] * torch.exp(-(eta - theory.threshold(variance)) * times.to(device))[:, None]
    strongest = torch.linalg.svdvals(path[-1])[:, :rank]
    rows = [
        exact(
            8,
            f"largest angle to S after t = 120, worst of {starts} random starts: sine",
            0.0,
            sines[-1].max(),
        ),
        exact(
            8,
            "the rank-r singular values end at sqrt(q+ - eps)",
            theory.final_weight(1.0, eta, 0.0, eps=eps),
            strongest,
        ),
        exact(
            8,
            "|W P_B| <= |W(0) P_B| exp(-(eta - 1/(4(1+variance))) t): violations",
            0.0,
            (nuisance > bound * (1 + 1e-9)).sum(),
        ),
    ]
    rows.append(_angle_rate(Q, rank, seed, device))
    return Evidence(rows, {"times": times, "sines": sines, "rank": rank, "d": d})


def _angle_rate(Q, rank, seed, device) -> dict:
    """With as many outputs as S has dimensions, the angle to S closes at the rate σ² q+²."""
    eta, variance, eps = 0.16, 0.6, 0.25
    d = len(Q)
    eye = torch.eye(d, dtype=torch.float64, device=device)
    S, B = Q[:, :rank], Q[:, rank:]
    auto = eye + variance * B @ B.mT
    # Orthonormal on S, so that no direction of S is late; anything on the nuisance features.
    W0 = (
        random_basis(rank, seed + 2, device) @ S.mT
        + 0.3 * _gaussian(rank, d, seed=seed, device=device) @ B @ B.mT
    )
    flow = partial(directset, alpha=2.0)  # settles on q+ several times faster than the angle closes
    options = {"state_dims": 2, "rtol": 1e-13, "atol": 1e-16}
    path = integrate(flow, W0, [20.0, 26.0], (auto, eye, eta, eps), **options)
    sines = sine_to(row_space(path, rank), S)
    predicted = variance * theory.fixed_points(eta, 0.0)[1].square()
    measured = (sines[0] / sines[1]).log() / 6
    return exact(8, "the sine of the angle to S falls at the rate variance q+²", predicted, measured)
