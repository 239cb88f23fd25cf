"""Operations that move pixels: crop and resize, flip, affine maps, blur."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from ...config import require
from .operation import Operation, chance, per_image, require_probability, uniform


@dataclass(frozen=True)
class RandomResizedCrop(Operation):
    """Cut out a rectangle of random area and shape, and resize it: bilinear, antialiased.

    As `torchvision.transforms.v2.RandomResizedCrop(size, antialias=True)`: whole-pixel borders, up
    to ten tries for a rectangle that fits, then the largest central one of an allowed shape.

    Args:
        size: (h, w) of the result, pixels.
        area: range of the area, as a part of the image's.
        ratio: range of width / height, drawn uniformly in its logarithm.

    >>> crop, images = RandomResizedCrop((32, 32)), torch.rand(2, 3, 96, 96)
    >>> params = crop.sample(images.shape, torch.Generator().manual_seed(0))
    >>> list(params)
    ['top', 'left', 'height', 'width']
    >>> crop.apply(images, params).shape
    torch.Size([2, 3, 32, 32])
    """

    size: tuple[int, int]
    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    TRIES = 10

    def __post_init__(self):
        require("size", self.size, len(self.size) == 2 and min(self.size) >= 1, "two numbers of pixels")
        require("area", self.area, 0 < self.area[0] <= self.area[1] <= 1, "(low, high) in (0, 1]")
        require("ratio", self.ratio, 0 < self.ratio[0] <= self.ratio[1], "(low, high), both positive")

    def sample(self, shape, generator):
        """Draw top, left, height, width (N,), whole numbers of pixels as float32.

        Where images differ in size, H and W of the shape are tensors (N,).
        """
        N, _, H, W = shape
        tries = (N, self.TRIES)
        area = _row(H * W) * uniform(tries, *self.area, generator)
        ratio = uniform(tries, math.log(self.ratio[0]), math.log(self.ratio[1]), generator).exp()
        width = (area * ratio).sqrt().round()  # (N, TRIES)
        height = (area / ratio).sqrt().round()
        fits = (width >= 1) & (width <= _row(W)) & (height >= 1) & (height <= _row(H))
        first = fits.int().argmax(1, keepdim=True)  # (N, 1); 0 where none fits
        found = fits.any(1)
        low, high = self.ratio  # of the central rectangle for the images without a fit
        height = torch.where(found, height.gather(1, first)[:, 0], _at_most(H, W / low))
        width = torch.where(found, width.gather(1, first)[:, 0], _at_most(W, H * high))
        top = torch.where(found, uniform(N, 0, 1, generator) * (H - height + 1), (H - height) / 2).floor()
        left = torch.where(found, uniform(N, 0, 1, generator) * (W - width + 1), (W - width) / 2).floor()
        return {"top": top, "left": left, "height": height, "width": width}

    def apply(self, images, params):
        """Images (N, C, H, W) -> (N, C, h, w)."""
        _, _, H, W = images.shape
        rows = interpolation_matrix(params["top"], params["height"], H, self.size[0])
        columns = interpolation_matrix(params["left"], params["width"], W, self.size[1])
        return resample(images, rows, columns)


def _row(size: float | Tensor) -> float | Tensor:
    """A size, or the sizes (N,) of images as (N, 1)."""
    return size[:, None] if isinstance(size, Tensor) else size


def _at_most(limit: float | Tensor, value: float | Tensor) -> float | Tensor:
    """The value as a whole number, or the limit where it is smaller."""
    if isinstance(value, Tensor):
        return torch.minimum(limit, value.round())
    return min(limit, round(value))


def interpolation_matrix(start: Tensor, length: Tensor, full: int, out: int) -> Tensor:
    """Weights that resize a stretch of pixels to another length, bilinear and antialiased.

    Row i is a triangle around the middle of new pixel i; its half width is one new pixel, or one
    old pixel where those are wider. It is cut at the stretch's borders and sums to one.

    Args:
        start, length: (N,) the stretch, in whole pixels.
        full: how many pixels there are.
        out: how many there shall be.

    Returns:
        (N, out, full).

    >>> interpolation_matrix(torch.tensor([1.0]), torch.tensor([2.0]), full=4, out=1)
    tensor([[[0.0000, 0.5000, 0.5000, 0.0000]]])
    """
    start, length = start[:, None, None], length[:, None, None]
    step = length / out  # old pixels per new one
    middle = start + step * (torch.arange(out, device=start.device)[:, None] + 0.5)  # (N, out, 1)
    pixel = torch.arange(full, device=start.device) + 0.5  # (full,)
    weight = (1 - (pixel - middle).abs() / step.clamp(min=1)).clamp(min=0)  # (N, out, full)
    weight = weight * ((pixel > start) & (pixel < start + length))
    return weight / weight.sum(-1, keepdim=True)


def resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """New pixels as weighted sums of old ones, rows and columns apart.

    Args:
        images: (N, C, H, W).
        rows: (N, h, H) weights of each image.
        columns: (N, w, W).

    Returns:
        (N, C, h, w), rows @ image @ columns^T for each channel.
    """
    # In float32. Where TF32 is allowed it rounds by 2^-11, four times: less than a grey level of 255.
    _, C, H, _ = images.shape
    images = images.flatten(1, 2) @ columns.mT  # (N, C H, w): channels share one product
    return rows[:, None] @ images.unflatten(1, (C, H))  # (N, C, h, w)


@dataclass(frozen=True)
class HorizontalFlip(Operation):
    """Mirror left and right, with probability p (`v2.RandomHorizontalFlip`)."""

    p: float = 0.5

    def __post_init__(self):
        require_probability("p", self.p)

    def sample(self, shape, generator):
        """Draw flipped (N,): which images are mirrored."""
        return {"flipped": chance(shape[0], self.p, generator)}

    def apply(self, images, params):
        """Images (N, C, H, W)."""
        return torch.where(per_image(params["flipped"]), images.flip(-1), images)


@dataclass(frozen=True)
class RandomAffine(Operation):
    """Rotate, scale, shear and shift around the middle: bilinear, zero outside the image.

    As `torchvision.transforms.v2.RandomAffine(..., fill=None)`; its fill=0 would darken the
    borders twice.

    Args:
        degrees: the rotation is uniform in [-degrees, degrees].
        translate: largest shift to either side, as a part of the size; shifts are whole pixels.
        scale: range of the factor of size.
        shear: the shear along x is uniform in [-shear, shear] degrees.
    """

    degrees: float = 0.0
    translate: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    shear: float = 0.0

    def __post_init__(self):
        require("degrees", self.degrees, 0 <= self.degrees <= 180, "a number in [0, 180]")
        require("translate", self.translate, 0 <= self.translate <= 1, "a part of the size, in [0, 1]")
        require("scale", self.scale, 0 < self.scale[0] <= self.scale[1], "(low, high), both positive")
        require("shear", self.shear, 0 <= self.shear < 90, "a number in [0, 90)")

    def sample(self, shape, generator):
        """Draw angle and shear in degrees, dx and dy in pixels, and scale, each (N,)."""
        N, _, H, W = shape
        return {
            "angle": uniform(N, -self.degrees, self.degrees, generator),
            "dx": uniform(N, -self.translate * W, self.translate * W, generator).round(),
            "dy": uniform(N, -self.translate * H, self.translate * H, generator).round(),
            "scale": uniform(N, *self.scale, generator),
            "shear": uniform(N, -self.shear, self.shear, generator),
        }

    def apply(self, images, params):
        """Images (N, C, H, W); each new pixel looks up where it came from, by the inverse map."""
        _, _, H, W = images.shape
        angle, shear = params["angle"].deg2rad(), params["shear"].deg2rad()
        cos, sin, tan = angle.cos(), angle.sin(), shear.tan()
        # Rotation times shear is [[cos, -cos tan - sin], [sin, cos - sin tan]], of determinant 1.
        xx, xy = cos - sin * tan, cos * tan + sin
        yx, yy = -sin, cos
        dx, dy = params["dx"], params["dy"]
        # affine_grid counts in half sizes, x by the width and y by the height.
        theta = torch.stack(
            [
                torch.stack([xx, xy * (H / W), -(xx * dx + xy * dy) * (2 / W)], 1),
                torch.stack([yx * (W / H), yy, -(yx * dx + yy * dy) * (2 / H)], 1),
            ],
            dim=1,
        )  # (N, 2, 3)
        theta = theta / params["scale"][:, None, None]
        grid = affine_grid(theta, list(images.shape), align_corners=False)  # (N, H, W, 2)
        return grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


@dataclass(frozen=True)
class GaussianBlur(Operation):
    """Smooth with a Gaussian of random width, borders reflected, with probability p.

    As `torchvision.transforms.v2.RandomApply([GaussianBlur(kernel, sigma)], p)`.

    Args:
        kernel: pixels along each side of the cut-off Gaussian, odd.
        sigma: range of its standard deviation, pixels.
        p: probability that an image is smoothed.
    """

    kernel: int
    sigma: tuple[float, float] = (0.1, 2.0)
    p: float = 1.0

    def __post_init__(self):
        require("kernel", self.kernel, self.kernel >= 1 and self.kernel % 2 == 1, "odd and positive")
        require("sigma", self.sigma, 0 < self.sigma[0] <= self.sigma[1], "(low, high), both positive")
        require_probability("p", self.p)

    def sample(self, shape, generator):
        """Draw sigma (N,) in pixels and blurred (N,), which images are smoothed."""
        sigma = uniform(shape[0], *self.sigma, generator)
        return {"sigma": sigma, "blurred": chance(shape[0], self.p, generator)}

    def apply(self, images, params):
        """Images (N, C, H, W), each side longer than half a kernel."""
        _, _, H, W = images.shape
        reach = self.kernel // 2
        require("images' size", (H, W), min(H, W) > reach, f"more than {reach} pixels, half the kernel")
        offset = torch.arange(reach + 1, device=images.device)
        weight = torch.exp(-0.5 * (offset / params["sigma"][:, None]) ** 2)  # (N, reach + 1)
        weight = weight / (2 * weight.sum(1, keepdim=True) - 1)  # two sides, but one middle, of weight 1
        weight = torch.where(params["blurred"][:, None], weight, (offset == 0).float())
        rows, columns = ((weight @ _neighbours(offset, size)).unflatten(1, (size, size)) for size in (H, W))
        return resample(images, rows, columns)


def _neighbours(offset: Tensor, size: int) -> Tensor:
    """How often pixel j is met at each offset from pixel i, borders reflected: (offsets, size size)."""
    pixel = torch.arange(size, device=offset.device)
    i, j, last = pixel[:, None], pixel, size - 1
    # Left of the border stand the mirror images -1, -2, ... of pixels 1, 2, ...; pixel 0 has none.
    left = torch.where(j > 0, i + j, size)
    right = torch.where(j < last, 2 * last - i - j, size)
    distance = torch.stack([(i - j).abs(), left, right])  # (3, size, size)
    return (distance == offset[:, None, None, None]).sum(1).flatten(1).float()
