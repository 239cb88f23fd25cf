"""Claims 1 to 3: the paper's equation, its fixed points and threshold, and Theorem 1."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from . import closed_forms as theory
from .evidence import Evidence, exact, experiment
from .flow import CONVENTIONS, copied, directset, feature
from .grid import ALPHAS, axes, both, random_basis, resting_weights
from .rates import edge_time
from .solver import edge, integrate, limit, survives

ENDS = {  # where a survivor comes to rest
    "data": "q+^(1/(2 alpha)), the paper's predictor",
    "views": "(q+^(1/alpha)/c)^(1/2), the algorithm's",
}


def _eigenvalue(lam: Tensor, variance: Tensor, alpha: Tensor, convention: str) -> Tensor:
    return (copied(1 + variance, 1.0, convention) * lam.square()) ** alpha


@experiment
def claim_1(device="cpu") -> Evidence:
    """The eigenvalue q of a feature has the fixed points 0, q- and q+; 0 and q+ are stable."""
    alpha, variance, part = axes(ALPHAS, (0.0, 0.5, 1.0, 2.0), (0.2, 0.5, 0.9), device=device)
    eta = part * theory.threshold(variance)
    q_minus, q_plus = theory.fixed_points(eta, variance)

    def ends(convention):
        weights = resting_weights(torch.ones_like(eta), variance, eta, alpha, convention=convention)
        return _eigenvalue(weights, variance, alpha, convention)

    def divides(convention):
        def grows(starts):  # (*grid, points)
            args = tuple(v.unsqueeze(-1) for v in (variance, eta, alpha))
            field = partial(feature, convention=convention)
            return integrate(field, starts, [400.0], args, state_dims=0, rtol=1e-8)[0] > starts

        top = theory.weight(q_plus, variance, alpha, convention=convention)
        return _eigenvalue(edge(grows, 0.01 * top, top), variance, alpha, convention)

    def rate(q, convention):
        lam = theory.weight(q, variance, alpha, convention=convention).requires_grad_()
        velocity = feature(lam, variance, eta, alpha, convention=convention)
        return torch.autograd.grad(velocity.sum(), lam)[0]

    rows = [
        *_paper_equation(device),
        exact(1, "q+ is where the flow stops, from delta = 1; both conventions", q_plus, both(ends)),
        exact(1, "q- divides collapse from survival; both conventions", q_minus, both(divides)),
    ]
    for name, q in (("q-", q_minus), ("q+", q_plus)):
        predicted = 2 * alpha * q * (1 - 2 * (1 + variance) * q)
        statement = f"rate at {name} is 2 alpha q (1 - 2 c q); both conventions"
        rows.append(exact(1, statement, predicted, both(partial(rate, q))))
    return Evidence(rows)


def _paper_equation(device, rank: int = 2) -> list[dict]:
    """The paper's equation of λ_B, written as there, against the flow of a whole network."""
    Q = random_basis(2 * rank, seed=4, device=device)
    P_S, P_B = Q[:, :rank] @ Q[:, :rank].mT, Q[:, rank:] @ Q[:, rank:].mT
    eye = torch.eye(2 * rank, dtype=torch.float64, device=device)
    sigma2, eta, lam_B = axes(
        (0.3, 1.0, 3.0), (0.05, 0.15, 0.3), torch.linspace(-1.2, 1.2, 49), device=device
    )
    wide = [v[..., None, None] for v in (sigma2, eta, lam_B)]  # (3, 3, 49, 1, 1)
    W, auto = 0.7 * P_S + wide[2] * P_B, eye + wide[0] * P_B
    off = []
    for alpha in ALPHAS:
        growth = -(1 + sigma2) * lam_B.abs() ** (4 * alpha) + lam_B.abs() ** (2 * alpha) - eta
        dW = directset(W, auto, eye, wide[1], alpha=alpha, convention="data")
        off.append(P_B @ dW @ P_B - (lam_B * growth)[..., None, None] * P_B)
    # Its bracket is largest where |λ_B|^(2 alpha) = 1/(2(1+σ²)): at 1/(4(1+σ²)) - eta.
    peak = (2 * (1 + sigma2)) ** (-1 / 2)  # |λ_B| with alpha = 1
    growth = feature(peak, sigma2, eta, convention="data") / peak
    gradient = torch.autograd.functional.jacobian(
        lambda lam: (feature(lam, sigma2, eta, convention="data") / lam).sum(), peak
    )
    return [
        exact(
            1, "the paper's equation of λ_B is W's velocity on B: largest difference", 0.0, torch.stack(off)
        ),
        exact(1, "(dλ_B/dt)/λ_B is stationary where |λ_B|^2 = 1/(2(1+variance)): its slope", 0.0, gradient),
        exact(1, "its value there is 1/(4(1+variance)) - eta", theory.threshold(sigma2) - eta, growth),
    ]


