"""An executed notebook as a page: its code folded, its formulas as MathML, nothing fetched."""

from __future__ import annotations

import html
import re
from pathlib import Path

import nbformat
from latex2mathml.converter import convert
from nbconvert.exporters import HTMLExporter
from nbconvert.filters import markdown_mistune as mistune
from traitlets.config import Config

from ... import results

TEMPLATES = Path(__file__).parent
HEADING = re.compile(r'<h2 id="([^"]+)">(.*?)(?:<a class="anchor-link".*?</a>)?</h2>', re.S)
# What a browser can show by itself, the best first. Widgets need a kernel.
SHOWN = ["text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/plain"]
# What would make a browser fetch from elsewhere, as a badge does; of an image its text stays.
REMOTE = re.compile(r'<(?:img|script|link|iframe|source)\b[^>]*?\b(?:src|href)="(?:https?:)?//[^>]*>')
ALT = re.compile(r'\balt="([^"]*)"')
BAR = '<mo stretchy="false">&#x0007C;</mo>'  # of a norm, without space beside it
PRIME = re.compile(r"<msup>((?:(?!<msup>).)*?)<mi>&#x02032;</mi></msup>")  # the glyph is raised already
SHORT = re.compile(r"<td(?=[^>]*>[^<±]{1,12}</td>)")  # cells that are not broken
LONGEST = 12  # lines of a log that is shown unfolded


class Renderer(mistune.IPythonRenderer):
    """Markdown with TeX, as HTML with MathML."""

    def inline_math(self, body: str) -> str:
        return mathml(body, "inline")

    def block_math(self, body: str) -> str:
        return mathml(body, "block")


def mathml(tex: str, display: str) -> str:
    """A formula, or its source where it cannot be converted.

    >>> mathml("x^2", "inline")[:40]
    '<math xmlns="http://www.w3.org/1998/Math'
    """
    tex = re.sub(r"\\(mathbb|mathrm|mathcal) (\w)", r"\\\1{\2}", tex.strip())  # which it reads only so
    try:
        found = convert(tex, display=display).replace(BAR, f"{BAR[:3]} lspace='0' rspace='0'{BAR[3:]}")
        return PRIME.sub(r"<mrow>\1<mo lspace='0' rspace='0'>&#x02032;</mo></mrow>", found)
    except Exception:  # whatever a person may have typed
        return f"<code>{html.escape(tex)}</code>"


def markdown(source: str) -> str:
    """
    >>> markdown("# Title")[:24]
    '<h1 id="Title">Title<a c'
    """
    return mistune.MarkdownWithMath(renderer=Renderer(escape=False)).render(source)


class Exporter(HTMLExporter):
    """nbconvert's, with a template that folds code and long logs."""

    def __init__(self):
        shown = Config({"NbConvertBase": {"display_data_priority": SHOWN}})  # of filters, which read it there
        template = {"template_name": "basic", "template_file": str(TEMPLATES / "notebook.html.j2")}
        super().__init__(config=shown, **template)
        self.register_preprocessor("nbconvert.preprocessors.CoalesceStreamsPreprocessor", enabled=True)
        self.log.setLevel("ERROR")  # it warns of images without a text in their place
        self.exclude_input_prompt = self.exclude_output_prompt = True
        self.environment.globals["longest"] = LONGEST

    def markdown2html(self, source: str) -> str:
        return markdown(source)


def page(exporter: Exporter, path: Path) -> dict:
    """What a page needs: title, its headings as (id, text), body, cells, and the seconds it took.

    Raises:
        ValueError: the file is cut off or is no notebook.
    """
    if "cells" not in results.read_json(path):
        raise ValueError(f"{path} is no notebook; delete it to make it again")
    notebook = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
    body, _ = exporter.from_notebook_node(notebook)
    body = REMOTE.sub(lambda found: "".join(ALT.findall(found[0])), body)
    body = SHORT.sub("<td nowrap", body).replace(" ± ", " ±\N{NO-BREAK SPACE}")  # a line ends before the ±
    first = next((cell.source for cell in notebook.cells if cell.cell_type == "markdown"), "")
    return {
        "stem": path.stem,
        "title": first.partition("\n")[0].lstrip("# ") or path.stem,
        "headings": HEADING.findall(body),
        "body": body,
        "cells": notebook.cells,
        "seconds": notebook.metadata.get("papermill", {}).get("duration"),
    }
