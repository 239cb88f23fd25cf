"""Time a step on one process and on several, and hold the bytes that they send against the formula.

    python benchmarks/scaling.py --processes 1 2 --out results/bench/scaling.json

The images are random. Each process trains its part of the batch twice: together with the others, and on its
own, at the same time as they do. What the first takes longer is communication, waiting included.
`docs/scaling.md` shows the numbers; this script writes them there.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from dcopy import hardware, results
from dcopy.bench.bench import random_images
from dcopy.bench.measure import Clock, out_file, positive
from dcopy.config import TrainConfig, parse_options
from dcopy.data import augment
from dcopy.training import ranks
from dcopy.training.graphs import FastStep
from dcopy.training.step import Trainer

CONFIG = ["dataset=cifar10", "width=16", "batch_size=64"]
WARMUP = 2  # steps that are not timed
FLAGS = 16  # bytes in which the ranks tell each other whether to stop


def payload(trainer: Trainer, processes: int) -> dict[str, int]:
    """Bytes of the messages of one step; a ring has each process send 2 (P - 1) / P times as many."""
    config, size = trainer.config, 4  # bytes of a float32
    views = 2 if config.symmetric_loss else 1
    passes = views if config.batchnorm == "per-view" else 1
    counted = {"online": (passes, passes), "target": (passes, 0), "predictor": (passes, passes)}
    batchnorm = 0
    for name, (forward, backward) in counted.items():
        for layer in trainer.parts[name].modules() if name in trainer.parts else ():
            if isinstance(layer, _BatchNorm):
                C = layer.num_features
                batchnorm += size * (forward * processes * (2 * C + 1) + backward * 2 * C)
    return {
        "gradients": size * sum(p.numel() for p in trainer.named_parameters.values()),
        "BatchNorm": batchnorm,
        "F": size * (config.projection_dim**2 + 1),
        "loss and flags": size + FLAGS,
    }


def sent() -> int | None:
    """Bytes that this process has written so far, to sockets too, where Linux counts them."""
    path = Path("/proc/self/io")
    if not path.exists():
        return None
    return next(
        int(line.split()[1])
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("wchar")
    )


def measure(config: TrainConfig, device: str | None, steps: int) -> dict:
    """One row: what this process and the others, if torchrun has started any, take and send."""
    ranks.take_gpu()
    device, _ = hardware.choose(device, config.precision)
    with ranks.joined(config, device, minutes=10) as group:
        images = group.part(random_images(config)).to(device)
        part = dataclasses.replace(config, batch_size=len(images))
        together, alone = stepper(config, images, group), stepper(part, images, ranks.Alone())
        clock, times, bytes_sent = Clock(device), {together: [], alone: []}, []
        for number in range(WARMUP + steps):  # in turn, so that what else the machine does falls on both
            for step in (together, alone):
                before, start = sent(), clock.now()
                step()
                if number >= WARMUP:
                    times[step] += clock.ms([start, clock.now()])
                    bytes_sent += [sent() - before] if before is not None and step is together else []
        ms, without = (statistics.median(times[step]) for step in (together, alone))
        size, parts = group.size, payload(Trainer(config, images.shape[1]), group.size)
        return {
            **{"processes": size, "ms": ms, "ms_without_messages": without},
            "share_of_communication": max(0.0, 1 - without / ms) if size > 1 else 0.0,
            "bytes": statistics.median(bytes_sent) if bytes_sent else None,
            "bytes_by_formula": round(2 * (size - 1) / size * sum(parts.values())),
            **{"messages": parts, "load": os.getloadavg()[0]},
        }


def stepper(config: TrainConfig, images, group):
    """A function that takes a step on these images, together with the other processes of the group."""
    trainer = Trainer(config, images.shape[1], images.device)
    group.parallelize(trainer)
    step = FastStep(trainer, augment.build(config.recipe.augmentation, config.image_size), False, group)
    generator = torch.Generator(images.device).manual_seed(0)

    def one_step() -> None:
        loss, _ = step(images, generator)
        group.mean(loss)
        group.agree(None, False)

    return one_step


def rows(args) -> list[dict]:
    """A row for each number of processes, measured one after the other."""
    found = []
    for count in args.processes:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "row.json"
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            command += [f"--nproc-per-node={count}", __file__, "--worker", str(out), f"--steps={args.steps}"]
            command += [f"--device={args.device}"] if args.device else []
            subprocess.run([*command, "--config", *args.config], check=True)
            found.append(results.read_json(out))
    return found


def table(record: dict) -> str:
    """The rows as Markdown."""
    config, load = record["config"], max(row["load"] for row in record["rows"])
    lines = [
        f"One step of {config['dataset']}, {config['encoder']} of width {config['width']}, batch "
        f"{config['batch_size']}, on {record['provenance']['device']} a process; the machine's load was "
        f"{load:.0f}, and what lies above its cores lengthens each wait.",
        "",
        "| processes | ms a step | of it communication | MB sent by each | MB by the formula |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in record["rows"]:
        measured = "—" if row["bytes"] is None else f"{row['bytes'] / 1e6:.3f}"
        lines.append(
            f"| {row['processes']} | {row['ms']:.0f} | {row['share_of_communication']:.0%} | {measured} | "
            f"{row['bytes_by_formula'] / 1e6:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__ and __doc__.splitlines()[0])
    parser.add_argument("--processes", type=positive, nargs="+", default=[1, 2])
    parser.add_argument("--config", nargs="*", default=CONFIG, metavar="name=value")
    parser.add_argument("--device")
    parser.add_argument("--steps", type=positive, default=20)
    parser.add_argument(
        "--out", type=out_file, help="JSON file; in results/reference, the table of docs/scaling.md follows"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    config = TrainConfig.from_dict(parse_options(args.config))
    if args.worker:
        row = measure(config, args.device, args.steps)
        if os.environ["RANK"] == "0":
            results.write_json(args.worker, row)
        return
    device, _ = hardware.choose(args.device, config.precision)
    record = {"config": config.to_dict(), "rows": rows(args), "provenance": results.provenance(device)}
    print(table(record))
    if args.out:
        results.write_json(args.out, record)
    if args.out and results.reference() in args.out.parents:
        page = results.project_root() / "docs" / "scaling.md"
        begin, end = "<!-- measured:begin -->", "<!-- measured:end -->"
        before, _, rest = page.read_text(encoding="utf-8").partition(begin)
        results.write_text(page, f"{before}{begin}\n{table(record)}\n{end}{rest.partition(end)[2]}")


if __name__ == "__main__":
    main()
