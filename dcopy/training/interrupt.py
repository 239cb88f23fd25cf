"""Stopping a run on purpose: signals are noted, the step ends, the state is saved, then it stops.

Where torchrun has started several processes, the first that stops says why.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from .. import machine

TRY_AGAIN = 75  # exit code after `stop_after`
ORPHANED = "the end of torchrun"
REASONS = ("stop_after", ORPHANED, *machine.SIGNALS)


def by_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def orphaned(signalled: bool = False) -> bool:
    """Whether the torchrun that started this process is gone.

    A process that it forked gets SIGINT as soon as the thread that did so has ended; where one came, the
    others have a moment to end, too.
    """
    ends = time.monotonic() + 0.2 * signalled
    while parent is not None and os.getppid() == parent and time.monotonic() < ends:
        time.sleep(0.01)
    return parent is not None and os.getppid() != parent


def is_first() -> bool:
    """Whether this is the process that speaks where all would say the same."""
    return not by_torchrun() or os.environ["RANK"] == "0"


# Once the processes of a run have joined: torchrun's number, and where they leave word for each other.
parent = store = None


def say(text: str) -> None:
    """Print a line to stderr, unless another process of this run has already said what happened."""
    try:
        speak = is_first() if store is None or orphaned() else store.add("said", 1) == 1
    except RuntimeError:  # the store was another machine's
        speak = is_first()
    if speak:
        print(text, file=sys.stderr)


class Interrupted(KeyboardInterrupt):
    """Training was stopped and its state is saved; `exit_code` is for the command line."""

    def __init__(self, reason: str, where: str, folder):
        super().__init__(f"stopped by {reason} {where}; saved in {folder}, the same command continues")
        number = signal.SIGTERM if reason == ORPHANED else getattr(signal, reason, 0)
        self.exit_code = 128 + number if number else TRY_AGAIN


class StopSignals:
    """While entered, `machine.SIGNALS` are noted in `received` instead of acted upon.

    A second SIGINT acts as usual, but not under torchrun, which hands Ctrl-C on to processes that the
    terminal has already sent it to. Outside the main thread, where Python allows no handlers,
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
        if self.received == "SIGINT" and number == signal.SIGINT and not by_torchrun():
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    def __exit__(self, *error) -> None:
        if error[0] is not None and by_torchrun():
            return  # as soon as one process ends, torchrun asks the others to, which have yet to say why
        for number, handler in self._previous.items():
            signal.signal(number, handler)
