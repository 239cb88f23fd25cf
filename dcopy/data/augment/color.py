"""Operations that change the values of pixels: colour jitter, grey, solarize, noise, normalize."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...config import require
from .operation import Operation, chance, per_image, require_probability, uniform

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # torchvision's numbers for the parts of its jitter


def luminance(images: Tensor) -> Tensor:
    """Grey value 0.2989 r + 0.587 g + 0.114 b, as torchvision (ITU-R 601-2): (N, C, H, W) -> (N, 1, H, W)."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of each image, keeping HSV's saturation and value.

    The hue is a place on a hexagon, h in [0, 6). Each channel is low + (high - low) w(h) where w
    is a trapezoid of its own; the largest and the smallest channel stay as large as they were, so
    neither saturation nor value need be computed.

    Args:
        images: (N, 3, H, W) in [0, 1].
        shift: (N,) in turns of the colour circle, in [-0.5, 0.5].

    Returns:
        (N, 3, H, W), as `torchvision.transforms.v2.functional.adjust_hue` on float tensors.

    >>> red, third = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1), torch.tensor([1 / 3])
    >>> shift_hue(red, third).flatten().round(decimals=4).tolist()  # a third of a turn: green
    [0.0, 1.0, 0.0]
    """
    red, green, blue = images.unbind(1)  # (N, H, W)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    divisor = torch.where(chroma == 0, 1.0, chroma)  # grey has no hue; any will do
    from_red = (green - blue).div_(divisor)
    from_green = (blue - red).div_(divisor).add_(2)
    from_blue = (red - green).div_(divisor).add_(4)
    h = torch.where(high == red, from_red, torch.where(high == green, from_green, from_blue))
    h = h.add_(6 * shift[:, None, None]).remainder_(6)
    weights = (
        h.sub(3).abs_().sub_(1),  # red: full around 0 and 6
        h.sub(2).abs_().neg_().add_(2),  # green: full around 2
        h.sub(4).abs_().neg_().add_(2),  # blue: full around 4
    )
    return torch.stack([torch.addcmul(low, w.clamp_(0, 1), chroma) for w in weights], dim=1)


@dataclass(frozen=True)
class ColorJitter(Operation):
    """Brightness, contrast, saturation and hue, in an order drawn for each image.

    The first three blend the image with a darker, flatter or greyer one,
    x <- clamp(f x + (1 - f) t, 0, 1), with t = 0, the mean luminance, or the luminance.
    One-channel images have neither saturation nor hue.

    Args:
        brightness, contrast, saturation: the factor f is uniform in [max(0, 1 - value), 1 + value].
        hue: the shift is uniform in [-hue, hue] turns, hue at most 0.5.
        p: probability that an image is changed.

    As `torchvision.transforms.v2.RandomApply([ColorJitter(...)], p)` on float tensors.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    p: float = 1.0

    def __post_init__(self):
        for name in ("brightness", "contrast", "saturation"):
            require(name, getattr(self, name), getattr(self, name) >= 0, "a number of at least 0")
        require("hue", self.hue, 0 <= self.hue <= 0.5, "a number in [0, 0.5]")
        require_probability("p", self.p)

    def sample(self, shape, generator):
        """Draw brightness, contrast, saturation, hue (N,) and order (N, 4); 1, 1, 1, 0 do nothing."""
        n = shape[0]
        params = {"order": torch.rand(n, 4, generator=generator, device=generator.device).argsort(1)}
        changed = chance(n, self.p, generator)
        for name in ("brightness", "contrast", "saturation"):
            value = getattr(self, name)
            factor = uniform(n, max(0.0, 1 - value), 1 + value, generator)
            params[name] = torch.where(changed, factor, 1.0)
        params["hue"] = uniform(n, -self.hue, self.hue, generator) * changed
        return params

    def apply(self, images, params):
        """Take the turns before each image's hue shift, the shift, then the turns after it.

        Hue costs more than the rest together. It comes at another turn for each image, but once
        for each, so the batch passes it once, and a turn of the other side has the factor 1.
        """
        order = params["order"]  # (N, 4)
        factors = torch.stack([params["brightness"], params["contrast"], params["saturation"]], 1)
        factors = torch.nn.functional.pad(factors, (0, 1), value=1.0).gather(1, order)  # (N, 4), by turn
        if self.hue == 0 or images.shape[1] == 1:
            for t in range(4):
                images = _blend(images, order[:, t], factors[:, t])
            return images
        turn = torch.arange(4, device=order.device)
        hue_turn = (order == HUE).int().argmax(1, keepdim=True)  # (N, 1)
        before, after = factors.where(turn < hue_turn, 1.0), factors.where(turn > hue_turn, 1.0)  # (N, 4)
        for t in range(3):
            images = _blend(images, order[:, t], before[:, t])
        images = shift_hue(images, params["hue"])
        for t in range(1, 4):
            images = _blend(images, order[:, t], after[:, t])
        return images


