"""The probe of the published numbers, for nothing but to compare with them."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler
from torch import nn

from .inputs import checked


def reference_probe(
    train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray, *, seed: int = 0
) -> dict:
    """The published protocol, only to compare with published numbers: it peeks at the test set.

    A linear layer on standardized features, Adam with lr 3e-4 and weight decay 1e-3, batches of
    128, 50 epochs; the *highest* test accuracy over the epochs counts
    (`facebookresearch/luckmatters:ssl/real-dataset/linear_feature_eval.py`).

    Returns:
        best (accuracy over the epochs), last (accuracy after the last one), best_epoch.
    """
    train_x, train_y, test_x, test_y = checked(train_x, train_y, test_x, test_y)
    scaler = StandardScaler().fit(train_x)
    x, x_test = (torch.from_numpy(scaler.transform(part)).float() for part in (train_x, test_x))
    y, y_test = torch.as_tensor(train_y), torch.as_tensor(test_y)
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(x.shape[1], int(y.max()) + 1)
    nn.init.uniform_(layer.weight, -(x.shape[1] ** -0.5), x.shape[1] ** -0.5, generator=generator)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.Adam(layer.parameters(), lr=3e-4, weight_decay=1e-3)
    accuracies = []
    for _ in range(50):
        for batch in torch.randperm(len(x), generator=generator).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(x[batch]), y[batch]).backward()
            optimizer.step()
        with torch.inference_mode():
            accuracies.append((layer(x_test).argmax(dim=1) == y_test).float().mean().item())
    best = int(np.argmax(accuracies))
    return {"best": accuracies[best], "last": accuracies[-1], "best_epoch": best + 1}
