"""The linear probe for data sets whose features are best computed anew from random crops: by SGD.

It minimizes what `probes.linear_probe` minimizes, the mean cross-entropy plus |W|^2 / (2 C N) on features
standardized by the training set, so on the same features both find the same classifier.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from .. import hardware, machine
from ..config import require
from ..data.augment import HorizontalFlip, RandomResizedCrop, to_float
from ..training.step import derive_seed
from .inputs import blocks, checked
from .probes import C_GRID

LR_GRID = (0.003, 0.01, 0.03, 0.1, 0.2)  # the field's 0.2 is for features that are not standardized
MOMENTUM = 0.9
Crops = Callable[[list[np.ndarray], int], Iterator[Tensor]]


def sgd_probe(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    *,
    crops: Crops | None = None,
    lr_grid: tuple[float, ...] = LR_GRID,
    C_grid: tuple[float, ...] = C_GRID,
    validation: float = 0.2,
    epochs: int = 80,
    batch_size: int = 256,
    seed: int = 0,
    device: str | None = None,
) -> dict:
    """Multinomial logistic regression by SGD with Nesterov momentum, the learning rate a cosine down to 0.

    All pairs of a learning rate and a C are trained side by side on the same batches, on a part of the
    training set. The pair that is best on the rest, on clean images, is then trained on all of it, and the
    test set is read once.

    Args:
        train_x, test_x: (N, d) and (M, d) features of clean images; they may lie on disk, mapped.
        train_y, test_y: (N,) and (M,) labels, of whatever type.
        crops: features (n, d) of random crops in an epoch, a tensor for each batch of indices (n,); None:
            those of the clean images are used, which makes this the probe of scikit-learn.
        lr_grid, C_grid: learning rates, and inverse strengths of the l2 penalty, to choose from.
        validation: held-out part of the training set, in (0, 1).
        epochs, batch_size: of each of the two trainings.
        seed: of the split and of the order.
        device: default a GPU where there is one.

    Returns:
        accuracy and top5 (of the test set), lr, C, validation_accuracy, converged (whether the loss became
        no nan), epochs, iterations, crops (whether there were any), seconds.

    Raises:
        ValueError: as `linear_probe`, or an option is outside its range.
    """
    train_x, train_y, test_x, test_y = checked(train_x, train_y, test_x, test_y)
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        require(name, value, value >= 1, "an integer of at least 1")
    start, classes = time.perf_counter(), int(max(train_y.max(), test_y.max())) + 1
    vectors = 2 if classes == 2 else 1  # for two classes scikit-learn has w alone, where we have w/2 and -w/2
    device, _ = hardware.choose(device)
    generator = torch.Generator().manual_seed(seed)
    held_out = max(math.ceil(validation * len(train_y)), len(np.unique(train_y)))
    fit, held = train_test_split(
        np.arange(len(train_y)), test_size=held_out, stratify=train_y, random_state=seed
    )

    def clean(batches: list[np.ndarray], epoch: int) -> Iterator[Tensor]:
        return (torch.from_numpy(np.asarray(train_x[own])) for own in batches)

    def train(which: np.ndarray, pairs: list[tuple[float, float]]) -> tuple[list[nn.Linear], tuple]:
        scale = tuple(part.to(device) for part in statistics(train_x, which))
        layers = [nn.Linear(train_x.shape[1], classes, device=device) for _ in pairs]
        groups = []
        for layer, (lr, C) in zip(layers, pairs, strict=True):
            nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
            groups.append({"params": [layer.weight], "lr": lr, "weight_decay": vectors / (C * len(which))})
            groups.append({"params": [layer.bias], "lr": lr})
        optimizer = torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True)
        steps = epochs * math.ceil(len(which) / batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for epoch in range(epochs):
            parts = torch.randperm(len(which), generator=generator).split(batch_size)
            order = [which[part.numpy()] for part in parts]
            for own, x in zip(order, (crops or clean)(order, epoch), strict=True):
                x = standardized(x.to(device), scale)  # (n, d)
                y = torch.from_numpy(train_y[own]).to(device)
                optimizer.zero_grad()
                sum(nn.functional.cross_entropy(layer(x), y) for layer in layers).backward()
                optimizer.step()
                schedule.step()
        return layers, scale

    pairs = list(itertools.product(lr_grid, C_grid))
    layers, scale = train(fit, pairs)
    held_x, held_y = (values[np.sort(held)] for values in (train_x, train_y))
    scores = [hits(layer, scale, held_x, held_y)[0] for layer in layers]
    best = int(np.argmax(scores))
    (layer,), scale = train(np.arange(len(train_y)), [pairs[best]])
    accuracy, top5 = hits(layer, scale, test_x, test_y)
    return {
        "accuracy": accuracy,
        "top5": top5,
        **dict(zip(("lr", "C"), pairs[best], strict=True)),
        "validation_accuracy": scores[best],
        "converged": bool(torch.isfinite(layer.weight).all()),
        "epochs": epochs,
        "iterations": epochs * math.ceil(len(train_y) / batch_size),
        "crops": crops is not None,
        "seconds": round(time.perf_counter() - start, 3),
    }


def statistics(x: np.ndarray, which: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean (d,) and standard deviation (d,), 1 where it is 0, of these rows of x, read in blocks."""
    total, square = 0.0, 0.0
    for rows in blocks(len(which)):
        block = torch.from_numpy(np.asarray(x[np.sort(which)[rows]])).double()
        total, square = total + block.sum(dim=0), square + block.square().sum(dim=0)
    mean = total / len(which)
    std = (square / len(which) - mean**2).clamp(min=0).sqrt()
    return mean.float(), torch.where(std > 1e-9 * mean.abs(), std, 1.0).float()


