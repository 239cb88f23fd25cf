"""Which network, batch and learning rate give the most accuracy per minute of one CPU core, on CIFAR-10.

    python benchmarks/small_networks.py --out results/bench/small-networks.json

Each candidate trains DirectCopy and DirectPred for the same seconds of processor time on one thread, and is
scored by their mean, so that nothing is chosen for one method. 5,000 of the training images are held out to
score on; the test set is not read. Trials that the file already has are skipped, so the script can be
stopped, and several processes can share a file. Beside it is a table of all trials, as a page.
"""

from __future__ import annotations

import argparse
import re
import time

import pandas as pd
import torch
from sklearn.model_selection import train_test_split
from torch import nn

from dcopy import config, data, models, results
from dcopy.bench.measure import out_file
from dcopy.data import augment
from dcopy.evaluation.features import extract_features
from dcopy.evaluation.probes import knn_probe
from dcopy.evaluation.reference_probe import reference_probe
from dcopy.training.graphs import FastStep
from dcopy.training.runs import FrozenEncoder
from dcopy.training.step import Trainer, derive_seed

METHODS = ("directcopy", "directpred")
LABELLED = 20_000  # images of known label, for the probes


def convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return [layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class Stages(nn.Module):
    """Strided convolutions, as `models.ConvNet` has them, with other stems and depths.

    Args:
        widths: channels of the stages; each halves the side of the image.
        stem: None, or the channels of a 3x3 convolution at full size before the stages.
        residual: whether a 3x3 convolution with a shortcut follows each stage.
    """

    def __init__(self, channels: int, widths: list[int], stem: int | None = None, residual: bool = False):
        super().__init__()
        self.blocks = nn.ModuleList()
        inputs = channels
        if stem:
            self.blocks.append(nn.Sequential(*convolution(inputs, stem)))
            inputs = stem
        for width in widths:
            kernel = 5 if inputs == channels else 3
            self.blocks.append(nn.Sequential(*convolution(inputs, width, kernel, stride=2)))
            if residual:
                self.blocks.append(nn.Sequential(*convolution(width, width)))
            inputs = width
        self.residual, self.out_dim = residual, inputs

    def forward(self, x):
        """(N, C, H, W) -> (N, channels of the last stage)"""
        for block in self.blocks:
            y = block(x)
            x = x + y if self.residual and x.shape == y.shape else y
        return x.mean(dim=(2, 3))


CANDIDATES = {  # encoders that `models` does not have: name, and from (channels, width) to a module
    "stem32": lambda channels, w: Stages(channels, [w, 2 * w, 4 * w], stem=w // 2),
    "4 stages": lambda channels, w: Stages(channels, [w, 2 * w, 4 * w, 8 * w]),
    "wide end": lambda channels, w: Stages(channels, [w, 2 * w, 8 * w]),
    "residual": lambda channels, w: Stages(channels, [w, 2 * w, 4 * w], residual=True),
}

TRIALS = [  # differences from conv of width 64, batches of 64, lr 0.03, views of 32 pixels
    {},
    {"encoder": "4 stages", "width": 48},
    {"batch_size": 32},
    {"encoder": "residual", "width": 32},
    {"lr": 0.06},
    {"encoder": "stem32", "width": 48},
    {"side": 24},
    {"encoder": "wide end"},
    {"width": 96},
    {"encoder": "resnet18", "width": 32},
    {"encoder": "residual", "width": 48},
    {"batch_size": 128},
]


def split(images: data.ImageData, seed: int):
    """Training images without the 5,000 held out, and those, each with its labels."""
    fit, held = train_test_split(
        range(len(images.train)), test_size=5000, stratify=images.train_labels, random_state=seed
    )
    return [(images.train[part], images.train_labels[part]) for part in (fit, held)]


def train(run: config.TrainConfig, side: int, images: torch.Tensor, seconds: float):
    """The trained encoder, and how many images were seen in these seconds of processor time."""
    trainer = Trainer(run, images.shape[1])
    step = FastStep(trainer, augment.build(run.recipe.augmentation, side))
    steps, start = 0, time.process_time()
    while time.process_time() - start < seconds:
        generator = torch.Generator().manual_seed(derive_seed(run.seed, "trial", steps))
        batch = torch.randint(len(images), (run.batch_size,), generator=generator)
        loss, _ = step(images[batch], generator)
        if not loss.isfinite():
            break
        steps += 1
    return FrozenEncoder(trainer.online.encoder, run), steps * run.batch_size


def trial(fields: dict, fit, held, seconds: float, seed: int) -> dict:
    fields = dict(fields)
    side = fields.pop("side", 32)
    shared = {"encoder": "conv", "width": 64, "batch_size": 64, "precision": "bf16", **fields}
    record = {"fields": shared, "side": side, "seconds_each": seconds, "seed": seed, "methods": {}}
    for method in METHODS:
        run = config.TrainConfig(dataset="cifar10", method=method, seed=seed, **shared)
        start = time.perf_counter()
        encoder, seen = train(run, side, fit[0], seconds)
        wall = time.perf_counter() - start
        known, held_out = (extract_features(encoder, images) for images in (fit[0][:LABELLED], held[0]))
        probed = (known, fit[1][:LABELLED].numpy(), held_out, held[1].numpy())
        record["methods"][method] = {
            "linear": reference_probe(*probed)["last"],
            "knn": knn_probe(*probed),
            "images_seen": seen,
            "images_per_second": round(seen / seconds, 1),
            "wall_seconds": round(wall, 1),
        }
    record["linear"] = sum(outcome["linear"] for outcome in record["methods"].values()) / len(METHODS)
    record["knn"] = sum(outcome["knn"] for outcome in record["methods"].values()) / len(METHODS)
    record["parameters"] = sum(parameter.numel() for parameter in encoder.encoder.parameters())
    return {**record, **results.provenance()}


def add(out, key: str, record: dict) -> None:
    """Put a record into the file, which other processes write to as well."""
    with results.locked(out.parent, wait=True):
        known = results.read_json(out) if out.exists() else {}
        results.write_json(out, {**known, key: record})


def page(out) -> None:
    """A row a trial, those of the same seconds together, the best linear probe first."""
    records = results.read_json(out)
    ranked = sorted(records.values(), key=lambda record: (record["seconds_each"], -record["linear"]))
    rows = []
    for record in ranked:
        fields, outcomes = {"lr": config.TrainConfig().lr} | record["fields"], record["methods"]
        row = {"seconds": record["seconds_each"], "seed": record["seed"]}
        row |= {name: fields[name] for name in ("encoder", "width", "batch_size", "lr")}
        row |= {"side": record["side"], "parameters": f"{record['parameters']:,}"}
        for probe, key in (("linear", "linear"), ("k-NN", "knn")):
            row |= {f"{config.METHODS[name]}, {probe}": f"{one[key]:.1%}" for name, one in outcomes.items()}
        slower = min(one["images_per_second"] for one in outcomes.values())
        rows.append(row | {"images/s": f"{slower:.0f}"})
    commits = ", ".join(sorted({record["commit"] for record in ranked}))
    devices = ", ".join(sorted({record["device"] for record in ranked}))
    caption = "Accuracy on held-out training images of CIFAR-10 after equal processor time, one thread."
    note = f"Commit {commits}; {devices}; bf16. images/s: of processor time, the slower of both methods."
    table = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
    results.write_text(out.with_suffix(".md"), f"{caption}\n\n{table}\n\n{note}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__ and __doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=out_file, default="results/bench/small-networks.json", help="JSON file to add to"
    )
    parser.add_argument("--seconds", type=float, default=90, help="of processor time, for each method")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", default="0/1", help="i/n: every n-th trial, from the i-th")
    parser.add_argument("trials", nargs="*", help="name=value,...: instead of the list in the script")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    models.ENCODERS.update(CANDIDATES)
    config.CHOICES["encoder"] = tuple(models.ENCODERS)
    trials = [config.parse_options(text.split(",")) for text in arguments.trials] or TRIALS
    part = re.fullmatch(r"(\d+)/(\d+)", arguments.part)
    first, every = map(int, part.groups()) if part else (0, 0)
    if first >= every:
        parser.error(f"--part {arguments.part} is not allowed; it must be i/n, as 0/2 and 1/2")
    out = arguments.out
    fit, held = split(data.load("cifar10"), arguments.seed)
    for fields in trials[first::every]:
        words = [f"{name}={value}" for name, value in fields.items()] or ["conv, width 64, batches of 64"]
        key = f"{', '.join(words)}, {arguments.seconds:g} s, seed {arguments.seed}"
        if out.exists() and key in results.read_json(out):
            continue
        record = trial(fields, fit, held, arguments.seconds, arguments.seed)
        add(out, key, record)
        print(f"{key}: linear {record['linear']:.2%}, k-NN {record['knn']:.2%}", flush=True)
    page(out)


if __name__ == "__main__":
    main()
