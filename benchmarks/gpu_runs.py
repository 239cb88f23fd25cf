"""The list behind `benchmarks/gpu.sh`, most important first; each call goes on where the last one stopped.

    python benchmarks/gpu_runs.py --seconds 500

Benchmarks go to results/bench, runs and their probes to results/cifar10, or to those folders of
$DCOPY_RESULTS; notebook 05 finds them there. One process trains one run after the other; each finished
run is probed by a process of its own meanwhile.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import time
from pathlib import Path

from dcopy import data, hardware, results
from dcopy.bench import bench
from dcopy.bench.measure import positive
from dcopy.config import TrainConfig
from dcopy.evaluation import evaluate
from dcopy.training.interrupt import TRY_AGAIN, Interrupted
from dcopy.training.loop import pretrain
from dcopy.training.runs import load_run
from dcopy.workflow.presets import get

BENCHMARKS = {  # file: what differs from the defaults, and whether the step is compiled and captured
    "gpu-bf16-directcopy": ({"precision": "bf16"}, True),
    "gpu-bf16-directpred": ({"precision": "bf16", "method": "directpred"}, True),
    "gpu-fp32-directcopy": ({"precision": "fp32"}, True),
    "gpu-fp16-directcopy": ({"precision": "fp16"}, True),
    "gpu-bf16-directcopy-joint": ({"precision": "bf16", "batchnorm": "joint"}, True),
    "gpu-bf16-directcopy-eager": ({"precision": "bf16"}, False),
    "gpu-fp32-directcopy-eager": ({"precision": "fp32"}, False),
}
STEPS = 50  # of a benchmark
PRESET = get("cifar10")


def plan() -> list[TrainConfig]:
    """Seed by seed the runs of the preset; what bf16 changes; then longer runs.

    Each goes on from the one of fewer epochs. 25 come first, since a machine that is lent may be gone at 100.
    """
    runs = sorted(PRESET.runs(), key=lambda run: run.seed)
    longer = [run for run in runs if run.method in ("directcopy", "directpred") and run.freq == 1]
    return [
        *(dataclasses.replace(run, epochs=25) for run in runs if run.seed == 0),
        *runs,
        *(dataclasses.replace(run, precision="fp32") for run in longer if run.method == "directcopy"),
        *(dataclasses.replace(run, epochs=epochs) for epochs in (300, 500) for run in longer),
    ]


class OutOfTime(Exception):
    """There is more to do."""


def benchmark(left) -> None:
    device, _ = hardware.choose()
    missing = {name: results.root() / f"bench/{name}.json" for name in BENCHMARKS}
    missing = {name: path for name, path in missing.items() if not path.exists()}
    predictors = bench.predictor_costs(bench.DIMS, device, seconds=0.1) if missing else []
    for name, path in missing.items():
        if left() < 60:
            raise OutOfTime
        fields, compile = BENCHMARKS[name]
        config = TrainConfig(dataset="cifar10", **fields)
        step = bench.step_parts(config, device, STEPS, compile=compile)
        record = bench.record(config, device, step, predictors)
        results.write_json(path, record)
        bench.print_tables(record)


def train(runs: list[TrainConfig], folder: Path, left, probes: list) -> None:
    """Raises OutOfTime or Interrupted, with all saved, where time runs out."""
    images = data.load("cifar10").train
    for config in runs:
        if left() < 10:
            raise OutOfTime
        run = pretrain(config, folder, images=images, stop_after=left())
        print(f"{config.name}: {run.result['seconds']:.0f} s", flush=True)
        if not (run.folder / "probe.json").exists():
            probes.append(begin_probe(run.folder))


def begin_probe(folder: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, __file__, "--probe", str(folder)])


def probe(folder: Path) -> None:
    run = load_run(folder)
    *_, own = evaluate.probe_runs([run], data.load("cifar10"), folder.parent)
    print(f"{run.config.name}: {own['linear']['accuracy']:.2%} in {own['seconds']:.0f} s", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__ and __doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=500, help="then stop, to go on at the next call")
    parser.add_argument("--only", choices=["benchmarks", "runs"], help="this part of the list")
    parser.add_argument("--width", type=positive, help="of the encoder, for a trial")
    parser.add_argument("--epochs", type=positive, help="of every run, for a trial")
    parser.add_argument("--probe", type=Path, metavar="FOLDER", help="probe this finished run, and no more")
    args = parser.parse_args(arguments)
    if args.probe:
        probe(args.probe)
        return 0
    ends = time.monotonic() + args.seconds
    trial = {"width": args.width, "epochs": args.epochs}
    overrides = {name: value for name, value in trial.items() if value is not None}
    runs = list(dict.fromkeys(dataclasses.replace(run, **overrides) for run in plan()))
    folder = results.root() / ("trial/runs" if overrides else "cifar10/runs")
    probes: list[subprocess.Popen] = []

    def left() -> float:
        return ends - time.monotonic()

    try:
        if not overrides and args.only != "runs":
            benchmark(left)
        if args.only != "benchmarks":
            train(runs, folder, left, probes)
        for process in probes:
            process.wait(max(0, left()))
    except (OutOfTime, Interrupted, subprocess.TimeoutExpired) as stop:
        print(str(stop) or "Out of time; the same command goes on.")
        return getattr(stop, "exit_code", TRY_AGAIN)
    finally:
        for process in probes:
            process.kill()
    if any(process.returncode for process in probes):
        print("A probe failed; its lines are above.")
        return 1
    print("All is done.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
