"""The repository's address: set everywhere in one go, and fetched from by nobody while there is none."""

import json
import re
import shutil
import subprocess

import pytest
import yaml

from dcopy.report import address, readme
from dcopy.workflow.plan import ROOT

URL = "https://github.com/you/dcopy"
PLACES = ("README.md", "CITATION.cff", "dcopy/config.py", "notebooks", "results/reference/published.csv")


@pytest.fixture
def checkout(tmp_path):
    """The files that name the address, and what the README's parts are made of; without an address."""
    for name in PLACES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, tmp_path / name)
    address.write(tmp_path, None)
    return tmp_path


def contents(root):
    return {
        path: path.read_text(encoding="utf-8")
        for path in root.rglob("*")
        if path.suffix != ".csv" and path.is_file()
    }


def test_one_command_sets_it_everywhere(checkout):
    address.write(checkout, URL)
    files = {path.relative_to(checkout).as_posix(): text for path, text in contents(checkout).items()}
    assert re.search(f'(?m)^REPOSITORY: .* = "{URL}"  #', files["dcopy/config.py"])
    assert yaml.safe_load(files["CITATION.cff"])["repository-code"] == URL
    assert f"url = {{{URL}}}" in files["README.md"] and f"git clone {URL}" in files["README.md"]
    for name in (name for name in files if name.endswith(".ipynb")):
        assert f"https://colab.research.google.com/github/you/dcopy/blob/main/{name}" in files[name]
        assert f'"dcopy @ git+{URL}' in files[name].replace("\\", "")


def test_taking_it_out_leaves_no_trace(checkout):
    before = contents(checkout)
    address.write(checkout, URL)
    assert contents(checkout) != before
    address.write(checkout, "https://gitlab.com/you/dcopy")  # an address, but none that Colab opens
    assert not any("colab.research" in text for text in contents(checkout).values())
    address.write(checkout, None)
    assert contents(checkout) == before


def test_without_an_address_nothing_fetches(checkout):
    for path, text in contents(checkout).items():
        assert not re.search(r"git\+http|Open In Colab|pip install --quiet", text), path
    cell = address.setup_cell(None)
    with pytest.raises(ImportError, match="upload") as stop:
        exec(cell.replace("import dcopy", "import no_such_module", 1))
    assert "\n" not in str(stop.value)


@pytest.mark.parametrize(
    "remote",
    [
        "https://github.com/you/dcopy",
        "https://github.com/you/dcopy.git",
        "https://user:secret@github.com/you/dcopy/",
        "git@github.com:you/dcopy.git",
        "ssh://git@github.com:22/you/dcopy.git",
    ],
)
def test_every_form_of_a_remote_is_understood_and_no_password_kept(remote):
    assert address.normalized(remote) == URL


@pytest.mark.parametrize(
    "remote", ["", "/srv/dcopy", "../dcopy", "file:///srv/dcopy", "https://github.com", "dcopy"]
)
def test_what_others_cannot_reach_is_refused(remote):
    with pytest.raises(ValueError, match="is not the address of a repository"):
        address.normalized(remote)


def test_the_command_reads_gits_remote(checkout, monkeypatch, capsys):
    monkeypatch.setattr(address.plan, "ROOT", checkout)
    assert address.main([]) == 2 and "no remote" in capsys.readouterr().err
    git = ["git", "-C", str(checkout)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "remote", "add", "origin", "git@github.com:you/dcopy.git"], check=True)
    assert address.main([]) == 0 and capsys.readouterr().out == f"address: {URL}\n"
    assert URL in (checkout / "CITATION.cff").read_text(encoding="utf-8")
    assert address.main(["none"]) == 0 and readme.colab(None, "") == ""


def test_every_notebook_of_the_checkout_has_one_first_cell():
    cells = {
        "".join(
            next(
                c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"
            )["source"]
        )
        for path in (ROOT / "notebooks").glob("*.ipynb")
    }
    assert len(cells) == 1
