"""A checkout in miniature: this project's workflow over notebooks that take no time and need no torch."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from dcopy.config import TrainConfig
from dcopy.workflow.plan import ROOT

RESULTS = 'results_dir: str = "results/quick"  # where results go\n'
RUNS = RESULTS + "runs: list[str] = []\n"
FIELDS = (
    "".join(
        f"{field.name}: {field.type} = {field.default!r}\n"
        for field in dataclasses.fields(TrainConfig)
        if field.name != "seed"
    )
    + "seeds: list = [0]\n"
)

PRESETS = """
PRESETS = {
    "smoke": Preset(
        "five notebooks",
        variants=({"method": "directcopy"}, {"method": "none"}),
        shared={"dataset": "digits", "epochs": 2},
        notebooks={
            "01_linear_theory": {},
            "02_sample_complexity": {},
            "04_linear_probe": {"draws": 2},
            "05_paper_tables": {},
        },
    ),
    "one": Preset("a run and its probe", variants=({"method": "directcopy"},), shared={"epochs": 2}),
}
"""
PRETRAIN = """
import os, time
from pathlib import Path
print("threads", os.environ["OMP_NUM_THREADS"])
if method == "none":
    raise ValueError("this method fails\\nand goes on about it")
try:
    for epoch in range(epochs):
        print("epoch", epoch)
        time.sleep(0.01 if epochs < 100 else 0.2)
except KeyboardInterrupt:
    Path(results_dir, f"saved-{method}-{seeds[0]}").touch()
    raise
"""
TABLES = """
from pathlib import Path
Path(results_dir, "tables").mkdir(exist_ok=True)
Path(results_dir, "tables", "methods.md").write_text(f"| {len(runs)} runs |")
"""


SITE = """
def build(preset, options, folder):
    if (folder / "no-site").exists():
        raise RuntimeError("the pages cannot be made")
    (folder / "site").mkdir(exist_ok=True)
    page = folder / "site" / "index.html"
    page.write_text(" ".join([preset, *options]))
    return page
"""


def write_notebook(path: Path, parameters: str, *cells: str, kernel: str = "no-such-kernel") -> Path:
    """A notebook with a parameters cell and these code cells, made for a kernel that is not here."""

    def cell(identity, source, tags=()):
        metadata = {"tags": list(tags)}
        content = {"id": identity, "cell_type": "code", "source": source, "metadata": metadata}
        return content | {"execution_count": None, "outputs": []}

    content = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": {"name": kernel, "display_name": kernel, "language": "python"}},
        "cells": [
            cell("parameters", parameters, ["parameters"]),
            *(cell(f"cell-{i}", source) for i, source in enumerate(cells)),
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def make(root: Path) -> Path:
    """The checkout in `root`: the library copied, and presets over its five notebooks."""
    shutil.copytree(ROOT / "dcopy", root / "dcopy", ignore=shutil.ignore_patterns("bench", "site"))
    (root / "dcopy" / "bench.py").write_text("raise ImportError('no steps are timed in miniature')")
    (root / "dcopy" / "report" / "site").mkdir()
    (root / "dcopy" / "report" / "site" / "build.py").write_text(SITE)
    (root / "dcopy" / "report" / "site" / "remake.py").write_text("def places(folder):\n    return {}\n")
    with open(root / "dcopy" / "workflow" / "presets.py", "a", encoding="utf-8") as presets:
        presets.write(PRESETS)
    for name in ("Snakefile", "pyproject.toml", "requirements.lock", "run_all.sh"):
        shutil.copy(ROOT / name, root / name)
    shutil.copytree(ROOT / "profiles", root / "profiles")
    notebooks = root / "notebooks"
    write_notebook(notebooks / "01_linear_theory.ipynb", RESULTS, "print('theory')")
    write_notebook(notebooks / "02_sample_complexity.ipynb", RESULTS, "print('samples')")
    write_notebook(notebooks / "03_pretrain.ipynb", RESULTS + FIELDS, PRETRAIN)
    write_notebook(notebooks / "04_linear_probe.ipynb", RUNS + "draws: int = 5\n", "print(runs, draws)")
    write_notebook(notebooks / "05_paper_tables.ipynb", RUNS, TABLES)
    return root


def hear_hangups() -> None:
    """For the child of a test that runs under nohup, which ignores them."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def environment(root: Path, **more: str) -> dict[str, str]:
    """With the library of the checkout in `root`, or of this one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DCOPY_", "OMP_"))}
    return kept | {"PYTHONPATH": str(root if (root / "dcopy").exists() else ROOT)} | more


def start(root: Path, *words: str, module: str = "dcopy.workflow.preset", **options) -> subprocess.Popen:
    """`python -m module words` in the checkout."""
    defaults = {"cwd": root, "env": environment(root), "stderr": subprocess.STDOUT}
    command = [sys.executable, "-m", module, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **(defaults | options))


def finish(root: Path, *words: str, seconds: float = 120, **options) -> tuple[int, str]:
    """Exit code and all output of the same."""
    process = start(root, *words, **options)
    output, _ = process.communicate(timeout=seconds)
    return process.returncode, output


ONE = ("smoke", "methods=directcopy")  # five jobs, one of each notebook
ORDER = ["01_linear_theory", "02_sample_complexity", "03_pretrain", "04_linear_probe", "05_paper_tables"]


def markers(root: Path) -> dict[str, int]:
    """Notebook: when its marker was written."""
    paths = (root / "results/smoke/.done").glob("*.json")
    return {json.loads(path.read_text())["notebook"]: path.stat().st_mtime_ns for path in paths}


def would_run(root: Path, *words: str) -> list[str]:
    """The notebooks that a start with these words would run."""
    code, output = finish(root, *words, "-n")
    assert code == 0, output
    lines = [line for line in output.splitlines() if line.startswith("would run")]
    return [line.removeprefix("would run ").split("-")[0] for line in lines]


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


LONG = (*ONE, "epochs=1000", "seeds=2", "-j", "1")  # training would take minutes


def start_long(root: Path, **options):
    """Such a start, once the first training is under way."""
    process = start(root, *LONG, **options)
    wait_for(lambda: any("epoch 1" in log.read_text() for log in logs(root)))
    return process


def logs(root: Path) -> list[Path]:
    return list((root / "results/smoke/logs").glob("03*.log"))


def saved(root: Path) -> list[Path]:
    """What the training in the toy notebook leaves when it is interrupted."""
    return list((root / "results/smoke").glob("saved-*"))
