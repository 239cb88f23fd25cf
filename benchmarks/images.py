"""What reading images from disk costs: the decoder's own speed, what arrives of it, and memory at 1x and 4x.

    python benchmarks/images.py imagenette --image-size 64 --out results/bench/images.json

Goals: at least 90 % of the decoder's own speed per core arrives as batches, and peak memory does not grow
with the number of images. Speeds are in images per second of processor time, so that other work on the
machine counts little.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np
import torch

from dcopy import data, results
from dcopy.bench.measure import out_file, positive
from dcopy.config import TrainConfig
from dcopy.data import augment
from dcopy.training import batches
from dcopy.training.ranks import Alone

BATCH, EPOCHS = 128, 2


def batches_of(images, size: int) -> batches.FromDisk:
    """EPOCHS as training reads them."""
    config = TrainConfig(dataset="imagenette", image_size=size, batch_size=BATCH, epochs=EPOCHS)
    made, _ = batches.build(images, config, augment.build("imagenet", size), torch.device("cpu"), Alone())
    return made


class Compared(batches.Reader):
    """A reader that also decodes its images, and cuts crops of them, for nothing but the time that it takes.

    It does so between any two batches, so what else the machine does meets all of them alike.

    Attributes:
        seconds: (workers, 3), of the processor: decoding, decoding with two crops, and all that a worker
            does for its batches, its start and the messages that it sends included.
    """

    def __init__(self, reader: batches.Reader):
        super().__init__(reader.images, reader.crop, reader.seed, reader.own)
        self.seconds = torch.zeros(batches.workers(), 3, dtype=torch.float64).share_memory_()
        self.aside = 0.0

    def __getitem__(self, batch):
        seconds = self.seconds[torch.utils.data.get_worker_info().id]
        if first := batch[1] % 2 == 0:  # the second time an image is in a cache
            self.compare(batch[2], seconds)
        crops = super().__getitem__(batch)
        seconds[2] = time.process_time() - self.aside
        if not first:
            self.compare(batch[2], seconds)
        return crops

    def compare(self, indices: np.ndarray, seconds: torch.Tensor) -> None:
        begun, shape = time.process_time(), (len(indices), 3, *self.images.sizes(indices))
        drawn = [torch.stack([*self.crop.sample(shape, torch.Generator()).values()], 1) for _ in range(2)]
        boxes, out = torch.stack(drawn, 1).int().tolist(), np.empty((2, *self.crop.size, 3), np.uint8)
        times = [time.process_time()]
        for i in indices.tolist():
            with self.images.opened(i):
                pass
        times.append(time.process_time())
        for i, pair in zip(indices.tolist(), boxes, strict=True):
            self.images.crops(i, pair, out)
        times.append(time.process_time())
        seconds[:2] += torch.tensor(times).diff()
        self.aside += times[-1] - begun


def speeds(images, size: int) -> dict:
    """Images per second of a core: decoded alone, decoded with two crops, delivered as batches."""
    made = batches_of(images, size)
    made.reader = Compared(made.reader)
    begun = time.process_time()
    count = sum(len(batch) for batch in made.begin(0, 0))
    training = time.process_time() - begun  # puts batches as networks take them, and plans further ones
    decoding, own, delivered = made.reader.seconds.sum(dim=0).tolist()
    return {
        "decoding_alone_per_core": count / decoding,
        "own_per_core": count / own,
        "delivered_per_core": count / delivered,
        "delivered_of_own": own / delivered,
        "with_the_training_process": own / (delivered + training),
        "workers": batches.workers(),
    }


def memory(images, size: int) -> dict:
    """Peak memory of an epoch in MB: of this process, and of its largest worker."""
    for _ in batches_of(images, size).begin(0, 0):
        pass
    peaks = (
        resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return dict(zip(("process", "worker"), peaks, strict=True))


MEASUREMENTS = {"speeds": speeds, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__ and __doc__.splitlines()[0])
    parser.add_argument("dataset", nargs="?", default="imagenette", help="that is read from disk")
    parser.add_argument("--image-size", type=positive, default=64, help="pixels, side of a view")
    parser.add_argument("--out", type=out_file, help="JSON file to write")
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

    record = {"dataset": args.dataset, "image_size": args.image_size, **measure("speeds")}
    decoded, own, arrived = (record[f"{name}_per_core"] for name in ("decoding_alone", "own", "delivered"))
    print(f"per core: {decoded:,.0f} images/s decoded, {own:,.0f} with two crops, {arrived:,.0f} delivered")
    print(f"delivered of the decoder's own speed, two crops included: {record['delivered_of_own']:.1%}")
    print(f"the same, what the training process does counted in: {record['with_the_training_process']:.1%}")
    record["memory_mb"] = [measure("memory", times) for times in (1, 4)]
    for one in record["memory_mb"]:
        print(f"{one['images']:,} images: {one['process']:.0f} MB, a worker {one['worker']:.0f} MB")
    if args.out:
        results.write_json(args.out, {**record, **results.provenance()})


if __name__ == "__main__":
    main()
