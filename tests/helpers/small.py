"""Copies of the notebooks that take seconds: with the parameters of the smoke preset."""

from pathlib import Path

import papermill

from dcopy.config import TrainConfig
from dcopy.workflow import presets
from dcopy.workflow.plan import ROOT

NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
FIELDS = {"epochs": 2, "width": 4}
RUN = TrainConfig(dataset="digits", batch_size=64, **FIELDS)  # that notebook 03 trains, and 04 probes


def parameters(name: str) -> dict:
    """Of the notebook of this name, where they differ from its own."""
    own = {"03_pretrain": FIELDS, "04_linear_probe": {"runs": [RUN.name]}}
    return presets.get("smoke").notebooks.get(name, {}) | own.get(name, {})


def write(name: str, folder: Path, **more) -> Path:
    """The notebook of this name with these parameters, in a folder."""
    path = folder / f"{name}.ipynb"
    source = ROOT / "notebooks" / path.name
    papermill.execute_notebook(source, path, parameters(name) | more, prepare_only=True)
    return path
