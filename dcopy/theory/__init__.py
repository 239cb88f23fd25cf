"""The linear theory of DirectSet(alpha): flow, closed forms, and its claims as experiments.

Read `flow` for the model, `closed_forms` and `sample_forms` for what it predicts, and the
`claims_*` modules for each prediction next to its measurement. Batched, float64, any device.
"""

from .claims_beyond import (
    alignment,
    correlated_noise,
    depth,
    descend,
    discrete_steps,
    learned_predictor,
    phase_diagrams,
)
from .claims_cosine import concentration, cosine_loss
from .claims_dynamics import claim_6, claim_7, claim_8
from .claims_eps import claim_4, claim_5
from .claims_features import claim_1, claim_2, claim_3
from .claims_network import network_in_time
from .claims_samples import claim_9, claim_10, claim_11, imperfect_pretraining, two_variances
from .closed_forms import (
    critical_start,
    final_weight,
    fixed_points,
    theorem_1,
    threshold,
    weight,
)
from .cosine import cosine_descent, cosine_shares
from .downstream import labels_for_accuracy
from .evidence import Evidence, overview, record, table
from .flow import (
    CONVENTIONS,
    correlation,
    descent,
    directset,
    feature,
    learned,
    moments,
    set_predictor,
)
from .grid import random_basis
from .layers import deep, deep_feature, depth_threshold
from .rates import edge_time, ema_rate
from .sample_forms import excess_risk, finite_sample_error, labels_needed, sgd_ball
from .samples import least_squares_excess, polar, row_space, sample_views, sgd, sine_to
from .solver import edge, integrate, limit

__all__ = [
    "CONVENTIONS",
    "Evidence",
    "alignment",
    "claim_1",
    "claim_2",
    "claim_3",
    "claim_4",
    "claim_5",
    "claim_6",
    "claim_7",
    "claim_8",
    "claim_9",
    "claim_10",
    "claim_11",
    "concentration",
    "correlated_noise",
    "correlation",
    "cosine_descent",
    "cosine_loss",
    "cosine_shares",
    "critical_start",
    "deep",
    "deep_feature",
    "depth",
    "depth_threshold",
    "descend",
    "descent",
    "directset",
    "discrete_steps",
    "edge",
    "edge_time",
    "ema_rate",
    "excess_risk",
    "feature",
    "final_weight",
    "finite_sample_error",
    "fixed_points",
    "imperfect_pretraining",
    "integrate",
    "labels_for_accuracy",
    "labels_needed",
    "learned",
    "learned_predictor",
    "least_squares_excess",
    "limit",
    "moments",
    "network_in_time",
    "overview",
    "phase_diagrams",
    "polar",
    "random_basis",
    "record",
    "row_space",
    "sample_views",
    "set_predictor",
    "sgd",
    "sgd_ball",
    "sine_to",
    "table",
    "theorem_1",
    "threshold",
    "two_variances",
    "weight",
]
