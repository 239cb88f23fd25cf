"""Table 2: every cell is published or not, run or not, and says so; what was filled in is named."""

import dataclasses
import json

import pytest
from helpers.records import PROBE, result_of

from dcopy.report import published, table2
from dcopy.workflow import presets

LARS = "batch 4096 LARS symmetric"


@pytest.fixture(scope="module")
def reference():
    return published.read()


def cell(rows, method, epochs):
    (row,) = (row for row in rows if (row["method"], row["epochs"]) == (method, epochs))
    return row


def test_published_numbers_stand_in_their_cells_and_what_was_not_run_says_so(reference):
    rows = table2.rows(reference)
    assert len(rows) == 15 and {row["here"] for row in rows} == {"not run"}
    assert {(row["setting"], row["epochs"]) for row in rows} == {
        *{(LARS, 100), (LARS, 300)},
        ("batch 256 SGD one-sided", 60),
    }
    pred = cell(rows, "DirectPred", 300)
    assert (pred["top-1"], pred["top-5"], pred["source"]) == ("72.4", "91.0", "Tian et al., T9")
    assert cell(rows, "DirectPred", 60)["top-1"] == "64.4"
    assert cell(rows, "DirectPred", 100)["top-1"] == cell(rows, "DirectCopy", 300)["top-1"] == "—"


def leave(folder, config, accuracy):
    place = folder / "runs" / config.name
    place.mkdir(parents=True)
    (place / "result.json").write_text(json.dumps(result_of(config)))
    probe = PROBE | {"linear": {"accuracy": accuracy, "converged": True, "top5": 0.9}}
    (place / "probe.json").write_text(json.dumps(probe))


def test_our_runs_stand_beside_them_over_seeds_in_whatever_precision(reference, tmp_path):
    run = next(run for run in presets.get("imagenet").runs() if (run.method, run.epochs) == ("mlp", 100))
    for seed, accuracy in ((0, 0.68), (1, 0.69)):
        leave(tmp_path, dataclasses.replace(run, seed=seed, precision=("bf16", "fp32")[seed]), accuracy)
    leave(tmp_path, dataclasses.replace(run, accumulate=16), 0.6)
    leave(tmp_path, dataclasses.replace(run, lr=1.0), 0.1)  # not the setting, so in no row
    rows = table2.rows(reference, [tmp_path])
    ours = cell(rows, "BYOL 2-layer predictor", 100)
    assert (ours["here"], ours["n"], ours["here, top-5"]) == ("68.50 ± 0.71", 2, "90.00 ± 0.00")
    assert cell(rows, "BYOL 2-layer predictor, in 16 parts", 100)["here"] == "60.0"
    assert len([row for row in rows if row["here"] != "not run"]) == 2
    leave(tmp_path, dataclasses.replace(run, seed=2), 68.5)
    with pytest.raises(ValueError, match=r"68\.5 is no accuracy"):
        table2.rows(reference, [tmp_path])


def test_the_notes_name_what_was_filled_in(reference):
    """With the values that the presets have."""
    text = " ".join(table2.notes(reference))
    for setting in (
        "0.45 × batch/256 at 100 epochs",
        "0.3 × batch/256 at 300 epochs",
        "10 epochs of warm-up",
    ):
        assert setting in text
    assert "0.05 × batch/256" in text and "momentum from 0.99 to 1" in text and "4096 and 256 units" in text
    assert "no number for DirectCopy or DirectCopy, F/‖F‖." in text


def test_imagenette_has_our_short_runs_beside_what_a_full_run_reaches(reference):
    def record(method, label, accuracy):
        probe = {"knn": accuracy, "linear": {"accuracy": accuracy + 0.05}}
        return {"method": method, "label": label, "probe": probe}

    own = [record("mlp", "BYOL", 0.5), record("mlp", "BYOL", 0.52), record("directcopy", "DirectCopy", 0.6)]
    rows = {row.pop("method"): row for row in table2.imagenette(reference, own)}
    assert rows["BYOL"] == {
        **{"k-NN": "51.00 ± 1.41", "linear": "56.00 ± 1.41", "n": 2},
        "k-NN of a full run": "88.7",
    }
    assert rows["DirectCopy"]["k-NN of a full run"] == "—" and rows["DirectCopy"]["n"] == 1
    assert rows["SimSiam"] | {"k-NN of a full run": "87.2", "k-NN": "not run"} == rows["SimSiam"]
    text = " ".join(table2.imagenette_notes(reference))
    assert "800 epochs" in text and f"{presets.get('imagenette').runs()[0].epochs} epochs of the" in text
