"""What `bash run_all.sh NAME` runs: which notebooks, with which parameters, over which runs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from ..config import METHODS, TrainConfig, one_of, parse_options, require

QUICK_METHODS = (
    {"method": "directcopy", "seeds": 5},  # the two whose difference is the paper's first claim
    {"method": "directpred", "seeds": 5},
    {"method": "directset", "alpha": 2.0},
    {"method": "linear"},
    {"method": "mlp"},
    {"method": "simsiam"},
    {"method": "none"},
)

CORE_METHODS = (
    {"method": "directcopy"},
    {"method": "directpred"},
    {"method": "linear"},
    {"method": "none"},
)

PAPER_METHODS = (  # rows of the paper's Table 1, DirectCopy as its reimplementations have it, and BYOL
    {"method": "directcopy"},
    {"method": "directpred"},
    {"method": "linear"},
    {"method": "directcopy", "rho": 0.5, "normalize": "frobenius"},
    {"method": "directpred", "freq": 5},
    {"method": "mlp"},
)

# Photographs without a GPU; results/reference/bench/small-networks.md has twelve settings after equal time.
# Two were 2 points ahead of this one: views of 24 pixels, where the protocol has 32, and a last stage twice
# as wide, which k-NN finds no better. Trials of more than 90 s are open.
SMALL = {"encoder": "conv", "width": 64, "batch_size": 64, "precision": "auto"}
SMALL_METHODS = (
    {"method": "directcopy"},
    {"method": "directcopy", "rho": 0.5, "normalize": "frobenius"},  # as its reimplementations have it
    {"method": "directpred"},
    {"method": "directpred", "freq": 5},
    {"method": "linear"},
    {"method": "mlp"},
    {"method": "simsiam"},
    {"method": "none"},
)

# A network and views of a size that two cores manage. The schedules have the form of ImageNet's recipe.
IMAGENETTE = {
    **{"encoder": "conv", "width": 64, "image_size": 48, "batch_size": 64, "precision": "auto", "epochs": 20},
    **{"lr_schedule": "cosine", "warmup": 2, "ema": 0.99, "ema_schedule": "cosine"},
}

# ImageNet, as Tian et al. 2021 (arXiv 2102.06810) have it in Table 9. What they leave open is filled in, as
# `report.table2` says. With batch 4096 all is in the recipe, but for what 100 epochs change.
IMAGENET_METHODS = (
    {"method": "directcopy"},
    {"method": "directcopy", "rho": 0.5, "normalize": "frobenius"},
    {"method": "directpred"},
    {"method": "linear"},
    {"method": "mlp"},
)
LARS = ({"epochs": 100, "lr": 0.45 * 4096 / 256}, {"epochs": 300})
SGD = {
    **{"epochs": 60, "batch_size": 256, "symmetric_loss": False},
    **{"optimizer": "sgd", "lr": 0.05, "warmup": 0, "weight_decay": 1e-4, "decay": "all"},
}

# What each ablation varies, around DirectCopy with the preset's defaults.
ABLATIONS = {
    "eps": [
        {"method": "directcopy", "eps": eps, "normalize": normalize}
        for normalize in ("none", "frobenius", "spectral")
        for eps in (0.0, 0.01, 0.1, 0.3, 0.5, 1.0)
    ],
    "rho": [{"method": "directcopy", "rho": rho} for rho in (0.0, 0.3, 0.5, 0.8, 0.99)],
    "alpha": [
        {"method": "directset", "alpha": 0.25},
        {"method": "directset", "alpha": 0.5},
        {"method": "directcopy"},
        {"method": "directset", "alpha": 2.0},
    ],
    "weight_decay": [
        {"method": "directcopy", "weight_decay": decay} for decay in (0.0, 4e-5, 4e-4, 4e-3, 4e-2)
    ],
    "ema": [
        *({"method": "directcopy", "ema": ema} for ema in (0.0, 0.9, 0.99, 0.996)),
        {"method": "simsiam"},  # which has no target network
    ],
    "batchnorm": [{"method": "directcopy", "batchnorm": kind} for kind in ("per-view", "joint")],
    "target_start": [{"method": "directcopy", "target_start": kind} for kind in ("copy", "random")],
    "freq": [{"method": "directcopy", "freq": freq} for freq in (1, 2, 5, 10)],
    "linear": [  # Tables 3 and 5 of Tian et al. 2021
        {"method": "linear", "ema": ema, "predictor_bias": bias, "predictor_symmetric": symmetric}
        for ema in (0.996, 0.0)
        for bias in (False, True)
        for symmetric in (False, True)
    ],
    "precision": [{"method": "directcopy", "precision": precision} for precision in ("fp32", "bf16")],
}
ABLATION_VARIANTS = tuple(variant for variants in ABLATIONS.values() for variant in variants)
ABLATED = sorted({name for variant in ABLATION_VARIANTS for name in variant})
SMALL_ABLATIONS = (
    *ABLATIONS["weight_decay"],
    *ABLATIONS["ema"],
    *({**variant, "seeds": 2} for variant in ABLATIONS["eps"] if variant["eps"] in (0.01, 0.1, 0.3, 1.0)),
)


@dataclass(frozen=True)
class Preset:
    """A named piece of work; `runs` is every variant with every seed."""

    summary: str  # one line for --list: what, on which hardware, how long
    variants: tuple[dict, ...]  # each: differences from the defaults, and `seeds` where it has its own number
    shared: dict = field(default_factory=dict)  # differences that all variants share
    seeds: int = 1
    notebooks: dict[str, dict] = field(default_factory=dict)  # notebook: its parameters
    fingerprints: dict[int, str] = field(default_factory=dict)  # image size: of a folder's images

    def runs(self) -> list[TrainConfig]:
        """One configuration per variant and seed, seeds innermost; equal ones once."""
        every = []
        for variant in self.variants:
            fields = {**self.shared, **variant}
            seeds = range(fields.pop("seeds", self.seeds))
            every += [TrainConfig(**fields, seed=seed) for seed in seeds]
        named = (
            dataclasses.replace(run, data_fingerprint=self.fingerprints.get(run.image_size, ""))
            for run in every
        )
        return list(dict.fromkeys(named if self.fingerprints else every))


def paper_preset(dataset: str, name: str) -> Preset:
    """A data set of the paper's Table 1, for one GPU."""
    return Preset(
        f"Table 1 on {name}: six methods, 100 epochs, 2 seeds, for one GPU",
        variants=PAPER_METHODS,
        shared={"dataset": dataset, "precision": "auto"},
        seeds=2,
        notebooks={"04_linear_probe": {}, "05_paper_tables": {}},
    )


