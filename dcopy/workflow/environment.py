"""Does the running interpreter have what pyproject.toml asks for?

`run_all.sh` asks this of the active environment at every start, so nothing heavy is imported:
the answer comes from the metadata of the installed packages.

    python -m dcopy.workflow.environment notebooks dev   # exit code 0, or 1 and a line naming what is missing
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def read_pyproject() -> dict:
    """Raises ImportError where an environment cannot even read TOML."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))


def requirements(extras=()) -> list:
    """What pyproject.toml asks for on this Python: the core and the named extras, as `Requirement`s.

    Raises:
        ImportError: this environment cannot even read TOML or compare versions.
        KeyError: an extra does not exist.
    """
    from packaging.requirements import Requirement

    project = read_pyproject()["project"]
    lines = list(project["dependencies"])
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    found = [Requirement(line) for line in lines]
    return [item for item in found if item.marker is None or item.marker.evaluate()]


def missing(extras=()) -> list[str]:
    """The requirements that no installed package meets, as pyproject.toml writes them."""
    return [str(item) for item in requirements(extras) if not _installed(item)]


def _installed(requirement) -> bool:
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return requirement.specifier.contains(version, prereleases=True)


def main(extras: list[str]) -> int:
    try:
        lacking = missing(extras)
    except ImportError as error:
        lacking = [error.name]
    if lacking:
        print(f"{sys.executable} lacks " + ", ".join(lacking))
    return bool(lacking)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
