"""How a run is followed: a bar where somebody watches, a line per epoch everywhere."""

from __future__ import annotations

import os
import sys
import time

from tqdm.auto import tqdm


def wants_bar() -> bool:
    """A bar in a terminal or a live notebook; none in a log file or where papermill runs the cell.

    The environment variable DCOPY_PROGRESS=lines turns bars off; the notebook runner sets it.
    """
    if os.environ.get("DCOPY_PROGRESS") == "lines":
        return False
    return sys.stderr.isatty() or "ipykernel" in sys.modules


class Progress:
    """Follows a training loop that has `epoch`, `step`, `steps`, `config` and `runs_on`, a line."""

    def __init__(self, loop, show: bool):
        self.loop, self.show = loop, show
        self.total = loop.config.epochs * loop.steps
        self.first = loop.epoch * loop.steps + loop.step
        self.started = time.monotonic()

    def __enter__(self) -> Progress:
        self.bar = tqdm(
            desc=self.loop.config.label,
            total=self.total,
            initial=self.first,
            unit="step",
            leave=False,
            disable=not (self.show and wants_bar()),
        )
        self.say(f"{self.loop.config.label} on {self.loop.runs_on}")
        return self

    def say(self, line: str) -> None:
        if self.show:
            self.bar.write(line, file=sys.stdout)
            sys.stdout.flush()

    def step(self) -> None:
        self.bar.update()

    def epoch(self, record: dict) -> None:
        """One line: epoch, loss, health, images per second since the start, wait for data, time remaining."""
        done = record["epoch"] * self.loop.steps - self.first
        seconds = time.monotonic() - self.started
        rate = done * self.loop.config.batch_size / seconds
        left = (self.total - self.first - done) * seconds / done
        waited = f"{record['data_wait']:.1%} waiting for data  " if "data_wait" in record else ""
        self.say(
            f"epoch {record['epoch']}/{self.loop.config.epochs}  loss {record['loss']:.3f}  "
            f"std {record['projection_std']:.2f}  rank {record['effective_rank']:.1f}  "
            f"{record['verdict']}  {rate:,.0f} images/s  {waited}{left:.0f} s left"
        )

    def __exit__(self, *error) -> None:
        self.bar.close()
