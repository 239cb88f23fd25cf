"""Batches from disk: which images and crops a step gets, whoever reads them and however often a run stops."""

import os
import signal
import sys

import numpy as np
import pytest
import torch
from helpers.pictures import small_imagenet
from helpers.ranks import as_torchrun
from helpers.tiny import assert_same, tiny_config, tiny_run
from torchvision.transforms import functional as F

from dcopy import data, machine
from dcopy.data import augment, imagenet, load
from dcopy.training import batches, ranks
from dcopy.training.graphs import FastStep
from dcopy.training.interrupt import Interrupted
from dcopy.training.step import Trainer, derive_seed

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forks")
SMALL = {"dataset": "imagenette", "encoder": "resnet18", "image_size": 32}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """24 images on disk, so three steps of eight."""
    root = tmp_path_factory.mktemp("root")
    small_imagenet(root / "imagenette", train=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(imagenet.KNOWN, "imagenette", (2, 24, 4))
        return load("imagenette", root, image_size=32, progress=False).train


def config(**fields):
    return tiny_config(**SMALL | {"batch_size": 8, "epochs": 2} | fields)


def build(images, group=None, **fields):
    one = config(**fields)
    augmentation = augment.build("imagenet", one.image_size)
    return batches.build(images, one, augmentation, torch.device("cpu"), group or ranks.Alone())[0]


def begin(images, group=None, epoch=0, step=0, **fields):
    return build(images, group, **fields).begin(epoch, step)


def test_a_step_gets_two_crops_of_each_of_its_images(images):
    """Those that the crop draws for images of these sizes, from a stream of seed, epoch and step."""
    crops = [*begin(images)][4]
    order = torch.randperm(24, generator=torch.Generator().manual_seed(derive_seed(0, "order", 1)))[8:16]
    stream = torch.Generator().manual_seed(derive_seed(0, "crop", 1, 1))
    crop = augment.build("imagenet", 32).operations[0]
    assert crops.shape == (8, 2, 3, 32, 32) and crops.dtype == torch.uint8
    for view in range(2):
        H, W = images.sizes(order.numpy())
        drawn = crop.sample((8, 3, H, W), stream)
        for i, index in enumerate(order.tolist()):
            with images.opened(index) as image:
                box = (int(drawn[name][i]) for name in ("top", "left", "height", "width"))
                expected = np.asarray(F.resized_crop(image, *box, (32, 32)))
            assert np.array_equal(crops[i, view].permute(1, 2, 0), expected)
    assert not torch.equal(crops[:, 0], crops[:, 1])


def test_an_image_is_read_once_for_both_of_its_crops(images, monkeypatch):
    read, jpeg = [], type(images).jpeg
    monkeypatch.setattr(type(images), "jpeg", lambda self, i: (read.append(i), jpeg(self, i))[1])
    reader = batches.Reader(images, augment.build("imagenet", 32).operations[0], 0, slice(2, 6))
    assert reader[0, 0, np.arange(8)].shape == (4, 2, 32, 32, 3)
    assert read == [2, 3, 4, 5]


def test_batches_that_are_kept_stay_as_they_are(images):
    """Though workers read each further one into the memory of one before."""
    fingerprints, kept = [], []
    for batch in begin(images, epochs=6):
        kept.append(batch)
        fingerprints.append(data.fingerprint(batch))
    assert [data.fingerprint(batch) for batch in kept] == fingerprints and len({*fingerprints}) == 18


def test_each_crop_becomes_a_view_of_its_own():
    made = FastStep(Trainer(tiny_config(), channels=1), augment.Augmentation(()))
    crops = torch.randint(256, (4, 2, 1, 8, 8), dtype=torch.uint8)
    for view, x in enumerate(made.views(crops, torch.Generator())):
        assert torch.equal(x, crops[:, view] / 255)


def test_the_number_of_workers_does_not_matter(images, monkeypatch):
    everything = [*begin(images)]
    monkeypatch.setattr(machine, "cores", lambda: 3)
    assert all(torch.equal(a, b) for a, b in zip(everything, begin(images), strict=True))


def test_a_run_that_goes_on_gets_the_batches_that_were_left(images):
    everything = [*begin(images)]
    assert len(everything) == 6
    assert all(torch.equal(a, b) for a, b in zip(everything[4:], begin(images, epoch=1, step=1), strict=True))


def test_reading_leaves_the_global_stream_alone(images):
    torch.manual_seed(0)
    next(begin(images))
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))


