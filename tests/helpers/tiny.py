"""A run of a fraction of a second, for tests that look at how a run goes and not at what it learns."""

import torch

from dcopy.config import TrainConfig
from dcopy.training.loop import pretrain
from dcopy.training.runs import Run

torch.set_num_threads(1)  # the fastest for networks so small; and a process without threads can fork


def tiny_config(**fields) -> TrainConfig:
    """3 epochs of 3 steps on `tiny_images`."""
    small = {"epochs": 3, "batch_size": 16, "width": 2, "hidden_dim": 16, "projection_dim": 8}
    return TrainConfig(**small | fields)


def tiny_images(count: int = 50, seed: int = 0) -> torch.Tensor:
    """Random blobs (N, 1, 16, 16) uint8; with batches of 16, two are left over."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 1, 4, 4, generator=generator)
    return (torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear") * 255).byte()


def tiny_run(folder, config: TrainConfig, **options) -> Run:
    return pretrain(config, folder, **{"images": tiny_images(), "device": "cpu", "progress": False} | options)


def tiny_views(batch_size: int = 16, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two views of a batch (N, 1, 16, 16) float32, as augmentation might make them."""
    generator = torch.Generator().manual_seed(seed)
    images = tiny_images(batch_size, seed).float() / 255
    noise = torch.randn(2, *images.shape, generator=generator)
    return images + 0.1 * noise[0], images + 0.1 * noise[1]
