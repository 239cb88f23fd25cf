"""The paper's claims as sentences, each computed from the files of finished runs, and held or not by them.

What has not been run says so. A difference between two methods is paired: the same seed gives both the
same images, order and noise; its interval is Student's, at 95 %.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from .. import results
from ..config import METHODS, TrainConfig
from ..evaluation import evaluate
from ..training import health
from ..training.runs import read_result
from ..workflow import plan, presets
from . import comparison
from .tables import BASELINES, ORDER

DATA = {  # name: preset
    "digits": "quick",
    "CIFAR-10": "cifar10-small",
    "CIFAR-100": "cifar100-small",
    "Imagenette": "imagenette",
}
DECAYS = {"digits": "ablations", "CIFAR-10": "ablations-cifar10-small"}
TITLES = {
    "a": "DirectCopy rivals DirectPred",
    "b": "Both beat a linear predictor learned by SGD",
    "c": "Without a predictor training collapses, and that is known before any label",
    "d": "The gain is in the labels saved",
    "e": "Weight decay drops the directions that augmentation changes",
    "f": "DirectCopy costs less than DirectPred",
}
PAIRS = [  # claim, first, second: the first minus the second
    ("a", "directcopy", "directpred"),
    ("b", "directcopy", "linear"),
    ("b", "directpred", "linear"),
]
MARGIN = 2.0  # points by which a method may lie behind one that it rivals
FEW = 10  # labels a class in claim d
NOT_RUN = "not run"


def load(folder: Path, preset: str) -> list[dict]:
    """The runs of a preset that are finished and probed, and their baselines.

    Args:
        folder: of all results.

    Returns:
        For each: method, seed, label, path (of its folder, from the project), probe, and result (None for
        a baseline). Methods come as in `tables.ORDER`.
    """
    found = {}
    runs = results.own_or_reference(folder / preset) / "runs"
    for config in presets.get(preset).runs():
        place = runs / config.name
        if not (_plain(config) and (place / "result.json").exists() and (place / "probe.json").exists()):
            continue
        probe = evaluate.read_probe(place / "probe.json")
        found[config.name] = (place, probe, read_result(place / "result.json"))
        for name in probe["baselines"]:
            path = runs / name
            if (path / "probe.json").exists():
                found[name] = (path, evaluate.read_probe(path / "probe.json"), None)
    records = [
        {
            **{key: probe[key] for key in ("method", "seed", "label")},
            "path": plan.shortest(place),
            "probe": probe,
            "result": result,
        }
        for place, probe, result in found.values()
    ]
    return sorted(records, key=lambda record: (ORDER.index(record["method"]), record["seed"]))


def _plain(config: TrainConfig) -> bool:
    """Whether a method stands here as the protocol has it, without a variant of it."""
    return config.freq == 1 and config.normalize == "none"


def of(records: list[dict], method: str) -> list[dict]:
    return [record for record in records if record["method"] == method]


def accuracy(record: dict) -> float:
    """Percent with all labels, by the headline probe."""
    return 100 * record["probe"]["linear"]["accuracy"]


def paired(records: list[dict], first: str, second: str) -> dict | None:
    """First minus second method in points, all labels: seeds, differences, mean, and the interval.

    None where no seed has both; low and high are None where one seed has.
    """
    from scipy.stats import t  # a dependency of scikit-learn

    own = [{record["seed"]: record for record in of(records, method)} for method in (first, second)]
    seeds = sorted(own[0].keys() & own[1].keys())
    if not seeds:
        return None
    differences = [accuracy(own[0][seed]) - accuracy(own[1][seed]) for seed in seeds]
    n, mean, low, high = len(seeds), float(np.mean(differences)), None, None
    if n > 1:
        half = float(t.ppf(0.975, n - 1) * np.std(differences, ddof=1) / n**0.5)
        low, high = mean - half, mean + half
    paths = [own[i][seed]["path"] for i in (0, 1) for seed in seeds]
    return {
        **{"first": first, "second": second, "seeds": seeds, "differences": differences},
        **{"mean": mean, "low": low, "high": high, "files": [f"{path}/probe.json" for path in paths]},
    }


def _compared(claim: str, found: dict) -> str:
    mean, low, high, n = found["mean"], found["low"], found["high"], len(found["seeds"])
    names = f"{METHODS[found['first']]} minus {METHODS[found['second']]}"
    if n == 1:
        return f"{names}: {_signed(mean)} points with all labels (one seed, which cannot tell it from noise)"
    if claim == "a":
        outcome = "rivals it" if low > -MARGIN else "falls behind" if high < -MARGIN else "open"
        behind = {"rivals it": ", and yet is behind", "open": ", but is behind"}.get(outcome, "")
        outcome += f", with a margin of {MARGIN:g} points" + (behind if high < 0 else "")
    else:
        outcome = "beats it" if low > 0 else "loses to it" if high < 0 else "open"
    interval = f"95 % interval {_signed(low)} to {_signed(high)}"
    return f"{names}: {_signed(mean)} points with all labels ({interval}, paired, n = {n}): {outcome}"


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def verdict(record: dict) -> str:
    """On health, at the last epoch of pretraining, without labels."""
    return health.judged(record["result"]["metrics"])["verdict"]


def _collapse(records: list[dict]) -> tuple[str, list[str]] | None:
    none, copy, random = (of(records, method) for method in ("none", "directcopy", "random"))
    if not (none and copy and random):
        return None
    collapsed, healthy = (
        sum(verdict(record) == wanted for record in group)
        for group, wanted in ((none, "collapsed"), (copy, "healthy"))
    )
    means = [np.mean([accuracy(record) for record in group]) for group in (none, random, copy)]
    sentence = (
        f"without a predictor, {collapsed} of {len(none)} runs collapsed; with DirectCopy, {healthy} of "
        f"{len(copy)} were healthy. A probe with all labels then finds {means[0]:.1f} % without a predictor, "
        f"{means[1]:.1f} % in a random encoder and {means[2]:.1f} % with DirectCopy"
    )
    files = [f"{record['path']}/{kind}.json" for record in (*none, *copy) for kind in ("result", "probe")]
    return sentence, [*files, *(f"{record['path']}/probe.json" for record in random)]


def curve(records: list[dict], method: str) -> dict[int | str, float]:
    """Mean accuracy in percent over seeds by the number of labels a class, "all" last."""
    points: dict = {}
    for record in of(records, method):
        for point in record["probe"]["label_efficiency"]:
            points.setdefault(point["labels_per_class"], []).append(100 * point["accuracy_mean"])
    return {number: float(np.mean(values)) for number, values in points.items()}


def _saved(records: list[dict]) -> tuple[str, list[str]] | None:
    curves = {method: curve(records, method) for method in ("directcopy", *BASELINES)}
    if not all(curves.values()):
        return None
    reached = curves["directcopy"][FEW]
    needs = []
    for method, label in BASELINES.items():
        enough = [number for number, value in curves[method].items() if value >= reached]
        number = "more than all" if not enough else "all" if enough[0] == "all" else f"{enough[0]}"
        needs.append(f"{label} {number}")
    tried = ", ".join(map(str, curves["directcopy"]))
    sentence = (
        f"with {FEW} labels per class, DirectCopy reaches {reached:.1f} %. Labels per class to match that, "
        f"of those tried ({tried}): " + ", ".join(needs)
    )
    methods = ("directcopy", *BASELINES)
    return sentence, [f"{record['path']}/probe.json" for method in methods for record in of(records, method)]


def decays(folder: Path, preset: str) -> list[dict]:
    """A row a weight decay, from large eigenvalues of F to small: what survives, and its variance."""
    path = _decays(folder, preset)
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row.get("survivors")]  # else nothing was measured


def _decays(folder: Path, preset: str) -> Path:
    return results.own_or_reference(folder / preset) / "tables" / "surviving-directions.csv"


def _dropped(folder: Path, preset: str) -> tuple[str, list[str]] | None:
    rows = decays(folder, preset)
    if not rows:
        return None
    first, last = rows[0], rows[-1]
    survivors = [float(row["survivors"]) for row in rows]
    defined = [row for row in rows if row["rank_correlation"]]  # not where all runs collapsed to one point
    correlations = {row["weight decay"]: float(row["rank_correlation"]) for row in defined}
    agree = sum(correlation < 0 for correlation in correlations.values())
    moved = "fall" if survivors[-1] < survivors[0] else "do not fall: they go"
    moved += f" from {survivors[0]:.1f} to {survivors[-1]:.1f}"
    ends = [f"{value:+.2f}".replace("-", "−") + f" at {decay}" for decay, value in correlations.items()]
    ends = ", ".join(dict.fromkeys(ends[:1] + ends[-1:])) or "none at any"
    sentence = (
        f"from weight decay {first['weight decay']} to {last['weight decay']}, the surviving directions of "
        f"F {moved}; larger eigenvalues have less variance under augmentation at {agree} of "
        f"{len(correlations)} weight decays (rank correlation {ends})"
    )
    unwell = [row for row in rows if row.get("healthy") != row.get("runs")]
    if unwell:
        shown = ", ".join(f"{row['healthy']} of {row['runs']} at {row['weight decay']}" for row in unwell)
        sentence += f". Not all runs are healthy: {shown}"
    well = [row for row in rows if row.get("falls") and row["healthy"] == row["runs"]]
    if len(well) > 1:
        medians = [float(row["sigma2_survivors"]) for row in (well[0], well[-1])]
        falls, runs = int(well[-1]["falls"]), int(well[-1]["runs"])
        sentence += (
            f". Up to {well[-1]['weight decay']}, where all runs are healthy, the survivors' median variance "
            f"goes from {medians[0]:.2f} to {medians[1]:.2f}: it falls in {falls} of {runs} seeds, and the "
            "theory's falling threshold would lower it in all"
        )
    return sentence, [plan.shortest(_decays(folder, preset))]


def sources(folder: Path) -> dict[str, str]:
    """Where the numbers of each preset are from: the folder's own results, else the reference."""
    names = (*DATA.values(), *DECAYS.values(), "bench")
    places = {name: results.own_or_reference(folder / name) for name in names}
    return {name: plan.shortest(place) if place.is_dir() else NOT_RUN for name, place in places.items()}


