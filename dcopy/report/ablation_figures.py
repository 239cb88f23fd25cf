"""Figures of notebook 06. An ablation without runs gives a figure that says so."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn
from matplotlib.figure import Figure

from .ablations import BESIDE, COMPARED, TITLES, select, short
from .plotting import COLORS, mark_not_run, ratio_limits


def not_run(title: str) -> Figure:
    """A figure that says so."""
    figure, ax = plt.subplots(figsize=(6.4, 1.2))
    ax.set_axis_off()
    ax.text(0, 0.5, f"{title}: not run", va="center")
    return figure


def heatmap(table: pd.DataFrame, title: str) -> Figure:
    """Accuracy in percent as a heat map; `table` has the settings of one field down, of another across."""
    if table.empty:
        return not_run(title)
    figure, ax = plt.subplots(figsize=(1.0 * table.shape[1] + 2, 0.55 * table.shape[0] + 1.5))
    table = table.rename(columns=short, index=short)
    seaborn.heatmap(table, annot=True, fmt=".1f", cmap="viridis", ax=ax, cbar_kws={"label": "accuracy (%)"})
    for row, column in np.argwhere(table.isna().to_numpy()):
        ax.text(column + 0.5, row + 0.5, "not run", ha="center", va="center")
    ax.set(title=title)
    ax.tick_params(axis="y", rotation=0)
    ax.grid(False)
    return figure


def lines(frame: pd.DataFrame, title: str) -> Figure:
    """Accuracy and effective rank against the setting: mean, one std, seeds.

    Numbers are joined by a line with a band; settings that are words have whiskers.

    Args:
        frame: setting (text, in order), accuracy (percent), effective_rank; a row a run.
        title: what is varied.
    """
    if frame.empty:
        return not_run(title)
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.4))
    settings = list(dict.fromkeys(frame["setting"]))
    numbers = not any(letter.isalpha() for setting in settings for letter in setting.replace("e-", ""))
    panels = [
        ("accuracy", "test accuracy (%)", "directcopy"),
        ("effective_rank", "effective rank of F", "mlp"),
    ]
    for ax, (column, ylabel, color) in zip(axes, panels, strict=True):
        groups = frame.groupby("setting", sort=False)[column]
        mean, std = groups.mean()[settings], groups.std()[settings].fillna(0)
        x = np.arange(len(settings))
        if numbers:
            ax.plot(x, mean, color=COLORS[color], marker="o")
            ax.fill_between(x, mean - std, mean + std, color=COLORS[color], alpha=0.15, lw=0)
        else:
            ax.errorbar(x, mean, std, color=COLORS[color], fmt="o", capsize=4)
        ax.plot(frame["setting"].map(settings.index), frame[column], ".", color="black", markersize=4)
        long = max(map(len, settings)) > 8
        ax.set_xticks(x, settings, rotation=30 if long else 0, ha="right" if long else "center")
        ax.set(ylabel=ylabel, xlabel=title)
    return figure


def beside(frames: dict[str, pd.DataFrame]) -> Figure:
    """Accuracy against the setting, a row a data set and a column an ablation: seeds, and their mean.

    Args:
        frames: as `ablations.beside` gives them.
    """
    shape = (len(BESIDE), len(COMPARED))
    widths = {"width_ratios": [2, 1, 1]}
    figure, axes = plt.subplots(*shape, figsize=(11, 3.2 * shape[0]), squeeze=False, gridspec_kw=widths)
    for row, name in zip(axes, BESIDE, strict=True):
        for ax, ablation in zip(row, COMPARED, strict=True):
            ax.set_title(f"{name}: {TITLES[ablation]}")
            chosen = select(frames[name], ablation) if name in frames else pd.DataFrame()
            if chosen.empty:
                mark_not_run(ax)
                continue
            means = chosen.groupby("setting", sort=False)["accuracy"].mean()
            place = chosen["setting"].map(list(means.index).index)
            ax.plot(place, chosen["accuracy"], ".", color="black", markersize=4)
            ax.plot(range(len(means)), means, "o", color=COLORS["directcopy"])
            ax.set_xticks(range(len(means)), means.index, rotation=40, ha="right", fontsize=8)
        row[0].set_ylabel("test accuracy (%)")
    return figure


def switches(frames: dict[str, pd.DataFrame]) -> Figure:
    """Accuracy in two settings each, a panel a choice: a line a seed, and the mean.

    Args:
        frames: by the name of the choice: setting, seed and accuracy (percent), a row a run.
    """
    figure, axes = plt.subplots(1, len(frames), figsize=(2.9 * len(frames), 3.2))
    for ax, (name, frame) in zip(np.atleast_1d(axes), frames.items(), strict=True):
        ax.set(xlabel=name, xlim=(-0.4, 1.4))
        if frame.empty:
            mark_not_run(ax)
            continue
        table = frame.pivot_table(index="seed", columns="setting", values="accuracy", sort=False)
        for _, row in table.iterrows():
            ax.plot(range(len(row)), row, color="0.6", marker=".", lw=0.9)
        ax.plot(range(table.shape[1]), table.mean(), "o", color=COLORS["directcopy"])
        ax.set_xticks(range(table.shape[1]), table.columns)
    np.atleast_1d(axes)[0].set_ylabel("test accuracy (%)")
    return figure


def spectra(curves: dict[str, np.ndarray], title: str, legend: str) -> Figure:
    """Spectra of F as shares of their sum, one line a setting, light to dark.

    Args:
        curves: by setting: eigenvalues (D,), descending.
    """
    if not curves:
        return not_run(title)
    figure, ax = plt.subplots(figsize=(6.8, 3.8))
    colors = plt.get_cmap("viridis_r")(np.linspace(0.15, 1, len(curves)))
    for (setting, eigenvalues), color in zip(curves.items(), colors, strict=True):
        share = np.clip(np.asarray(eigenvalues) / max(np.sum(eigenvalues), 1e-30), 1e-8, None)
        ax.semilogy(np.arange(1, len(share) + 1), share, color=color, label=setting)
    ax.set(title=title, xlabel="eigenvalue, largest first", ylabel="share of the sum")
    ax.legend(title=legend, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def surviving_directions(records: dict[str, dict]) -> Figure:
    """Share of an eigenvector in F against its variance under augmentation, one panel a setting.

    Args:
        records: by setting: what `variance.variances` returns.
    """
    if not records:
        return not_run("surviving directions")
    figure, axes = plt.subplots(1, len(records), figsize=(2.7 * len(records), 3.2), sharex=True, sharey=True)
    for ax, (setting, record) in zip(np.atleast_1d(axes), records.items(), strict=True):
        sigma2 = np.array([np.nan if value is None else value for value in record["sigma2"]])
        share = np.clip(np.array(record["eigenvalue"]) / max(sum(record["eigenvalue"]), 1e-30), 1e-8, None)
        ax.loglog(sigma2, share, ".", color=COLORS["directcopy"], alpha=0.7)
        ax.axhline(0.01, color="black", lw=0.9, ls=":")
        ax.set(title=f"η = {setting}", xlabel="σ²: augmentation / images")
    ax.set_xlim(ratio_limits(value for record in records.values() for value in record["sigma2"] if value))
    np.atleast_1d(axes)[0].set_ylabel("share in the trace of F")
    return figure
