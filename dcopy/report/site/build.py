"""The pages of a preset: a front page, one for each executed notebook, the library's reference."""

from __future__ import annotations

import itertools
import re
import shutil
from pathlib import Path

import jinja2
from pygments.formatters import HtmlFormatter

from ... import results
from ...workflow import plan, presets
from ...workflow.outcome import clock
from .. import claims, readme, statements
from . import notebook, reference, remake

FIGURES = (  # for the front page, the first three that are there
    "theory-phase-diagrams",
    "claim-labels",
    "claim-collapse",
    "table1",
    "ablation-eps",
    "surviving-directions",
    "ablation-weight-decay",
)
TABLES = ("methods", "beside")  # likewise, the first
PARTS = {"figures": (".png", ".pdf"), "tables": (".csv", ".md", ".tex")}  # to download


def executed(places: list[Path]) -> list[Path]:
    """Notebooks that ran to their end; those that run or failed have a second suffix."""
    found = {path.name: path for place in places for path in place.glob("notebooks/*.ipynb")}
    return [found[name] for name in sorted(found) if found[name].suffixes == [".ipynb"]]


def build(preset: str, options: list[str], folder: Path) -> Path:
    """Write the site of a preset, whatever part of its results is there.

    Args:
        preset: its name.
        options: what it was run with, as in `seeds=5`.
        folder: of its results; the site goes to `folder/site`.

    Returns:
        The front page.

    Raises:
        ValueError: nothing has been run and there is no reference, or a file is cut off.
        OSError: the folder cannot be written.
    """
    places, site = remake.places(folder), folder / "site"
    exporter = notebook.Exporter()
    pages = [notebook.page(exporter, path) for path in executed(places)]
    writer = Writer(site, preset)
    files = {
        name: copied([place / name for place in places], site / name, suffixes)
        for name, suffixes in PARTS.items()
    }
    writer.style()
    for page in pages:
        writer.page(page["stem"], "page.html.j2", **page)
    modules = reference.entries()
    names = [(module["name"], module["name"]) for module in modules]
    writer.page("reference", "reference.html.j2", title="Reference", headings=names, modules=modules)
    content = front(preset, options, places, pages)
    return writer.page("index", "front.html.j2", files={k: v for k, v in files.items() if v}, **content)


class Writer:
    """Fills the templates into a folder."""

    def __init__(self, site: Path, preset: str):
        loader = jinja2.FileSystemLoader(notebook.TEMPLATES)
        self.templates = jinja2.Environment(loader=loader, trim_blocks=True, undefined=jinja2.StrictUndefined)
        self.site, self.preset = site, preset

    def page(self, name: str, template: str, **content) -> Path:
        text = self.templates.get_template(template).render(preset=self.preset, **content)
        return results.write_text(self.site / f"{name}.html", text)

    def style(self) -> None:
        """The style sheet, with Pygments' colours of code for light and for dark."""
        light, dark = (
            HtmlFormatter(style=style).get_style_defs(".highlight") for style in ("default", "github-dark")
        )
        own = (notebook.TEMPLATES / "site.css").read_text(encoding="utf-8")
        dark = f"@media (prefers-color-scheme: dark) {{\n{dark}\n}}"
        ground = ".highlight, .highlight pre { background: var(--raised); }\n"
        results.write_text(self.site / "site.css", "\n".join([light, dark, own, ground]))


def copied(sources: list[Path], target: Path, suffixes: tuple[str, ...]) -> dict[str, list[str]]:
    """Copy the files of folders into one; their names without suffix, and the suffixes that each has."""
    shutil.rmtree(target, ignore_errors=True)  # what an earlier site had and these folders do not
    paths = [path for folder in sources for path in folder.glob("*") if path.suffix in suffixes]
    for path in paths:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / path.name)
    found: dict[str, list[str]] = {}
    for name in sorted({path.name for path in paths}):
        found.setdefault(Path(name).stem, []).append(Path(name).suffix)
    return found


