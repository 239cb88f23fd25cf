"""Probes of features: linear, k-NN, and few labels."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from .. import hardware
from ..config import require
from .inputs import blocks, checked

if torch.cuda.is_available():  # scipy reads it when it is imported, so that scikit-learn can take tensors
    os.environ.setdefault("SCIPY_ARRAY_API", "1")

import scipy
import sklearn
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from threadpoolctl import ThreadpoolController
from torch import nn

log = logging.getLogger(__name__)

C_GRID = (0.001, 0.01, 0.1, 1.0, 10.0)  # inverse strength of the l2 penalty
LABELS_PER_CLASS = (1, 5, 10, 20, 100)
SHARES = (0.01, 0.1)  # of the labels, where there are very many
MANY = 10_000  # labels, from which on the solver pays for a GPU, and draws differ by 0.3 points
DRAWS_OF_MANY = 3


@contextlib.contextmanager
def one_scipy_thread():
    """Keep scipy's own BLAS, which wheels bring beside NumPy's, on one thread.

    L-BFGS calls it for short vectors. Its idle threads wait in a loop on the cores of NumPy's products.
    """
    controller, home = ThreadpoolController(), str(Path(scipy.__file__).parent)
    own = [library["filepath"] for library in controller.info() if library["filepath"].startswith(home)]
    with controller.select(filepath=own).limit(limits=1):
        yield


@one_scipy_thread()
def linear_probe(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    *,
    C_grid: tuple[float, ...] = C_GRID,
    validation: float = 0.2,
    max_iter: int = 500,
    seed: int = 0,
) -> dict:
    """Multinomial logistic regression on standardized features: the headline number.

    C is the one of least cross-entropy on a stratified held-out part of the training set, whose accuracy
    would leave the choice to single images where there are few. The path goes from small to large, each fit
    starts from the last, and it ends where the cross-entropy rises: larger values overfit more and take
    longest. The probe is then fitted on all of the training set, and the test set is read once. On a GPU
    scikit-learn computes there, from its version 1.9 on.

    Args:
        train_x, test_x: (N, d) and (M, d) features.
        train_y, test_y: (N,) and (M,) labels, of whatever type.
        C_grid: inverse strengths of the l2 penalty to choose from.
        validation: held-out part of the training set, in (0, 1).
        max_iter: of the L-BFGS solver.
        seed: of the split.

    Returns:
        accuracy, C, validation_accuracy and validation_loss (nats) of that C, converged, iterations (of the
        last fit), seconds.

    Raises:
        ValueError: the numbers of features and labels differ, a feature is not finite, or there are
            fewer than two classes, or than two training images of one.
    """
    names = np.asarray(train_y)
    train_x, train_y, test_x, test_y = checked(train_x, train_y, test_x, test_y)
    start = time.perf_counter()
    counts = np.bincount(train_y)[train_y]  # (N,) images of the same class
    if counts.min() < 2:
        scarce = names[counts.argmin()]
        raise ValueError(f"class {scarce} has one training image; a probe needs two of each class")
    held_out = max(math.ceil(validation * len(train_y)), len(np.unique(train_y)))  # one of each, if few
    fit_x, held_x, fit_y, held_y = train_test_split(
        train_x, train_y, test_size=held_out, stratify=train_y, random_state=seed
    )
    model = LogisticRegression(max_iter=max_iter, warm_start=True)
    scaler = StandardScaler().fit(fit_x)
    with _solver() as place:
        fit, held = (place(scaler.transform(x), y) for x, y in ((fit_x, fit_y), (held_x, held_y)))
        losses, fits = {}, {}
        for C in sorted(C_grid):
            model.set_params(C=C).fit(*fit)
            losses[C] = float(log_loss(held[1], model.predict_proba(held[0]), labels=model.classes_))
            fits[C] = model.coef_, model.intercept_, float(model.score(*held))
            if losses[C] > min(losses.values()):
                break
        best = min(losses, key=losses.get)
        scaler.fit(train_x)
        model.coef_, model.intercept_, validation_accuracy = fits[best]
        model.set_params(C=best).fit(*place(scaler.transform(train_x), train_y))
        accuracy = float(model.score(*place(scaler.transform(test_x), test_y)))
    iterations = int(model.n_iter_.max())
    if iterations >= max_iter:
        log.warning("linear probe: not converged after %d iterations at C=%g", max_iter, best)
    return {
        "accuracy": accuracy,
        "C": best,
        "validation_accuracy": validation_accuracy,
        "validation_loss": losses[best],
        "converged": iterations < max_iter,
        "iterations": iterations,
        "seconds": round(time.perf_counter() - start, 3),
    }


def _as_it_is(*arrays):
    return arrays


@contextlib.contextmanager
def _solver():
    """Yield what puts features and labels where scikit-learn shall compute; its warnings are not shown."""
    device = _tensor_device()

    def place(*arrays):
        return (
            _as_it_is(*arrays)
            if device is None
            else [torch.as_tensor(array, device=device) for array in arrays]
        )

    with warnings.catch_warnings(), sklearn.config_context(array_api_dispatch=device is not None):
        warnings.simplefilter("ignore", ConvergenceWarning)  # recorded by the caller instead
        yield place


def _tensor_device() -> torch.device | None:
    """The GPU, where there is one and scikit-learn takes tensors; on a processor NumPy is faster."""
    version = tuple(int(part) for part in sklearn.__version__.split(".")[:2])
    device, _ = hardware.choose()
    return device if device.type == "cuda" and version >= (1, 9) else None


def knn_probe(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    *,
    k: int = 200,
    temperature: float = 0.1,
) -> float:
    """Accuracy of the k nearest neighbours by cosine, votes weighted by exp(cosine / temperature).

    As in `lightly-ai/lightly:lightly/utils/benchmarking/knn.py`, from Wu et al. 2018
    (arXiv 1805.01978). At most as many neighbours as there are training images.

    Args:
        train_x, test_x: (N, d) and (M, d) features.
        train_y, test_y: (N,) and (M,) labels, of whatever type.

    Raises:
        ValueError: the numbers of features and labels differ, a feature is not finite, or k or
            temperature is not positive.
    """
    train_x, train_y, test_x, test_y = checked(train_x, train_y, test_x, test_y)
    require("k", k, k >= 1, "an integer of at least 1")
    require("temperature", temperature, temperature > 0, "a positive number")
    device, _ = hardware.choose()
    k, classes = min(k, len(train_x)), int(train_y.max()) + 1

    def normalized(x):
        _, exponent = np.frexp(np.abs(x).max(axis=1, keepdims=True))
        x = x / np.ldexp(x.dtype.type(1), exponent - 1)  # a power of two rounds nothing; squares stay finite
        return nn.functional.normalize(torch.from_numpy(x).to(device), dim=1)

    parts = blocks(len(test_x), 1000)
    tests = [normalized(test_x[rows]) for rows in parts]
    none = torch.zeros(len(test_x), 0, dtype=torch.int64, device=device)
    nearest = [(x.new_zeros(len(x), 0), none[rows]) for x, rows in zip(tests, parts, strict=True)]
    for rows in blocks(len(train_x)):  # each is read once; of what has been read, the k nearest are kept
        bank, labels = normalized(train_x[rows]), torch.from_numpy(train_y[rows]).to(device)
        for i, (x, (cosine, label)) in enumerate(zip(tests, nearest, strict=True)):
            near, index = (x @ bank.T).topk(min(k, len(bank)), dim=1)  # (m, k)
            cosine, label = torch.cat((cosine, near), dim=1), torch.cat((label, labels[index]), dim=1)
            cosine, index = cosine.topk(min(k, cosine.shape[1]), dim=1)
            nearest[i] = cosine, label.gather(1, index)
    correct = 0
    for rows, (cosine, label) in zip(parts, nearest, strict=True):
        weight = ((cosine - cosine[:, :1]) / temperature).exp()  # to the nearest, so that none overflows
        ballots = weight.new_zeros(len(weight), classes).scatter_add_(1, label, weight)  # (m, classes)
        correct += (ballots.argmax(dim=1).cpu() == torch.from_numpy(test_y[rows])).sum().item()
    return correct / len(test_y)


@one_scipy_thread()
def label_efficiency(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    *,
    labels_per_class: tuple = LABELS_PER_CLASS,
    draws: int = 20,
    C: float = 1.0,
) -> list[dict]:
    """Accuracy of the linear probe when only some labels are known, over several draws of them.

    Features are standardized with the statistics of all training images, which needs no label; C
    is fixed, since with one label per class nothing can be held out. Draw i takes the same images
    for every encoder, so methods compare on the same labels.

    Args:
        train_x, test_x: (N, d) and (M, d) features.
        train_y, test_y: (N,) and (M,) labels, of whatever type.
        labels_per_class: numbers of labels.
        draws: random choices of the labelled images; of MANY labels or more at most DRAWS_OF_MANY.

    Returns:
        A record for each number of labels: labels_per_class, accuracy_mean, accuracy_std (over
        draws), accuracies.

    Raises:
        ValueError: a class has fewer images than labels are asked for.
    """
    train_x, train_y, test_x, test_y = checked(train_x, train_y, test_x, test_y)
    require("draws", draws, draws >= 1, "an integer of at least 1")
    scaler = StandardScaler()
    for rows in blocks(len(train_x)):
        scaler.partial_fit(train_x[rows])
    test_x, records, classes = scaler.transform(test_x), [], len(np.unique(train_y))
    for number in labels_per_class:
        accuracies, many = [], number * classes >= MANY
        for draw in range(draws_of(number, classes, draws)):
            chosen = choose_labels(train_y, number, draw)
            fit = scaler.transform(train_x[chosen]), train_y[chosen]
            probe = LogisticRegression(C=C, max_iter=1000)
            solver = _solver() if many else contextlib.nullcontext(_as_it_is)
            with warnings.catch_warnings(), solver as place:
                warnings.filterwarnings("ignore", "The number of unique classes is greater")  # one label each
                accuracies.append(float(probe.fit(*place(*fit)).score(*place(test_x, test_y))))
        records.append(
            {
                "labels_per_class": number,
                "accuracy_mean": float(np.mean(accuracies)),
                "accuracy_std": float(np.std(accuracies)),
                "accuracies": accuracies,
            }
        )
    return records


def draws_of(number: int, classes: int, draws: int) -> int:
    """How many draws of `number` labels a class are taken where `draws` are asked for."""
    return min(draws, DRAWS_OF_MANY) if number * classes >= MANY else draws


def choose_labels(labels: np.ndarray, number: int, draw: int) -> np.ndarray:
    """Indices of `number` images of every class, the same for the same draw."""
    generator = np.random.default_rng(draw)
    classes = np.unique(labels)
    smallest = min(np.sum(labels == c) for c in classes)
    require("labels_per_class", number, 1 <= number <= smallest, f"between 1 and {smallest}")
    return np.concatenate(
        [generator.choice(np.flatnonzero(labels == c), number, replace=False) for c in classes]
    )
