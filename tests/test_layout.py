"""Each room imports only from the rooms below it: the contracts of pyproject.toml, and that they bite."""

import re
import shutil
import subprocess
import sys

import pytest

from dcopy.workflow.plan import ROOT


def lint(root):
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    return subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)


def test_every_import_goes_downwards():
    answer = lint(ROOT)
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("config.py", "from . import results", "The ground floor stands on nothing of ours"),
        ("models.py", "from . import predictors", "Rooms import downwards only"),
        ("data/folder.py", "from ..training import step", "Rooms import downwards only"),
        ("workflow/plan.py", "from ..evaluation import probes", "The workflow plans without torch"),
        ("workflow/presets.py", "import torch", "The workflow plans without torch"),
        ("attic.py", "", "Rooms import downwards only"),  # a new module is in no room
    ],
)
def test_a_wrong_import_breaks_its_contract(tmp_path, module, line, contract):
    shutil.copytree(ROOT / "dcopy", tmp_path / "dcopy", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with open(tmp_path / "dcopy" / module, "a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    answer = lint(tmp_path)
    assert answer.returncode == 1 and f"{contract} BROKEN" in answer.stdout, answer.stdout + answer.stderr


def test_the_situations_in_the_readme_of_the_tests_name_tests_that_exist():
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (ROOT / "tests/README.md").read_text(encoding="utf-8"))
    assert len(named) > 20
    for file, name in named:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), name
