"""What a run will take, held against what one took."""

import pytest
from helpers.tiny import tiny_config, tiny_run

from dcopy import data
from dcopy.bench import cost
from dcopy.config import RECIPES, TrainConfig
from dcopy.data.datasets import CIFAR


def test_steps_and_disk_are_those_of_a_run(tmp_path):
    config = tiny_config(method="mlp")
    taken = cost.measure(config)
    folder = tiny_run(tmp_path, config).folder
    files = [path.stat().st_size for path in folder.glob("checkpoint*.safetensors")]
    assert len(files) == 2 and taken["disk"] == pytest.approx(
        sum(files), rel=0.5
    )  # headers, in a net so small
    assert taken["steps"] == taken["images"] // config.batch_size == 1297 // 16
    assert taken["seconds"] > 0 and taken["memory"] > 1e8 and taken["trial"] == 16


def test_a_batch_too_large_to_try_is_timed_in_small_and_scaled(monkeypatch):
    config = tiny_config(batch_size=64)
    monkeypatch.setattr(cost, "PIXELS", {"cpu": 16 * 16 * 16})
    whole = []
    step = {"ms": 10.0, "memory": {"activations": 1000, "measured": 0, "estimate": 0}}
    monkeypatch.setattr(cost, "step_parts", lambda trial, *_, **options: whole.append(trial) or step)
    taken = cost.measure(config)
    assert [trial.batch_size for trial in whole] == [taken["trial"]] == [16]
    assert taken["seconds"] == pytest.approx(0.04)


def test_images_are_counted_without_reading_them(tmp_path):
    assert RECIPES["digits"].images == len(data.load("digits").pretrain())
    assert {name: RECIPES[name].images for name in CIFAR} == {name: facts[0] for name, facts in CIFAR.items()}
    for name in ("train/a/1.png", "train/b/2.png", "test/a/3.png", "unlabeled/4.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert cost.images(TrainConfig(dataset=f"folder:{tmp_path}")) == 3


def test_a_batch_in_parts_is_tried_in_parts_and_needs_the_memory_of_one(monkeypatch):
    monkeypatch.setattr(cost, "PIXELS", {"cpu": 8 * 16 * 16})
    step = {"ms": 10.0, "memory": {"activations": 10**9, "measured": 0, "estimate": 0}}
    tried = []
    monkeypatch.setattr(cost, "step_parts", lambda trial, *_, **options: tried.append(trial) or step)
    whole, parts = (cost.measure(tiny_config(batch_size=64, accumulate=k)) for k in (1, 16))
    assert [(trial.batch_size, trial.accumulate) for trial in tried] == [(8, 1), (8, 2)]
    assert whole["seconds"] == parts["seconds"] == pytest.approx(0.08)
    assert whole["memory"] - parts["memory"] == pytest.approx(7e9, rel=0.01)  # 64 images at once, and 4
