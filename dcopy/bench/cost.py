"""What runs will take on this machine, from a few steps of training: `python -m dcopy.bench.cost`.

Reads configurations (a JSON list) from stdin and prints what each takes (the same). `workflow.cost` asks this
of another process, since it plans without torch.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import sys

from .. import hardware, results
from ..config import TrainConfig
from ..data import listing
from ..training.step import Trainer
from .bench import step_parts

READ_FROM_DISK = ("imagenet", "imagenette")  # batch by batch
PIXELS = {"cpu": 2**15, "cuda": 2**22}  # of the images in a trial's batch, at most


def images(config: TrainConfig) -> int:
    """How many images the run pretrains on; nothing is downloaded or decoded for it."""
    kind, _, path = config.dataset.partition(":")
    if kind != "folder":
        return config.recipe.images
    files = listing.find(results.resolve(path)).files
    return sum(len(own) for split, own in files.items() if split != "test")


def measure(config: TrainConfig) -> dict:
    """Time, memory and disk of a run, from three steps on a batch that may be smaller than its own.

    Returns:
        images, steps (of an epoch), seconds (of a step), memory (bytes at the peak, on a GPU those of its
        own, else those of the process), disk (bytes of a run's two checkpoints), trial (images in the batch
        that was timed), device and precision.
    """
    device, precision = hardware.choose(None, config.precision)
    most = PIXELS.get(device.type, PIXELS["cpu"]) // config.image_size**2
    parts = min(config.accumulate, 2)  # that the trial's batch is computed in
    size = max(2 * parts, min(config.batch_size, most) // parts * parts)
    trial = dataclasses.replace(config, batch_size=size, accumulate=parts)
    times = config.batch_size / trial.batch_size
    larger = times * parts / config.accumulate  # how many times as many images are in memory at once
    step = step_parts(trial, device, steps=3, warmup=1, compile=False)
    count, memory = images(config), step["memory"]
    channels = 1 if config.dataset == "digits" else 3
    views = 2 * 4 * size * channels * config.image_size**2  # bytes of the trial's
    trainer = Trainer(config, channels)
    state = sum(tensor.nbytes for tensor in trainer.tensors().values())
    momentum = sum(parameter.nbytes for parameter in trainer.named_parameters.values())
    peak = (
        memory["measured"]
        if device.type == "cuda"
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    return {
        "images": count,
        "steps": count // config.batch_size,
        "seconds": times * step["ms"] / 1e3,
        "memory": (peak or memory["estimate"])
        + int((larger - 1) * memory["activations"])
        + int((times - larger) * views)  # of the parts that wait
        + (0 if config.dataset in READ_FROM_DISK else count * channels * config.image_size**2),
        "disk": 2 * (state + momentum),
        "trial": trial.batch_size,
        "device": hardware.name(device),
        "precision": precision,
    }


if __name__ == "__main__":
    try:
        answers = [measure(TrainConfig.from_dict(values)) for values in json.load(sys.stdin)]
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(str(error).strip().splitlines()[0])
    print(json.dumps(answers))
