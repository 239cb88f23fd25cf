"""At the very edge of each window: closed forms and verdicts against the integrator, for every alpha."""

from functools import partial

import numpy as np
import pytest
import torch

from dcopy import theory
from dcopy.theory.explorer import LONGEST, SLIDERS, Explorer, as_shown, fate, path, verdict

ALPHAS = (0.25, 0.5, 1.0, 2.0, 3.0)
VARIANCES = (0.0, 0.1, 1.0, 3.05)

CELLS = torch.cartesian_prod(torch.tensor(ALPHAS).double(), torch.tensor(VARIANCES).double())
ALPHA, VARIANCE = CELLS.unbind(1)  # (cells,)

in_both_conventions = pytest.mark.parametrize("convention", theory.CONVENTIONS)


def eigenvalue(lam, eps, convention):
    s = 1 + VARIANCE if convention == "views" else 1.0
    return (s * lam**2) ** ALPHA + eps


def resting(delta, eta, eps, convention):
    """The eigenvalues q at which the integrator comes to rest: q, as slow decays end late in λ."""
    args = torch.broadcast_tensors(delta, VARIANCE, eta, ALPHA, torch.as_tensor(eps).double())
    field = partial(theory.feature, convention=convention)
    return eigenvalue(theory.limit(field, args[0], args[1:], state_dims=0), eps, convention)


def predicted(delta, eta, eps, convention):
    return theory.final_weight(delta, eta, VARIANCE, ALPHA, eps, convention=convention)


def fates(delta, eta, eps, convention) -> set[str]:
    rows = torch.stack(
        torch.broadcast_tensors(delta, eta, VARIANCE, ALPHA, torch.as_tensor(eps).double()), dim=1
    )
    return {fate(*row, convention) for row in rows.tolist()}


def close(q, expected):
    torch.testing.assert_close(q, expected, rtol=0, atol=2e-6)


@in_both_conventions
@pytest.mark.parametrize("eps", [0.0, 0.05])
def test_on_the_threshold_a_start_above_rests_where_the_fixed_points_meet(convention, eps):
    eta = theory.threshold(VARIANCE)
    q_minus, q_plus = theory.fixed_points(eta, VARIANCE)
    assert torch.equal(q_minus, q_plus) and torch.equal(q_plus, 1 / (2 * (1 + VARIANCE)))
    meeting = theory.weight(q_plus, VARIANCE, ALPHA, eps, convention=convention)
    for factor in (1.2, 1.0, 0.8):
        model = (factor * meeting, eta, eps, convention)
        lam = predicted(*model)
        assert ((lam > 0) == (factor >= 1)).all()
        close(resting(*model), eigenvalue(lam, eps, convention))
        assert fates(*model) == {"threshold" if factor >= 1 else "basin"}


@in_both_conventions
def test_a_relative_1e_9_off_the_threshold_it_is_not_the_edge(convention):
    eta, start = theory.threshold(VARIANCE), torch.tensor(1.2).double()
    for factor, expected in ((1 - 1e-9, "kept"), (1 + 1e-9, "eta"), (1 + 2.3e-16, "threshold")):
        assert fates(start, factor * eta, 0.0, convention) == {expected}


@in_both_conventions
def test_on_the_edge_of_the_basin_a_start_stays_and_beside_it_leaves(convention):
    eta = 0.8 * theory.threshold(VARIANCE)
    q_minus, q_plus = theory.fixed_points(eta, VARIANCE)
    edge = theory.critical_start(eta, VARIANCE, ALPHA, convention=convention)
    assert torch.equal(predicted(edge, eta, 0.0, convention), edge)
    assert fates(edge, eta, 0.0, convention) == {"saddle"}
    rate = 2 * ALPHA * q_minus * (1 - 2 * (1 + VARIANCE) * q_minus)
    field = partial(theory.feature, convention=convention)
    args = (VARIANCE, eta, ALPHA)
    close(theory.integrate(field, edge, [5 / rate.max().item()], args, state_dims=0)[0], edge)
    for factor, end, name in ((1 + 1e-6, q_plus, "kept"), (1 - 1e-6, 0 * q_plus, "basin")):
        model = (factor * edge, eta, 0.0, convention)
        assert fates(*model) == {name}
        close(eigenvalue(predicted(*model), 0.0, convention), end)
        close(resting(*model), end)


@in_both_conventions
def test_with_eps_on_a_fixed_point_the_origin_is_left_or_reached_slowly(convention):
    eta = 0.8 * theory.threshold(VARIANCE)
    q_minus, q_plus = theory.fixed_points(eta, VARIANCE)
    for eps, start, name in ((q_minus, 0.5, "kept"), (q_plus, 1.0, "eps")):  # leaves 0; falls to 0, q = eps
        model = (torch.full_like(eta, start), eta, eps, convention)
        lam = predicted(*model)
        assert ((lam > 0) == (name == "kept")).all() and fates(*model) == {name}
        close(eigenvalue(lam, eps, convention), q_plus)
        close(resting(*model), q_plus)
        edge = theory.critical_start(eta, VARIANCE, ALPHA, eps, convention=convention)
        assert (edge == (0 if name == "kept" else torch.inf)).all()


