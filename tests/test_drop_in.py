"""Set predictors as parts of other trainers: in train mode `forward` moves F, whatever is around it."""

import copy
import warnings

import pytest
import torch
from helpers.ranks import on_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dcopy.predictors import DirectCopy, DirectPred, DirectSet

D = 8
HEADS = {
    "directcopy": DirectCopy,
    "directcopy spectral": lambda D, **kw: DirectCopy(D, normalize="spectral", **kw),
    "directset 2": lambda D, **kw: DirectSet(D, alpha=2, **kw),
    "directpred": DirectPred,
}
every_head = pytest.mark.parametrize("make", HEADS.values(), ids=HEADS)


def views(steps: int, count: int = 2, N: int = 32) -> torch.Tensor:
    """Projections (steps, count, N, D) of some views of some batches."""
    scale = torch.linspace(0.2, 1.5, D)
    return torch.randn(steps, count, N, D, generator=torch.Generator().manual_seed(0)) * scale


def assert_same(first: nn.Module, second: nn.Module, **tolerance) -> None:
    states = first.state_dict(), second.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], **tolerance, msg=name)


bitwise = {"atol": 0, "rtol": 0}


# what a call moves


@every_head
def test_a_call_is_an_update_and_a_prediction(make):
    own, explicit = make(D, calls_per_step=1), make(D)
    for z in views(4).flatten(0, 1):
        p = own(z)
        explicit.update(z)
        assert torch.equal(p, explicit(z))
    assert_same(own, explicit, **bitwise)


@every_head
def test_nothing_moves_in_eval_mode(make):
    head = make(D, calls_per_step=2)
    for z in views(2)[0]:
        head(z)
    before = copy.deepcopy(head)
    head.eval()
    for z in views(2)[1]:
        torch.testing.assert_close(head(z), z @ before.weight.T)
    assert_same(head, before, **bitwise)
    assert head.steps == before.steps == 1


