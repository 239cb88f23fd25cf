"""Does a run reproduce the reference? Number by number, and in one sentence.

A number is an accuracy of one configuration or baseline, a mean over seeds. The question is whether reference
and rerun may be draws from one normal distribution: Student's test of two means with pooled variance, and
Bonferroni's correction for all numbers of the preset. What is deterministic has tolerances of its own: the
theory's claims, and the probes of a run that has the reference's weights to the bit.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t as student

from .. import results
from ..config import TrainConfig
from ..evaluation import evaluate
from ..workflow import plan
from . import tables

ALPHA = 0.025  # of honest reruns are called wrong; less than 5 % where accuracies are not quite normal
KEY = ["setting", "number"]


def critical(n1, n2, count: int):
    """Standard errors that means of n1 and of n2 values may lie apart, where `count` numbers are judged."""
    return student.isf(ALPHA / 2 / max(count, 1), np.maximum(np.add(n1, n2) - 2, 1))


def standard_error(std1, n1, std2, n2, floor):
    """Of the difference of two means, from their pooled variance, which is floor² at least.

    The arguments broadcast; the std of a single value is NaN, and so is the result for two of them.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        squares = np.nan_to_num(np.square(std1)) * (n1 - 1) + np.nan_to_num(np.square(std2)) * (n2 - 1)
        variance = np.maximum(squares / (n1 + n2 - 2), np.square(floor))
        return np.where(n1 + n2 > 2, np.sqrt(variance * (1 / n1 + 1 / n2)), np.nan)


def measured(folder: Path, runs: list[str] | None = None) -> tuple[pd.DataFrame, list[dict]]:
    """The accuracies in `folder`, and the records that they are from.

    Returns:
        A row a setting (JSON: all but the seed), number and seed: label, value in percent, weights (the
        fingerprint of the encoder), test (how many test images). And the records.
    """
    outcomes, probes = evaluate.load_results(folder, runs)
    configs = {one["name"]: TrainConfig.from_dict(one["config"]) for one in outcomes}
    labels = dict(zip(configs, tables.variant_labels(list(configs.values())), strict=True))
    rows, networks = [], {}
    for probe in probes:
        if config := configs.get(probe["name"]):
            fields = {name: getattr(config, name) for name in tables.NETWORK}
            networks |= dict.fromkeys(probe["baselines"], fields)
    for probe in sorted(probes, key=lambda probe: tables.ORDER.index(probe["method"])):
        config, label = configs.get(probe["name"]), labels.get(probe["name"], probe["label"])
        if config:
            setting = dataclasses.replace(config, seed=0, data_fingerprint="").to_dict()
        else:
            setting = networks[probe["name"]] | {"baseline": label}
        frame = tables.probe_frame([probe]).drop(columns=["label", "method", "dataset", "seed", "converged"])
        # Numbers of labels are compared one by one, so it does not matter which others there are.
        protocol = {name: value for name, value in probe["protocol"].items() if name != "labels_per_class"}
        shared = {"setting": json.dumps(setting | {"probe": protocol}), "label": label}
        shared |= {"seed": probe["seed"], "weights": probe["encoder_fingerprint"]}
        shared |= {"test": probe["protocol"]["test"]}
        rows += [shared | {"number": number, "value": value} for number, value in frame.iloc[0].items()]
    return pd.DataFrame(rows), [*outcomes, *probes]