PRESETS = {
    "smoke": Preset(
        "every notebook and every cell, tiny; a check, not a result (1 minute on 2 cores)",
        variants=({"method": "directcopy"}, {"method": "none"}),
        shared={"dataset": "digits", "epochs": 2, "width": 4},
        notebooks={
            "01_linear_theory": {"grid": 12, "starts": 4},
            "02_sample_complexity": {"repeats": 4, "sgd_time": 20.0},
            "04_linear_probe": {"draws": 2},
            "05_paper_tables": {},
            "06_ablations": {"views": 2},
            "07_your_own_trainer": {"epochs": 2, "width": 4, "draws": 2},
            "08_theory_and_network": {"epochs": [1, 2], "seeds": [0], "views": 2, "width": 4},
        },
    ),
    "quick": Preset(
        "the paper's story on scikit-learn's digits: seven methods, 3 to 5 seeds (11 minutes on 2 cores)",
        variants=QUICK_METHODS,
        shared={"dataset": "digits", "epochs": 60, "batch_size": 64},
        seeds=3,
        notebooks={
            "01_linear_theory": {},
            "02_sample_complexity": {},
            "04_linear_probe": {},
            "05_paper_tables": {},
            "07_your_own_trainer": {},
            "08_theory_and_network": {},
        },
    ),
    "ablations": Preset(
        "eps, scaling, rho, alpha, weight decay, EMA and more on digits, 3 seeds (35 minutes on 2 cores)",
        variants=ABLATION_VARIANTS,
        shared={"dataset": "digits", "epochs": 40, "batch_size": 64},
        seeds=3,
        notebooks={"04_linear_probe": {}, "06_ablations": {}},
    ),
    "cifar10-small": Preset(
        "CIFAR-10 without a GPU: a small network, 16 epochs, eight methods, 3 seeds "
        "(5 hours on 2 cores, estimated)",
        variants=SMALL_METHODS,
        shared={"dataset": "cifar10", "epochs": 16, **SMALL},
        seeds=3,
        notebooks={"04_linear_probe": {}, "05_paper_tables": {}},
    ),
    "cifar100-small": Preset(
        "CIFAR-100 without a GPU: the same network, four methods, 3 seeds (under 4 hours on 2 busy cores)",
        variants=CORE_METHODS,
        shared={"dataset": "cifar100", "epochs": 16, **SMALL},
        seeds=3,
        notebooks={"04_linear_probe": {}, "05_paper_tables": {}},
    ),
    "ablations-cifar10-small": Preset(
        "eps, scaling, weight decay, EMA on CIFAR-10 without a GPU, 6 epochs (4 hours on 2 cores, estimated)",
        variants=SMALL_ABLATIONS,
        shared={"dataset": "cifar10", "epochs": 6, **SMALL},
        seeds=3,
        notebooks={"04_linear_probe": {}, "06_ablations": {}},
    ),
    "colab": Preset(
        "CIFAR-10 in a free session of Colab: four methods, 24 epochs in fp16 (an hour on a T4, estimated)",
        variants=CORE_METHODS,
        shared={"dataset": "cifar10", "epochs": 24, "precision": "fp16"},
        notebooks={"04_linear_probe": {}, "05_paper_tables": {}},
    ),
    "cifar10": paper_preset("cifar10", "CIFAR-10"),
    "cifar100": paper_preset("cifar100", "CIFAR-100"),
    "stl10": paper_preset("stl10", "STL-10"),
    "imagenette": Preset(
        "Imagenette, ten of ImageNet's classes, as ImageNet is read but without a GPU: a small network at "
        "48 pixels, 20 epochs, five methods, 2 seeds (1.5 hours on 2 cores, estimated)",
        variants=(*CORE_METHODS, {"method": "mlp"}),
        shared={"dataset": "imagenette", **IMAGENETTE},
        seeds=2,
        notebooks={"04_linear_probe": {}, "05_paper_tables": {}},
    ),
    "imagenet-60": Preset(
        "ImageNet, ResNet-50, 60 epochs of SGD, batch 256, one-sided loss: five methods "
        "(about 70 GPU hours on A100s and 50 GB of disk, estimated)",
        variants=IMAGENET_METHODS,
        shared={"dataset": "imagenet", "precision": "auto", **SGD},
        notebooks={"04_linear_probe": {}, "05_paper_tables": {}},
    ),
    "imagenet": Preset(
        "ImageNet, ResNet-50, 100 and 300 epochs of LARS, batch 4096: five methods, for 8 GPUs, on one with "
        "accumulate=16 (about 900 GPU hours on A100s and 50 GB of disk, estimated)",
        variants=tuple({**method, **setting} for setting in LARS for method in IMAGENET_METHODS),
        shared={"dataset": "imagenet", "precision": "auto"},
        notebooks={"04_linear_probe": {}, "05_paper_tables": {}},
    ),
    "ablations-cifar10": Preset(
        "the grid of ablations on CIFAR-10, 100 epochs, 3 seeds, for one GPU",
        variants=tuple(variant for variant in ABLATION_VARIANTS if variant.get("precision") != "bf16"),
        shared={"dataset": "cifar10", "precision": "auto"},
        seeds=3,
        notebooks={"04_linear_probe": {}, "06_ablations": {}},
    ),
}


