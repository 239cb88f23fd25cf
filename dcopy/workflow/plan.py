"""From a preset to its jobs: which notebook runs how often, with which parameters, in which order.

Read by the Snakefile, which knows what comes after what, and by `workflow`, which refuses a bad
plan before anything runs. Nothing heavy is imported here.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import itertools
import json
import os
import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from . import presets

ROOT = Path(__file__).resolve().parents[2]  # of the checkout


@dataclass(frozen=True)
class Job:
    """One execution of one notebook."""

    name: str  # of its marker, its log and its executed copy
    notebook: str  # for example 03_pretrain
    parameters: dict  # values for the names in the notebook's parameters cell
    label: str  # the name in short, for the terminal
    results_dir: str
    after: str | None = None  # `done` of the job with fewer epochs of the same runs, which it goes on from

    @property
    def done(self) -> str:
        """The file that says that this job is finished, in the folder of results, where Snakemake works.

        It is not in git, so a fresh clone runs everything.
        """
        return f".done/{self.name}.json"

    @property
    def marker(self) -> str:
        return f"{self.results_dir}/{self.done}"

    @property
    def log(self) -> str:
        return f"{self.results_dir}/logs/{self.name}.log"

    def arguments(self) -> list[str]:
        """What to call `python -m dcopy.workflow.notebook --results-dir FOLDER` with."""
        found = [f"notebooks/{self.notebook}.ipynb", "--name", self.name, "--label", self.label]
        for name, value in self.parameters.items():
            if name != "results_dir":
                found += ["-p", f"{name}={value}"]
        return found

    def content(self) -> str:
        """A digest of the notebook, so that the job runs again when it has changed."""
        return hashlib.sha256(Path(ROOT, "notebooks", f"{self.notebook}.ipynb").read_bytes()).hexdigest()


def jobs(preset_name: str, options: list[str], results_dir: str) -> list[Job]:
    """Every job of a preset with its options applied, in reading order.

    Raises:
        ValueError: the preset or an option is unknown, or a value is refused.

    >>> [job.label for job in jobs("quick", ["methods=none", "seeds=2"], "results/quick")][2:4]
    ['03 none-...', '04 none-...']
    """
    preset = presets.with_options(presets.get(preset_name), options)
    runs = preset.runs()

    def job(notebook: str, parameters: dict, run_name: str = "", label: str = "") -> Job:
        values = {**preset.notebooks.get(notebook, {}), **parameters, "results_dir": results_dir}
        name = f"{notebook}-{run_name}" if run_name else notebook
        return Job(name, notebook, values, f"{notebook[:2]} {label}" if label else notebook, results_dir)

    theory = ("01_linear_theory", "02_sample_complexity")
    found = [job(notebook, {}) for notebook in theory if notebook in preset.notebooks]
    pretraining, probing = {}, []  # the former by variant
    for variant, group in itertools.groupby(runs, key=lambda run: dataclasses.replace(run, seed=0)):
        own = list(group)  # the same but for the seed: one kernel for all of them
        names = _plain(variant), f"{variant.method}-{variant.hash[:6]}"
        fields = {name: value for name, value in variant.to_dict().items() if name != "seed"}
        pretraining[variant] = job("03_pretrain", fields | {"seeds": [run.seed for run in own]}, *names)
        probing.append(job("04_linear_probe", {"runs": [run.name for run in own]}, *names))
    for variant, own in pretraining.items():
        fewer = [other for other in pretraining if other.epochs < variant.epochs and other.begins_longer_runs]
        fewer = [other for other in fewer if dataclasses.replace(other, epochs=variant.epochs) == variant]
        first = max(fewer, key=lambda other: other.epochs, default=None)
        found.append(dataclasses.replace(own, after=first and pretraining[first].done))
    found += probing
    for notebook in ("05_paper_tables", "06_ablations"):  # read what all runs left
        if notebook in preset.notebooks:
            found.append(job(notebook, {"runs": [run.name for run in runs]}))
    own = ("07_your_own_trainer", "08_theory_and_network")  # train on their own
    return found + [job(notebook, {}) for notebook in own if notebook in preset.notebooks]


def _plain(variant) -> str:
    """The variant as a part of file names that Snakemake takes: of a folder of photos, no name it may not."""
    name = variant.name.replace("-seed0-", "-")
    plain = re.fullmatch(r"[\w.+-]{1,150}", name)
    return name if plain else f"folder-{variant.method}-{variant.hash}"


def pack(words: list[str]) -> str:
    """Words as one that means nothing to Snakemake's --config, which reads YAML.

    >>> pack(["dataset=folder:/my photos #1", "seeds=2"])
    'dataset=folder:/my%20photos%20%231 seeds=2'
    """
    return " ".join(urllib.parse.quote(os.fsencode(word), safe="=:/,.+-_") for word in words)


def unpack(text: str | None) -> list[str]:
    return [os.fsdecode(urllib.parse.unquote_to_bytes(word)) for word in (text or "").split()]


def shortest(path: Path) -> str:
    """Relative where it is in the checkout, so that executed notebooks name nobody's home."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's parameters cell: `name: type = literal  # help`."""

    type: str
    default: object

    def accepts(self, value) -> bool:
        """
        >>> Parameter("float | None", None).accepts(3), Parameter("int", 1).accepts(True)
        (True, False)
        """
        kinds = {"None" if value is None else type(value).__name__}
        if "int" in kinds:
            kinds.add("float")  # 3 where a float is meant
        return any(option.strip().split("[")[0] in kinds for option in self.type.split("|"))

    def parse(self, text: str):
        """A value from the command line: text where the type is str, else a Python literal.

        >>> Parameter("int", 1).parse("40"), Parameter("str", "").parse("40")
        (40, '40')
        """
        optional = "None" in self.type and text == "None"
        if self.type.startswith("str") and not optional:
            return text
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text  # `check` says what is wrong with it


def declared(notebook: Path) -> dict[str, Parameter]:
    """The parameters that a notebook declares in its cell tagged `parameters`.

    Papermill's own inspection does not see a type like `float | None`, so the cell is parsed here.

    Raises:
        ValueError: it is no notebook, has no such cell, or the cell is not made of plain typed lines.
    """
    try:
        cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    except FileNotFoundError:
        raise ValueError(f"there is no notebook {_shown(notebook)}") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{_shown(notebook)} is not a notebook") from None
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise ValueError(f"{_shown(notebook)} needs one cell tagged parameters, and has {len(tagged)}")
    found = {}
    for line in ast.parse("".join(tagged[0]["source"])).body:
        try:
            found[line.target.id] = Parameter(ast.unparse(line.annotation), ast.literal_eval(line.value))
        except (AttributeError, ValueError):
            wrong = ast.unparse(line)
            raise ValueError(
                f"{_shown(notebook)}: {wrong!r} among the parameters is not name: type = literal"
            ) from None
    return found


def check(notebook: Path, values: dict) -> None:
    """Refuse what papermill would only warn of: a name that the notebook does not declare, or a wrong type.

    Raises:
        ValueError: naming the value given and those allowed.
    """
    known = declared(notebook)
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{_shown(notebook)} has no parameter {name!r}; it has " + ", ".join(known))
        if not known[name].accepts(value):
            raise ValueError(f"{_shown(notebook)}: {name}={value!r} is not of type {known[name].type}")


def _shown(path: Path) -> str:
    """The path from the working directory where that is shorter."""
    return min(str(path), os.path.relpath(path), key=len)
