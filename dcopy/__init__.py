"""dcopy: a runnable companion to "Towards Demystifying Representation Learning with
Non-contrastive Self-supervision" (Wang, Chen, Du, Tian; arXiv 2110.04947)."""

from __future__ import annotations

import importlib

from . import machine

machine.settle()

__version__ = "0.1.0"

_PUBLIC = {  # name: the module it lives in; imported on first use, so planning needs no torch
    "TrainConfig": "config",
    "DirectCopy": "predictors",
    "DirectPred": "predictors",
    "DirectSet": "predictors",
    "IdentityPredictor": "predictors",
    "LinearPredictor": "predictors",
    "MLPPredictor": "predictors",
    "pretrain": "training.loop",
    "load_run": "training.runs",
    "extract_features": "evaluation.features",
    "knn_probe": "evaluation.probes",
    "label_efficiency": "evaluation.probes",
    "linear_probe": "evaluation.probes",
    "print_environment": "results",
}
_MODULES = {  # likewise
    "augment": "data.augment",
    "checkpoint": "training.checkpoint",
    "config": "config",
    "data": "data",
    "evaluate": "evaluation.evaluate",
    "health": "training.health",
    "models": "models",
    "plotting": "report.plotting",
    "predictors": "predictors",
    "presets": "workflow.presets",
    "probes": "evaluation.probes",
    "results": "results",
    "runs": "training.runs",
    "tables": "report.tables",
    "theory": "theory",
    "train": "training.loop",
    "trainer": "training.step",
}

__all__ = ["__version__", *_PUBLIC, *_MODULES]


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
    if name in _MODULES:
        return importlib.import_module(f".{_MODULES[name]}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return __all__
