"""The code is linted, notebooks included, and formatted."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dcopy.workflow.plan import ROOT


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=lambda words: words[0])
def test_ruff_has_nothing_to_say(command):
    answer = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stdout


SCRIPTS = ["run_all.sh", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(".ci/*"))]
SCRIPTS += sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("benchmarks/*.sh"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_has_nothing_to_say(script):
    tool = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    answer = subprocess.run([tool, script], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout


NEWER = {  # than the bash 3.2 of macOS
    "associative array": r"(declare|local|typeset) -[a-zA-Z]*[An]",
    "change of case": r"\$\{\w+(\[[^]]*\])?(\^|,)",
    "mapfile": r"\b(mapfile|readarray|coproc)\b",
    "&>>": r"&>>|\|&",
    "negative index": r"\$\{\w+\[-",
    "wait -n": r"wait -[np]",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_run_on_the_bash_of_macos(script):
    text = (ROOT / script).read_text(encoding="utf-8")
    assert not [name for name, pattern in NEWER.items() if re.search(pattern, text)]


def test_the_table_of_situations_names_tests_that_exist():
    table = (ROOT / "tests/README.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", table)
    assert len(named) > 50
    missing = [
        name for file, name in named if f"def {name}(" not in (ROOT / "tests" / file).read_text("utf-8")
    ]
    assert not missing
