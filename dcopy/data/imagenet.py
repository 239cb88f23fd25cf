"""ImageNet and Imagenette: from what people have of them to shrunk JPEGs on disk, see `convert`."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from torchvision.datasets import Imagenette

from ..machine import shown
from . import convert
from .convert import Source, Split
from .download import DownloadError, install, say
from .folder import notes, skips_bad
from .listing import find

KNOWN = {"imagenet": (1000, 1_281_167, 50_000), "imagenette": (10, 9469, 3925)}  # classes, train, test
CENTRAL = 224 / 256  # of the short side, what an encoder is evaluated on: the field's "resize 256, crop 224"
DEVKIT = "ILSVRC2012_devkit_t12"
META, TRUTH = f"{DEVKIT}/data/meta.mat", f"{DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt"
SAVED = ("dataset_dict.json", "state.json")  # what Hugging Face `save_to_disk` leaves


class Archive:
    """Imagenette of 160 pixels as `download.install` takes it; its size is known, but no file's checksum."""

    url, tgz_md5 = Imagenette._ARCHIVES["160px"]
    filename, base_folder = "imagenette2-160.tgz", "imagenette2-160"

    @classmethod
    def faults(cls, root: Path) -> list[str]:
        found = {
            split: sum(1 for _ in (root / cls.base_folder).glob(f"{split}/*/*")) for split in ("train", "val")
        }
        counts = dict(zip(found, KNOWN["imagenette"][1:], strict=True))
        return [
            f"{split}/ with {found[split]:,} of {n:,} images"
            for split, n in counts.items()
            if found[split] != n
        ]


def read(
    name: str, root: Path, image_size: int, *, skip_bad: bool = False, progress: bool = True, **fetching
) -> dict:
    """Read ImageNet or Imagenette, converted once to JPEGs in `root/folders/`.

    What is converted lies, or is linked, at `root/imagenet` or `root/imagenette`: `train/<wnid>/*` and
    `val/<wnid>/*`; or a flat `val/` and beside it the devkit, as a folder or as the archive that ImageNet
    hands out; or a data set that Hugging Face's `datasets` saved. Imagenette is fetched where it is missing.

    Args:
        name: one of KNOWN.
        root: the data root.
        image_size: side of a view, pixels, to which the size of the stored images is chosen.
        skip_bad: leave unreadable files out, instead of raising.
        fetching: see `download.install`.

    Returns:
        The fields of `ImageData` but its name, the images as `StoredImages`.

    Raises:
        ValueError: the place holds something else, or an unreadable file.
        DownloadError: the data set is not there, and cannot be fetched.
        OSError: `root` cannot be written.
    """
    side = convert.stored_side(image_size)
    folder, skip_bad = root / "folders" / f"{name}-jpeg{side}", skips_bad(skip_bad)

    def make():
        source = find_source(name, root, folder, progress=progress, **fetching)
        found = (len(source.classes), *(len(source.splits[split].labels) for split in ("train", "test")))
        if found != KNOWN[name]:
            what = "{:,} classes with {:,} training and {:,} validation images"
            raise ValueError(
                f"{shown(source.place)} is not {name}: {what.format(*found)}, "
                f"not {what.format(*KNOWN[name])}{_stray(source)}; folder:PATH takes any part of it"
            )
        convert.convert(source, folder, side, skip_bad=skip_bad, progress=progress)

    convert.once(folder, make, progress)
    meta = convert.read_meta(folder)
    if meta["skipped"] and not skip_bad:
        again = f"where they are whole by now, delete {shown(folder)} and the same command makes it again"
        raise ValueError(f"{convert.complaint(name, meta['skipped'])}; {again}")
    for note in notes(meta):
        say(f"{name}: {note}", progress)
    return convert.fields(folder, image_size, CENTRAL)


def _stray(source: Source) -> str:
    """Words on the first file that is not named as nearly all others are, '' where there is none."""
    names = [split.name(i) for split in source.splits.values() for i in range(len(split.labels))]
    suffixes = [Path(name).suffix.casefold() for name in names]
    count = Counter(suffixes)
    strays = (name for name, end in zip(names, suffixes, strict=True) if count[end] * 10 < len(names))
    return f", with {shown(name)} among them" if (name := next(strays, None)) else ""


