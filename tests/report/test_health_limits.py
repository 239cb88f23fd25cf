"""The limits of the verdict on health are those that the committed runs support."""

import json

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from helpers.records import PROBE, result_of

from dcopy.config import TrainConfig
from dcopy.report import health_limits
from dcopy.training import health
from dcopy.workflow.plan import ROOT

LIMITS = {"projection_std": health.STD_LIMITS, "effective_rank": health.RANK_LIMITS}


@pytest.fixture(scope="module")
def frame():
    return health_limits.read(ROOT / "results/reference")


def test_each_limit_lies_where_the_ablations_have_the_fewest_errors(frame):
    """And the verdict by both measures does better than calling every run healthy."""
    ablations = frame[frame["preset"] == health_limits.SET_ON]
    for measure, windows in health_limits.windows(ablations).items():
        for limit, window in zip(LIMITS[measure], windows, strict=True):
            assert window["low"] < limit <= window["high"], (measure, window)
    found = health_limits.foretold(ablations)
    assert found["right"] > found["right by the former limits"] > found["right if all were called healthy"]


def test_the_committed_file_is_what_the_committed_runs_give(frame):
    record = json.loads((ROOT / "results/reference/health/limits.json").read_text())
    assert json.loads(json.dumps(health_limits.measured(frame))) == record
    rows = pd.read_csv(ROOT / "results/reference/health/runs.csv")
    assert rows["name"].tolist() == frame["name"].tolist()
    assert rows["verdict"].tolist() == frame["verdict"].tolist()
    known = record["presets"]["ablations"]
    assert f"{known['right']} of {known['runs']} (ablations)" in health_limits.sentence(record)


def test_the_figure_shows_every_run_of_every_preset(frame):
    picture = health_limits.figure(frame)
    for ax in picture.axes:
        assert sum(len(dots.get_offsets()) for dots in ax.collections) == len(frame)
    shown = {text.get_text() for text in picture.axes[1].get_legend().get_texts()}
    assert {*frame["preset"]} < shown
    plt.close(picture)


def test_a_window_is_the_widest_gap_with_the_fewest_errors():
    values = pd.Series([0.1, 0.2, 0.4, 1.6, 1.7])
    above = pd.Series([False, False, True, True, True])
    assert health_limits.window(values, above) == {"low": 0.2, "high": 0.4, "errors": 0}
    above = pd.Series([False, True, False, True, True])  # 0.15 and 1 err once each; the gap at 1 is wider
    assert health_limits.window(values, above) == {"low": 0.4, "high": 1.6, "errors": 1}


def test_gains_are_measured_from_each_runs_own_first_weights(tmp_path):
    """Accuracies of 40, 60 and 80 % after a start at 50 or 55 %: nothing, little and much."""
    for seed, (accuracy, start) in enumerate([(0.4, 0.5), (0.6, 0.55), (0.8, 0.5)]):
        write(
            tmp_path, f"digits-run{seed}", accuracy, baselines=["digits-pixels", f"digits-random-seed{seed}"]
        )
        write(tmp_path, f"digits-random-seed{seed}", start)
    frame = health_limits.gains(tmp_path)
    assert frame["gain"].tolist() == pytest.approx([-0.1 / 0.3, 0.05 / 0.25, 1])
    assert frame["found"].tolist() == ["nothing", "little", "much"]
    assert frame["verdict"].tolist() == ["healthy"] * 3  # by today's limits; the file says otherwise
    table = health_limits.foretold(frame)["table"]
    assert table["healthy"] == {"nothing": 1, "little": 1, "much": 1} and not any(table["collapsed"].values())


def write(folder, name, accuracy, baselines=None):
    path = folder / "runs" / name
    path.mkdir(parents=True)
    points = [{"labels_per_class": 1, "accuracy_mean": accuracy}]
    probe = PROBE | {"name": name, "label_efficiency": points, "baselines": baselines or []}
    (path / "probe.json").write_text(json.dumps(probe))
    if baselines:
        metrics = {"verdict": "collapsed"}
        (path / "result.json").write_text(json.dumps(result_of(TrainConfig(), name=name, metrics=metrics)))
