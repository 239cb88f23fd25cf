"""Makes a finished run the reference: the committed results that README, tables and checks are held to."""

from __future__ import annotations

import shutil
from pathlib import Path

from .. import results
from ..evaluation import evaluate
from ..training import checkpoint
from ..workflow import plan, presets

RECORDS = ("bench", "comparison")  # folders of single records; every other name is a preset
OWN = (
    ".*",
    "logs",
    "features",
    "check",
    "site",
    "checkpoint*.safetensors",
    "*.failed.ipynb",
    "*.running.ipynb",
)
WEIGHTS = 13e6  # bytes of encoders in a preset; runs of low seeds come first


def adopt(name: str, options: list[str], root: Path) -> str:
    """Copy `root`/`name` to the reference, in place of what is there; a sentence on what was copied.

    A preset is copied beside the reference, and then takes its place: a kill leaves the old one or the new
    one, and the next call puts right what is between. Records and pages replace those of the same name.

    Args:
        name: a preset, or one of RECORDS.
        options: those that the preset was run with.
        root: folder of all results.

    Raises:
        ValueError: the preset is unknown, its run is not finished, or there is nothing to adopt.
    """
    target = results.reference() / name
    source = root / name
    if source.resolve() == target.resolve():
        raise ValueError(f"{source} is the reference itself; --results names the folder of other results")
    if name in RECORDS:
        return _adopt_records(source, target)
    jobs = plan.jobs(name, options, str(source))
    _require_finished(jobs, source, " ".join(["bash run_all.sh", name, *options]))
    new, old = (target.with_name(f".{name}.{word}") for word in ("new", "old"))
    if old.exists() and not target.exists():  # a kill between the two renames below
        old.rename(target)
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    runs = [run.name for run in presets.with_options(presets.get(name), options).runs()]
    kept = _copy(source, new, {job.name for job in jobs}, runs)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return f"{plan.shortest(target)} holds {len(runs)} runs now, {kept} of them with their encoder"


def _adopt_records(source: Path, target: Path) -> str:
    records = {path.name: results.read_json(path) for path in sorted(source.glob("*.json"))}
    if not records:
        raise ValueError(f"{source} holds no records, so there is nothing to adopt")
    for file, record in records.items():
        results.write_json(target / file, record)
    for page in source.glob("*.md"):
        results.write_text(target / page.name, page.read_text(encoding="utf-8"))
    return f"{plan.shortest(target)} has {', '.join(records)} now"


def _require_finished(jobs: list[plan.Job], source: Path, command: str) -> None:
    def done(job: plan.Job) -> bool:
        if not Path(job.marker).exists():
            return False
        made_with, asked = results.read_json(job.marker)["parameters"], job.parameters
        return all(made_with.get(key) == asked[key] for key in asked.keys() - {"results_dir"})

    missing = [job.name for job in jobs if not done(job)]
    if missing:
        raise ValueError(
            f"{source} is not finished, {len(missing)} of {len(jobs)} notebooks are missing, such as "
            f"{missing[0]}; `{command}` finishes it"
        )


def _copy(source: Path, new: Path, notebooks: set[str], runs: list[str]) -> int:
    """All that belongs to the reference, and the encoders that fit into WEIGHTS; the number of these."""
    probes = [evaluate.read_probe(source / "runs" / name / "probe.json") for name in runs]
    wanted = {*runs, *(name for probe in probes for name in probe["baselines"])}
    if len(runs) > 100:  # of a grid, the tables tell; a notebook for each of its runs is too much
        notebooks = {name for name in notebooks if not name.startswith(("03", "04"))}

    def foreign(folder: str, names: list[str]) -> set[str]:
        place = Path(folder).relative_to(source).as_posix()
        others = shutil.ignore_patterns(*OWN)(folder, names)
        if place == "runs":
            others |= set(names) - wanted
        elif place == "theory":
            others |= {"runs"} & set(names)
        elif place == "notebooks":
            others |= {name for name in names if name.removesuffix(".ipynb") not in notebooks}
        return others

    shutil.copytree(source, new, ignore=foreign, copy_function=shutil.copyfile)
    kept, room = 0, WEIGHTS
    for probe in sorted(probes, key=lambda probe: probe["seed"]):
        encoder = new / "runs" / probe["name"] / checkpoint.ENCODER
        if checkpoint.load(source / "runs" / probe["name"]) is None:
            continue
        checkpoint.save_encoder(source / "runs" / probe["name"], encoder)
        room -= encoder.stat().st_size
        if room < 0:
            encoder.unlink()
            break
        kept += 1
    return kept
