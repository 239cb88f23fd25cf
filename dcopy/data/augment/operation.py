"""What an operation of an augmentation is, and how it draws its parameters."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ...config import require


class Operation:
    """One step of an augmentation; by default it draws nothing."""

    def sample(self, shape: tuple[int, ...], generator: Generator) -> dict[str, Tensor]:
        """Draw the parameters of a batch.

        Args:
            shape: (N, C, H, W) of the images that `apply` will get.
            generator: on the images' device.

        Returns:
            Tensors of first dimension N, on the generator's device.
        """
        return {}

    def apply(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Change images (N, C, H, W) as their parameters say; the input is left as it is."""
        raise NotImplementedError


def uniform(size: int | tuple[int, ...], low: float, high: float, generator: Generator) -> Tensor:
    """Numbers in [low, high) from the generator, float32, on its device."""
    return torch.empty(size, device=generator.device).uniform_(low, high, generator=generator)


def chance(n: int, p: float, generator: Generator) -> Tensor:
    """(n,) booleans, each true with probability p."""
    return uniform(n, 0, 1, generator) < p


def per_image(values: Tensor) -> Tensor:
    """(N,) -> (N, 1, 1, 1), to act on images."""
    return values[:, None, None, None]


def require_probability(name: str, p: float) -> None:
    """Refuse a probability outside [0, 1]."""
    require(name, p, 0 <= p <= 1, "a probability in [0, 1]")
