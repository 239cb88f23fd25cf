"""Predictors: each equals its formula, shares its eigenvectors with F and learns only where it should."""

import pytest
import torch
from helpers.ranks import on_ranks
from torch import nn

from dcopy.predictors import (
    DirectCopy,
    DirectPred,
    DirectSet,
    IdentityPredictor,
    LinearPredictor,
    MLPPredictor,
    SetPredictor,
)

D = 8
SET = {  # all predictors whose weight is computed from F
    "directcopy": lambda **kw: DirectCopy(D, **kw),
    "directcopy frobenius": lambda **kw: DirectCopy(D, normalize="frobenius", **kw),
    "directcopy spectral": lambda **kw: DirectCopy(D, normalize="spectral", **kw),
    "directset 2": lambda **kw: DirectSet(D, alpha=2, **kw),
    "directset 0.3": lambda **kw: DirectSet(D, alpha=0.3, **kw),
    "directpred": lambda **kw: DirectPred(D, **kw),
}
LEARNED = {
    "linear": lambda **kw: LinearPredictor(D, **kw),
    "mlp": lambda **kw: MLPPredictor(D, hidden=16, **kw),
    "identity": lambda **kw: IdentityPredictor(D, **kw),
}
set_predictors = pytest.mark.parametrize("make", SET.values(), ids=SET)
all_predictors = pytest.mark.parametrize("make", (SET | LEARNED).values(), ids=SET | LEARNED)


def projections(steps, eigenvalues=None, N=64, seed=0):
    """Projections (N, D) for some steps; their correlation has about these eigenvalues."""
    generator = torch.Generator().manual_seed(seed)
    s = torch.linspace(0.1, 2, D) if eigenvalues is None else torch.as_tensor(eigenvalues)
    U, _ = torch.linalg.qr(torch.randn(len(s), len(s), generator=generator))
    return [torch.randn(N, len(s), generator=generator) * s.sqrt() @ U.T for _ in range(steps)]


def after(predictor, zs):
    for z in zs:
        predictor.update(z)
    return predictor


# the running correlation


@all_predictors
def test_F_is_the_running_correlation_of_the_projections(make):
    """Neither centred nor normalized; the first step starts it, so it never remembers its zeros."""
    z1, z2, z3 = projections(3)
    predictor = after(make(rho=0.3), [z1, z2, z3])
    C1, C2, C3 = (torch.einsum("ni,nj->ij", z, z) / len(z) for z in (z1, z2, z3))
    F = 0.3 * (0.3 * C1 + 0.7 * C2) + 0.7 * C3
    torch.testing.assert_close(predictor.F, F)


@pytest.mark.parametrize("make", [SET["directcopy"], SET["directpred"], LEARNED["linear"]])
def test_F_is_averaged_over_ranks(make, tmp_path):
    """Two ranks with 20 and 44 of a step's projections: F and W_p as in one process with all 64."""
    zs = projections(3)
    shares = [[z.split([20, 44])[rank] for z in zs] for rank in range(2)]
    states = on_ranks(lambda rank: after(make(), shares[rank]).state_dict(), tmp_path)
    alone = after(make(), zs).state_dict()
    torch.testing.assert_close(states[0]["F"], alone["F"])
    for name in states[0].keys() & {"F", "weight"}:
        assert torch.equal(states[0][name], states[1][name])
        torch.testing.assert_close(states[0][name], alone[name])


def test_update_refuses_projections_of_another_shape():
    for shape in [(4, D + 1), (D,), (4, D, 1)]:
        with pytest.raises(ValueError, match=rf"z has shape .*; it must be \(N, {D}\)"):
            DirectCopy(D).update(torch.zeros(shape))


# set predictors equal their formulas


@pytest.mark.parametrize("eps", [0.0, 0.3])
def test_directcopy_is_F_plus_eps(eps):
    predictor = after(DirectCopy(D, eps=eps), projections(3))
    torch.testing.assert_close(predictor.weight, predictor.F + eps * torch.eye(D))


