"""What is asked of images before they are used: are they sound, which are they, and will a probe work?"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..machine import shown
from .folder import threads
from .stored import StoredImages

if TYPE_CHECKING:
    from .datasets import ImageData

HASHED_AT_ONCE = 1 << 24  # bytes


def check_images(images: Tensor | StoredImages) -> None:
    """Check images that a user passes to pretraining.

    Args:
        images: (N, C, H, W), N at least 1, C 1 or 3; uint8, or floating point and finite. Stored ones were
            checked when they were made.

    Raises:
        ValueError: wrong dtype or shape, or NaN or infinity; the message names the first bad image.

    >>> check_images(torch.full((2, 1, 4, 4), float("nan")))
    Traceback (most recent call last):
    ValueError: image 0 has NaN or infinite values (2 of 2 images do)
    """
    known = isinstance(images, (Tensor, StoredImages))
    if not known or images.dim() != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        got = tuple(images.shape) if known else type(images).__name__
        raise ValueError(f"a tensor of shape (N, 1 or 3, H, W) expected, got {got}")
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise ValueError(f"images of dtype uint8 or floating point expected, got {images.dtype}")
    bad = ~torch.isfinite(images).flatten(1).all(1)  # (N,)
    if bad.any():
        first, count = bad.int().argmax().item(), bad.sum().item()
        raise ValueError(f"image {first} has NaN or infinite values ({count} of {len(images)} images do)")


def fingerprint(*tensors: Tensor | StoredImages) -> str:
    """Sixteen hexadecimal digits over the content of tensors: the same images, the same digits.

    Blocks are hashed side by side, as hashlib releases the interpreter lock: 1 GB takes seconds at most.
    The bytes of stored images were hashed when they were written.

    Args:
        tensors: each (N, ...), of any dtype and on any device, or stored images.

    >>> from dcopy.data import load
    >>> fingerprint(load("digits").train)
    '8864e0a70ebc49b3'
    """

    def digest(block: Tensor) -> bytes:
        return hashlib.sha256(block.cpu().contiguous().view(torch.uint8).numpy()).digest()

    whole = hashlib.sha256()
    with ThreadPoolExecutor(threads()) as pool:
        for tensor in tensors:
            whole.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
            if isinstance(tensor, StoredImages):
                whole.update(f"{tensor.digest} {tensor.central}".encode())
                continue
            rows = max(1, HASHED_AT_ONCE // max(1, tensor[:1].nbytes))
            whole.update(b"".join(pool.map(digest, tensor.detach().split(rows))))
    return whole.hexdigest()[:16]


def why_no_probe(data: ImageData) -> str:
    """What a data set lacks for a linear probe, as a sentence; empty where it lacks nothing.

    >>> from dcopy.data import load
    >>> why_no_probe(load("digits"))
    ''
    """
    name, counts = shown(data.name), data.train_labels.bincount(minlength=len(data.classes)).tolist()
    few = [i for i, count in enumerate(counts) if count < 2]
    if empty := [split for split in ("train", "test") if len(getattr(data, split)) == 0]:
        return f"{name} has no labelled {empty[0]} images; a probe needs {empty[0]}/<class>/*"
    if len(counts) < 2:
        return f"{name} has one class, {shown(data.classes[0])}; a probe needs two"
    if few:
        scarce = f"too few training images of class {shown(data.classes[few[0]])} ({counts[few[0]]})"
        return f"{name} has {scarce}; a probe needs two of each class"
    return ""