@experiment
def claim_2(device="cpu") -> Evidence:
    """Weight decay is a threshold on the variance; survivors weigh more the lower their variance."""
    alpha, variance = axes(ALPHAS, (0.0, 0.5, 1.0, 2.0, 4.0), device=device)
    low, high = torch.full_like(variance, 0.01), torch.full_like(variance, 0.5)

    def measured(convention):
        def alive(etas):  # (*grid, points)
            field = partial(feature, convention=convention)
            args = (variance.unsqueeze(-1), etas, alpha.unsqueeze(-1))
            return survives(field, torch.ones_like(etas), args, state_dims=0)

        return edge(alive, low, high)

    statement = "a feature survives iff eta < 1/(4(1+variance)); both conventions"
    rows = [
        exact(2, statement, theory.threshold(variance), both(measured)),
        _at_the_threshold(alpha, variance),
    ]

    eta, variances = 0.15, torch.tensor([0.0, 0.25, 0.5, 1.0, 2.0, 4.0], dtype=torch.float64, device=device)
    start = torch.eye(6, dtype=torch.float64, device=device)
    args = (start + torch.diag(variances), start, eta)
    times = torch.cat([torch.linspace(0, 0.3, 25), torch.logspace(-0.5, 2, 90)])
    data = {"times": times, "variances": variances, "eta": eta, "paths": {}, "limits": {}}
    for convention in CONVENTIONS:
        field = partial(directset, convention=convention)
        ends = partial(theory.final_weight, 1.0, eta, variances, convention=convention)
        for a in ALPHAS:
            W = limit(partial(field, alpha=a), start, args, state_dims=2)
            statement = f"six features in one network, alpha = {a:g}, end at {ENDS[convention]}"
            rows.append(exact(2, statement, torch.diag(ends(a)), W))
        noisy = f"of these, the survivor with sigma² = 0.5, alpha = {a:g}: {ENDS[convention]}"
        rows.append(exact(2, noisy, ends(a)[2], W[2, 2]))
        path = integrate(field, start, times, args, state_dims=2)
        data["paths"][convention] = path.diagonal(dim1=-2, dim2=-1)  # (T, 6)
        data["limits"][convention] = ends()
    return Evidence([*rows, *_only_the_noisy_one(device)], data)


def _at_the_threshold(alpha: Tensor, variance: Tensor) -> dict:
    """On the threshold itself q- and q+ are one; a start above comes to rest there, as 1/(alpha t)."""
    eta, late = theory.threshold(variance), 1e-3
    q_plus = theory.fixed_points(eta, variance)[1]
    times = edge_time(2 * q_plus, q_plus + late, variance, alpha)  # a cell's own time of arrival

    def distance(convention):
        def in_own_time(lam, time, *args):
            return time * feature(lam, *args, convention=convention)

        start = theory.weight(2 * q_plus, variance, alpha, convention=convention)
        (lam,) = integrate(in_own_time, start, [1.0], (times, variance, eta, alpha), state_dims=0, rtol=1e-12)
        return _eigenvalue(lam, variance, alpha, convention) - q_plus

    statement = "eta = 1/(4(1+variance)): q - q+ falls as 1/(alpha t), here to 0.001; both conventions"
    return exact(2, statement, late, both(distance))


def _only_the_noisy_one(device, delta: float = 0.3, eta: float = 0.1) -> list[dict]:
    """Below S's basin the algorithm's predictor can keep the noisy feature alone; the paper's cannot."""
    variance = torch.tensor([0.0, 1.0], dtype=torch.float64, device=device)
    rows = []
    for convention, kept in (
        ("views", "sigma² = 1 alone is kept by the algorithm's"),
        ("data", "none by the paper's"),
    ):
        predicted = theory.final_weight(delta, eta, variance, convention=convention)
        measured = resting_weights(delta, variance, eta, 1.0, convention=convention)
        statement = f"delta = {delta:g}, eta = {eta:g}, sigma² = 0 and 1: {kept} predictor"
        rows.append(exact(2, statement, predicted, measured))
    return rows


@experiment
def claim_3(device="cpu", d: int = 6, rank: int = 3, variance: float = 1.0, eta: float = 0.2) -> Evidence:
    """Theorem 1: W tends to a multiple of the projection on S, for every alpha."""
    Q = random_basis(d, device=device)
    P_S, P_B = Q[:, :rank] @ Q[:, :rank].mT, Q[:, rank:] @ Q[:, rank:].mT
    eye = torch.eye(d, dtype=torch.float64, device=device)
    args = (eye + variance * P_B, eye, eta)
    rows, limits = [], {}
    for alpha in ALPHAS:
        factor = theory.theorem_1(eta, variance, alpha)
        starts = theory.critical_start(eta, 0.0, alpha).item() * torch.tensor([1.01, 0.99]).to(eye)
        above, below = both(
            lambda convention, starts=starts, alpha=alpha: limit(
                partial(directset, alpha=alpha, convention=convention),
                starts[:, None, None] * eye,
                tuple(a[None] if isinstance(a, Tensor) else a for a in args),
                state_dims=2,
            )
        ).unbind(1)  # each (conventions, d, d)
        name = f"alpha = {alpha:g}"
        factors = (above * P_S).sum((-1, -2)) / rank
        distances = torch.linalg.matrix_norm(above - factor * P_S)
        collapsed = torch.linalg.matrix_norm(below)
        rows += [
            exact(3, f"W tends to {factor:.4f} P_S, {name}: factor; both conventions", factor, factors),
            exact(3, f"distance from that multiple of P_S, {name}; both conventions", 0.0, distances),
            exact(3, f"1 % below the critical delta W tends to 0, {name}; both conventions", 0.0, collapsed),
        ]
        limits[alpha] = above

    def critical(convention):
        def grows(deltas):  # (1, points): the whole network, not one feature
            starts = deltas[..., None, None] * eye
            wide = tuple(a[None, None] if isinstance(a, Tensor) else a for a in args)
            W = integrate(
                partial(directset, convention=convention), starts, [100.0], wide, state_dims=2, rtol=1e-8
            )
            return torch.linalg.matrix_norm(W[0]) > torch.linalg.matrix_norm(starts)

        return edge(grows, 0.5 * predicted, 1.5 * predicted, points=129)

    predicted = theory.critical_start(eta, 0.0).to(device).reshape(1)
    statement = "critical delta of the whole network, alpha = 1; both conventions"
    rows.append(exact(3, statement, predicted, both(critical)))
    return Evidence(rows, {"limits": limits, "P_S": P_S, "eta": eta})
