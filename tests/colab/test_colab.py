"""Colab: installing dcopy there replaces nothing, and the notebooks run with what is there."""

import itertools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import small

from dcopy.workflow.plan import ROOT

# Installed at Colab's versions to run the notebooks with; torch is this environment's.
INSTALLED = [
    "ipykernel",
    "ipython",
    "ipywidgets",
    "jupyterlab_widgets",
    "widgetsnbextension",
    "traitlets",
    "tornado",
    "jupyter_client",
    "jupyter_core",
    "pyzmq",
    "nbclient",
    "nbformat",
    "matplotlib",
    "matplotlib-inline",
    "seaborn",
    "pandas",
    "numpy",
    "scipy",
    "scikit-learn",
    "pillow",
    "Jinja2",
    "tabulate",
    "safetensors",
    "tqdm",
    "packaging",
]
RUN_ALL = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
try:
    nbclient.NotebookClient(notebook, timeout=None, resources={"metadata": {"path": sys.argv[2]}}).execute()
finally:
    nbformat.write(notebook, sys.argv[1])
"""


@pytest.fixture(scope="session")
def listed() -> dict[str, str]:
    """What Colab has installed, of all that dcopy touches: package and version."""
    beside = ROOT.parent / "shared" / "reference" / "colab.txt"
    path = Path(os.environ.get("DCOPY_COLAB_PACKAGES", beside))
    if not path.is_file():
        pytest.skip("no list of Colab's packages; the environment variable DCOPY_COLAB_PACKAGES names one")
    lines = re.findall(r"(?m)^([\w.-]+)==(\S+)", path.read_text(encoding="utf-8"))
    return dict(lines)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """dcopy as the first cell of a notebook installs it."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"  # a copy, since setuptools leaves a build folder beside the code
    shutil.copytree(ROOT / "dcopy", source / "dcopy")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip(sys.executable, "wheel", "--no-deps", "--no-build-isolation", "-w", str(place), str(source))
    (made,) = place.glob("*.whl")
    return made


@pytest.fixture(scope="session")
def colab(bare, listed, wheel, tmp_path_factory) -> tuple[str, Path]:
    """An interpreter with Colab's kernel, widgets and plotting, and a folder far from the repository."""
    python, site_packages = bare
    pip(python, "install", *(f"{name}=={listed[name]}" for name in INSTALLED), "setuptools<81")
    pip(python, "install", "--no-deps", str(wheel))
    (site_packages / "torch.pth").write_text(sysconfig.get_path("purelib"))  # comes after what is installed
    (site_packages / "sitecustomize.py").write_text("import google.colab\n")
    (site_packages / "google" / "colab").mkdir(parents=True)
    (site_packages / "google" / "colab" / "__init__.py").touch()
    repository = tmp_path_factory.mktemp("repository") / "dcopy"
    repository.symlink_to(ROOT)
    config = site_packages / "dcopy" / "config.py"  # with an address, so that results are fetched
    text = config.read_text(encoding="utf-8")
    config.write_text(
        re.sub("(?m)^(REPOSITORY: .* = )None", rf"\g<1>{str(repository)!r}", text), encoding="utf-8"
    )
    return python, tmp_path_factory.mktemp("content")


def pip(python: str, *words: str) -> str:
    command = [python, "-m", "pip", "--disable-pip-version-check", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pretend(site_packages: Path, packages: dict[str, str]) -> None:
    """Let pip find these packages installed, though only their metadata is there."""
    for name, version in packages.items():
        folder = site_packages / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (folder / "INSTALLER").write_text("pip\n")


@pytest.fixture(scope="session")
def bare(tmp_path_factory) -> tuple[str, Path]:
    """An interpreter with pip and nothing else, and where its packages lie."""
    place = tmp_path_factory.mktemp("colab")
    venv.create(place, with_pip=True)
    (site_packages,) = place.glob("lib/python*/site-packages")
    return str(place / "bin" / "python"), site_packages


def test_installing_dcopy_changes_no_package_that_is_there(bare, listed, wheel):
    python, site_packages = bare
    pretend(site_packages, listed)
    said = pip(python, "install", "--dry-run", "--no-index", "--ignore-requires-python", str(wheel))
    assert re.findall(r"Would install (.*)", said) == [f"dcopy-{wheel.name.split('-')[1]}"]


@pytest.fixture(scope="session")
def executed(colab) -> dict[str, subprocess.CompletedProcess]:
    """All notebooks, in small and in one folder: theory beside those that train or read, both in order."""
    python, content = colab
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "DCOPY"))}

    def run(names: list[str]) -> dict[str, subprocess.CompletedProcess]:
        command = [python, "-c", RUN_ALL]
        return {
            name: subprocess.run(
                [*command, str(small.write(name, content)), str(content)],
                cwd=content,
                env=clean,
                capture_output=True,
                text=True,
            )
            for name in names
        }

    theory = [name for name in small.NOTEBOOKS if name[:2] in ("01", "02", "08")]
    with ThreadPoolExecutor() as two:
        done = two.map(run, (theory, [name for name in small.NOTEBOOKS if name not in theory]))
    return dict(itertools.chain.from_iterable(part.items() for part in done))


@pytest.mark.system
@pytest.mark.parametrize("name", small.NOTEBOOKS)
def test_run_all_works_on_colab(colab, executed, name):
    assert executed[name].returncode == 0, executed[name].stderr[-3000:]
    assert "device: " in (colab[1] / f"{name}.ipynb").read_text(encoding="utf-8")
