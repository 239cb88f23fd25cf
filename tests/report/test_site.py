"""The pages of a preset: whole in themselves, from files alone, whatever part of these is there."""

import ast
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import nbformat
import pandas as pd
import pytest

import dcopy
from dcopy import results
from dcopy.report import __main__ as report
from dcopy.report import tables
from dcopy.report.site import build, notebook, reference, remake
from dcopy.workflow import plan

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
LOADING = {"src", "srcset", "data", "poster", "action"}  # attributes that make a browser fetch


class Page(HTMLParser):
    """What a page links to, what it loads, and the places in it that can be linked to."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.loads, self.ids, self.text = [], [], set(), path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name == "id":
                self.ids.add(value)
            elif name in LOADING or (name == "href" and tag == "link"):
                self.loads.append(value)
            elif name == "href":
                self.links.append(value)


@pytest.fixture(scope="module")
def preset(tmp_path_factory) -> Path:
    """Results of an unfinished quick preset: one notebook with all kinds of output, a table, a figure."""
    folder = tmp_path_factory.mktemp("results") / "quick"
    text = [
        "# A title\n\n[![Open it](https://example.org/badge.svg)](https://example.org)\n\n"
        "With $\\mathbb E\\|x'\\|$ and\n\n$$q_\\pm=\\frac12$$",
        "## A heading",
        "**Figure.** What is seen.",
    ]
    cells = [nbformat.v4.new_markdown_cell(source) for source in text]
    outputs = [
        nbformat.v4.new_output("stream", name="stdout", text=f"epoch {epoch}\n") for epoch in range(30)
    ]
    shown = {
        "image/png": PIXEL,
        "application/vnd.jupyter.widget-view+json": {"model_id": "gone"},
        "text/plain": "Figure()",
    }
    outputs.append(nbformat.v4.new_output("display_data", shown))
    widget = shown | {"text/html": "<input type='range'><script>'moves it'</script>"}
    outputs.append(nbformat.v4.new_output("display_data", widget))
    table = {"text/html": "<table><tr><td>CIFAR-100</td><td>81.7 ± 0.5</td></tr></table>"}
    outputs.append(nbformat.v4.new_output("display_data", table))
    code = 'save(figure, "phase-diagrams")'
    cells.insert(2, nbformat.v4.new_code_cell(code, outputs=outputs))
    seen = {"metadata": {"tags": ["unfolded"]}}
    cells.append(nbformat.v4.new_code_cell("for step in range(3):\n    pass", **seen))
    metadata = {"papermill": {"duration": 65.0}}
    metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {"gone": {}}}}
    executed = nbformat.v4.new_notebook(cells=cells, metadata=metadata)
    for name in ("01_linear_theory", "02_sample_complexity.running", "05_paper_tables.failed"):
        results.write_text(folder / f"notebooks/{name}.ipynb", nbformat.writes(executed))
    tables.write_table(pd.DataFrame([{"method": "DirectCopy"}]), folder / "tables/methods", "A caption.")
    for suffix in ("png", "pdf"):
        results.write_text(folder / f"figures/theory-phase-diagrams.{suffix}", "")
    return folder


@pytest.fixture(scope="module")
def site(preset) -> dict[str, Page]:
    front = build.build("quick", [], preset)
    assert front == preset / "site/index.html"
    return {path.name: Page(path) for path in front.parent.glob("*.html")}


def test_no_link_is_broken_and_nothing_is_fetched(site, preset):
    for name, page in site.items():
        assert not [link for link in page.loads if re.match("(https?:)?//", link)], name
        for link in page.links + page.loads:
            if re.match("https?:|data:", link):
                continue
            path, _, place = link.partition("#")
            assert (preset / "site" / unquote(path or name)).exists(), f"{name}: {link}"
            if place:
                assert unquote(place) in site[path or name].ids, f"{name}: {link}"
    style = (preset / "site/site.css").read_text(encoding="utf-8")
    assert "url(" not in style and "@import" not in style


def test_a_notebook_is_a_page_with_formulas_folded_code_and_contents(site):
    text = site["01_linear_theory.html"].text
    assert "𝔼" in text.replace("&#x1D53C;", "𝔼") and text.count("<math") == 2 and "$" not in text
    assert '<a href="https://example.org">Open it</a>' in text  # a badge would be fetched
    assert '<a href="#A-heading">A heading</a>' in text
    assert '<details class="code"><summary>Code, 1 lines</summary>' in text
    assert '<details class="code" open=""><summary>Code, 2 lines' in text  # what a reader should see
    assert "<summary>Log, 30 lines: epoch 29</summary>" in text
    assert "<script>'moves it'</script>" in text  # not the widget, which would take a kernel
    assert "<td nowrap>CIFAR-100</td><td>81.7 ±\N{NO-BREAK SPACE}0.5</td>" in text
    assert f"data:image/png;base64,{PIXEL}" in text and "model_id" not in text


def test_the_front_page_says_what_is_there_and_what_is_missing(site, preset):
    text = site["index.html"].text
    jobs = plan.jobs("quick", [], str(preset))
    assert f"{len(jobs) - 1} of {len(jobs)} notebooks" in text and "02_sample_complexity, " in text
    assert set(site) == {"index.html", "01_linear_theory.html", "reference.html"}
    assert "A caption." in text and "DirectCopy</td>" in text
    assert "What is seen. From <a" in text and "1:05" in text
    assert "not run" in text and "No run of this preset has finished yet." in text


@pytest.mark.parametrize(("name", "data"), [("quick", {"Digits"}), ("cifar10-small", {"CIFAR-10"})])
def test_what_is_claimed_of_data_is_shown_with_these_data_alone(name, data, tmp_path):
    jobs = plan.jobs(name, [], str(tmp_path))
    statements = [row["statement"] for row in build.claim_rows(name, jobs, tmp_path, {})]
    assert {statement.split(", %")[0] for statement in statements if ", %" in statement} == data


def test_without_anything_to_show_it_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"holds no results to show; `bash run_all.sh stl10` makes"):
        build.build("stl10", [], tmp_path / "stl10")
    assert report.main(["site", "stl10", "--results", str(tmp_path)]) == 2 and not list(tmp_path.iterdir())
    assert remake.places(tmp_path / "quick")[0] == results.reference() / "quick"


def test_a_file_that_is_cut_off_is_named(tmp_path, preset):
    folder = tmp_path / "quick"
    path = results.write_text(folder / "notebooks/01_linear_theory.ipynb", '{"cells": [')
    with pytest.raises(ValueError, match=rf"^{path} is not a complete JSON file .*delete it"):
        build.build("quick", [], folder)
    results.write_text(path, "{}")
    with pytest.raises(ValueError, match=f"^{path} is no notebook; delete it"):
        build.build("quick", [], folder)
    path = results.write_text(folder / "runs/a/result.json", "{")
    with pytest.raises(ValueError, match=f"^{path} is not a complete"):
        remake.remake("quick", [], folder)


def test_tables_and_figures_are_made_anew_from_the_reference_by_notebooks_that_train_nothing(
    tmp_path, monkeypatch
):
    called = []

    def run(command, **options):
        called.append(command[3:])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(remake.subprocess, "run", run)
    assert remake.remake("ablations", ["seeds=5"], tmp_path / "ablations") == []
    (words,) = called  # of the notebooks of this preset, one trains nothing
    assert words[:2] == ["--results-dir", str(tmp_path / "ablations/anew/ablations")]
    assert words[2] == "notebooks/06_ablations.ipynb"
    (runs,) = [word.removeprefix("runs=") for word in words if word.startswith("runs=")]
    finished = (results.reference() / "ablations").glob("runs/*/result.json")
    assert set(ast.literal_eval(runs)) == {path.parent.name for path in finished}  # and no other seed


def test_what_the_files_alone_do_not_hold_stays_as_committed(tmp_path, capsys):
    source, target = tmp_path / "reference", tmp_path / "anew"
    for place, value in ((source, "0.8"), (target, "not run")):
        results.write_text(place / "tables/surviving.md", value)
        results.write_text(place / "tables/methods.md", "0.9")
        results.write_text(place / "figures/surviving.png", "")
        results.write_text(place / "notebooks/06_ablations.ipynb", "")
    remake.keep_what_is_lost(source, target, "06_ablations")
    assert {path.name for path in target.rglob("*.*")} == {"methods.md"}
    assert capsys.readouterr().out.startswith("surviving: not in the result files alone")


def test_what_was_made_anew_goes_before_the_reference_and_an_own_run_before_both(tmp_path):
    folder = tmp_path / "quick"
    anew = results.write_text(folder / "anew/quick/tables/methods.md", "")
    places = remake.places(folder)
    assert build.latest(places, ["tables/methods.md"]) == [anew]
    (claims,) = build.latest(places, ["theory/claims.csv"])
    assert claims.is_relative_to(results.reference())
    results.write_text(folder / "notebooks/01_linear_theory.ipynb", "")
    assert remake.places(folder) == [folder]


def test_the_reference_has_every_public_name(site):
    members = {module["name"]: [item["name"] for item in module["members"]] for module in reference.entries()}
    assert members["dcopy"] == list(dcopy._PUBLIC)
    assert {"DirectCopy", "build_predictor"} <= set(members["dcopy.predictors"])
    assert site["reference.html"].ids >= set(members)
    assert "<b>DirectCopy</b>(dim: int, " in site["reference.html"].text


def test_a_formula_that_cannot_be_converted_is_shown_as_it_is():
    assert notebook.mathml("\\left( <", "inline") == "<code>\\left( &lt;</code>"


@pytest.mark.parametrize("name", sorted(path.parent.name for path in results.reference().glob("*/notebooks")))
def test_the_pages_of_the_reference_can_be_mailed(name):
    place = results.reference() / name
    paths = [*place.glob("notebooks/*"), *place.glob("figures/*"), *place.glob("tables/*")]
    assert sum(path.stat().st_size for path in paths) < 14_000_000  # pages and the reference add 0.5 MB
