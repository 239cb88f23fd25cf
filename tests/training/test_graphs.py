"""The step of a run: compiled or not, captured or not, it moves the same state."""

import dataclasses
import logging

import pytest
import torch
from helpers.tiny import tiny_config, tiny_images

from dcopy.data import augment
from dcopy.training import graphs
from dcopy.training.batches import InMemory
from dcopy.training.graphs import FastStep
from dcopy.training.ranks import Alone
from dcopy.training.step import Trainer

FIELDS = [{"method": "directcopy"}, {"method": "directpred", "freq": 2}, {"method": "linear"}]
FIELDS += [{"symmetric_loss": False}, {"batchnorm": "joint"}]
settings = pytest.mark.parametrize("fields", FIELDS, ids=str)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def make(device="cpu", compile=False, **fields):
    return FastStep(Trainer(tiny_config(**fields), 1, device), augment.build("digits"), compile)


def losses(step, count=6):
    images = tiny_images(16).to(step.trainer.device)
    generator = torch.Generator(images.device).manual_seed(0)
    return torch.stack([step(images, generator)[0].clone() for _ in range(count)])


def same_state(first, second):
    pairs = zip(first.trainer.tensors().items(), second.trainer.tensors().items(), strict=True)
    return all(name == other and torch.equal(a, b) for (name, a), (other, b) in pairs)


@settings
def test_a_step_is_augmentation_and_training_step(fields):
    """That the plain step is the algorithm is what test_trainer shows."""
    step, trainer = make(**fields), Trainer(tiny_config(**fields), 1)
    augmentation, images = augment.build("digits"), tiny_images(16)
    generator = torch.Generator().manual_seed(0)
    for loss in losses(step):
        x1, x2 = augmentation(images, generator), augmentation(images, generator)
        assert torch.equal(loss, trainer.step(x1, x2)[0])


@settings
def test_replayed_steps_equal_plain_ones(fields, eager_graphs):
    plain, captured = make(**fields), make(**fields)
    captured.captures = True
    assert torch.equal(losses(plain), losses(captured))
    assert same_state(plain, captured)
    assert len(eager_graphs) == 2  # captured once, replayed ever after


def test_the_first_steps_are_not_captured(eager_graphs):
    step = make()
    step.captures = True
    losses(step, graphs.WARMUP)
    assert len(eager_graphs) == 0
    losses(step, 1)
    assert len(eager_graphs) == 2


def test_where_capturing_fails_training_goes_on_and_says_so_once(monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(graphs, "capture", fail)
    plain, captured = make(), make()
    captured.captures = True
    with caplog.at_level(logging.WARNING):
        assert torch.equal(losses(plain), losses(captured))
    assert [record.message for record in caplog.records] == [
        "CUDA graphs are not possible here (operation not permitted when stream is capturing); "
        "training goes on without"
    ]


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_where_compiling_fails_the_step_is_taken_back_and_done_without(where, monkeypatch, caplog):
    """A compiler that fails on the way back has let the way forward move BatchNorm's statistics and F."""

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            return z.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise RuntimeError("backend='inductor' raised:\nno working C++ compiler\nand a trace")

    def compile(function, dynamic):
        def call(*args):
            if where == "forward":
                raise RuntimeError("backend='inductor' raised:\nno working C++ compiler\nand a trace")
            outcome = function(*args)
            return Broken.apply(outcome) if outcome.requires_grad else outcome

        return call

    monkeypatch.setattr(torch, "compile", compile)
    plain, broken = make(), make(compile=True)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(losses(plain), losses(broken))
    assert same_state(plain, broken)
    assert [record.message for record in caplog.records] == [
        "torch.compile is not possible here (no working C++ compiler); training goes on without it"
    ]


def test_compiled_code_is_used(monkeypatch):
    calls = []

    def compile(function, dynamic):
        return lambda *args: (calls.append(function.__qualname__), function(*args))[1]

    monkeypatch.setattr(torch, "compile", compile)
    step = make(compile=True)
    losses(step, 1)
    assert calls == 2 * ["Augmentation.apply"] + 4 * ["Network.forward"]
    assert not [name for name in step.trainer.tensors() if "_orig_mod" in name]  # checkpoints stay readable


def test_compiled_steps_follow_plain_ones():
    """With the compiler that is here, in earnest; half a minute when its cache is empty."""
    plain, compiled = make(), make(compile=True)
    torch.testing.assert_close(losses(compiled), losses(plain), atol=1e-4, rtol=1e-4)
    assert compiled.compiled


def test_a_plain_step_compiles_nothing_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch, "compile", None)
    losses(make(compile=None), 1)


def test_images_that_are_no_bytes_are_refused():
    with pytest.raises(ValueError, match="images' dtype"):
        make()(torch.rand(4, 1, 16, 16), torch.Generator())


@needs_gpu
@settings
def test_on_a_gpu_captured_steps_follow_plain_ones(fields):
    """Kernels may sum in another order, so only up to that."""
    plain, captured = make("cuda", False, **fields), make("cuda", True, **fields)
    torch.testing.assert_close(losses(captured), losses(plain), atol=2e-3, rtol=2e-3)
    assert captured.graphs is not None


@needs_gpu
def test_on_a_gpu_a_resumed_run_goes_on_up_to_rounding():
    whole, resumed = make("cuda", True), make("cuda", True)
    losses(whole, 5)
    resumed.trainer.load_tensors({name: tensor.clone() for name, tensor in whole.trainer.tensors().items()})
    torch.testing.assert_close(losses(resumed), losses(whole), atol=2e-3, rtol=2e-3)


@needs_gpu
def test_on_a_gpu_no_step_waits_for_the_device():
    step = make("cuda", True)
    losses(step)
    config = dataclasses.replace(step.trainer.config, batch_size=16)
    batches = InMemory(tiny_images(64).cuda(), config, Alone()).begin(0, 0)
    generator = torch.Generator("cuda").manual_seed(0)
    step(next(batches), generator)  # the plan of the epoch goes to the GPU, and kernels are compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            step(next(batches), generator)
    finally:
        torch.cuda.set_sync_debug_mode("default")
