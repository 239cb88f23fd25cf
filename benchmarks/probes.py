"""How long the probes take on features of CIFAR-10's size.

    python benchmarks/probes.py --out results/bench/probes.json

Goal: at most 5 minutes for the linear probe and 1 minute for k-NN on two cores. The features are hard on the
solver: at the weakest penalty it runs through all its iterations.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from dcopy import results
from dcopy.evaluation import probes

TRAIN, TEST, DIM, CLASSES = 50_000, 10_000, 512, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__ and __doc__.splitlines()[0])
    parser.add_argument("--out", help="JSON file to write")
    out = parser.parse_args().out
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(CLASSES, DIM))
    labels = generator.integers(CLASSES, size=TRAIN + TEST)
    noise = generator.normal(size=(TRAIN + TEST, DIM))
    # As a network's: correlated, since a few directions have most of the variance, and after a ReLU.
    mixing = generator.normal(size=(DIM, DIM)) / np.arange(1, DIM + 1)[:, None]
    x = np.maximum((centres[labels] + 7 * noise) @ mixing, 0).astype(np.float32)
    features = (x[:TRAIN], labels[:TRAIN], x[TRAIN:], labels[TRAIN:])
    record = {"train": TRAIN, "test": TEST, "dim": DIM}
    for name, probe in (("linear", probes.linear_probe), ("knn", probes.knn_probe)):
        start = time.perf_counter()
        outcome = probe(*features)
        record[name] = {"seconds": round(time.perf_counter() - start, 1), "outcome": outcome}
        print(f"{name}: {record[name]['seconds']} s, {outcome}", flush=True)
    if out:
        results.write_json(out, {**record, **results.provenance()})


if __name__ == "__main__":
    main()
