"""The training step: its order, what it differentiates, and that it equals the algorithm written out."""

import copy

import pytest
import torch
from helpers.tiny import tiny_config, tiny_views
from torch.nn import functional

from dcopy import data
from dcopy.config import METHODS, TrainConfig
from dcopy.data import augment
from dcopy.training import health
from dcopy.training import step as trainer_module
from dcopy.training.step import Trainer, derive_seed

FIELDS = {method: {"method": method} for method in METHODS}
FIELDS["directset"]["alpha"] = 2.0
all_methods = pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)


def make(**fields):
    return Trainer(tiny_config(**fields), channels=1)


def parameters(trainer):
    return {name: value.detach().clone() for name, value in trainer.online.named_parameters()}


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


# the order of the step


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_step_keeps_its_order(symmetric, monkeypatch):
    trainer, (x1, x2) = make(symmetric_loss=symmetric), tiny_views()
    events = []

    def note(event, function):
        return lambda *args, **kwargs: (events.append(event), function(*args, **kwargs))[1]

    def view(x):
        return next(i for i, own in ((1, x1), (2, x2)) if x is own)

    trainer.online.register_forward_pre_hook(lambda _, args: events.append(f"online {view(args[0])}"))
    trainer.target.register_forward_pre_hook(lambda _, args: events.append(f"target {view(args[0])}"))
    trainer.predictor.register_forward_pre_hook(lambda *_: events.append("predictor"))
    trainer.predictor.update = note("correlation", trainer.predictor.update)
    trainer.optimizer.step = note("optimizer", trainer.optimizer.step)
    for name in ("negative_cosine", "ema_update"):
        monkeypatch.setattr(trainer_module, name, note(name, getattr(trainer_module, name)))
    trainer.step(x1, x2)
    if symmetric:
        first, second = ["online 1", "online 2"], ["predictor", "predictor", "target 2", "target 1"]
        losses = ["negative_cosine"] * 2
    else:
        first, second, losses = ["online 1"], ["predictor", "target 2"], ["negative_cosine"]
    assert events == [*first, "correlation", *second, *losses, "optimizer", "ema_update"]


# the algorithm, written out for DirectCopy


def cosine(a, b):
    return ((a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))).mean()


def reference_step(state, x1, x2, config):
    """One step in plain tensor algebra, in place on a dict; returns the loss."""
    online, target = state["online"], state["target"]
    if config.batchnorm == "joint" and config.symmetric_loss:
        z1, z2 = online(torch.cat((x1, x2))).chunk(2)
        with torch.no_grad():
            t2, t1 = target(torch.cat((x2, x1))).chunk(2)
    else:
        z1, z2 = online(x1), online(x2) if config.symmetric_loss else None
        with torch.no_grad():
            t2, t1 = target(x2), target(x1) if config.symmetric_loss else None
    z = torch.cat((z1, z2)) if config.symmetric_loss else z1
    C = z.detach().T @ z.detach() / len(z)
    state["F"] = C if state["F"] is None else config.rho * state["F"] + (1 - config.rho) * C
    W = state["F"] + config.eps * torch.eye(len(C))
    loss = -2 * cosine(z1 @ W.T, t2)
    if config.symmetric_loss:
        loss = loss - 2 * cosine(z2 @ W.T, t1)
    weights = list(online.parameters())
    gradients = torch.autograd.grad(loss, weights)
    with torch.no_grad():
        for i, (w, g) in enumerate(zip(weights, gradients, strict=True)):
            g = g + config.weight_decay * w
            state["v"][i] = g if state["v"][i] is None else config.momentum * state["v"][i] + g
            w -= config.lr * state["v"][i]
        for t, w in zip(target.parameters(), weights, strict=True):
            t.copy_(config.ema * t + (1 - config.ema) * w)
    return loss.detach()