def findings(folder: str | Path) -> list[dict]:
    """Every claim on every data set: claim (its letter), data, finding (a sentence), files.

    Args:
        folder: of all results, such as results/; for a preset without any there, the reference counts.
    """
    folder = Path(folder)
    rows = []

    def add(claim: str, data: str, found: tuple[str, list[str]] | None) -> None:
        sentence, files = found or (NOT_RUN, [])
        rows.append({"claim": claim, "data": data, "finding": sentence, "files": files})

    records = {data: load(folder, preset) for data, preset in DATA.items()}
    for claim, first, second in PAIRS:
        for data, own in records.items():
            found = paired(own, first, second)
            add(claim, data, found and (_compared(claim, found), found["files"]))
    for claim, function in (("c", _collapse), ("d", _saved)):
        for data, own in records.items():
            add(claim, data, function(own))
    for data, preset in DECAYS.items():
        add("e", data, _dropped(folder, preset))
    add("f", "processor", comparison.update_cost(folder))
    add("f", "GPU", comparison.step_cost(folder))
    return rows


def told(rows: list[dict], claim: str) -> str:
    """What the rows of `findings` say of one claim, as a Markdown list by data set, what was not run last."""
    own = [row for row in rows if row["claim"] == claim]
    order = list(dict.fromkeys(row["data"] for row in own))
    found = [row for row in own if row["finding"] != NOT_RUN]
    lines = [
        f"**{row['data']}**: {row['finding']}" for row in sorted(found, key=lambda r: order.index(r["data"]))
    ]
    missing = [data for data in order if data not in {row["data"] for row in found}]
    lines += [f"**{', '.join(missing)}**: {NOT_RUN}"] if missing else []
    return "\n".join(f"- {line}." for line in lines)


def table(rows: list[dict]) -> list[dict]:
    """The rows of `findings` as a reader sees them."""
    return [
        {**row, "claim": f"({row['claim']}) {TITLES[row['claim']]}", "files": len(row["files"])}
        for row in rows
    ]
