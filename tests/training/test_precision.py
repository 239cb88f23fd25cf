"""Precision in training: what was used is kept, fp16 scales its loss; and nothing clings to the processor."""

import contextlib
import logging

import pytest
import torch
from helpers.tiny import tiny_config, tiny_run
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dcopy import hardware, results
from dcopy.config import METHODS
from dcopy.data import augment
from dcopy.training.graphs import FastStep
from dcopy.training.interrupt import Interrupted
from dcopy.training.step import Trainer


@pytest.fixture
def processor(monkeypatch):
    """A function that makes this machine's processor one with these flags."""

    def make(flags):
        monkeypatch.setattr(hardware, "_cpuinfo", lambda key: flags if key == "flags" else "A Processor")

    return make


def test_what_was_used_is_recorded_and_auto_stays_in_the_name(processor, tmp_path):
    processor("avx512_bf16")
    config = tiny_config(precision="auto")
    run = tiny_run(tmp_path, config)
    assert run.result["config"]["precision"] == "auto" and run.folder.name == config.name
    assert (run.result["precision"], results.precision(run.result)) == ("bf16", "bf16")
    assert run.result["device"].startswith("A Processor")
    by_hand = tiny_run(tmp_path, tiny_config(precision="bf16"))
    assert by_hand.folder != run.folder
    assert by_hand.result["encoder_fingerprint"] == run.result["encoder_fingerprint"]


@pytest.mark.parametrize(("flags", "elsewhere"), [("avx512_bf16", ""), ("", "avx512_bf16")])
def test_a_run_keeps_the_precision_in_which_it_began(flags, elsewhere, processor, tmp_path, caplog):
    config = tiny_config(precision="auto")
    processor(flags)
    whole = tiny_run(tmp_path / "whole", config)
    with pytest.raises(Interrupted):
        tiny_run(tmp_path, config, stop_after=0)
    processor(elsewhere)
    with caplog.at_level(logging.WARNING):
        run = tiny_run(tmp_path, config)
    assert run.result["precision"] == whole.result["precision"] != hardware.precision_on("cpu", "auto")
    assert run.result["encoder_fingerprint"] == whole.result["encoder_fingerprint"]
    began, here = whole.result["precision"], hardware.precision_on("cpu", "auto")
    told = f"{config.name} goes on in {began}, as it began; here auto would be {here}"
    assert [record.message for record in caplog.records] == [told]


# fp16: the loss is scaled


def views(seed=0):
    return torch.rand(2, 16, 1, 16, 16, generator=torch.Generator().manual_seed(seed)).unbind()


def set_scale(trainer, scale):
    trainer.scaler.load_state_dict(trainer.scaler.state_dict() | {"scale": scale})


def test_the_scale_is_saved_and_goes_on():
    trainer, resumed = (Trainer(tiny_config(precision="fp16"), 1) for _ in range(2))
    set_scale(trainer, 2.0**8)
    trainer.scaler.set_growth_interval(2)
    for seed in range(3):
        trainer.step(*views(seed))
    state = trainer.tensors()
    assert (state["scaler.scale"].item(), state["scaler._growth_tracker"].item()) == (2.0**9, 1)
    resumed.scaler.set_growth_interval(2)
    resumed.load_tensors({name: tensor.clone() for name, tensor in state.items()})
    for one in (trainer, resumed):
        one.step(*views(3))
        assert one.scaler.get_scale() == 2.0**10
    both = (trainer.tensors().values(), resumed.tensors().values())
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


def test_a_step_that_overflows_moves_no_weight_and_halves_the_scale():
    trainer, resumed = (Trainer(tiny_config(precision="fp16"), 1) for _ in range(2))
    set_scale(trainer, 2.0**40)
    weights = [parameter.clone() for parameter in trainer.named_parameters.values()]
    loss, _ = trainer.step(*views())
    assert loss.isfinite() and trainer.scaler.get_scale() == 2.0**39
    assert all(torch.equal(a, b) for a, b in zip(weights, trainer.named_parameters.values(), strict=True))
    resumed.load_tensors(trainer.tensors())  # no momentum yet
    assert resumed.scaler.get_scale() == 2.0**39


def test_the_gradients_are_those_of_the_loss_and_not_of_its_multiple():
    plain, scaled = (Trainer(tiny_config(precision=precision), 1) for precision in ("fp32", "fp16"))
    set_scale(scaled, 2.0**8)
    for trainer in (plain, scaled):
        trainer.step(*views())
    gradients = [
        torch.cat([value.flatten() for name, value in trainer.tensors().items() if "momentum." in name])
        for trainer in (plain, scaled)
    ]
    assert (gradients[1] - gradients[0]).norm() < 0.1 * gradients[0].norm()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_without_fp16_nothing_is_scaled(precision):
    trainer = Trainer(tiny_config(precision=precision), 1)
    trainer.step(*views())
    assert not trainer.scaler.is_enabled() and not [name for name in trainer.tensors() if "scaler" in name]


def test_fp16_is_not_captured_and_says_so(monkeypatch, caplog):
    """A stand-in for a GPU: a trainer on the CPU that calls itself one."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # and is put back
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    for precision, captured in (("fp16", False), ("bf16", True)):
        trainer = Trainer(tiny_config(precision=precision), 1)
        trainer.device = torch.device("cuda")
        with caplog.at_level(logging.WARNING):
            assert FastStep(trainer, augment.build("digits")).captures == captured
    assert [record.message for record in caplog.records] == [
        "fp16 goes without CUDA graphs: after each step the host asks whether it overflowed"
    ]


# what an accelerator asks of code that no test here can run on one


class OnDevice(TorchDispatchMode):
    """Refuses float64 tensors on the device, which Apple's GPU has not."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        outcome = function(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, outcome)):
            if isinstance(leaf, torch.Tensor) and leaf.is_meta and leaf.dtype == torch.float64:
                raise TypeError(f"{function} with float64")
        return outcome


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("normalize", ["none", "spectral"])
def test_a_step_mixes_no_devices_and_needs_no_float64(method, normalize, monkeypatch):
    """On torch's device without data, which refuses what two real devices would refuse."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    fields = {"alpha": 0.3} if method == "directset" else {}
    trainer = Trainer(tiny_config(method=method, normalize=normalize, **fields), 1, "meta")
    with OnDevice():
        for _ in range(2):
            loss, z = trainer.step(*torch.rand(2, 16, 1, 16, 16, device="meta"))
    assert loss.is_meta and z.shape == (16, 8)


@pytest.mark.parametrize("recipe", ["digits", "cifar", "stl10"])
def test_augmentation_mixes_no_devices_and_needs_no_float64(recipe, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    augmentation, size = augment.build(recipe), {"digits": 16, "cifar": 32, "stl10": 96}[recipe]
    shape = (4, 1 if recipe == "digits" else 3, size, size)
    drawn = augmentation.sample(shape, torch.Generator().manual_seed(0))
    drawn = [{name: value.to("meta") for name, value in params.items()} for params in drawn]
    with OnDevice():
        images = torch.zeros(shape, dtype=torch.uint8, device="meta")
        assert augmentation.apply(images, drawn).shape == augmentation.clean(images).shape == shape
