"""Writes the generated parts of README.md from result files: `python -m dcopy.report.readme`.

A part lies between `<!-- NAME:begin -->` and `<!-- NAME:end -->`. What has no file yet is "not run".
"""

from __future__ import annotations

from pathlib import Path

from .. import __version__, results
from ..config import REPOSITORY
from ..evaluation import evaluate
from ..training.runs import read_result
from ..workflow import plan, presets
from ..workflow.outcome import clock
from . import ablations, claims, comparison, health_limits, published, statements

MAIN = ("method", "health (no labels used)", "1 a class", "all labels", "k-NN")
LISTED = ("quick", "cifar10-small", "cifar100-small", "imagenette")  # presets with a table of their methods


def fill(text: str, root: Path, repository: str | None = REPOSITORY) -> str:
    """README.md with its generated parts made anew from the files under `root`.

    Raises:
        ValueError: a part is not there exactly once.
    """
    parts = {
        "results": results_part(root / "results" / "reference", repository),
        "presets": presets_part(),
        "address": address_part(repository),
        "citation": citation_part(repository),
    }
    for name, content in parts.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"README.md needs one {begin} and one {end}")
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{content}\n{end}{rest.partition(end)[2]}"
    return text


def presets_part() -> str:
    return _table({"preset": f"`{name}`", "what": preset.summary} for name, preset in presets.PRESETS.items())


def address_part(repository: str | None) -> str:
    """Where to get dcopy from."""
    if not repository:
        return (
            "This copy has no public address yet; `python -m dcopy.report.address URL` puts one into badges, "
            "notebooks and citation."
        )
    clone = f"`git clone {repository}`"
    if not colab(repository, ""):
        return clone
    workflow = f"{repository}/actions/workflows/ci.yml"
    return f"[![tests]({workflow}/badge.svg)]({workflow}) {clone}"


def citation_part(repository: str | None) -> str:
    url = f", url = {{{repository}}}" if repository else ""
    return f"""```bibtex
@article{{wang2021demystifying,
  title = {{Towards Demystifying Representation Learning with Non-contrastive Self-supervision}},
  author = {{Wang, Xiang and Chen, Xinlei and Du, Simon S. and Tian, Yuandong}},
  journal = {{arXiv preprint arXiv:2110.04947}}, year = {{2021}}}}
@software{{dcopy,
  title = {{dcopy: a runnable companion to DirectCopy}}, author = {{{{dcopy contributors}}}},
  version = {{{__version__}}}{url}}}
```"""


def colab(repository: str | None, path: str) -> str:
    """Where Colab opens a file of the repository; '' unless it is on GitHub, the one place Colab reads."""
    home = "https://github.com/"
    if not (repository or "").startswith(home):
        return ""
    return f"https://colab.research.google.com/github/{repository.removeprefix(home)}/blob/main/{path}"


def results_part(folder: Path, repository: str | None = REPOSITORY) -> str:
    """Claims, the runs that all of it is from, and a table or list for each kind of result."""
    quick = folder / "quick"
    numbers = [
        origin(folder),
        _times(quick),
        *(_methods(folder / name) or f"`{name}`: not run." for name in LISTED),
    ]
    parts = [
        _table(_claim(claim, folder, repository) for claim in statements.CLAIMS),
        "† recalled, not checked against the paper.",
        *_main_table(quick),
        *_folded("The paper's claims on every data set, computed from the files of runs", _claims(folder)),
        *_folded("All numbers of all methods, which runs they are from, and times", numbers),
        *_folded("Table 1 of the paper, published and here", _table1(folder)),
        *_findings(folder),
        *_folded("Health, speed, and lightly beside", _health(folder) + _lightly(folder) + _speed(folder)),
    ]
    return "\n\n".join(parts)


def _times(quick: Path) -> str:
    """What each notebook took, once."""
    names = dict.fromkeys(claim.notebook for claim in statements.CLAIMS)
    return (
        "Time of each notebook, added up over its executions, of which two go at a time: "
        + ", ".join(f"{name[:2]} {_time(name, quick)}" for name in sorted(names))
        + "."
    )


def _main_table(quick: Path) -> list[str]:
    """The columns of the quick preset's table that a reader wants first."""
    rows = statements.read_csv(quick / "tables" / "methods.csv")
    if not rows:
        return []
    text = "Test accuracy on digits in percent, mean ± std over seeds."
    return [text, _table({name: row[name] for name in MAIN if name in row} for row in rows)]


