"""What a notebook prints, line by line: to its log, and with a label to the terminal."""

from __future__ import annotations

import contextlib


class Lines:
    """A file for papermill to write a kernel's output to: whole lines, to the log and to the terminal."""

    def __init__(self, log, label: str = ""):
        self.log, self.label, self.rest = log, label, ""

    def write(self, text: str) -> None:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            line = line.rstrip("\r").rpartition("\r")[2]  # of a bar that redraws itself, the last state
            note(self.log, line)
            if self.label:
                say(self.label, line)

    def flush(self) -> None:
        pass  # every line is flushed as it is written

    def close(self) -> None:
        if self.rest:
            self.write("\n")


def note(log, line: str) -> None:
    with contextlib.suppress(OSError):  # a full disk: the terminal has the line, and results raise
        log.write(f"{line}\n".encode("utf-8", "backslashreplace"))


def say(label: str, line: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody reads any more: `stop_when_unread` acts on it
        print(f"{label} | {line}", flush=True)
