"""What every notebook keeps to, as written and as executed by the smoke preset."""

import ast
import dataclasses
import json
import os
import re
import statistics
from pathlib import Path

import pytest
from helpers import toy_project
from IPython.core.inputtransformer2 import TransformerManager

from dcopy.config import REPOSITORY, TrainConfig
from dcopy.report import address
from dcopy.workflow import plan

NOTEBOOKS = sorted((plan.ROOT / "notebooks").glob("*.ipynb"))

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path, kind: str | None = None) -> list[dict]:
    """The cells, of one kind if wanted, with their source as one text."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    cells = [cell | {"source": "".join(cell["source"])} for cell in cells]
    return [cell for cell in cells if kind in (None, cell["cell_type"])]


def python(cell: dict) -> ast.Module:
    """The code of a cell, with what only IPython understands turned into Python."""
    return ast.parse(TransformerManager().transform_cell(cell["source"]))


# as written


@every_notebook
def test_the_source_has_no_outputs_and_stable_metadata(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    for cell in read(path, "code"):
        assert cell["outputs"] == [] and cell["execution_count"] is None, cell["id"]
    ids = [cell["id"] for cell in read(path)]
    assert len(set(ids)) == len(ids)
    for identity in ids:  # words, not the random ones that an editor makes up
        assert re.fullmatch(r"[a-z][a-z0-9-]{1,40}", identity), identity
        assert not re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f-]+)?", identity), identity


@every_notebook
def test_cells_are_short_and_prose_goes_with_them(path):
    cells, code, prose = read(path), read(path, "code"), read(path, "markdown")
    assert 20 <= len(cells) <= 40
    for cell in code:
        most = 40 if "parameters" in cell["metadata"].get("tags", []) else 30  # a line a parameter
        assert len(cell["source"].splitlines()) <= most, cell["id"]
    assert len(prose) >= len(code) / 2
    paragraphs = [text for cell in prose for text in cell["source"].split("\n\n") if text[:1] not in "#|$"]
    assert 10 <= statistics.median(len(text.split()) for text in paragraphs) <= 60


@every_notebook
def test_it_opens_with_title_claim_badge_and_the_setup_that_all_share(path):
    title, setup = read(path, "markdown")[0]["source"], read(path, "code")[0]["source"]
    assert title.startswith("# ") and "**Claim" in title and "arxiv.org/abs/2110.04947" in title
    assert address.badge(REPOSITORY, path.stem) in title and ("Colab" in title) == bool(REPOSITORY)
    assert "\n\nAfter this notebook you will know " in title
    assert setup == address.setup_cell(REPOSITORY)


@every_notebook
def test_parameters_are_typed_explained_and_read(path):
    (tagged,) = [cell for cell in read(path, "code") if "parameters" in cell["metadata"].get("tags", [])]
    declared = plan.declared(path)
    assert declared["results_dir"].type == "str" and "results_dir" in declared
    for name, parameter in declared.items():
        assert parameter.accepts(parameter.default), f"{name} is not of its type {parameter.type}"
    for line in tagged["source"].splitlines():
        assert re.search(r"  # \w|^\w+: \w+ = \S+$", line), f"no help: {line}"
    names = [
        node for cell in read(path, "code") for node in ast.walk(python(cell)) if isinstance(node, ast.Name)
    ]
    used = {node.id for node in names if isinstance(node.ctx, ast.Load)}
    if "globals" in used:  # a configuration made of all that have the name of a field
        used |= {field.name for field in dataclasses.fields(TrainConfig)}
    assert set(declared) <= used


@every_notebook
def test_nothing_ties_it_to_one_machine(path):
    for cell in read(path, "code"):
        for word in ("sys.path", "drive.mount", "/home/", "/content/", "!pip", "os.chdir"):
            assert word not in cell["source"], cell["id"]


def test_the_smoke_preset_runs_every_notebook():
    jobs = plan.jobs("smoke", [], "results/smoke")
    assert {job.notebook for job in jobs} == {path.stem for path in NOTEBOOKS}


# as executed; `bash run_all.sh test -m system tests/test_notebooks.py` runs these


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> Path:
    """The results of `bash run_all.sh smoke`: those that are here, if they are younger than all sources."""
    here = Path("results/smoke")
    done = [plan.ROOT / job.marker for job in plan.jobs("smoke", [], str(here))]
    sources = [*NOTEBOOKS, *(plan.ROOT / "dcopy").rglob("*.py")]
    if all(marker.exists() for marker in done) and min(map(modified, done)) > max(map(modified, sources)):
        return plan.ROOT / here
    place = tmp_path_factory.mktemp("results")
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
    words = ("smoke", "--results", str(place), "-j", "2")
    toy_project.finish(plan.ROOT, *words, env=environment, seconds=600)
    return place / "smoke"


def modified(path: Path) -> float:
    return path.stat().st_mtime


@pytest.fixture
def executed(smoke, request) -> list[Path]:
    """The executed copies of one notebook, one for each of its jobs."""
    stem = request.node.callspec.params["path"].stem
    jobs = [job for job in plan.jobs("smoke", [], str(smoke)) if job.notebook == stem]
    for job in jobs:
        log = Path(job.log)
        assert Path(job.marker).exists(), (
            log.read_text(encoding="utf-8") if log.exists() else f"{job.name} was not started"
        )
    return [smoke / f"notebooks/{job.name}.ipynb" for job in jobs]


@pytest.mark.system
@every_notebook
def test_every_cell_runs_without_a_warning(path, executed):
    for copy in executed:
        for cell in read(copy, "code"):
            assert cell["execution_count"] or not cell["source"].strip(), cell["id"]
            for output in cell["outputs"]:
                assert output.get("name") != "stderr", "".join(output["text"])


@pytest.mark.system
@every_notebook
def test_the_executed_copy_has_its_parameters_and_is_small(path, executed):
    for copy in executed:
        assert copy.stat().st_size < 1_000_000
        injected = [cell for cell in read(copy) if "injected-parameters" in cell["metadata"].get("tags", [])]
        assert len(injected) == 1 and "results_dir = " in injected[0]["source"]


@pytest.mark.system
@every_notebook
def test_every_figure_is_followed_by_a_caption(path, executed):
    for copy in executed:
        cells = read(copy)
        for cell, following in zip(cells, [*cells[1:], None], strict=True):
            if any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])):
                assert following is not None and is_prose(following), cell["id"]


def is_prose(cell: dict) -> bool:
    """A text cell, or a code cell that renders its numbers into text."""
    rendered = any("text/markdown" in output.get("data", {}) for output in cell.get("outputs", []))
    return cell["cell_type"] == "markdown" or rendered


@pytest.mark.system
def test_the_smoke_preset_ends_in_a_table_and_figures_that_can_be_printed(smoke):
    assert list(smoke.glob("tables/*.md")) and list(smoke.glob("tables/*.csv"))
    figures = {path.stem: set() for path in smoke.glob("figures/*")}
    for path in smoke.glob("figures/*"):
        figures[path.stem].add(path.suffix)
    assert figures and all(kinds == {".png", ".pdf"} for kinds in figures.values()), figures