def test_frobenius_divides_F_by_its_norm():
    predictor = after(DirectCopy(D, eps=0.2, normalize="frobenius"), projections(3))
    F = predictor.F / predictor.F.square().sum().sqrt()
    torch.testing.assert_close(predictor.weight, F + 0.2 * torch.eye(D))


@pytest.mark.parametrize("alpha", [0.3, 0.5, 1, 2, 3, 2.5])
def test_directset_is_a_power_of_F(alpha):
    predictor = after(DirectSet(D, alpha=alpha, eps=0.1), projections(2))
    s, U = torch.linalg.eigh(predictor.F.double())
    W = U @ torch.diag(s**alpha + 0.1) @ U.T
    torch.testing.assert_close(predictor.weight.double(), W, atol=1e-4, rtol=1e-4)


def test_directpred_takes_roots_of_the_scaled_eigenvalues():
    predictor = after(DirectPred(D, eps=0.1), projections(2))
    s, U = torch.linalg.eigh(predictor.F.double())
    W = U @ torch.diag((s / s[-1]).sqrt() + 0.1) @ U.T
    torch.testing.assert_close(predictor.weight.double(), W, atol=1e-5, rtol=1e-4)


def test_directpred_is_directset_one_half_scaled_by_the_largest_eigenvalue():
    zs = projections(5)
    pred = after(DirectPred(D, eps=0.1), zs)
    half = after(DirectSet(D, alpha=0.5, eps=0.1, normalize="spectral"), zs)
    torch.testing.assert_close(half.weight, pred.weight, atol=1e-3, rtol=1e-3)


@set_predictors
def test_W_p_and_F_share_eigenvectors(make):
    predictor = after(make(), projections(3))
    _, U = torch.linalg.eigh(predictor.F.double())
    W = U.T @ predictor.weight.double() @ U
    assert (W - W.diagonal().diag()).norm() < 1e-5 * W.norm()


# the largest eigenvalue without a decomposition

SPECTRA = {
    "one": [1.0] + [0.0] * 63,
    "power law": [1 / (i + 1) for i in range(64)],
    "ten alike": [1.0] * 10 + [0.05] * 54,
    "close": [1.0] + [0.99] * 63,
    "all alike": [1.0] * 64,
    "small": [1e-12] * 2 + [1e-13] * 62,
}


@pytest.mark.parametrize("eigenvalues", SPECTRA.values(), ids=SPECTRA)
def test_spectral_scale_is_the_largest_eigenvalue(eigenvalues):
    """Within 1e-3 after the first steps, while F moves by 70 % of new noise a step."""
    predictor = DirectCopy(64, rho=0.3, eps=0.0, normalize="spectral")
    for step, z in enumerate(projections(15, eigenvalues, N=128)):
        predictor.update(z)
        scale = predictor.F.double().norm() / predictor.weight.double().norm()
        largest = torch.linalg.eigvalsh(predictor.F.double())[-1]
        assert step < 3 or abs(scale / largest - 1) < 1e-3, step


def test_spectral_scale_finds_a_direction_in_which_components_sum_to_zero():
    """F's leading eigenvector is orthogonal to the vector of ones, a usual start of power iterations."""
    predictor = DirectCopy(2, eps=0.0, normalize="spectral")
    predictor.update(torch.tensor([[1.0, -1.0], [0.1, 0.1]]))
    assert torch.linalg.eigvalsh(predictor.weight)[-1] == pytest.approx(1, abs=1e-3)


def test_spectral_scale_recovers_from_a_step_of_zeros():
    predictor = after(DirectCopy(D, eps=0.3, normalize="spectral"), [torch.zeros(4, D)])
    torch.testing.assert_close(predictor.weight, 0.3 * torch.eye(D))
    after(predictor, projections(4))
    assert torch.linalg.eigvalsh(predictor.weight)[-1] == pytest.approx(1.3, abs=1e-3)


