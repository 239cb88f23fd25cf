"""How long the probes take on features of CIFAR-10's size.

    python benchmarks/probes.py cifar10 --out results/bench/probes.json

Goals on two cores: at most 5 minutes for the linear probe, 1 minute for k-NN, and 3 minutes for all probes of
raw pixels. The made-up features are correlated, as a network's are, and so hard on the solver.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from dcopy import data, results
from dcopy.bench.measure import out_file
from dcopy.evaluation import probes
from dcopy.evaluation.evaluate import evaluate
from dcopy.evaluation.features import RawPixels

TRAIN, TEST, DIM, CLASSES = 50_000, 10_000, 512, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__ and __doc__.splitlines()[0])
    parser.add_argument("dataset", nargs="?", help="whose raw pixels take all probes, such as cifar10")
    parser.add_argument("--out", type=out_file, help="JSON file to write")
    given = parser.parse_args()
    try:
        images = data.load(given.dataset) if given.dataset else None
    except ValueError as error:
        parser.error(str(error))
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
    if images:
        outcome = evaluate(RawPixels(), images)
        record["pixels"] = {
            "dataset": given.dataset,
            "seconds": outcome["seconds"],
            "outcome": outcome["linear"],
        }
        print(f"raw pixels of {given.dataset}: {outcome['seconds']} s, {outcome['linear']}")
    if given.out:
        results.write_json(given.out, {**record, **results.provenance()})


if __name__ == "__main__":
    main()
