"""The benchmark's bookkeeping: parts add up, files have their fields, counts are right. No test
asserts a time."""

import argparse
import gc
import re
import runpy
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import matplotlib.pyplot as plt
import pytest
import torch

from dcopy import results
from dcopy.bench import bench, measure
from dcopy.bench.measure import Clock, PeakMemory
from dcopy.config import TrainConfig
from dcopy.data import augment
from dcopy.predictors import DirectPred
from dcopy.report import plotting
from dcopy.training.graphs import WARMUP, FastStep
from dcopy.training.step import Trainer
from dcopy.workflow.plan import ROOT

LIGHTLY = ROOT / "benchmarks" / "lightly_comparison.py"
PARTS = [
    *("augmentation", "online forward", "predictor update", "prediction", "target forward"),
    *("loss and backward", "optimizer", "EMA"),
]


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """What `python -m dcopy.bench` writes, at the smallest sizes."""
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "DIMS", (4, 8))
        options = ["--config", "dataset=digits", "width=4", "batch_size=8", "--steps", "3"]
        assert bench.main([*options, "--device", "cpu", "--out", str(path)]) == 0
    return results.read_json(path)


def test_parts_add_up_to_the_step(record):
    step = record["step"]
    assert [row["part"] for row in step["parts"]] == PARTS
    assert sum(row["ms"] for row in step["parts"]) == pytest.approx(step["ms"])
    assert sum(row["share"] for row in step["parts"]) == pytest.approx(1)
    assert len(step["step_ms"]) == 3
    assert sum(step["step_ms"]) / 3 == pytest.approx(step["ms"])
    assert step["images_per_second"] == pytest.approx(8 / (step["ms"] / 1e3))
    assert step["matrix_tflop_per_second"] > step["tflop_per_second"] > 0  # of so narrow a network


def test_file_says_what_was_measured_where(record):
    assert record["config"]["width"] == 4
    assert {"commit", "versions", "device", "finished"} <= set(record["provenance"])
    assert record["step"]["clocks"] is record["step"]["captured"] is None  # of a GPU
    assert record["step"]["compiled"] is False and record["step"]["seconds_to_compile"] is None


def test_a_captured_step_is_timed_as_a_whole(eager_graphs):
    step = FastStep(Trainer(TrainConfig(width=4, batch_size=8), 1), augment.build("digits"))
    step.captures = True
    images, generator = bench.random_images(step.trainer.config), torch.Generator()
    assert bench.captured_step_ms(step, images, generator, Clock("cpu"), 2) > 0
    assert step.steps == WARMUP + 1 + 2


def test_every_method_is_timed_at_every_D(record):
    rows = record["predictors"]
    labels = {row["label"] for row in rows}
    assert labels == {
        *("DirectCopy", "DirectCopy (frobenius)", "DirectCopy (spectral)", "DirectPred"),
        *("DirectPred (freq=5)", "DirectSet(2)", "SGD linear predictor"),
    }
    assert {(row["label"], row["dim"]) for row in rows} == {(label, D) for label in labels for D in (4, 8)}
    assert all(row["ms"] > 0 for row in rows)


@pytest.mark.parametrize("batchnorm", ["per-view", "joint"])
@pytest.mark.parametrize("symmetric_loss", [True, False])
def test_parts_come_in_the_order_of_the_step(batchnorm, symmetric_loss):
    config = TrainConfig(width=4, batch_size=8, batchnorm=batchnorm, symmetric_loss=symmetric_loss)
    step = bench.step_parts(config, "cpu", steps=1, warmup=0)
    assert [row["part"] for row in step["parts"]] == PARTS


def test_steps_that_overflowed_are_not_timed(monkeypatch):
    """In fp16 they skip the optimizer, so their parts are not those of a step."""
    config, skipped, whole = TrainConfig(width=4, batch_size=8), {"EMA": 9.0}, {"optimizer": 1.0, "EMA": 2.0}
    for found, ms in (([whole, skipped, whole], 3.0), ([skipped], None)):
        monkeypatch.setattr(bench, "part_times", lambda *_, found=found: found)
        if ms:
            step = bench.step_parts(config, "cpu", steps=3, warmup=0)
            assert step["step_ms"] == [ms, ms] and step["ms"] == ms
        else:
            with pytest.raises(RuntimeError, match="overflowed in each of 1 steps"):
                bench.step_parts(config, "cpu", steps=1, warmup=0)