def front(preset: str, options: list[str], places: list[Path], pages: list[dict]) -> dict:
    """What the front page says, all of it from the files in these places."""
    place = places[0]
    jobs = plan.jobs(preset, options, plan.shortest(place))
    names = [page["stem"] for page in pages]
    labels = {job.name: job.label for job in jobs}
    for page in pages:
        page["label"] = labels.get(page["stem"], page["stem"])
        page["time"] = page["seconds"] and clock(page["seconds"])
    of_notebook = {name.partition("-")[0]: name for name in reversed(names)}
    table = next(iter(latest(places, [f"tables/{name}.md" for name in TABLES])), None)
    seconds = sum(page["seconds"] or 0 for page in pages)
    made = [readme.origin_of(place) or "No run of this preset has finished yet."]
    made += [f"Its {len(pages)} executed notebooks took {clock(seconds)} together."] if pages else []
    return {
        "title": "Demystified: learning from two views without negative pairs",
        "headings": [],
        "formula": notebook.markdown("$W_p=F+\\varepsilon I$")
        .strip()
        .removeprefix("<p>")
        .removesuffix("</p>"),
        "summary": presets.get(preset).summary,
        "source": plan.shortest(place),
        "missing": [job.name for job in jobs if job.name not in names],
        "total": len(jobs),
        "claims": claim_rows(preset, jobs, place, of_notebook),
        "findings": sentences(preset, place),
        "pictures": [
            picture(path.stem, pages)
            for path in latest(places, [f"figures/{name}.png" for name in FIGURES])[:3]
        ],
        "table": table and notebook.markdown(table.read_text(encoding="utf-8")),
        "pages": pages,
        "command": " ".join(["bash run_all.sh", preset, *options]),
        "origin": "".join(notebook.markdown(text) for text in made),
    }


def claim_rows(preset: str, jobs: list[plan.Job], place: Path, pages: dict[str, str]) -> list[dict]:
    """The claims of the notebooks in this preset, with what was found here.

    Those that a table of accuracies stands for are about the data of their preset, and other data say nothing
    of them.
    """
    wanted, data = {job.notebook for job in jobs}, _data(preset)
    return [
        {
            "statement": claim.statement,
            "here": statements.here(claim, place) or claims.NOT_RUN,
            "notebook": claim.notebook[:2],
            "page": pages.get(claim.notebook),
        }
        for claim in statements.CLAIMS
        if claim.notebook in wanted and (not claim.column or data & _data(claim.preset))
    ]


def _data(preset: str) -> set[str]:
    return {run.dataset for run in presets.get(preset).runs()}


def sentences(preset: str, place: Path) -> list[str]:
    """The paper's claims on this preset's data, and the findings of its ablations."""
    found = []
    if results.own_or_reference(place) == place:  # else they would be another run's
        data = {
            name for kind in (claims.DATA, claims.DECAYS) for name, source in kind.items() if source == preset
        }
        rows = [row for row in claims.findings(place.parent) if row["data"] in data]
        found = [f"{claims.TITLES[row['claim']]}: {row['finding']}" for row in rows if row["files"]]
    path = place / "tables" / "findings.json"
    return found + ([item["sentence"] for item in results.read_json(path)] if path.exists() else [])


def latest(places: list[Path], names: list[str]) -> list[Path]:
    """The files of these names that there are, each from the last place that has it."""
    found = [[place / name for place in places if (place / name).exists()] for name in names]
    return [paths[-1] for paths in found if paths]


def picture(stem: str, pages: list[dict]) -> dict:
    """A figure with the caption that follows it in the notebook that made it."""
    names = [f'"{name}"' for name in (stem, stem.removeprefix("theory-"))]  # which 01, 02 and 08 add
    for page in pages:
        for cell, following in itertools.pairwise(page["cells"]):
            if any(name in cell.source for name in names) and following.source.startswith("**Figure"):
                text = re.sub(r"[*`]", "", following.source.partition("\n")[0])
                return {"file": f"{stem}.png", "caption": text.partition(" ")[2], "page": page["stem"]}
    return {"file": f"{stem}.png", "caption": stem, "page": None}
