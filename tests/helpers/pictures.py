"""Folders of small pictures, as tests make them."""

import numpy as np
import torch
from PIL import Image

from dcopy.data import load

SIDE = 8


def picture(seed=0, size=(SIDE, SIDE)):
    return Image.fromarray(np.random.default_rng(seed).integers(256, size=(*size[::-1], 3), dtype=np.uint8))


def put(file, image=None, **options):
    """A picture of a random colour each pixel, PNG where the name does not say otherwise."""
    file.parent.mkdir(parents=True, exist_ok=True)
    kind = options.pop("format", None if file.suffix in Image.registered_extensions() else "PNG")
    (image or picture(len(file.name))).save(file, kind, **options)
    return file


def two_classes(photos):
    for seed, name in enumerate(("cat/1.png", "cat/10.png", "cat/2.png", "dog/a.png")):
        put(photos / "train" / name, picture(seed))
    return photos


def read(photos, root, **options):
    return load(f"folder:{photos}", root, **({"image_size": SIDE} | options))


def pixels(image):
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)  # (3, H, W)


def small_imagenet(place, classes=("n01", "n02"), train=6, test=2):
    """The layout of ImageNet: `train/<wnid>/*.JPEG` and `val/<wnid>/*.JPEG`, of several sizes."""
    for split, count in (("train", train), ("val", test)):
        for label, wnid in enumerate(classes):
            for i in range(count):
                image = picture(100 * label + i, (24 + 3 * i, 30 - i))
                put(place / split / wnid / f"{wnid}_{i}.JPEG", image, format="JPEG")
    return place
