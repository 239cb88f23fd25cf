"""A claim as rows "predicted, measured, relative error, tolerance, pass", and the file of all rows."""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .. import results

CONFIDENCE = 0.999  # of the intervals that statistical rows are held to: about 1 of 1000 fails by chance


@dataclass
class Evidence:
    """What an experiment found: the rows for the table and the arrays for the figure."""

    rows: list[dict]
    data: dict = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return all(row["pass"] is not False for row in self.rows)


def experiment(function):
    """Decorator: stamp each row of the returned Evidence with the seconds that the experiment took."""

    @functools.wraps(function)
    def timed(*args, **kwargs) -> Evidence:
        started = time.perf_counter()
        evidence = function(*args, **kwargs)
        seconds = round(time.perf_counter() - started, 3)
        evidence.rows = [row | {"seconds": seconds} for row in evidence.rows]
        return evidence

    return timed


def exact(claim: int, statement: str, predicted, measured, tolerance: float = 1e-6) -> dict:
    """A row for a deterministic statement; of many cells the worst one is reported.

    The error is relative to the prediction, and absolute where the prediction is 0.

    Args:
        claim: number of the claim.
        statement: one line.
        predicted: number or tensor.
        measured: number or tensor of the same shape.
        tolerance: largest error that passes.

    Returns:
        The row.

    >>> row = exact(1, "one and one", predicted=2.0, measured=2.0000001)
    >>> row["pass"], round(row["relative_error"], 9)
    (True, 5e-08)
    """
    predicted, measured = (torch.as_tensor(v, dtype=torch.float64).cpu() for v in (predicted, measured))
    predicted, measured = torch.broadcast_tensors(predicted, measured)
    error = (measured - predicted).abs() / torch.where(predicted == 0, 1.0, predicted.abs())
    worst = error.nan_to_num(nan=math.inf).flatten().argmax()
    return _row(
        claim,
        statement,
        predicted.flatten()[worst],
        measured.flatten()[worst],
        tolerance,
        error.flatten()[worst],
    )


def statistical(
    claim: int, statement: str, predicted: float, repeats: Tensor, allowance: float = 0.0
) -> dict:
    """A row for a mean over independent repeats, held to its 99.9 % Student interval.

    The tolerance is the half-width of the interval, so few repeats widen it by formula, plus
    `allowance` for the known next order of an asymptotic prediction; all relative to the prediction.

    Args:
        claim: number of the claim.
        statement: one line.
        predicted: number; against 0 the error is absolute.
        repeats: (n,), n >= 2, one measurement each.
        allowance: relative size of the terms that the prediction leaves out.

    Returns:
        The row; `interval` holds the half-width, `repeats` n.

    Raises:
        ValueError: fewer than two repeats.

    >>> row = statistical(9, "a mean", 1.0, torch.tensor([0.9, 1.0, 1.2]))
    >>> row["pass"], row["repeats"]
    (True, 3)
    """
    mean, half = interval(repeats)
    scale = abs(predicted) if abs(predicted) > 1e-9 else 1.0
    row = _row(claim, statement, predicted, mean, half / scale + allowance, abs(mean - predicted) / scale)
    return row | {"interval": half, "repeats": len(repeats)}


def measured_only(claim: int, statement: str, measured) -> dict:
    """A row for a number that no theory here predicts: no tolerance, and neither passed nor failed.

    Args:
        claim: number of the claim.
        statement: one line.
        measured: number.

    Returns:
        The row, with None where the others have a prediction.

    >>> row = measured_only(1, "one", 1.0)
    >>> row["measured"], row["predicted"], row["pass"]
    (1.0, None, None)
    """
    row = _row(claim, statement, 0.0, measured, 0.0, 0.0)
    return row | dict.fromkeys(("predicted", "relative_error", "tolerance", "pass"))


