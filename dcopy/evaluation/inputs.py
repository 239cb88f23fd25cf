"""What probes are given: features and labels, checked, and read in blocks."""

from __future__ import annotations

import numpy as np
import torch

BLOCK = 2**16  # rows of features that are read and computed with at a time


def blocks(count: int, size: int = BLOCK) -> list[slice]:
    """Slices of at most `size` that cover `count` rows."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def checked(train_x, train_y, test_x, test_y) -> tuple[np.ndarray, ...]:
    """What every probe is given, checked: features and labels of the training set and of the test set.

    Args:
        train_x, test_x: (N, d) and (M, d) features.
        train_y, test_y: (N,) and (M,) labels, of whatever type.

    Returns:
        The same, the features as floating point, the labels as their ranks among all labels, int64.

    Raises:
        ValueError: shapes that do not fit together, nothing in them, features that are no real numbers or not
            finite, missing labels or labels of several types, no class in both sets, or a single class.
    """
    features = [_numbers(x) for x in (train_x, test_x)]
    labels = [_labels(y) for y in (train_y, test_y)]
    for x, y in zip(features, labels, strict=True):
        if x.ndim != 2 or y.ndim != 1:
            raise ValueError(f"features (N, d) and labels (N,) expected, got {x.shape} and {y.shape}")
        if len(x) != len(y):
            raise ValueError(f"{len(x)} features, but {len(y)} labels")
        if 0 in x.shape:
            raise ValueError(f"features of shape {x.shape}: there is nothing to probe")
        for rows in blocks(len(x)):
            bad = np.flatnonzero(~np.isfinite(x[rows]).all(axis=1))
            if len(bad):
                raise ValueError(f"features of image {rows.start + bad[0]} are not finite")
    if features[0].shape[1] != features[1].shape[1]:
        raise ValueError(f"features of {features[0].shape[1]} and of {features[1].shape[1]} dimensions")
    if not np.isin(*labels).any():
        named = " and ".join(f"{y[0]!r} of {y.dtype}" for y in labels)
        raise ValueError(f"no class is in both training and test labels; they begin with {named}")
    names, ranks = np.unique(np.concatenate(labels), return_inverse=True)
    train_y, test_y = np.split(ranks.astype(np.int64), [len(labels[0])])
    if len(np.unique(train_y)) < 2:
        raise ValueError(
            f"all {len(train_y)} training images are of class {names[train_y[0]]}; a probe needs two"
        )
    dtype = np.result_type(*features)
    train_x, test_x = (np.ascontiguousarray(x, dtype) for x in features)
    return train_x, train_y, test_x, test_y


def _numbers(x) -> np.ndarray:
    """Features as float32, or as float64 where they are as fine as that."""
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu()
        x = x.float() if x.dtype == torch.bfloat16 else x  # which NumPy does not know
    x = np.asarray(x)
    if x.dtype.kind not in "fiub":
        raise ValueError(f"features are of type {x.dtype}; real numbers expected")
    return x.astype(np.float64 if x.dtype.kind == "f" and x.itemsize > 4 else np.float32, copy=False)


def _labels(y) -> np.ndarray:
    """Labels as integers, other numbers, or text; none may be missing."""
    y = y.detach().cpu().numpy() if isinstance(y, torch.Tensor) else np.asarray(y)
    if y.dtype.kind == "O":
        kinds = {type(label) for label in y.flat}
        y = np.array(y.tolist()) if len(kinds) == 1 else y
    if y.dtype.kind == "O" or (y.dtype.kind == "f" and np.isnan(y).any()):
        raise ValueError("labels are of several types, or one is missing; numbers or text expected")
    return y
