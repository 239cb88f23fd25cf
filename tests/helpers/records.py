"""Records as their files hold them: of a probe, and of benchmarks."""

from dcopy.config import TrainConfig

ORIGIN = {"commit": "abc", "versions": {"torch": "2.0"}, "device": "a GPU", "finished": "2024-01-01"}
PROBE = {  # of a run
    **{"name": "a run", "label": "DirectCopy", "method": "directcopy", "seed": 0, "dataset": "digits"},
    **{"linear": {"accuracy": 0.5, "converged": True}, "knn": 0.5, "label_efficiency": []},
    **{"reference": None, "encoder_fingerprint": "abc", "baselines": []},
    "protocol": {"train": 100, "test": 100, "classes": 10},
    **ORIGIN,
}
CIFAR = TrainConfig(dataset="cifar10", method="mlp", batch_size=32)


def result_of(config: TrainConfig, **fields) -> dict:
    """The result.json of a run, with `fields` in it and in its metrics."""
    metrics = {"projection_std": 0.9, "effective_rank": 9.0, "loss": -1.0, "spectrum": [2.0, 1.0]}
    metrics |= fields.pop("metrics", {})
    own = {"name": config.name, "label": config.label, "config": config.to_dict(), "metrics": metrics}
    return {**own, "seconds": 1.0, **ORIGIN, **fields}


BENCH = {
    "config": TrainConfig(dataset="cifar10", precision="bf16").to_dict(),
    "step": {
        "parts": [
            {"part": "augmentation", "ms": 500.0, "share": 0.25},
            {"part": "predictor update", "ms": 30.0, "share": 0.015},
            {"part": "loss and backward", "ms": 1470.0, "share": 0.735},
        ],
        **{"ms": 2000.0, "images_per_second": 64.0, "tflop_per_second": 0.1, "clocks": None},
        "matrix_tflop_per_second": 0.125,
    },
    "predictors": [],
    "provenance": {"device": "a processor, 2 threads"},
}
LIGHTLY = {
    "accuracy": {
        "config": TrainConfig(method="mlp", epochs=60, batch_size=64).to_dict(),
        "runs": [
            {"name": name, "seed": seed, "linear": linear + seed / 100, "knn": 0.9, "seconds": 1.0}
            for seed in (0, 1)
            for name, linear in (("BYOL, dcopy", 0.96), ("BYOL, lightly", 0.95), ("SimSiam, lightly", 0.94))
        ],
    },
    "speed": {
        "config": CIFAR.to_dict(),
        "images_per_second": [
            {"BYOL, lightly, fp32": rate, "BYOL, dcopy, fp32": 3 * rate, "BYOL, dcopy, bf16": 2 * rate}
            for rate in (10.0, 12.0, 30.0)
        ],
        "times_as_fast": {"BYOL, lightly, fp32": 1.0, "BYOL, dcopy, fp32": 3.0, "BYOL, dcopy, bf16": 2.0},
        **{"steps": 4, "workers": 7},
    },
    "provenance": {"device": "a processor, 2 threads", "versions": {"lightly": "1.5.20"}},
}
