"""Predictors that those set from F are compared with: learned by the optimizer, or none."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .running import Predictor


class LinearPredictor(Predictor):
    """p = W_p z (+ b), learned by the optimizer (Tian et al. 2021, section 2).

    Args:
        symmetric: replace W_p by (W_p + W_p^T) / 2 at every step (their Tables 3 and 5).
    """

    def __init__(self, dim: int, bias: bool = False, symmetric: bool = False, rho: float = 0.3):
        super().__init__(dim, rho)
        self.linear = nn.Linear(dim, dim, bias=bias)
        self.symmetric = symmetric

    @property
    def weight(self) -> Tensor:
        return self.linear.weight

    @torch.no_grad()
    def set_weight(self) -> None:
        if self.symmetric:
            self.weight.copy_((self.weight + self.weight.T) / 2)

    def forward(self, z: Tensor) -> Tensor:
        return self.linear(z)


class MLPPredictor(Predictor):
    """BYOL's predictor: linear, BatchNorm, ReLU, linear (Grill et al. 2020, arXiv 2006.07733).

    SimSiam's has a bottleneck, hidden = dim / 4 (Chen and He 2021, arXiv 2011.10566, section 4.2).

    Args:
        bias: in the last layer; `google-deepmind/deepmind-research:byol/utils/networks.py` has none there.
    """

    def __init__(self, dim: int, hidden: int = 512, rho: float = 0.3, bias: bool = True):
        super().__init__(dim, rho)
        layers = [nn.Linear(dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden, dim, bias=bias))

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


class IdentityPredictor(Predictor):
    """p = z: no predictor. Training collapses; it is here to be seen to (theory, claim 6)."""

    def __init__(self, dim: int, rho: float = 0.3):
        super().__init__(dim, rho)

    def forward(self, z: Tensor) -> Tensor:
        return z
