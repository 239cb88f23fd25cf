"""Claims 1 to 5: the fate of one feature, and of a network whose features do not mix."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from . import closed_forms as theory
from .evidence import Evidence, exact, experiment
from .flow import directset, feature
from .solver import edge, integrate, limit, survives

ALPHAS = (0.5, 1.0, 2.0)  # DirectPred's power, DirectCopy's, and one beyond


def _axes(*values, device) -> list[Tensor]:
    """Axes of a grid as tensors that broadcast: the first varies slowest."""
    axes = [torch.as_tensor(v, dtype=torch.float64, device=device) for v in values]
    return list(torch.meshgrid(*axes, indexing="ij"))


def _final(delta, variance, eta, alpha, eps=0.0) -> Tensor:
    """Weights that the reduced flow ends at, for arguments that broadcast."""
    args = (torch.as_tensor(a, dtype=torch.float64) for a in (delta, variance, eta, alpha, eps))
    args = torch.broadcast_tensors(*args)
    return limit(feature, args[0], args[1:], state_dims=0)


def random_basis(d: int, seed: int = 0, device="cpu") -> Tensor:
    """Random orthonormal basis (d, d): the first r columns span S, the others B."""
    gaussian = torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(gaussian).Q.to(device)


@experiment
def claim_1(device="cpu") -> Evidence:
    """The eigenvalue q of a feature has the fixed points 0, q- and q+; 0 and q+ are stable."""
    alpha, variance, part = _axes(ALPHAS, (0.0, 0.5, 1.0, 2.0), (0.2, 0.5, 0.9), device=device)
    eta = part * theory.threshold(variance)
    q_minus, q_plus = theory.fixed_points(eta, variance)
    c = 1 + variance

    def eigenvalue(lam):
        return (c * lam.square()) ** alpha

    ends = eigenvalue(_final(torch.ones_like(eta), variance, eta, alpha))

    def grows(starts):  # (*grid, points)
        wide = tuple(v.unsqueeze(-1) for v in (variance, eta, alpha))
        return integrate(feature, starts, [400.0], wide, state_dims=0, rtol=1e-8)[0] > starts

    top = theory.weight(q_plus, variance, alpha)
    divides = eigenvalue(edge(grows, 0.01 * top, top))
    rates = {}
    for name, q in (("q-", q_minus), ("q+", q_plus)):
        lam = theory.weight(q, variance, alpha).requires_grad_()
        velocity = feature(lam, variance, eta, alpha)
        (jacobian,) = torch.autograd.grad(velocity.sum(), lam)
        rates[name] = exact(
            1,
            f"rate at {name} is 2 alpha q (1 - 2 c q)",
            2 * alpha * q * (1 - 2 * c * q),
            jacobian,
        )
    rows = [
        exact(1, "q+ is where the flow stops, from delta = 1", q_plus, ends),
        exact(1, "q- divides collapse from survival", q_minus, divides),
        *rates.values(),
    ]
    return Evidence(rows)


@experiment
def claim_2(device="cpu") -> Evidence:
    """Weight decay is a threshold on the variance; survivors weigh more the lower their variance."""
    alpha, variance = _axes(ALPHAS, (0.0, 0.5, 1.0, 2.0, 4.0), device=device)

    def alive(etas):  # (*grid, points)
        args = (variance.unsqueeze(-1), etas, alpha.unsqueeze(-1))
        return survives(feature, torch.ones_like(etas), args, state_dims=0)

    low, high = torch.full_like(variance, 0.01), torch.full_like(variance, 0.5)
    measured = edge(alive, low, high)
    rows = [exact(2, "a feature survives iff eta < 1/(4(1+variance))", theory.threshold(variance), measured)]

    eta, variances = 0.15, torch.tensor([0.0, 0.25, 0.5, 1.0, 2.0, 4.0], dtype=torch.float64, device=device)
    start = torch.eye(6, dtype=torch.float64, device=device)
    args = (start + torch.diag(variances), start, eta)
    times = torch.cat([torch.linspace(0, 0.3, 25), torch.logspace(-0.5, 2, 90)])
    for a in ALPHAS:
        W = limit(partial(directset, alpha=a), start, args, state_dims=2)
        target = torch.diag(theory.final_weight(1.0, eta, variances, a))
        rows.append(exact(2, f"six features in one network, alpha = {a:g}, end at their weights", target, W))
    path = integrate(directset, start, times, args, state_dims=2).diagonal(dim1=-2, dim2=-1)
    data = {"times": times, "weights": path, "variances": variances, "eta": eta}
    return Evidence(rows, data | {"limits": theory.final_weight(1.0, eta, variances)})


@experiment
def claim_3(device="cpu", d: int = 6, rank: int = 3, variance: float = 1.0, eta: float = 0.2) -> Evidence:
    """Theorem 1: W tends to a multiple of the projection on S, for every alpha."""
    Q = random_basis(d, device=device)
    P_S, P_B = Q[:, :rank] @ Q[:, :rank].mT, Q[:, rank:] @ Q[:, rank:].mT
    eye = torch.eye(d, dtype=torch.float64, device=device)
    auto = eye + variance * P_B
    rows, limits = [], {}
    for alpha in ALPHAS:
        flow = partial(directset, alpha=alpha)
        factor = theory.theorem_1(eta, variance, alpha)
        edge_start = theory.critical_start(eta, 0.0, alpha).item()
        above, below = (
            limit(flow, f * edge_start * eye, (auto, eye, eta), state_dims=2) for f in (1.01, 0.99)
        )
        rows += [
            exact(
                3,
                f"W tends to {factor:.4f} P_S, alpha = {alpha:g}: factor",
                factor,
                (above * P_S).sum() / rank,
            ),
            exact(
                3,
                f"distance from that multiple of P_S, alpha = {alpha:g}",
                0.0,
                (above - factor * P_S).norm(),
            ),
            exact(3, f"1 % below the critical delta W tends to 0, alpha = {alpha:g}", 0.0, below.norm()),
        ]
        limits[alpha] = above

    def grows(deltas):  # (1, points): the whole network, not one feature
        starts = deltas[..., None, None] * eye
        args = (auto[None, None], eye[None, None], eta)
        W = integrate(directset, starts, [100.0], args, state_dims=2, rtol=1e-8)[0]
        return torch.linalg.matrix_norm(W) > torch.linalg.matrix_norm(starts)

    critical = theory.critical_start(eta, 0.0).to(device).reshape(1)
    measured = edge(grows, 0.5 * critical, 1.5 * critical, points=129)
    rows.append(exact(3, "critical delta of the whole network, alpha = 1", critical, measured))
    return Evidence(rows, {"limits": limits, "P_S": P_S, "eta": eta})


@experiment
def claim_4(device="cpu") -> Evidence:
    """Without weight decay nothing is discarded: q tends to 1/(1 + variance)."""
    alpha, variance, delta = _axes(ALPHAS, (0.0, 1.0, 4.0, 9.0), (0.1, 1.0), device=device)
    weights = _final(delta, variance, torch.zeros_like(delta), alpha)
    ends = ((1 + variance) * weights.square()) ** alpha
    return Evidence([exact(4, "eta = 0: q tends to 1/(1+variance), all survive", 1 / (1 + variance), ends)])


@experiment
def claim_5(device="cpu", grid: int = 80) -> Evidence:
    """DirectCopy's eps makes the origin unstable inside (q-, q+), and cannot save a nuisance feature."""
    eta, nuisance = 0.2, 1.0
    q_minus, q_plus = (q.item() for q in theory.fixed_points(eta, 0.0))
    eps = torch.linspace(0.0, 1.2 * q_plus, 49, dtype=torch.float64, device=device)
    tiny, horizon = 1e-9, 10.0
    grown = integrate(
        feature, torch.full_like(eps, tiny), [horizon], (0.0, eta, 1.0, eps), state_dims=0, atol=0.0
    )
    rate = -(eps - q_minus) * (eps - q_plus)
    rows = [
        exact(
            5, "growth rate at the origin is -(eps - q-)(eps - q+)", rate, (grown[0] / tiny).log() / horizon
        )
    ]
    inside = torch.linspace(q_minus, q_plus, 19, dtype=torch.float64, device=device)[1:-1]
    escaped = _final(1e-4, 0.0, eta, 1.0, inside)
    rows.append(
        exact(5, "from delta = 1e-4, q- < eps < q+: weight sqrt(q+ - eps)", (q_plus - inside).sqrt(), escaped)
    )
    dead = _final(1.0, nuisance, eta, 1.0, eps)
    rows.append(
        exact(5, "a nuisance feature above its threshold dies for every eps", torch.zeros_like(dead), dead)
    )

    start, eps = _axes(torch.logspace(-3, 0, grid), cell_centres(0.0, 1.1 * q_plus, grid), device=device)
    weights = _final(start, 0.0, eta, 1.0, eps)
    predicted = theory.final_weight(start, eta, 0.0, eps=eps)
    wrong = ((weights > 1e-3) != (predicted > 0)).sum()
    rows.append(exact(5, f"basin of collapse: cells of {grid} x {grid} on the wrong side", 0.0, wrong))
    kept = _final(1.0, torch.tensor([0.0, 1.0, 3.0, 9.0], device=device), 0.0, 1.0, 0.3)
    rows.append(
        exact(
            5,
            "eps alone is a threshold too (eta = 0): weights of four variances",
            theory.final_weight(1.0, 0.0, [0.0, 1.0, 3.0, 9.0], eps=0.3).to(device),
            kept,
        )
    )
    data = {"start": start[:, 0], "eps": eps[0], "weights": weights, "eta": eta}
    return Evidence(rows, data | {"q_minus": q_minus, "q_plus": q_plus})


def cell_centres(low: float, high: float, n: int) -> Tensor:
    """Centres of n equal cells: no cell lies on a boundary that starts at a round number."""
    return low + (high - low) * (torch.arange(n, dtype=torch.float64) + 0.5) / n