def origin(folder: Path) -> str:
    """One line for each preset on the runs behind its numbers; other runs make another line."""
    lines = []
    named = (*LISTED, *ablations.BESIDE.values())
    shown = (path for path in folder.glob("*") if path.name in named or published.own_runs([path]))
    for preset in sorted(shown):
        if line := origin_of(preset):
            lines.append(f"- {line}")
    intro = ["The numbers are from these runs, each named with the commit that made it:", ""]
    return "\n".join([*intro, *lines] if lines else ["No run has finished yet."])


def origin_of(preset: Path) -> str:
    """The runs of a preset, their commits and devices, and the date of the last file; '' without a run."""
    outcomes = [read_result(path) for path in preset.glob("runs/*/result.json")]
    if not outcomes:
        return ""
    probes = [evaluate.read_probe(path) for path in preset.glob("runs/*/probe.json")]
    last = max(record["finished"] for record in (*outcomes, *probes))
    count = len({outcome["name"] for outcome in outcomes})  # a copied folder is no other run
    return (
        f"`{preset.name}`: {count} runs, from {_all(outcomes, 'commit')} on "
        f"{_all(outcomes, 'device')}, probed by {_all(probes, 'commit')}; the last file is of {last}."
    )


def _all(records: list[dict], key: str) -> str:
    return ", ".join(sorted({record[key] for record in records})) or "nothing"


def _methods(preset: Path) -> str:
    path = preset / "tables" / "methods.md"
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def _folded(title: str, parts: list[str]) -> list[str]:
    """Parts that a reader opens."""
    return [f"<details>\n<summary>{title}</summary>", *parts, "</details>"]


def _table1(folder: Path) -> list[str]:
    rows = published.table1(
        published.read(folder / "published.csv"), published.own_runs(sorted(folder.glob("*")))
    )
    table = _table(published.across(rows).to_dict("records"))
    return [" ".join(published.ACROSS), *published.unconverged(rows), table]


def _findings(folder: Path) -> list[str]:
    parts = []
    for name, preset in ablations.BESIDE.items():
        path = folder / preset / "tables" / "findings.json"
        if path.exists():
            sentences = "\n".join(f"- {finding['sentence']}" for finding in results.read_json(path))
            parts += _folded(f"Ablations on {name}, a finding each", [sentences])
        else:
            parts.append(f"Ablations on {name}: not run.")
    return parts


def _health(folder: Path) -> list[str]:
    path = folder / "health" / "limits.json"
    return [health_limits.sentence(results.read_json(path))] if path.exists() else []


def _lightly(folder: Path) -> list[str]:
    path = folder / "comparison" / "lightly.json"
    if not path.exists():
        return ["The comparison with lightly: not run."]
    record = results.read_json(path)
    notes = "\n".join(f"- {note}" for note in comparison.lightly_notes(record))
    rows = comparison.lightly(record).to_dict("records")
    return [comparison.lightly_caption(record), _table(rows), notes]


def _speed(folder: Path) -> list[str]:
    """A row a benchmark."""
    records = comparison.benchmarks(folder / "bench")
    parts = ["What a step of pretraining takes:", _table(comparison.speeds(records))] if records else []
    if any(comparison.on_gpu(name, record) for name, record in records.items()):
        parts.append(
            "On a GPU, pretraining replays the step as CUDA graphs. The parts are those of the step that is "
            "not replayed, which mostly waits for launches; notebook 05 has the kernels of one that is. In "
            "fp32 its convolutions compute in TF32, which the product of matrices does not."
        )
    else:
        parts.append("Speed on a GPU: not run.")
    return parts


def _claim(claim: statements.Claim, folder: Path, repository: str | None) -> dict:
    path = f"notebooks/{claim.notebook}.ipynb"
    link = colab(repository, path)
    return {
        "claim": claim.statement + (f" ({claim.paper})" if claim.paper else ""),
        "notebook": f"[{claim.notebook[:2]}]({path})" + (f", [Colab]({link})" if link else ""),
        "here": statements.here(claim, folder / claim.preset) or published.NOT_RUN,
    }


def _time(notebook: str, quick: Path) -> str:
    """Minutes and seconds that all executed copies of a notebook took together."""
    paths = [path for path in quick.glob(f"notebooks/{notebook}*") if path.suffixes == [".ipynb"]]
    durations = [results.read_json(path)["metadata"]["papermill"]["duration"] for path in paths]
    return clock(sum(durations)) if durations else "—"


def _claims(folder: Path) -> list[str]:
    rows = claims.table(claims.findings(folder))
    return [_table({name: row[name] for name in ("claim", "data", "finding")} for row in rows)]


def _table(rows) -> str:
    """A Markdown table without padding, so that one changed number is one changed line."""
    rows = list(rows)
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def main() -> None:
    path = plan.ROOT / "README.md"
    results.write_text(path, fill(path.read_text(encoding="utf-8"), plan.ROOT))


if __name__ == "__main__":
    main()
