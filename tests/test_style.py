"""The code is linted, notebooks included, and formatted."""

import subprocess
import sys

import pytest

from dcopy.workflow.plan import ROOT


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=lambda words: words[0])
def test_ruff_has_nothing_to_say(command):
    answer = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize("script", ["run_all.sh", ".ci/run"])
def test_scripts_are_valid_bash(script):
    subprocess.run(["bash", "-n", script], cwd=ROOT, check=True)