@pytest.fixture
def no_decomposition(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a decomposition was called")

    for name in ("eigh", "eigvalsh", "eig", "eigvals", "svd", "svdvals"):
        monkeypatch.setattr(torch.linalg, name, refuse)


@pytest.mark.parametrize("name", ["directcopy", "directcopy frobenius", "directcopy spectral", "directset 2"])
def test_no_eigendecomposition_for_whole_powers(name, no_decomposition):
    after(SET[name](), projections(3, N=4))


def test_directpred_decomposes(no_decomposition):
    """So the test above can see what it looks for."""
    with pytest.raises(AssertionError, match="a decomposition was called"):
        DirectPred(D).update(torch.ones(4, D))


# eigendecompositions

DEGENERATE = {
    "zero": torch.zeros(16, D),
    "rank one": torch.ones(16, D),
    "repeated": torch.eye(D),
    "near singular": torch.eye(D) * torch.logspace(0, -12, D),
    "tiny": torch.full((16, D), 1e-20),
}


@pytest.mark.parametrize("make", [DirectPred, lambda D: DirectSet(D, alpha=0.5, normalize="spectral")])
@pytest.mark.parametrize("z", DEGENERATE.values(), ids=DEGENERATE)
def test_degenerate_spectra_give_a_bounded_weight(make, z):
    predictor = after(make(D), [z, z])
    eigenvalues = torch.linalg.eigvalsh(predictor.weight)
    assert eigenvalues.min() > predictor.eps - 1e-3 and eigenvalues.max() < 1 + predictor.eps + 1e-3


def test_a_failed_decomposition_falls_back_to_the_cpu_and_is_counted(monkeypatch):
    zs = projections(3)
    expected = after(DirectPred(D), zs)
    calls, eigh = [], torch.linalg.eigh

    def fail_first(matrix):
        calls.append(matrix)
        if len(calls) == 1:
            raise torch.linalg.LinAlgError("failed to converge")
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", fail_first)
    predictor = after(DirectPred(D), zs)
    assert predictor.eigh_fallbacks == 1 and expected.eigh_fallbacks == 0
    assert calls[1].device.type == "cpu" and calls[1].dtype == torch.float64
    torch.testing.assert_close(predictor.weight, expected.weight)


@set_predictors
def test_nan_goes_through_as_nan(make):
    """The training loop then names the step; a LinAlgError from a decomposition would not."""
    predictor = after(make(), [*projections(1), torch.full((4, D), torch.nan)])
    assert predictor.weight.isnan().any() and predictor.eigh_fallbacks == 0


def test_decompositions_stay_in_float32_under_autocast(monkeypatch):
    zs = [z.bfloat16() for z in projections(2)]
    expected = after(DirectPred(D), zs)
    seen, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: seen.append(matrix.dtype) or eigh(matrix))
    with torch.autocast("cpu", torch.bfloat16):
        predictor = after(DirectPred(D), zs)
    assert seen == [torch.float32] * 2
    assert torch.equal(predictor.F, expected.F) and torch.equal(predictor.weight, expected.weight)


# gradients


@set_predictors
def test_gradient_flows_to_z_and_not_to_W_p(make):
    predictor = make()
    z = projections(1)[0].requires_grad_()
    predictor.update(z)
    assert not list(predictor.parameters())
    assert not predictor.F.requires_grad and not predictor.weight.requires_grad
    p = predictor(z)
    torch.testing.assert_close(p, z @ predictor.weight.T)
    p.sum().backward()
    torch.testing.assert_close(z.grad, predictor.weight.sum(dim=0).expand(len(z), D))


@set_predictors
def test_freq_5_sets_every_fifth_step_and_leaves_the_rest_to_the_optimizer(make):
    predictor, every = make(freq=5), make()
    assert [name for name, _ in predictor.named_parameters()] == ["weight"]
    optimizer = torch.optim.SGD(predictor.parameters(), lr=0.1)
    for step, z in enumerate(projections(11)):
        before = predictor.weight.detach().clone()
        predictor.update(z)
        every.update(z)
        if step % 5 == 0:
            torch.testing.assert_close(predictor.weight.detach(), every.weight, atol=1e-3, rtol=1e-3)
        else:
            assert torch.equal(predictor.weight, before)
        before = predictor.weight.detach().clone()
        optimizer.zero_grad()
        predictor(z).square().mean().backward()
        optimizer.step()
        torch.testing.assert_close(predictor.weight.detach(), before - 0.1 * predictor.weight.grad)
        assert not torch.equal(predictor.weight, before)


