"""From records to figures. Imported by notebooks alone; every function returns a Figure."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from .. import results
from ..config import METHODS
from ..training import health

# Okabe and Ito's colours: told apart with every kind of colour vision. One method, one colour, everywhere.
PALETTE = ("#0072B2", "#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#882255", "#D55E00", "#999933", "#332288")
COLORS = dict(zip(METHODS, cycle(PALETTE))) | {"pixels": "#7F7F7F", "random": "#000000"}
MARKERS = dict(zip(METHODS, cycle("osD^v<X>h"))) | {"pixels": "P", "random": "d"}
LINES = ("-", "--", ":", "-.")
VERDICT_COLORS = {"healthy": "#009E73", "partial collapse": "#E69F00", "collapsed": "#D55E00"}


def use_style() -> None:
    """Use the style that ships with the package for all figures from here on."""
    plt.style.use(str(files(__package__) / "dcopy.mplstyle"))


def save_figure(figure: Figure, path: str | Path) -> Figure:
    """Write PATH.png and PATH.pdf and return the figure."""
    for suffix in (".png", ".pdf"):
        target = Path(f"{path}{suffix}")
        metadata = {"CreationDate": None} if suffix == ".pdf" else None  # same figure, same file
        with results.atomic(target) as temporary:
            figure.savefig(temporary, format=suffix[1:], metadata=metadata)
    return figure


def line_styles(methods: Iterable[str]) -> list[dict]:
    """Colour and line of each: variants of a method share its colour, not its line."""
    methods = list(methods)
    return [
        {"color": COLORS[method], "ls": LINES[methods[:i].count(method) % len(LINES)]}
        for i, method in enumerate(methods)
    ]


def mark_not_run(ax) -> None:
    """Have a panel say so."""
    ax.set(xticks=[], yticks=[])
    ax.text(0.5, 0.5, "not run", ha="center", va="center", transform=ax.transAxes)


def ratio_limits(values: Iterable[float]) -> tuple[float, float]:
    """Limits of a logarithmic axis of variance ratios: 0.1 to 10, and wider where the values are.

    Within a single decade matplotlib labels the numbers between, too, and they run into one another.
    """
    values = list(values)
    return min([0.1, *values]) / 1.2, max([10, *values]) * 1.2


def views(images: Tensor, *augmented: Tensor, count: int = 8) -> Figure:
    """Images in the first row, their augmented views below.

    Args:
        images: (N, C, H, W) uint8.
        augmented: each (N, C, h, w) float32, shown from its smallest to its largest value.
        count: how many columns.
    """
    rows = [images, *augmented]
    names = ["image", *(f"view {i + 1}" for i in range(len(augmented)))]
    figure, axes = plt.subplots(len(rows), count, figsize=(0.8 * count, 0.85 * len(rows)))
    for row, name, batch in zip(axes, names, rows, strict=True):
        for ax, picture in zip(row, batch.float(), strict=False):
            picture = picture - picture.amin()
            picture = (picture / picture.amax().clamp(min=1e-6)).permute(1, 2, 0)  # (h, w, C)
            ax.imshow(picture.squeeze(-1).numpy(), cmap="gray", interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
            ax.spines[:].set_visible(False)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    return figure


def training_curves(metrics: list[dict], label: str, color: str) -> Figure:
    """Loss, spread of the projections and effective rank of F of one run against the epoch."""
    figure, axes = _health_panels()
    _draw_health(axes, metrics, color=color)
    axes[2].set_ylim(bottom=0)
    last = health.judged(metrics[-1])["verdict"]
    figure.suptitle(f"{label}: {last}", x=0.01, ha="left", color=VERDICT_COLORS[last], weight="bold")
    return figure


def compare_training(histories: dict[str, tuple[str, list[dict]]]) -> Figure:
    """The panels of `training_curves` with one line a method.

    Args:
        histories: by label: method and metrics.
    """
    figure, axes = _health_panels()
    styles = line_styles(method for method, _ in histories.values())
    for (label, (_, metrics)), style in zip(histories.items(), styles, strict=True):
        _draw_health(axes, metrics, label=label, **style)
    axes[2].set_ylim(bottom=0)  # after the last line: it ends autoscaling
    axes[2].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _health_panels():
    """Three empty panels with the limits of the verdict dotted."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.3))
    axes[0].set(title="loss", ylabel="loss (lowest: −4)")
    axes[1].set(title="spread of projections", ylabel="std × √D", ylim=(0, 1.05))
    axes[2].set(title="effective rank of F", ylabel="dimensions")
    for ax, limits in zip(axes[1:], (health.STD_LIMITS, health.RANK_LIMITS), strict=True):
        for limit in limits:
            ax.axhline(limit, color="black", lw=0.9, ls=":")
    for ax in axes:
        ax.set_xlabel("epoch")
        ax.xaxis.get_major_locator().set_params(integer=True)
    return figure, axes


def _draw_health(axes, metrics: list[dict], **style) -> None:
    epochs = [record["epoch"] for record in metrics]
    for ax, key in zip(axes, ("loss", "projection_std", "effective_rank"), strict=True):
        ax.plot(epochs, [record[key] for record in metrics], **style)


