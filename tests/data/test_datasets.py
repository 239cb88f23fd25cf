"""Data sets: sizes, splits kept apart, and checks of users' tensors."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from dcopy.data import ImageData, check_images, datasets, describe, fingerprint, load, why_no_probe


def rows(images):
    """The images as a set of byte strings, to compare splits by content."""
    return {image.numpy().tobytes() for image in images}


def small_data(**changes):
    fields = {
        "name": "small",
        "train": torch.zeros(4, 3, 8, 8, dtype=torch.uint8),
        "train_labels": torch.tensor([0, 0, 1, 1]),
        "test": torch.ones(2, 3, 8, 8, dtype=torch.uint8),
        "test_labels": torch.tensor([0, 1]),
        "classes": ("cat", "dog"),
    }
    return ImageData(**(fields | changes))


# CIFAR as image files


@pytest.fixture
def unpacked(tmp_path):
    """A data root with cifar10/{train,test}/<class>/ of two black training images, and a white test image."""
    for path, color in (("train/cat/1", 0), ("train/dog/1", 0), ("test/dog/1", 255)):
        file = tmp_path / "cifar10" / f"{path}.png"
        file.parent.mkdir(parents=True)
        Image.new("RGB", (32, 32), (color, color, color)).save(file)
    return tmp_path


def test_cifar_as_image_files_is_used(unpacked, monkeypatch):
    monkeypatch.setitem(datasets.CIFAR, "cifar10", (2, 1, 2, (0.0, 0.0, 0.0)))
    data = load("cifar10", unpacked, download=False, progress=False)
    assert (data.name, len(data.train), len(data.test)) == ("cifar10", 2, 1)
    assert data.test.min() == 255 and data.test_labels.tolist() == [1]


@pytest.mark.parametrize(
    "known", [(3, 1, 2, (0.0,) * 3), (2, 2, 2, (0.0,) * 3), (2, 1, 3, (0.0,) * 3), (2, 1, 2, (0.0, 0.1, 0.0))]
)
def test_image_files_that_are_not_cifar_are_refused(unpacked, monkeypatch, known):
    monkeypatch.setitem(datasets.CIFAR, "cifar10", known)
    with pytest.raises(ValueError, match="cifar10 is not cifar10: 2 train and 1 test images of 2 classes"):
        load("cifar10", unpacked, download=False, progress=False)


# digits


def test_digits_have_the_stated_sizes():
    data = load("digits")
    assert data.train.shape == (1297, 1, 16, 16) and data.test.shape == (500, 1, 16, 16)
    assert data.train.dtype == torch.uint8 and data.train.is_contiguous() and data.test.is_contiguous()
    assert data.train.min() == 0 and data.train.max() == 255
    assert data.classes == tuple("0123456789")


def test_digits_split_is_stratified_and_disjoint():
    data = load("digits")
    train, test = data.train_labels.bincount(), data.test_labels.bincount()
    assert torch.allclose(train / train.sum(), test / test.sum(), atol=2e-3)
    assert not rows(data.train) & rows(data.test)


def test_digits_split_is_fixed():
    """The numbers in the results rest on this split: a library that draws another one shall be noticed."""
    data = load("digits")
    digest = hashlib.sha256(data.test.numpy().tobytes() + data.train_labels.numpy().tobytes()).hexdigest()
    assert digest[:16] == "bd0379b7eef41fff"


def test_digits_are_upsampled_bilinearly():
    """All images, in whatever order, against Pillow's bilinear resize."""
    data = load("digits")
    eight = [Image.fromarray(image.astype(np.float32) * (255 / 16)) for image in load_digits().images]
    sixteen = np.stack([np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR)) for image in eight])
    assert rows(data.train) | rows(data.test) == rows(torch.from_numpy(sixteen).round().to(torch.uint8))


# ImageData


def test_pretrain_is_train_and_unlabeled_and_never_test():
    train, unlabeled, test = torch.randint(256, (9, 3, 8, 8), dtype=torch.uint8).split((4, 3, 2))
    data = small_data(train=train, unlabeled=unlabeled, test=test)
    assert torch.equal(data.pretrain(), torch.cat((train, unlabeled)))
    assert not rows(data.pretrain()) & rows(data.test)
    assert torch.equal(small_data(train=train, test=test).pretrain(), train)


