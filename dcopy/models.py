"""Encoders, the projector, and the network that is trained online and followed by the target."""

from __future__ import annotations

import contextlib
import difflib
import sys

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torchvision.models.resnet import BasicBlock
from torchvision.ops import StochasticDepth

from .config import TrainConfig, parse_options


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


def require_timm(name: str):
    """The package timm, which the option `name` needs; raises ValueError where there is none."""
    try:
        import timm.optim
    except ImportError:
        raise ValueError(f"{name} needs the package timm, which is not here; pip install timm") from None
    return timm


def check_names(config: TrainConfig) -> None:
    """Raise ValueError where a run needs a model that its library lacks, or a library that is not here."""
    library, _, name = config.encoder.partition(":")
    if config.library == "timm":
        timm = require_timm(f"encoder={config.encoder}")
        known, good = timm.list_models(), timm.is_model(name)
    elif config.library == "torchvision":
        known = torchvision.models.list_models(module=torchvision.models)
        good = name in known
    if config.library and not good:
        near = ", ".join(difflib.get_close_matches(name, known, n=5, cutoff=0.4)) or "none"
        raise ValueError(f"encoder={config.encoder} is not a model of {library}; names near it: {near}")
    if config.optimizer == "lars":
        require_timm("optimizer=lars")


def library_encoder(config: TrainConfig, channels: int) -> nn.Module:
    """A classifier of torchvision or timm without its last layer: (N, C, H, W) -> (N, out_dim), untrained.

    Dropout and stochastic depth are off: BYOL has neither, and what they draw would differ after a resume and
    between processes. Parameters that the features do not depend on, as mask tokens, are not trained.

    Raises:
        ValueError: no such model or library, or one that does not take images of this size.
    """
    check_names(config)
    name, size = config.encoder.partition(":")[2], config.image_size
    if config.library == "timm":
        timm = require_timm(config.encoder)
        fixed = getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False)
        sizes = {"img_size": size} if fixed else {}
        with _taking(config, channels):
            model = timm.create_model(name, num_classes=0, in_chans=channels, **sizes)
    else:
        own = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
        own |= {"image_size": size} if name.startswith("vit_") else {}
        with _taking(config, channels):
            model = torchvision.models.get_model(name, weights=None, **own)
        linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise ValueError(f"encoder={config.encoder} has no linear layer to take off; choose another")
        model.set_submodule(linear[-1], nn.Identity())
    for module in model.modules():
        if isinstance(module, (_DropoutNd, StochasticDepth)):
            module.p = 0.0
        if hasattr(module, "drop_prob"):  # timm's DropPath
            module.drop_prob = 0.0
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with _taking(config, channels), torch.enable_grad():
        features = model.eval()(torch.zeros(2, channels, size, size))  # (2, out_dim)
        gradients = torch.autograd.grad(features.sum(), trained, allow_unused=True)
        _, model.out_dim = features.shape
    for parameter, gradient in zip(trained, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
    return model.train()


@contextlib.contextmanager
def _taking(config: TrainConfig, channels: int):
    """What goes wrong in the block, a model or its first images, as one line."""
    try:
        yield
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        why, size = (str(error) or type(error).__name__).splitlines()[0], config.image_size
        raise ValueError(
            f"encoder={config.encoder} does not take images of {channels}x{size}x{size} ({why})"
        ) from None


def head(inputs: int, hidden: int, outputs: int, kind: str) -> nn.Sequential:
    """BYOL's two layers.

    Args:
        kind: "reference" as in the code of Tian et al., whose BatchNorm is without affine; "byol" as in
            `google-deepmind/deepmind-research:byol/utils/networks.py`, whose last layer is without bias.
    """
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.BatchNorm1d(hidden, affine=kind == "byol"),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, outputs, bias=kind != "byol"),
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
        if config.library:
            self.encoder = library_encoder(config, channels)
        else:
            self.encoder = ENCODERS[config.encoder](channels, config.width)
        sizes = self.encoder.out_dim, config.hidden_dim, config.projection_dim
        self.projector = (
            simsiam_projector(*sizes) if config.method == "simsiam" else head(*sizes, config.heads)
        )

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


if __name__ == "__main__":  # `workflow.preset` asks before it starts, since it plans without torch
    try:
        check_names(TrainConfig.from_dict(parse_options(sys.argv[1:])))
    except ValueError as problem:
        sys.exit(str(problem))
