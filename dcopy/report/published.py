"""What others have published, and our own runs beside it: Table 1 of the paper.

A number that was recalled, not read in its source, carries a dagger wherever it is shown.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from .. import results
from ..config import TrainConfig, require
from ..evaluation import evaluate
from ..training.runs import read_result
from .tables import PEEKS, PEEKS_NOTE, UNCONVERGED, unconverged_notes

DATASETS = {"stl10": "STL-10", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
EPOCHS = (100, 300, 500)
FREE = ("dataset", "method", "epochs", "freq", "seed", "precision", "target_start")  # all else: defaults
RECALLED = "†"
NOT_RUN = "not run"

# Which number of published.csv belongs in a cell of Table 1: NOTES has the rule.
SOURCES = ("Wang et al.", "Tian et al.", "Höppe et al.")
_SETTINGS = ("", "rho=0.3 eps=0.1 EMA", "EMA")
SCALED = {"normalize": "frobenius", "rho": 0.5}  # DirectCopy as its reimplementations have it
LISTED = {  # label of our runs: method and setting in published.csv, the first goes before the others
    "DirectCopy": [("DirectCopy", "")],
    "DirectCopy, F/‖F‖": [("DirectCopy", "eps=0.3 rho=0.5 Frobenius EMA")],
    "DirectPred": [("DirectPred", setting) for setting in _SETTINGS],
    "DirectPred (freq=5)": [("DirectPred (freq=5)", setting) for setting in _SETTINGS],
    "SGD linear predictor": [("SGD linear predictor", setting) for setting in _SETTINGS],
    "BYOL 2-layer predictor": [
        ("SGD two-layer predictor", "EMA; regular, bias; weight decay 4e-4"),
        ("BYOL 2-layer predictor", "EMA; regular"),
    ],
}

DAGGER = f"{RECALLED} recalled, not checked against a copy of the publication; no claim rests on it."
NOTES = (  # below Table 1
    "Linear probe, test accuracy in percent, mean ± standard deviation over seeds; n: seeds of our runs; "
    "difference: ours minus published, in points.",
    DAGGER,
    "Where several sources list a number, one that was read in its source goes before one that was "
    "recalled, then the DirectCopy paper (Wang et al., arXiv 2110.04947), the DirectPred paper (Tian et "
    "al., arXiv 2102.06810), its replication (Höppe et al., doi 10.5281/zenodo.6574659, one seed). "
    "T8 is Table 8 there.",
    "Those of the replication for DirectPred, DirectCopy and SGD are from its notebook and figure "
    "(miszkur/SelfSupervisedLearning), which agree with its text; its Table 2, as extracted, has DirectPred "
    "and SGD exchanged. published.csv also has a run of DirectPred for 1000 epochs (varun1423/solo-learn).",
    "DirectCopy, F/‖F‖: with ρ = 0.5 and F divided by its Frobenius norm, as its reimplementations have it; "
    "DirectCopy: ρ = 0.3 and F as it is, as in the authors' code.",
    "The probe of here differs. sklearn: scikit-learn's logistic regression on the last checkpoint, C chosen "
    "on held-out training images, the test set read once. Published, as far as the reference code shows: "
    "the best test accuracy over 50 epochs of a linear layer.",
    f"here, {PEEKS_NOTE} The difference like for like is that to the published number: alike in the probe, "
    "not in what else the protocol names.",
    "The target differs where the protocol says copy: ours starts as a copy of the online network, that "
    "of the reference code with random weights of its own.",
    "The precision differs where the protocol says bf16 or fp16: autocast except for correlation, predictor "
    "and loss; the reference code computes in float32.",
)


ACROSS = (  # below Table 1 in the paper's shape
    "Each cell published / ours: test accuracy in percent of a linear probe, mean ± standard deviation over "
    "seeds. In brackets the same runs under the published probe, best of 50 epochs, which peeks at the test "
    "set: not a result, only a number to compare.",
    "Ours differ in the probe and, where the details say so, in the target's start (a copy) and the "
    "precision (bf16 or fp16); the details, tables/table1-details, name every source.",
    DAGGER,
)


def read(path: str | Path | None = None) -> list[dict]:
    """The published numbers, with `recalled` (from the provenance) and `origin`, short for source and table.

    Args:
        path: default results/reference/published.csv in the project.

    Raises:
        ValueError: the file is not there.
    """
    path = Path(path or results.reference() / "published.csv")
    require("path", str(path), path.is_file(), "a file of published numbers, as the repository has one")
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["epochs"], row["value"] = int(row["epochs"]), float(row["value"])
        row["std"] = float(row["std"]) if row["std"] else None
        row["recalled"] = row["provenance"].startswith("recalled")
        row["publication"] = row["source"].split(" 20")[0]
        row["origin"] = f"{row['publication']}, T{row['table']}"
    return rows


def choose(published: list[dict], dataset: str, epochs: int, label: str) -> dict | None:
    """The published number for a cell of Table 1, by the rule in NOTES, or None."""

    def rank(row):
        setting = LISTED[label].index((row["method"], row["setting"]))
        return row["recalled"], SOURCES.index(row["publication"]), setting

    cell = (dataset, epochs, "linear top-1 %")
    here = [row for row in published if (row["dataset"], row["epochs"], row["metric"]) == cell]
    here = [row for row in here if row["publication"] in SOURCES]
    return min((r for r in here if (r["method"], r["setting"]) in LISTED[label]), key=rank, default=None)


def own_runs(folders: Iterable[str | Path]) -> dict[str, tuple[TrainConfig, dict, dict]]:
    """Configuration, result.json and probe.json of every probed run of the protocol, by name.

    That is: on one of DATASETS, for one of EPOCHS, of a method in LISTED, all else at its default, or at
    SCALED, but for precision and the target's start, which Table 1 names.

    Args:
        folders: those of presets, see `places`; one named smoke is left out.
    """
    found = {}
    for folder in map(Path, folders):
        for path in sorted(folder.glob("runs/*/result.json")) if folder.name != "smoke" else ():
            probe = path.with_name("probe.json")
            if not path.parent.name.startswith(tuple(DATASETS)) or not probe.is_file():
                continue
            result = read_result(path)
            config = TrainConfig.from_dict(result["config"])
            if config.epochs in EPOCHS and listed_as(config) in LISTED:
                found[config.name] = (config, result, evaluate.read_probe(probe))
    return found


def places(root: Path) -> list[Path]:
    """A folder for each preset: that in the folder of all results, or where it is empty, the reference."""
    names = {path.name for folder in (root, results.reference()) for path in folder.glob("*")}
    return [results.own_or_reference(root / name) for name in sorted(names - {results.reference().name})]


def listed_as(config: TrainConfig) -> str | None:
    """The label of a run in Table 1, or None where something else differs from the protocol."""
    if config.label not in LISTED:
        return None
    free = {name: getattr(config, name) for name in FREE}
    if config == TrainConfig(**free):
        return config.label
    return f"{config.label}, F/‖F‖" if config == TrainConfig(**free, **SCALED) else None


def table1(published: list[dict], runs: dict[str, tuple]) -> list[dict]:
    """Table 1 in numbers, from `read` and `own_runs`: a row a cell, or one a protocol that ours ran with."""
    rows = []
    for dataset, epochs, label in itertools.product(DATASETS, EPOCHS, LISTED):
        listed = choose(published, dataset, epochs, label)
        ours: dict[str | None, list[dict]] = {}  # probes by protocol
        for config, result, probe in runs.values():
            if (config.dataset, config.epochs, listed_as(config)) == (dataset, epochs, label):
                protocol = f"sklearn, {results.precision(result)}, {config.target_start}"
                ours.setdefault(protocol, []).append(probe)
        if listed and not ours:
            ours[None] = []
        cell = {"data": DATASETS[dataset], "epochs": epochs, "method": label}
        for protocol in sorted(ours, key=str):
            rows.append(cell | _compare(listed, ours[protocol]) | {"protocol": protocol})
    return rows


def _compare(listed: dict | None, probes: list[dict]) -> dict:
    """The columns of Table 1 that are numbers, and where they are from; None where there is none."""
    listed = listed or dict.fromkeys(("value", "std", "origin", "provenance", "recalled"))
    linear = [probe["linear"] for probe in probes]
    here, std = mean_std([100 * probe["accuracy"] for probe in linear])
    peeking, peeking_std = mean_std([100 * probe["reference"]["best"] for probe in probes])
    both = listed["value"] is not None and probes
    return {
        "published": listed["value"],
        "published_std": listed["std"],
        "source": listed["origin"],
        "provenance": listed["provenance"],
        "recalled": listed["recalled"],
        "here": here,
        "here_std": std,
        "here_peeking": peeking,
        "here_peeking_std": peeking_std,
        "n": len(probes),
        "not_converged": sum(not probe["converged"] for probe in linear),
        "difference": here - listed["value"] if both else None,
        "difference_peeking": peeking - listed["value"] if both else None,
    }


def mean_std(values: list[float]) -> tuple[float | None, float | None]:
    series = pd.Series(values, dtype=float)
    return series.mean() if values else None, series.std() if len(values) > 1 else None


def notes(rows: list[dict]) -> list[str]:
    """What must be said below the rows of `table1`."""
    return [*NOTES, *unconverged(rows)]


def unconverged(rows: list[dict]) -> list[str]:
    missed = [
        f"{row['data']}, {row['epochs']} epochs, {row['method']}, {row['protocol']}: "
        f"{row['not_converged']} of {row['n']}"
        for row in rows
        if row["not_converged"]
    ]
    return unconverged_notes(missed)


def shown(rows: list[dict]) -> pd.DataFrame:
    """The rows of `table1` as a reader sees them."""
    return pd.DataFrame(
        {
            **{name: row[name] for name in ("data", "epochs", "method")},
            "published": with_std(row["published"], row["published_std"], row["recalled"]) or "—",
            "source": row["source"] or "—",
            "here": our_number(row),
            f"here, {PEEKS}": with_std(row["here_peeking"], row["here_peeking_std"]) or NOT_RUN,
            "n": row["n"] or "—",
            "difference": _signed(row["difference"], row["recalled"]),
            "difference, like for like": _signed(row["difference_peeking"], row["recalled"]),
            "protocol": row["protocol"] or "—",
        }
        for row in rows
    )


def across(rows: list[dict]) -> pd.DataFrame:
    """The rows of `table1` in the paper's shape: methods down, data sets and epochs across.

    A cell is published / ours, the latter with its number under the published probe in brackets; one for
    each protocol that ours ran with.
    """
    table: dict[str, dict] = {}
    columns = [f"{data}, {epochs}" for data, epochs in itertools.product(DATASETS.values(), EPOCHS)]
    for cell in rows:
        row = table.setdefault(cell["method"], {"method": cell["method"]} | dict.fromkeys(columns, "—"))
        ours = our_number(cell)
        if cell["n"]:
            ours += f" ({with_std(cell['here_peeking'], cell['here_peeking_std'])})"
        column = f"{cell['data']}, {cell['epochs']}"
        first = with_std(cell["published"], cell["published_std"], cell["recalled"]) or "—"
        row[column] = f"{first} / {ours}" if row[column] == "—" else f"{row[column]}, {ours}"
    return pd.DataFrame(table.values())


def our_number(row: dict) -> str:
    """Our number in a row of `table1`, marked where a probe did not converge."""
    return (with_std(row["here"], row["here_std"]) or NOT_RUN) + UNCONVERGED * bool(row["not_converged"])


def _signed(difference: float | None, recalled: bool | None) -> str:
    if difference is None:
        return "—"
    return f"{difference:+.2f}".replace("-", "−") + RECALLED * bool(recalled)


def with_std(value: float | None, std: float | None, recalled: bool | None = False) -> str:
    """
    >>> with_std(77.83, 0.56, recalled=True), with_std(84.2, None), with_std(None, None)
    ('77.83 ± 0.56†', '84.2', '')
    """
    if value is None:
        return ""
    text = f"{value:.1f}" if std is None else f"{value:.2f} ± {std:.2f}"
    return text + RECALLED * bool(recalled)
