"""What a run's number of steps sets: the learning rate and the target's momentum at each of them.

The formulas are those of `google-deepmind/deepmind-research:byol/utils/schedules.py`. They know the step
alone, so a run that goes on from a checkpoint has the same rates as one that never stopped.
"""

from __future__ import annotations

import math

from ..config import TrainConfig


def lr_factor(config: TrainConfig, step: int, steps: int) -> float:
    """What lr is multiplied by: from 0 to 1 in the epochs of warm-up, then 1, or a cosine from 1 towards 0.

    Args:
        step: from the run's first, 0, on.
        steps: of an epoch.
    """
    warmup, total = config.warmup * steps, config.epochs * steps
    if step < warmup:
        return step / warmup
    return 1.0 if config.lr_schedule == "constant" else cosine((step - warmup) / (total - warmup))


def ema(config: TrainConfig, step: int, steps: int) -> float:
    """Momentum of the target: constant, or a cosine from config.ema towards 1; arguments as above."""
    if config.ema_schedule == "constant":
        return config.ema
    return 1 - (1 - config.ema) * cosine(step / (config.epochs * steps))


def cosine(progress: float) -> float:
    """
    >>> cosine(0.0), round(cosine(0.5), 12), cosine(1.0)
    (1.0, 0.5, 0.0)
    """
    return (1 + math.cos(math.pi * progress)) / 2
