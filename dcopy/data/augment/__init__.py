"""Random augmentation of whole batches on the device, each image with its own parameters.

Each operation equals torchvision's of that name on float tensors, image by image at the same
parameters, and draws them from the same distribution. It has two halves: `sample(shape, generator)`
draws one row of parameters per image, `apply(images, params)` uses them and draws nothing. Neither
looks at a value on the device (no index by mask, no `.item()`), so the device never waits, and
`apply` can be captured in a graph.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ...config import one_of, require
from .color import ColorJitter, GaussianNoise, Grayscale, Normalize, Solarize
from .geometry import GaussianBlur, HorizontalFlip, RandomAffine, RandomResizedCrop
from .operation import Operation

__all__ = [
    "RECIPES",
    "Augmentation",
    "ColorJitter",
    "GaussianBlur",
    "GaussianNoise",
    "Grayscale",
    "HorizontalFlip",
    "Normalize",
    "Operation",
    "RandomAffine",
    "RandomResizedCrop",
    "Solarize",
    "build",
    "to_float",
]


@dataclass(frozen=True)
class Augmentation:
    """A list of operations, applied in turn to a batch of images.

    Args:
        operations: applied from first to last; `Normalize` comes last, since the others expect [0, 1].
        second: operations of the second view, where the two views differ.

    >>> augment = Augmentation((HorizontalFlip(), Normalize((0.5,), (0.25,))))
    >>> images = torch.full((2, 1, 4, 4), 255, dtype=torch.uint8)
    >>> params = augment.sample(images.shape, torch.Generator().manual_seed(0))
    >>> params[0]["flipped"].shape
    torch.Size([2])
    >>> augment.apply(images, params).unique()
    tensor([2.])
    """

    operations: tuple[Operation, ...]
    second: tuple[Operation, ...] | None = None

    @property
    def views(self) -> tuple[Augmentation, Augmentation]:
        """The augmentation of either view."""
        return Augmentation(self.operations), Augmentation(self.second or self.operations)

    def after_crop(self) -> tuple[RandomResizedCrop, Augmentation]:
        """The crop that comes first, and what is left for images that are cropped already.

        Raises:
            ValueError: it does not begin with a crop.
        """
        crop = self.operations[0]
        cropped = isinstance(crop, RandomResizedCrop) and crop == self.views[1].operations[0]
        require("augmentation", type(crop).__name__, cropped, "one whose views begin with the same crop")
        return crop, Augmentation(self.operations[1:], self.second and self.second[1:])

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Augment a batch as the first view, each image with parameters of its own.

        Args:
            images: uint8 (N, C, H, W).
            generator: on the images' device; it moves on, so a second call differs.

        Returns:
            float32 (N, C, h, w).

        Raises:
            ValueError: images are no uint8 batch, or the generator is on another device.
        """
        require_batch(images)
        there, here = generator.device.type, images.device.type
        require("generator's device", there, there == here, f"{here}, as the images'")
        return self.apply(images, self.sample(images.shape, generator))

    def sample(self, shape: tuple[int, ...], generator: Generator) -> list[dict[str, Tensor]]:
        """Draw the parameters of all operations for images of shape (N, C, H, W), a dict for each."""
        params = []
        for operation in self.operations:
            params.append(operation.sample(shape, generator))
            if isinstance(operation, RandomResizedCrop):
                shape = (*shape[:2], *operation.size)
        return params

    @torch.no_grad()
    def apply(self, images: Tensor, params: list[dict[str, Tensor]]) -> Tensor:
        """Augment uint8 images (N, C, H, W) with the parameters of `sample`; this half can be compiled."""
        with torch.autocast(images.device.type, enabled=False):  # bf16 holds no 256 grey values
            images = to_float(images)
            for operation, drawn in zip(self.operations, params, strict=True):
                images = operation.apply(images, drawn)
        return images

    @torch.no_grad()
    def clean(self, images: Tensor) -> Tensor:
        """Images as the encoder is evaluated on, nothing random: uint8 (N, C, H, W) -> normalized float32."""
        require_batch(images)
        images = to_float(images)
        for operation in self.operations:
            if isinstance(operation, Normalize):
                images = operation.apply(images, {})
        return images


def to_float(images: Tensor) -> Tensor:
    """uint8 (N, C, H, W) in 0 ... 255 to float32 in [0, 1]."""
    return images.float() / 255


def require_batch(images: Tensor) -> None:
    """Refuse what is no uint8 (N, C, H, W) of one or three channels."""
    require("images' dtype", images.dtype, images.dtype == torch.uint8, "torch.uint8")
    shape = tuple(images.shape)
    require("images' shape", shape, len(shape) == 4 and shape[1] in (1, 3), "(N, C, H, W), C 1 or 3")


IMAGENET = Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

RECIPES = {
    # `facebookresearch/luckmatters:ssl/real-dataset/data/transforms.py`
    "cifar": (
        RandomResizedCrop((32, 32)),
        HorizontalFlip(0.5),
        ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8),
        Grayscale(0.2),
        Normalize(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)),
    ),
    # the same file; not normalized there either
    "stl10": (
        RandomResizedCrop((96, 96)),
        HorizontalFlip(0.5),
        ColorJitter(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, p=0.8),
        Grayscale(0.2),
        GaussianBlur(kernel=9, sigma=(0.1, 2.0)),
    ),
    # ours, for 16x16 pixels of one channel; no flip, since a mirrored digit is none
    "digits": (
        RandomAffine(degrees=15, translate=1 / 8, scale=(0.8, 1.2), shear=10),
        ColorJitter(brightness=0.4, contrast=0.4),
        GaussianNoise(0.1),
    ),
    # BYOL's (arXiv 2006.07733, appendix B), the first view; the second is in SECOND
    "imagenet": (
        RandomResizedCrop((224, 224)),
        HorizontalFlip(0.5),
        ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=0.8),
        Grayscale(0.2),
        GaussianBlur(kernel=23, sigma=(0.1, 2.0), p=1.0),
        IMAGENET,
    ),
}
SECOND = {  # where it differs from the first
    "imagenet": (
        *RECIPES["imagenet"][:4],
        GaussianBlur(kernel=23, sigma=(0.1, 2.0), p=0.1),
        Solarize(threshold=0.5, p=0.2),
        IMAGENET,
    ),
}


def build(name: str, size: int | None = None) -> Augmentation:
    """The augmentation of a data set.

    Args:
        name: one of RECIPES.
        size: side of the views in pixels, where the recipe crops; None: the recipe's own.

    Raises:
        ValueError: an unknown name; the message lists the known ones.

    >>> augment = build("cifar")
    >>> images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    >>> augment(images, torch.Generator().manual_seed(0)).shape
    torch.Size([4, 3, 32, 32])
    """
    require("augmentation", name, name in RECIPES, one_of(RECIPES))
    views = RECIPES[name], SECOND.get(name)
    crop = next((one for one in views[0] if isinstance(one, RandomResizedCrop)), None)
    if size is not None and crop is not None:
        views = (view and tuple(_resized(one, crop.size[0], size) for one in view) for view in views)
    return Augmentation(*views)


def _resized(operation: Operation, own: int, size: int) -> Operation:
    """An operation for views of another size than the recipe's own: a blur reaches as far, in parts of it."""
    if isinstance(operation, RandomResizedCrop):
        return dataclasses.replace(operation, size=(size, size))
    if isinstance(operation, GaussianBlur):
        return dataclasses.replace(operation, kernel=2 * (operation.kernel * size // (2 * own)) + 1)
    return operation
