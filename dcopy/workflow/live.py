"""How a person follows a preset: one line that updates in a terminal, and every line in a log."""

from __future__ import annotations

import sys
import time

from .outcome import clock


class Live:
    """Shows the lines that jobs print, each of the form `label | text`.

    Args:
        total: number of jobs.
        done: those that were finished before.
        started: when, in seconds since the epoch.
        stream: where to; one line that updates if it is a terminal, with what is running and the time left.
    """

    def __init__(self, total: int, done: int, started: float, stream=None):
        from tqdm import tqdm  # not where a plan is made only

        self.stream, self.total, self.started, self.running = stream or sys.stdout, total, started, {}
        self.bar = tqdm(
            total=total,
            initial=done,
            file=self.stream,
            disable=not self.stream.isatty(),
            dynamic_ncols=True,
            leave=False,
            bar_format="{n_fmt}/{total_fmt} notebooks, {elapsed}, about {remaining} left{postfix}",
        )

    def show(self, line: str, done: int) -> None:
        if self.bar.disable:
            self.stream.write(f"[{done}/{self.total} {clock(time.time() - self.started)}] {line}")
            self.stream.flush()
            return
        label, _, text = line.rstrip("\n").partition(" | ")
        self.running[label] = text
        if text.startswith(("finished", "failed", "stopped")) or not text:
            self.running.pop(label)
            self.bar.write(f"{label}: {text}" if text else label, file=self.stream)
        self.bar.n = done
        self.bar.set_postfix_str("; ".join(f"{name}: {last}" for name, last in self.running.items()))

    def close(self) -> None:
        self.bar.close()
