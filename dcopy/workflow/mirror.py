"""A second copy of results, as on a mounted Drive: it comes back after a lost session, and stops nothing.

Runs write to the local disk alone. A thread copies what has changed, tries again what failed, and is left
behind where the mount hangs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from pathlib import Path

from .. import machine
from ..config import require
from .outcome import say

LEFT_OUT = {".snakemake", ".lock", "features", "checkpoint.previous.safetensors"}
LAST = "checkpoint.safetensors"  # of a folder, so that metrics.jsonl is never behind it


class Mirror:
    """While entered, `remote` follows `local`; on entering, what `local` lacks is brought from there.

    Args:
        local: the folder of a preset.
        remote: its copy, in a folder that is there.
        seconds: between two rounds of copying.
        patience: seconds that a start waits for what is to come back, and an end for the last round.

    Raises:
        ValueError: the folder that `remote` shall lie in is not there.
    """

    def __init__(self, local: Path, remote: Path, seconds: float = 30, patience: float = 300):
        there = remote.parent.is_dir()
        require("mirror", str(remote.parent), there, "a folder; mount it first, or make it")
        self.local, self.remote, self.seconds, self.patience = local, remote, seconds, patience
        self.sent: dict[Path, tuple[int, int]] = {}  # file: time and size of what was copied
        self.lost = False
        self.ended = threading.Event()

    def __enter__(self) -> Mirror:
        restoring = self._start(self.restore)
        restoring.join(self.patience)
        if restoring.is_alive():
            say(f"{self.remote} does not answer; nothing comes back from there")
        self.thread = self._start(self._follow)
        return self

    def __exit__(self, *error) -> None:
        self.ended.set()
        self.thread.join(self.patience)
        if self.lost or self.thread.is_alive():
            say(f"not everything was copied to {self.remote}; it is in {self.local}")

    def _start(self, work) -> threading.Thread:
        thread = threading.Thread(target=work, daemon=True)  # one that hangs dies with the process
        thread.start()
        return thread

    def _follow(self) -> None:
        while not self.ended.wait(self.seconds):
            self.send()
        self.send()

    def restore(self) -> None:
        """Bring back the files that are missing here."""
        try:
            found = [(path, self.local / path) for path in files(self.remote)]
            missing = [(path, target) for path, target in found if not target.exists()]
            for path, target in missing:
                copy(self.remote / path, target)
            if missing:
                say(f"{len(missing)} files have come back from {self.remote}")
        except OSError as error:
            say(f"nothing comes back from {self.remote}: {machine.explain(error)}")

    def send(self) -> None:
        """Copy what is new or has changed; what fails is left for the next round."""
        try:
            for path in files(self.local):
                self._send(path)
        except OSError as error:
            if not self.lost:
                say(f"{self.remote} is lost ({machine.explain(error)}); work goes on, copies are tried again")
            self.lost = True
            return
        if self.lost:
            say(f"{self.remote} is back, and has everything")
        self.lost = False

    def _send(self, path: Path) -> None:
        try:
            found = (self.local / path).stat()
        except FileNotFoundError:  # it was for a moment
            return
        state = found.st_mtime_ns, found.st_size
        if self.sent.get(path) == state:
            return
        if path.name == LAST:
            self._send_checkpoint(path)
        else:
            self._copy(self.local / path, path)
        self.sent[path] = state

    def _send_checkpoint(self, path: Path) -> None:
        """That of this moment, after the other files of its folder; training puts another in its place."""
        folder = self.local / path.parent
        held = folder / f".{path.name}.held"
        held.unlink(missing_ok=True)
        os.link(folder / path.name, held)
        try:
            for other in files(folder):
                if other.name != LAST:
                    self._send(path.parent / other)
            self._copy(held, path)
        finally:
            held.unlink()

    def _copy(self, source: Path, path: Path) -> None:
        if not self.remote.parent.is_dir():  # what is mounted there is gone; nothing is written in its place
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.remote.parent))
        copy(source, self.remote / path)


def files(folder: Path) -> list[Path]:
    """What is to be copied, relative to the folder, the oldest first: Snakemake looks at which is newer."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        for path in (Path(place, name) for name in names if name not in LEFT_OUT):
            if not path.name.endswith((".tmp", ".held", ".part")):
                with contextlib.suppress(FileNotFoundError):  # it was for a moment
                    found.append((path.stat().st_mtime_ns, path.relative_to(folder)))
    return [path for _, path in sorted(found)]


def copy(source: Path, target: Path) -> None:
    """A whole file or none, with its time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    shutil.copy2(source, part)
    part.replace(target)
