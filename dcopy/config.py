"""What a run is: one flat, frozen, validated configuration.

This module and `workflow.presets` import nothing heavy, so that the workflow can plan and check a
hundred runs before the first of them pays for torch.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass

from .recipes import RECIPES, RESIZED, Recipe

REPOSITORY: str | None = None  # where the code can be fetched; `python -m dcopy.report.address` sets it

METHODS = {  # name in code: name in tables and figures
    "directcopy": "DirectCopy",
    "directpred": "DirectPred",
    "directset": "DirectSet",
    "linear": "SGD linear predictor",
    "mlp": "BYOL 2-layer predictor",
    "simsiam": "SimSiam",
    "none": "no predictor",
}

CHOICES = {
    "method": tuple(METHODS),
    "normalize": ("none", "frobenius", "spectral"),
    "target_start": ("copy", "random"),
    "batchnorm": ("per-view", "joint"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
    "optimizer": ("sgd", "lars"),
    "lr_schedule": ("constant", "cosine"),
    "decay": ("all", "weights"),
    "ema_schedule": ("constant", "cosine"),
    "heads": ("reference", "byol"),
    "encoder": ("conv", "resnet18-cifar", "resnet18", "torchvision:NAME", "timm:NAME"),
}

LARGEST_IMAGE = 2**14  # pixels, a side; 800 MB each
_AT_LEAST_1 = (lambda v: v >= 1, "an integer of at least 1")
_FRACTION = (lambda v: 0 <= v < 1, "a number in [0, 1)")
_NOT_NEGATIVE = (lambda v: 0 <= v < math.inf, "a number of at least 0")
_POSITIVE = (lambda v: 0 < v < math.inf, "a positive number")

RANGES = {
    "seed": (lambda v: 0 <= v < 2**31, "an integer in [0, 2^31)"),
    "epochs": _AT_LEAST_1,
    "batch_size": (lambda v: v >= 2, "an integer of at least 2, for BatchNorm"),
    "lr": _POSITIVE,
    "momentum": _FRACTION,
    "weight_decay": _NOT_NEGATIVE,
    "ema": (lambda v: 0 <= v <= 1, "a number in [0, 1]"),
    "rho": _FRACTION,
    "eps": _NOT_NEGATIVE,
    "alpha": _POSITIVE,
    "freq": _AT_LEAST_1,
    "warmup": (lambda v: v >= 0, "an integer of at least 0"),
    "accumulate": _AT_LEAST_1,
    "width": _AT_LEAST_1,
    "hidden_dim": _AT_LEAST_1,
    "projection_dim": _AT_LEAST_1,
    "image_size": (lambda v: 8 <= v <= LARGEST_IMAGE, f"an integer from 8 to {LARGEST_IMAGE}"),
}


@dataclass(frozen=True)
class TrainConfig:
    """One pretraining run; the defaults are the small-image protocol of the paper.

    The protocol is that of `facebookresearch/luckmatters:ssl/real-dataset`, which the paper
    follows. A field left at None takes the value of the data set's recipe or of the method.

    Raises:
        ValueError: a field is outside its range; the message names the value and what is allowed.

    >>> TrainConfig(dataset="digits", method="directpred").eps
    0.1
    >>> TrainConfig(rho=1.5)
    Traceback (most recent call last):
    ValueError: rho=1.5 is not allowed; it must be a number in [0, 1)
    """

    dataset: str = "digits"  # digits, cifar10, cifar100, stl10, imagenet, imagenette, or folder:PATH
    method: str = "directcopy"  # one of METHODS
    seed: int = 0  # gives the streams for weights, order and augmentation
    epochs: int = 100  # paper: 100, 300, 500
    batch_size: int | None = None  # images, each seen in two views; small images: 128
    accumulate: int = 1  # parts that a batch is computed in, one after the other, to save memory
    # optimizer
    optimizer: str | None = None  # sgd, or lars
    lr: float | None = None  # small images: 0.03
    lr_schedule: str | None = None  # constant, or cosine: down to 0
    warmup: int | None = None  # epochs in which lr rises from 0
    momentum: float = 0.9
    weight_decay: float | None = None  # L2; eta in the theory; small images: 4e-4
    decay: str | None = None  # all parameters, or weights: no decay and no LARS for biases and norms
    # online and target
    ema: float | None = None  # momentum of the target's parameters; small images: 0.996; SimSiam: 0
    ema_schedule: str | None = None  # constant, or cosine: up to 1
    target_start: str = "copy"  # the reference code: random
    batchnorm: str = "per-view"  # statistics of each view alone, or of both views jointly
    symmetric_loss: bool = True  # both directions; False: the first view predicts the second
    # predictor
    rho: float = 0.3  # running correlation: F <- rho F + (1 - rho) mean(z z^T)
    eps: float | None = None  # DirectCopy and DirectSet 0.3, DirectPred 0.1
    alpha: float | None = None  # power in DirectSet(alpha): DirectCopy 1, DirectPred 1/2
    normalize: str = "none"  # scale F first: none, frobenius, spectral
    freq: int = 1  # set the predictor every freq steps, SGD in between
    predictor_bias: bool = False  # learned linear predictor only
    predictor_symmetric: bool = False  # learned linear predictor only
    # network
    encoder: str | None = None  # conv, resnet18-cifar, resnet18, torchvision:NAME or timm:NAME
    width: int | None = None  # of those without a colon
    heads: str | None = None  # projector and 2-layer predictor: of the reference code, or BYOL's own
    image_size: int | None = None  # pixels, side of a view
    hidden_dim: int | None = None  # of the projector and of BYOL's 2-layer predictor
    projection_dim: int | None = None
    # bf16, fp16: autocast; correlation, predictor and loss stay float32. auto: see hardware.precision_on
    precision: str = "fp32"
    data_fingerprint: str = ""  # of the images, where the data set's name does not settle which

    def __post_init__(self):
        self._check_types()
        kind, _, path = self.dataset.partition(":")
        if not (kind == "folder" and path):
            names = [name for name in RECIPES if name != "folder"]
            require("dataset", self.dataset, self.dataset in names, one_of([*names, "folder:PATH"]))
        require("method", self.method, self.method in METHODS, one_of(METHODS))
        self._fill()
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            require(name, value, value in allowed or (name == "encoder" and self.library), one_of(allowed))
        for name, (good, allowed) in RANGES.items():
            value = getattr(self, name)
            require(name, value, value is None or good(value), allowed)
        size, own = self.image_size, self.recipe.image_size
        fits = size == own or kind in RESIZED
        hint = f"{own} with dataset={self.dataset}; only imagenet, imagenette and folder:PATH are resized"
        require("image_size", size, fits, hint)
        hint = f"left out with encoder={self.encoder}, whose name says how wide it is"
        require("width", self.width, not self.library or self.width is None, hint)
        fits = self.warmup < self.epochs
        require("warmup", self.warmup, fits, f"below epochs={self.epochs}")
        fits = self.batch_size % self.accumulate == 0 and self.batch_size // self.accumulate >= 2
        hint = f"a divisor of batch_size={self.batch_size} that leaves two images in each part"
        require("accumulate", self.accumulate, fits, hint)

    def _check_types(self):
        types = {"int": int, "float": (int, float), "str": str, "bool": bool}
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), field.type.split(" ")[0]
            if value is None and "None" in field.type:
                continue
            is_bool = isinstance(value, bool)
            good = isinstance(value, types[kind]) and is_bool == (kind == "bool")
            require(field.name, value, good, f"of type {kind}")
            limit = 1e300 if kind == "float" else 2**63  # what a float, and what torch, can hold
            require(field.name, value, not isinstance(value, int) or abs(value) < limit, f"below {limit:g}")
            if kind == "float":  # 1 and 1.0 are the same run
                object.__setattr__(self, field.name, float(value))

    def _fill(self):
        """Give the fields left at None the value that follows from data set and method."""
        defaults = {name: getattr(self.recipe, name) for name in _FROM_RECIPE}
        defaults["width"] = None if self.library else self.recipe.width or 64
        defaults["warmup"] = min(self.recipe.warmup, self.epochs // 10)
        if self.recipe.lr_per:
            defaults["lr"] *= (self.batch_size or self.recipe.batch_size) / self.recipe.lr_per
        defaults["eps"] = 0.1 if self.method == "directpred" else 0.3
        power = {"directcopy": 1.0, "directpred": 0.5}.get(self.method)
        defaults["alpha"] = power
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.method == "simsiam":  # its target is the online network itself
            none = "with method=simsiam, which has no target network"
            require("ema", self.ema, self.ema in (0.0, self.recipe.ema), f"0 {none}")
            require("target_start", self.target_start, self.target_start == "copy", f"copy {none}")
            object.__setattr__(self, "ema", 0.0)
        if self.method == "directset":
            require("alpha", self.alpha, self.alpha is not None, "a positive number with method=directset")
        else:
            hint = f"{power} with method={self.method}; other powers are method=directset"
            require("alpha", self.alpha, self.alpha == power, hint)

    @property
    def library(self) -> str | None:
        """The library that the encoder is a model of, or None where it is one of ours."""
        library, _, model = (self.encoder or self.recipe.encoder).partition(":")
        return library if f"{library}:NAME" in CHOICES["encoder"] and model else None

    @property
    def begins_longer_runs(self) -> bool:
        """Whether a run of more epochs begins with this one: where no schedule depends on their number."""
        return self.lr_schedule == self.ema_schedule == "constant"

    @property
    def recipe(self) -> Recipe:
        return RECIPES[self.dataset.split(":")[0]]

    @property
    def dataset_name(self) -> str:
        """The data set as a part of file names: `digits`, or `folder-birds` for folder:/data/birds."""
        kind, _, path = self.dataset.partition(":")
        last = path.rstrip("/").split("/")[-1].encode(errors="surrogateescape")
        last = last if len(last) <= 200 else last[:200].decode(errors="ignore").encode()  # files end at 255
        last = last.decode(errors="surrogateescape")
        return f"{kind}-{last}" if path else kind

    @property
    def hash(self) -> str:
        """Ten hexadecimal digits that name this configuration.

        Taken over the differences from the defaults, so that a field added later with a
        default that changes nothing leaves the names of finished runs alone.
        """
        differences = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != _PROTOCOL.get(field.name, field.default)
        }
        text = json.dumps(differences, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    @property
    def name(self) -> str:
        """Folder of the run, for example `digits-directcopy-seed0-...` with the hash at its end."""
        return f"{self.dataset_name}-{self.method}-seed{self.seed}-{self.hash}"

    @property
    def label(self) -> str:
        """The method as tables and figures write it."""
        text = METHODS[self.method]
        if self.method == "directset":
            text += f"({self.alpha:g})"
        return text + (f" (freq={self.freq})" if self.freq > 1 else "")

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> TrainConfig:
        """The inverse of `to_dict`.

        Raises:
            ValueError: a name is not a field.

        >>> TrainConfig.from_dict({"epoch": 3})
        Traceback (most recent call last):
        ValueError: epoch is not a parameter of a run; known: dataset, method, seed, ...
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"{name} is not a parameter of a run; known: {', '.join(known)}")
        return cls(**values)


