"""A user's own images: found, decoded once into a cache of uint8 arrays, then mapped into memory.

Where these would take more than half of the memory, images are stored as JPEGs instead, see `stored`.
The cache is found again by content, so a folder that was moved or copied is not decoded twice, and
one in which a single file changed is. It lies under the data root in `folders/`; delete it at will.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from .. import machine
from ..config import one_of, require
from ..machine import shown
from ..progress import wants_bar
from ..results import atomic, write_json, write_text
from . import convert
from .decode import WHITE, Decoded, decode, read_file
from .download import say
from .listing import Listing, find

FORMAT = 2  # part of the cache's name: raise it when the same file shall decode to other numbers
MOST_THREADS = 16


def read(
    path: Path,
    root: Path,
    image_size: int,
    *,
    skip_bad: bool = False,
    white: int | None = None,
    megapixels: int | None = None,
    progress: bool = True,
) -> dict:
    """Read a folder of images through its cache.

    Layouts: `train/<class>/*`, with optional `test/<class>/*` (`val/` where there is no `test/`)
    and `unlabeled/*`; or `unlabeled/*` alone; or images right in the folder, all unlabelled. Other
    common names of the splits are understood, see `listing.SPLITS`. Class folders and `unlabeled/` are
    searched in depth; what is hidden, or left behind by systems and cameras, is not looked at. Classes
    whose names look the same are one. Each image becomes a square as `decode.decode` says.

    Args:
        path: the folder.
        root: the data root, for the cache.
        image_size: side of the images returned, pixels.
        skip_bad: leave unreadable files out and say how many, instead of raising; also by DCOPY_SKIP_BAD=1.
        white: grey value of 16-bit files that is white; None: DCOPY_WHITE, else 65535.
        megapixels: size of the largest image; None: DCOPY_MEGAPIXELS, else Pillow's limit, about 179.
        progress: print a line per step, and show a bar where somebody watches.

    Returns:
        The fields of `ImageData` but its name; images are mapped from the cache, copy-on-write, or stay on
        disk as `stored.StoredImages`.

    Raises:
        ValueError: no images, an empty class, a test class that train lacks, an unreadable file;
            the message names the folder or file.
        OSError: the cache cannot be written, or a folder not be opened.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as root, tempfile.TemporaryDirectory() as photos:
    ...     Image.new("RGB", (60, 40)).save(f"{photos}/a.png")
    ...     read(Path(photos), Path(root), image_size=32, progress=False)["unlabeled"].shape
    torch.Size([1, 3, 32, 32])
    """
    side, skip_bad = convert.stored_side(image_size), skips_bad(skip_bad)
    white = _setting("DCOPY_WHITE", white, WHITE)
    megapixels = _setting("DCOPY_MEGAPIXELS", megapixels, 0)
    listing = find(path)
    caches = root / "folders"
    choices = (f"-white{white}" if white != WHITE else "") + (f"-{megapixels}mp" if megapixels else "")
    key, again = _content_key(listing, caches)
    in_memory = fit_in_memory(len(listing.all_files()), image_size)
    cache = caches / f"{key}-{image_size if in_memory else f'jpeg{side}'}{choices}"

    def make():
        with _largest(megapixels):
            if in_memory:
                _decode_all(listing, cache, image_size, white, skip_bad, progress)
            else:
                source = convert.from_listing(listing)
                convert.convert(source, cache, side, white=white, skip_bad=skip_bad, progress=progress)

    convert.once(cache, make, progress)
    meta = convert.read_meta(cache)
    if meta["skipped"] and not skip_bad:
        raise ValueError(convert.complaint(listing.path, meta["skipped"]))
    tests = len(listing.files.get("test", []))
    seen = [f"{again:,} of its {tests:,} test images are also there to train on"] * bool(again)
    for note in (*listing.notes, *seen, *notes(meta, white)):
        say(f"{shown(path)}: {note}", progress)
    return _fields(listing, cache, image_size) if in_memory else convert.fields(cache, image_size)


def skips_bad(given: bool) -> bool:
    """Whether to leave unreadable files out: by the argument or by DCOPY_SKIP_BAD."""
    off, on, text = ("", "0", "false", "no"), ("1", "true", "yes"), os.environ.get("DCOPY_SKIP_BAD", "")
    require("DCOPY_SKIP_BAD", text, text.lower() in off + on, one_of([*on, *off[1:]]))
    return given or text.lower() in on


def fit_in_memory(count: int, image_size: int) -> bool:
    """Whether so many images take at most half of the memory, and of that of a GPU where there is one."""
    limits = [machine.memory()]
    if os.environ.get("DCOPY_DEVICE") != "cpu" and torch.cuda.is_available():
        limits.append(torch.cuda.get_device_properties(0).total_memory)
    return count * 3 * image_size**2 <= min(limits) / 2


def _setting(name: str, given: int | None, default: int) -> int:
    """What an argument says, else an environment variable, else nobody.

    >>> _setting("DCOPY_NO_SUCH_VARIABLE", None, 3)
    3
    """
    text = os.environ.get(name, "") if given is None else str(given)
    require(name, text, not text or (text.isdecimal() and 0 < int(text) <= WHITE), f"from 1 to {WHITE}")
    return int(text or default)


@contextlib.contextmanager
def _largest(megapixels: int) -> Iterator[None]:
    """Let Pillow open images of this size, without warnings: what it cannot read is reported as an error."""
    limit = Image.MAX_IMAGE_PIXELS
    try:
        if megapixels:
            Image.MAX_IMAGE_PIXELS = megapixels * 500_000  # Pillow refuses what is twice as large
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def notes(meta: dict, white: int = WHITE) -> Iterator[str]:
    """What a user should know of the decoded images."""
    if meta["skipped"]:
        yield f"{len(meta['skipped'])} unreadable files left out, the first {shown(meta['skipped'][0])}"
    deep, flat = meta["brightest"]["deep"], meta["brightest"]["flat"]
    if deep is not None and deep <= white // 2:
        full = 2 ** max(deep, 1).bit_length() - 1
        yield (
            f"grey values of its 16-bit files end at {deep:,}, where {white:,} is white, so they are dark; "
            f"DCOPY_WHITE={full} makes {full:,} white"
        )
    if deep is not None and deep > white:
        yield f"grey values up to {deep:,} were cut off at {white:,}, as DCOPY_WHITE says"
    if flat is not None and flat < 64:
        yield f"its brightest value is {flat} of 255, as in masks, or in colour of 16 bits that uses a few"


def _content_key(listing: Listing, caches: Path) -> tuple[str, int]:
    """Digest of names and bytes of all files, and how many test images are in another split, too.

    The bytes are read when path, size or a time of any file is new; else both are remembered.
    """
    files = {str(file.relative_to(listing.path)): file for file in listing.all_files()}
    with ThreadPoolExecutor(threads()) as pool:
        seen = [
            f"{name}\0{times}" for name, times in zip(files, pool.map(_times, files.values()), strict=True)
        ]
        remembered = caches / f"{_digest(str(FORMAT), str(listing.path), *seen)}.seen"
        if remembered.exists():
            key, _, again = remembered.read_text().partition(" ")
            if again:  # an older one is the key alone
                return key, int(again)
        contents = dict(zip(files, pool.map(_content, files.values()), strict=True))
    key = _digest(str(FORMAT), *(f"{name}\0{content}" for name, content in contents.items()))
    tests = {str(file.relative_to(listing.path)) for file in listing.files.get("test", [])}
    others = {content for name, content in contents.items() if name not in tests} - {None}
    again = sum(contents[name] in others for name in tests)
    if None not in contents.values():  # what cannot be read today may be there tomorrow
        with contextlib.suppress(OSError):  # a read-only root may still hold the cache itself
            write_text(remembered, f"{key} {again}")
    return key, again


def _times(file: Path) -> str:
    try:
        stat = file.stat()
    except OSError as error:
        return str(error.strerror)
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"


def _content(file: Path) -> str | None:
    """Digest of a file's bytes; None: it cannot be read."""
    try:
        return hashlib.sha256(read_file(file)).hexdigest()
    except ValueError:
        return None