def accuracies(ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """A row a number that both have: mean, std and n of each, and whether their difference is allowed.

    `agrees` is None where one seed stands against one, for then nothing says how far they may lie apart.
    """
    table = _means(ours, "ours").join(_means(theirs, "theirs"), how="inner")
    if table.empty:
        return table.reset_index()
    n, test = (table["ours_n"], table["theirs_n"]), ours.groupby(KEY)["test"].first()
    table["label"] = ours.groupby(KEY)["label"].first()
    table["difference"] = table["theirs"] - table["ours"]
    floor = 100 / test.reindex(table.index)  # a test image
    table["error"] = standard_error(table["ours_std"], n[0], table["theirs_std"], n[1], floor)
    pairs = _same_runs(ours, theirs)
    same = pairs.groupby(KEY)["value_ours"].count().reindex(table.index, fill_value=0) == n[1]
    wrong = pairs[(pairs["value_theirs"] - pairs["value_ours"]).abs() > pairs["allowed"]]
    drawn = ~same & table["error"].notna()
    table["allowed"] = table["error"] * critical(*n, int(drawn.sum()))
    agrees = (table["difference"].abs() <= table["allowed"]).astype(object)
    agrees[~same & ~drawn] = None
    agrees[same] = True
    agrees[table.index.isin(pd.MultiIndex.from_frame(wrong[KEY]))] = False
    return table.assign(agrees=agrees, held_to=np.where(same, "the same weights", "seeds")).reset_index()


def _means(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    found = frame.groupby(KEY, sort=False)["value"].agg(["mean", "std", "count"])
    return found.rename(columns={"mean": name, "std": f"{name}_std", "count": f"{name}_n"})


def _same_runs(ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """Numbers, seed by seed, of runs with our weights to the bit and, for the most part, with our numbers.

    Another processor or library gives other weights, so such a run is deterministic, and each number of it
    may differ (`allowed`) by two standard errors of its test images alone: rounding may tip the choice of C.
    """
    pairs = ours.merge(theirs, on=[*KEY, "seed", "weights"], suffixes=("_ours", "_theirs"))
    equal = np.isclose(pairs["value_ours"], pairs["value_theirs"])
    runs = [pairs["setting"], pairs["seed"]]
    pairs = pairs[pd.Series(equal, pairs.index).groupby(runs).transform("mean") >= 0.5].copy()
    share = (pairs["value_ours"] / 100).clip(1 / pairs["test_ours"], 1 - 1 / pairs["test_ours"])
    pairs["allowed"] = 200 * np.sqrt(share * (1 - share) / pairs["test_ours"])
    return pairs


def theory(ours: Path, theirs: Path) -> list[dict]:
    """The claims of the theory that both have: both measurements, and whether they agree."""
    rows, known = [], {(row["claim"], row["statement"]): row for row in _claims(ours)}
    for row in _claims(theirs):
        own = known.get((row["claim"], row["statement"]))
        if own is None:
            continue
        agrees = None  # measured only
        if None not in (row["tolerance"], own["tolerance"]):
            scale = abs(own["predicted"]) if abs(own["predicted"]) > 1e-9 else 1.0
            apart = abs(row["measured"] - own["measured"]) / scale
            agrees = bool(row["pass"] and apart <= row["tolerance"] + own["tolerance"])
        named = {"label": f"claim {row['claim']} of the theory", "number": row["statement"]}
        sides = {"ours": own["measured"], "theirs": row["measured"]}
        rows.append(named | sides | {"agrees": agrees, "held_to": "its own tolerance"})
    return rows


def _claims(folder: Path) -> list[dict]:
    path = folder / "theory" / "claims.json"
    return [row for part in results.read_json(path).values() for row in part["rows"]] if path.exists() else []


def differing(ours: list[dict], theirs: list[dict]) -> list[str]:
    """What of versions, device, precision, data and health is not the same on both sides, theirs first."""
    found = []
    for name, values in _origins(theirs).items():
        reference = _origins(ours).get(name, set())
        if values and reference and not values <= reference:
            found.append(
                f"{name} {' and '.join(sorted(values))} (reference: {' and '.join(sorted(reference))})"
            )
    return found


def _origins(records: list[dict]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for record in records:
        origin = record["versions"] | {"commit": record["commit"], "device": record["device"]}
        if "config" in record:
            origin |= {"precision": results.precision(record), "data": record.get("data_fingerprint")}
            label = TrainConfig.from_dict(record["config"]).label
            origin |= {f"health of {label}": record["metrics"]["verdict"]}
        for name, value in origin.items():
            found.setdefault(name, set()).update({value} - {None})
    return found


def changed(ours: pd.DataFrame, theirs: pd.DataFrame) -> list[str]:
    """Each setting of theirs that the reference lacks, by what differs from the most similar one it has."""
    known = [_flat(setting) for setting in ours["setting"].unique()]
    found = {}
    for setting, rows in theirs[~theirs["setting"].isin(ours["setting"])].groupby("setting", sort=False):
        own = _flat(setting)
        kind = [
            one
            for one in known
            if ("baseline" in one, one.get("dataset")) == ("baseline" in own, own["dataset"])
        ]
        gaps = [{k: (own.get(k), one.get(k)) for k in own | one if own.get(k) != one.get(k)} for one in kind]
        gap = min(gaps, key=len, default={"dataset": (own["dataset"], "others")})
        words = ", ".join(f"{name}={value} instead of {other}" for name, (value, other) in gap.items())
        found.setdefault(words, []).append(rows["label"].iloc[0])
    return [f"{words} ({', '.join(dict.fromkeys(labels))})" for words, labels in found.items()]


def _flat(setting: str) -> dict:
    values = json.loads(setting)
    return values | values.pop("probe")


def check(folder: Path, reference: Path, runs: list[str] | None = None) -> dict:
    """Hold the runs in `folder` against the reference: verdict (a sentence), reproduced, numbers, differs.

    Args:
        folder: of a preset.
        reference: its committed folder.
        runs: names of those that belong here, which the verdict says where some are missing; default: all in
            `folder`.

    Raises:
        ValueError: nothing is there to compare, on either side.
    """
    here = [name for name in runs or [] if (folder / "runs" / name / "probe.json").exists()]
    absent = [name for name in runs or [] if name not in here]
    if absent and not here:
        command = f"`bash run_all.sh {folder.name}` makes them"
        raise ValueError(f"{plan.shortest(folder)} holds none of the preset's runs; {command}")
    if not any(reference.glob("runs/*/result.json")):
        raise ValueError(f"there is no reference of {folder.name} to hold a run against")
    (ours, our_records), (theirs, their_records) = measured(reference), measured(folder, here)
    numbers = [
        *accuracies(ours, theirs).replace({np.nan: None}).to_dict("records"),
        *theory(reference, folder),
    ]
    other, differs = changed(ours, theirs), differing(our_records, their_records)
    missing = ours[~ours["setting"].isin(theirs["setting"])].drop_duplicates("setting")["label"].tolist()
    claims, found = ([(row["claim"], row["statement"]) for row in _claims(f)] for f in (reference, folder))
    unproved = [claim for claim in claims if claim not in found]
    judged = [row for row in numbers if row["agrees"] is not None]
    wrong = [row for row in judged if not row["agrees"]]
    agree = f"{len(judged) - len(wrong)} of {len(judged)} numbers agree"
    if other:
        verdict = f"not comparable: {'; '.join(other)}" + f"; of the others {agree}" * bool(judged)
    elif not judged:
        verdict = "not comparable: a single seed on both sides says nothing"
    else:
        verdict = f"reproduced: {agree}" if not wrong else f"not reproduced: {agree}"
    if wrong:
        verdict += (
            f", not {'; '.join(map(told, wrong))}. What differs: {'; '.join(differs) or 'nothing known'}"
        )
    if absent:
        verdict += f"; {len(absent)} of {len(runs)} runs are missing, such as {absent[0]}"
    if unproved:
        missing.append(f"{len(unproved)} of {len(claims)} numbers of the theory")
        verdict += f"; {missing[-1]} are missing"
    return {
        "verdict": verdict,
        "reproduced": None if other or not judged else not wrong,
        "differs": differs,
        "not run": missing,
        "numbers": numbers,
        "provenance": results.provenance(),
    }


def told(row: dict) -> str:
    """A number of theirs beside ours, in words."""
    if "error" not in row:
        return f"{row['label']}, {row['number']}: {row['theirs']:.6g} (reference: {row['ours']:.6g})"
    here, there = (f"{side(row, name)}, n = {row[f'{name}_n']}" for name in ("theirs", "ours"))
    how = f"{apart(row)} standard errors apart" if row["held_to"] == "seeds" else "from the same weights"
    return f"{row['label']}, {row['number']}: {here} (reference: {there}, {how})"


def side(row: dict, name: str) -> str:
    """Mean ± std of "ours" or "theirs"."""
    std = row[f"{name}_std"]
    return f"{row[name]:.1f}" + (f" ± {std:.1f}" if std is not None else "")


def apart(row: dict) -> str:
    """How many standard errors lie between both means."""
    return "—" if row["error"] is None else f"{abs(row['difference']) / row['error']:.1f}"
