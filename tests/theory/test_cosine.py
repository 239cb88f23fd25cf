"""The flow with the cosine loss against autograd, and rows that are measured only."""

import csv
from functools import partial

import pytest
import torch

from dcopy import theory
from dcopy.report import statements
from dcopy.theory.claims_cosine import clock, sampled_pull
from dcopy.theory.evidence import measured_only

D = 4


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def expected_cosine(W, W_a, W_p, auto, cross):
    """E<p, z> / sqrt(E|p|² E|z|²) from the moments, in another form than the flow's."""
    P = W_p @ W
    return (
        torch.trace(P @ cross @ W_a.T)
        / (torch.trace(P @ auto @ P.T) * torch.trace(W_a @ auto @ W_a.T)).sqrt()
    )


@pytest.fixture
def moments():
    A, B = gaussian(D, D, seed=1), gaussian(D, D, seed=2)
    X = A @ A.T / D + torch.eye(D)
    return X + B @ B.T / D, X


@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize("alpha", [0, 0.5, 1, 2])
@pytest.mark.parametrize("convention", theory.CONVENTIONS)
def test_velocity_is_minus_autograd_of_the_expected_cosine(moments, stop_gradient, alpha, convention):
    auto, cross = moments
    W = gaussian(D, D).requires_grad_()
    F = theory.correlation(W, auto if convention == "views" else cross)
    W_p = theory.set_predictor(F, alpha, eps=0.2).detach()
    target = W.detach() if stop_gradient else W
    loss = -expected_cosine(W, target, W_p, auto, cross) + 0.05 * W.square().sum()
    (grad,) = torch.autograd.grad(loss, W)
    options = {"alpha": alpha, "stop_gradient": stop_gradient, "convention": convention}
    velocity = theory.directset(W, auto, cross, 0.1, 0.2, pull=theory.cosine_descent, **options)
    torch.testing.assert_close(velocity, -grad, rtol=1e-9, atol=1e-10)


def test_a_target_of_its_own_and_the_norm_that_the_loss_does_not_see(moments):
    auto, cross = moments
    W, W_a, W_p = gaussian(D, D).requires_grad_(), gaussian(D, D, seed=5), gaussian(D, D, seed=6)
    (grad,) = torch.autograd.grad(-expected_cosine(W, W_a, W_p, auto, cross), W)
    pull = theory.cosine_descent(W, W_a, W_p, auto, cross)
    torch.testing.assert_close(pull, -grad, rtol=1e-9, atol=1e-10)
    assert abs((pull * W).sum()) < 1e-12
    assert pull.norm() > 0.01


def test_sampled_gradient_is_autograd_of_the_mean_cosine():
    W, W_p, x1, x2 = (
        gaussian(3, D).requires_grad_(),
        gaussian(3, 3, seed=1),
        gaussian(20, D, seed=2),
        gaussian(20, D, seed=3),
    )
    cosines = torch.nn.functional.cosine_similarity(x1 @ (W_p @ W).T, (x2 @ W.T).detach(), dim=1)
    (grad,) = torch.autograd.grad(-cosines.mean(), W)
    torch.testing.assert_close(sampled_pull(W, W_p, x1, x2), -grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("convention", theory.CONVENTIONS)
def test_shares_are_at_rest_and_have_q_in_proportion_to_1_over_c(alpha, convention):
    variances = torch.tensor([0.0, 0.5, 3.0], dtype=torch.float64)
    lam = theory.cosine_shares(variances, alpha, convention)
    q = ((1 + variances if convention == "views" else 1.0) * lam**2) ** alpha
    torch.testing.assert_close(q * (1 + variances), (q[0] * (1 + variances[0])).expand(3))
    cosine = partial(theory.directset, pull=theory.cosine_descent, alpha=alpha, convention=convention)
    velocity = cosine(torch.diag(lam), torch.diag(1 + variances), torch.eye(3).double())
    assert velocity.abs().max() < 1e-12


def test_the_clock_is_the_time_over_the_norm_squared():
    assert clock(3.0, 1e-9) == pytest.approx(3.0) and clock(3.0, 0.0) == 3.0
    times = torch.linspace(0, 3, 3001, dtype=torch.float64)
    assert clock(3.0, 0.2) == pytest.approx(torch.trapezoid((2 * 0.2 * times).exp(), times).item(), rel=1e-5)


def test_rows_that_are_measured_only_neither_pass_nor_fail(tmp_path):
    rows = [theory.Evidence([measured_only(13, "a; number", 0.25), measured_only(13, "b; other", 2.0)])]
    assert rows[0].passed
    assert "| 13 | a; number | — | 0.25 | — | — | measured only |" in theory.table(rows[0].rows)
    path = theory.record(rows[0].rows, tmp_path / "quick", "08")
    with open(path, encoding="utf-8") as file:
        assert [row["pass"] for row in csv.DictReader(file)] == ["", ""]
    claim = partial(statements.Claim, "statement", "08_theory_and_network", theory=(13,))
    assert statements.here(claim(), tmp_path / "quick") == ""
    assert statements.here(claim(measured="a"), tmp_path / "quick") == "number 0.25"
