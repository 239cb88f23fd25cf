"""Images that do not fit in memory: JPEGs in tar files on disk, each read when it is its turn.

The tar files are shards as webdataset has them, so `tar -xf` or any of its tools opens them. An index
beside each says where in it an image lies, so that a worker process reads any image by one call. Nothing
is mapped: memory holds 28 bytes an image and what is being read. `convert` writes all this.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..machine import cores, shown

# What the index says of an image: where its bytes begin, how many they are, its size in pixels, its class.
INDEX = np.dtype([(name, "<i8") for name in ("start", "bytes")] + [(n, "<i4") for n in ("H", "W", "label")])


class StoredImages:
    """Images of one split on disk, with what of a uint8 tensor (N, 3, size, size) its users need.

    An index gives clean images, as the encoder is evaluated on: of the middle, `central` of the short side,
    resized. Pretraining calls `crops` instead.

    Args:
        shards: the tar files, each with its index beside it.
        size: side of an image that is read, pixels.
        digest: of the bytes of all images.
        central: part of the short side, in (0, 1].

    Raises:
        ValueError: an index or a tar file is missing or damaged.
    """

    dtype, device, nbytes = torch.uint8, torch.device("cpu"), 0  # in memory

    def __init__(self, shards: list[Path], size: int, digest: str, central: float = 1.0):
        self.shards, self.size, self.digest, self.central = shards, size, digest, central
        parts = [index(shard) for shard in shards]
        self.index = np.concatenate(parts) if parts else np.zeros(0, INDEX)
        self.shard = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])
        self.shape = torch.Size((len(self.index), 3, size, size))
        self._files: dict[int, io.FileIO] = {}

    def __len__(self) -> int:
        return len(self.index)

    def dim(self) -> int:
        return 4

    def __getstate__(self):  # for worker processes that are not forks
        return self.__dict__ | {"_files": {}}

    def __add__(self, other: StoredImages) -> StoredImages:
        shards, digest = self.shards + other.shards, f"{self.digest} {other.digest}"
        return StoredImages(shards, self.size, digest, self.central)

    @property
    def labels(self) -> Tensor:
        """(N,) int64"""
        return torch.from_numpy(self.index["label"].astype(np.int64))

    def __getitem__(self, which) -> Tensor:
        """Clean images: an int gives (3, size, size), what indexes several gives (n, 3, size, size)."""
        wanted = torch.arange(len(self))[which]
        with ThreadPoolExecutor(cores()) as pool:  # Pillow decodes without the interpreter lock
            images = list(pool.map(self._clean, wanted.flatten().tolist()))
        pixels = np.stack(images) if images else np.zeros((0, self.size, self.size, 3), np.uint8)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().view(*wanted.shape, *self.shape[1:])

    def split(self, count: int) -> Iterator[Tensor]:
        """Clean images, `count` at a time."""
        return (self[start : start + count] for start in range(0, len(self), count))

    def sizes(self, which: np.ndarray) -> tuple[Tensor, Tensor]:
        """Height and width (n,) in pixels of the images of these indices (n,)."""
        H, W = (torch.from_numpy(self.index[name][which].astype(np.float32)) for name in ("H", "W"))
        return H, W

    def crops(self, i: int, boxes: list[list[int]], out: np.ndarray) -> None:
        """Rectangles of image i, which is decoded once, resized as by torchvision on such an image.

        Args:
            boxes: top, left, height and width of each, pixels.
            out: (len(boxes), h, w, 3) uint8, which is filled.
        """
        _, h, w, _ = out.shape
        with self.opened(i) as image:
            for place, (top, left, height, width) in zip(out, boxes, strict=True):
                cut = image.crop((left, top, left + width, top + height))
                place[:] = cut.resize((w, h), Image.Resampling.BILINEAR)

    def _clean(self, i: int) -> np.ndarray:
        with self.opened(i) as image:
            side = self.central * min(image.size)
            left, top = ((length - side) / 2 for length in image.size)
            box = (left, top, left + side, top + side)
            return np.asarray(image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box))

    @contextlib.contextmanager
    def opened(self, i: int) -> Iterator[Image.Image]:
        """Image i, decoded.

        Raises:
            ValueError: its bytes are no image, or not to be read.
        """
        try:
            with Image.open(io.BytesIO(self.jpeg(i)), formats=["JPEG"]) as image:
                image.load()
                yield image
        except OSError as error:
            shard = self.shards[self.shard[i]]
            raise ValueError(
                f"image {i} in {shown(shard)} cannot be read ({error}); {_again(shard)}"
            ) from error

    def jpeg(self, i: int) -> bytes:
        """The bytes of image i."""
        shard, where = int(self.shard[i]), self.index[i]
        if shard not in self._files:
            self._files.setdefault(shard, io.FileIO(self.shards[shard]))  # one, whichever thread is first
        return os.pread(self._files[shard].fileno(), int(where["bytes"]), int(where["start"]))

    def __del__(self):
        for file in self.__dict__.get("_files", {}).values():
            file.close()


def index(shard: Path) -> np.ndarray:
    """What lies where in a shard, as INDEX has it.

    Raises:
        ValueError: it is missing or damaged, or the tar file is shorter than it says.
    """
    try:
        found = np.load(shard.with_suffix(".npy"))
        whole = found.dtype == INDEX and (
            not len(found) or shard.stat().st_size >= found["start"][-1] + found["bytes"][-1]
        )
        reason = "it is cut short"
    except (OSError, ValueError) as error:
        whole, reason = False, str(error)
    if not whole:
        raise ValueError(f"{shown(shard)} is damaged ({reason}); {_again(shard)}")
    return found


def _again(shard: Path) -> str:
    return f"delete {shown(shard.parent)} and the same command makes it again"
