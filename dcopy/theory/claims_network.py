"""Claim 14: how far the flow carries in a network, snapshot by snapshot. Measured only: nothing is proved."""

from __future__ import annotations

import torch
from torch import Tensor

from ..training.runs import Run
from . import closed_forms as theory
from . import network
from .evidence import Evidence, experiment, measured_only


@experiment
def network_in_time(families: list[list[Run]], images: Tensor, views: int = 16) -> Evidence:
    """Shares of F's directions in runs of growing length, against the flow with either loss.

    Args:
        families: for each seed its runs, from few epochs to many.
        images: (N, C, H, W) uint8, those that the runs were trained on.
        views: random views of each image, for the variances.

    Returns:
        Rows of the means over seeds; data with the snapshots and predictions of the first seed, and
        `table`, a row for each seed, prediction and epoch.
    """
    epochs = [run.config.epochs for run in families[0]]
    config = families[0][-1].config
    units = network.units(config, len(images))
    table, data, lowest = [], {}, []
    for family in families:
        measured, sigma2 = network.snapshots([run.folder for run in family], images, views)
        predicted = network.compare(measured, sigma2, epochs, units, config.eps)
        signal = 1 / (1 + sigma2[-1])  # of which BatchNorm makes 1 with the variance, as in `network.predict`
        lowest.append(theory.threshold(1 - signal, signal).min().item())
        for name, values in {"measured": measured, **predicted}.items():
            away = network.distance(values, measured).tolist()
            for epoch, distance, trace in zip(epochs, away, values.sum(1).tolist(), strict=True):
                seed = family[-1].config.seed
                row = {"seed": seed, "prediction": name, "epoch": epoch, "distance": distance, "trace": trace}
                table.append(row)
        data = data or {"measured": measured, "sigma2": sigma2, "predicted": predicted}
    rows = []
    for name in data["predicted"]:
        statement = f"digits: share of F's trace elsewhere than predicted, mean over snapshots; {name}"
        rows.append(measured_only(14, statement, mean_distance(table, name)))
    for name in ("measured", "quadratic, σ² along the way", "cosine, σ² along the way"):
        last, first = (_mean(table, "trace", prediction=name, epoch=epochs[i]) for i in (-1, 0))
        rows.append(measured_only(14, f"digits: trace of F, last over first snapshot; {name}", last / first))
    statement = "digits: lowest threshold 1/(4(1+variance)²) of a direction, over eta"
    rows.append(
        measured_only(14, statement, sum(lowest) / len(lowest) / units.eta if units.eta else torch.inf)
    )
    return Evidence(rows, data | {"epochs": epochs, "units": units, "table": table})


def mean_distance(table: list[dict], prediction: str) -> float:
    """Mean over seeds and snapshots, without the first, which every prediction starts from."""
    first = min(row["epoch"] for row in table)
    later = [row for row in table if row["epoch"] > first]
    return _mean(later, "distance", prediction=prediction)


def _mean(table: list[dict], column: str, **wanted) -> float:
    found = [row[column] for row in table if all(row[key] == value for key, value in wanted.items())]
    return sum(found) / len(found)


def distance_table(table: list[dict]) -> str:
    """Distances as a Markdown table: a row a prediction, a column an epoch, mean over seeds."""
    epochs = sorted({row["epoch"] for row in table})
    names = [name for name in dict.fromkeys(row["prediction"] for row in table) if name != "measured"]
    lines = ["| prediction | " + " | ".join(f"epoch {epoch}" for epoch in epochs) + " |"]
    lines.append("|---" * (len(epochs) + 1) + "|")
    for name in names:
        cells = (f"{_mean(table, 'distance', prediction=name, epoch=epoch):.2f}" for epoch in epochs)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def finding(table: list[dict]) -> str:
    """How far the flow carries, in two sentences whose numbers and verdict follow from the table."""
    names = [name for name in dict.fromkeys(row["prediction"] for row in table) if name != "measured"]
    means = {name: mean_distance(table, name) for name in names}
    still = means.pop("nothing moves")
    best = min(means, key=means.get)
    better = [name for name in means if means[name] < still]
    worse = [name for name in means if name not in better]
    text = (
        f"On average over the snapshots, **{best}** comes nearest: {100 * means[best]:.0f} % of F's trace "
        f"lies elsewhere than it says, against {100 * still:.0f} % if nothing moved. "
    )
    if worse:
        listed = "; ".join(f"{name} ({100 * means[name]:.0f} %)" for name in worse)
        text += f"No better than nothing moving: {listed}."
    else:
        text += "All four are better than nothing moving."
    return text
