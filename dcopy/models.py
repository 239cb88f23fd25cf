"""Encoders, the projector, and the network that is trained online and followed by the target."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from .config import TrainConfig


class ConvNet(nn.Module):
    """Three strided convolutions with BatchNorm, for grey images of about 16 pixels.

    Args:
        channels: of the input images.
        width: channels of the first stage; the next have 2 and 4 times as many.
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            *self._stage(channels, width, kernel=5),
            *self._stage(width, 2 * width, kernel=3),
            *self._stage(2 * width, 4 * width, kernel=3),
        )
        self.out_dim = 4 * width

    @staticmethod
    def _stage(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 4 x width)"""
        return self.layers(x).mean(dim=(2, 3))


class ResNet18(nn.Module):
    """ResNet-18 of any width, from torchvision's blocks and with its parameter names.

    Args:
        channels: of the input images.
        width: channels of the first stage; 64 is torchvision's resnet18.
        cifar_stem: 3x3 stride-1 convolution and no max-pool, for images of 32 pixels
            (`facebookresearch/luckmatters:ssl/real-dataset/models/resnet_base_network.py`).
    """

    def __init__(self, channels: int, width: int, cifar_stem: bool):
        super().__init__()
        kernel, stride, padding = (3, 1, 1) if cifar_stem else (7, 2, 3)
        self.conv1 = nn.Conv2d(channels, width, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if cifar_stem else nn.MaxPool2d(3, 2, 1)
        self.layer1 = self._stage(width, width, stride=1)
        self.layer2 = self._stage(width, 2 * width, stride=2)
        self.layer3 = self._stage(2 * width, 4 * width, stride=2)
        self.layer4 = self._stage(4 * width, 8 * width, stride=2)
        self.out_dim = 8 * width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        shortcut = None
        if stride != 1:
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs))
        return nn.Sequential(BasicBlock(inputs, outputs, stride, shortcut), BasicBlock(outputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 8 x width)"""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean(dim=(2, 3))


ENCODERS = {
    "conv": ConvNet,
    "resnet18-cifar": lambda channels, width: ResNet18(channels, width, cifar_stem=True),
    "resnet18": lambda channels, width: ResNet18(channels, width, cifar_stem=False),
}


def projector(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """BYOL's two layers, with the reference code's BatchNorm."""
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.BatchNorm1d(hidden, affine=False),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, outputs),
    )


def simsiam_projector(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """SimSiam's three layers, each with BatchNorm (`facebookresearch/simsiam:simsiam/builder.py`)."""
    layers = []
    for size in (inputs, hidden):
        layers += [nn.Linear(size, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)]
    last = [nn.Linear(hidden, outputs, bias=False), nn.BatchNorm1d(outputs, affine=False)]
    return nn.Sequential(*layers, *last)


class Network(nn.Module):
    """Encoder and projector: an image x becomes a representation h and a projection z."""

    def __init__(self, config: TrainConfig, channels: int):
        super().__init__()
        self.encoder = ENCODERS[config.encoder](channels, config.width)
        project = simsiam_projector if config.method == "simsiam" else projector
        self.projector = project(self.encoder.out_dim, config.hidden_dim, config.projection_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, D)"""
        return self.projector(self.encoder(x))


@torch.no_grad()
def ema_update(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """theta_target <- momentum theta_target + (1 - momentum) theta_online, for parameters only.

    Buffers are left alone: the target runs in train mode, so its BatchNorm statistics follow from
    its own forward passes (as in `facebookresearch/luckmatters:ssl/real-dataset/byol_trainer.py`).
    """
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), 1 - momentum)
