"""More epochs go on where fewer ended: one trajectory, bit for bit the run that was never divided."""

import dataclasses
import os

import pytest
from helpers.tiny import assert_same, tiny_config, tiny_images, tiny_run, untimed

from dcopy import results
from dcopy.__main__ import main
from dcopy.training import checkpoint
from dcopy.training.interrupt import Interrupted
from dcopy.training.runs import load_run
from dcopy.training.step import Trainer

CONFIG = tiny_config(method="directpred", freq=2)


@pytest.fixture
def steps(monkeypatch):
    """How often a step was done."""
    step, done = Trainer.step, []
    monkeypatch.setattr(Trainer, "step", lambda self, *views: (done.append(1), step(self, *views))[1])
    return done


def after(epochs, config=CONFIG):
    return dataclasses.replace(config, epochs=epochs)


def stopped(folder, config, steps):
    """The same run, stopped after as many steps."""
    for _ in range(steps):
        with pytest.raises(Interrupted):
            tiny_run(folder, config, stop_after=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_several_numbers_cost_as_many_epochs_as_the_largest(precision, tmp_path, steps):
    """And each has a finished folder, equal to that of a run of its own."""
    config = dataclasses.replace(CONFIG, precision=precision)
    runs = [tiny_run(tmp_path / "one", after(n, config)) for n in (1, 2, 3)]
    assert len(steps) == 3 * 3
    for run in runs:
        assert_same(load_run(run.folder), tiny_run(tmp_path / str(run.config.epochs), run.config))
    assert len(steps) == 3 * (3 + 1 + 2 + 3)


def test_the_longer_run_names_the_shorter_and_counts_its_time(tmp_path):
    first, longer = (tiny_run(tmp_path, after(n)) for n in (2, 3))
    assert first.result["went_on_from"] is None
    assert longer.result["went_on_from"] == {"run": first.config.name, "epoch": 2, "step": 0}
    assert longer.metrics[:2] == first.metrics  # seconds, too
    assert longer.result["seconds"] > longer.metrics[-1]["seconds"] > first.result["metrics"]["seconds"]


def test_it_says_where_it_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DCOPY_PROGRESS", "lines")
    first = tiny_run(tmp_path, after(2))
    tiny_run(tmp_path, after(3), progress=True)
    device, *epochs = capsys.readouterr().out.splitlines()
    assert device.endswith(f"on from epoch 2, step 0 of {first.config.name}")
    assert [line.split("  ")[0] for line in epochs] == ["epoch 3/3"]


@pytest.mark.parametrize("done", [1, 3, 5])
@pytest.mark.parametrize("epochs", [2, 4])
def test_an_unfinished_run_of_more_or_fewer_epochs_is_a_start_as_well(epochs, done, tmp_path, steps):
    stopped(tmp_path, after(epochs), done)
    longer = tiny_run(tmp_path, CONFIG)
    assert len(steps) == 9
    assert_same(longer, tiny_run(tmp_path / "alone", CONFIG))


def test_the_start_that_is_furthest_is_taken(tmp_path, steps):
    tiny_run(tmp_path, after(1))
    stopped(tmp_path, after(2), 1)  # a step further than the first
    stopped(tmp_path, after(9), 2 * 3)  # and two epochs, on from there
    assert len(steps) == 3 + 1 + 6
    assert tiny_run(tmp_path, after(4)).result["went_on_from"]["run"] == after(9).name


def test_a_run_that_was_stopped_after_it_went_on_is_continued(tmp_path):
    tiny_run(tmp_path, after(1))
    stopped(tmp_path, CONFIG, 2)
    for name in ("metrics.jsonl", "result.json", checkpoint.NEWEST):
        (tmp_path / after(1).name / name).unlink()  # which it needs no more
    longer = tiny_run(tmp_path, CONFIG)
    assert longer.result["went_on_from"] == {"run": after(1).name, "epoch": 1, "step": 0}
    assert_same(longer, tiny_run(tmp_path / "alone", CONFIG))


def test_fewer_epochs_than_are_finished_are_trained_anew(tmp_path, steps):
    tiny_run(tmp_path, CONFIG)
    shorter = tiny_run(tmp_path, after(2))
    assert len(steps) == 9 + 6
    assert_same(shorter, tiny_run(tmp_path / "alone", after(2)))


@pytest.mark.parametrize("fields", [{"seed": 1}, {"lr": 0.02}, {"precision": "bf16"}, {"freq": 1}], ids=str)
def test_another_configuration_is_no_start(fields, tmp_path, steps):
    tiny_run(tmp_path, dataclasses.replace(after(2), **fields))
    assert tiny_run(tmp_path, CONFIG).result["went_on_from"] is None
    assert len(steps) == 6 + 9


def test_other_images_are_no_start(tmp_path, steps):
    other = tiny_run(tmp_path, after(2), images=tiny_images(seed=1))
    run = tiny_run(tmp_path, CONFIG)
    assert run.result["went_on_from"] is None and len(steps) == 6 + 9
    both = tiny_run(tmp_path, CONFIG, images=tiny_images(seed=1))
    assert both.result["went_on_from"]["run"] == other.config.name
    assert both.folder != run.folder and untimed(both.metrics) != untimed(run.metrics)


def spoil_metrics(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[1:]))


def spoil_tensors(folder):
    tensors, header = checkpoint.load(folder)
    tensors.pop("momentum.online.projector.0.weight")
    for _ in range(2):  # the one before, too
        checkpoint.save(folder, tensors, header)


SPOILED = {
    "a tensor missing": spoil_tensors,
    "checkpoints cut short": lambda folder: [os.truncate(path, 99) for path in folder.glob("*.safetensors")],
    "no weights, as in a clone": lambda folder: [path.unlink() for path in folder.glob("*.safetensors")],
    "no metrics": lambda folder: (folder / "metrics.jsonl").unlink(),
    "metrics of fewer epochs": spoil_metrics,
    "a result that is no JSON": lambda folder: (folder / "result.json").write_text("{"),
    "a configuration that is no JSON": lambda folder: (folder / "config.json").write_text("{"),
    "a configuration of another version": lambda folder: (folder / "config.json").write_text('{"new": 1}'),
    "a configuration that is a list": lambda folder: (folder / "config.json").write_text("[1]"),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_run_that_is_not_whole_is_no_start_and_no_obstacle(spoil, tmp_path):
    spoil(tiny_run(tmp_path, after(2)).folder)
    run = tiny_run(tmp_path, CONFIG)
    assert run.result["went_on_from"] is None
    assert_same(run, tiny_run(tmp_path / "alone", CONFIG))


def test_the_command_takes_several_numbers(tmp_path, steps, capsys):
    sizes = ("batch_size", "width", "hidden_dim", "projection_dim")
    tiny = [f"{name}={getattr(CONFIG, name)}" for name in sizes]
    command = [*tiny, "--out-dir", str(tmp_path), "--device", "cpu"]
    assert main([*command, "epochs=2,1"]) == 0
    runs = {path: results.read_json(path) for path in tmp_path.glob("*/result.json")}
    assert sorted(run["config"]["epochs"] for run in runs.values()) == [1, 2]
    batches = runs.popitem()[1]["images"] // CONFIG.batch_size
    assert len(steps) == 2 * batches
    assert main([*command, "epochs=1,0"]) == 2
    assert capsys.readouterr().err == "error: epochs=0 is not allowed; it must be an integer of at least 1\n"
