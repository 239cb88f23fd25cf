"""Figures of the claims in notebook 05, a panel a data set; one without runs says so."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from ..config import METHODS
from . import claims
from .plotting import COLORS, MARKERS, mark_not_run, ratio_limits
from .tables import BASELINES

LABELS = METHODS | BASELINES


def _panels(names, height: float = 3.2, **options):
    figure, axes = plt.subplots(
        1, len(names), figsize=(3.4 * len(names) + 1, height), squeeze=False, **options
    )
    for ax, name in zip(axes[0], names, strict=True):
        ax.set_title(name)
    return figure, axes[0]


def differences(records: dict[str, list[dict]], claim: str) -> Figure:
    """Paired differences of a claim in points: a dot a seed, their mean, and its 95 % interval.

    Args:
        records: by data set: what `claims.load` returns.
        claim: its letter.
    """
    pairs = [pair[1:] for pair in claims.PAIRS if pair[0] == claim]
    figure, axes = _panels(records, 1.4 + 0.6 * len(pairs))
    for ax, own in zip(axes, records.values(), strict=True):
        found = [claims.paired(own, *pair) for pair in pairs]
        for y, (pair, row) in enumerate(zip(pairs, found, strict=True)):
            if row:
                ax.plot(
                    row["differences"], [y] * len(row["seeds"]), ".", color="black", markersize=5, zorder=3
                )
                reach = 0 if row["low"] is None else row["high"] - row["mean"]
                ax.errorbar(row["mean"], y, xerr=reach, fmt="o", color=COLORS[pair[0]], capsize=4)
        ax.axvline(0, color="black", lw=0.9)
        if claim == "a":
            ax.axvline(-claims.MARGIN, color="black", lw=0.9, ls=":")
        ax.set(xlabel="difference (points)", ylim=(len(pairs) - 0.4, -0.6))
        ax.set_yticks(range(len(pairs)), [] if ax is not axes[0] else [_names(*pair) for pair in pairs])
        if not any(found):
            ax.set_xticks([])
            ax.text(0.5, 0.5, claims.NOT_RUN, ha="center", va="center", transform=ax.transAxes)
    return figure


def _names(first: str, second: str) -> str:
    return f"{METHODS[first]}\n− {METHODS[second]}"


def collapse(records: dict[str, list[dict]]) -> Figure:
    """Accuracy with all labels against the effective rank of F, which needs none: a dot a run."""
    figure, axes = _panels(records)
    for ax, own in zip(axes, records.values(), strict=True):
        trained = [record for record in own if record["result"]]
        ranks = [record["result"]["metrics"]["effective_rank"] for record in trained]
        for record, rank in zip(trained, ranks, strict=True):
            style = {"color": COLORS[record["method"]], "marker": MARKERS[record["method"]], "ls": ""}
            ax.semilogx(rank, claims.accuracy(record), **style)
        if trained:
            ax.set_xlim(0.9, max(12, 1.2 * max(ranks)))  # a decade or more, from the rank 1 of a collapse
        else:
            mark_not_run(ax)
        for method in BASELINES:
            heights = [claims.accuracy(record) for record in claims.of(own, method)]
            if heights:
                ax.axhline(np.mean(heights), color=COLORS[method], lw=0.9, ls="--")
        ax.set_xlabel("effective rank of F")
    axes[0].set_ylabel("test accuracy (%)")
    return _legend(figure, axes, records, lines=BASELINES)


def labels(records: dict[str, list[dict]]) -> Figure:
    """Accuracy against the number of labels a class, mean over seeds: DirectCopy and the baselines."""
    figure, axes = _panels(records)
    for ax, own in zip(axes, records.values(), strict=True):
        for method in ("directcopy", *BASELINES):
            points = claims.curve(own, method)
            if points:
                ax.plot(range(len(points)), points.values(), color=COLORS[method], marker=MARKERS[method])
                ax.set_xticks(range(len(points)), points)
        if not own:
            mark_not_run(ax)
        ax.set_xlabel("labels per class")
    axes[0].set_ylabel("test accuracy (%)")
    kept = {
        name: [r for r in own if r["method"] in ("directcopy", *BASELINES)] for name, own in records.items()
    }
    return _legend(figure, axes, kept)


def _legend(figure: Figure, axes, records: dict[str, list[dict]], lines=()) -> Figure:
    """A marker for each method in `records`, a dashed line for those in `lines`."""
    shown = {record["method"] for own in records.values() for record in own}
    handles = []
    for method in (name for name in LABELS if name in shown):
        style = {"ls": "--", "lw": 0.9} if method in lines else {"ls": "", "marker": MARKERS[method]}
        handles.append(plt.Line2D([], [], label=LABELS[method], color=COLORS[method], **style))
    axes[-1].legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def decays(folder: str | Path) -> Figure:
    """Surviving directions of F (bars), and variance of the survivors and of the rest, by weight decay."""
    figure, axes = _panels(claims.DECAYS)
    for ax, preset in zip(axes, claims.DECAYS.values(), strict=True):
        rows = claims.decays(Path(folder), preset)
        if not rows:
            mark_not_run(ax)
            continue
        x = range(len(rows))
        ax.bar(x, [float(row["survivors"]) for row in rows], color="0.85")
        ax.set_xticks(x, [row["weight decay"] for row in rows], fontsize=8)
        ax.set(xlabel="weight decay η", ylabel="surviving directions")
        ax.grid(visible=False)
        right, every = ax.twinx(), []
        for column, label, color in (
            ("sigma2_survivors", "survivors", COLORS["directcopy"]),
            ("sigma2_dropped", "dropped", COLORS["none"]),
        ):
            values = [float(row[column]) if row[column] else np.nan for row in rows]
            right.semilogy(x, values, color=color, marker="o", label=label)
            every += [value for value in values if value > 0]
        right.set_ylim(ratio_limits(every))  # alike in both panels, with room for the legend
        right.set_ylabel("σ²: augmentation / images")
        right.legend(fontsize=8, loc="upper right")
        right.grid(visible=False)
    return figure