def standardized(x: Tensor, scale: tuple[Tensor, Tensor]) -> Tensor:
    mean, std = scale
    return (x.float() - mean) / std


@torch.inference_mode()
def hits(layer: nn.Linear, scale: tuple[Tensor, Tensor], x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Which parts of the rows have their class first, and among the first five."""
    first, among = 0, 0
    for rows in blocks(len(x)):
        own = torch.from_numpy(np.asarray(x[rows])).to(layer.weight.device)
        scores = layer(standardized(own, scale))  # (n, classes)
        ranked = scores.topk(min(5, scores.shape[1]), dim=1).indices.cpu()
        right = ranked == torch.from_numpy(y[rows])[:, None]
        first, among = first + right[:, 0].sum().item(), among + right.sum().item()
    return first / len(y), among / len(y)


def crop_features(encoder: nn.Module, images, device=None) -> Crops:
    """Features of random crops (area 0.08 to 1, mirrored half the time), as `sgd_probe` takes them.

    The crops follow from epoch and images alone. While the encoder works on a batch, threads cut the next.

    Args:
        encoder: takes uint8 images.
        images: (N, C, H, W) uint8, or what reads and cuts them from disk (`data.stored.StoredImages`).
        device: default a GPU where there is one.
    """
    size, (device, _) = tuple(images.shape[2:]), hardware.choose(device)
    crop, flip = RandomResizedCrop(size), HorizontalFlip(0.5)
    encoder = encoder.to(device).eval()

    def cut(which: np.ndarray, epoch: int) -> Tensor:
        """(n, C, H, W) uint8"""
        generator = torch.Generator().manual_seed(derive_seed(int(which[0]), "probe", epoch))
        if isinstance(images, Tensor):
            mine = to_float(images[torch.from_numpy(which)])
            x = crop.apply(mine, crop.sample(mine.shape, generator))
        else:
            shape = (len(which), images.shape[1], *images.sizes(which))
            boxes = torch.stack([*crop.sample(shape, generator).values()], 1)[:, None].int().tolist()
            parts = np.empty((len(which), 1, *size, 3), np.uint8)
            with ThreadPoolExecutor(machine.cores()) as pool:  # Pillow decodes without the interpreter lock
                list(pool.map(images.crops, which.tolist(), boxes, parts))  # which raises what they do
            x = to_float(torch.from_numpy(parts[:, 0]).permute(0, 3, 1, 2))
        return (255 * flip.apply(x, flip.sample(x.shape, generator))).round().byte()

    def features(batches: list[np.ndarray], epoch: int) -> Iterator[Tensor]:
        with ThreadPoolExecutor(1) as ahead:
            waiting = ahead.submit(cut, batches[0], epoch)
            for following in [*batches[1:], None]:
                own = waiting.result()
                if following is not None:
                    waiting = ahead.submit(cut, following, epoch)
                with torch.no_grad():
                    own = encoder(own.to(device))
                yield own  # outside, since what the caller computes has gradients

    return features
