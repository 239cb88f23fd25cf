"""How well does the verdict on health, given without labels, foretell what labels find?

    python -m dcopy.report.health_limits   # writes results/reference/health/ from the runs beside it

What pretraining gave is measured with labels: accuracy on one label per class, from that of the encoder which
the run began with (0) to that of the best run of its preset (1). The limits of `training.health` are set
on the ablations alone; the other presets are there to judge them.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from .. import results
from ..evaluation import evaluate
from ..training import health
from .plotting import VERDICT_COLORS, save_figure, use_style

SET_ON, JUDGED_ON = "ablations", ("quick", "cifar10-small", "cifar100-small", "imagenette")
MARKERS = dict(zip((SET_ON, *JUDGED_ON), "osDv^", strict=True))
MEASURES = {"projection_std": health.STD_LIMITS, "effective_rank": health.RANK_LIMITS}
GAINS = (0.0, 0.5)  # up to the first, pretraining gave nothing; below the second, little
FOUND = ("nothing", "little", "much")
VERDICTS = ("collapsed", "partial collapse", "healthy")  # that should foretell these
FORMER = ((0.1, 0.5), (1.5, 3.0))  # limits before the runs were looked at


def gains(results_dir: Path) -> pd.DataFrame:
    """A row a run of a preset: both measures, the verdict, accuracies in percent, the gain and its name."""
    outcomes, probes = evaluate.load_results(results_dir)
    probe = {one["name"]: one for one in probes}
    accuracy = {name: 100 * one["label_efficiency"][0]["accuracy_mean"] for name, one in probe.items()}
    own = [outcome for outcome in outcomes if outcome["name"] in probe]
    best = max(accuracy[outcome["name"]] for outcome in own)
    rows = []
    for outcome in own:
        name, record = outcome["name"], outcome["metrics"]
        start = accuracy[next(other for other in probe[name]["baselines"] if "-random-" in other)]
        gain = (accuracy[name] - start) / (best - start)
        found = FOUND[(gain > GAINS[0]) + (gain >= GAINS[1])]
        row = {"preset": results_dir.name, "name": name, "label": outcome["label"]}
        row |= {key: record[key] for key in (*MEASURES, "verdict")}
        row |= {"one label": accuracy[name], "all labels": 100 * probe[name]["linear"]["accuracy"]}
        rows.append(row | {"gain": gain, "found": found})
    return pd.DataFrame(rows)


def window(values: pd.Series, above: pd.Series) -> dict:
    """Where a limit tells `above` from the rest with the fewest errors: any number in (low, high].

    Args:
        values: of a measure, a run each.
        above: whether the run should lie at the limit or above.

    Returns:
        low, high and errors; of several windows the widest, as a ratio.
    """
    s = np.sort(values.unique())
    candidates = [
        {"low": low, "high": high, "errors": int(((values >= high) != above).sum())}
        for low, high in itertools.pairwise(s)
    ]
    return min(candidates, key=lambda one: (one["errors"], one["low"] / one["high"]))


def windows(frame: pd.DataFrame) -> dict[str, list[dict]]:
    """By measure: the window of each of its two limits."""
    beyond = (frame["gain"] > GAINS[0], frame["gain"] >= GAINS[1])
    return {measure: [window(frame[measure], above) for above in beyond] for measure in MEASURES}


def foretold(frame: pd.DataFrame) -> dict:
    """How verdicts and findings meet, and rank correlations of the measures with the accuracies."""
    former = [
        health.verdict(std, rank, *FORMER)
        for std, rank in zip(frame["projection_std"], frame["effective_rank"], strict=True)
    ]
    table = pd.crosstab(frame["verdict"], frame["found"])
    groups = {"all": frame, "healthy": frame[frame["verdict"] == "healthy"]}
    return {
        "runs": len(frame),
        "right": _right(frame, frame["verdict"]),
        "right by the former limits": _right(frame, former),
        "right if all were called healthy": _right(frame, ["healthy"] * len(frame)),
        "table": table.reindex(index=VERDICTS, columns=FOUND, fill_value=0).to_dict("index"),
        "rank correlation": {
            f"{measure}, {labels}, {name} runs": round(
                float(spearmanr(own[measure], own[labels]).statistic), 3
            )
            for name, own in groups.items()
            for measure in MEASURES
            for labels in ("one label", "all labels")
            if len(own) > 3
        },
    }


def _right(frame: pd.DataFrame, verdicts) -> int:
    return sum(VERDICTS.index(v) == FOUND.index(f) for v, f in zip(verdicts, frame["found"], strict=True))


def sentence(record: dict) -> str:
    """What the file says, for README and notebook."""
    parts = [f"{one['right']} of {one['runs']} ({name})" for name, one in record["presets"].items()]
    known = record["presets"][SET_ON]
    rho = known["rank correlation"]
    return (
        "The verdict sees no label, yet it agrees with what a probe with one label per class then gains "
        f"(nothing, little or much) in {', '.join(parts)} runs. Its limits were set on {SET_ON}, where "
        f"calling every run healthy would have agreed in {known['right if all were called healthy']} and the "
        f"former limits in {known['right by the former limits']}. Among the healthy runs there, the rank "
        "correlation of the spread with the accuracy is "
        f"{rho['projection_std, one label, healthy runs']:.2f} with one label per class and "
        f"{rho['projection_std, all labels, healthy runs']:.2f} with all labels; that of the rank of F is "
        f"{rho['effective_rank, one label, healthy runs']:.2f} and "
        f"{rho['effective_rank, all labels, healthy runs']:.2f}."
    )


def figure(frame: pd.DataFrame) -> Figure:
    """Gain of each run against both measures, coloured by the verdict, with the limits dotted."""
    picture, axes = plt.subplots(1, 2, figsize=(9.6, 3.6), sharey=True)
    names = {"projection_std": "spread of projections, std × √D", "effective_rank": "effective rank of F"}
    groups = frame.groupby("preset", sort=False)
    for ax, (measure, limits) in zip(axes, MEASURES.items(), strict=True):
        for preset, own in groups:
            colors = own["verdict"].map(VERDICT_COLORS)
            ax.scatter(own[measure], own["gain"], s=20, marker=MARKERS[preset], c=colors, alpha=0.7, lw=0)
        for limit in limits:
            ax.axvline(limit, color="black", lw=0.9, ls=":")
        for gain in GAINS:
            ax.axhline(gain, color="black", lw=0.9, ls=":")
        ax.set(xlabel=names[measure], xscale="log")
    axes[0].set_ylabel("gain: 0 first weights, 1 best run")
    for verdict, color in VERDICT_COLORS.items():
        axes[1].plot([], [], "o", color=color, label=verdict)
    for preset, _ in groups:
        axes[1].plot([], [], MARKERS[preset], color="grey", label=preset)
    axes[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return picture


def read(folder: Path) -> pd.DataFrame:
    """The runs of all presets that are there; a preset without probed runs is left out."""
    places = [results.own_or_reference(folder / name) for name in (SET_ON, *JUDGED_ON)]
    there = [place for place in places if any(place.glob("runs/*/probe.json"))]
    return pd.concat([gains(place) for place in there], ignore_index=True)


def measured(frame: pd.DataFrame) -> dict:
    """What results/reference/health/limits.json holds."""
    by_preset = {name: own for name, own in frame.groupby("preset", sort=False)}
    return {
        "limits": {measure: list(limits) for measure, limits in MEASURES.items()},
        "windows": windows(by_preset[SET_ON]),
        "presets": {name: foretold(own) for name, own in by_preset.items()},
    }


def main() -> None:
    use_style()
    folder = results.reference()
    frame = read(folder)
    record = measured(frame)
    out = folder / "health"
    results.write_json(out / "limits.json", record)
    with results.atomic(out / "runs.csv") as temporary:
        frame.round(4).to_csv(temporary, index=False)
    save_figure(figure(frame), out / "health-limits")
    print(sentence(record))


if __name__ == "__main__":
    main()