_NETWORK = ("encoder", "width", "image_size", "hidden_dim", "projection_dim")
_PROTOCOL = {  # what names of runs leave out
    field.name: field.default
    for field in dataclasses.fields(Recipe)
    if field.name in TrainConfig.__dataclass_fields__ and field.name not in _NETWORK
}
_FROM_RECIPE = (*_NETWORK, *_PROTOCOL)


def require(name: str, value, good: bool, allowed: str) -> None:
    """Raise the one form of message that every bad input gets."""
    if not good:
        raise ValueError(f"{name}={value!r} is not allowed; it must be {allowed}")


def one_of(names) -> str:
    return "one of " + ", ".join(names)


def parse_options(options: list[str]) -> dict:
    """`name=value` words as a dict; a value that is a Python literal (3, 0.1, True, None) becomes one.

    Raises:
        ValueError: a word is not of that form, holds no value, or gives a name again.

    >>> parse_options(["epochs=5", "method=directpred"])
    {'epochs': 5, 'method': 'directpred'}
    """
    values = {}
    for option in options:
        name, equals, text = option.partition("=")
        if not (name and equals and text):
            raise ValueError(f"option {option!r} is not of the form name=value")
        if name in values:
            raise ValueError(f"option {option!r} gives {name} again; it must be given once")
        try:
            values[name] = ast.literal_eval(text)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            values[name] = text
        require(name, values[name], values[name] != (), "at least one value")
    return values
