"""The repository's address, wherever it is named: `python -m dcopy.report.address [URL]`.

Sets badges, links and first cells of the notebooks, README.md, CITATION.cff and `config.REPOSITORY` in one
go, from URL or from git's remote `origin`; `none` takes the address out again. Without one, nothing fetches
from anywhere: a first cell that installs from a name that nobody owns runs whatever a stranger puts there.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

from .. import results
from ..workflow import plan
from . import readme

WITH_ADDRESS = """try:
    import dcopy
except ImportError:  # Colab: adds dcopy alone and leaves all that is installed as it is
    %pip install --quiet "dcopy @ git+{repository}"
    import dcopy

dcopy.print_environment()"""

WITHOUT_ADDRESS = """try:
    import dcopy
except ImportError:
    how = "`pip wheel --no-deps .` in its folder makes a wheel; upload that here and `%pip install` it"
    raise ImportError(f"dcopy is not installed: {how}") from None

dcopy.print_environment()"""


def setup_cell(repository: str | None) -> str:
    """The first code cell of every notebook."""
    return WITH_ADDRESS.format(repository=repository) if repository else WITHOUT_ADDRESS


def badge(repository: str | None, notebook: str) -> str:
    """The line of Markdown that opens a notebook in Colab, which reads from GitHub alone; else ''."""
    link = readme.colab(repository, f"notebooks/{notebook}.ipynb")
    image = "https://colab.research.google.com/assets/colab-badge.svg"
    return f"[![Open In Colab]({image})]({link})" if link else ""


def normalized(url: str) -> str:
    """An address that others can read from: https, without user, password and `.git`.

    Raises:
        ValueError: it is a folder, or no address of a repository.

    >>> normalized("git@github.com:you/dcopy.git"), normalized("https://me:secret@gitlab.com/you/dcopy/")
    ('https://github.com/you/dcopy', 'https://gitlab.com/you/dcopy')
    """
    found = re.fullmatch(
        r"(?:(?:https?|ssh|git)://(?:[^@/]*@)?|[\w.-]+@)([\w-]+(?:\.[\w-]+)+)(?::\d+)?[/:]([\w./~-]+?)(?:\.git)?/*",
        url.strip(),
    )
    if not found or "/" not in found[2]:
        raise ValueError(f"{url!r} is not the address of a repository, such as https://github.com/you/dcopy")
    return f"https://{found[1]}/{found[2]}"


def origin(root: Path) -> str:
    """Git's remote `origin`.

    Raises:
        ValueError: there is none.
    """
    command = ["git", "-C", str(root), "remote", "get-url", "origin"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        raise ValueError("git knows no remote `origin` here; give the address") from None


def write(root: Path, repository: str | None) -> None:
    """Put the address, or its absence, into every file of a checkout that names it."""
    literal = f'"{repository}"' if repository else "None"
    _substitute(root / "dcopy/config.py", r"(?m)^(REPOSITORY: .* = )\S+", rf"\g<1>{literal}")
    line = f"repository-code: {repository}\n" if repository else ""
    _substitute(root / "CITATION.cff", r"(?m)^(license: .*\n)(repository-code: .*\n)?", rf"\g<1>{line}")
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        content = json.loads(path.read_text(encoding="utf-8"))
        title, setup = content["cells"][0], next(c for c in content["cells"] if c["cell_type"] == "code")
        heading, *text = "".join(title["source"]).split("\n\n")
        text = [paragraph for paragraph in text if not paragraph.startswith("[![Open In Colab]")]
        paragraphs = filter(None, [heading, badge(repository, path.stem), *text])
        title["source"] = "\n\n".join(paragraphs).splitlines(keepends=True)
        setup["source"] = setup_cell(repository).splitlines(keepends=True)
        results.write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    text = (root / "README.md").read_text(encoding="utf-8")
    results.write_text(root / "README.md", readme.fill(text, root, repository))


def _substitute(path: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, path.read_text(encoding="utf-8"))
    if count != 1:
        raise ValueError(f"{path} does not name the repository's address where it should")
    results.write_text(path, text)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dcopy.report.address", description=__doc__ and __doc__.splitlines()[0]
    )
    parser.add_argument("url", nargs="?", help="address, or none (default: git's remote origin)")
    given = parser.parse_args(arguments).url
    try:
        repository = None if given == "none" else normalized(given or origin(plan.ROOT))
        write(plan.ROOT, repository)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"address: {repository or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
