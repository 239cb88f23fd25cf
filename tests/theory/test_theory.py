"""The flow against autograd, SciPy and itself; the closed forms against the flow; refusals."""

from functools import partial

import pytest
import torch
from scipy.integrate import solve_ivp

from dcopy import theory
from dcopy.theory.closed_forms import check
from dcopy.theory.explorer import SLIDERS, Explorer, path
from dcopy.theory.sample_forms import check_rank, check_step

D = 4  # features in most tests


def gaussian(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def second_moments(d=D, seed=1):
    """X and X' that share no eigenvectors: the general case."""
    A, B = gaussian(d, d, seed=seed), gaussian(d, d, seed=seed + 1)
    return A @ A.mT / d + torch.eye(d), 0.5 * B @ B.mT / d


def sampled_loss(layers, W_a, W_p, x1, x2, eta, stop_gradient=True):
    """Mean of both directions of ½|W_p W x1 - W_a x2|² plus ½ eta |layer|², as autograd sees it."""
    W = layers[0]
    for layer in layers[1:]:
        W = layer @ W
    target = W_a.detach() if stop_gradient else W
    loss = 0.0
    for a, b in ((x1, x2), (x2, x1)):
        residual = a @ (W_p @ W).mT - b @ target.mT  # (n, k)
        loss = loss + residual.square().sum() / (4 * len(a))
    return loss + sum(eta / 2 * layer.square().sum() for layer in layers)


@pytest.fixture
def pairs():
    x = gaussian(50, D, seed=7)
    return x + gaussian(50, D, seed=8, scale=0.5), x + gaussian(50, D, seed=9, scale=0.5)


@pytest.mark.parametrize("alpha", [0, 0.5, 1, 2])
@pytest.mark.parametrize("stop_gradient", [True, False])
def test_velocity_is_minus_autograd_of_the_sampled_loss(pairs, alpha, stop_gradient):
    auto, cross = theory.moments(*pairs)
    W = gaussian(D, D).requires_grad_()
    W_p = theory.set_predictor(theory.correlation(W, auto), alpha, eps=0.2).detach()
    (grad,) = torch.autograd.grad(sampled_loss([W], W, W_p, *pairs, 0.1, stop_gradient), W)
    velocity = theory.directset(W, auto, cross, 0.1, 0.2, alpha=alpha, stop_gradient=stop_gradient)
    torch.testing.assert_close(velocity, -grad, rtol=1e-10, atol=1e-10)


def test_velocity_with_a_target_of_its_own_is_minus_autograd(pairs):
    auto, cross = theory.moments(*pairs)
    W, W_a = gaussian(D, D).requires_grad_(), gaussian(D, D, seed=5)
    W_p = theory.correlation(W, auto).detach()
    (grad,) = torch.autograd.grad(sampled_loss([W], W_a, W_p, *pairs, 0.1), W)
    velocity = theory.directset(torch.cat([W, W_a], -1), auto, cross, 0.1, beta=0.3)
    torch.testing.assert_close(velocity[:, :D], -grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(velocity[:, D:], 0.3 * (W - W_a))


def test_learned_predictor_and_layers_are_minus_autograd(pairs):
    auto, cross = theory.moments(*pairs)
    W, W_p = gaussian(D, D).requires_grad_(), gaussian(D, D, seed=5).requires_grad_()
    loss = sampled_loss([W], W, W_p, *pairs, 0.1) + 0.05 * W_p.square().sum()
    grads = torch.autograd.grad(loss, (W, W_p))
    velocity = theory.learned(torch.cat([W, W_p], -1), auto, cross, 0.1)
    torch.testing.assert_close(velocity, -torch.cat(grads, -1), rtol=1e-10, atol=1e-10)

    layers = [gaussian(D, D, seed=s).requires_grad_() for s in (1, 2, 3)]
    W = (layers[2] @ layers[1] @ layers[0]).detach()
    W_p = theory.correlation(W, auto)
    grads = torch.autograd.grad(sampled_loss(layers, W, W_p, *pairs, 0.1), layers)
    velocity = theory.deep(torch.cat(layers, -1), auto, cross, 0.1, depth=3)
    torch.testing.assert_close(velocity, -torch.cat(grads, -1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("field", "columns"),
    [
        (partial(theory.directset, eta=0.1, eps=0.1, beta=0.5), 2 * D),
        (partial(theory.directset, eta=0.1, alpha=0.5), D),
        (partial(theory.directset, eta=0.1, alpha=2), D),
        (partial(theory.directset, eta=0.1, stop_gradient=False), D),
        (partial(theory.learned, eta=0.1), 2 * D),
        (partial(theory.deep, eta=0.1, depth=2), 2 * D),
    ],
)
def test_integrator_agrees_with_scipy(field, columns):
    X, noise = second_moments()
    start, times = gaussian(D, columns, scale=0.6), [0.5, 2.0, 10.0]

    def flat(_, y):
        return field(torch.from_numpy(y).reshape(D, columns), X + noise, X).flatten().numpy()

    reference = solve_ivp(flat, (0, 10), start.flatten().numpy(), "DOP853", times, rtol=1e-12, atol=1e-14)
    states = theory.integrate(field, start, times, (X + noise, X), state_dims=2)
    expected = torch.from_numpy(reference.y.T.copy()).reshape(3, D, columns)
    torch.testing.assert_close(states, expected, rtol=1e-8, atol=1e-9)


def test_a_cell_does_not_depend_on_its_neighbours():
    variance = torch.tensor([[0.0, 1.0, 2.0], [0.5, 3.0, 9.0]], dtype=torch.float64)
    eta = torch.tensor([0.05, 0.1, 0.2], dtype=torch.float64).expand(2, 3)
    together = theory.integrate(
        theory.feature, torch.ones_like(variance), [3.0, 30.0], (variance, eta), state_dims=0
    )
    for i in range(2):
        for j in range(3):
            one = torch.ones(1, dtype=torch.float64)
            args = (variance[i, j : j + 1], eta[i, j : j + 1])
            alone = theory.integrate(theory.feature, one, [3.0, 30.0], args, state_dims=0)
            torch.testing.assert_close(together[:, i, j], alone[:, 0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("convention", theory.CONVENTIONS)
def test_features_of_a_diagonal_network_follow_the_reduced_equation(convention):
    variances = torch.tensor([0.0, 0.5, 1.0, 4.0], dtype=torch.float64)
    signal = torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=torch.float64)
    lam = gaussian(D).abs()
    auto, cross = torch.diag(signal + variances), torch.diag(signal)
    for alpha, eps in ((0.5, 0.0), (1.0, 0.2), (2.0, 0.1)):
        options = {"alpha": alpha, "eps": eps, "convention": convention}
        whole = theory.directset(torch.diag(lam), auto, cross, 0.1, **options)
        reduced = theory.feature(lam, variances, 0.1, signal=signal, **options)
        torch.testing.assert_close(whole, torch.diag(reduced), rtol=1e-12, atol=1e-12)
    layers = torch.cat([torch.diag(lam)] * 3, -1)
    options = {"depth": 3, "convention": convention}
    whole = theory.deep(layers, torch.diag(1 + variances), torch.eye(D).double(), 0.1, **options)
    reduced = theory.deep_feature(lam, variances, 0.1, **options)
    torch.testing.assert_close(whole[:, :D], torch.diag(reduced), rtol=1e-12, atol=1e-12)


def test_directset_with_half_power_squares_back_to_f():
    F = theory.correlation(gaussian(D, D), torch.eye(D).double())
    root = theory.set_predictor(F, 0.5)
    torch.testing.assert_close(root @ root, F)
    torch.testing.assert_close(theory.set_predictor(F, 1.0, eps=0.1), F + 0.1 * torch.eye(D))
    torch.testing.assert_close(theory.set_predictor(F, 0), torch.eye(D).double())


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("eps", [0.0, 0.1])
@pytest.mark.parametrize("convention", theory.CONVENTIONS)
def test_fixed_points_are_zeros_of_the_velocity(alpha, eps, convention):
    signal, variance, eta, tau = 1.3, 0.7, 0.12, 0.9
    for q in theory.fixed_points(eta, variance, signal, tau):
        lam = theory.weight(q, variance, alpha, eps, signal, convention)
        if q > eps:  # no weight has an eigenvalue below eps
            assert lam > 0
            assert theory.feature(lam, variance, eta, alpha, eps, signal, tau, convention).abs() < 1e-14


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_the_paper_has_the_correlation_of_the_data_and_the_algorithm_that_of_the_views(alpha):
    lam_B, sigma2, eta = 0.6, 0.7, 0.05
    eye = torch.eye(2, dtype=torch.float64)
    W, auto = (torch.diag(torch.tensor(v, dtype=torch.float64)) for v in ([0.9, lam_B], [1.0, 1 + sigma2]))
    paper = lam_B * (-(1 + sigma2) * abs(lam_B) ** (4 * alpha) + abs(lam_B) ** (2 * alpha) - eta)
    dW = theory.directset(W, auto, eye, eta, alpha=alpha, convention="data")
    assert dW[1, 1].item() == pytest.approx(paper, rel=1e-12)
    views = theory.directset(W, auto, eye, eta, alpha=alpha)
    q = ((1 + sigma2) * lam_B**2) ** alpha
    assert views[1, 1].item() == pytest.approx(lam_B * (-(1 + sigma2) * q**2 + q - eta), rel=1e-12)
    torch.testing.assert_close(views[0], dW[0])  # on S they are the same


def test_final_weight_knows_every_fate():
    below, above = 0.99, 1.01
    edge = theory.critical_start(0.2, 0.0).item()
    assert theory.final_weight(below * edge, 0.2, 0.0) == 0  # collapse
    assert theory.final_weight(above * edge, 0.2, 0.0) > 0.8  # survival
    assert theory.final_weight(9.0, 0.2, 1.0) == 0  # above the threshold, from anywhere
    assert theory.final_weight(1e-9, 0.2, 0.0, eps=0.3) > 0.6  # eps in (q-, q+): escape
    assert theory.final_weight(9.0, 0.2, 0.0, eps=0.73) == 0  # eps above q+: collapse
    assert theory.critical_start(0.2, 1.0).isinf() and theory.critical_start(0.2, 0.0, eps=0.73).isinf()


def sampled(batch=8, rho=0.9):
    generator = torch.Generator().manual_seed(0)
    return next(theory.sgd(torch.eye(2).double()[None], torch.zeros(2), 0.16, 0.1, batch, rho, 1, generator))


def full_batch(rho=0.9, freq=1):
    eye = torch.eye(2).double()
    return next(theory.descend(eye, eye, eye, 0.16, 0.1, torch.tensor(rho), torch.tensor(freq), steps=1))


def learned_downstream(labels=(10,), noise=0.5):
    eye = torch.eye(2).double()[None]
    return theory.least_squares_excess(eye, eye, labels, noise, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            partial(theory.weight, 0.5, 1.0, convention="both"),
            "convention='both' is not allowed.*views.*data",
        ),
        (partial(theory.theorem_1, 0.25, 1.0), "eta=0.25 is not below 1/4"),
        (partial(theory.theorem_1, 0.125, 1.0), "eta=0.125 is not above"),
        (partial(theory.theorem_1, 0.24, 1.0, alpha=0.5, delta=0.4), "delta=0.4 is not above 0.4"),
        (partial(check, eta=-0.1), "eta=-0.1 is not allowed.*grow without bound"),
        (partial(check, variance=[0.0, -2.0]), "variance=-2.0 is not allowed.*positive semi-definite"),
        (partial(check, alpha=0.0), "alpha=0.0 is not allowed.*collapses"),
        (partial(check, eps=float("nan")), "eps=nan is not allowed"),
        (partial(check, delta=0.0), "delta=0.0 is not allowed.*nothing is learned"),
        (partial(theory.theorem_1, 0.3, 1.0), "below 1/4.*Theorem 1.*every feature decays"),
        (partial(theory.theorem_1, 0.1, 1.0), "above 1/.4.*Theorem 1.*nuisance features survive"),
        (partial(theory.theorem_1, 0.2, 1.0, delta=0.1), "delta=0.1 is not above.*Theorem 1.*collapses to 0"),
        (partial(check_rank, 5, 4), "r=5 is not allowed with d=4"),
        (partial(theory.two_variances, 3, 0, 1.0), "r=0 is not allowed with d=3"),
        (partial(theory.sgd_ball, 0.1, 1.0, 0.02, 64, 0.9, 4, 2), "eta=0.1 is not above"),
        (partial(theory.finite_sample_error, 100, 0.25, 1.0, 4, 2), "eta=0.25 is not below 1/4"),
        (partial(check_step, 3.0, 0.16, 1.0), "lr=3.0 is not allowed.*2/rate"),
        (partial(check_step, 0.0, 0.16, 1.0), "lr=0.0 is not allowed"),
        (partial(theory.excess_risk, 5, 4, 1.0), "5 labels for 4 features"),
        (partial(theory.integrate, theory.feature, torch.ones(1), [1.0, 0.5]), "must increase"),
        *(
            (partial(theory.integrate, theory.feature, torch.ones(1), [1.0, time]), f"times={time} is not")
            for time in (float("nan"), float("inf"))
        ),
        (
            partial(theory.integrate, theory.feature, torch.ones(1), [1.0], rtol=-1.0),
            "rtol=-1.0 is not allowed",
        ),
        (partial(theory.edge, torch.isnan, torch.tensor([-1.0]), torch.ones(1)), "low=-1.0.*positive"),
        (partial(theory.moments, torch.ones(0, 2), torch.ones(0, 2)), r"\(0, 2\): there is no sample"),
        (partial(theory.set_predictor, torch.eye(2), alpha=-1), "alpha=-1 is not allowed.*at least 0"),
        (partial(theory.set_predictor, torch.eye(2), alpha=float("nan")), "alpha=nan is not allowed"),
        (partial(theory.threshold, 0.0, signal=-2.0), "signal=-2.0 is not allowed.*positive semi-definite"),
        (partial(theory.threshold, 0.0, tau=-1.0), "tau=-1.0 is not allowed.*all features die"),
        (partial(theory.fixed_points, 0.1, 0.0, signal=-1.0), "signal=-1.0 is not allowed"),
        (partial(theory.fixed_points, 0.1, 0.0, tau=float("nan")), "tau=nan is not allowed"),
        (partial(theory.weight, 0.5, 0.0, alpha=-1.0), "alpha=-1.0 is not allowed"),
        (partial(theory.edge_time, 0.6, 1.0, 0.0), r"start=0.6, end=1 is not allowed.*q\+ = 0.5"),
        (partial(theory.edge_time, 1.0, 0.4, 0.0), "start=1, end=0.4 is not allowed"),
        (partial(theory.edge_time, 1.0, 0.6, -0.1), "variance=-0.1 is not allowed"),
        (partial(theory.ema_rate, 0.2, 0.0, 1.0, beta=-1.0), "beta=-1.0 is not allowed.*runs away"),
        (partial(theory.depth_threshold, 1.0, -1), "depth=-1.0 is not allowed"),
        (partial(theory.depth_threshold, 1.0, 0), "depth=0.0 is not allowed"),
        (partial(theory.deep_feature, torch.ones(1), 0.0, 0.1, depth=0), "depth=0 is not allowed"),
        (
            partial(theory.deep, torch.eye(2), torch.eye(2), torch.eye(2), 0.1, depth=0),
            "depth=0 is not allowed",
        ),
        (partial(theory.two_variances, 3, 1, -1.0), "variance=-1.0 is not allowed"),
        (partial(theory.row_space, torch.eye(3), -1), "r=-1 is not allowed with d=3"),
        (partial(theory.sgd_ball, 0.16, 1.0, 0.02, 0, 0.9, 4, 2), "batch=0.0 is not allowed"),
        (partial(theory.sgd_ball, 0.16, 1.0, 0.02, 64, 3.0, 4, 2), "rho=3.0 is not allowed"),
        (partial(theory.finite_sample_error, 0, 0.18, 1.0, 4, 2), "pairs=0.0 is not allowed"),
        (partial(check_rank, 1.5, 4), "r=1.5 is not allowed with d=4"),
        (partial(check_step, 0.1, 0.16, 1.0, alpha=0.0), "alpha=0.0 is not allowed"),
        (partial(theory.excess_risk, 43, 2, 1.0, missed=-5.0), "missed=-5.0 is not allowed"),
        (partial(theory.excess_risk, 43, -2, 1.0), "dim=-2.0 is not allowed"),
        (partial(theory.excess_risk, float("nan"), 2, 1.0), "nan labels for 2 features"),
        (partial(theory.labels_needed, -0.05, 2, 1.0), "excess=-0.05 is not allowed"),
        (partial(theory.labels_needed, 0.0, 2, 1.0), "excess=0.0 is not allowed.*no number of labels"),
        (partial(theory.labels_needed, 0.05, 2, -1.0), "noise=-1.0 is not allowed"),
        (partial(sampled, rho=3.0), "rho=3.0 is not allowed"),
        (partial(sampled, batch=0), "batch=0.0 is not allowed"),
        (partial(full_batch, rho=-0.5), "rho=-0.5 is not allowed"),
        (partial(full_batch, freq=0), "freq=0.0 is not allowed"),
        (partial(learned_downstream, labels=[10, 5]), r"labels=\[10, 5\] is not allowed.*must increase"),
        (partial(learned_downstream, labels=[]), r"labels=\[\] is not allowed"),
        (partial(learned_downstream, noise=-1.0), "noise=-1.0 is not allowed"),
    ],
)
def test_bad_parameters_say_which_condition_fails_and_what_happens_instead(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_what_lies_on_a_border_of_the_model_has_an_answer():
    assert theory.threshold(torch.tensor([0.0, 1.0]), signal=0.0).tolist() == [0.0, 0.0]  # it is only noise
    assert theory.final_weight(1.0, 0.1, 1.0, signal=0.0) == theory.final_weight(1.0, 0.1, 1.0, tau=0.0) == 0
    beta = torch.tensor([0.0, 1e9, float("inf")])
    still, fast, no_ema = theory.ema_rate(0.21, 0.0, 1.0, beta)
    assert still == 0 and no_ema.item() == pytest.approx(2 * 0.7 * 0.4, rel=1e-12)
    assert fast.item() == pytest.approx(no_ema.item(), rel=1e-6)
    check_step(1e3, 0.25, 0.0, delta=0.5**0.5)  # on the threshold at rest, nothing moves at any step size


def test_the_stated_step_size_limit_is_where_descent_stops_following_the_flow():
    eta, eye = 0.16, torch.eye(1).double()
    q = theory.fixed_points(eta, 0.0)[1].item()
    most = 2 / (2 * q * (2 * q - 1))
    start = (1 + 1e-6) * q**0.5 * eye
    for factor, shrinks in ((0.98, True), (1.02, False)):
        W = start
        for _ in range(50):
            W = W + factor * most * theory.directset(W, eye, eye, eta)
        assert ((W - q**0.5 * eye).abs() < 1e-6).item() is shrinks
    check_step(0.98 * most, eta, 0.0, delta=q**0.5)
    with pytest.raises(ValueError, match="not allowed"):
        check_step(1.02 * most, eta, 0.0, delta=q**0.5)


def test_a_solution_that_blows_up_is_reported():
    with pytest.raises(ValueError, match="leaves the finite numbers"):
        theory.integrate(lambda y: y.square(), torch.ones(1, dtype=torch.float64), [2.0], state_dims=0)


@pytest.mark.parametrize(("eta", "eps"), [(0.2, 0.0), (0.1, 0.0), (0.0, 0.0), (0.2, 0.4), (0.28, 0.1)])
def test_the_path_behind_the_sliders_is_the_integrated_one(eta, eps):
    variances = torch.tensor([0.0, 1.0], dtype=torch.float64)
    ends = theory.final_weight(0.8, eta, variances, eps=eps)
    times, weights = path(0.8, ends, variances, eta, 1.0, eps, "views")
    start = torch.full_like(variances, 0.8)
    for i in range(1000, len(times), 1000):  # late points lie close to the end
        for j in (0, 1):
            args = (variances[j : j + 1], eta, 1.0, eps)
            exact = theory.integrate(theory.feature, start[:1], [times[i, j].item()], args, state_dims=0)
            torch.testing.assert_close(weights[i, j], exact[0, 0], rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "as Theorem 1"),
        ({"eta": 0.1}, "both are kept"),
        ({"eta": 0.26}, "above 1/4"),
        ({"eps": 0.8}, "eps is not below q"),
        ({"delta": 0.2}, "basin of 0"),
        ({"convention": "data"}, "as Theorem 1"),
    ],
)
def test_sliders_redraw_the_picture_and_its_verdict(values, words):
    explorer = Explorer()
    before = explorer.png
    box = explorer.widget()
    sliders = dict(zip([*SLIDERS, "convention"], box.children[0].children, strict=True))
    for name, value in values.items():
        sliders[name].value = value
    assert words in explorer.title.get_text()
    assert box.children[1].value == explorer.png and (explorer.png != before) is bool(values)
    bundle, _ = explorer._repr_mimebundle_()  # the picture stays where no kernel is alive
    assert {"text/html", "application/vnd.jupyter.widget-view+json"} <= set(bundle)
