"""Tables and figures anew from result files alone: the notebooks that train nothing, executed again."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

from ... import results
from ...workflow import plan
from ...workflow.outcome import say
from .. import published

READERS = ("01_linear_theory", "02_sample_complexity", "05_paper_tables", "06_ablations")


def places(folder: Path) -> list[Path]:
    """Where a preset's results are; of two files with one name, the one in the later place counts.

    Its own folder if a run has finished or a notebook has run there. Else the reference, and over it
    what was made anew from that, in `folder/anew/NAME`: a folder of the preset's name, so the notebooks
    read the reference, too.

    Raises:
        ValueError: nothing has been run and there is no reference.
    """
    own = results.own_or_reference(folder)
    if not any(own.glob("*/*")):
        shown = plan.shortest(folder)
        raise ValueError(f"{shown} holds no results to show; `bash run_all.sh {folder.name}` makes them")
    if own == folder or any(folder.glob("notebooks/*.ipynb")):
        return [folder]
    return [own, folder / "anew" / folder.name]


def remake(preset: str, options: list[str], folder: Path) -> list[str]:
    """Execute the notebooks of a preset that train nothing, over the runs that are finished.

    Args:
        preset: its name.
        options: what it was run with.
        folder: of its results.

    Returns:
        Names of the notebooks that failed; each has said why.

    Raises:
        ValueError: a file of a run is cut off.
    """
    source, target = (found := places(folder))[0], found[-1]
    for path in source.glob("runs/*/*.json"):
        results.read_json(path)  # one that is cut off is told before minutes are spent
    probed = {path.parent.name for path in source.glob("runs/*/probe.json")}
    failed = []
    for job in plan.jobs(preset, options, plan.shortest(target)):
        if job.notebook not in READERS:
            continue
        if "runs" in job.parameters:
            if not probed:
                continue
            names = [name for name in job.parameters["runs"] if name in probed]  # none: all that are there
            job = dataclasses.replace(job, parameters=job.parameters | {"runs": names})
        words = ["--results-dir", job.results_dir, *job.arguments()]
        command = [sys.executable, "-m", "dcopy.workflow.notebook", *words]
        if subprocess.run(command, cwd=plan.ROOT, env=os.environ | {"PYTHONUTF8": "1"}).returncode:
            failed.append(job.name)
        elif source != target:
            keep_what_is_lost(source, target, job.name)
    return failed


def keep_what_is_lost(source: Path, target: Path, name: str) -> None:
    """Take back what the files no longer hold, as what takes weights that were not passed on."""
    kept = [path for path in source.glob("tables/*.md") if published.NOT_RUN not in _text(path)]
    lost = [path.stem for path in kept if published.NOT_RUN in _text(target / "tables" / path.name)]
    for stem in lost:
        for path in (*target.glob(f"tables/{stem}.*"), *target.glob(f"figures/{stem}.*")):
            path.unlink()
    if lost:
        (target / "notebooks" / f"{name}.ipynb").unlink(missing_ok=True)
        say(f"{', '.join(lost)}: not in the result files alone; table, figure and page stay as committed")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""
