"""What a preset's jobs will cost, before they start: estimated from steps that are timed now."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections import Counter

from .. import results
from ..config import TrainConfig
from . import plan
from .outcome import clock

# What hardly changes a step's time: it is measured once for all values of these.
ALIKE = ("method", "seed", "epochs", "lr", "lr_schedule", "warmup", "momentum", "weight_decay", "decay",
         "ema", "ema_schedule", "target_start", "rho", "eps", "alpha", "normalize", "freq", "predictor_bias",
         "predictor_symmetric")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Training:
    """The runs of one 03_pretrain job: a configuration, and how many seeds."""

    config: TrainConfig
    seeds: int
    epochs: int  # those of the runs that they go on from left out

    @property
    def alike(self) -> TrainConfig:
        """The configuration that is timed for this one."""
        fields = {name: value for name, value in self.config.to_dict().items() if name not in ALIKE}
        return TrainConfig.from_dict(fields)


def trainings(jobs: list[plan.Job], todo: list[plan.Job]) -> list[Training]:
    """Of those jobs to do that train."""
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    epochs = {job.done: job.parameters.get("epochs") for job in jobs}
    found = []
    for job in todo:
        if job.notebook == "03_pretrain":
            config = {name: value for name, value in job.parameters.items() if name in fields}
            own = config["epochs"] - epochs.get(job.after, 0)
            found.append(Training(TrainConfig.from_dict(config), len(job.parameters["seeds"]), own))
    return found


def measure(configs: list[TrainConfig], threads: int) -> dict[TrainConfig, dict]:
    """What each takes on this machine, see `dcopy.bench.cost`.

    Raises:
        OSError: it cannot be measured; the message says why.
    """
    command = [sys.executable, "-m", "dcopy.bench.cost"]
    answer = subprocess.run(
        command,
        input=json.dumps([config.to_dict() for config in configs]),
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUTF8": "1"},
    )
    if answer.returncode:
        raise OSError(next(iter(answer.stderr.strip().splitlines()[-1:]), f"exit code {answer.returncode}"))
    return dict(zip(configs, json.loads(answer.stdout), strict=True))


def estimate(
    jobs: list[plan.Job], todo: list[plan.Job], preset: str, at_a_time: int, threads: int
) -> list[str]:
    """Lines for a person: jobs, images, steps; hours, memory and disk, and where these come from."""
    notebooks = Counter(job.notebook for job in todo)
    lines = [f"jobs: {len(todo)} (" + ", ".join(f"{n} × {name}" for name, n in notebooks.items()) + ")"]
    wanted = trainings(jobs, todo)
    if wanted:
        try:
            taken = measure(list(dict.fromkeys(training.alike for training in wanted)), threads)
        except OSError as error:
            return [*lines, f"no estimate of time, memory and disk: no step could be timed here ({error})"]
        lines += training_lines(wanted, taken, at_a_time)
    return lines + notebook_lines(todo, preset)


def training_lines(wanted: list[Training], taken: dict[TrainConfig, dict], at_a_time: int) -> list[str]:
    cost = [taken[training.alike] for training in wanted]
    steps = [own["steps"] * one.epochs * one.seeds for one, own in zip(wanted, cost, strict=True)]
    hours = [n * own["seconds"] / 3600 for n, own in zip(steps, cost, strict=True)]
    disk = sum(own["disk"] * one.seeds for one, own in zip(wanted, cost, strict=True))
    images = {one.config.dataset: own["images"] for one, own in zip(wanted, cost, strict=True)}
    timed = "; ".join(
        f"{short(1e3 * own['seconds'])} ms a step of {alike.batch_size} images, "
        f"from three of {own['trial']} timed now on {own['device']} in {own['precision']}"
        for alike, own in taken.items()
    )
    time = f"{short(sum(hours))} hours of one job at a time"
    if at_a_time > 1:
        time += f", {short(max(sum(hours) / at_a_time, *hours))} with {at_a_time}"
    seeds = sum(one.seeds for one in wanted)
    return [
        "images: " + ", ".join(f"{n:,} of {dataset}" for dataset, n in images.items()),
        f"steps: {sum(steps):,} in {seeds} runs",
        f"time of training: {time}, longest {short(max(hours))}",
        f"memory of a job: {short(max(own['memory'] for own in cost) / 1e9)} GB",
        f"disk: {short(disk / 1e9)} GB of checkpoints, and the data set itself"
        + ", and 22 to 40 GB of its images made smaller" * ("imagenet" in images),
        f"These are estimates: {timed}.",
    ]


def notebook_lines(todo: list[plan.Job], preset: str) -> list[str]:
    """Time of the other notebooks, from the copies that were executed for the reference."""
    place = plan.ROOT / "results" / "reference" / preset / "notebooks"
    seconds, unknown = [], []
    for notebook, n in Counter(job.notebook for job in todo if job.notebook != "03_pretrain").items():
        records = [results.read_json(path) for path in place.glob(f"{notebook}*.ipynb")]
        found = [record["metadata"].get("papermill", {}).get("duration") for record in records]
        found = [duration for duration in found if duration]
        if found:
            seconds.append(n * statistics.mean(found))
        else:
            unknown.append(notebook)
    lines = []
    if seconds:
        where = f"results/reference/{preset}/notebooks, on the machine that ran them"
        lines.append(f"time of the other notebooks: {clock(sum(seconds))}, as in {where}")
    if unknown:
        lines.append(f"not estimated, since no executed copy tells: {', '.join(unknown)}")
    return lines


def short(value: float) -> str:
    """Two digits or more, as an estimate deserves.

    >>> short(0.123), short(11266.4)
    ('0.12', '11,266')
    """
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
