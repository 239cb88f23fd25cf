"""One place for dependencies: lock file and environment.yml agree with pyproject.toml on every Python."""

import json
import re
import subprocess
import sys

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import dcopy
from dcopy.config import REPOSITORY
from dcopy.workflow import environment
from dcopy.workflow.plan import ROOT

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
EXTRAS = ("notebooks", "slurm", "lightly", "datasets", "timm", "heic", "browser", "dev")
LOCK = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]


def project() -> dict:
    return environment.read_pyproject()["project"]


def on(python: str, platform: str = "linux") -> dict[str, str]:
    """The values of environment markers there."""
    return {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": platform}


def locked(python: str) -> dict[str, str]:
    """Package: the version that the lock file gives it on that Python."""
    lines = [Requirement(line) for line in LOCK]
    here = [line for line in lines if line.marker is None or line.marker.evaluate(on(python))]
    return {canonicalize_name(line.name): str(line.specifier).removeprefix("==") for line in here}


def test_the_lock_is_exact_and_says_nothing_of_where_packages_come_from():
    for line in LOCK:
        assert re.fullmatch(r"[a-z0-9-]+==[^ ;*+@/]+( ; [^@/]+)?", line), line


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_satisfies_pyproject(python):
    versions = locked(python)
    lines = project()["dependencies"] + [
        line for extra in EXTRAS for line in project()["optional-dependencies"][extra]
    ]
    for line in map(Requirement, lines):
        if line.marker is None or line.marker.evaluate(on(python)):
            assert line.specifier.contains(versions[canonicalize_name(line.name)]), line


def test_every_extra_is_covered():
    assert set(project()["optional-dependencies"]) == set(EXTRAS)


def test_the_pythons_of_the_lock_are_those_of_pyproject():
    allowed = SpecifierSet(project()["requires-python"])
    assert all(allowed.contains(python) for python in PYTHONS)
    assert not allowed.contains("3.9") and not allowed.contains("3.14")


def test_conda_installs_the_lock_on_a_python_that_it_covers():
    content = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert content["channels"] == ["conda-forge"]
    *others, pip = content["dependencies"]
    python = next(line.removeprefix("python=") for line in others if line.startswith("python="))
    assert python in PYTHONS
    assert pip == {"pip": ["-r requirements.lock", "-e ."]}


def test_bounds_are_lower_bounds():
    """So that installing dcopy moves no torch or numpy that is there; exact versions are the lock's."""
    for line in map(Requirement, project()["dependencies"]):
        assert [bound.operator for bound in line.specifier] == [">="], line


def test_the_core_needs_nothing_beyond_six_packages():
    names = {Requirement(line).name for line in project()["dependencies"]}
    assert names == {"torch", "torchvision", "numpy", "scikit-learn", "safetensors", "tqdm"}


def test_training_and_theory_work_without_what_notebooks_need():
    script = """
import sys
for name in ("pandas", "matplotlib", "seaborn", "IPython", "papermill", "snakemake"):
    sys.modules[name] = None  # cannot be imported
import dcopy
for name in (*dcopy._PUBLIC, "augment", "data", "models", "theory"):
    getattr(dcopy, name)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


# does an environment have what is asked for?


def test_this_environment_satisfies_pyproject():
    assert environment.missing(EXTRAS) == []


def test_what_is_absent_or_too_old_is_named(tmp_path, monkeypatch, capsys):
    lines = ["numpy>=1", "numpy>=99", "no-such-package", "gone; python_version < '3'"]
    (tmp_path / "pyproject.toml").write_text(f"[project]\ndependencies = {json.dumps(lines)}\n")
    monkeypatch.setattr(environment, "PYPROJECT", tmp_path / "pyproject.toml")
    assert environment.missing() == ["numpy>=99", "no-such-package"]
    assert environment.main([]) == 1
    assert capsys.readouterr().out.endswith(" lacks numpy>=99, no-such-package\n")


def test_the_citation_is_of_this_version_and_this_repository():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == dcopy.__version__ and citation.get("repository-code") == REPOSITORY
    assert citation["license"] == project()["license"]
    paper = citation["preferred-citation"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"title = {{{paper['title']}}}" in readme and f"version = {{{citation['version']}}}" in readme
