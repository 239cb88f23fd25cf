"""The kernel that a notebook runs in: this interpreter, and nothing of the user's own settings."""

from __future__ import annotations

import contextlib
import re
import socket
import sys
import tempfile
from pathlib import Path

from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec


def socket_folder() -> tempfile.TemporaryDirectory | None:
    """A folder of its own in which sockets can be made: with a short, plain path, on a local disk."""
    for place in (tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"):
        if not re.fullmatch(r"[\w/.+-]+", place, re.ASCII):
            continue
        with contextlib.suppress(OSError):
            folder = tempfile.TemporaryDirectory(prefix="dcopy-", dir=place)
            with socket.socket(socket.AF_UNIX) as trial:
                trial.bind(f"{folder.name}/kernel-ipc-1000")  # too long a path is an OSError
            Path(folder.name, "trial").write_bytes(bytes(4096))  # and so is a full disk
            return folder
    return None


class Kernel(AsyncKernelManager):
    """A kernel of this interpreter, whatever kernel the notebook names.

    It listens on sockets in a folder of its own, where there can be some: with TCP, two notebooks
    that start at the same moment may be given the same port.
    """

    latest: Kernel | None = None  # papermill makes the manager itself; this is how we meet it

    def __init__(self, **options):
        self.sockets = socket_folder()
        self.folder = self.sockets or tempfile.TemporaryDirectory(prefix="dcopy-")
        options["connection_file"] = f"{self.folder.name}/kernel.json"
        if self.sockets:
            options["transport"] = "ipc"
        super().__init__(**options)
        Kernel.latest = self

    @property
    def kernel_spec(self) -> KernelSpec:
        """Without the user's start-up files and history: what a notebook gives depends on it alone."""
        options = ["-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        argv = [sys.executable, *options, "--HistoryManager.enabled=False"]
        own = {"IPYTHONDIR": self.folder.name, "PYTHONSTARTUP": "", "MPLBACKEND": ""}
        return KernelSpec(argv=argv, env=own, display_name="Python 3", language="python")
