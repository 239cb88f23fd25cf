"""Table and figure of a check against the reference, see `reproduction`."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import t as student

from .reproduction import apart, side

OUTCOMES = {  # agrees: in words, and its colour
    True: ("agrees", "#0072B2"),
    None: ("not judged", "#7F7F7F"),
    False: ("does not agree", "#D55E00"),
}


def table(record: dict) -> pd.DataFrame:
    """The accuracies of a check, those that do not agree first."""
    rows = [row for row in record["numbers"] if "error" in row]
    return pd.DataFrame(
        {
            "setting": row["label"],
            "number": row["number"],
            "reference": side(row, "ours"),
            "n": row["ours_n"],
            "here": side(row, "theirs"),
            "n here": row["theirs_n"],
            "standard errors apart": apart(row),
            "held to": row["held_to"],
            "verdict": OUTCOMES[row["agrees"]][0],
        }
        for row in sorted(rows, key=lambda row: row["agrees"] is not False)
    )


def figure(record: dict) -> Figure:
    """Left: ours against theirs, with 95 % intervals; right: the differences, with what seeds allow."""
    frame = pd.DataFrame([row for row in record["numbers"] if "error" in row])
    labels, numbers = list(dict.fromkeys(frame["label"])), list(dict.fromkeys(frame["number"]))
    picture, (means, gaps) = plt.subplots(1, 2, figsize=(9.6, max(3.6, 1 + 0.4 * len(labels))))
    for agrees, (word, color) in OUTCOMES.items():
        own = frame[[value is agrees for value in frame["agrees"]]]
        if own.empty:
            continue
        half = [_half(own[f"{name}_std"], own[f"{name}_n"]) for name in ("ours", "theirs")]
        style = {"color": color, "fmt": "o", "ms": 3, "elinewidth": 0.8}
        means.errorbar(own["ours"], own["theirs"], xerr=half[0], yerr=half[1], label=word, **style)
        place = own["label"].map(labels.index) + 0.7 * (own["number"].map(numbers.index) / len(numbers) - 0.4)
        allowed = own["allowed"].where(own["held_to"] == "seeds").astype(float)
        gaps.errorbar(own["difference"], place, xerr=allowed, **style)
    ends = [frame[["ours", "theirs"]].to_numpy().min(), frame[["ours", "theirs"]].to_numpy().max()]
    means.plot(ends, ends, color="black", lw=0.9, ls=":")
    means.set(xlabel="reference, %", ylabel="here, %")
    means.legend()
    gaps.axvline(0, color="black", lw=0.9, ls=":")
    gaps.set_yticks(range(len(labels)), labels)
    gaps.invert_yaxis()
    gaps.set(xlabel="here minus reference, points")
    return picture


def _half(std: pd.Series, n: pd.Series) -> pd.Series:
    """Half the 95 % interval of a mean; NaN for a single value."""
    return student.ppf(0.975, (n - 1).clip(lower=1)) * std.astype(float) / np.sqrt(n)