def spectrum(metrics: list[dict], label: str) -> Figure:
    """Eigenvalues of F as shares of their sum, one line an epoch, early to late from light to dark."""
    figure, ax = plt.subplots()
    shown = metrics[:: max(1, len(metrics) // 12)]
    if shown[-1] is not metrics[-1]:
        shown.append(metrics[-1])
    colors = plt.get_cmap("viridis_r")(np.linspace(0.1, 1, len(shown)))
    for record, color in zip(shown, colors, strict=True):
        share = np.array(record["spectrum"]) / max(sum(record["spectrum"]), 1e-30)
        ax.semilogy(np.arange(1, len(share) + 1), np.clip(share, 1e-8, None), color=color)
    scale = plt.cm.ScalarMappable(plt.Normalize(shown[0]["epoch"], shown[-1]["epoch"]), "viridis_r")
    figure.colorbar(scale, ax=ax, label="epoch")
    ax.set(title=f"{label}: spectrum of F", xlabel="eigenvalue, largest first", ylabel="share of the sum")
    return figure


def label_efficiency(curves: dict[str, dict]) -> Figure:
    """Test accuracy against the number of labels a class, mean and band of one std over seeds.

    Args:
        curves: by label: method, x (numbers of labels, the last one all), mean and std (percent).
    """
    figure, ax = plt.subplots(figsize=(7.2, 4.2))
    styles = line_styles(curve["method"] for curve in curves.values())
    for (label, curve), style in zip(curves.items(), styles, strict=True):
        mean, std = np.array(curve["mean"]), np.array(curve["std"])
        ax.semilogx(curve["x"], mean, label=label, marker=MARKERS[curve["method"]], **style)
        ax.fill_between(curve["x"], mean - std, mean + std, color=style["color"], alpha=0.15, lw=0)
    ticks = sorted({x for curve in curves.values() for x in curve["x"]})
    everything = f"\nall ({ticks[-1]:.0f})"  # a line below: on digits 100 is near
    ax.set_xticks(ticks, [*(f"{tick:g}" for tick in ticks[:-1]), everything])
    ax.minorticks_off()
    ax.set(title="A linear probe on few labels", xlabel="labels per class", ylabel="test accuracy (%)")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def predictor_cost(record: dict) -> Figure:
    """Time of a predictor's update against D, a line a method, and as a part of the measured step's.

    Args:
        record: what `python -m dcopy.bench` wrote.
    """
    figure, ax = plt.subplots(figsize=(7.2, 4.2))
    lines: dict[str, list[dict]] = {}
    for row in record["predictors"]:
        lines.setdefault(row["label"], []).append(row)
    styles = line_styles(rows[0]["method"] for rows in lines.values())
    for (label, rows), style in zip(lines.items(), styles, strict=True):
        marker = MARKERS[rows[0]["method"]]
        ax.loglog([r["dim"] for r in rows], [r["ms"] for r in rows], marker, label=label, **style)
    dims, step, config = [row["dim"] for row in rows], record["step"]["ms"], record["config"]
    ax.set_xticks(dims, dims)
    ax.minorticks_off()
    ax.set(title=record["provenance"]["device"], xlabel="D", ylabel="time of an update (ms)")
    share = ax.secondary_yaxis("right", functions=(lambda ms: 100 * ms / step, lambda s: s * step / 100))
    share.yaxis.set_major_formatter("{x:g} %")
    share.minorticks_off()
    share.set_ylabel(
        f"of a {config['dataset']} step in {results.precision(record)}, {step:,.0f} ms", labelpad=8
    )
    ax.legend(loc="center left", bbox_to_anchor=(1.3, 0.5))
    return figure


def compare_published(rows: list[dict]) -> Figure:
    """Published accuracies (hollow) beside ours (filled), whiskers of one std, a panel a data set.

    Args:
        rows: what `published.table1` returns; a recalled number gets its dagger.
    """
    columns = ([row[key] for row in rows] for key in ("data", "method", "epochs"))
    panels, labels, ticks = (list(dict.fromkeys(column)) for column in columns)
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels) + 2, 3.8), squeeze=False)
    styles = {}
    for label in labels:
        text = label.split(" (freq")[0].split(",")[0]
        method = next(name for name, known in METHODS.items() if known == text)
        marker = "h" if "freq" in label else "p" if "," in label else MARKERS[method]
        styles[label] = {"color": COLORS[method], "marker": marker, "ls": ""}
    drawn = []  # the cells; one that ours ran under several protocols has several rows
    for row in rows:
        ax, cell = axes[0, panels.index(row["data"])], (row["data"], row["epochs"], row["method"])
        x = ticks.index(row["epochs"]) + 0.11 * (labels.index(row["method"]) - (len(labels) - 1) / 2)
        style = styles[row["method"]] | {"capsize": 2, "lw": 1.2}
        if row["published"] is not None and cell not in drawn:
            ax.errorbar(x - 0.04, row["published"], yerr=row["published_std"], mfc="white", **style)
            if row["recalled"]:
                above = row["published"] + (row["published_std"] or 0)
                place = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center", "fontsize": 8}
                ax.annotate("†", (x - 0.04, above), **place)
        if row["here"] is not None:
            right = 0.02 + 0.04 * drawn.count(cell)
            ax.errorbar(x + right, row["here"], yerr=row["here_std"], **style)
        drawn.append(cell)
    for ax, name in zip(axes[0], panels, strict=True):
        ax.set(title=name, xlabel="epochs", xticks=range(len(ticks)), xticklabels=ticks)
        ax.grid(axis="x", visible=False)
        for tick in range(1, len(ticks)):
            ax.axvline(tick - 0.5, color="#cccccc", lw=0.8)
    axes[0, 0].set_ylabel("test accuracy (%)")
    here = {"color": "#555555", "marker": "o", "ls": ""}
    styles |= {"published": here | {"mfc": "white"}, "here": here}
    handles = [plt.Line2D([], [], label=label, **style) for label, style in styles.items()]
    axes[0, -1].legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
