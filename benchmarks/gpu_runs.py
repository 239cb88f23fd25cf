"""The list behind `benchmarks/gpu.sh`, most important first; each call goes on where the last one stopped.

    python benchmarks/gpu_runs.py --seconds 500

Benchmarks go to results/bench, runs and their probes to results/cifar10, or to those folders of
$DCOPY_RESULTS; notebook 05 finds them there.
One process trains one run after the other, so compiling is paid for once a call.
"""

from __future__ import annotations

import argparse
import sys
import time

from dcopy import data, results
from dcopy.bench import bench
from dcopy.bench.measure import positive
from dcopy.config import TrainConfig
from dcopy.evaluation import evaluate
from dcopy.training.interrupt import TRY_AGAIN, Interrupted
from dcopy.training.loop import pretrain
from dcopy.workflow.presets import PAPER_METHODS

SEEDS = (0, 1)
BENCHMARKS = [
    (precision, method) for precision in ("bf16", "fp32") for method in ("directcopy", "directpred")
]
LONGER = [{"method": "directcopy"}, {"method": "directpred"}]
GROUPS = [  # each is trained, then probed, before the next one
    [{"epochs": 100, "precision": "bf16", **fields} for fields in PAPER_METHODS],
    [{"epochs": 100, "precision": "fp32", "method": "directcopy"}],  # what bf16 changes
    *([{"epochs": epochs, "precision": "bf16", **fields} for fields in LONGER] for epochs in (300, 500)),
]
PROBE_SECONDS = 120  # a probe is not begun with less time left


class OutOfTime(Exception):
    """There is more to do."""


def benchmark() -> None:
    for precision, method in BENCHMARKS:
        out = results.root() / f"bench/gpu-{precision}-{method}.json"
        fields = ["dataset=cifar10", f"precision={precision}", f"method={method}"]
        if not out.exists():
            bench.main(["--config", *fields, "--steps", "50", "--out", str(out)])


def train(group: list[dict], images: data.ImageData, folder, left, overrides: dict) -> list:
    """The finished runs of a group; OutOfTime or Interrupted, with all saved, where time runs out."""
    finished = []
    for seed in SEEDS:
        for fields in group:
            config = TrainConfig(dataset="cifar10", seed=seed, **fields | overrides)
            if left() < 10:
                raise OutOfTime
            finished.append(pretrain(config, folder, images=images.train, stop_after=left()))
            print(f"{config.name}: {finished[-1].result['seconds']:.0f} s", flush=True)
    return finished


def probe(finished: list, images: data.ImageData, folder, left, enough: float) -> None:
    for run in finished:
        if (run.folder / "probe.json").exists():
            continue
        if left() < enough:
            raise OutOfTime
        *_, own = evaluate.probe_runs([run], images, folder)
        print(f"{run.config.name}: {own['linear']['accuracy']:.2%} in {own['seconds']:.0f} s", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__ and __doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=500, help="then stop, to go on at the next call")
    parser.add_argument("--width", type=positive, help="of the encoder, for a trial")
    parser.add_argument("--epochs", type=positive, help="of every run, for a trial")
    args = parser.parse_args(arguments)
    ends = time.monotonic() + args.seconds
    trial = {"width": args.width, "epochs": args.epochs}
    overrides = {name: value for name, value in trial.items() if value is not None}
    folder = results.root() / ("trial/runs" if overrides else "cifar10/runs")

    def left() -> float:
        return ends - time.monotonic()

    try:
        if not overrides:
            benchmark()
        images = data.load("cifar10")
        for group in GROUPS:
            finished = train(group, images, folder, left, overrides)
            probe(finished, images, folder, left, 0 if overrides else PROBE_SECONDS)
    except (OutOfTime, Interrupted) as stop:
        print(stop or "Out of time; the same command goes on.")
        return getattr(stop, "exit_code", TRY_AGAIN)
    print("All is done.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
