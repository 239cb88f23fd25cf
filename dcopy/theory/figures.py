"""Figures of the flow: from the data of an experiment to a matplotlib Figure."""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from ..report.plotting import COLORS
from . import closed_forms as theory
from .grid import ALPHAS
from .layers import depth_threshold

ALPHA_COLORS = dict(
    zip(ALPHAS, (COLORS["directpred"], COLORS["directcopy"], COLORS["directset"]), strict=True)
)
TITLES = {"data": r"the paper: $W_p = (W X W^\top)^\alpha$", "views": r"the algorithm: $W_p = F^\alpha$"}
KEPT, LOST = COLORS["directcopy"], COLORS["none"]  # features that survive, features that do not


def shades(n: int, palette: str = "viridis") -> list:
    """n colours in order, light enough to print on white and dark enough to see on it.

    >>> len(shades(3))
    3
    """
    return list(plt.get_cmap(palette)(torch.linspace(0.05, 0.85, n).tolist()))


def _lines(ax, x: Tensor, ys: Tensor, labels: list[str], colors: list, **style) -> None:
    for y, label, color in zip(ys.cpu(), labels, colors, strict=True):
        ax.plot(x.cpu(), y, color=color, label=label, **style)


def phase_line(eta: float, variances: tuple[float, ...]) -> Figure:
    """Velocity of the eigenvalue q against q, with its fixed points: why a feature stays or goes."""
    figure, ax = plt.subplots()
    q = torch.linspace(0, 1, 200, dtype=torch.float64)
    for variance, color in zip(variances, (KEPT, LOST), strict=True):
        speed = 2 * q * (-(1 + variance) * q.square() + q - eta)
        ax.plot(q, speed, color=color, label=f"σ² = {variance:g}")
        for root, face, name in zip(theory.fixed_points(eta, variance), ("white", color), "−+", strict=True):
            if not root.isnan():
                ax.plot(root, 0, "o", color=color, markerfacecolor=face, markersize=8, zorder=3)
                ax.annotate(f"q{name}", (root, 0), xytext=(0, 9), textcoords="offset points", ha="center")
    ax.axhline(0, color="black", lw=0.9)
    ax.set(ylim=(-0.25, 0.12), xlabel="eigenvalue q of the predictor", ylabel="dq/dt")
    ax.set_title(f"DirectCopy's flow of one feature, η = {eta:g}")
    ax.legend()
    return figure


