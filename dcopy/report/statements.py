"""What the notebooks claim, a sentence each, and what the files of a preset say of it."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Claim:
    """A row of the first table, and which numbers of which file stand behind it."""

    statement: str
    notebook: str
    paper: str = ""  # where it was made before
    preset: str = "quick"  # whose files
    theory: tuple[int, ...] = ()  # claims in theory/claims.csv
    column: str = ""  # of tables/`table`.csv
    methods: tuple[str, ...] = ()  # rows of it
    table: str = "methods"
    measured: str = ""  # how the statements of the rows begin that are only measured


CLAIMS = (
    Claim(
        "Weight decay η is a threshold: a feature of variance σ² survives only if η ≤ 1/(4(1 + σ²))",
        "01_linear_theory",
        "abstract",
        theory=(1, 2, 4),
    ),
    Claim(
        "DirectSet(α) learns to project onto what augmentation leaves alone",
        "01_linear_theory",
        "Theorem 1†",
        theory=(3,),
    ),
    Claim(
        "With q₋ < ε < q₊ DirectCopy leaves any small start, and features above their threshold still die",
        "01_linear_theory",
        theory=(5,),
    ),
    Claim(
        "Without predictor or stop-gradient, training collapses",
        "01_linear_theory",
        "Tian et al., Theorem 2",
        theory=(6,),
    ),
    Claim(
        "What EMA, random starts, other powers of F and depth change",
        "01_linear_theory",
        theory=(7, 8, 12),
    ),
    Claim(
        "The labels needed grow with the rank of the projection, not with the input's dimension",
        "02_sample_complexity",
        "abstract",
        theory=(10,),
    ),
    Claim("What finite data and SGD change", "02_sample_complexity", theory=(9, 11)),
    Claim(
        "With the cosine loss and ε = 0, weight decay only shrinks W: no threshold, no collapse",
        "08_theory_and_network",
        theory=(13,),
    ),
    Claim(
        "Digits over time: the share of F's trace that the flow puts elsewhere",
        "08_theory_and_network",
        theory=(14,),
        measured="digits: share of F's trace",
    ),
    Claim(
        "Digits: training collapses without a predictor, but not with DirectCopy",
        "03_pretrain",
        column="health (no labels used)",
        methods=("DirectCopy", "no predictor"),
    ),
    Claim(
        "Digits, % with one label per class: DirectCopy keeps up with DirectPred",
        "04_linear_probe",
        "abstract",
        column="1 a class",
        methods=("DirectCopy", "DirectPred", "raw pixels", "random encoder"),
    ),
    Claim(
        "Digits, % with one label per class: DirectCopy works in lightly's BYOL and SimSiam",
        "07_your_own_trainer",
        column="1 a class",
        methods=(
            "BYOL with lightly's head",
            "BYOL with DirectCopy",
            "SimSiam with lightly's head",
            "SimSiam with DirectCopy",
        ),
        table="own-trainer",
    ),
    Claim(
        "CIFAR-10, % with all labels, small network, 16 epochs: DirectCopy beside DirectPred",
        "05_paper_tables",
        "abstract",
        preset="cifar10-small",
        column="all labels",
        methods=(
            "DirectCopy",
            "DirectPred",
            "SGD linear predictor",
            "no predictor",
            "raw pixels",
            "random encoder",
        ),
    ),
)


def here(claim: Claim, place: Path) -> str:
    """What the files in a preset's folder say of a claim; '' where it was not run."""
    if claim.column:
        methods = {row["method"]: row for row in read_csv(place / "tables" / f"{claim.table}.csv")}
        found = {name: methods.get(name, {}).get(claim.column) for name in claim.methods}
        return ", ".join(f"{name} {value}" for name, value in found.items() if value is not None)
    rows = read_csv(place / "theory" / "claims.csv")
    own = [row for row in rows if int(row["claim"]) in claim.theory]
    if claim.measured:
        shown = [row for row in own if row["statement"].startswith(claim.measured)]
        found = {row["statement"].split("; ")[-1]: float(row["measured"]) for row in shown}
        return "; ".join(f"{name} {value:.2f}" for name, value in found.items())
    own = [row for row in own if row["pass"]]  # the others are measured only
    if not own:
        return ""
    met = sum(row["pass"] == "True" for row in own)
    worst = max(float(row["relative_error"]) for row in own)
    return f"{met} of {len(own)} met, error up to {worst:.1g}"


def read_csv(path: Path) -> list[dict]:
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
