"""Training at scale: schedules, LARS, what decays, and batches that are computed in parts."""

import dataclasses
import math

import pytest
import torch
from helpers.tiny import assert_same, tiny_config, tiny_run, tiny_views
from torch import nn

from dcopy import data
from dcopy.config import METHODS, TrainConfig
from dcopy.training import graphs, schedule
from dcopy.training.interrupt import Interrupted
from dcopy.training.loop import pretrain
from dcopy.training.runs import load_run
from dcopy.training.step import Trainer

STEPS = 10  # of an epoch
LAST, LAST_OF_80 = (math.sin(math.pi / 2 / n) ** 2 for n in (100, 80))  # of a cosine's n steps
LARS = {"optimizer": "lars", "decay": "weights", "heads": "byol"}
COSINE = {"lr_schedule": "cosine", "warmup": 1, "ema_schedule": "cosine", "ema": 0.99}


def make(**fields):
    return Trainer(tiny_config(**fields), channels=1)


# schedules


@pytest.mark.parametrize(
    "fields, factors",  # by step, of 100 in ten epochs
    [
        ({}, {0: 1, 50: 1, 99: 1}),
        ({"warmup": 2}, {0: 0, 10: 0.5, 19: 0.95, 20: 1, 99: 1}),
        (
            {"lr_schedule": "cosine"},
            {0: 1, 25: (1 + math.sqrt(0.5)) / 2, 50: 0.5, 99: LAST},
        ),
        (
            {"lr_schedule": "cosine", "warmup": 2},
            {0: 0, 19: 0.95, 20: 1, 60: 0.5, 99: LAST_OF_80},
        ),
    ],
)
def test_the_learning_rate_at_first_middle_and_last_step(fields, factors):
    trainer = make(epochs=10, lr=0.4, **fields)
    for step, factor in factors.items():
        trainer.set_rates(step, STEPS)
        (group,) = trainer.optimizer.param_groups
        assert group["lr"] == pytest.approx(0.4 * factor, rel=1e-6, abs=1e-12)


def test_the_targets_momentum_at_first_middle_and_last_step():
    config = tiny_config(epochs=10, ema=0.9, ema_schedule="cosine")
    values = [schedule.ema(config, step, STEPS) for step in (0, 50, 99)]
    assert values == pytest.approx([0.9, 0.95, 1 - 0.1 * LAST], rel=1e-9)
    assert schedule.ema(dataclasses.replace(config, ema_schedule="constant"), 99, STEPS) == 0.9


def test_the_step_moves_the_target_with_the_momentum_of_the_schedule():
    trainer = make(ema=0.5, ema_schedule="cosine", epochs=2)
    target = trainer.target.parameters
    before = [p.clone() for p in target()]
    trainer.set_rates(STEPS, STEPS)  # the middle: 0.75
    trainer.step(*tiny_views())
    for old, new, online in zip(
        before, trainer.target.parameters(), trainer.online.parameters(), strict=True
    ):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * online)


def test_each_step_of_a_run_has_the_rates_of_its_place_in_the_whole_run(tmp_path, monkeypatch):
    """Also where it goes on after a stop."""
    config, seen, step = tiny_config(**COSINE), [], Trainer.step

    def noted(self, *views):
        seen.append((*(group["lr"] for group in self.optimizer.param_groups), self.ema))
        return step(self, *views)

    monkeypatch.setattr(Trainer, "step", noted)
    for _ in range(4):
        with pytest.raises(Interrupted):
            tiny_run(tmp_path, config, stop_after=0)
    tiny_run(tmp_path, config)
    rates = [(config.lr * schedule.lr_factor(config, i, 3), schedule.ema(config, i, 3)) for i in range(9)]
    assert seen == rates and len({*rates}) == 9