@every_head
@pytest.mark.parametrize("freq", [1, 2])
@pytest.mark.parametrize("count", [2, 4])
def test_several_calls_are_one_step_on_all_their_views(make, count, freq):
    """So F and W_p end each step where those of an update with all of them do; the last call predicts so."""
    own, joint = make(D, freq=freq, calls_per_step=count), make(D, freq=freq)
    for step, zs in enumerate(views(5, count), start=1):
        for z in zs:
            p = own(z)
        joint.update(zs.flatten(0, 1))
        torch.testing.assert_close(p, joint(z), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(own.F, joint.F)
        assert own.steps == joint.steps == step


def test_the_first_view_is_predicted_without_the_second():
    head = DirectCopy(D, rho=0.3, eps=0.1, calls_per_step=2)
    a, b, c, _ = views(2).flatten(0, 1)
    head(a), head(b)
    F = 0.3 * torch.cat((a, b)).T @ torch.cat((a, b)) / 64 + 0.7 * c.T @ c / 32
    torch.testing.assert_close(head(c), c @ (F + 0.1 * torch.eye(D)))


def test_a_head_that_is_never_set_says_so():
    head, z = DirectCopy(D), views(1)[0, 0].requires_grad_()
    with pytest.warns(UserWarning, match="DirectCopy's W_p is still the identity.*calls_per_step"):
        head(z)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        head.update(z)
        head(z)
        DirectCopy(D, calls_per_step=1)(z)
        DirectCopy(D).eval()(z)


@pytest.mark.parametrize("value", [-1, 0.5, None])
def test_calls_per_step_is_checked(value):
    with pytest.raises(
        ValueError, match=r"calls_per_step=.* is not allowed; it must be an integer of at least 0"
    ):
        DirectPred(D, calls_per_step=value)


# autograd, autocast, compile


@every_head
@pytest.mark.parametrize("freq", [1, 3])
def test_two_calls_before_one_backward(make, freq):
    """Each gradient is that of the W_p which predicted, though the second call has set another."""
    head = make(D, freq=freq, calls_per_step=2)
    for zs in views(2):
        zs.requires_grad_()
        used, predictions = [], []
        for z in zs:
            predictions.append(head(z))
            used.append(head.weight.detach().clone())
        torch.stack(predictions).sum().backward()
        for gradient, W_p in zip(zs.grad, used, strict=True):
            torch.testing.assert_close(gradient, W_p.sum(dim=0).expand(len(gradient), D))


@every_head
@pytest.mark.parametrize("freq", [1, 2])
def test_F_and_prediction_are_float32_under_autocast(make, freq):
    """Autocast keeps a coarse copy of each parameter it has met; a W_p set since is not to be missed."""
    inside, outside = (make(D, freq=freq, calls_per_step=2) for _ in range(2))
    for z in views(4).flatten(0, 1).bfloat16():
        z.requires_grad_()
        expected = outside(z)
        with torch.autocast("cpu", torch.bfloat16):
            p = inside(z)
        assert p.dtype == inside.F.dtype == torch.float32
        assert torch.equal(p, expected)
    assert_same(inside, outside, **bitwise)


@every_head
@pytest.mark.parametrize("freq", [1, 3])
def test_compiled_it_computes_the_same_without_compiling_again(make, freq):
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    plain = nn.Sequential(nn.Linear(D, D), make(D, freq=freq, calls_per_step=2))
    network = copy.deepcopy(plain)
    compiled = torch.compile(network, backend=count)
    for step, zs in enumerate(views(12)):
        for model in (plain, compiled):
            model.zero_grad()
            (model(zs[0]) * model(zs[1])).sum().backward()
        torch.testing.assert_close(network[0].weight.grad, plain[0].weight.grad)
        if step == 3:
            known = len(graphs)
    assert_same(network, plain)
    assert network[1].steps == 12 and len(graphs) == known <= 4


# state


@every_head
def test_copies_and_loaded_states_go_on_alike(make):
    first = make(D, calls_per_step=2)
    zs = views(4)
    for z in zs[:2].flatten(0, 1):
        first(z)
    second, third = copy.deepcopy(first), make(D, calls_per_step=2)
    third.load_state_dict(first.state_dict(), strict=True)
    before = copy.deepcopy(first.state_dict())
    for z in zs[2:].flatten(0, 1):
        assert torch.equal(second(z), third(z))
    assert_same(second, third, **bitwise)
    assert second.steps == 4 and all(torch.equal(before[k], v) for k, v in first.state_dict().items())


@every_head
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_heads_work_in_another_precision(make, dtype):
    """Here with so many projections that float16 cannot hold their sum of squares."""
    zs = 3 * views(2, N=8192)
    reference, moved = make(D, calls_per_step=2), make(D, calls_per_step=2).to(dtype)
    for z in zs.to(dtype).flatten(0, 1):
        expected, p = reference(z.float()), moved(z)
        precision = {torch.float64: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.01}[dtype]
        assert p.dtype == moved.F.dtype == dtype
        assert (p.float() - expected).norm() < precision * expected.norm()


# several processes


class Network(nn.Module):
    """An encoder and a head; like lightly's loops it predicts each view with a call of its own."""

    def __init__(self, make, calls_per_step: int):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.head = nn.Linear(D, D), make(D, calls_per_step=calls_per_step)
        self.joint = calls_per_step == 1

    def forward(self, xs):
        zs = [self.encoder(x) for x in xs]
        ps = self.head(torch.cat(zs)).chunk(2) if self.joint else [self.head(z) for z in zs]
        return -(ps[0] * zs[1].detach() + ps[1] * zs[0].detach()).mean()


def trained(model: nn.Module, batches) -> dict:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for batch in batches:
        optimizer.zero_grad()
        model(batch).backward()
        optimizer.step()
    return {name.removeprefix("module."): tensor for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("calls_per_step", [1, 2])
@pytest.mark.parametrize("make", [DirectCopy, DirectPred])
def test_two_ranks_with_half_a_batch_each_equal_one_process(make, calls_per_step, tmp_path):
    batches = views(4)
    halves = batches.chunk(2, dim=2)

    def on_rank(rank):
        return trained(DistributedDataParallel(Network(make, calls_per_step)), halves[rank])

    states = on_ranks(on_rank, tmp_path)
    alone = trained(Network(make, calls_per_step), batches)
    assert states[0].keys() == states[1].keys() == alone.keys()
    for name, expected in alone.items():
        assert torch.equal(states[0][name], states[1][name]), name
        torch.testing.assert_close(states[0][name], expected, msg=name)