def trajectories(data: dict) -> Figure:
    """Weights of the features of one network against time in both conventions, limits dashed (claim 2)."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    labels = [f"σ² = {v:g}" for v in data["variances"]]
    colors = shades(len(labels))
    for ax, (convention, title) in zip(axes, TITLES.items(), strict=True):
        _lines(ax, data["times"], data["paths"][convention].mT, labels, colors)
        for limit, color in zip(data["limits"][convention].tolist(), colors, strict=True):
            ax.axhline(limit, color=color, ls="--", lw=1.2)
        ax.set_xscale("symlog", linthresh=0.3, linscale=0.4)
        ax.set(xlim=(0, 100), ylim=(-0.03, 1.05), xlabel="time t", title=title)
        ax.set_xticks([0, 0.3, 1, 3, 10, 30, 100], ["0", "0.3", "1", "3", "10", "30", "100"])
        ax.minorticks_off()
    axes[0].set_ylabel("weight λ of the feature")
    figure.suptitle(f"Six features, one network, η = {data['eta']:g}")
    axes[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title="dashed: predicted")
    return figure


def phase_diagrams(data: dict) -> Figure:
    """Final weight over (eta, σ²) for three powers alpha, a row a convention, with the edge (claim 12)."""
    weights = data["weights"]
    size = {"figsize": (2.9 * len(weights), 5.2), "sharex": True, "sharey": True}
    figure, grid = plt.subplots(len(TITLES), len(weights), **size)
    eta, variance = data["eta"].cpu(), data["variance"].cpu()
    fine = torch.linspace(0, variance[-1], 200, dtype=torch.float64)
    for row, (convention, title) in zip(grid, TITLES.items(), strict=True):
        for ax, (alpha, final) in zip(row, weights.items(), strict=True):
            options = {"vmin": 0, "vmax": 1, "shading": "nearest", "rasterized": True}
            image = ax.pcolormesh(eta, variance, final[convention].cpu(), **options)
            ax.plot(theory.threshold(fine), fine, color="white", ls="--", lw=2)
            ax.set(title=f"α = {alpha:g}", xlim=(0, eta[-1]), ylim=(0, variance[-1]))
            ax.grid(False)
        row[0].set_ylabel(f"{title}\n\nvariance σ²")
    for ax in grid[-1]:
        ax.set_xlabel("weight decay η")
    grid[0, 0].annotate("η = 1/(4(1+σ²))", (0.1, 1.6), xytext=(0.115, 2.2), color="white", fontsize=11)
    figure.colorbar(image, ax=grid, label="weight λ at rest", shrink=0.95)
    return figure


def basin(data: dict) -> Figure:
    """Final weight over the start delta and eps, with the predicted basin of collapse on it (claim 5)."""
    figure, ax = plt.subplots(figsize=(6.6, 4.2))
    start, eps = data["start"].cpu(), data["eps"].cpu()
    image = ax.pcolormesh(start, eps, data["weights"].cpu().mT, shading="nearest", vmin=0, rasterized=True)
    fine = torch.linspace(0, data["q_minus"], 400, dtype=torch.float64)[:-1]
    edge = theory.critical_start(data["eta"], 0.0, eps=fine)
    ax.plot(edge, fine, color="white", ls="--", lw=2)
    for level, name in ((data["q_minus"], "q−"), (data["q_plus"], "q+")):
        ax.hlines(level, start[0], 1, color="white", ls="--", lw=2)
        ax.annotate(name, (1, level), xytext=(6, 0), textcoords="offset points", va="center")
    for text, place in (("escapes collapse\nfrom any start", (4e-3, 0.5)), ("collapses", (4e-3, 0.13))):
        ax.text(*place, text, color="white", ha="left", va="center")
    ax.set(xscale="log", xlim=(start[0], 1), ylim=(eps[0], eps[-1]))
    ax.set(xlabel="start δ, W(0) = δI", ylabel="ε in W_p = F + εI")
    ax.set_title(f"A feature without noise, η = {data['eta']:g}")
    ax.grid(False)
    figure.colorbar(image, ax=ax, label="weight λ at rest", pad=0.08)
    return figure


def collapse_panel(data: dict) -> Figure:
    """Weights of a stable and of a noisy feature with all parts, and with one part missing (claim 6)."""
    paths = data["paths"]
    figure, axes = plt.subplots(1, len(paths), figsize=(2.3 * len(paths), 3.0), sharey=True)
    names = ["σ² = 0", "σ² = 1"]
    for ax, (name, path) in zip(axes, paths.items(), strict=True):
        _lines(ax, data["times"], path.mT, names, [KEPT, LOST])
        collapsed = path[-1].max() < 0.01
        verdict = "collapsed" if collapsed else "keeps both" if path[-1].min() > 0.01 else "keeps σ² = 0"
        ax.set_title(name, color=LOST if collapsed else "black")
        ax.text(60, 0.65, verdict, ha="center")
        ax.set(xlabel="time t", ylim=(-0.03, 1.05), xticks=[0, 60, 120])
    axes[0].set_ylabel("weight λ")
    axes[0].legend(loc="lower right", bbox_to_anchor=(1.05, 0.06), fontsize=9)
    return figure


def principal_angles(data: dict) -> Figure:
    """Sine of the largest angle between the learned row space and S, from random starts (claim 8)."""
    figure, ax = plt.subplots()
    ax.semilogy(data["times"], data["sines"].cpu().clamp(min=1e-16), color=KEPT, lw=1.0, alpha=0.6)
    ax.set(
        ylim=(1e-14, 2), xlim=(0, data["times"][-1]), xlabel="time t", ylabel="sine of the largest angle to S"
    )
    ax.set_title(f"{data['sines'].shape[1]} random starts, d = {data['d']}, r = {data['rank']}")
    return figure


def depth(data: dict) -> Figure:
    """Threshold against σ² for networks of one to three layers, measured on predicted (claim 12)."""
    figure, ax = plt.subplots()
    fine = torch.linspace(0, data["variances"].max().item(), 200, dtype=torch.float64)
    colors = shades(3)
    for (L, convention), measured in data["measured"].items():
        style = {"ls": "-" if convention == "views" else "--", "color": colors[L - 1]}
        label = f"{L} layer{'s' * (L > 1)}" if convention == "views" else None
        ax.semilogy(fine, depth_threshold(fine, L, convention=convention), label=label, **style)
        ax.plot(data["variances"].cpu(), measured.cpu(), "o", color=colors[L - 1])
    ax.set(
        xlabel="variance σ² under augmentation",
        ylabel="largest η survived",
        title="Depth sharpens the threshold",
    )
    ax.legend(title="dots: measured\ndashed: the paper's $W_p$")
    return figure


def memory(ema: dict, steps: dict) -> Figure:
    """Approach to the limit with a slower target (claim 7), and with a longer memory of F (claim 12)."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.7))
    labels = [f"β = {b:g}" for b in ema["beta"].tolist()]
    _lines(axes[0], ema["times"], ema["paths"].mT, labels, shades(len(labels)))
    axes[0].axhline(ema["limit"].item(), color="black", ls="--", lw=1.2, label="predicted")
    axes[0].set(xlabel="time t", ylabel="weight λ", title="EMA target, rate β")
    path = steps["signal"][:, :, 0].cpu()  # (T, rho), freq = 1
    labels = [f"ρ = {r:g}" for r in steps["rho"].tolist()]
    _lines(axes[1], torch.arange(1, len(path) + 1), path.mT, labels, shades(len(labels)))
    axes[1].axhline(steps["limit"].item(), color="black", ls="--", lw=1.2, label="predicted")
    axes[1].set(xscale="log", xlabel="step", ylabel="weight λ", title=f"Running F, step size {steps['lr']:g}")
    for ax in axes:
        ax.legend(loc="lower right", fontsize=9)
    return figure