def _blend(images: Tensor, part: Tensor, factor: Tensor) -> Tensor:
    """One turn of the jitter: each image has its own part (N,) and factor (N,)."""
    grey = luminance(images)  # (N, 1, H, W)
    mean = grey.mean((1, 2, 3), keepdim=True)  # (N, 1, 1, 1)
    # A one-channel image is its own luminance, so SATURATION leaves it as it is.
    other = torch.addcmul(mean * per_image(part == CONTRAST), grey, per_image(part == SATURATION).float())
    return other.lerp(images, per_image(factor)).clamp_(0, 1)


@dataclass(frozen=True)
class Grayscale(Operation):
    """Replace each channel by the luminance, with probability p (`v2.RandomGrayscale`)."""

    p: float = 0.1

    def __post_init__(self):
        require_probability("p", self.p)

    def sample(self, shape, generator):
        """Draw grey (N,): which images lose their colour."""
        return {"grey": chance(shape[0], self.p, generator)}

    def apply(self, images, params):
        """Images (N, C, H, W), C unchanged."""
        return torch.where(per_image(params["grey"]), luminance(images), images)


@dataclass(frozen=True)
class Solarize(Operation):
    """Invert the pixels at or above a threshold, x <- 1 - x, with probability p (`v2.RandomSolarize`)."""

    threshold: float = 0.5
    p: float = 0.5

    def __post_init__(self):
        require("threshold", self.threshold, 0 <= self.threshold <= 1, "a grey value in [0, 1]")
        require_probability("p", self.p)

    def sample(self, shape, generator):
        """Draw solarized (N,): which images are changed."""
        return {"solarized": chance(shape[0], self.p, generator)}

    def apply(self, images, params):
        """Images (N, C, H, W), each pixel and channel by itself."""
        inverted = per_image(params["solarized"]) & (images >= self.threshold)
        return torch.where(inverted, 1 - images, images)


@dataclass(frozen=True)
class GaussianNoise(Operation):
    """Add noise of a standard deviation, in grey values of [0, 1], and clamp (`v2.GaussianNoise`)."""

    std: float = 0.1

    def __post_init__(self):
        require("std", self.std, self.std >= 0, "a number of at least 0")

    def sample(self, shape, generator):
        """Draw noise (N, C, H, W), already of this standard deviation."""
        return {"noise": self.std * torch.randn(shape, generator=generator, device=generator.device)}

    def apply(self, images, params):
        """Images (N, C, H, W) in [0, 1]."""
        return (images + params["noise"]).clamp_(0, 1)


@dataclass(frozen=True)
class Normalize(Operation):
    """x <- (x - mean) / std, channel by channel (`v2.Normalize`)."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self):
        require("std", self.std, all(s > 0 for s in self.std), "positive numbers")
        require("mean", self.mean, len(self.mean) == len(self.std), f"{len(self.std)} numbers, as std")

    def apply(self, images, params):
        """Images (N, C, H, W) with C as many channels as there are means."""
        C = images.shape[1]
        require("images' channels", C, len(self.mean) == C, f"{len(self.mean)}, one for each mean")
        # Plain numbers, since a tensor made here would be copied to the device at each step.
        channels = zip(images.unbind(1), self.mean, self.std, strict=True)
        return torch.stack([(x - mean) / std for x, mean, std in channels], dim=1)
