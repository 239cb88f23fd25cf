"""Claims 4 and 5: without weight decay nothing is discarded; eps makes collapse unstable."""

from __future__ import annotations

from functools import partial

import torch

from . import closed_forms as theory
from .evidence import Evidence, exact, experiment
from .flow import copied, feature
from .grid import ALPHAS, axes, both, cell_centres, resting_weights
from .solver import integrate


@experiment
def claim_4(device="cpu") -> Evidence:
    """Without weight decay nothing is discarded: q tends to 1/(1 + variance)."""
    alpha, variance, delta = axes(ALPHAS, (0.0, 1.0, 4.0, 9.0), (0.1, 1.0), device=device)

    def ends(convention):
        weights = resting_weights(delta, variance, 0.0, alpha, convention=convention)
        return (copied(1 + variance, 1.0, convention) * weights.square()) ** alpha

    statement = "eta = 0: q tends to 1/(1+variance), all survive; both conventions"
    return Evidence([exact(4, statement, 1 / (1 + variance), both(ends))])


@experiment
def claim_5(device="cpu", grid: int = 80) -> Evidence:
    """DirectCopy's eps makes the origin unstable inside (q-, q+), and cannot save a nuisance feature."""
    eta, nuisance = 0.2, 1.0
    q_minus, q_plus = (q.item() for q in theory.fixed_points(eta, 0.0))
    eps = torch.linspace(0.0, 1.2 * q_plus, 49, dtype=torch.float64, device=device)
    inside = torch.linspace(q_minus, q_plus, 19, dtype=torch.float64, device=device)[1:-1]

    def growth(convention, tiny=1e-9, horizon=10.0):
        field, start = partial(feature, convention=convention), torch.full_like(eps, tiny)
        grown = integrate(field, start, [horizon], (0.0, eta, 1.0, eps), state_dims=0, atol=0.0)
        return (grown[0] / tiny).log() / horizon

    escaped = both(lambda convention: resting_weights(1e-4, 0.0, eta, 1.0, inside, convention))
    dead = both(lambda convention: resting_weights(1.0, nuisance, eta, 1.0, eps, convention))
    rows = [
        exact(
            5,
            "growth rate at the origin is -(eps - q-)(eps - q+); both conventions",
            -(eps - q_minus) * (eps - q_plus),
            both(growth),
        ),
        exact(
            5,
            "from delta = 1e-4, q- < eps < q+: weight sqrt(q+ - eps); both conventions",
            (q_plus - inside).sqrt(),
            escaped,
        ),
        exact(
            5,
            "a nuisance feature above its threshold dies for every eps; both conventions",
            torch.zeros_like(dead),
            dead,
        ),
    ]
    start, eps = axes(torch.logspace(-3, 0, grid), cell_centres(0.0, 1.1 * q_plus, grid), device=device)
    weights = resting_weights(start, 0.0, eta, 1.0, eps)  # without noise the conventions are one
    predicted = theory.final_weight(start, eta, 0.0, eps=eps)
    wrong = ((weights > 1e-3) != (predicted > 0)).sum()
    rows.append(exact(5, f"basin of collapse: cells of {grid} x {grid} on the wrong side", 0.0, wrong))

    # With eta = 0, eps alone is a threshold: above q+ = 1/(1+variance) it discards.
    kept, lost = eps.new_tensor(1.0), eps.new_tensor([3.0, 9.0])
    for convention, formula in (
        ("data", "(q+ - eps)^(1/2), the paper's"),
        ("views", "((q+ - eps)/c)^(1/2), the algorithm's"),
    ):
        predicted = theory.final_weight(1.0, 0.0, kept, eps=0.3, convention=convention)
        measured = resting_weights(1.0, kept, 0.0, 1.0, 0.3, convention)
        rows.append(
            exact(5, f"eta = 0, eps = 0.3: sigma² = 1 ends at {formula} predictor", predicted, measured)
        )
    ends = both(lambda convention: resting_weights(1.0, lost, 0.0, 1.0, 0.3, convention))
    rows.append(
        exact(5, "eta = 0, eps = 0.3: sigma² = 3 and 9 die; both conventions", torch.zeros_like(ends), ends)
    )
    data = {"start": start[:, 0], "eps": eps[0], "weights": weights, "eta": eta}
    return Evidence(rows, data | {"q_minus": q_minus, "q_plus": q_plus})
