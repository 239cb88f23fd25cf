"""Tables from measurements: what a step of pretraining costs, and dcopy beside lightly.

The records are those of `python -m dcopy.bench` and of `benchmarks/lightly_comparison.py`.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from .. import results
from ..config import METHODS
from ..workflow import plan
from .tables import mean_std

NOTHING = "—"  # in a cell: not measured
DIMENSION = 128  # D of the updates that claim (f) compares
COPY, PRED = METHODS["directcopy"], METHODS["directpred"]
BASE = "BYOL, lightly, fp32"  # whose speed is 1


def benchmarks(folder: str | Path) -> dict[str, dict]:
    """The records in `folder`/*.json by name; empty where there are none. Other files are left out."""
    records = {path.stem: results.read_json(path) for path in sorted(Path(folder).glob("*.json"))}
    return {name: record for name, record in records.items() if {"step", "predictors"} <= record.keys()}


def on_gpu(name: str, record: dict) -> bool:
    return record["step"]["clocks"] is not None or name.startswith("gpu")


def what(record: dict) -> str:
    """What the benchmark trained and where, and how near to the limit: the caption of its tables."""
    config, compiled = record["config"], ", compiled" * bool(record["step"].get("compiled"))
    return (
        f"{config['method']} on {config['dataset']}, {config['encoder']}, width {config['width']}, batch of "
        f"{config['batch_size']}, {results.precision(record)}{compiled}; {record['provenance']['device']}; "
        f"arithmetic at {of_limit(record['step'])} of the rate of a product of large matrices"
    )


def of_limit(step: dict) -> str:
    """A step's operations a second, as pretraining runs it, as a share of a matrix product's there."""
    limit = step.get("matrix_tflop_per_second")  # older files have none
    fastest = step.get("captured") or step
    return f"{100 * fastest['tflop_per_second'] / limit:.0f} %" if limit else NOTHING


def step_parts(record: dict) -> pd.DataFrame:
    """The parts of a step and their sum; of one in CUDA graphs, the GPU's kernels by what they do."""
    step = record["step"]
    rows = [*step["parts"], {"part": "whole step", "ms": step["ms"], "share": 1.0}]
    if captured := step.get("captured"):
        share = captured["ms"] / step["ms"]
        rows.append({"part": "whole step as CUDA graphs", "ms": captured["ms"], "share": share})
        rows += [row | {"part": f"of it {row['part']}"} for row in captured.get("parts", [])]
    return pd.DataFrame(
        {"part": row["part"], "ms": f"{row['ms']:,.2f}", "share, %": f"{100 * row['share']:.1f}"}
        for row in rows
    )


def speeds(records: dict[str, dict]) -> list[dict]:
    """One row a benchmark: a step in milliseconds and images, what of it two of its parts take."""
    rows = []
    for name, record in records.items():
        config, step = record["config"], record["step"]
        share = {row["part"]: f"{100 * row['share']:.1f} %" for row in step["parts"]}
        captured = step.get("captured")
        rows.append(
            {
                "benchmark": name,
                "device": record["provenance"]["device"],
                "trained": f"{config['method']}, {config['dataset']}, {config['encoder']}",
                "batch": config["batch_size"],
                "precision": results.precision(record),
                "ms a step": f"{step['ms']:,.1f}",
                "images/s": f"{step['images_per_second']:,.0f}",
                "speed relative to a large matrix product": of_limit(step),
                "augmentation takes": share["augmentation"],
                "predictor update takes": share["predictor update"],
                "as CUDA graphs, ms": f"{captured['ms']:,.1f}" if captured else NOTHING,
                "as CUDA graphs, images/s": f"{captured['images_per_second']:,.0f}" if captured else NOTHING,
            }
        )
    return rows


def update_cost(folder: Path) -> tuple[str, list[str]] | None:
    """DirectCopy's update beside DirectPred's on a processor, as a sentence, with the file behind it."""
    path = results.own_or_reference(folder / "bench") / "cpu.json"
    if not path.exists():
        return None
    record = results.read_json(path)
    ms = {row["label"]: row["ms"] for row in record["predictors"] if row["dim"] == DIMENSION}
    if not {COPY, PRED} <= ms.keys():
        return None
    times = [
        f"{ms[label]:.2f} ms with {label} ({100 * ms[label] / record['step']['ms']:.2g} % of a step)"
        for label in (COPY, PRED)
    ]
    sentence = (
        f"an update at D = {DIMENSION} takes {times[0]} and {times[1]} on {record['provenance']['device']}: "
        f"{ms[PRED] / ms[COPY]:.1f} times as long"
    )
    return sentence, [plan.shortest(path)]


def step_cost(folder: Path) -> tuple[str, list[str]] | None:
    """A whole step with either on a GPU as a sentence, with the files behind it."""
    place = results.own_or_reference(folder / "bench")
    paths = [place / f"gpu-bf16-{method}.json" for method in ("directcopy", "directpred")]
    records = [results.read_json(path) for path in paths if path.exists()]
    ms = [record["step"]["captured"]["ms"] for record in records if record["step"].get("captured")]
    names = ("dataset", "encoder", "width", "batch_size", "batchnorm")
    told = [
        [*map(record["config"].get, names), results.precision(record), record["provenance"]["device"]]
        for record in records
    ]
    if len(ms) < 2 or told[0] != told[1]:  # times on other devices, or of other steps, do not compare
        return None
    config, (*_, precision, device) = records[0]["config"], told[0]
    what = f"{config['encoder']}, batch {config['batch_size']}, {precision}, {device}"
    sentence = (
        f"a whole step takes {ms[0]:.1f} ms with {COPY} and {ms[1]:.1f} ms with {PRED} ({what}): "
        f"{ms[1] / ms[0]:.2f} times as long"
    )
    return sentence, [plan.shortest(path) for path in paths]


def lightly(record: dict) -> pd.DataFrame:
    """One row a way to train: accuracies over seeds, images/s (median over rounds), multiple of lightly's."""
    accuracy, speed = record["accuracy"], record["speed"]
    runs: dict[str, list[dict]] = {}  # by way: accuracy was measured in one precision, speed in several
    for run in accuracy["runs"]:
        runs.setdefault(f"{run['name']}, {accuracy['config']['precision']}", []).append(run)
    rows = []
    for way in dict.fromkeys([*runs, *speed["times_as_fast"]]):
        own = pd.DataFrame(runs.get(way, []), columns=["linear", "knn"], dtype=float)
        rates = pd.Series([rates.get(way) for rates in speed["images_per_second"]], dtype=float)
        rows.append(
            {
                "way": way,
                "linear, %": mean_std(100 * own["linear"]),
                "k-NN, %": mean_std(100 * own["knn"]),
                "n": len(own) or NOTHING,
                "images/s": mean_std(pd.Series([rates.median()]), 0),
                "times as fast": mean_std(pd.Series([speed["times_as_fast"].get(way)]), 2),
            }
        )
    return pd.DataFrame(rows)


def lightly_caption(record: dict) -> str:
    """With which version of lightly and where."""
    return (
        f"dcopy beside lightly {record['provenance']['versions']['lightly']}, on "
        f"{record['provenance']['device']}."
    )


def lightly_notes(record: dict) -> list[str]:
    """What was trained for each of the two parts of the table."""
    digits, speed = record["accuracy"]["config"], record["speed"]
    cifar, rounds = speed["config"], len(speed["images_per_second"])
    return [
        f"Accuracy: test set of {digits['dataset']}, mean ± std over n seeds; {digits['encoder']} of width "
        f"{digits['width']}, {digits['epochs']} epochs, batch {digits['batch_size']}.",
        f"Speed: whole steps with augmentation on noise of {cifar['dataset']}'s size; {cifar['encoder']} of "
        f"width {cifar['width']}, batch {cifar['batch_size']}; {speed['workers']} workers for lightly's "
        f"DataLoader; median of {rounds} rounds of {speed['steps']} steps. As fast as {BASE} is 1. SimSiam "
        "has no momentum network, whose forward passes are a quarter of a step's arithmetic in the others.",
    ]


def lightly_finding(record: dict) -> str:
    """The same method in both libraries, in one sentence: accuracy paired by seed, and speed."""
    linear: dict[str, dict[int, float]] = {}
    for run in record["accuracy"]["runs"]:
        linear.setdefault(run["name"], {})[run["seed"]] = 100 * run["linear"]
    gap = (pd.Series(linear["BYOL, dcopy"]) - pd.Series(linear["BYOL, lightly"])).dropna()
    error = f" ± {gap.sem():.1f}" if len(gap) > 1 else ""
    to_base, times = record["speed"]["times_as_fast"], {}
    for precision in ("fp32", "bf16"):
        ours, theirs = (to_base.get(f"BYOL, {library}, {precision}") for library in ("dcopy", "lightly"))
        if ours and theirs:
            times[precision] = ours / theirs
    told = [f"{multiple:.2f}" + f" ({name})" * (len(times) > 1) for name, multiple in times.items()]
    return (
        f"BYOL in the linear probe, dcopy's minus lightly's: {gap.mean():+.1f}{error} points (mean ± "
        f"standard error, paired, n = {len(gap)}); in the same precision dcopy's runs {' and '.join(told)} "
        "times as fast."
    )
