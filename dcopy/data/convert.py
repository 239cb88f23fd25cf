"""Make the files that `stored` reads: shrunk JPEGs in shards, in parallel, and going on where it stopped."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm.auto import tqdm

from .. import machine
from ..config import LARGEST_IMAGE, require
from ..machine import shown
from ..progress import wants_bar
from ..results import atomic, read_json, write_json, write_text
from .decode import WHITE, Shrunk, read_file, shrink
from .download import alone, say
from .listing import Listing
from .stored import INDEX, StoredImages

SHARD = 8192  # images, some 300 MB
AHEAD = 128  # images under way at once: bounds the memory, and the wait after an interrupt
LEAST_SIDE = 160  # pixels
NOTE = "source.txt"  # in a folder that is being filled: which files it is made from


@dataclass(frozen=True)
class Split:
    """What is to be converted: the label, the name and the bytes of each image.

    `read` may raise ValueError, which says what is wrong with the file; names are relative paths.
    """

    labels: Sequence[int]
    name: Callable[[int], str]
    read: Callable[[int], bytes]


@dataclass(frozen=True)
class Source:
    """All splits, and what an error message calls their place."""

    place: str
    classes: tuple[str, ...]
    splits: dict[str, Split]


def from_listing(listing: Listing) -> Source:
    """The images of a folder."""

    def split(name: str) -> Split:
        files = listing.files[name]
        return Split(listing.labels[name], partial(listing.name, name), lambda i: read_file(files[i]))

    return Source(str(listing.path), listing.classes, {name: split(name) for name in listing.files})


def check_size(image_size: int) -> None:
    allowed = f"a number of pixels from 1 to {LARGEST_IMAGE}"
    require("image_size", image_size, 1 <= image_size <= LARGEST_IMAGE, allowed)


def stored_side(image_size: int) -> int:
    """Longest short side of a stored image, pixels, for views of this size: 320 for 224.

    Raises:
        ValueError: views of less than a pixel, or of too many.
    """
    check_size(image_size)
    return max(LEAST_SIDE, image_size * 10 // 7)


def once(folder: Path, make: Callable[[], None], progress: bool) -> None:
    """Have a folder made whose `meta.json`, written last, says that it is complete; not by two at a time."""
    if not (folder / "meta.json").exists():
        with alone(folder, progress):
            if not (folder / "meta.json").exists():  # another process was faster
                for left in folder.glob(".*.tmp"):  # by a process that was killed; we hold the lock
                    left.unlink()
                make()


class Reader:
    """Decodes images side by side and yields them in order; keeps what a user should know of all of them.

    Args:
        place: what an error message calls the place of the images.
        skip_bad: leave out what cannot be read, instead of raising.

    Attributes:
        facts: skipped (names and reasons) and brightest (values of grey of 16 bits, `deep`, and of the rest).
    """

    def __init__(self, pool: ThreadPoolExecutor, place, skip_bad: bool):
        self.pool, self.place, self.skip_bad = pool, place, skip_bad
        self.facts = {"skipped": [], "brightest": {"deep": None, "flat": None}}

    def read(self, rows: range, one: Callable, name: Callable) -> Iterator[tuple]:
        """Yield index and `one(index)` for each row; `name(index)` is for messages.

        Raises:
            ValueError: `one` did, and bad files are not skipped.
        """
        for start in range(0, len(rows), AHEAD):
            under_way = [(i, self.pool.submit(one, i)) for i in rows[start : start + AHEAD]]
            for i, future in under_way:
                try:
                    image = future.result()
                except ValueError as error:
                    self.facts["skipped"].append(f"{name(i)}: {error}")
                    if not self.skip_bad:
                        raise ValueError(complaint(self.place, self.facts["skipped"])) from error
                else:
                    self.note({("deep" if image.deep else "flat"): image.brightest})
                    yield i, image

    def note(self, brightest: dict[str, int | None]) -> None:
        known = self.facts["brightest"]
        for kind, value in brightest.items():
            known[kind] = max((v for v in (known[kind], value) if v is not None), default=None)


def complaint(place, skipped: list[str]) -> str:
    return f"{shown(Path(place, skipped[0]))}; skip_bad leaves such files out, as does DCOPY_SKIP_BAD=1"


def convert(
    source: Source,
    folder: Path,
    side: int,
    *,
    white: int = WHITE,
    skip_bad: bool = False,
    progress: bool = True,
) -> None:
    """Write all shards of `folder`, then `meta.json`, once all have been read again. Called by way of `once`.

    Shards that an earlier call has finished are kept, unless they are of other files.

    Args:
        side: longest short side, pixels.
        white, skip_bad, progress: see `folder.read`.

    Raises:
        ValueError: an unreadable file, by its name; or what was written cannot be read again.
        OSError: `folder` cannot be written, or the disk is full.
    """
    _require_same_source(source, folder, progress)
    total, workers = sum(len(split.labels) for split in source.splits.values()), machine.cores()
    what = f"{shown(source.place)}: {total:,} images to JPEGs of at most {side} pixels"
    say(f"{what} in {shown(folder)}, threads: {workers}", progress)
    hidden = not (progress and wants_bar())
    with ThreadPoolExecutor(workers) as pool, tqdm(total=total, unit="image", disable=hidden) as bar:
        for name, split in source.splits.items():
            for number, start in enumerate(range(0, len(split.labels), SHARD)):
                shard = folder / f"{name}-{number:05}.tar"
                rows = range(len(split.labels))[start : start + SHARD]
                if not shard.with_suffix(".json").exists():
                    reader = Reader(pool, source.place, skip_bad)
                    images = reader.read(rows, partial(_shrunk, split, side, white), split.name)
                    _write_shard(shard, split, images)
                    write_json(shard.with_suffix(".json"), reader.facts)
                bar.update(len(rows))
                if hidden:
                    say(f"{name}: {rows.stop:,} of {len(split.labels):,} images", progress)
        write_json(folder / "meta.json", _check(source, folder, pool))


def _require_same_source(source: Source, folder: Path, progress: bool) -> None:
    """Note what is converted; where shards are of something else, begin anew."""
    sha = hashlib.sha256()
    for name, split in source.splits.items():
        sha.update(f"{name} {len(split.labels)} {SHARD}".encode())
        for i, label in enumerate(split.labels):
            sha.update(f"{label}\0{split.name(i)}\0".encode(errors="surrogateescape"))
    note = folder / NOTE
    if note.exists() and note.read_text(encoding="utf-8") != sha.hexdigest():
        say(f"{shown(source.place)} has changed since a part of it was converted; all anew", progress)
        for old in folder.glob("*-*.*"):
            old.unlink()
    write_text(note, sha.hexdigest())


def _shrunk(split: Split, side: int, white: int, i: int) -> Shrunk:
    return shrink(split.read(i), side, white)


def _write_shard(shard: Path, split: Split, images: Iterator[tuple]) -> None:
    """Write a tar file and its index."""
    found = []
    with atomic(shard) as temporary, tarfile.open(temporary, "w") as tar:
        for i, image in images:
            member = tarfile.TarInfo(str(PurePosixPath(split.name(i)).with_suffix(".jpg")))
            member.size = len(image.data)
            tar.addfile(member, io.BytesIO(image.data))
            blocks = -(-member.size // tarfile.BLOCKSIZE)
            start = tar.offset - blocks * tarfile.BLOCKSIZE
            found.append((start, member.size, image.height, image.width, split.labels[i]))
    with atomic(shard.with_suffix(".npy")) as temporary, temporary.open("wb") as file:
        np.save(file, np.array(found, dtype=INDEX))


def _check(source: Source, folder: Path, pool) -> dict:
    """Read all shards once more; returns what is kept of the whole: classes, images left out, digests."""
    whole, digests, counts = Reader(pool, source.place, True), {}, {}
    for name, split in source.splits.items():
        # Indexes are read here: NumPy parses their headers with `ast`, which in several threads of Python
        # 3.11 fails now and then (python/cpython#106905).
        images, sha = StoredImages(shards_of(folder, name), 1, ""), hashlib.sha256()
        for facts in (read_json(shard.with_suffix(".json")) for shard in images.shards):
            whole.facts["skipped"] += facts["skipped"]
            whole.note(facts["brightest"])
        for digest in pool.map(partial(_digest, images), range(len(images.shards))):
            sha.update(digest)
        if lost := set(split.labels) - set(images.labels.tolist()):
            first = Path(source.place, split.name(list(split.labels).index(min(lost))))
            raise ValueError(f"{shown(first.parent)} has no readable image")
        digests[name], counts[name] = sha.hexdigest()[:16], len(images)
    left_out = sum(len(split.labels) for split in source.splits.values()) - sum(counts.values())
    if left_out != len(whole.facts["skipped"]):
        raise ValueError(
            f"{shown(folder)} lacks {left_out} images; delete it and the same command makes it again"
        )
    return {"classes": source.classes, "digests": digests, "images": counts, **whole.facts}


def _digest(images: StoredImages, number: int) -> bytes:
    """Digest of the images in a shard, each of which has to begin as a JPEG does."""
    sha = hashlib.sha256()
    for i, row in enumerate(np.flatnonzero(images.shard == number)):
        data = images.jpeg(row)
        if not data.startswith(b"\xff\xd8"):
            shard = shown(images.shards[number])
            raise ValueError(f"image {i} in {shard} is no JPEG; delete that file's .json to write it again")
        sha.update(hashlib.sha256(data).digest())
    return sha.digest()


def shards_of(folder: Path, split: str) -> list[Path]:
    return sorted(folder.glob(f"{split}-*.tar"))


def read_meta(folder: Path) -> dict:
    return read_json(folder / "meta.json")


def fields(folder: Path, size: int, central: float = 1.0) -> dict:
    """The fields of `ImageData` but its name, from a folder that `convert` has filled."""
    meta, empty = read_meta(folder), StoredImages([], size, "", central)
    found = {"train": empty, "test": empty}
    for split, count in meta["images"].items():
        found[split] = StoredImages(shards_of(folder, split), size, meta["digests"][split], central)
        if len(found[split]) != count:
            raise ValueError(
                f"{shown(folder)} has {len(found[split]):,} images of {split}, not {count:,}; "
                "delete it and the same command makes it again"
            )
    labels = {f"{split}_labels": found[split].labels for split in ("train", "test")}
    return {**found, **labels, "classes": tuple(meta["classes"])}