def get(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ValueError: there is none; the message lists those that exist.
    """
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} does not exist; it must be {one_of(PRESETS)}")
    return PRESETS[name]


def with_options(preset: Preset, options: list[str]) -> Preset:
    """Apply `name=value` options of the command line: seeds, methods, or a field of TrainConfig.

    A field with several numbers, as in epochs=100,300, makes a variant for each.

    Raises:
        ValueError: not of that form, a name that is unknown, a value that a run refuses, or several where
            ablations need one.

    >>> preset = with_options(get("quick"), ["seeds=2", "methods=directcopy,none", "epochs=5"])
    >>> [(run.method, run.seed, run.epochs) for run in preset.runs()]
    [('directcopy', 0, 5), ('directcopy', 1, 5), ('none', 0, 5), ('none', 1, 5)]
    """
    known = [item.name for item in dataclasses.fields(TrainConfig) if item.name not in ("seed", "method")]
    for name, value in parse_options(options).items():
        if name == "methods":
            preset = _keep_methods(preset, str(value).split(","))
        elif name == "seeds":
            require("seeds", value, type(value) is int and value >= 1, "an integer of at least 1")
            variants = tuple({k: v for k, v in one.items() if k != "seeds"} for one in preset.variants)
            preset = dataclasses.replace(preset, variants=variants, seeds=value)
        elif name == "data_fingerprint" and isinstance(value, dict):
            preset = dataclasses.replace(preset, fingerprints=value)
        elif name in known:
            values = value if isinstance(value, tuple) else (value,)
            variants = tuple(variant for one in values for variant in _with_value(preset, name, one))
            preset = dataclasses.replace(preset, variants=variants)
        else:
            raise ValueError(f"option {name!r} is unknown; it must be {one_of(['seeds', 'methods', *known])}")
    runs = preset.runs()  # raises on a value that a run refuses
    if "06_ablations" in preset.notebooks:
        require_alike(runs)
    return preset


def require_alike(runs: list[TrainConfig]) -> None:
    """Raise ValueError, naming the field, where runs differ in what no ablation varies, such as epochs."""
    for item in dataclasses.fields(TrainConfig):
        values = dict.fromkeys(str(getattr(run, item.name)) for run in runs)
        if len(values) > 1 and item.name not in (*ABLATED, "seed"):
            raise ValueError(
                f"the runs differ in {item.name} ({', '.join(values)}), which no ablation varies; "
                "choose one, in notebook 06 with the parameter `runs`"
            )


def _with_value(preset: Preset, name: str, value) -> list[dict]:
    """The variants that have this value where each has one of its own, as for epochs; else all, with it."""
    own = [variant for variant in preset.variants if variant.get(name) == value]
    if own and all(name in variant for variant in preset.variants):
        return own
    return [{**variant, name: value} for variant in preset.variants]


def _keep_methods(preset: Preset, wanted: list[str]) -> Preset:
    here = {variant["method"] for variant in preset.variants}
    for method in wanted:
        if method not in here:
            allowed = [name for name in METHODS if name in here]
            raise ValueError(f"methods={method!r} is not in this preset; it must be {one_of(allowed)}")
    kept = tuple(variant for variant in preset.variants if variant["method"] in wanted)
    return dataclasses.replace(preset, variants=kept)
