"""What notebook 07 shows of DirectCopy in other trainers: where to begin, curves, spectra, table."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .. import results
from ..evaluation.evaluate import load_results
from ..training import health
from ..workflow import plan
from . import plotting
from .ablation_figures import not_run
from .ablations import ablation_frame, finding, select
from .tables import write_table

FILE = "own_trainer/runs.json"  # in the folder of a preset
FIRST = "first weights"  # row of the table: the encoder before training
METHODS = {"lightly's head": "mlp", "DirectCopy": "directcopy"}  # what has whose colour


def start(path: str) -> tuple[pd.DataFrame | None, dict, str]:
    """Where to begin, from the ablations in a folder, or else from the committed ones.

    Returns:
        The accuracies of `eps_grid`, or None where the ablations are not there; `eps` and `rho`, with `why`
        if they were found; and a line that says what was read.
    """
    try:
        source = results.own_or_reference(path)
        frame = ablation_frame(*load_results(source))
        return eps_grid(frame), begin_with(frame), f"{len(frame)} runs in {plan.shortest(source)}"
    except ValueError as error:  # a copy of dcopy without its results, or ablations that have only begun
        return None, {"eps": 0.3, "rho": 0.3}, f"{error}; the defaults are used here"


def eps_grid(frame: pd.DataFrame) -> pd.DataFrame:
    """Accuracy on one label per class: scales of F down, ε across, mean over seeds of the ablations."""
    grid = select(frame, "eps").pivot_table(index="normalize", columns="eps", values="accuracy", sort=False)
    return grid.rename_axis(index="scale of F", columns="ε")


def begin_with(frame: pd.DataFrame) -> dict:
    """The best eps and rho of the ablations, eps with F scaled, so that it does not depend on that of z.

    Returns:
        eps, rho, and why: sentences that say whether the difference to others is more than noise.

    Raises:
        ValueError: the frame lacks the runs of one of the two.
    """
    scaled, rho = (select(frame, name) for name in ("eps", "rho"))
    scaled = scaled[scaled["normalize"] == "spectral"]
    if scaled.empty or rho.empty:
        raise ValueError("the ablations have not varied both ε and ρ yet")
    eps, rho = (runs.groupby(name)["accuracy"].mean() for name, runs in (("eps", scaled), ("rho", rho)))
    clear = "more" if finding(frame, "rho").get("clear") else "no more"
    why = (
        f"These had the best mean accuracies in the ablations: {eps.max():.1f} % for ε, with F divided by "
        f"its largest eigenvalue (the worst, ε = {eps.idxmin():g}, had {eps.min():.1f} %), and "
        f"{rho.max():.1f} % for ρ (the worst, ρ = {rho.idxmin():g}, had {rho.min():.1f} %). The differences "
        f"between values of ρ are {clear} than noise."
    )
    return {"eps": float(eps.idxmax()), "rho": float(rho.idxmax()), "why": why}


def quiet_lightning(**options):
    """Lightning's Trainer on the processor, without its messages, bars and files; `options` go to it."""
    import pytorch_lightning

    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return pytorch_lightning.Trainer(accelerator="cpu", **dict.fromkeys(off, False), **options)


def write(folder: Path, record: dict) -> None:
    """Keep settings, runs (by name: metrics and probe) and the first weights' probe, with their origin.

    Of each run the spectrum of the last epoch is kept, the others' are not.
    """
    runs = {}
    for name, run in record["runs"].items():
        *before, last = run["metrics"]
        before = [{key: value for key, value in one.items() if key != "spectrum"} for one in before]
        runs[name] = run | {"metrics": [*before, last]}
    results.write_json(folder / FILE, record | {"runs": runs} | results.provenance("cpu"))


def read(folder: Path) -> dict | None:
    """What `write` wrote, or None."""
    path = folder / FILE
    return results.read_json(path) if path.exists() else None


def _runs(record: dict | None, method: str = "") -> dict[str, dict]:
    """By name within a method, or by whole name."""
    runs = record["runs"] if record else {}
    return {
        name.removeprefix(f"{method} with "): run for name, run in runs.items() if name.startswith(method)
    }


def curves(record: dict | None, method: str) -> Figure:
    """Loss, spread and rank of a method against the epoch, a line a prediction head."""
    runs = _runs(record, method)
    if not runs:
        return not_run(method)
    figure = plotting.compare_training({head: (METHODS[head], run["metrics"]) for head, run in runs.items()})
    verdicts = [f"{head} {health.judged(run['metrics'][-1])['verdict']}" for head, run in runs.items()]
    figure.suptitle(f"{method}: {', '.join(verdicts)}", x=0.01, ha="left", weight="bold")
    return figure


def spectra(record: dict | None) -> Figure:
    """Eigenvalues of the last epoch as shares of their sum, a panel a method, a line a prediction head."""
    methods = list(dict.fromkeys(name.split(" with ")[0] for name in _runs(record)))
    if not methods:
        return not_run("spectra")
    figure, axes = plt.subplots(1, len(methods), figsize=(4.3 * len(methods), 3.3), sharey=True)
    for ax, method in zip(np.atleast_1d(axes), methods, strict=True):
        for head, run in _runs(record, method).items():
            s = np.array(run["metrics"][-1]["spectrum"])
            share = np.clip(s / max(s.sum(), 1e-30), 1e-8, None)
            ax.semilogy(np.arange(1, len(s) + 1), share, color=plotting.COLORS[METHODS[head]], label=head)
        ax.set(title=method, xlabel="eigenvalue, largest first")
    np.atleast_1d(axes)[0].set_ylabel("share of the sum")
    np.atleast_1d(axes)[-1].legend()
    return figure


def table(record: dict | None) -> pd.DataFrame:
    """Health in the last epoch and test accuracies in percent, a row a run, and one for the first weights."""
    rows = []
    for name, run in _runs(record).items():
        last = health.judged(run["metrics"][-1])
        measures = f"{last['projection_std']:.2f}", f"{last['effective_rank']:.1f}"
        rows.append([name, last["verdict"], *measures, *_accuracies(run["probe"])])
    if record:
        rows.append([FIRST, "—", "—", "—", *_accuracies(record[FIRST])])
    columns = ["method", "health (no labels used)", "spread", "rank", "1 a class", "k-NN", "all labels"]
    return pd.DataFrame(rows, columns=columns)


def _accuracies(probe: dict) -> list[str]:
    values = probe["label_efficiency"][0]["accuracy_mean"], probe["knn"], probe["linear"]["accuracy"]
    return [f"{100 * value:.1f}" for value in values]


def keep(table: pd.DataFrame, record: dict | None, folder: Path) -> None:
    """Write the table to `folder`/tables, if there is anything in it."""
    if record:
        s = record["settings"]
        caption = (
            f"DirectCopy in trainers from lightly's modules: digits, conv of width {s['width']}, "
            f"{s['epochs']} epochs, batches of {s['batch_size']}, seed {s['seed']}; test accuracy in percent."
        )
        write_table(table, folder / "tables" / "own-trainer", caption)