def test_describe_names_the_sizes_of_the_three_splits():
    data = small_data(unlabeled=torch.zeros(1000, 3, 8, 8, dtype=torch.uint8))
    assert describe(data) == "small: 4 train, 1,000 unlabeled, 2 test images of 3x8x8, 2 classes"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": torch.zeros(4, 3, 8, 8)}, r"train: uint8 .* got float32 \(4, 3, 8, 8\)"),
        ({"test": torch.zeros(2, 3, 9, 9, dtype=torch.uint8)}, r"test: shape \(2, 3, 9, 9\) differs"),
        ({"unlabeled": torch.zeros(2, 1, 8, 8, dtype=torch.uint8)}, r"unlabeled: shape .* differs"),
        ({"train_labels": torch.tensor([0, 1])}, r"train_labels: int64 \(4,\) expected, got int64 \(2,\)"),
        ({"test_labels": torch.tensor([0, 2])}, r"test_labels: values in \[0, 2\) expected, got 0 to 2"),
    ],
)
def test_image_data_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        small_data(**changes)


# check_images


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_check_images_names_the_first_bad_image(value):
    images = torch.rand(6, 3, 8, 8)
    images[2, 1, 3, 3] = images[4, 0, 0, 0] = images[5, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"image 2 has NaN or infinite values \(3 of 6"):
        check_images(images)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(3, 3, 8), r"got \(3, 3, 8\)"),
        (torch.rand(2, 8, 8, 3), r"got \(2, 8, 8, 3\)"),
        (torch.rand(0, 3, 8, 8), r"got \(0, 3, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), r"got torch.int64"),
        (np.zeros((2, 3, 8, 8)), r"got ndarray"),
    ],
)
def test_check_images_refuses(images, message):
    with pytest.raises(ValueError, match=message):
        check_images(images)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_check_images_accepts(dtype):
    check_images(torch.zeros(2, 1, 8, 8, dtype=dtype))


def test_load_names_the_data_sets_it_knows():
    with pytest.raises(
        ValueError,
        match="name='mnist' is not allowed; it must be one of digits, cifar10, cifar100, stl10, imagenet, "
        "imagenette, folder:PATH",
    ):
        load("mnist")


# what a probe needs

LACKS = [
    ({"train": (), "train_labels": ()}, "has no labelled train images; a probe needs train/<class>/*"),
    ({"test": (), "test_labels": ()}, "has no labelled test images; a probe needs test/<class>/*"),
    ({"train_labels": (0, 0, 0, 1)}, "has too few training images of class dog (1); a probe needs two of"),
    ({"train_labels": (1, 1, 1, 1)}, "has too few training images of class cat (0)"),
    ({"classes": ("cat",), "train_labels": (0,) * 4, "test_labels": (0, 0)}, "has one class, cat; a probe"),
]


@pytest.mark.parametrize(("changes", "message"), LACKS)
def test_what_a_data_set_lacks_for_a_probe_is_said(changes, message):
    images, labels = torch.empty(0, 3, 8, 8, dtype=torch.uint8), {"train_labels", "test_labels"}
    fields = {
        name: torch.tensor(value, dtype=torch.int64) if name in labels else value or images
        for name, value in changes.items()
    }
    assert why_no_probe(small_data(**fields)).startswith(f"small {message}")
    assert why_no_probe(small_data()) == ""


# fingerprint


def test_a_fingerprint_is_of_content_shape_and_type(monkeypatch):
    images = torch.randint(256, (50, 3, 4, 4), dtype=torch.uint8)
    other = images.clone()
    other[49, 2, 3, 3] ^= 1
    variants = [images, other, images.flip(0), images[:49], images.view(50, 3, 2, 8), images.view(torch.int8)]
    variants += [images.float(), images.bfloat16(), images[:0]]
    found = [fingerprint(variant) for variant in variants]
    assert len(set(found)) == len(found)
    assert fingerprint(images.clone()) == fingerprint(images.mT.contiguous().mT) == found[0]
    assert fingerprint(images, other) not in (found[0], fingerprint(other, images))