def test_ranks_read_their_parts_of_the_same_batches(images, tmp_path):
    whole = [*begin(images, batch_size=9, epochs=1)]

    def read(rank):
        with ranks.joined(config(batch_size=9, epochs=1), torch.device("cpu"), minutes=1) as group:
            return [*begin(images, group, batch_size=9, epochs=1)]

    parts = as_torchrun(read, tmp_path)
    assert [len(part[0]) for part in parts] == [4, 5]
    assert all(torch.equal(torch.cat(own), batch) for *own, batch in zip(*parts, whole, strict=True))


def test_the_rest_of_the_augmentation_differs_by_view(images):
    """BYOL blurs the first view always and the second seldom, which is solarized at times instead."""
    crop, rest = augment.build("imagenet", 64).after_crop()
    assert crop.size == (64, 64)
    first, second = ({type(one).__name__: one for one in view.operations} for view in rest.views)
    assert (first["GaussianBlur"].p, second["GaussianBlur"].p) == (1.0, 0.1)
    assert first["GaussianBlur"].kernel == second["GaussianBlur"].kernel == 7  # 23 of 224
    assert "Solarize" not in first and second["Solarize"].p == 0.2
    assert "RandomResizedCrop" not in first


@pytest.mark.parametrize("after", [1, 4])
def test_a_stopped_run_goes_on_bit_by_bit(images, tmp_path, monkeypatch, after):
    whole = tiny_run(tmp_path / "whole", config(), images=images)
    take, taken = batches.FromDisk.begin, []

    def stopping(self, *place):
        for batch in take(self, *place):
            taken.append(place)
            if len(taken) == after:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(batches.FromDisk, "begin", stopping)
    with pytest.raises(Interrupted):
        tiny_run(tmp_path / "stopped", config(), images=images)
    assert_same(whole, tiny_run(tmp_path / "stopped", config(), images=images))
    assert taken[after] == divmod(after, 3)


def test_the_wait_for_data_is_told(images, tmp_path, capsys):
    run = tiny_run(tmp_path, config(epochs=2), images=images, progress=True)
    assert all(0 < record["data_wait"] < 1 for record in run.metrics)
    assert f"{run.metrics[1]['data_wait']:.1%} waiting for data" in capsys.readouterr().out


def test_the_wait_is_that_since_it_was_last_asked_for(images):
    made = build(images)
    assert len([*made.begin(0, 0)]) == 6
    assert 0 < made.facts()["data_wait"] <= 1 and made.facts() == {"data_wait": 0.0}


def test_a_damaged_image_stops_the_run_by_one_line(images, tmp_path, monkeypatch):
    monkeypatch.setattr(type(images), "jpeg", lambda self, i: b"\xff\xd8")
    with pytest.raises(ValueError, match=r"image \d+ in .*train-00000\.tar cannot be read") as error:
        tiny_run(tmp_path, config(), images=images)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "number, line",
    [
        (signal.SIGKILL, "a process that reads images has ended .*goes on from the last"),
        (signal.SIGBUS, "have no shared memory left; .*--shm-size"),  # as where a container has little
    ],
)
def test_a_worker_that_is_killed_stops_the_run_by_one_line(number, line, images, tmp_path, monkeypatch):
    monkeypatch.setattr(batches.Reader, "__getitem__", lambda *_: os.kill(os.getpid(), number))
    with pytest.raises(OSError, match=line) as error:
        tiny_run(tmp_path, config(), images=images)
    assert "\n" not in str(error.value)


def test_signals_to_the_whole_group_leave_the_workers_alone(images):
    """As Ctrl-C and batch systems send them: the process that trains decides when to stop."""
    read = begin(images)
    next(read)
    for child in torch.multiprocessing.active_children():
        os.kill(child.pid, signal.SIGINT)
        os.kill(child.pid, signal.SIGTERM)
    assert len([*read]) == 5


def test_memory_holds_a_fixed_number_of_bytes_an_image(images):
    """The rest is what is being read: four times the images, four times the index and nothing else."""
    many = images + images + images + images
    small, large = (
        sum(v.nbytes for v in vars(one).values() if isinstance(v, np.ndarray)) for one in (images, many)
    )
    assert large == 4 * small == len(many) * 32
    assert images.nbytes == 0
