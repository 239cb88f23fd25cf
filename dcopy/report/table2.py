"""Table 2, ImageNet: what Tian et al. 2021 have published, and our own runs in their settings beside it.

And Imagenette, ten classes of it: our short runs, and what a full run on a GPU reaches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from ..config import METHODS, TrainConfig
from ..evaluation import evaluate
from ..training.runs import read_result
from ..workflow import presets
from .published import DAGGER, NOT_RUN, mean_std, with_std

SETTINGS = {  # in published.csv: the preset that has it
    "batch 256 SGD one-sided": "imagenet-60",
    "batch 4096 LARS symmetric": "imagenet",
}
FREE = {"seed": 0, "precision": "auto", "accumulate": 1, "data_fingerprint": ""}  # what may differ in ours


FULL = {"BYOL": "mlp", "SimSiam": "simsiam"}  # method of published.csv on imagenette128: ours


def wanted() -> dict[TrainConfig, dict]:
    """The runs of Table 2, each with its cell: setting, epochs and method."""
    cells = {}
    for setting, name in SETTINGS.items():
        for run in presets.get(name).runs():
            label = run.label + (", F/‖F‖" if run.normalize == "frobenius" else "")
            cell = {"setting": setting, "epochs": run.epochs, "method": label}
            cells[dataclasses.replace(run, **FREE)] = cell
    return cells


def rows(published: list[dict], folders: Iterable[str | Path] = ()) -> list[dict]:
    """A row a cell: published top-1 and top-5, and ours with the number of seeds.

    A run that was computed in parts (`accumulate`) has a row of its own, as BatchNorm saw less at once there.

    Args:
        published: from `published.read`.
        folders: of presets, such as results/*.
    """
    cells, listed = wanted(), _listed(published)
    ours: dict[tuple, dict[str, dict]] = {}  # probes by run and accumulate, and by name
    for folder in map(Path, folders):
        for path in sorted(folder.glob("runs/imagenet-*/result.json")):
            config = TrainConfig.from_dict(read_result(path)["config"])
            run, probe = dataclasses.replace(config, **FREE), path.with_name("probe.json")
            if run in cells and probe.is_file():
                own = ours.setdefault((run, config.accumulate), {})
                own[config.name] = evaluate.read_probe(probe)
    found = []
    for run, cell in cells.items():
        theirs = listed.get((cell["setting"], cell["epochs"], cell["method"]), {})
        protocols = sorted(k for one, k in ours if one == run) or [None]
        for k in protocols:
            probes = list(ours.get((run, k), {}).values())
            linear = [probe["linear"] for probe in probes]
            found.append(
                cell
                | {"method": cell["method"] + (f", in {k} parts" if (k or 1) > 1 else "")}
                | {"top-1": theirs.get("top-1", "—"), "top-5": theirs.get("top-5", "—")}
                | {"source": theirs.get("source", "—")}
                | {"here": _cell([one["accuracy"] for one in linear]) or NOT_RUN}
                | {"here, top-5": _cell([one["top5"] for one in linear if "top5" in one]) or "—"}
                | {"n": len(probes) or "—"}
            )
    return found


def _cell(shares: list[float]) -> str:
    return with_std(*mean_std([100 * share for share in shares]))


def _listed(published: list[dict]) -> dict[tuple, dict]:
    """The published numbers as they are shown, by setting, epochs and method."""
    found: dict[tuple, dict] = {}
    for row in published:
        if row["dataset"] == "imagenet" and row["setting"] in SETTINGS:
            cell = found.setdefault((row["setting"], row["epochs"], row["method"]), {"source": row["origin"]})
            metric = row["metric"].removeprefix("linear ").removesuffix(" %")
            cell[metric] = with_std(row["value"], row["std"], row["recalled"])
    return found


