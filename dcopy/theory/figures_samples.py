"""Figures of finite samples: pairs, labels, SGD."""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from ..report.plotting import COLORS
from .evidence import interval
from .figures import shades


def _mean_and_interval(draws) -> tuple:
    """Mean and half-width of the 95 % interval along the first dimension, for `errorbar`."""
    columns = [interval(column, confidence=0.95) for column in draws.cpu().unbind(-1)]
    return [m for m, _ in columns], [h for _, h in columns]


def finite_sample(data: dict) -> Figure:
    """Error of the learned projection against unlabelled pairs, with its leading order (claim 9)."""
    figure, ax = plt.subplots()
    pairs, errors = data["pairs"], data["errors"].cpu()
    ax.loglog(pairs, errors.mT, ".", color=COLORS["directcopy"], alpha=0.35, markersize=5)
    ax.loglog(
        pairs,
        errors.square().mean(0).sqrt(),
        "o",
        color=COLORS["directcopy"],
        label="measured, root mean square",
    )
    ax.loglog(pairs, data["leading"], "--", color="black", label="predicted")
    mean, half = interval(data["slopes"].cpu(), confidence=0.95)
    ax.set(
        xlabel="unlabelled pairs n",
        ylabel="|polar(W_n) − c P_S|",
        title=f"slope {mean:.3f} ± {half:.3f} (95 %)",
    )
    ax.legend()
    return figure


def labels_needed(data: dict) -> Figure:
    """Labels for a fixed excess risk against r and against d, pretrained and raw (claim 10)."""
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.9), sharey=True)
    styles = {"pretrained": (COLORS["directcopy"], "o"), "raw": (COLORS["pixels"], "s")}
    for ax, name in zip(axes, ("r", "d"), strict=True):
        for key, (color, marker) in styles.items():
            found = data[name, key]
            mean, half = _mean_and_interval(found["labels"])
            label = f"{'least squares on W x' if key == 'pretrained' else 'on raw x'}"
            ax.errorbar(found["axis"], mean, half, fmt=marker, color=color, capsize=3, label=label)
            ax.plot(found["axis"], found["theory"], "--", color=color, lw=1.3)
        fixed = found["sizes"][0][0] if name == "r" else found["sizes"][0][1]
        ax.set(xscale="log", yscale="log", title=f"{'d' if name == 'r' else 'r'} = {fixed}")
        ax.set_xlabel({"r": "dimension r of S", "d": "dimension d of the input"}[name])
        ax.set_xticks(found["axis"], found["axis"])
        ax.minorticks_off()
    ticks = [20, 50, 100, 200, 500]
    axes[0].set_yticks(ticks, ticks)
    axes[0].set_ylabel(f"labels for excess risk {data['excess']:g}")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", title="dashed: predicted")
    return figure


def excess_curves(data: dict) -> Figure:
    """Excess risk against labels: raw input, S known, and W from finitely many pairs (claim 10)."""
    figure, ax = plt.subplots(figsize=(7.2, 4.2))
    colors = [COLORS["directset"], COLORS["directcopy"], COLORS["pixels"], "black"]
    for (name, (measured, predicted)), color in zip(data["curves"].items(), colors, strict=True):
        mean, half = _mean_and_interval(measured)
        ax.errorbar(data["labels"], mean, half, fmt="o", markersize=4, capsize=2, color=color, label=name)
        ax.plot(data["labels"], predicted.mean(0), "--", lw=1.3, color=color)
    ax.set(xscale="log", yscale="log", xlabel="labels", ylabel="excess risk")
    ax.set_title(f"Least squares, d = {data['d']}, r = {data['rank']}, label noise {data['noise']:g}")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title="dashed: predicted")
    return figure


def sgd_ball(data: dict) -> Figure:
    """SGD's approach to its ball, and the ball's radius against step size and batch (claim 11)."""
    figure, axes = plt.subplots(1, 3, figsize=(11.5, 3.6), width_ratios=(1.4, 1, 1))
    for key, color in zip(data["by_lr"], shades(len(data["by_lr"])), strict=True):
        path = data["paths"][key].cpu().square().mean(0).sqrt()  # (records,)
        axes[0].semilogy(0.5 * torch.arange(1, len(path) + 1), path, color=color, label=f"lr = {key[0]:g}")
    axes[0].set(xlabel="time = step size × steps", ylabel="distance from c P_S")
    axes[0].set_title(f"batch {data['by_lr'][0][1]}, ρ = {data['by_lr'][0][2]:g}")
    axes[0].legend()
    for ax, keys, i, name in zip(
        axes[1:], (data["by_lr"], data["by_batch"]), (0, 1), ("step size", "batch"), strict=True
    ):
        x = [key[i] for key in keys]
        mean, half = _mean_and_interval(torch.stack([data["radii"][key] for key in keys], dim=-1))
        ax.errorbar(x, mean, half, fmt="o", color=COLORS["directcopy"], capsize=3, label="measured")
        ax.plot(x, [data["balls"][key][1] for key in keys], "--", color="black", label="predicted")
        ax.set(xscale="log", yscale="log", xlabel=name, ylabel="radius of the ball")
        ax.set_xticks(x, [f"{v:g}" for v in x])
        low, high = min(mean), max(mean)
        ax.set_yticks(
            [low, (low * high) ** 0.5, high], [f"{v:.3f}" for v in (low, (low * high) ** 0.5, high)]
        )
        ax.minorticks_off()
    axes[1].legend()
    return figure
