"""One command makes a finished run the reference; its encoders come along and are loaded strictly."""

import os
from pathlib import Path

import pytest
from helpers.records import PROBE
from helpers.tiny import tiny_config, tiny_run

import dcopy
from dcopy import results
from dcopy.report import reference
from dcopy.training import checkpoint
from dcopy.workflow import plan, presets

CONFIGS = [tiny_config(seed=seed) for seed in (0, 1)]


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The folder of all results, with a finished preset of two tiny runs."""
    fields = {name: value for name, value in CONFIGS[0].to_dict().items() if name != "seed"}
    tiny = presets.Preset("two runs", (fields,), seeds=2, notebooks={"05_paper_tables": {}})
    monkeypatch.setitem(presets.PRESETS, "tiny", tiny)
    monkeypatch.setattr(results, "reference", lambda: tmp_path / "results" / "reference")
    folder = tmp_path / "results" / "tiny"
    for config in (*CONFIGS, tiny_config(seed=0, epochs=1)):  # the last is not of the preset
        run = tiny_run(folder / "runs", config)
        probe = PROBE | {"name": config.name, "seed": config.seed, "baselines": ["digits-pixels"]}
        results.write_json(run.folder / "probe.json", probe)
    for name in (
        "runs/digits-pixels/probe.json",
        "check/check.json",
        "site/a.json",
        "logs/a.json",
        "theory/runs/a.json",
    ):
        results.write_json(folder / name, {})
    results.write_text(folder / "tables" / "methods.md", "new")
    for job in plan.jobs("tiny", [], str(folder)):
        results.write_json(job.marker, {"parameters": job.parameters})
        results.write_text(folder / "notebooks" / f"{job.name}.ipynb", "{}")
    results.write_text(folder / "notebooks" / "03_pretrain-of-another-run.ipynb", "{}")
    return tmp_path / "results"


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_belongs_to_the_preset_is_copied_and_nothing_else(root):
    reference.adopt("tiny", [], root)
    wanted = {"tables/methods.md", "runs/digits-pixels/probe.json"}
    wanted |= {f"notebooks/{job.name}.ipynb" for job in plan.jobs("tiny", [], str(root / "tiny"))}
    for config in CONFIGS:
        kinds = ("config.json", "metrics.jsonl", "result.json", "probe.json", checkpoint.ENCODER)
        wanted |= {f"runs/{config.name}/{kind}" for kind in kinds}
    assert files(root / "reference" / "tiny") == wanted
    assert os.listdir(root / "reference") == ["tiny"]


def test_an_adopted_encoder_is_that_of_the_run_and_broken_ones_are_refused(root):
    reference.adopt("tiny", [], root)
    own, adopted = (
        dcopy.load_run(place / "tiny" / "runs" / CONFIGS[0].name) for place in (root, root / "reference")
    )
    assert checkpoint.fingerprint(own.encoder) == checkpoint.fingerprint(adopted.encoder)
    assert own.metrics == adopted.metrics
    path = adopted.folder / checkpoint.ENCODER
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="is not a complete checkpoint"):
        dcopy.load_run(adopted.folder)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # the last bit of a weight
    with pytest.raises(ValueError, match="are not those of its result"):
        dcopy.load_run(adopted.folder)


def test_encoders_come_along_as_far_as_there_is_room_low_seeds_first(root, monkeypatch):
    reference.adopt("tiny", [], root)
    encoders = sorted((root / "reference").glob(f"tiny/runs/*/{checkpoint.ENCODER}"))
    monkeypatch.setattr(reference, "WEIGHTS", 1.5 * encoders[0].stat().st_size)
    assert reference.adopt("tiny", [], root).endswith("2 runs now, 1 of them with their encoder")
    (kept,) = (root / "reference").glob(f"tiny/runs/*/{checkpoint.ENCODER}")
    assert kept.parent.name == CONFIGS[0].name


@pytest.mark.parametrize("fault", ["no marker", "other parameters", "more seeds", "empty", "unknown"])
def test_what_is_not_finished_is_refused_in_a_line(root, fault):
    name, options = "tiny", []
    job = plan.jobs("tiny", [], str(root / "tiny"))[-1]
    if fault == "no marker":
        Path(job.marker).unlink()
    elif fault == "other parameters":
        results.write_json(job.marker, {"parameters": job.parameters | {"runs": []}})
    elif fault == "more seeds":
        options = ["seeds=3"]
    else:
        name = {"empty": "bench", "unknown": "nothing"}[fault]
    with pytest.raises(ValueError) as error:
        reference.adopt(name, options, root)
    assert "\n" not in str(error.value) and not (root / "reference").exists()


@pytest.mark.parametrize("moment", [1, 2, 3])
def test_a_kill_loses_nothing_and_the_next_call_ends_it(root, monkeypatch, moment):
    """At any renaming, or before the old one is gone."""
    reference.adopt("tiny", [], root)
    results.write_text(root / "tiny" / "tables" / "methods.md", "newer")
    rename, calls = Path.rename, []

    def stopping(path, target):
        calls.append(path)
        if len(calls) == moment:
            raise KeyboardInterrupt
        return rename(path, target)

    def stopping_at_once(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", stopping)
        if moment == 3:
            patch.setattr(reference.shutil, "rmtree", lambda path, **options: None)
            reference.adopt("tiny", [], root)
        else:
            with pytest.raises(KeyboardInterrupt):
                reference.adopt("tiny", [], root)
    texts = [path.read_text(encoding="utf-8") for path in (root / "reference").rglob("methods.md")]
    assert sorted(texts) == ["new", "newer"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # and again, in the next call
        patch.setattr(reference.shutil, "copytree", stopping_at_once)
        reference.adopt("tiny", [], root)
    (table,) = (root / "reference").rglob("methods.md")
    assert table.parts[-3] == "tiny"
    reference.adopt("tiny", [], root)
    (table,) = (root / "reference").rglob("methods.md")
    assert table.read_text(encoding="utf-8") == "newer" and os.listdir(root / "reference") == ["tiny"]


def test_records_replace_those_of_their_name(root):
    results.write_json(root / "reference" / "bench" / "gpu.json", {"ms": 1})
    results.write_json(root / "reference" / "bench" / "cpu.json", {"ms": 1})
    results.write_json(root / "bench" / "cpu.json", {"ms": 2})
    results.write_text(root / "bench" / "cpu.md", "2 ms")
    assert "cpu.json" in reference.adopt("bench", [], root)
    assert (root / "reference" / "bench" / "cpu.md").read_text(encoding="utf-8") == "2 ms"
    assert results.read_json(root / "reference" / "bench" / "cpu.json") == {"ms": 2}
    assert results.read_json(root / "reference" / "bench" / "gpu.json") == {"ms": 1}
