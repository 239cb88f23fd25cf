"""From the runs of the ablations preset to frames and to one sentence per finding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from .. import results
from ..config import METHODS, TrainConfig
from ..evaluation.evaluate import load_results
from ..evaluation.variance import summarize
from ..workflow import presets
from ..workflow.presets import ABLATED, ABLATIONS

TITLES = {  # in words, for figures and sentences
    "eps": "ε and the scale of F",
    "rho": "ρ, the memory of F",
    "alpha": "α, the power of F",
    "weight_decay": "weight decay η",
    "ema": "momentum of the target",
    "batchnorm": "BatchNorm statistics",
    "target_start": "start of the target",
    "freq": "steps between two settings of W_p",
    "linear": "learned linear predictor: EMA, bias, symmetry",
    "precision": "precision of the networks",
}


BESIDE = {"digits": "ablations", "CIFAR-10": "ablations-cifar10-small"}  # data: preset
COMPARED = ("eps", "weight_decay", "ema")
DIRECTIONS = {  # columns of `variance_summary`, in words
    "healthy": "of these healthy",
    "sigma2_survivors": "median σ² of these",
    "falls": "seeds in which it is below the first row's",
    "sigma2_dropped": "median σ² of the others",
    "rank_correlation": "rank correlation",
}


def ablation_frame(outcomes: list[dict], probes: list[dict]) -> pd.DataFrame:
    """One row a run: its configuration, health and accuracy in percent.

    The accuracy is the linear probe's with the number of labels (column `labels`) with which
    representations differ most: one per class on digits, all on photographs.

    Args:
        outcomes: contents of result.json files.
        probes: contents of probe.json files; runs without one are left out.

    Raises:
        ValueError: the runs differ in what no ablation varies, such as epochs; the message names it.
    """
    by_name = {probe["name"]: probe for probe in probes}
    rows, configs = [], []
    for outcome in outcomes:
        if outcome["name"] in by_name:
            probe, health = by_name[outcome["name"]], outcome["metrics"]
            points = {p["labels_per_class"]: p["accuracy_mean"] for p in probe["label_efficiency"]}
            config = TrainConfig.from_dict(outcome["config"])  # older files lack some fields
            configs.append(config)
            digits = config.dataset == "digits"
            rows.append(
                {
                    **config.to_dict(),
                    "precision": results.precision(outcome),
                    "asked": config.precision,
                    "name": outcome["name"],
                    "labels": "one label per class" if digits else "all labels",
                    "accuracy": 100 * (points[1] if digits else probe["linear"]["accuracy"]),
                    "effective_rank": health["effective_rank"],
                    "projection_std": health["projection_std"],
                    "verdict": health["verdict"],
                    "spectrum": health["spectrum"],
                }
            )
    presets.require_alike(configs)
    return pd.DataFrame(rows)


def select(frame: pd.DataFrame, ablation: str) -> pd.DataFrame:
    """The rows of one ablation, in its order, with a column `setting`; empty where nothing was varied.

    Runs that left their precision to the machine belong to the others, whichever it chose.
    """
    shared = {"precision": frame["precision"].mode()[0]}  # of all but the ablation of precision itself
    if ablation != "precision":
        chosen_here = frame["precision"].where(frame["asked"] != "auto", shared["precision"])
        frame = frame.assign(precision=chosen_here)
    configs = [TrainConfig(**shared | variant) for variant in ABLATIONS[ablation]]
    wanted = {configuration(config.to_dict()) for config in configs}
    chosen = frame[[configuration(row) in wanted for _, row in frame.iterrows()]]
    order = [configuration(config.to_dict()) for config in configs]
    place = [order.index(configuration(row)) for _, row in chosen.iterrows()]
    chosen = chosen.assign(place=place, setting=[_setting(ablation, row) for _, row in chosen.iterrows()])
    if chosen["setting"].nunique() < 2:  # the default alone, which belongs to every ablation
        chosen = chosen[:0]
    return chosen.sort_values(["place", "seed"]).drop(columns="place")


def configuration(values) -> tuple:
    """The fields that some ablation varies, of a configuration or a row of the frame."""
    found = (values[field] for field in ABLATED)
    return tuple(None if value != value else value for value in found)  # a frame has NaN for None


def _setting(ablation: str, row: pd.Series) -> str:
    """What sets a run apart within its ablation, for an axis or a sentence."""
    if row["method"] == "simsiam":
        return METHODS["simsiam"]
    if ablation == "eps":
        return f"ε = {row['eps']:g}, scale {row['normalize']}"
    if ablation == "linear":
        target = "EMA" if row["ema"] > 0 else "no EMA"
        bias = "bias" if row["predictor_bias"] else "no bias"
        return f"{target}, {'symmetric' if row['predictor_symmetric'] else 'regular'}, {bias}"
    return short(row[ablation])


def short(value: str | float) -> str:
    """A setting for an axis or a sentence.

    >>> short(0.00004), short(0.3), short("copy")
    ('4e-5', '0.3', 'copy')
    """
    return value if isinstance(value, str) else f"{value:g}".replace("e-0", "e-")


def finding(frame: pd.DataFrame, ablation: str) -> dict:
    """One sentence about an ablation, computed from its runs: best, worst, and is it more than noise?

    The difference is paired: the same seeds, hence the same noise, in both settings. A seed that lacks
    a setting is left out. It is called clear where `range_test` gives less than 0.05.
    """
    chosen = select(frame, ablation)
    table = chosen.pivot_table(index="seed", columns="setting", values="accuracy", sort=False).dropna()
    if table.shape[1] < 2 or table.empty:
        return {"ablation": ablation, "sentence": f"{TITLES[ablation]}: not run."}
    means = table.mean()
    best, worst = means.idxmax(), means.idxmin()
    gap = table[best] - table[worst]
    difference, error, n = float(gap.mean()), float(gap.sem()), len(gap)
    found = {"best": best, "worst": worst, "difference": round(difference, 3), "n": n}
    sentence = (
        f"{TITLES[ablation]}: {best} is best ({means[best]:.1f} %), {worst} worst ({means[worst]:.1f} %); "
    )
    if n > 1:
        p = range_test(table)
        clear = p < 0.05
        found |= {"standard_error": round(error, 3), "p": float(f"{p:.2g}"), "clear": clear}
        sentence += (
            f"the difference of {difference:.1f} ± {error:.1f} points (paired, n = {n}, "
            f"p {f'= {p:.2g}' if p >= 0.001 else '< 0.001'}) is {'clear' if clear else 'within the noise'}"
        )
    else:
        sentence += f"one seed cannot tell the difference of {difference:.1f} points from noise"
    unwell = chosen[chosen["verdict"] != "healthy"]["setting"].unique().tolist()
    if len(unwell) == len(means):
        sentence += "; no setting is healthy in every seed."
    else:
        sick = f"; some runs with the setting {' or '.join(unwell)} are not healthy."
        sentence += sick if unwell else "; all runs are healthy."
    return {"ablation": ablation, "sentence": sentence, **found}


def beside(root: Path) -> dict[str, pd.DataFrame]:
    """The frame of each data set in BESIDE that has finished runs under `root`: the preset's own, or all."""
    frames = {}
    for name, preset in BESIDE.items():
        folder = results.own_or_reference(root / preset)
        runs = [run.name for run in presets.get(preset).runs()]
        runs = [run for run in runs if (folder / "runs" / run / "probe.json").exists()]
        if any(folder.glob("runs/*/result.json")):
            frames[name] = ablation_frame(*load_results(folder, runs))
    return frames


