"""DirectCopy and BYOL from dcopy against BYOL and SimSiam built from lightly's public modules.

    pip install lightly   # dcopy does not depend on it
    python benchmarks/lightly_comparison.py --out results/comparison/lightly.json

Accuracy: digits; encoder, its first weights, batches, augmentation, optimizer and probes are the
same for all, so that what differs is the method and its heads. Speed: images per second of a whole
training step, augmentation included, with CIFAR's ResNet-18; lightly as in its example (`lightly-ai/
lightly:examples/pytorch/byol.py`: a DataLoader whose workers transform PIL images one by one,
float32), with the operations and the network sizes of dcopy's recipe. All take turns in one process.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import importlib.metadata
import os
import statistics
import sys
import time
from collections import OrderedDict

import torch
from PIL import Image
from torch import Tensor, nn

from dcopy import data, hardware, results
from dcopy.bench.measure import out_file, positive
from dcopy.config import TrainConfig
from dcopy.data import augment
from dcopy.evaluation.evaluate import evaluate
from dcopy.report.comparison import BASE
from dcopy.training.graphs import FastStep
from dcopy.training.runs import FrozenEncoder
from dcopy.training.step import Trainer, derive_seed, seeded

try:
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import (
        BYOLPredictionHead,
        BYOLProjectionHead,
        SimSiamPredictionHead,
        SimSiamProjectionHead,
    )
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms import BYOLTransform
    from lightly.transforms.byol_transform import BYOLView1Transform
except ImportError as error:
    sys.exit(f"this comparison needs lightly ({error}), which dcopy does not: pip install lightly")


class LightlyBYOL(nn.Module):
    """Online and momentum networks with lightly's heads, of the sizes that the configuration has."""

    def __init__(self, encoder: nn.Module, config: TrainConfig):
        super().__init__()
        hidden, D = config.hidden_dim, config.projection_dim
        self.online = in_turn(encoder=encoder, projector=BYOLProjectionHead(encoder.out_dim, hidden, D))
        self.predictor = BYOLPredictionHead(D, hidden, D)
        self.momentum = copy.deepcopy(self.online)
        deactivate_requires_grad(self.momentum)
        self.criterion, self.ema = NegativeCosineSimilarity(), config.ema

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        update_momentum(self.online, self.momentum, m=self.ema)  # before the step, as in their example
        p1, z1 = self.predictor(self.online(x1)), self.momentum(x1).detach()  # (N, D)
        p2, z2 = self.predictor(self.online(x2)), self.momentum(x2).detach()
        return self.criterion(p1, z2) + self.criterion(p2, z1)