def interval(repeats: Tensor, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Mean of independent repeats and the half-width of its Student interval.

    Args:
        repeats: (n,), n >= 2.
        confidence: of the two-sided interval.

    Returns:
        mean and half-width.

    >>> mean, half = interval(torch.tensor([0.0, 2.0]), confidence=0.95)
    >>> mean, round(half, 3)
    (1.0, 12.706)
    """
    from scipy.stats import t  # a dependency of scikit-learn; the flows need torch alone

    n = len(repeats)
    if n < 2:
        raise ValueError(f"repeats={n} is not allowed: an interval needs at least 2 independent repeats")
    half = t.ppf((1 + confidence) / 2, n - 1) * repeats.std().item() / math.sqrt(n)
    return repeats.mean().item(), float(half)


def table(rows: list[dict]) -> str:
    """Rows as a Markdown table: claim, statement, predicted, measured, error, tolerance, pass.

    >>> print(table([exact(1, "one", 1.0, 1.0)]).splitlines()[-1])
    | 1 | one | 1 | 1 | 0 | 1e-06 | yes |
    """
    lines = [
        "| claim | statement | predicted | measured | error | tolerance | pass |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        measured = f"{row['measured']:.6g}"
        if row["repeats"] > 1:
            measured = f"{row['measured']:.4g} ± {row['interval']:.2g} (n = {row['repeats']})"
        if row["pass"] is None:
            judged = ("—", measured, "—", "—", "measured only")
        else:
            judged = (
                f"{row['predicted']:.6g}",
                measured,
                f"{row['relative_error']:.2g}",
                f"{row['tolerance']:.2g}",
                "yes" if row["pass"] else "**NO**",
            )
        cells = (f"{row['claim']}", row["statement"], *judged)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def overview(rows: list[dict]) -> str:
    """A row for each claim, as a Markdown table: predictions, how many were met, the largest error.

    >>> print(overview([exact(1, "one", 1.0, 1.0), exact(1, "two", 2.0, 2.0)]).splitlines()[-1])
    | 1 | 2 | 2 | 0 |
    """
    lines = ["| claim | predictions | met | largest error |", "|---|---|---|---|"]
    judged = [row for row in rows if row["pass"] is not None]  # the others are measured only
    for claim in sorted({row["claim"] for row in judged}):
        own = [row for row in judged if row["claim"] == claim]
        worst = max(row["relative_error"] for row in own)
        lines.append(f"| {claim} | {len(own)} | {sum(row['pass'] for row in own)} | {worst:.2g} |")
    return "\n".join(lines)


def _row(claim, statement, predicted, measured, tolerance, error) -> dict:
    return {
        "claim": claim,
        "statement": statement,
        "predicted": float(predicted),
        "measured": float(measured),
        "relative_error": float(error),
        "tolerance": float(tolerance),
        "pass": bool(error <= tolerance),
        "interval": 0.0,
        "repeats": 1,
    }


def record(rows: list[dict], results_dir: str | Path, notebook: str, device="cpu") -> Path:
    """Put a notebook's rows into theory/claims.csv, with their origin in theory/claims.json.

    The rows of other notebooks stay; two notebooks that finish together wait for each other.

    Args:
        rows: rows of this notebook, replacing its earlier ones.
        results_dir: the folder of the preset.
        notebook: name, the key in claims.json.
        device: where the experiments ran.

    Returns:
        Path of claims.csv.

    Raises:
        ValueError: a row fails; raised after both files are written, naming every failing row.
    """
    folder = Path(results_dir) / "theory"
    with results.locked(folder, wait=True):
        path = folder / "claims.json"
        known = results.read_json(path) if path.exists() else {}
        known[notebook] = {"provenance": results.provenance(device), "rows": rows}
        results.write_json(path, dict(sorted(known.items())))
        table = [row for part in known.values() for row in part["rows"]]
        results.write_csv(folder / "claims.csv", sorted(table, key=lambda row: row["claim"]))
    failing = [row for row in rows if row["pass"] is False]
    if failing:
        lines = (
            f"claim {r['claim']} ({r['statement']}): predicted {r['predicted']:.9g}, "
            f"measured {r['measured']:.9g}, error {r['relative_error']:.2g} > {r['tolerance']:.2g}"
            for r in failing
        )
        raise ValueError(f"{len(failing)} of {len(rows)} rows fail:\n" + "\n".join(lines))
    return folder / "claims.csv"
