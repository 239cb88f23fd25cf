"""Does the running interpreter have what pyproject.toml asks for?

`run_all.sh` asks this of the active environment at every start, so nothing heavy is imported:
the answer comes from the metadata of the installed packages.

    python -m dcopy.workflow.environment notebooks dev   # exit code 0, or 1 and a line naming what is missing
    python -m dcopy.workflow.environment --pip           # pip's settings of the network, for a shell to read
"""

from __future__ import annotations

import ast
import importlib.metadata
import shlex
import subprocess
import sys
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"

# The settings of pip that say how packages are reached; the others say where they go and which are taken.
NETWORK = (
    *(
        "index-url",
        "extra-index-url",
        "find-links",
        "no-index",
        "trusted-host",
        "proxy",
        "timeout",
        "retries",
    ),
    *(
        "cert",
        "client-cert",
        "cache-dir",
        "no-cache-dir",
        "keyring-provider",
        "use-feature",
        "use-deprecated",
    ),
)


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


def pip_settings(listing: str) -> dict[str, str]:
    """Environment variables for what `pip config list` says of the network; what pip reads last counts.

    >>> pip_settings("global.index-url='a'\\ninstall.user='true'\\n:env:.index-url='b'")
    {'PIP_INDEX_URL': 'b'}
    """
    found = {}
    for section in ("global", "install", ":env:"):
        for line in listing.splitlines():
            key, _, value = line.partition("=")
            where, _, name = key.rpartition(".")
            if where == section and name.replace("_", "-") in NETWORK:
                found["PIP_" + name.replace("-", "_").upper()] = " ".join(ast.literal_eval(value).split())
    return found


def main(extras: list[str]) -> int:
    if extras == ["--pip"]:
        command = [sys.executable, "-m", "pip", "config", "list"]
        listing = subprocess.run(command, capture_output=True, text=True).stdout
        for name, value in pip_settings(listing).items():
            print(f"export {name}={shlex.quote(value)}")
        return 0
    try:
        lacking = missing(extras)
    except ImportError as error:
        lacking = [error.name]
    if lacking:
        print(f"{sys.executable} lacks " + ", ".join(lacking))
    return bool(lacking)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