def test_a_part_is_marked_when_its_work_is_done():
    trainer, events = Trainer(TrainConfig(width=4, batch_size=8), 1), []
    for name in ("online", "predictor", "target"):
        getattr(trainer, name).register_forward_hook(lambda *_, name=name: events.append(name))
    trainer.optimizer.register_step_post_hook(lambda *_: events.append("optimizer has stepped"))
    bench.mark_parts(trainer, events.append)
    trainer.step(*torch.rand(2, 8, 1, 16, 16))
    assert events == [
        *2 * ["online", "online forward"],
        *2 * ["predictor update", "predictor", "prediction"],
        *2 * ["target", "target forward"],
        *("loss and backward", "optimizer has stepped", "optimizer"),
    ]


def test_measuring_leaves_the_step_as_it_is():
    config = TrainConfig(width=4, batch_size=8)
    plain, marked = Trainer(config, 1), Trainer(config, 1)
    bench.mark_parts(marked, lambda part: None)
    x1, x2 = torch.rand(2, 8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    plain.step(x1, x2)
    measure.count(lambda: marked.step(x1, x2))
    for name, tensor in plain.tensors().items():
        assert torch.equal(tensor, marked.tensors()[name]), name


def test_operations_and_kept_bytes_of_two_products():
    weight, x = torch.rand(5, 7, requires_grad=True), torch.rand(3, 7)
    flop, kept = measure.count(lambda: (x @ weight.T + x @ weight.T).sum().backward())
    assert flop == 2 * 2 * (2 * 3 * 5 * 7)  # two products, forward and backward to the weight
    assert sum(kept.values()) == 4 * 3 * 7  # x, which both keep


def test_memory_estimate_follows_its_formula():
    config = TrainConfig(width=4, batch_size=8)
    trainer, images = Trainer(config, 1), bench.random_images(config)
    own = next(iter(trainer.named_parameters.values()))
    kept = {own.untyped_storage().data_ptr(): own.nbytes, -1: 1000}  # a weight counts once, as a weight
    online, target = (
        sum(p.numel() for p in module.parameters()) for module in (trainer.online, trainer.target)
    )
    found = bench.memory_estimate(trainer, kept, images)
    assert found["parameters"] == 4 * (3 * online + target)
    assert found["activations"] == 1000
    assert found["images"] == 8 * 16 * 16
    assert found["estimate"] == found["parameters"] + 1000 + found["images"]


def test_kept_bytes_grow_linearly_with_the_batch():
    small, middle, large = (
        bench.step_parts(TrainConfig(width=4, batch_size=N), "cpu", steps=1, warmup=0)["memory"]
        for N in (8, 16, 24)
    )
    assert large["activations"] - middle["activations"] == middle["activations"] - small["activations"] > 0
    assert large["parameters"] == small["parameters"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak")
def test_peak_sees_what_was_freed_before_the_end():
    with PeakMemory("cpu") as peak:
        torch.ones(64 * 2**20, dtype=torch.uint8)
    assert 60 * 2**20 < peak.bytes < 80 * 2**20


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak")
def test_garbage_of_before_hides_nothing_of_the_peak():
    cycle = [torch.ones(128 * 2**20, dtype=torch.uint8)]
    cycle.append(cycle)
    del cycle
    with PeakMemory("cpu") as peak:
        gc.collect()
        torch.ones(64 * 2**20, dtype=torch.uint8)
    assert 60 * 2**20 < peak.bytes < 80 * 2**20


def test_update_ms_sets_the_weight_every_freq_steps_and_sgd_moves_it_between():
    config, z = TrainConfig(projection_dim=4), torch.rand(16, 4)
    calls = []

    class Counted(DirectPred):
        def set_weight(self):
            super().set_weight()
            calls.append(self.weight.clone())

    predictor = Counted(4, freq=5)
    bench.update_ms(predictor, z, config, seconds=0)
    assert (predictor.steps, len(calls)) == (5 * 5, 5)  # two cycles to warm up, three at least
    assert not torch.equal(predictor.weight, calls[-1])


def test_spans_of_the_clock_lie_between_its_moments():
    clock = Clock("cpu")
    moments = [clock.now() for _ in range(4)]
    assert len(clock.ms(moments)) == 3
    assert sum(clock.ms(moments)) == pytest.approx(1e3 * (moments[-1] - moments[0]))


def test_wrong_option_is_one_line(capsys):
    assert bench.main(["--config", "dataset=digits", "eps=-1"]) == 2
    assert "eps=-1.0 is not allowed" in capsys.readouterr().err
    assert bench.main(["--steps", "0"]) == 2
    assert "steps=0 is not allowed" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["file/record.json", "folder", "/proc/nope.json"])
def test_where_no_record_can_be_written_is_told_before_timing(name, tmp_path, capsys, monkeypatch):
    if name.startswith("/proc") and sys.platform != "linux":
        pytest.skip("no /proc")
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(bench, "step_parts", None)
    assert bench.main(["--device", "cpu", "--out", str(tmp_path / name)]) == 2
    assert re.fullmatch(rf"error: \S*{name.removesuffix('/record.json')}: .*\n", capsys.readouterr().err)


def test_a_script_is_told_before_its_work_where_it_cannot_write(tmp_path):
    with pytest.raises(argparse.ArgumentTypeError, match=f"{tmp_path}: Is a directory"):
        measure.out_file(str(tmp_path))
    assert measure.out_file("results/bench/new.json") == ROOT / "results/bench/new.json"
    for script in (ROOT / "benchmarks").glob("*.py"):
        assert script.read_text().count('"--out"') == script.read_text().count("type=out_file"), script


def test_a_record_that_is_there_stays_until_the_new_one_is_complete(tmp_path, monkeypatch, capsys):
    path = results.write_json(tmp_path / "record.json", {"old": 1})
    monkeypatch.setattr(bench, "step_parts", Mock(side_effect=ValueError("bad")))
    assert bench.main(["--device", "cpu", "--out", str(path)]) == 2
    assert capsys.readouterr().err == "error: bad\n"
    assert results.read_json(path) == {"old": 1} and len(list(tmp_path.iterdir())) == 1


def test_figure_has_a_line_for_every_method_and_names_the_device(record):
    figure = plotting.predictor_cost(record)
    ax = figure.axes[0]
    looks = {(line.get_color(), line.get_linestyle()) for line in ax.lines}
    assert [line.get_label() for line in ax.lines] == list(
        dict.fromkeys(row["label"] for row in record["predictors"])
    )
    assert len(looks) == len(ax.lines)
    first = [row["ms"] for row in record["predictors"] if row["label"] == "DirectCopy"]
    assert list(ax.lines[0].get_ydata()) == first
    assert ax.lines[0].get_color() == plotting.COLORS["directcopy"]
    assert ax.get_title(loc="left") + ax.get_title() == record["provenance"]["device"]
    plt.close(figure)


def test_comparison_without_lightly_says_how_to_get_it():
    code = f"import sys, runpy; sys.modules['lightly'] = None; runpy.run_path({str(LIGHTLY)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install lightly" in done.stderr
    assert "Traceback" not in done.stderr


def test_comparison_with_lightly(tmp_path):
    pytest.importorskip("lightly", reason="lightly, which only this comparison needs, is not installed")
    script = runpy.run_path(str(LIGHTLY))
    options = {"seeds": 1, "epochs": 1, "rounds": 1, "steps": 1, "workers": 0, "width": 2, "device": "cpu"}
    script["main"](
        [*(f"--{name}={value}" for name, value in options.items()), f"--out={tmp_path / 'l.json'}"]
    )
    record = results.read_json(tmp_path / "l.json")
    assert [row["name"] for row in record["accuracy"]["summary"]] == [
        *("DirectCopy, dcopy", "BYOL, dcopy", "BYOL, lightly", "SimSiam, dcopy", "SimSiam, lightly")
    ]
    times = record["speed"]["times_as_fast"]
    assert list(times)[:3] == ["BYOL, lightly, fp32", "BYOL, dcopy, fp32", "SimSiam, lightly, fp32"]
    assert times["BYOL, lightly, fp32"] == 1 and times["SimSiam, lightly, fp32"] != 1
    assert "lightly" in record["provenance"]["versions"]
    config = TrainConfig(method="mlp", width=2, batch_size=8)
    ours, theirs = Trainer(config, 1), script["LightlyTrainer"](script["LightlyBYOL"], config, 1, "cpu")
    assert all(map(torch.equal, ours.online.encoder.parameters(), theirs.online.encoder.parameters()))
    x1, x2 = torch.rand(2, 8, 1, 16, 16)
    online, momentum = (net.encoder.layers[0].weight for net in (theirs.online, theirs.model.momentum))
    first = online.detach().clone()
    theirs.step(x1, x2)
    second = online.detach().clone()
    assert not torch.allclose(first, second)
    theirs.step(x1, x2)
    torch.testing.assert_close(momentum, first.lerp(second, 1 - config.ema))