# learned predictors


def test_learned_predictors_are_their_layers():
    z = projections(1)[0]
    linear, mlp = LinearPredictor(D, bias=True), MLPPredictor(D, hidden=16)
    torch.testing.assert_close(linear(z), z @ linear.weight.T + linear.linear.bias)
    first, norm, _, last = mlp.layers
    hidden = nn.functional.batch_norm(first(z), None, None, norm.weight, norm.bias, training=True).relu()
    torch.testing.assert_close(mlp(z), last(hidden))
    assert [p.numel() for p in LinearPredictor(D).parameters()] == [D * D]  # no bias by default
    assert IdentityPredictor(D)(z) is z


def test_symmetric_linear_predictor_is_symmetrized_by_every_update():
    predictor = LinearPredictor(D, symmetric=True)
    for z in projections(2):
        W = predictor.weight.detach().clone()
        predictor.update(z)
        assert torch.equal(predictor.weight, predictor.weight.T)
        torch.testing.assert_close(predictor.weight.detach(), (W + W.T) / 2)
        with torch.no_grad():
            predictor.weight.add_(torch.randn(D, D))  # as an optimizer would
    regular = LinearPredictor(D)
    W = regular.weight.detach().clone()
    regular.update(z)
    assert torch.equal(regular.weight, W)


# state


@all_predictors
def test_state_dict_continues_bitwise(make):
    """The step count is in it: freq and the start of F depend on it."""
    freq = {"freq": 3} if isinstance(make(), SetPredictor) else {}
    zs = projections(9)
    whole, second = after(make(**freq), zs[:4]), make(**freq)
    second.load_state_dict(whole.state_dict())
    assert second.steps == 4
    for z in zs[4:]:
        whole.update(z)
        second.update(z)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


@all_predictors
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_predictors_move_with_to(make, dtype):
    zs = [z.to(dtype) for z in projections(2)]
    reference, moved = after(make(), [z.float() for z in zs]), after(make().to(dtype), zs)
    assert moved.F.dtype == dtype and moved(zs[0]).dtype == dtype
    precision = 1e-5 if dtype == torch.float64 else 0.05
    torch.testing.assert_close(moved.F.float(), reference.F, atol=precision, rtol=precision)
    if isinstance(moved, SetPredictor):
        torch.testing.assert_close(moved.weight.float(), reference.weight, atol=precision, rtol=precision)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: DirectCopy(0), "dim=0 is not allowed"),
        *(
            (lambda dim=dim: DirectCopy(dim), "dim=.* is not allowed; it must be an int")
            for dim in (1.5, True, "8")
        ),
        (lambda: DirectCopy(D, rho="0.3"), "rho='0.3' is not allowed"),
        (lambda: DirectCopy(D, freq=1.5), "freq=1.5 is not allowed"),
        (lambda: DirectCopy(D, eps=float("inf")), "eps=inf is not allowed"),
        (lambda: DirectSet(D, alpha=float("inf")), "alpha=inf is not allowed"),
        (lambda: DirectCopy(D, calls_per_step=True), "calls_per_step=True is not allowed"),
        (lambda: DirectCopy(D, normalize=["none"]), "normalize=.* one of none, frobenius, spectral"),
        (lambda: DirectCopy(D).update(torch.empty(0, D)), "there is no sample"),
        (lambda: DirectCopy(D, rho=1.0), r"rho=1.0 is not allowed; it must be a number in \[0, 1\)"),
        (lambda: DirectPred(D, rho=-0.1), "rho=-0.1 is not allowed"),
        (lambda: DirectPred(D, eps=-0.1), "eps=-0.1 is not allowed; it must be a number of at least 0"),
        (lambda: DirectCopy(D, eps=float("nan")), "eps=nan is not allowed"),
        (lambda: DirectCopy(D, freq=0), "freq=0 is not allowed"),
        (lambda: DirectSet(D, alpha=0), "alpha=0 is not allowed; it must be a positive number"),
        (lambda: DirectCopy(D, normalize="l2"), "normalize='l2' .* one of none, frobenius, spectral"),
    ],
)
def test_bad_arguments_name_the_value_and_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()