def predictor_alignment(data: dict) -> Figure:
    """A learned predictor's alignment with F over time, and W_p in F's eigenbasis at both ends (claim 12)."""
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), width_ratios=(1.6, 1, 1))
    axes[0].plot(data["times"], data["cosines"].cpu(), color=COLORS["linear"], lw=1.2, alpha=0.7)
    axes[0].axhline(1, color="black", ls="--", lw=1.2)
    axes[0].set_xscale("symlog", linthresh=0.1, linscale=0.3)
    axes[0].set_xticks([0, 0.1, 1, 10, 100], ["0", "0.1", "1", "10", "100"])
    axes[0].minorticks_off()
    axes[0].set(
        xlabel="time t",
        xlim=(0, data["times"][-1]),
        ylabel="cosine of u and W_p u",
        title=f"{data['cosines'].shape[1]} random starts",
    )
    for ax, when in zip(axes[1:], ("first", "last"), strict=True):
        image = data[when].cpu().flip(0, 1)  # largest eigenvalue of F first
        levels = torch.linspace(0, image.max().item(), 11).tolist()
        colors = ListedColormap(plt.get_cmap("Blues")(torch.linspace(0, 1, 10).tolist()))
        shown = ax.imshow(image, cmap=colors, norm=BoundaryNorm(levels, 10))
        figure.colorbar(shown, ax=ax, shrink=0.75, format="%.1f", ticks=levels[::5])
        title = "|W_p| at t = 0" if when == "first" else f"at t = {data['times'][-1]:.0f}"
        ax.set(title=title, xlabel="eigenvectors of F", xticks=[], yticks=[])
        ax.grid(False)
    return figure
