"""Predictors: what maps the online projection z to a prediction of the target's projection.

All share one interface. `update(z)` sees the projections of one step before they are predicted;
`forward(z)` predicts. A learned predictor is moved by the optimizer, a set one by `update`, or by
`forward` itself in a trainer that knows nothing of `update` (`calls_per_step`).
The letters are the paper's: F is the correlation of the projections, W_p the predictor.
"""

from __future__ import annotations

from ..config import TrainConfig
from .direct import DirectCopy, DirectPred, DirectSet, SetPredictor
from .learned import IdentityPredictor, LinearPredictor, MLPPredictor
from .running import Predictor, correlation

__all__ = [
    "DirectCopy",
    "DirectPred",
    "DirectSet",
    "IdentityPredictor",
    "LinearPredictor",
    "MLPPredictor",
    "Predictor",
    "SetPredictor",
    "build_predictor",
    "correlation",
]


def build_predictor(config: TrainConfig) -> Predictor:
    """The predictor of a run."""
    c, dim = config, config.projection_dim
    builders = {
        "directcopy": lambda: DirectCopy(dim, c.rho, c.eps, c.normalize, c.freq),
        "directpred": lambda: DirectPred(dim, c.rho, c.eps, c.freq),
        "directset": lambda: DirectSet(dim, c.alpha, c.rho, c.eps, c.normalize, c.freq),
        "linear": lambda: LinearPredictor(dim, c.predictor_bias, c.predictor_symmetric, c.rho),
        "mlp": lambda: MLPPredictor(dim, c.hidden_dim, c.rho, bias=c.heads != "byol"),
        "simsiam": lambda: MLPPredictor(dim, max(1, dim // 4), c.rho),
        "none": lambda: IdentityPredictor(dim, c.rho),
    }
    return builders[config.method]()
