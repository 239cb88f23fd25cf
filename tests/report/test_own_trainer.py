"""Notebook 07: where to begin is what the ablations say, and figures and table show what was written."""

import shutil

import pandas as pd
from matplotlib import pyplot

from dcopy import results
from dcopy.evaluation.evaluate import load_results
from dcopy.report import ablations, own_trainer
from dcopy.workflow.plan import ROOT

QUICK = ROOT / "results" / "reference" / "quick"


def probe(accuracy):
    few = [{"labels_per_class": 1, "accuracy_mean": accuracy}]
    return {"label_efficiency": few, "knn": accuracy + 0.1, "linear": {"accuracy": accuracy + 0.2}}


def record():
    """Two methods with two heads each; the verdict that was written is not today's."""
    metrics = [
        {"epoch": epoch, "loss": -2.0, "projection_std": 0.3, "effective_rank": 2.0, "verdict": "healthy"}
        | {"spectrum": [1.0, 0.5, 0.0]}
        for epoch in (1, 2)
    ]
    runs = {
        f"{method} with {head}": {"metrics": metrics, "probe": probe(0.5)}
        for method in ("BYOL", "SimSiam")
        for head in own_trainer.METHODS
    }
    settings = {"epochs": 2, "width": 4, "batch_size": 64, "seed": 0}
    return {"settings": settings, "runs": runs, own_trainer.FIRST: probe(0.4)}


def test_it_begins_with_the_best_of_the_ablations():
    frame = ablations.ablation_frame(*load_results(ROOT / "results" / "reference" / "ablations"))
    begin = own_trainer.begin_with(frame)
    scaled = frame[(frame["normalize"] == "spectral")].groupby("eps")["accuracy"].mean()
    assert begin["eps"] == scaled.idxmax() and f"{scaled.max():.1f} %" in begin["why"]
    rho = ablations.select(frame, "rho").groupby("rho")["accuracy"].mean()
    assert begin["rho"] == rho.idxmax() and f"{rho.min():.1f} %" in begin["why"]
    assert ("no more than noise" in begin["why"]) != ablations.finding(frame, "rho")["clear"]


def test_without_all_of_the_ablations_it_begins_with_the_defaults(tmp_path):
    grid, begin, found = own_trainer.start(str(tmp_path / "elsewhere"))
    assert grid is None and begin == {"eps": 0.3, "rho": 0.3} and "defaults" in found
    reference = ROOT / "results" / "reference" / "ablations"
    one = next(path for path in reference.glob("runs/*") if (path / "result.json").exists())
    shutil.copytree(one, tmp_path / "begun" / "runs" / one.name)
    grid, begin, found = own_trainer.start(str(tmp_path / "begun"))
    assert grid is None and "not varied both" in found
    assert own_trainer.start(str(reference))[2].endswith("results/reference/ablations")


def test_what_is_written_is_what_is_shown(tmp_path):
    own_trainer.write(tmp_path, record())
    again = own_trainer.read(tmp_path)
    assert again["runs"].keys() == record()["runs"].keys() and again["commit"]
    first, last = again["runs"]["BYOL with DirectCopy"]["metrics"]
    assert last == record()["runs"]["BYOL with DirectCopy"]["metrics"][-1]
    assert "spectrum" not in first and last == first | {"epoch": 2, "spectrum": last["spectrum"]}
    table = own_trainer.table(again)
    assert table["method"].tolist() == [*record()["runs"], own_trainer.FIRST]
    assert table.iloc[0].tolist()[1:] == ["partial collapse", "0.30", "2.0", "50.0", "60.0", "70.0"]
    assert table.iloc[-1].tolist()[1:] == ["—", "—", "—", "40.0", "50.0", "60.0"]
    figure = own_trainer.curves(again, "SimSiam")
    assert figure.get_suptitle() == "SimSiam: lightly's head partial collapse, DirectCopy partial collapse"
    assert [len(ax.lines) for ax in own_trainer.spectra(again).axes] == [2, 2]
    own_trainer.keep(table, again, tmp_path)
    assert pd.read_csv(tmp_path / "tables" / "own-trainer.csv")["1 a class"].tolist() == [50.0] * 4 + [40.0]
    pyplot.close("all")


def test_what_was_not_run_says_so(tmp_path):
    assert own_trainer.read(tmp_path) is None
    for figure in (own_trainer.curves(None, "BYOL"), own_trainer.spectra(None)):
        assert "not run" in figure.axes[0].texts[0].get_text()
    table = own_trainer.table(None)
    own_trainer.keep(table, None, tmp_path)
    assert table.empty and not list(tmp_path.iterdir())
    pyplot.close("all")


def test_the_committed_table_is_that_of_the_committed_runs():
    written = pd.read_csv(QUICK / "tables" / "own-trainer.csv", dtype=str)
    shown = own_trainer.table(results.read_json(QUICK / own_trainer.FILE))
    assert written.to_dict("records") == shown.to_dict("records")