def notes(published: list[dict]) -> list[str]:
    """What must be said below the table, the settings that were filled in among it."""
    listed = _listed(published)
    methods = dict.fromkeys(cell["method"] for cell in wanted().values())
    missing = " or ".join(name for name in methods if name not in {method for _, _, method in listed})
    found = [
        "Linear probe, accuracy in percent. top-1, top-5: as published; T9 is Table 9 of arXiv 2102.06810, "
        "which has no 100 epochs. here: our runs of the presets imagenet-60 and imagenet, mean ± standard "
        "deviation over n seeds; the probe is SGD on random crops, learning rate and C chosen on held-out "
        "training images, the test set read once.",
        *filled_in(),
    ]
    found += [f"published.csv lists no number for {missing}."] * bool(missing)
    return found + [DAGGER] * any(row["recalled"] and row["setting"] in SETTINGS for row in published)


def filled_in() -> list[str]:
    """Settings that neither paper names, with where they are from instead: one line for either preset."""
    sgd, lars = presets.get("imagenet-60").runs()[0], presets.get("imagenet").runs()
    by_epochs = {run.epochs: run for run in lars}
    run = by_epochs[300]
    rates = ", ".join(
        f"{256 * one.lr / one.batch_size:.2g} × batch/256 at {epochs} epochs"
        for epochs, one in by_epochs.items()
    )
    heads = f"heads of {run.hidden_dim} and {run.projection_dim} units"
    target = f"the target's momentum from {run.ema:g} to 1 in a cosine"
    views = "BYOL's two augmentations, which differ in blur and solarization"
    return [
        "The code behind the ImageNet numbers of either paper is not public. Filled in, batch "
        f"{run.batch_size}: from BYOL's code (google-deepmind/deepmind-research:byol) {heads}, {views}, "
        f"{target}, learning rate {rates} after {run.warmup} epochs of warm-up, then a cosine; LARS with "
        f"momentum {run.momentum:g} and η = 0.001, weight decay {run.weight_decay:g}, neither on biases and "
        "BatchNorm.",
        f"Filled in, batch {sgd.batch_size}: {heads}, {target} and {views}, likewise; from SimSiam's code "
        f"(facebookresearch/simsiam) learning rate {256 * sgd.lr / sgd.batch_size:.2g} × batch/256 in a "
        f"cosine without warm-up, momentum {sgd.momentum:g}, weight decay {sgd.weight_decay:g} on all "
        "parameters.",
        f"Filled in for both: ρ = {run.rho:g} and ε as on small images; DirectCopy, F/‖F‖ as in Table 1.",
    ]


def imagenette(published: list[dict], records: list[dict]) -> list[dict]:
    """A row a method: k-NN and linear probe of our runs, and the published k-NN of a full run.

    Args:
        published: from `published.read`.
        records: of the preset imagenette, from `claims.load`.
    """
    full = {FULL[row["method"]]: row for row in _full(published)}
    probes: dict[str, list[dict]] = {}
    for record in records:
        probes.setdefault(record["method"], []).append(record["probe"])
    labels = {record["method"]: record["label"] for record in records}
    labels |= {method: METHODS[method] for method in full if method not in labels}
    return [
        {
            "method": label,
            "k-NN": _cell([probe["knn"] for probe in probes.get(method, [])]) or NOT_RUN,
            "linear": _cell([probe["linear"]["accuracy"] for probe in probes.get(method, [])]) or NOT_RUN,
            "n": len(probes.get(method, [])) or "—",
            "k-NN of a full run": with_std(full[method]["value"], None) if method in full else "—",
        }
        for method, label in labels.items()
    ]


def imagenette_notes(published: list[dict]) -> list[str]:
    """Under which settings both sides of `imagenette` were run."""
    run, full = presets.get("imagenette").runs()[0], _full(published)[0]
    return [
        "Accuracy in percent, mean ± standard deviation over n seeds.",
        f"Here: {run.epochs} epochs of the preset imagenette at {run.image_size} pixels, {run.encoder} of "
        f"width {run.width}, on a CPU.",
        "The committed runs are from a copy of Imagenette at 128 pixels. The preset fetches that of 160, so "
        "a rerun has slightly other images.",
        f"A full run, as published by {full['publication']}: {full['epochs']} epochs, ResNet-18, "
        f"{full['setting']}.",
    ]


def _full(published: list[dict]) -> list[dict]:
    wanted = ("imagenette128", "kNN top-1 %")
    return [row for row in published if (row["dataset"], row["metric"]) == wanted and row["method"] in FULL]