class LightlySimSiam(nn.Module):
    """One network with lightly's heads; the predictor's bottleneck is D / 4, the paper's proportion."""

    def __init__(self, encoder: nn.Module, config: TrainConfig):
        super().__init__()
        hidden, D = config.hidden_dim, config.projection_dim
        self.online = in_turn(encoder=encoder, projector=SimSiamProjectionHead(encoder.out_dim, hidden, D))
        self.predictor = SimSiamPredictionHead(D, D // 4, D)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        z1, z2 = self.online(x1), self.online(x2)  # (N, D)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        return self.criterion(p1, z2.detach()) + self.criterion(p2, z1.detach())


METHODS = {  # dcopy's name, and what lightly has
    "BYOL": ("mlp", LightlyBYOL),
    "SimSiam": ("simsiam", LightlySimSiam),
    "DirectCopy": ("directcopy", None),
}


def in_turn(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


class LightlyTrainer:
    """A model of lightly's parts around dcopy's encoder, with the interface of dcopy's Trainer."""

    def __init__(self, model, config: TrainConfig, channels: int, device: str):
        self.precision, self.device = config.precision, torch.device(device)
        encoder = Trainer(config, channels).online.encoder  # the same first weights
        with seeded(config.seed, "lightly"):
            self.model = model(encoder, config)
        self.model.to(device, memory_format=torch.contiguous_format).train()  # as in their example
        self.online = self.model.online
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(
            trained, config.lr, config.momentum, weight_decay=config.weight_decay
        )

    def step(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, None]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            loss = 2 * self.model(x1, x2)  # twice the cosines, as in dcopy, so that one lr serves both
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach(), None


def train(step, config: TrainConfig, images: Tensor) -> Tensor:
    """Pretrain on the batches and views that `dcopy.pretrain` would draw; return the last loss."""
    steps = len(images) // config.batch_size
    for epoch in range(config.epochs):
        generator = torch.Generator().manual_seed(derive_seed(config.seed, "order", epoch))
        order = torch.randperm(len(images), generator=generator).to(images.device)
        for number, index in enumerate(order.split(config.batch_size)[:steps]):
            seed = derive_seed(config.seed, "augment", epoch, number)
            loss, _ = step(images[index], torch.Generator(images.device).manual_seed(seed))
    return loss


def accuracy(config: TrainConfig, seeds: int, device: str) -> list[dict]:
    """For each way and seed: linear and knn (accuracies, parts of one), and seconds of pretraining."""
    images = data.load(config.dataset)
    ways = {
        "DirectCopy, dcopy": ("directcopy", lambda c: Trainer(c, 1, device)),
        "BYOL, dcopy": ("mlp", lambda c: Trainer(c, 1, device)),
        "BYOL, lightly": ("mlp", lambda c: LightlyTrainer(LightlyBYOL, c, 1, device)),
        "SimSiam, dcopy": ("simsiam", lambda c: Trainer(c, 1, device)),
        "SimSiam, lightly": ("mlp", lambda c: LightlyTrainer(LightlySimSiam, c, 1, device)),
    }
    records = []
    for seed in range(seeds):
        for name, (method, build) in ways.items():
            own = dataclasses.replace(config, method=method, seed=seed)
            trainer = build(own)
            step = FastStep(trainer, augment.build(own.recipe.augmentation), compile=False)
            took = seconds(lambda s=step, c=own: train(s, c, images.pretrain().to(device)))
            probes = evaluate(FrozenEncoder(trainer.online.encoder, own), images, draws=1)
            linear, knn = probes["linear"]["accuracy"], probes["knn"]
            records.append({"name": name, "seed": seed, "linear": linear, "knn": knn, "seconds": took})
            print(f"  {name:20} seed {seed}  linear {linear:.1%}  k-NN {knn:.1%}  {took:.0f} s", flush=True)
    return records


def summary(records: list[dict]) -> list[dict]:
    """Mean and standard deviation over seeds, percent."""
    rows = []
    for name in dict.fromkeys(record["name"] for record in records):
        row = {"name": name}
        for probe in ("linear", "knn"):
            values = [100 * record[probe] for record in records if record["name"] == name]
            row[f"{probe}_mean"] = statistics.mean(values)
            row[f"{probe}_std"] = statistics.stdev(values) if len(values) > 1 else None
        rows.append(row)
    return rows


class PILImages(torch.utils.data.Dataset):
    """Arrays (N, H, W, C) as torchvision's CIFAR10 hands them out: PIL images, transformed one by one."""

    def __init__(self, arrays, transform):
        self.arrays, self.transform = arrays, transform

    def __len__(self):
        return len(self.arrays)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.arrays[index])), 0