@pytest.mark.parametrize("batchnorm", ["per-view", "joint"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_three_steps_equal_the_algorithm_written_out(symmetric, batchnorm):
    """Large rates, so that each term of the update is seen."""
    rates = {"width": 8, "lr": 0.2, "weight_decay": 0.1, "ema": 0.5, "momentum": 0.7, "rho": 0.4, "eps": 0.2}
    trainer = make(symmetric_loss=symmetric, batchnorm=batchnorm, target_start="random", **rates)
    state = {"online": copy.deepcopy(trainer.online), "target": copy.deepcopy(trainer.target)}
    state |= {"F": None, "v": [None] * len(list(trainer.online.parameters()))}
    for step in range(3):
        x1, x2 = tiny_views(seed=step)
        loss, z = trainer.step(x1, x2)
        torch.testing.assert_close(loss, reference_step(state, x1, x2, trainer.config))
        assert z.shape == (16, 8) and not z.requires_grad and not loss.requires_grad
    close = {"atol": 1e-4, "rtol": 1e-3}
    torch.testing.assert_close(trainer.predictor.F, state["F"], **close)
    for part in ("online", "target"):
        torch.testing.assert_close(getattr(trainer, part).state_dict(), state[part].state_dict(), **close)


# gradients


@pytest.mark.parametrize("fields", [f for f in FIELDS.values() if f["method"] != "simsiam"])
def test_no_gradient_reaches_the_target(fields):
    trainer = make(**fields)
    assert not any(parameter.requires_grad for parameter in trainer.target.parameters())
    trainer.target.requires_grad_()  # even then
    trainer.step(*tiny_views())
    assert all(parameter.grad is None for parameter in trainer.target.parameters())
    assert all(parameter.grad is not None for parameter in trainer.named_parameters.values())


@pytest.mark.parametrize("target_start", ["copy", "random"])
def test_the_target_starts_as_a_copy_or_on_its_own(target_start):
    trainer = make(target_start=target_start)
    same = equal(trainer.online.state_dict(), trainer.target.state_dict())
    assert same == (target_start == "copy")
    assert equal(trainer.target.state_dict(), make(target_start=target_start).target.state_dict())
    trainer.step(*tiny_views())
    assert not equal(trainer.online.state_dict(), trainer.target.state_dict())  # a copy, not the same


# SimSiam


@pytest.mark.parametrize("symmetric", [True, False])
def test_simsiam_is_byol_s_step_with_a_target_that_is_copied_at_each(symmetric):
    """No network of its own, and the numbers of one that follows with momentum 0."""
    simsiam = make(method="simsiam", symmetric_loss=symmetric)
    assert simsiam.target is simsiam.online
    assert not any(name.startswith("target") for name in simsiam.tensors())
    followed = make(method="simsiam", symmetric_loss=symmetric)
    followed.target = followed.parts["target"] = copy.deepcopy(followed.online).requires_grad_(False)
    for seed in range(3):
        losses = [trainer.step(*tiny_views(seed=seed))[0] for trainer in (simsiam, followed)]
        torch.testing.assert_close(*losses)
    torch.testing.assert_close(parameters(simsiam), parameters(followed))


def test_simsiam_s_gradient_is_that_of_its_predictions_alone():
    trainer, views = make(method="simsiam"), tiny_views()
    written_out = copy.deepcopy(trainer)
    trainer.loss(trainer.project(*views), *views).backward()
    z = [written_out.online(view) for view in views]
    p = [written_out.predictor(z_i) for z_i in z]
    loss = -2 * (cosine(p[0], z[1].detach()) + cosine(p[1], z[0].detach()))
    loss.backward()
    for own, expected in zip(trainer.online.parameters(), written_out.online.parameters(), strict=True):
        torch.testing.assert_close(own.grad, expected.grad, atol=1e-5, rtol=1e-3)


def test_simsiam_collapses_without_stop_gradient():
    """As in figure 2 of Chen and He 2021: everything else is the same."""

    class WithoutStopGradient(Trainer):
        def targets(self, z, x1, x2):
            return list(reversed(z))

    images, augmentation, verdicts = data.load("digits").train, augment.build("digits"), []
    for kind in (Trainer, WithoutStopGradient):
        generator = torch.Generator().manual_seed(0)
        config = TrainConfig(method="simsiam", width=8, hidden_dim=64, projection_dim=32)
        trainer = kind(config, channels=1)
        for _ in range(80):
            batch = images[torch.randint(len(images), (64,), generator=generator)]
            _, z = trainer.step(augmentation(batch, generator), augmentation(batch, generator))
        verdicts.append(health.measure(z, trainer.predictor.F)["verdict"])
    assert verdicts == ["healthy", "collapsed"]


# BatchNorm


def test_joint_batchnorm_differs_in_train_mode_and_agrees_in_eval_mode():
    x1, x2 = tiny_views()
    x2 = 2 * x2 + 1  # views with other statistics
    for mode in (True, False):
        steps = {}
        for batchnorm in ("per-view", "joint"):
            trainer = make(method="mlp", batchnorm=batchnorm)
            for part in (trainer.online, trainer.target, trainer.predictor):
                part.train(mode)
            steps[batchnorm] = trainer.step(x1, x2)
        (loss, z), (loss_joint, z_joint) = steps["per-view"], steps["joint"]
        assert torch.allclose(z, z_joint, atol=1e-5) == (not mode)
        assert torch.allclose(loss, loss_joint, atol=1e-4) == (not mode)


# random streams


def test_all_methods_start_from_the_same_encoder():
    starts = [make(**fields).online.encoder.state_dict() for fields in FIELDS.values()]
    assert all(equal(start, starts[0]) for start in starts)
    assert not equal(make(seed=1).online.encoder.state_dict(), starts[0])


def test_streams_are_apart():
    steps = [("augment", epoch, step) for epoch, step in ((0, 1), (1, 0), (1, 10), (11, 0))]
    moments = [("weights",), ("order", 0), ("order", 1), *steps]
    seeds = {derive_seed(seed, *moment) for seed in (0, 1, 10) for moment in moments}
    assert len(seeds) == 3 * len(moments)


def test_the_global_generator_is_neither_used_nor_moved():
    fields = {"method": "mlp", "target_start": "random"}
    starts = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        starts.append(make(**fields).tensors())
    assert equal(*starts)
    after = torch.rand(3)
    torch.manual_seed(2)
    assert torch.equal(after, torch.rand(3))


# precision


def test_bf16_is_for_the_networks_alone(monkeypatch):
    """Correlation, predictor, loss and weights stay float32."""
    trainer = make(method="directpred", precision="bf16")
    seen = {}

    def spy(name, function):
        def call(*args):
            seen[name] = {arg.dtype for arg in args} | {torch.is_autocast_enabled("cpu")}
            return function(*args)

        return call

    for name in ("online", "target"):
        conv = getattr(trainer, name).encoder.layers[0]
        conv.register_forward_hook(lambda _, args, out, name=name: seen.update({name: {out.dtype}}))
    trainer.predictor.update = spy("correlation", trainer.predictor.update)
    trainer.predictor.forward = spy("predictor", trainer.predictor.forward)
    monkeypatch.setattr(trainer_module, "negative_cosine", spy("loss", trainer_module.negative_cosine))
    loss, z = trainer.step(*tiny_views())
    exact = {torch.float32, False}
    assert seen == {
        **{"online": {torch.bfloat16}, "target": {torch.bfloat16}},
        **{"correlation": exact, "predictor": exact, "loss": exact},
    }
    floats = [tensor for tensor in trainer.tensors().values() if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in [loss, z, *floats]} == {torch.float32}


@pytest.mark.parametrize(("width", "channels_last"), [(8, True), (4, False)])
def test_weights_lie_channels_last_where_the_kernels_for_it_are_sound(width, channels_last):
    weight = make(width=width).online.encoder.layers[3].weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last


# learning, and state


@all_methods
def test_some_steps_lower_the_loss(fields):
    trainer, views = make(**fields), tiny_views()
    losses = [trainer.step(*views)[0] for _ in range(15)]
    assert losses[-1] < losses[0] - 0.02


def test_the_loss_is_minus_two_cosines():
    p, z = torch.randn(5, 3), torch.randn(5, 3)
    torch.testing.assert_close(trainer_module.negative_cosine(p, z), -2 * cosine(p, z))
    assert trainer_module.negative_cosine(p, 3 * p) == pytest.approx(-2)
    byol = (functional.normalize(p, dim=1) - functional.normalize(z, dim=1)).square().sum(dim=1).mean()
    torch.testing.assert_close(trainer_module.negative_cosine(p, z) + 2, byol)


@all_methods
@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_the_tensors_are_all_that_the_next_step_depends_on(fields, momentum):
    whole, resumed = make(momentum=momentum, **fields), make(momentum=momentum, **fields)
    for step in range(2):
        whole.step(*tiny_views(seed=step))
    resumed.load_tensors({name: tensor.clone() for name, tensor in whole.tensors().items()})
    losses = [trainer.step(*tiny_views(seed=2))[0] for trainer in (whole, resumed)]
    assert torch.equal(*losses)
    assert whole.tensors().keys() == resumed.tensors().keys()
    assert equal(whole.tensors(), resumed.tensors())


def test_load_tensors_refuses_a_state_with_a_part_missing():
    trainer = make()
    trainer.step(*tiny_views())
    for name in ("online.encoder.layers.0.weight", "predictor.F", "momentum.online.encoder.layers.0.weight"):
        state = trainer.tensors()
        del state[name]
        with pytest.raises((RuntimeError, KeyError)):
            make().load_tensors(state)
