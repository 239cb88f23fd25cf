"""Does a network follow the flow in time? The spectrum of a run, predicted from its first snapshot.

What the flow takes from the run: each direction's share of F at the first snapshot, its variance under
augmentation, and lr, momentum, weight decay, EMA and eps in the flow's units. Nothing is fitted.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..config import TrainConfig
from ..evaluation import variance
from .cosine import cosine_descent
from .flow import descent, directset
from .solver import integrate

LOSSES = {"quadratic": descent, "cosine": cosine_descent}


@dataclass(frozen=True)
class Units:
    """A run's settings in the flow's units, where the loss is -cos, or ½|p - z|² of unit vectors.

    Attributes:
        step: time of one step of SGD.
        epoch: time of one epoch.
        eta: weight decay.
        beta: rate of the EMA; None where the target is a copy.
    """

    step: float
    epoch: float
    eta: float
    beta: float | None


def units(config: TrainConfig, images: int) -> Units:
    """The flow's units of a run on so many images.

    The loss of a run is -2 cos in each direction, 4 (-cos) in all, and momentum m lengthens a step by
    1/(1 - m). So a step takes the time 4 lr/(1 - m), and the weight decay of SGD is 4 eta.

    >>> run = units(TrainConfig(dataset="digits", batch_size=64, epochs=60), images=1297)
    >>> round(run.step, 6), round(run.epoch, 6), run.eta, round(run.beta, 6)
    (1.2, 24.0, 0.0001, 0.003333)
    """
    weight = 4 if config.symmetric_loss else 2
    step = weight * config.lr / (1 - config.momentum)
    beta = (1 - config.ema) / step if config.ema > 0 else None
    return Units(step, step * (images // config.batch_size), config.weight_decay / weight, beta)


def snapshots(folders: list[str | Path], images: Tensor, views: int = 16) -> tuple[Tensor, Tensor]:
    """Eigenvalues of F and variances under augmentation, along the eigenvectors of the last run's F.

    Args:
        folders: of runs that differ in their epochs only, in order.
        images: (N, C, H, W) uint8.
        views: random views of each image.

    Returns:
        eigenvalues u.F u and sigma2, each (len(folders), D), by the last eigenvalue from large to small.
    """
    _, F, _ = variance.load_network(folders[-1])
    U = torch.linalg.eigh(F.double())[1].flip(1)  # (D, D)
    records = [variance.variances(folder, images, views, "cpu", directions=U) for folder in folders]
    sigma2 = [[float("inf") if v is None else v for v in record["sigma2"]] for record in records]
    eigenvalues = [record["eigenvalue"] for record in records]
    return tuple(torch.tensor(v, dtype=torch.float64) for v in (eigenvalues, sigma2))


def predict(
    first: Tensor, sigma2: Tensor, epochs: list[int], units: Units, loss: str, eps: float, alpha: float = 1.0
) -> Tensor:
    """Eigenvalues of F that the flow reaches, from those at the first epoch.

    BatchNorm keeps the second moments of a layer's input at 1, whatever the variance: x + σ² = 1.

    Args:
        first: (D,), eigenvalues at epochs[0].
        sigma2: (len(epochs), D), of each direction; between two epochs their geometric mean counts.
        epochs: in order.
        units: of the run.
        loss: "quadratic" or "cosine".
        eps: regularizer of the predictor.
        alpha: power of F.

    Returns:
        (len(epochs), D).
    """
    D = len(first)
    eye = torch.eye(D, dtype=torch.float64)
    state = torch.diag(first.clamp(min=1e-9).sqrt())
    state = state if units.beta is None else torch.cat([state, state], dim=-1)
    found = [first]
    for i, (begin, end) in enumerate(itertools.pairwise(epochs)):
        noise = (sigma2[i] * sigma2[i + 1]).sqrt()
        args = (eye, torch.diag(1 / (1 + noise)), units.eta, eps)
        field = partial(directset, beta=units.beta, alpha=alpha, pull=LOSSES[loss])
        options = {"state_dims": 2, "rtol": 1e-6, "atol": 1e-8}
        (state,) = integrate(field, state, [(end - begin) * units.epoch], args, **options)
        found.append(state[:, :D].diagonal().square())
    return torch.stack(found)


def shares(eigenvalues: Tensor) -> Tensor:
    """Eigenvalues (*grid, D) as shares of their sum: the cosine loss sees no more."""
    return eigenvalues / eigenvalues.sum(-1, keepdim=True)


def distance(predicted: Tensor, measured: Tensor) -> Tensor:
    """Share of the trace of F that lies along other directions than predicted: total variation, 0 to 1.

    Args:
        predicted: (*grid, D), eigenvalues.
        measured: (*grid, D).

    Returns:
        (*grid,).

    >>> distance(torch.tensor([1.0, 1.0]), torch.tensor([3.0, 1.0])).item()
    0.25
    """
    return (shares(predicted) - shares(measured)).abs().sum(-1) / 2


def compare(
    measured: Tensor, sigma2: Tensor, epochs: list[int], units: Units, eps: float
) -> dict[str, Tensor]:
    """Predictions (len(epochs), D) by name: nothing moves; each loss, with σ² at the end or along the way."""
    found = {"nothing moves": measured[:1].expand_as(measured)}
    for loss in LOSSES:
        for name, noise in (("σ² at the end", sigma2[-1:].expand_as(sigma2)), ("σ² along the way", sigma2)):
            found[f"{loss}, {name}"] = predict(measured[0], noise, epochs, units, loss, eps)
    return found