def side_by_side(frames: dict[str, pd.DataFrame]) -> list[dict]:
    """For each ablation: the best setting on each data set, and whether the settings are ranked alike.

    Spearman's rank correlation of the means, over the settings that all data sets have: they agree above
    0.5 and disagree below 0.
    """
    rows = []
    for ablation in COMPARED:
        means = {name: _means(frames[name], ablation) if name in frames else pd.Series() for name in BESIDE}
        row = {"ablation": TITLES[ablation]}
        row |= {f"best on {name}": _best(mean) for name, mean in means.items()}
        both = pd.DataFrame(means).dropna()
        row |= {"settings in both": len(both), "rank correlation": "—", "verdict": "not run on both"}
        if len(both) > 1:
            correlation = both.rank().corr().iloc[0, 1]
            verdict = "agree" if correlation > 0.5 else "disagree" if correlation < 0 else "unclear"
            row |= {"rank correlation": f"{correlation:+.2f}".replace("-", "−"), "verdict": verdict}
        rows.append(row)
    return rows


def _means(frame: pd.DataFrame, ablation: str) -> pd.Series:
    return select(frame, ablation).groupby("setting", sort=False)["accuracy"].mean()


def _best(means: pd.Series) -> str:
    return "not run" if means.empty else f"{means.idxmax()} ({means.max():.1f} %)"


