"""Stopping a run on purpose: signals are noted, the step ends, the state is saved, then it stops."""

from __future__ import annotations

import signal
import threading

from .. import machine

TRY_AGAIN = 75  # exit code after `stop_after`


class Interrupted(KeyboardInterrupt):
    """Training was stopped and its state is saved; `exit_code` is for the command line."""

    def __init__(self, reason: str, where: str, folder):
        super().__init__(f"stopped by {reason} {where}; saved in {folder}, the same command continues")
        self.exit_code = TRY_AGAIN if reason == "stop_after" else 128 + signal.Signals[reason]


class StopSignals:
    """While entered, `machine.SIGNALS` are noted in `received` instead of acted upon.

    A second SIGINT acts as usual. Outside the main thread, where Python allows no handlers,
    nothing is changed.
    """

    def __init__(self):
        self.received: str | None = None
        self._previous: dict = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._previous = machine.on_signals(self._note)
        return self

    def _note(self, number: int, frame) -> None:
        if self.received == "SIGINT" and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    def __exit__(self, *error) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