def find_source(name: str, root: Path, folder: Path, **fetching) -> Source:
    """What `folder` is to be made from.

    Raises:
        ValueError, DownloadError: as `read`.
    """
    place = root / name
    if name == "imagenette" and not place.exists():
        install(Archive, root, **fetching)
        place = root / Archive.base_folder
    if not place.is_dir():
        half = f"; {shown(folder)} is half converted" if (folder / convert.NOTE).exists() else ""
        raise DownloadError(
            f"{shown(place)} is not there{half}; link it to what holds train/ and val/ of ImageNet, "
            f"or a data set that Hugging Face's datasets saved: ln -s FOLDER {shown(place)}"
        )
    if any((place / file).exists() for file in SAVED):
        return saved(place)
    splits = [split for split in ("train", "val") if (place / split).is_dir()]
    if len(splits) < 2:
        held = ", ".join(sorted(shown(entry.name) for entry in place.iterdir())[:4]) or "nothing"
        lacks = " and ".join(f"{split}/" for split in ("train", "val") if split not in splits)
        raise ValueError(
            f"{shown(place)} lacks {lacks}; it holds {held}; link it to the folder that holds train/ and val/"
        )
    flat = not any(entry.is_dir() for entry in os.scandir(place / "val"))
    return convert.from_listing(find(place, ("train", "val"), validation_classes(place) if flat else None))


def validation_classes(place: Path) -> dict[str, str]:
    """The class (wnid) of each validation image, by its name without suffix, from ImageNet's devkit.

    Raises:
        ValueError: there is no devkit in `place`, or it is not to be read.
    """
    from scipy.io import loadmat  # scikit-learn has it; its import costs

    with _devkit(place) as opened:
        synsets = loadmat(opened(META), squeeze_me=True)["synsets"]
        wnids = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
        truth = opened(TRUTH).read().decode("ascii").split()
    return {f"ILSVRC2012_val_{i:08}": wnids[int(number)] for i, number in enumerate(truth, start=1)}


@contextlib.contextmanager
def _devkit(place: Path) -> Iterator:
    """A function that opens a file of the devkit, which is a folder or an archive."""
    archive = place / f"{DEVKIT}.tar.gz"
    try:
        if archive.is_file():
            with tarfile.open(archive) as tar:
                yield lambda name: io.BytesIO(tar.extractfile(name).read())
        else:
            yield lambda name: io.BytesIO((place / name).read_bytes())
    except (OSError, KeyError, ValueError, tarfile.TarError) as error:
        raise ValueError(
            f"{shown(place / 'val')} has no class folders, and {DEVKIT}, which says the classes, cannot be "
            f"read in {shown(place)} ({error}); put its folder or its .tar.gz there"
        ) from error


def saved(place: Path) -> Source:
    """A data set that Hugging Face's `save_to_disk` has left: a column of images, one of classes.

    Raises:
        ValueError: the package is missing, or it holds no such columns or splits.
    """
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"{shown(place)} is a saved Hugging Face data set, which takes `pip install datasets`"
        ) from None
    found = datasets.load_from_disk(str(place))
    if not isinstance(found, datasets.DatasetDict) or not {"train", "validation"} <= found.keys():
        held = ", ".join(found) if isinstance(found, datasets.DatasetDict) else "one split alone"
        raise ValueError(f"{shown(place)} must hold the splits train and validation; it holds {held}")
    columns = {type(feature): column for column, feature in found["train"].features.items()}
    if not {datasets.Image, datasets.ClassLabel} <= columns.keys():
        raise ValueError(
            f"{shown(place)} must have a column of images and one of ClassLabel; it has {columns}"
        )
    image, label = columns[datasets.Image], columns[datasets.ClassLabel]

    def split(ours: str, theirs: str) -> Split:
        table = found[theirs].cast_column(image, datasets.Image(decode=False))
        labels = table[label][:]
        return Split(labels, lambda i: f"{ours}/{labels[i]}/{i:08}", lambda i: _bytes(table[i][image]))

    classes = tuple(found["train"].features[label].names)
    return Source(
        str(place), classes, {"train": split("train", "train"), "test": split("test", "validation")}
    )


def _bytes(image: dict) -> bytes:
    """The file of an image as `datasets` has it: in the table, or by its path."""
    return image["bytes"] if image["bytes"] is not None else convert.read_file(Path(image["path"]))
