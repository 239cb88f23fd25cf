"""A user's own images: found, decoded once into a cache of uint8 arrays, then mapped into memory.

The cache is found again by content, so a folder that was moved or copied is not decoded twice, and
one in which a single file changed is. It lies under the data root in `folders/`; delete it at will.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from .. import machine
from ..config import require
from ..progress import wants_bar
from ..results import atomic, read_json, write_json, write_text
from .decode import decode
from .download import alone, say

FORMAT = 1  # part of the cache's name: raise it when the same file shall decode to other numbers
MOST_THREADS = 16
BLOCK = 128  # images under way at once: bounds the memory, and the wait after an interrupt
UNLABELED = -1  # label of an image without a class

LAYOUTS = (
    "train/<class>/ with optional test/<class>/ (or val/<class>/) and unlabeled/, or unlabeled/ alone, "
    "or images and no folders"
)


@dataclass(frozen=True)
class Listing:
    """The files of a folder: names of the classes, and for each split its files and their labels."""

    path: Path
    classes: tuple[str, ...]
    files: dict[str, list[Path]]
    labels: dict[str, list[int]]

    def all_files(self) -> list[Path]:
        return [file for files in self.files.values() for file in files]


def read(path: Path, root: Path, image_size: int, *, skip_bad: bool = False, progress: bool = True) -> dict:
    """Read a folder of images through its cache.

    Layouts: `train/<class>/*`, with optional `test/<class>/*` (`val/` where there is no `test/`)
    and `unlabeled/*`; or `unlabeled/*` alone; or images right in the folder, all unlabelled.
    Class folders and `unlabeled/` are searched in depth; hidden files are not looked at. Each image
    becomes a square as `decode.decode` says.

    Args:
        path: the folder.
        root: the data root, for the cache.
        image_size: side of the images returned, pixels.
        skip_bad: leave unreadable files out and say how many, instead of raising.
        progress: print a line per step, and show a bar where somebody watches.

    Returns:
        The fields of `ImageData` but its name; images are mapped from the cache, copy-on-write.

    Raises:
        ValueError: no images, an empty class, a test class that train lacks, an unreadable file;
            the message names the folder or file.
        OSError: the cache cannot be written, or a file not be opened.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as root, tempfile.TemporaryDirectory() as photos:
    ...     Image.new("RGB", (60, 40)).save(f"{photos}/a.png")
    ...     read(Path(photos), Path(root), image_size=32, progress=False)["unlabeled"].shape
    torch.Size([1, 3, 32, 32])
    """
    require("image_size", image_size, image_size >= 1, "a number of pixels, at least 1")
    listing = find(path)
    caches = root / "folders"
    cache = caches / f"{_content_key(listing, caches)}-{image_size}"
    if not (cache / "meta.json").exists():
        with alone(cache, progress):
            if not (cache / "meta.json").exists():  # another process was faster
                _decode_all(listing, cache, image_size, skip_bad, progress)
    skipped = read_json(cache / "meta.json")["skipped"]
    if skipped and not skip_bad:
        raise ValueError(_complaint(listing, skipped))
    if skipped:
        say(f"{path}: {len(skipped)} unreadable files left out, the first {skipped[0]}", progress)
    return _fields(listing, cache, image_size)


def find(path: Path) -> Listing:
    """List the images of a folder by the layouts of `read`, each level in natural order (2 before 10).

    Raises:
        ValueError: as `read`, but for what only decoding shows.
    """
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder")
    classes = tuple(entry.name for entry in _visible(path / "train"))
    files, labels = {}, {}
    test = "test" if (path / "test").is_dir() else "val"
    for split, folder in (("train", path / "train"), ("test", path / test)):
        if folder.is_dir():
            found = list(_labelled(folder, classes))
            files[split] = [file for file, _ in found]
            labels[split] = [label for _, label in found]
    unlabeled = list(_walk(path / "unlabeled"))
    if not files and not unlabeled:
        unlabeled = _visible(path)
        if not unlabeled or any(entry.is_dir() for entry in unlabeled):
            raise ValueError(f"{path} holds no images in a known layout: {LAYOUTS}")
    if unlabeled:
        files["unlabeled"], labels["unlabeled"] = unlabeled, [UNLABELED] * len(unlabeled)
    return Listing(path, classes, files, labels)


def _labelled(folder: Path, classes: tuple[str, ...]) -> Iterator[tuple[Path, int]]:
    """Yield the images of `folder/<class>/` with their labels."""
    entries = _visible(folder)
    if not entries:
        raise ValueError(f"{folder} has no class folders; known layouts: {LAYOUTS}")
    for entry in entries:
        if not entry.is_dir():
            raise ValueError(f"{entry} is in no class folder; images without a class go to unlabeled/")
        if entry.name not in classes:
            raise ValueError(f"{entry} is a class that train/ lacks; it has {', '.join(classes) or 'none'}")
        files = list(_walk(entry))
        if not files:
            raise ValueError(f"{entry} is a class without images")
        label = classes.index(entry.name)
        yield from ((file, label) for file in files)


def _walk(folder: Path) -> Iterator[Path]:
    for entry in _visible(folder):
        if entry.is_dir():
            yield from _walk(entry)
        else:
            yield entry


def _visible(folder: Path) -> list[Path]:
    """Return what a folder holds but hidden files, in natural order; nothing if there is no folder."""
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted((entry for entry in entries if not entry.name.startswith(".")), key=_natural)


def _natural(path: Path) -> tuple:
    parts = re.split(r"([0-9]+)", path.name)  # text and digits in turn, text first
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(parts)], path.name


def _content_key(listing: Listing, caches: Path) -> str:
    """Digest of names and bytes of all files.

    The bytes are read when path, size or a time of any file is new; else the digest is remembered.
    """
    files = {str(file.relative_to(listing.path)): file for file in listing.all_files()}
    stats = {name: file.stat() for name, file in files.items()}
    seen = [f"{name}\0{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}" for name, stat in stats.items()]
    remembered = caches / f"{_digest(str(listing.path), *seen)}.seen"
    if remembered.exists():
        return remembered.read_text()
    with ThreadPoolExecutor(threads()) as pool:
        contents = pool.map(lambda file: hashlib.sha256(file.read_bytes()).hexdigest(), files.values())
        lines = [f"{name}\0{content}" for name, content in zip(files, contents, strict=True)]
    key = _digest(str(FORMAT), *lines)
    with contextlib.suppress(OSError):  # a read-only root may still hold the cache itself
        write_text(remembered, key)
    return key


def _digest(*lines: str) -> str:
    return hashlib.sha256(b"\0\0".join(os.fsencode(line) for line in lines)).hexdigest()[:32]


def threads() -> int:
    """Threads, not processes: Pillow decodes and resizes without the interpreter lock."""
    return min(MOST_THREADS, machine.cores())


def _decode_all(listing: Listing, cache: Path, image_size: int, skip_bad: bool, progress: bool) -> None:
    """Write images and labels of each split, and last `meta.json`, the sign of a complete cache."""
    for left in cache.glob(".*.tmp"):  # by a process that was killed; we hold the lock
        left.unlink()
    total, workers = len(listing.all_files()), threads()
    say(f"{listing.path}: decoding {total:,} images to {image_size} pixels, threads: {workers}", progress)
    skipped = []

    def leave_out(file: Path, error: ValueError) -> None:
        skipped.append(f"{file.relative_to(listing.path)}: {error}")
        if not skip_bad:
            raise ValueError(_complaint(listing, skipped)) from error

    hidden = not (progress and wants_bar())
    with ThreadPoolExecutor(workers) as pool, tqdm(total=total, unit="image", disable=hidden) as bar:
        for split, files in listing.files.items():
            labels, kept = listing.labels[split], []
            with atomic(cache / f"{split}.npy") as temporary, temporary.open("wb") as out:
                _write_header(out, len(files), image_size)
                for index, image in _decoded(pool, files, image_size, leave_out):
                    out.write(image.tobytes())
                    kept.append(labels[index])
                    bar.update()
                _write_header(out, len(kept), image_size)
            if lost := set(labels) - set(kept):
                raise ValueError(f"{files[labels.index(min(lost))].parent} has no readable image")
            with atomic(cache / f"{split}_labels.npy") as temporary, temporary.open("wb") as out:
                np.save(out, np.array(kept, dtype=np.int64))
    write_json(cache / "meta.json", {"skipped": skipped})


def _decoded(
    pool: ThreadPoolExecutor,
    files: list[Path],
    image_size: int,
    leave_out: Callable[[Path, ValueError], None],
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield index and image of each readable file in order, and hand over the others."""
    for start in range(0, len(files), BLOCK):
        images = [pool.submit(decode, file, image_size) for file in files[start : start + BLOCK]]
        for index, image in enumerate(images, start):
            try:
                decoded = image.result()
            except ValueError as error:
                leave_out(files[index], error)
            else:
                yield index, decoded


def _write_header(file: BinaryIO, count: int, image_size: int) -> None:
    """Write the .npy header for `count` images; NumPy keeps room in it for the first axis to change."""
    file.seek(0)
    shape = (count, 3, image_size, image_size)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _complaint(listing: Listing, skipped: list[str]) -> str:
    return f"{listing.path / skipped[0]}; skip_bad leaves such files out"


def _fields(listing: Listing, cache: Path, image_size: int) -> dict:
    """Map the images of each split; copy-on-write, so that a change in place never reaches the cache."""
    no_images = torch.empty(0, 3, image_size, image_size, dtype=torch.uint8)
    no_labels = torch.empty(0, dtype=torch.int64)
    fields = {"train": no_images, "train_labels": no_labels, "test": no_images, "test_labels": no_labels}
    for split in listing.files:
        fields[split] = _mapped(cache / f"{split}.npy")
        if split != "unlabeled":
            fields[f"{split}_labels"] = _mapped(cache / f"{split}_labels.npy")
    return fields | {"classes": listing.classes}


def _mapped(file: Path) -> Tensor:
    try:
        return torch.from_numpy(np.load(file, mmap_mode="c"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error}); delete {file.parent}") from error
