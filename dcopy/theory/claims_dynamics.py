"""Claims 6 to 8: what collapses without its parts, what EMA changes, and random starts."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from . import closed_forms as theory
from .evidence import Evidence, exact, experiment
from .flow import directset, feature
from .grid import both, random_basis
from .rates import ema_rate
from .samples import row_space, sine_to
from .solver import edge, integrate, limit, survives


def _gaussian(*shape: int, seed: int, device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device)


@experiment
def claim_6(device="cpu", seed: int = 0) -> Evidence:
    """W collapses without the predictor or without stop-gradient, not without EMA or weight decay."""
    eta, variances = 0.2, torch.tensor([0.0, 1.0], dtype=torch.float64, device=device)
    W0 = _gaussian(2, 2, seed=seed, device=device)
    rows = [*_without_predictor(W0, variances, eta), *_without_stop_gradient(W0, variances, eta)]
    times = torch.cat([torch.linspace(0, 6, 16), torch.linspace(9, 120, 38)])
    paths = _paths_without_a_part(times, variances, eta)
    return Evidence(rows, {"times": times, "paths": paths, "eta": eta, "variances": variances})


NO_PREDICTOR, NO_STOP = partial(directset, alpha=0), partial(directset, stop_gradient=False)


def _moments(variances: Tensor) -> tuple[Tensor, Tensor]:
    eye = torch.eye(len(variances), dtype=variances.dtype, device=variances.device)
    return eye + torch.diag(variances), eye


def _without_predictor(W0: Tensor, variances: Tensor, eta: float, time: float = 3.0) -> list[dict]:
    moments = _moments(variances)
    with_decay, without = (
        integrate(NO_PREDICTOR, W0, [time], (*moments, decay), state_dims=2)[0] for decay in (eta, 0.0)
    )
    statement = "no predictor: W(t) = W(0) exp(-(X' + eta) t), from any start"
    stays = "no predictor and no weight decay: a feature without noise stays where it is"
    return [
        exact(6, statement, W0 * torch.exp(-(variances + eta) * time), with_decay),
        exact(6, stays, W0[:, 0], without[:, 0]),
    ]


def _without_stop_gradient(W0: Tensor, variances: Tensor, eta: float, tiny: float = 1e-5) -> list[dict]:
    args = (*_moments(variances), eta)
    rest = limit(NO_STOP, W0, args, state_dims=2)
    late = integrate(NO_STOP, tiny * args[1], [2.0], args, state_dims=2)[0].diagonal()
    statement = "no stop-gradient: rate at the origin is -(1 + variance + eta)"
    return [
        exact(6, "no stop-gradient: W tends to 0", 0.0, rest.norm()),
        exact(6, statement, -(1 + variances + eta), (late / tiny).log() / 2),
    ]


def _paths_without_a_part(
    times: Tensor, variances: Tensor, eta: float, beta: float = 0.5
) -> dict[str, Tensor]:
    """Weights (T, 2) with all parts, and with one missing, by its name."""
    auto, cross = _moments(variances)
    start = 0.8 * cross
    pair = torch.cat([start, start], dim=-1)  # [W, W_a]
    variants = {  # name: field, start, arguments
        "all parts": (directset, pair, (auto, cross, eta, 0.0, beta)),
        "no predictor": (NO_PREDICTOR, pair, (auto, cross, eta, 0.0, beta)),
        "no stop-gradient": (NO_STOP, start, (auto, cross, eta)),
        "no EMA": (directset, start, (auto, cross, eta)),
        "no weight decay": (directset, pair, (auto, cross, 0.0, 0.0, beta)),
    }
    paths = {}
    for name, (field, initial, args) in variants.items():
        states = integrate(field, initial, times, args, state_dims=2)
        paths[name] = states[..., :2].diagonal(dim1=-2, dim2=-1)
    return paths


@experiment
def claim_7(device="cpu") -> Evidence:
    """A target scaled by tau narrows the window to tau²/(4(1+variance)); EMA slows, and moves nothing.

    With EMA it is one feature without noise, where the conventions are one.
    """
    eta, beta = 0.2, torch.tensor([0.05, 0.2, 1.0, 5.0], dtype=torch.float64, device=device)
    limit_rows, survives_zero_target = _with_ema(eta, beta)
    rows = [_scaled_target(device), *limit_rows, _slowest_rates(eta, beta)]

    times = torch.linspace(0, 60, 61)
    one = torch.ones(1, 1, 1, dtype=torch.float64, device=device)
    args = (one, one, eta, 0.0, beta[:, None, None])
    paths = integrate(directset, 0.6 * one.expand(4, 1, 2), times, args, state_dims=2)[..., 0, 0]  # (T, 4)
    data = {"times": times, "paths": paths, "beta": beta, "survives_zero_target": survives_zero_target}
    return Evidence(rows, data | {"limit": theory.final_weight(0.8, eta, 0.0)})


def _scaled_target(device) -> dict:
    """The largest weight decay that a feature survives when W_a = tau W."""
    tau = torch.tensor([0.7, 0.8, 0.9, 1.0], dtype=torch.float64, device=device)
    sigma2 = torch.tensor([[0.0], [1.0]], dtype=torch.float64, device=device).expand(2, 4)

    def measured(convention):
        def alive(etas):  # (2, 4, points); alpha, eps and signal as in the paper
            field = partial(feature, convention=convention)
            args = (sigma2[..., None], etas, 1.0, 0.0, 1.0, tau[:, None])
            return survives(field, torch.ones_like(etas), args, state_dims=0)

        return edge(alive, torch.full_like(sigma2, 0.01), torch.full_like(sigma2, 0.5))

    statement = "W_a = tau W: a feature survives iff eta < tau²/(4(1+variance)); both conventions"
    return exact(7, statement, theory.threshold(sigma2, tau=tau), both(measured))


def _with_ema(eta: float, beta: Tensor) -> tuple[list[dict], Tensor]:
    """Limit and basin for each beta (m,), and which beta survive a target that starts at 0."""
    one = torch.ones(1, 1, 1, 1, dtype=beta.dtype, device=beta.device)  # one feature: d = k = 1
    shape = {"state_dims": 2, "args": (one, one, eta, 0.0, beta[:, None, None, None])}

    def start(deltas, target=1.0):  # (m, points) -> (m, points, 1, 2), W_a started as `target` times W
        return deltas[..., None, None] * beta.new_tensor([[1.0, target]])

    def grows(deltas):
        return integrate(directset, start(deltas), [100.0], rtol=1e-8, **shape)[0, ..., 0, 0] > deltas

    at_rest = limit(directset, start(torch.full_like(beta, 0.8)[:, None]), **shape)
    critical = theory.critical_start(eta, 0.0).to(beta).expand(len(beta))
    measured = edge(grows, 0.5 * critical, 1.5 * critical, points=129)
    strong = beta.new_tensor([0.6, 1.0, 2.0, 4.0]).expand(len(beta), 4)
    rows = [
        exact(7, "EMA does not move the limit", theory.final_weight(0.8, eta, 0.0), at_rest),
        exact(7, "nor the basin, if the target starts as a copy", critical, measured),
    ]
    return rows, survives(directset, start(strong, target=0.0), **shape).any(1)


def _slowest_rates(eta: float, beta: Tensor) -> dict:
    """Smallest rate of approach to the limit, from the Jacobian of [W, W_a] there."""
    one = torch.ones(1, 1, dtype=torch.float64)
    state = theory.final_weight(0.8, eta, 0.0) * one.expand(1, 2)

    def slowest(b):
        field = partial(directset, auto=one, cross=one, eta=eta, beta=b)
        jacobian = torch.autograd.functional.jacobian(field, state).reshape(2, 2)
        return -torch.linalg.eigvals(jacobian).real.max()

    rates = torch.stack([slowest(b) for b in beta.tolist()])
    predicted = ema_rate(eta, 0.0, 1.0, beta.cpu())
    return exact(7, "EMA slows: rate of the last approach", predicted, rates)


@experiment
def claim_8(device="cpu", starts: int = 20, seed: int = 0, d: int = 6, rank: int = 3) -> Evidence:
    """From generic starts, not multiples of I, the row space that W learns becomes S."""
    eta, variance, eps = 0.2, 1.0, 0.4
    Q = random_basis(d, seed, device)
    S, B = Q[:, :rank], Q[:, rank:]
    eye = torch.eye(d, dtype=torch.float64, device=device)
    W0 = 0.1 * _gaussian(starts, d, d, seed=seed + 1, device=device)
    times = torch.linspace(0, 120, 61)
    args = ((eye + variance * B @ B.mT)[None], eye[None], eta, eps)

    def walk(convention):
        return integrate(partial(directset, convention=convention), W0, times, args, state_dims=2)

    path = both(walk)  # (conventions, T, starts, d, d)
    sines = sine_to(row_space(path, rank), S)  # (conventions, T, starts)
    nuisance = torch.linalg.matrix_norm(path @ B)
    decay = torch.exp(-(eta - theory.threshold(variance)) * times.to(device))[:, None]
    violations = nuisance > nuisance[:, :1] * decay * (1 + 1e-9)
    strongest = torch.linalg.svdvals(path[:, -1])[..., :rank]
    worst = f"largest angle to S after t = 120, worst of {starts} random starts: sine; both conventions"
    singular = "the rank-r singular values end at sqrt(q+ - eps); both conventions"
    bound = "|W P_B| <= |W(0) P_B| exp(-(eta - 1/(4(1+variance))) t): violations; both conventions"
    rows = [
        exact(8, worst, 0.0, sines[:, -1].max()),
        exact(8, singular, theory.final_weight(1.0, eta, 0.0, eps=eps), strongest),
        exact(8, bound, 0.0, violations.sum()),
        _angle_rate(Q, rank, seed, device),
    ]
    return Evidence(rows, {"times": times, "sines": sines[0], "rank": rank, "d": d})


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

    def rate(convention):  # this alpha settles on q+ several times faster than the angle closes
        flow = partial(directset, alpha=2.0, convention=convention)
        options = {"state_dims": 2, "rtol": 1e-13, "atol": 1e-16}
        path = integrate(flow, W0, [20.0, 26.0], (auto, eye, eta, eps), **options)
        first, last = sine_to(row_space(path, rank), S)
        return (first / last).log() / 6

    predicted = variance * theory.fixed_points(eta, 0.0)[1].square()
    statement = "the sine of the angle to S falls at the rate variance q+²; both conventions"
    return exact(8, statement, predicted, both(rate))
