"""What follows from a data set: network, views and optimization, unless a run says otherwise."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """What follows from the data set, unless a run says otherwise; defaults: the small-image protocol."""

    encoder: str  # as in TrainConfig
    width: int | None  # channels of the encoder's first stage
    image_size: int  # pixels, side of a view
    augmentation: str  # name in dcopy.data.augment.RECIPES
    hidden_dim: int = 512
    projection_dim: int = 128
    images: int | None = None  # for pretraining; a folder has its own number
    # optimization
    batch_size: int = 128
    optimizer: str = "sgd"
    lr: float = 0.03
    lr_per: int | None = None  # lr is for batches of so many images, and in proportion for others
    lr_schedule: str = "constant"
    warmup: int = 0  # at most a tenth of a run's epochs
    weight_decay: float = 4e-4
    decay: str = "all"
    ema: float = 0.996
    ema_schedule: str = "constant"
    heads: str = "reference"


RECIPES = {
    "digits": Recipe("conv", 32, 16, "digits", hidden_dim=256, projection_dim=64, images=1297),
    "cifar10": Recipe("resnet18-cifar", 64, 32, "cifar", images=50_000),
    "cifar100": Recipe("resnet18-cifar", 64, 32, "cifar", images=50_000),
    "stl10": Recipe("resnet18", 64, 96, "stl10", images=105_000),
    # Tian et al. 2021 (arXiv 2102.06810), Table 9, batch 4096. What they leave open is filled in from BYOL's
    # code (`google-deepmind/deepmind-research:byol/configs/byol.py`), as 300 epochs have it there.
    "imagenet": Recipe(
        *("torchvision:resnet50", None, 224, "imagenet"),
        **{"hidden_dim": 4096, "projection_dim": 256, "images": 1_281_167},
        **{"batch_size": 4096, "optimizer": "lars", "lr": 0.3, "lr_per": 256, "lr_schedule": "cosine"},
        **{"warmup": 10, "weight_decay": 1e-6, "decay": "weights", "ema": 0.99, "ema_schedule": "cosine"},
        heads="byol",
    ),
    "imagenette": Recipe("resnet18", 64, 128, "imagenet", images=9_469),
    "folder": Recipe("resnet18-cifar", 64, 32, "cifar"),
}
RESIZED = ("imagenet", "imagenette", "folder")  # whose views may have any size
