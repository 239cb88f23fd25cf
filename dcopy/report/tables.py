"""From result files to tables: mean and standard deviation over seeds, as Markdown, LaTeX and CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from .. import results
from ..config import METHODS, TrainConfig

BASELINES = {"pixels": "raw pixels", "random": "random encoder"}
ORDER = [*METHODS, *BASELINES]  # rows of every table
PEEKS = "best of 50 epochs (peeks)"  # the column that nobody shall take for a result
SECONDS, MIXED = "pretraining, s", "mixed"
MIXED_NOTE = (
    f"{SECONDS}: {MIXED} where the runs of a row are from several processors or precisions, whose times make "
    "no mean."
)
NETWORK = ("dataset", "encoder", "width", "image_size")  # what a baseline depends on
UNCONVERGED = "‡"  # on an accuracy of a probe that had not converged
PEEKS_NOTE = (
    f"{PEEKS}: the highest test accuracy over 50 epochs of a linear layer, all labels, as the reference "
    "code reports. It is chosen on the test set, so it is not a result, only a number to compare with theirs."
)


def probe_frame(probes: list[dict]) -> pd.DataFrame:
    """One row a probed encoder: label, method, seed, and an accuracy in percent for each probe."""
    counts = sorted({number for probe in probes for number in _few(probe)})
    rows = []
    for probe in probes:
        few = _few(probe)
        rows.append(
            {
                "label": probe["label"],
                "method": probe["method"],
                "dataset": probe["dataset"],
                "seed": probe["seed"],
                "converged": probe["linear"]["converged"],
                **{f"{number} a class": few.get(number) for number in counts},
                "all labels": 100 * probe["linear"]["accuracy"],
                "k-NN": 100 * probe["knn"],
                PEEKS: 100 * (probe["reference"] or {"best": float("nan")})["best"],
            }
        )
    frame = pd.DataFrame(rows)
    frame["order"] = frame["method"].map(ORDER.index)
    return frame.sort_values(["order", "label", "seed"]).drop(columns="order").reset_index(drop=True)


def _few(probe: dict) -> dict[int, float]:
    """Percent by the number of labels a class, where not all are known."""
    points = {point["labels_per_class"]: point["accuracy_mean"] for point in probe["label_efficiency"]}
    return {number: 100 * accuracy for number, accuracy in points.items() if number != "all"}


def label_curves(probes: list[dict]) -> dict[str, dict]:
    """Label-efficiency curves for `plotting.label_efficiency`: percent, mean and std over seeds, by label."""
    curves = {}
    for probe in sorted(probes, key=lambda probe: ORDER.index(probe["method"])):
        points, protocol = probe["label_efficiency"], probe["protocol"]
        everything = protocol["train"] / protocol["classes"]
        x = [everything if p["labels_per_class"] == "all" else p["labels_per_class"] for p in points]
        curve = curves.setdefault(probe["label"], {"method": probe["method"], "seeds": []})
        curve["seeds"].append(dict(zip(x, (100 * p["accuracy_mean"] for p in points), strict=True)))
    for curve in curves.values():
        seeds = pd.DataFrame(curve.pop("seeds")).sort_index(axis="columns")  # a count that a seed lacks: NaN
        std = seeds.std().fillna(0)
        curve |= {"x": seeds.columns.tolist(), "mean": seeds.mean().tolist(), "std": std.tolist()}
    return curves


def run_frame(run_results: list[dict]) -> pd.DataFrame:
    """One row a pretraining run: label, seed, loss, health and seconds, from result.json files."""
    keys = ("verdict", "projection_std", "effective_rank", "loss")
    return pd.DataFrame(
        {
            "label": result["label"],
            "seed": result["config"]["seed"],
            **{key: result["metrics"][key] for key in keys},
            "seconds": result["seconds"],
            "device": result["device"],
            "precision": results.precision(result),
        }
        for result in run_results
    )


def mean_std(values: pd.Series, digits: int = 1) -> str:
    """'81.0 ± 0.6', one value without a spread as '81.0', none as 'not run'.

    >>> mean_std(pd.Series([80.0, 82.0]))
    '81.0 ± 1.4'
    """
    values = values.dropna()
    if values.empty:
        return "not run"
    mean = f"{values.mean():.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {values.std():.{digits}f}"


def summary(probes: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """The table of a preset: methods down, probes across, mean ± std over seeds (std with n − 1).

    `summary_notes` belong below it.
    """
    keys = ("label", "method", "dataset", "seed", "converged")
    columns = [name for name in probes.columns if name not in keys]
    table = []
    for label, group in probes.groupby("label", sort=False):
        own = runs[runs["label"] == label]
        verdicts = own["verdict"].value_counts()
        health = ", ".join(f"{name} {count}/{len(own)}" for name, count in verdicts.items())
        row = {"method": label, "n": len(group), "health (no labels used)": health or "—"}
        row |= {name: mean_std(group[name]) for name in columns}
        row["all labels"] += UNCONVERGED * (not group["converged"].all())
        row[SECONDS] = mean_std(own["seconds"], 0) if len(own) else "—"
        if len(own[["device", "precision"]].drop_duplicates()) > 1:
            row[SECONDS] = MIXED
        table.append(row)
    return pd.DataFrame(table)


def summary_caption(outcomes: list[dict]) -> str:
    """What stands above `summary`: what was trained on what, from result.json files."""
    names = ("dataset", "encoder", "width", "epochs", "batch_size")
    told = {name: dict.fromkeys(str(outcome["config"][name]) for outcome in outcomes) for name in names}
    told["precision"] = dict.fromkeys(map(results.precision, outcomes))
    dataset, encoder, width, epochs, batch_size, precision = (", ".join(values) for values in told.values())
    wide = "" if width == "None" else f" of width {width}"
    return (
        f"Test accuracy in percent, mean ± std over seeds; {dataset}: {encoder}{wide}, "
        f"{epochs} epochs, batches of {batch_size}, in {precision}."
    )


def summary_notes(probes: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """What must be said below `summary`: which column peeks, which probes did not converge, mixed times."""
    converged = probes.groupby("label", sort=False)["converged"]
    missed = [f"{label} {(~own).sum()} of {len(own)}" for label, own in converged if not own.all()]
    mixed = [MIXED_NOTE] * bool((table[SECONDS] == MIXED).any())
    return [PEEKS_NOTE, *unconverged_notes(missed), *mixed]


def unconverged_notes(missed: list[str]) -> list[str]:
    """The note for the cells that have the mark, a text each in `missed`; none where there is none."""
    start = f"{UNCONVERGED} linear probes that ran out of iterations before convergence: "
    return [start + "; ".join(missed) + "."] * bool(missed)


def health(runs: pd.DataFrame) -> pd.DataFrame:
    """Health at the last epoch from `run_frame`, mean ± std over seeds; no label entered it."""
    return (
        runs.groupby("label", sort=False)
        .agg(
            n=("seed", "size"),
            loss=("loss", lambda values: mean_std(values, 2)),
            spread=("projection_std", lambda values: mean_std(values, 2)),
            rank=("effective_rank", mean_std),
            verdict=("verdict", lambda values: ", ".join(sorted(set(values)))),
        )
        .reset_index()
    )


def variant_labels(configs: list[TrainConfig]) -> list[str]:
    """Labels that tell settings apart: the run's own, and the fields in which runs of that label differ.

    >>> variant_labels([TrainConfig(epochs=100), TrainConfig(epochs=300), TrainConfig(method="none")])
    ['DirectCopy, epochs=100', 'DirectCopy, epochs=300', 'no predictor']
    """
    labels = []
    for config in configs:
        alike = [other for other in configs if other.label == config.label]
        standard = TrainConfig(dataset=config.dataset, method=config.method, alpha=config.alpha)
        label = config.label
        for name, value in config.to_dict().items():
            told = name in ("dataset", "epochs") or value != getattr(standard, name)
            if name != "seed" and told and any(getattr(other, name) != value for other in alike):
                label += f", {name}={value:g}" if isinstance(value, float) else f", {name}={value}"
        labels.append(label)
    return labels


def told_apart(outcomes: list[dict], probes: list[dict]) -> tuple[list[dict], list[dict]]:
    """Both with labels by which settings can be told apart, those of baselines as well: `variant_labels`."""
    configs = {outcome["name"]: TrainConfig.from_dict(outcome["config"]) for outcome in outcomes}
    labels = dict(zip(configs, variant_labels(list(configs.values())), strict=True))
    for method, label in BASELINES.items():
        fields = NETWORK if method == "random" else ("dataset", "image_size")
        own = {probe["name"] for probe in probes if probe["method"] == method}
        networks = {
            name: TrainConfig(**{field: getattr(configs[probe["name"]], field) for field in fields})
            for probe in probes
            if probe["name"] in configs
            for name in own.intersection(probe["baselines"])
        }
        told = variant_labels(list(networks.values()))
        labels |= {
            name: label + text.removeprefix(METHODS["directcopy"])
            for name, text in zip(networks, told, strict=True)
        }
    return (
        [{**outcome, "label": labels[outcome["name"]]} for outcome in outcomes],
        [{**probe, "label": labels.get(probe["name"], probe["label"])} for probe in probes],
    )


_TEX = str.maketrans(
    {"±": r"$\pm$", "−": "$-$", "—": "--", "†": r"\textdagger{}", "×": r"$\times$"}
    | {"‡": r"\textdaggerdbl{}", "α": r"$\alpha$", "ρ": r"$\rho$", "‖": r"$\|$", "ε": r"$\varepsilon$"}
    | {mark: f"\\{mark}" for mark in "%&_#$"}
)


def to_latex(table: pd.DataFrame, caption: str, notes: Sequence[str] = ()) -> str:
    """A table environment for the booktabs package, columns of numbers flush right, notes below.

    It fits a page of 16 cm with up to 12 columns, the widest ones in the smallest print.
    """
    wide, size, longest = len(table.columns) > 9, r"\small", (99, 99)
    if len(table.columns) > 6:
        longest = (12, 24)  # a column's name, and a cell
        size = r"\tiny\setlength{\tabcolsep}{1.5pt}" if wide else r"\scriptsize\setlength{\tabcolsep}{3pt}"
    sides = ["r" if number else "l" for number in _numbers(table)]
    cells = {}
    for name, side in zip(table.columns, sides, strict=True):
        column = ["—" if pd.isna(cell) else str(cell) for cell in table[name]]
        column = [cell.replace(" ± ", "±") if wide else cell for cell in column]
        name = _broken(str(name), longest[0], f"[b]{{@{{}}{side}@{{}}}}")
        cells[name] = [_broken(cell, longest[1]) for cell in column]
    tabular = pd.DataFrame(cells).style.hide(axis="index").to_latex(hrules=True, column_format="".join(sides))
    lines = [r"\begin{table}[t]", r"\centering", rf"\caption{{{caption.translate(_TEX)}}}"]
    lines += [size, tabular.strip()]
    if notes:
        lines += ["", r"\medskip\footnotesize\raggedright"]
        lines += [rf"{note.translate(_TEX)}\par" for note in notes]
    return "\n".join([*lines, r"\end{table}", ""])


def _broken(text: str, longest: int, place: str = "[t]{@{}l@{}}") -> str:
    """A cell of a LaTeX table; a longer text takes two lines, broken near its middle or at a comma there."""
    spaces = [i for i, letter in enumerate(text) if letter == " "]
    if len(text) <= longest or not spaces:
        return text.translate(_TEX)
    middle = min(spaces, key=lambda i: abs(i - len(text) / 2) - 5 * (text[i - 1] == ","))
    first, second = text[:middle].translate(_TEX), text[middle + 1 :].translate(_TEX)
    return rf"\begin{{tabular}}{place}{first}\\{second}\end{{tabular}}"


def _numbers(table: pd.DataFrame) -> list[bool]:
    """Which columns hold numbers, or that there is none."""
    return [table[name].astype(str).str.match(r"[+−-]?\d|not run$|mixed$|—$").all() for name in table]


def write_table(
    table: pd.DataFrame,
    path: str | Path,
    caption: str,
    notes: Sequence[str] = (),
    data: list[dict] | None = None,
) -> pd.DataFrame:
    """Write PATH.md, PATH.tex and PATH.csv and return the table.

    Args:
        table: as it is shown.
        path: without suffix.
        caption: above the table.
        notes: below it.
        data: the rows of the CSV, where those are not the cells as shown.
    """
    alignment = ["right" if number else "left" for number in _numbers(table)]
    markdown = table.to_markdown(index=False, disable_numparse=True, colalign=alignment)
    text = f"{caption}\n\n{markdown}\n"
    if notes:
        text += "\n" + "".join(f"- {note}\n" for note in notes)
    results.write_text(f"{path}.md", text)
    results.write_text(f"{path}.tex", to_latex(table, caption, notes))
    results.write_csv(f"{path}.csv", table.to_dict("records") if data is None else data)
    return table