def range_test(table: pd.DataFrame) -> float:
    """How often chance alone would set best and worst of these settings as far apart: a p-value.

    Tukey's test of the studentized range, which allows for both having been picked among all settings;
    the seeds are blocks of a two-way layout. It assumes the same noise in every setting.

    Args:
        table: a row a seed, at least two, and a column a setting, at least two.
    """
    from scipy.stats import studentized_range  # a dependency of scikit-learn

    n, k = table.shape
    values = table.to_numpy()
    means = values.mean(axis=0)  # (k,)
    residuals = values - means - values.mean(axis=1, keepdims=True) + values.mean()  # (n, k)
    degrees = (n - 1) * (k - 1)
    error = ((residuals**2).sum() / degrees / n) ** 0.5  # of a setting's mean
    return float(studentized_range.sf(np.ptp(means) / max(error, 1e-9), k, degrees))


def symmetry_finding(frame: pd.DataFrame) -> str:
    """Table 3 of Tian et al., without EMA: is a symmetric learned W_p worse than a regular one?"""
    chosen = select(frame, "linear")
    chosen = chosen[chosen["ema"] == 0]
    if chosen["predictor_symmetric"].nunique() < 2:
        return "Symmetry without EMA: not run."
    table = chosen.pivot_table(
        index=["seed", "predictor_bias"], columns="predictor_symmetric", values="accuracy"
    )
    gap = (table[True] - table[False]).groupby("seed").mean().dropna()
    if len(gap) < 2:
        return "Symmetry without EMA: not run with two seeds."
    told = "as they find" if gap.mean() < 0 else "the reverse of what they find on STL-10"
    if gap.min() < 0 < gap.max():
        told = "which the seeds do not decide"
    return (
        f"Without EMA, symmetric minus regular is {gap.mean():.1f} ± {gap.sem():.1f} points (paired, "
        f"n = {len(gap)}), {told}."
    )


def variance_summary(decay: pd.DataFrame, records: dict[str, dict]) -> pd.DataFrame:
    """`variance.summarize` of every run of the weight-decay ablation, mean over seeds, a row a setting.

    Beside it the number of runs, of healthy ones, and of seeds in which the survivors' σ² is below that
    of the same seed in the first setting.
    """
    if decay.empty:
        return pd.DataFrame({"weight decay": ["not run"]})
    summaries = pd.DataFrame([summarize(records[name]) for name in decay["name"]], dtype=float)
    own = decay.reset_index(drop=True).join(summaries)
    first = own[own["setting"] == own["setting"][0]].set_index("seed")["sigma2_survivors"]
    own = own.assign(
        **{"weight decay": own["setting"].astype(str), "runs": 1, "healthy": own["verdict"] == "healthy"},
        falls=own["sigma2_survivors"] < own["seed"].map(first),
    )
    by = own.groupby("weight decay", sort=False)
    table = by[["runs", "healthy"]].sum().join(by[[*summaries]].mean().round(3))
    table.insert(list(table).index("sigma2_survivors") + 1, "falls", by["falls"].sum())
    return table.reset_index()


def variance_finding(decay: pd.DataFrame, records: dict[str, dict]) -> dict:
    """Whether eigenvalue and variance under augmentation are ordered as the theory says, in one sentence.

    The theory's sign of the rank correlation is negative: the more variance, the smaller the eigenvalue.
    """
    found = {"ablation": "surviving directions"}
    if decay.empty:
        return found | {"sentence": "Surviving directions: not run."}
    summaries = [summarize(records[name]) for name in decay["name"]]
    correlations = pd.Series([summary["rank_correlation"] for summary in summaries], dtype=float).dropna()
    if correlations.empty:
        return found | {"sentence": "Surviving directions: every run collapsed to one point."}
    agree = int((correlations < 0).sum())
    sentence = (
        f"Surviving directions: the rank correlation of eigenvalue and σ² is {correlations.mean():.2f} on "
        f"average, from {correlations.min():.2f} to {correlations.max():.2f}; {agree} of {len(correlations)} "
        "runs have the sign of the theory (negative)."
    )
    if undefined := len(summaries) - len(correlations):
        sentence += f" For {undefined} more, collapsed to one point, it is undefined."
    return found | {"sentence": sentence, "rank_correlations": correlations.round(3).tolist()}
