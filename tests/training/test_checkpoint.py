"""Checkpoints: what is saved comes back, what is broken is refused, and nothing in them is ever executed."""

import os
import pickle
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import dcopy
from dcopy.training import checkpoint
from dcopy.training.checkpoint import NEWEST, PREVIOUS, fingerprint, load, read, save

TENSORS = {
    "weight": torch.arange(12.0).view(3, 4).t(),  # not contiguous
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "count": torch.tensor(7),
}
HEADER = {
    "config": {"method": "directcopy", "eps": 0.1},
    "channels": 3,
    "epoch": 3,
    "step": 0,
    "seconds": 1.5,
}


def at(epoch):
    return HEADER | {"epoch": epoch}


@pytest.mark.parametrize("name", ["runs", "run #2: {a}\n'\"", os.fsdecode(b"caf\xe9 \xff")])
def test_what_is_saved_comes_back_from_a_folder_of_any_name(name, tmp_path):
    save(tmp_path / name, TENSORS, HEADER)
    tensors, header = load(tmp_path / name)
    assert header == HEADER and tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name], tensor) and tensors[name].dtype == tensor.dtype


def test_the_one_before_is_kept(tmp_path):
    assert load(tmp_path) is None
    for epoch in (1, 2, 3):
        save(tmp_path, TENSORS, at(epoch))
    assert load(tmp_path)[1] == at(3)
    assert read(tmp_path / PREVIOUS)[1] == at(2)
    assert sorted(os.listdir(tmp_path)) == sorted([NEWEST, PREVIOUS])


# broken files


def without(name):
    return {key: value for key, value in HEADER.items() if key != name}


def whole(folder, tensors=TENSORS, header=HEADER):
    save(folder, tensors, header)
    return (folder / NEWEST).read_bytes()


def foreign(folder, metadata):
    save_file({"a": torch.zeros(2)}, folder / "other", metadata=metadata)
    return (folder / "other").read_bytes()


BROKEN = {
    "empty": lambda folder: b"",
    "short": lambda folder: whole(folder)[:5],
    "truncated": lambda folder: whole(folder)[:-1],
    "longer": lambda folder: whole(folder) + b"0",
    "garbage": lambda folder: bytes(range(256)) * 8,
    "pickle": lambda folder: pickle.dumps(TENSORS),
    "of another program": lambda folder: foreign(folder, None),
    "header no JSON": lambda folder: foreign(folder, {"dcopy": "{"}),
    "header a list": lambda folder: foreign(folder, {"dcopy": "[]"}),
    **{f"no {name}": lambda folder, name=name: whole(folder, header=without(name)) for name in HEADER},
    "configuration a list": lambda folder: whole(folder, header=HEADER | {"config": []}),
    "NaN": lambda folder: whole(folder, TENSORS | {"half": torch.tensor([1.5, torch.nan])}),
}


@pytest.mark.parametrize("make", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused_with_its_name(make, tmp_path):
    path = tmp_path / NEWEST
    content = make(tmp_path)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{path} is not a complete checkpoint of dcopy \(.+\); delete it"):
        load(tmp_path)
    assert path.read_bytes() == content


def test_a_broken_newest_gives_the_one_before(tmp_path, caplog):
    for epoch in (1, 2):
        save(tmp_path, TENSORS, at(epoch))
    (tmp_path / NEWEST).write_bytes(b"")
    assert load(tmp_path)[1] == at(1)
    assert f"{tmp_path / NEWEST} is not a complete checkpoint" in caplog.text  # not in silence


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("dump", [lambda bomb, path: path.write_bytes(pickle.dumps(bomb)), torch.save])
def test_a_hostile_pickle_in_its_place_is_never_executed(dump, tmp_path):
    marker = tmp_path / "executed"
    for name in (NEWEST, PREVIOUS):
        dump(Bomb(marker), tmp_path / name)
    with pytest.raises(ValueError, match="is not a complete checkpoint"):
        load(tmp_path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists()  # it would have been seen


def test_no_module_loads_pickles():
    for path in Path(dcopy.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not any(word in text for word in ("torch.load(", "import pickle", "allow_pickle=True")), path


# writing


@pytest.fixture
def full_disk():
    """No file may grow beyond 4 KiB, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_an_os_error_and_leaves_what_was_there(tmp_path, full_disk):
    for epoch in (1, 2):
        save(tmp_path, TENSORS, at(epoch))
    with pytest.raises(OSError, match=rf"{tmp_path / NEWEST} could not be written"):
        save(tmp_path, {"large": torch.zeros(10_000)}, at(3))
    assert load(tmp_path)[1] == at(2) and read(tmp_path / PREVIOUS)[1] == at(1)
    assert sorted(os.listdir(tmp_path)) == sorted([NEWEST, PREVIOUS])


def test_nothing_is_renamed_before_the_new_file_is_on_disk(tmp_path, monkeypatch):
    for epoch in (1, 2):
        save(tmp_path, TENSORS, at(epoch))

    def fail(descriptor):
        raise OSError("Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        save(tmp_path, TENSORS, at(3))
    assert load(tmp_path)[1] == at(2) and read(tmp_path / PREVIOUS)[1] == at(1)


# names


def test_part_takes_one_network_out():
    tensors = {"online.a.weight": 1, "online_2.b": 2, "target.a.weight": 3}
    assert checkpoint.part(tensors, "online") == {"a.weight": 1}


def test_the_fingerprint_is_that_of_the_weights():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    digits = fingerprint(network)
    assert len(digits) == 16 and fingerprint(network.to(memory_format=torch.channels_last)) == digits
    assert fingerprint(network.requires_grad_(False).eval()) == digits
    for tensor in (network[0].bias, network[1].running_mean):
        tensor[0] = torch.nextafter(tensor[0], torch.tensor(9.0))
        assert fingerprint(network) != digits
        digits = fingerprint(network)
