"""What reading images from disk costs: the decoder's own speed, what arrives of it, and memory at 1x and 4x.

    python benchmarks/images.py imagenette --image-size 64 --out results/bench/images.json

Goals: at least 90 % of the decoder's own speed per core arrives as batches, and peak memory does not grow
with the number of images. Speeds are in images per second of processor time, so that other work on the
machine does not count. Each measurement is in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import torch

from dcopy import data, results
from dcopy.config import TrainConfig
from dcopy.data import augment
from dcopy.training import batches
from dcopy.training.ranks import Alone

BATCH = 128


def batches_of(images, size: int, epochs: int = 1) -> batches.FromDisk:
    """Epochs as training reads them."""
    config = TrainConfig(dataset="imagenette", image_size=size, batch_size=BATCH, epochs=epochs)
    made, _ = batches.build(images, config, augment.build("imagenet", size), torch.device("cpu"), Alone())
    return made


def own_speed(images, size: int) -> dict:
    """One process that reads, decodes and crops, and nothing else; and of that the decoding alone."""
    made = batches_of(images, size)
    indices = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
    indices = indices[: BATCH * made.steps]
    H, W = images.sizes(indices)
    drawn = [made.reader.crop.sample((len(indices), 3, H, W), torch.Generator()) for _ in range(2)]
    boxes = torch.stack([torch.stack([*one.values()], 1) for one in drawn], 1).int().tolist()
    start = time.process_time()
    for i, pair in zip(indices, boxes, strict=True):
        images.crops(i, pair, made.reader.crop.size)
    both = time.process_time() - start
    start = time.process_time()
    for i in indices:
        with images.opened(i):
            pass
    decoding = time.process_time() - start
    return {"own_per_core": len(indices) / both, "decoding_alone_per_core": len(indices) / decoding}


def delivered(images, size: int) -> dict:
    """Five epochs of batches from worker processes, their start and their end included."""
    made = batches_of(images, size, epochs=5)
    count, begun = 0, time.perf_counter()
    for batch in made.begin(0, 0):
        count += len(batch)
    seconds = time.perf_counter() - begun
    workers = resource.getrusage(resource.RUSAGE_CHILDREN)  # all have ended
    used = workers.ru_utime + workers.ru_stime
    return {"delivered_per_core": count / used, "delivered": count / seconds, "workers": batches.workers()}


def memory(images, size: int) -> dict:
    """Peak memory of an epoch in MB: of this process, and of its largest worker."""
    for _ in batches_of(images, size).begin(0, 0):
        pass
    peaks = (
        resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return dict(zip(("process", "worker"), peaks, strict=True))


MEASUREMENTS = {"own": own_speed, "delivered": delivered, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", nargs="?", default="imagenette", help="that is read from disk")
    parser.add_argument("--image-size", type=int, default=64, help="pixels, side of a view")
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("--only", nargs=2, metavar=("WHAT", "TIMES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        what, times = args.only
        images = data.load(args.dataset, image_size=args.image_size, progress=False).train
        for _ in range({"1": 0, "4": 2}[times]):
            images = images + images
        print(json.dumps({"images": len(images), **MEASUREMENTS[what](images, args.image_size)}))
        return

    def measure(what: str, times: int = 1) -> dict:
        command = [sys.executable, __file__, args.dataset, f"--image-size={args.image_size}"]
        command += ["--only", what, str(times)]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)

    record = {
        "dataset": args.dataset,
        "image_size": args.image_size,
        **measure("own"),
        **measure("delivered"),
    }
    record["delivered_of_own"] = record["delivered_per_core"] / record["own_per_core"]
    decoded, own, arrived = (record[f"{name}_per_core"] for name in ("decoding_alone", "own", "delivered"))
    print(f"per core: {decoded:,.0f} images/s decoded, {own:,.0f} with two crops, {arrived:,.0f} delivered")
    print(f"delivered of the decoder's own speed, two crops included: {record['delivered_of_own']:.1%}")
    record["memory_mb"] = [measure("memory", times) for times in (1, 4)]
    for one in record["memory_mb"]:
        print(f"{one['images']:,} images: {one['process']:.0f} MB, a worker {one['worker']:.0f} MB")
    if args.out:
        results.write_json(args.out, {**record, **results.provenance()})


if __name__ == "__main__":
    main()
