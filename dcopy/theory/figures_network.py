"""Figures of notebook 08: the cosine loss next to the quadratic one, and a network next to both flows."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from .figures import shades
from .network import shares


def cosine_paths(data: dict) -> Figure:
    """Weights of six features under both losses, a row a weight decay (claim 13)."""
    etas = list(dict.fromkeys(eta for eta, *_ in data["paths"]))
    figure, grid = plt.subplots(len(etas), 3, figsize=(9.6, 2.7 * len(etas)), sharex=True, sharey=True)
    titles = {
        ("quadratic", 0.0): "quadratic loss",
        ("cosine", 0.0): "cosine loss, λ over |W|",
        ("cosine", 0.3): "cosine loss, ε = 0.3",
    }
    colors = shades(len(data["variances"]))
    for row, eta in zip(grid, etas, strict=True):
        for ax, (key, title) in zip(row, titles.items(), strict=True):
            for y, variance, color in zip(
                data["paths"][(eta, *key)].mT.cpu(), data["variances"], colors, strict=True
            ):
                ax.plot(data["times"], y, color=color, label=f"σ² = {variance:g}")
            ax.set(title=title if eta == etas[0] else "", ylim=(-0.03, 1.05), xlim=(0, data["times"][-1]))
        row[0].set_ylabel(f"η = {eta:g}\n\nweight")
    for ax in grid[-1]:
        ax.set_xlabel("time t")
    grid[0, -1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def network_in_time(
    epochs: list[int], measured: Tensor, sigma2: Tensor, predicted: dict[str, Tensor], shown: int = 16
) -> Figure:
    """Shares of the strongest directions in F against epochs: measured, and as each flow has them.

    Args:
        epochs: of the snapshots.
        measured: (len(epochs), D), eigenvalues of F along the last directions, strongest first.
        sigma2: (len(epochs), D).
        predicted: by name, each as `measured`: two losses, with two kinds of σ².
        shown: how many directions.
    """
    figure, grid = plt.subplots(2, 3, figsize=(9.6, 5.4), sharex=True)
    names = [name for name in predicted if name != "nothing moves"]
    panels = {"measured": (grid[0, 0], measured)}
    for loss, column in zip(("quadratic", "cosine"), (1, 2), strict=True):
        for row, name in enumerate(name for name in names if name.startswith(loss)):
            panels[name] = (grid[row, column], predicted[name])
    colors = shades(shown)
    top = 1.1 * max(shares(values)[:, :shown].max().item() for _, values in panels.values())
    for title, (ax, values) in panels.items():
        for y, color in zip(shares(values)[:, :shown].mT, colors, strict=True):
            ax.plot(epochs, y, color=color, marker=".", markersize=4, lw=1.2)
        ax.set(title=title, ylim=(0, top), xscale="log")
    for y, color in zip(sigma2[:, :shown].mT, colors, strict=True):
        grid[1, 0].loglog(epochs, y, color=color, marker=".", markersize=4, lw=1.2)
    grid[1, 0].set_title("σ² measured")
    ticks = [epoch for i, epoch in enumerate(epochs) if i % 2 == 0]
    for ax in grid.flat:
        ax.set_xticks(ticks, map(str, ticks))
        ax.minorticks_off()
    for ax in grid[1]:
        ax.set_xlabel("epoch")
    grid[0, 0].set_ylabel("share in the trace of F")
    grid[1, 0].set_ylabel("σ²: augmentation / images")
    return figure