def _digest(*lines: str) -> str:
    return hashlib.sha256(b"\0\0".join(os.fsencode(line) for line in lines)).hexdigest()[:32]


def threads() -> int:
    """Threads, not processes: Pillow decodes and resizes without the interpreter lock."""
    return min(MOST_THREADS, machine.cores())


def _decode_all(
    listing: Listing, cache: Path, image_size: int, white: int, skip_bad: bool, progress: bool
) -> None:
    """Write images and labels of each split, and last `meta.json`, the sign of a complete cache."""
    total, workers = len(listing.all_files()), threads()
    say(
        f"{shown(listing.path)}: decoding {total:,} images to {image_size} pixels, threads: {workers}",
        progress,
    )
    hidden = not (progress and wants_bar())
    with ThreadPoolExecutor(workers) as pool, tqdm(total=total, unit="image", disable=hidden) as bar:
        reader = convert.Reader(pool, listing.path, skip_bad)
        for split, files in listing.files.items():
            labels, kept = listing.labels[split], []
            one = partial(_decode, files, image_size, white)
            with atomic(cache / f"{split}.npy") as temporary, temporary.open("wb") as out:
                _write_header(out, len(files), image_size)
                for index, image in reader.read(range(len(files)), one, partial(listing.name, split)):
                    out.write(image.pixels.tobytes())
                    kept.append(labels[index])
                    bar.update()
                _write_header(out, len(kept), image_size)
            if lost := set(labels) - set(kept):
                raise ValueError(f"{shown(files[labels.index(min(lost))].parent)} has no readable image")
            with atomic(cache / f"{split}_labels.npy") as temporary, temporary.open("wb") as out:
                np.save(out, np.array(kept, dtype=np.int64))
    write_json(cache / "meta.json", reader.facts)


def _decode(files: list[Path], image_size: int, white: int, i: int) -> Decoded:
    return decode(files[i], image_size, white)


def _write_header(file: BinaryIO, count: int, image_size: int) -> None:
    """Write the .npy header for `count` images; NumPy keeps room in it for the first axis to change."""
    file.seek(0)
    shape = (count, 3, image_size, image_size)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


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