def test_simsiams_predictor_keeps_its_learning_rate():
    """Chen and He 2021, section 4.2; as in `facebookresearch/simsiam`."""
    trainer = make(method="simsiam", epochs=10, lr=0.4, lr_schedule="cosine")
    trainer.set_rates(50, STEPS)
    rates = {id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    for name, parameter in trainer.named_parameters.items():
        assert rates[id(parameter)] == pytest.approx(0.4 if name.startswith("predictor.") else 0.2)


def test_a_run_with_schedules_and_parts_stops_and_goes_on_bitwise(tmp_path):
    config = tiny_config(**LARS, **COSINE, accumulate=2)
    whole = tiny_run(tmp_path / "whole", config)
    for _ in range(2):
        with pytest.raises(Interrupted):
            tiny_run(tmp_path / "parts", config, stop_after=0)
    assert_same(tiny_run(tmp_path / "parts", config), whole)


def test_a_run_whose_schedule_ends_elsewhere_is_not_gone_on_from(tmp_path):
    config = tiny_config(lr_schedule="cosine", epochs=1)
    tiny_run(tmp_path, config)
    longer = tiny_run(tmp_path, dataclasses.replace(config, epochs=2))
    assert longer.result["went_on_from"] is None


def test_imagenet_has_the_settings_of_the_recipe_and_small_images_their_own():
    config = TrainConfig(dataset="imagenet", epochs=300)
    assert (config.optimizer, config.lr, config.warmup, config.batch_size) == ("lars", 4.8, 10, 4096)
    assert TrainConfig(dataset="imagenet", epochs=300, batch_size=512).lr == pytest.approx(0.6)
    assert TrainConfig(dataset="cifar10", batch_size=512).lr == 0.03
    assert not config.begins_longer_runs and TrainConfig().begins_longer_runs


# optimizers


def gradients(trainer):
    loss, _ = trainer.forward(*tiny_views())
    named = trainer.named_parameters
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


@pytest.mark.parametrize("decay", ["weights", "all"])
@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_two_steps_are_those_computed_by_hand(optimizer, decay):
    """LARS: g + wd w, times eta |w| / (|g| + wd |w|), then momentum (You et al. 2017, arXiv 1708.03888).

    With decay="weights", biases and norms are moved by plain momentum.
    """
    lr, wd, momentum, eta = 3.0, 0.1, 0.7, 1e-3
    fields = {"optimizer": optimizer, "decay": decay, "heads": "byol", "method": "mlp"}
    trainer = make(lr=lr, weight_decay=wd, momentum=momentum, **fields)
    named, velocity = trainer.named_parameters, {}
    for _ in range(2):
        before = {name: p.detach().clone() for name, p in named.items()}
        grads = gradients(trainer)
        trainer.step(*tiny_views())
        for name, w in before.items():
            g = grads[name]
            if decay == "all" or w.ndim > 1:
                ratio = eta * w.norm() / (g.norm() + wd * w.norm()) if optimizer == "lars" else 1.0
                adapted = w.norm() > 0 and g.norm() > 0  # else timm's ratio is 1
                g = (g + wd * w) * (ratio if adapted else 1.0)
            velocity[name] = g + momentum * velocity.get(name, 0)
            torch.testing.assert_close(named[name], w - lr * velocity[name], atol=1e-6, rtol=1e-4)
    assert any(w.ndim < 2 for w in before.values())


# batches in parts


def without_batchnorm(trainer):
    """The trainer in float64, each BatchNorm replaced by a fixed scale, so that images do not meet."""
    for module in trainer.parts.values():
        for layer in module.modules():
            if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
                layer.eval()
        module.double()
    return trainer


FIELDS = [{"method": method, **({"alpha": 2.0} if method == "directset" else {})} for method in METHODS]
FIELDS += [{"method": "directpred", "freq": 2}, {"normalize": "spectral"}, {"symmetric_loss": False}]
FIELDS += [{"method": "linear", "predictor_symmetric": True}, {"batchnorm": "joint"}, LARS]


@pytest.mark.parametrize("fields", FIELDS, ids=str)
def test_steps_in_parts_are_those_on_the_whole_batch_where_images_do_not_meet_in_batchnorm(fields):
    """Loss, projections, F, W_p, weights and target, after three steps: F and EMA have moved three times."""
    fields |= {"lr": 0.3}
    whole, parts = (without_batchnorm(make(**fields, accumulate=k)) for k in (1, 4))
    for seed in range(3):
        views = [view.double() for view in tiny_views(seed=seed)]
        for ours, theirs in zip(parts.step(*views), whole.step(*views), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(parts.tensors(), whole.tensors(), rtol=1e-9, atol=1e-9)
    assert parts.predictor.steps == 3


def test_batchnorm_takes_its_statistics_from_one_part_at_a_time():
    """So such a run is another than that on the whole batch; a part's statistics enter once."""
    whole, parts = make(), make(accumulate=2)
    x1, x2 = tiny_views()
    copy = make()
    for part in (slice(0, None, 2), slice(1, None, 2)):
        for view in (x1, x2):
            copy.online(view[part])
    whole.step(x1, x2)
    parts.step(x1, x2)
    statistics = dict(parts.online.named_buffers())
    torch.testing.assert_close(statistics, dict(copy.online.named_buffers()))
    assert not torch.allclose(whole.predictor.F, parts.predictor.F)


@pytest.mark.parametrize(
    "fields, line",
    [
        ({"lr_schedule": "cosine"}, "schedules go without CUDA graphs"),
        ({"warmup": 1}, "schedules go without CUDA graphs"),
        ({"optimizer": "lars"}, "LARS and accumulate go without CUDA graphs"),
        ({"accumulate": 2}, "LARS and accumulate go without CUDA graphs"),
    ],
)
def test_what_a_graph_cannot_hold_is_said(fields, line):
    assert graphs.why_no_graphs(make(**fields)).startswith(line)
    assert graphs.why_no_graphs(make()) is None


def test_a_finished_run_of_a_library_model_is_loaded_again(tmp_path):
    config = tiny_config(encoder="timm:test_vit", width=None, epochs=1, **LARS)
    run = tiny_run(tmp_path, config)
    assert load_run(run.folder).result == run.result


@pytest.mark.parametrize("processes", [1, 2])
def test_a_model_that_does_not_exist_is_refused_before_data_are_read(processes, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load", lambda *_, **__: pytest.fail("data were read"))
    with pytest.raises(ValueError, match="encoder=timm:test_vit9 is not a model of timm"):
        pretrain(tiny_config(encoder="timm:test_vit9", width=None), tmp_path, processes=processes)