def speed(
    config: TrainConfig, methods, precisions, rounds: int, steps: int, workers: int, device: str
) -> dict:
    """Images per second of each way in each round, and the median of its multiples of lightly's BYOL."""
    generator = torch.Generator().manual_seed(0)
    shape = (steps * config.batch_size, 3, config.image_size, config.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    ways = {}
    for precision in dict.fromkeys(["fp32", *precisions]):  # that of BASE in any case
        own = dataclasses.replace(config, precision=precision)
        for name in methods:
            method, model = METHODS[name]
            if model is not None:
                ways[f"{name}, lightly, {precision}"] = lightly_epoch(model, own, images, workers, device)
            ours = dataclasses.replace(own, method=method)
            ways[f"{name}, dcopy, {precision}"] = dcopy_epoch(ours, images, device)
    rates = []
    for number in range(1 + rounds):  # the first one warms up
        rate = {name: len(images) / seconds(epoch) for name, epoch in ways.items()}
        print("  " + ", ".join(f"{name} {r:.1f}" for name, r in rate.items()), flush=True)
        rates += [rate] if number else []
    multiples = {name: statistics.median(rate[name] / rate[BASE] for rate in rates) for name in ways}
    return {"images_per_second": rates, "times_as_fast": multiples, "steps": steps, "workers": workers}


def lightly_epoch(model, config: TrainConfig, images: Tensor, workers: int, device: str):
    """An epoch as in lightly's example; between two of them its workers have nothing to do."""
    # The operations of dcopy's recipe: theirs blurs and solarizes by default, and jitters saturation less.
    view = BYOLView1Transform(input_size=config.image_size, cj_sat=0.4, gaussian_blur=0.0)
    loader = torch.utils.data.DataLoader(
        PILImages(images.permute(0, 2, 3, 1).contiguous().numpy(), BYOLTransform(view, view)),
        batch_size=config.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    trainer = LightlyTrainer(model, config, 3, device)

    def epoch():
        for (x1, x2), _ in loader:
            loss, _ = trainer.step(x1.to(device), x2.to(device))
        return loss

    return epoch


def dcopy_epoch(config: TrainConfig, images: Tensor, device: str):
    """An epoch of dcopy as it pretrains: the data set on the device; on a GPU compiled, in CUDA graphs."""
    step = FastStep(Trainer(config, 3, device), augment.build(config.recipe.augmentation))
    images = images.to(device)
    return lambda: train(step, config, images)


def seconds(work) -> float:
    """Wall time of work that returns a loss; reading it waits for the device."""
    start = time.perf_counter()
    work().item()
    return time.perf_counter() - start


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__ and __doc__.splitlines()[0])
    parser.add_argument("--seeds", type=positive, default=3)
    parser.add_argument("--epochs", type=positive, default=60, help="on digits")
    parser.add_argument("--rounds", type=positive, default=5, help="in which each way has one turn")
    parser.add_argument("--steps", type=positive, help="a turn; default: 4 for each worker")
    parser.add_argument(
        "--precisions",
        nargs="+",
        default=["fp32", "bf16"],
        choices=["fp32", "bf16"],
        help="besides fp32; a processor without instructions for bf16 takes minutes a step in it",
    )
    parser.add_argument("--only", choices=["accuracy", "speed"], help="this part of the comparison")
    parser.add_argument(
        "--methods", nargs="+", default=list(METHODS), choices=METHODS, help="to time, besides BYOL"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="of lightly's DataLoader")
    parser.add_argument("--width", type=positive, help="of the encoders, smaller for a trial")
    parser.add_argument("--device", help=hardware.WORDS)
    parser.add_argument("--out", type=out_file, help="JSON file to write")
    args = parser.parse_args(arguments)
    args.device, _ = hardware.choose(args.device)
    args.steps = args.steps or 4 * max(1, args.workers)  # fewer would time the latency of a batch

    digits = TrainConfig(dataset="digits", method="mlp", width=args.width, epochs=args.epochs, batch_size=64)
    cifar = TrainConfig(dataset="cifar10", method="mlp", width=args.width, epochs=1)
    record = {}
    if args.only != "speed":
        print(f"digits, {args.epochs} epochs, accuracy on the test set")
        records = accuracy(digits, args.seeds, args.device)
        rows = summary(records)
        record["accuracy"] = {"config": digits.to_dict(), "runs": records, "summary": rows}
        for row in rows:
            print(f"  {row['name']:24} linear {row['linear_mean']:.1f} %, k-NN {row['knn_mean']:.1f} %")
    if args.only != "accuracy":
        print(f"{hardware.name(args.device)}: images per second, the first line to warm up")
        methods = dict.fromkeys(["BYOL", *args.methods])
        rates = speed(cifar, methods, args.precisions, args.rounds, args.steps, args.workers, args.device)
        record["speed"] = {"config": cifar.to_dict(), **rates}
        for name, multiple in rates["times_as_fast"].items():
            print(f"  {name:24} {multiple:.2f} times as fast as lightly's BYOL")
    if args.out:
        provenance = results.provenance(args.device)
        provenance["versions"]["lightly"] = importlib.metadata.version("lightly")
        results.write_json(args.out, record | {"provenance": provenance})


if __name__ == "__main__":
    main()
