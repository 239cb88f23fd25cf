"""Data sets as uint8 tensors in memory, or as images on disk, with three splits kept apart.

`train` (labelled, for the probe), `unlabeled` (extra images, for pretraining only) and `test`
(read once, by the evaluation). Pretraining sees `ImageData.pretrain()`, which never holds a
test image; the probe is fitted on `train` alone.

Data sets lie under one root: the argument `root`, else the environment variable DCOPY_DATA, else
`~/.cache/dcopy`. What torchvision has already put there is used as it is, also when it is read-only;
so is CIFAR as image files in ROOT/cifar10/{train,test}/<class>/, as some distribute it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from .. import machine
from ..config import RECIPES, one_of, require
from ..machine import shown
from ..results import resolve
from . import imagenet
from .checks import why_no_probe
from .convert import check_size
from .download import say
from .stored import StoredImages

# Training and test images, classes, and the training images' mean colour, by which CIFAR is known.
CIFAR = {
    "cifar10": (50_000, 10_000, 10, (0.4914, 0.4822, 0.4465)),
    "cifar100": (50_000, 10_000, 100, (0.5071, 0.4865, 0.4409)),
}


@dataclass(frozen=True)
class ImageData:
    """Images and labels of one data set.

    Args:
        name: what `load` was asked for, such as `digits` or `folder:PATH`.
        train: (N, C, H, W) uint8, the labelled training images; may be empty (N = 0).
        train_labels: (N,) int64, indices into `classes`.
        test: (M, C, H, W) uint8; may be empty.
        test_labels: (M,) int64.
        classes: names of the classes, in the order of the labels.
        unlabeled: (U, C, H, W) uint8, further images for pretraining, or None.

    Images that do not fit in memory are `stored.StoredImages` in place of tensors.

    Raises:
        ValueError: dtype or shape of a tensor is wrong, or a label has no class.

    >>> data = load("digits")
    >>> data.pretrain().shape
    torch.Size([1297, 1, 16, 16])
    """

    name: str
    train: Tensor | StoredImages
    train_labels: Tensor
    test: Tensor | StoredImages
    test_labels: Tensor
    classes: tuple[str, ...]
    unlabeled: Tensor | StoredImages | None = None

    def __post_init__(self):
        splits = {"train": self.train, "test": self.test, "unlabeled": self.unlabeled}
        for split, images in splits.items():
            if images is None:
                continue
            if images.dtype != torch.uint8 or images.dim() != 4:
                raise ValueError(f"{split}: uint8 (N, C, H, W) expected, got {_kind(images)}")
            if images.shape[1:] != self.train.shape[1:]:
                raise ValueError(
                    f"{split}: shape {tuple(images.shape)} differs from train, {tuple(self.train.shape)}"
                )
        for split, labels in (("train", self.train_labels), ("test", self.test_labels)):
            if labels.dtype != torch.int64 or labels.shape != (len(splits[split]),):
                raise ValueError(
                    f"{split}_labels: int64 ({len(splits[split])},) expected, got {_kind(labels)}"
                )
            if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.classes):
                raise ValueError(
                    f"{split}_labels: values in [0, {len(self.classes)}) expected, "
                    f"got {labels.min().item()} to {labels.max().item()}"
                )

    def pretrain(self) -> Tensor | StoredImages:
        """Return the images for pretraining, train and unlabeled: (N + U, C, H, W) uint8, no test image."""
        if self.unlabeled is None:
            return self.train
        if isinstance(self.train, StoredImages):
            return self.train + self.unlabeled
        return torch.cat((self.train, self.unlabeled)) if len(self.train) else self.unlabeled


def load(
    name: str,
    root: str | Path | None = None,
    *,
    download: bool = True,
    mirrors: Sequence[str] | None = None,
    image_size: int | None = None,
    skip_bad: bool = False,
    white: int | None = None,
    megapixels: int | None = None,
    progress: bool = True,
) -> ImageData:
    """Load a data set by name.

    Args:
        name: `digits` (ships with scikit-learn), `cifar10`, `cifar100`, `stl10`, `imagenette`, `imagenet`
            (see `dcopy.data.imagenet.read`), or `folder:PATH` for images of your own, see
            `dcopy.data.folder.read`; a relative PATH is taken as by `results.resolve`.
        root: where data sets and the caches of folders lie; None: DCOPY_DATA, else `~/.cache/dcopy`.
        download: fetch what is missing.
        mirrors: addresses of folders to fetch archives from first; None: DCOPY_MIRROR, separated by spaces.
        image_size: side in pixels to which the images of a folder are brought, 32 by default; the
            other data sets keep their own.
        skip_bad, white, megapixels: which files of a folder to leave out, and how bright 16-bit grey is,
            see `dcopy.data.folder.read`.
        progress: print a line per step, and show a bar where somebody watches.

    Returns:
        The data set, its tensors on the CPU and contiguous; ImageNet, Imagenette and folders that are too
        large for the memory as `stored.StoredImages`.

    Raises:
        ValueError: the name is unknown, a folder holds what cannot be used, or ROOT/cifar10 is not CIFAR-10.
        DownloadError: the data set is missing and could not be fetched; the message says how to
            place it by hand.
        OSError: the root cannot be written, and needs to be.

    >>> describe(load("digits"))
    'digits: 1,297 train, 0 unlabeled, 500 test images of 1x16x16, 10 classes'
    """
    root = resolve(root or os.environ.get("DCOPY_DATA") or machine.cache())
    kind, _, path = name.partition(":")
    if image_size is not None:
        check_size(image_size)
    if kind == "folder" and path:
        from . import folder

        size = RECIPES["folder"].image_size if image_size is None else image_size
        choices = {"skip_bad": skip_bad, "white": white, "megapixels": megapixels, "progress": progress}
        data = ImageData(name, **folder.read(resolve(path), root, size, **choices))
        if reason := why_no_probe(data):
            say(f"{reason}, while pretraining needs no labels", progress)
        return data
    known = [*(recipe for recipe in RECIPES if recipe != "folder"), "folder:PATH"]
    require("name", name, name in known[:-1], one_of(known))
    if name == "digits":
        return _load_digits()
    fetching = {"download": download, "mirrors": mirrors, "progress": progress}
    if name in imagenet.KNOWN:
        size = RECIPES[name].image_size if image_size is None else image_size
        return ImageData(name, **imagenet.read(name, root, size, skip_bad=skip_bad, **fetching))
    return _load_torchvision(name, root, **fetching)


def describe(data: ImageData) -> str:
    """Return one line with the sizes of the three splits."""
    unlabeled = 0 if data.unlabeled is None else len(data.unlabeled)
    size = "x".join(str(n) for n in data.train.shape[1:])
    return (
        f"{shown(data.name)}: {len(data.train):,} train, {unlabeled:,} unlabeled, {len(data.test):,} test "
        f"images of {size}, {len(data.classes)} classes"
    )


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _load_digits() -> ImageData:
    """Return scikit-learn's digits, 8x8 with values 0 to 16, upsampled to 16x16 and 0 to 255.

    1,297 train and 500 test images, stratified; the split is fixed, whatever the run's seed.
    """
    from sklearn.datasets import load_digits  # its import costs a second that other data sets need not pay
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) * (255 / 16)  # (1797, 1, 8, 8)
    images = torch.nn.functional.interpolate(images, scale_factor=2, mode="bilinear")  # (1797, 1, 16, 16)
    images = images.round().to(torch.uint8)
    labels = torch.from_numpy(digits.target).long()
    train, test = train_test_split(range(len(labels)), test_size=500, stratify=labels, random_state=0)
    classes = tuple(str(digit) for digit in digits.target_names)
    return ImageData("digits", images[train], labels[train], images[test], labels[test], classes)


def _load_torchvision(name: str, root: Path, **fetching) -> ImageData:
    """Return CIFAR-10, CIFAR-100 or STL-10 from torchvision's layout.

    CIFAR's batches are pickles. `download.install` checks each against the checksum that
    torchvision lists for it, so none is unpickled but those that the authors published.
    """
    from .download import install

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "stl10": datasets.STL10}[name]
    unpacked = root / name
    if name in CIFAR and (unpacked / "train").is_dir() and not (root / kind.base_folder).exists():
        return _load_unpacked(name, unpacked, root, fetching["progress"])
    install(kind, root, **fetching)

    class Checked(kind):
        def _check_integrity(self):
            return True  # a moment ago; or STL-10's three gigabytes would be read again for each split

    if name == "stl10":
        splits = {split: Checked(root, split=split) for split in ("train", "unlabeled", "test")}
        images = {split: _tensor(data.data) for split, data in splits.items()}  # (N, 3, 96, 96)
        labels = {split: splits[split].labels for split in ("train", "test")}
    else:
        splits = {split: Checked(root, train=split == "train") for split in ("train", "test")}
        channels_last = {split: data.data for split, data in splits.items()}  # (N, 32, 32, 3)
        images = {split: _tensor(array.transpose(0, 3, 1, 2)) for split, array in channels_last.items()}
        labels = {split: data.targets for split, data in splits.items()}
    return ImageData(
        name, images["train"], _labels(labels["train"]), images["test"], _labels(labels["test"]),
        tuple(splits["train"].classes), images.get("unlabeled"),
    )  # fmt: skip


def _load_unpacked(name: str, path: Path, root: Path, progress: bool) -> ImageData:
    """Return CIFAR from image files in class folders, once counts and colours show that it is CIFAR."""
    from . import folder

    data = ImageData(name, **folder.read(path, root, RECIPES[name].image_size, progress=progress))
    total = data.train.sum(dim=(0, 2, 3), dtype=torch.int64)  # (3,)
    mean = tuple((total.double() / (255 * data.train[:, 0].numel())).round(decimals=4).tolist())
    found = (len(data.train), len(data.test), len(data.classes), mean)
    if found != CIFAR[name]:
        what = "{:,} train and {:,} test images of {} classes, mean colour {}"
        raise ValueError(
            f"{path} is not {name}: {what.format(*found)}, not {what.format(*CIFAR[name])}; move it away"
        )
    return data


def _tensor(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images))


def _labels(labels) -> Tensor:
    return torch.from_numpy(np.asarray(labels, dtype=np.int64))
