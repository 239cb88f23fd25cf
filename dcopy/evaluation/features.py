"""Features to probe: representations of an encoder, of the same before training, or the raw pixels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from .. import hardware
from ..config import TrainConfig
from ..training.runs import FrozenEncoder
from ..training.step import Trainer

MOST_PIXELS = 128  # side of an image whose raw pixels are probed as they are


class RawPixels(nn.Module):
    """The baseline without an encoder: the pixels themselves."""

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) uint8 -> (N, C H W) float32 in [0, 1]; large images are first averaged to 16x16."""
        images = images.float() / 255
        if max(images.shape[2:]) > MOST_PIXELS:
            images = nn.functional.adaptive_avg_pool2d(images, 16)
        return images.flatten(1)


def random_encoder(config: TrainConfig, channels: int) -> nn.Module:
    """The baseline without training: the encoder that a run of this seed starts from."""
    return FrozenEncoder(Trainer(config, channels).online.encoder, config)


@torch.inference_mode()
def extract_features(
    encoder: nn.Module, images: Tensor, batch_size: int = 512, device: str | None = None
) -> np.ndarray:
    """Representations of clean images, in eval mode; no parameter or buffer of the encoder moves.

    Its modules are in the modes they were in afterwards; it stays on `device`.

    Args:
        encoder: takes uint8 images, such as `Run.encoder`.
        images: (N, C, H, W) uint8.
        batch_size: images in one forward pass.
        device: default a GPU where there is one.

    Returns:
        (N, d) float32.

    Raises:
        ValueError: there is no image.
    """
    if len(images) == 0:
        raise ValueError("there are no images to extract features from")
    device, _ = hardware.choose(device)
    modes = {module: module.training for module in encoder.modules()}
    encoder = encoder.to(device).eval()
    features, done = None, 0
    try:
        for batch in images.split(batch_size):
            own = encoder(batch.to(device)).float().cpu().numpy()
            if features is None:
                features = np.empty((len(images), own.shape[1]), np.float32)
            features[done : done + len(own)] = own
            done += len(own)
    finally:  # a network that is still being trained goes on as it was
        for module, training in modes.items():
            module.training = training
    return features