def test_slider_values_are_those_that_its_label_shows():
    steps = 0.2
    for _ in range(10):
        steps += 0.005  # as a slider adds up
    assert steps != 0.25 and as_shown("eta", steps) == 0.25
    explorer = Explorer()
    box = explorer.widget()
    sliders = dict(zip(SLIDERS, box.children[0].children[:-1], strict=True))
    for name, (_, low, _, step, _) in SLIDERS.items():
        decimals = int(sliders[name].readout_format[1:-1])
        assert round(low + step, decimals) == low + step  # no two positions look the same
    sliders["eta"].value = 0.25000000000000006
    assert explorer.values["eta"] == 0.25 and "eta is 1/4" in explorer.title.get_text()
    assert explorer.limits[0].get_ydata()[0] == pytest.approx(0.5**0.5)


@in_both_conventions
@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"eta": 0.25}, "on the edge: eta is 1/4"),
        ({"eta": 0.125}, "on the edge: eta is the noisy feature's threshold"),
        ({"eta": 0.24, "alpha": 0.5, "delta": 0.4}, "on the edge: S starts at its q-"),
        ({"eta": 0.09, "eps": 0.9}, "collapse: eps is not below q+"),
        ({"eta": 0.09, "eps": 0.1}, "both are kept"),
        ({"eta": 0.1, "variance": 0.0}, "both are kept: neither has noise"),
        ({"eta": 0.0}, "both are kept"),
        ({"eta": 0.255}, "collapse: eta is above 1/4"),
    ],
)
def test_verdicts_at_the_edges(values, words, convention):
    defaults = {name: value for name, (*_, value) in SLIDERS.items()}
    assert words in verdict(**defaults | values, convention=convention)


def test_a_noisy_feature_may_be_kept_alone_by_the_algorithm_and_not_by_the_paper():
    model = {"eta": 0.1, "variance": 1.0, "alpha": 1.0, "eps": 0.0, "delta": 0.3}
    assert "only the noisy feature is kept" in verdict(**model)
    assert "collapse" in verdict(**model, convention="data")


@in_both_conventions
@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_drawn_path_is_the_integrated_one_at_the_edges(alpha, convention):
    edges = torch.tensor(  # eta, eps, delta
        [
            (0.25, 0.0, 0.9),
            (0.125, 0.0, 0.9),
            (0.255, 0.0, 1.0),
            (0.126, 0.0, 0.9),
            (0.09, 0.9, 1.0),
            (0.09, 0.1, 0.7),
        ]
    ).double()
    eta, eps, delta = edges.round(decimals=6).unsqueeze(-1).unbind(1)  # (edges, 1)
    variances = torch.tensor([0.0, 1.0], dtype=torch.float64)
    checked = (1.0, 10.0, float(LONGEST))
    field, start = partial(theory.feature, convention=convention), delta.expand(-1, 2)
    grid = (variances.expand_as(start), eta.expand_as(start), alpha, eps.expand_as(start))
    exact = theory.integrate(field, start, checked, grid, state_dims=0)  # (times, edges, 2)
    for k, (eta, eps, delta) in enumerate(edges.round(decimals=6).tolist()):
        ends = theory.final_weight(delta, eta, variances, alpha, eps, convention=convention)
        times, weights = path(delta, ends, variances, eta, alpha, eps, convention)
        for j in (0, 1):
            drawn = np.interp(checked, times[:, j].numpy(), weights[:, j].numpy())
            torch.testing.assert_close(torch.from_numpy(drawn), exact[:, k, j], rtol=0, atol=5e-4)


def test_a_start_at_rest_is_drawn_as_a_line():
    variances = torch.tensor([0.0], dtype=torch.float64)
    ends = theory.final_weight(0.4, 0.24, variances, 0.5)
    times, weights = path(0.4, ends, variances, 0.24, 0.5, 0.0, "views")
    assert times.isfinite().all() and times[-1] > LONGEST
    torch.testing.assert_close(weights, torch.full_like(weights, 0.4))


def test_the_picture_says_where_its_axis_is_too_short():
    explorer = Explorer()
    assert explorer.note.get_text() == ""
    explorer.update(eta=0.0, alpha=1.0, delta=0.05)
    note = explorer.note.get_text()
    assert "σ² = 0 is still on its way" in note
    shown = float(note.splitlines()[0].rpartition("≈ ")[2].replace(",", ""))
    start, end = torch.tensor([0.05], dtype=torch.float64), 1.0
    args = (torch.zeros(1).double(), 0.0, 1.0, 0.0)
    (reached,) = theory.integrate(theory.feature, start, [shown], args, state_dims=0)
    left = (end - reached.item()) / (end - 0.05)
    assert 0.003 < left < 0.03  # about 0.01: the time shown is a whole number, and a unit is a factor of 7


@pytest.mark.parametrize(("eta", "eps", "edge"), [(0.09, 0.1, 0.0), (0.24, 0.6, torch.inf)])
def test_an_eps_typed_in_decimals_is_on_the_fixed_point_that_it_names(eta, eps, edge):
    roots = torch.stack(theory.fixed_points(eta, 0.0))  # eps up to rounding, which a large alpha blows up
    assert 0 < (roots - eps).abs().min() < 1e-15
    assert (theory.critical_start(eta, 0.0, torch.tensor(ALPHAS), eps) == edge).all()
