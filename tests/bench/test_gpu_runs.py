"""The list of GPU runs goes on where it stopped, and takes its data from parts. No test needs a GPU."""

import hashlib
import os
import runpy
import subprocess
import tarfile
from unittest.mock import Mock

import pytest
import torch

from dcopy import data, results
from dcopy.workflow import plan
from dcopy.workflow.presets import Preset

torch.set_num_threads(1)  # the fastest for a network so small

SCRIPT = plan.ROOT / "benchmarks" / "gpu.sh"


def start(root):
    """gpu.sh with a stand-in for Python that only says how it was called."""
    environment = os.environ | {"DCOPY_DATA": str(root), "PYTHON": "echo"}
    return subprocess.run(["bash", SCRIPT, "60"], env=environment, capture_output=True, text=True)


@pytest.fixture
def parts(tmp_path):
    """A data set in three parts, and the file that lists them."""
    image = tmp_path / "cifar10" / "train" / "cat" / "1.png"
    image.parent.mkdir(parents=True)
    image.write_bytes(bytes(range(256)) * 40)
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(tmp_path / "cifar10", "cifar10")
    root = tmp_path / "data"
    (root / "parts").mkdir(parents=True)
    whole, names = (tmp_path / "all.tar").read_bytes(), ("a", "b", "c")
    size, sums = len(whole) // 3 + 1, ""
    for i, name in enumerate(names):
        part = whole[i * size : (i + 1) * size]
        (root / "parts" / name).write_bytes(part)
        sums += f"{hashlib.sha256(part).hexdigest()}  {name}\n"
    (root / "parts" / "SHA256SUMS").write_text(sums)
    return root


def test_data_in_parts_is_unpacked_once_all_are_there(parts, tmp_path):
    done = start(parts)
    assert (done.returncode, done.stdout) == (0, "benchmarks/gpu_runs.py --seconds 60\n")
    found = parts / "cifar10" / "train" / "cat" / "1.png"
    assert found.read_bytes() == (tmp_path / "cifar10/train/cat/1.png").read_bytes()


@pytest.mark.parametrize("missing", [True, False])
def test_a_part_that_is_missing_or_damaged_is_waited_for(parts, missing):
    part = parts / "parts" / "b"
    part.unlink() if missing else part.write_bytes(b"damaged")
    done = start(parts)
    assert done.returncode == 75 and "gpu_runs.py" not in done.stdout
    assert "parts of the data are missing or damaged" in done.stderr
    assert not (parts / "cifar10").exists()


@pytest.fixture
def runs(monkeypatch, tmp_path):
    """The script's names, over random images and a list of one group, with results in `tmp_path`."""
    script = runpy.run_path(str(SCRIPT.with_name("gpu_runs.py")))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (160, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.arange(160) % 2
    monkeypatch.setattr(
        data, "load", lambda name: data.ImageData(name, images, labels, images, labels, ("a", "b"))
    )
    monkeypatch.setattr(results, "root", lambda: tmp_path)
    scope = script["main"].__globals__
    monkeypatch.setitem(
        scope,
        "PRESET",
        Preset(
            "", ({"method": "none"}, {"method": "directcopy"}), {"dataset": "cifar10", "precision": "auto"}
        ),
    )

    def in_this_process(folder):
        return Mock(returncode=script["main"]([f"--probe={folder}"]))

    monkeypatch.setitem(scope, "begin_probe", in_this_process)
    return script["main"]


def test_the_list_goes_on_where_it_stopped(runs, tmp_path, capsys):
    trial = ["--width=2", "--epochs=2"]
    assert runs([*trial, "--seconds=5"]) == 75  # less than a run is begun with
    assert not list(tmp_path.rglob("result.json"))
    assert runs([*trial, "--seconds=300"]) == 0
    assert capsys.readouterr().out.endswith("All is done.\n")
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert len(list(tmp_path.rglob("result.json"))) == 3  # DirectCopy in fp32, too
    assert len(list(tmp_path.rglob("*seed0*/probe.json"))) == 3 + 1  # the baseline
    assert runs([*trial, "--seconds=300"]) == 0
    assert finished == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
