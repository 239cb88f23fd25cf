"""Runs one notebook: papermill, with this interpreter as the kernel, and nothing half done.

    python -m dcopy.workflow.notebook notebooks/01_linear_theory.ipynb --results-dir results/quick -p grid=40

While the notebook runs it is `<name>.running.ipynb`. Only when its last cell has run does it become
`<name>.ipynb`, and last of all the marker is written by which the workflow knows that it is finished.
If a cell fails, what there is is kept as `<name>.failed.ipynb`.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import select
import signal
import stat
import sys
import threading
import time
from datetime import datetime, timezone
from pathlib import Path

import zmq

from .. import machine, results
from . import plan
from .kernel import Kernel
from .lines import Lines, note, say
from .shorten import shorten

# nbformat brings jsonschema, which would spend a second of every notebook on building a parser for
# internationalized web addresses. There are none in a notebook's format.
sys.modules.setdefault("rfc3987_syntax", None)

import nbformat  # noqa: E402
import papermill  # noqa: E402
from nbclient.exceptions import DeadKernelError  # noqa: E402

START_SECONDS = 100  # for a kernel to answer, all attempts; a cell may take as long as it likes
STOP_SECONDS = 60  # for a cell to save its state after Ctrl-C
STARTS = 3  # attempts, as long as no cell has run
AGAIN_SECONDS = 0.5  # between two signals that are not one, sent to a process and to all of them


class Failure(Exception):
    """The notebook did not run to its end; the message is one line for a person."""


class Stopped(Exception):
    """By the signal of this number, once the notebook has come to a halt."""


class Watch:
    """How far the notebook is, and whether it shall stop."""

    def __init__(self):
        self.process, self.cells = None, 0
        self.stopping = 0  # the number of the signal
        self.interrupted = 0.0  # when SIGINT came first

    def before_cell(self, cell, cell_index) -> None:
        if self.stopping:  # the signal came between two cells, where a kernel ignores it
            raise Stopped(self.stopping)
        self.process = Kernel.latest.provisioner.process
        self.cells += 1

    def on_signal(self, number, frame) -> None:
        """Pass the wish on to the cell, so that training can save its state; a second Ctrl-C insists."""
        now, first = time.monotonic(), not self.stopping
        self.stopping = self.stopping or number
        if self.process is None:  # no cell has run: nothing to save
            raise KeyboardInterrupt
        if number == signal.SIGINT and self.interrupted and now - self.interrupted > AGAIN_SECONDS:
            self.process.kill()
        elif number == signal.SIGINT:
            self.interrupted = self.interrupted or now
        if first:
            self.process.send_signal(signal.SIGINT)
            insist = threading.Timer(STOP_SECONDS, self.process.kill)
            insist.daemon = True
            insist.start()

    def cause_of_death(self) -> str:
        code = self.process.poll() if self.process else None
        if code is None or code >= 0:
            return f"exit code {code}"
        hint = ", as when memory runs out" if code == -signal.SIGKILL else ""
        return signal.Signals(-code).name + hint


def stop_when_unread() -> None:
    """If stdout is a pipe and its reader dies (kill -9 of the workflow), stop as with Ctrl-C."""
    if stat.S_ISFIFO(os.fstat(1).st_mode):
        poll = select.poll()
        poll.register(1, 0)  # wakes on nothing but an error or a hang-up
        poll.poll()
        os.kill(os.getpid(), signal.SIGINT)


def run(notebook: Path, results_dir: str, parameters: dict, name: str, label: str) -> None:
    """Execute a notebook into `results_dir`, from the project's root.

    Args:
        notebook: the source, which stays as it is.
        results_dir: gets notebooks/<name>.ipynb, logs/<name>.log and .done/<name>.json.
        parameters: for the cell tagged `parameters`; checked already.
        name: of the job.
        label: before each line in the terminal.

    Raises:
        Failure: a cell raised, or the kernel died or did not start.
        Stopped: by a signal.
    """
    started = time.monotonic()
    job = plan.Job(name, notebook.stem, parameters, label, results_dir)
    final = Path(results_dir, "notebooks", f"{name}.ipynb")
    running, failed = final.with_suffix(".running.ipynb"), final.with_suffix(".failed.ipynb")
    for path in (Path(job.marker), final, Path(job.log)):
        path.parent.mkdir(parents=True, exist_ok=True)
    Path(job.marker).unlink(missing_ok=True)
    with open(job.log, "wb", buffering=0) as log:
        say(label, "starts")
        try:
            with contextlib.closing(Lines(log, label)) as stdout, contextlib.closing(Lines(log)) as stderr:
                executed = _execute(notebook, running, parameters, stdout, stderr)
            seconds = round(time.monotonic() - started, 1)
            _keep(job, notebook, executed, final, seconds)
            running.unlink(missing_ok=True)
            failed.unlink(missing_ok=True)
        except (Failure, Stopped) as error:
            if running.exists():
                running.replace(failed)
            if isinstance(error, Failure):
                final.unlink(missing_ok=True)  # of an earlier run, which this one no longer confirms
            last = "stopped" if isinstance(error, Stopped) else f"failed {error}"
            note(log, last)
            say(label, last)
            raise
        note(log, f"finished in {seconds} s")
        say(label, f"finished in {seconds} s")


class Files:
    """The notebook's files as papermill sees them: their names mean nothing to it.

    A path of its own may hold braces, which it would fill in, or bytes that are not UTF-8.
    """

    SOURCE, RUNNING = "dcopy:source.ipynb", "dcopy:running.ipynb"

    def __init__(self, source: Path, running: Path):
        self.source, self.running = source, running
        papermill.iorw.papermill_io.register("dcopy:", self)

    def read(self, path: str) -> str:
        return self.source.read_text(encoding="utf-8")

    def write(self, text: str, path: str) -> None:
        self.running.write_text(storable(text), encoding="utf-8")

    def pretty_path(self, path: str) -> str:
        return path


def storable(text: str) -> str:
    r"""JSON with bytes of file names that are not UTF-8 escaped, as \udce9, which reads back as it was."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _execute(notebook: Path, output: Path, parameters: dict, stdout: Lines, stderr: Lines):
    """The executed notebook, or Failure or Stopped. A kernel that does not start gets another chance."""
    watch = Watch()
    machine.on_signals(watch.on_signal)
    Files(notebook, output)
    deadline = time.monotonic() + START_SECONDS
    threading.Thread(target=stop_when_unread, daemon=True).start()
    for attempt in range(1, STARTS + 1):
        try:
            return papermill.execute_notebook(
                Files.SOURCE,
                Files.RUNNING,
                parameters,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                start_timeout=max(5, int(deadline - time.monotonic())),
                stdout_file=stdout,
                stderr_file=stderr,
                kernel_manager_class=Kernel,
                on_cell_execute=watch.before_cell,
                iopub_timeout=START_SECONDS,
            )
        except papermill.PapermillExecutionError as error:
            if watch.stopping:
                raise Stopped(watch.stopping) from None
            reason = next(iter(error.evalue.strip().splitlines()), "")
            raise Failure(f"in cell [{error.exec_count}]: {error.ename}: {reason}") from None
        except (KeyboardInterrupt, Stopped):
            raise Stopped(watch.stopping or signal.SIGINT) from None
        except (RuntimeError, OSError, zmq.ZMQError) as error:
            if watch.stopping:
                raise Stopped(watch.stopping) from None
            reason = machine.explain(error)
            if isinstance(error, DeadKernelError):
                reason = f"the kernel died ({watch.cause_of_death()})"
            if watch.cells:
                raise Failure(f"in cell [{watch.cells}]: {reason}") from None
            if attempt == STARTS or time.monotonic() > deadline - 10:
                raise Failure(f"because no kernel starts: {reason}") from None
            time.sleep(random.uniform(1, 3))


def _keep(job: plan.Job, notebook: Path, executed, final: Path, seconds: float) -> None:
    """Write the executed notebook, and last of all the marker."""
    executed.metadata.papermill |= {"input_path": str(notebook), "output_path": str(final)}
    shorten(executed)
    record = {"notebook": job.notebook, "parameters": job.parameters, "seconds": seconds}
    record["finished"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    record["commit"] = results.commit()
    try:
        results.write_text(final, storable(nbformat.writes(executed)) + "\n")
        results.write_json(job.marker, record)
    except OSError as error:
        raise Failure(f"in writing its results: {machine.explain(error)}") from None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dcopy.workflow.notebook", description="Run one notebook."
    )
    parser.add_argument("notebook", type=Path)
    parser.add_argument("-p", dest="values", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--results-dir", default="results/quick", help="default: %(default)s")
    parser.add_argument("--name", help="of the executed copy and the log; default: the notebook's")
    parser.add_argument("--label", help="before each line of output; default: the name")
    given = parser.parse_args(arguments)
    notebook = given.notebook.resolve()
    try:
        known = plan.declared(notebook)
        parameters = {"results_dir": given.results_dir} if "results_dir" in known else {}
        for item in given.values:
            name, equals, text = item.partition("=")
            if not equals:
                raise ValueError(f"-p {item} is not of the form NAME=VALUE")
            parameters[name] = known[name].parse(text) if name in known else text
        plan.check(notebook, parameters)
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # all it says of failures, we say
    os.environ["DCOPY_PROGRESS"] = "lines"
    # from where the project is, so that no path in the executed copy depends on the caller
    os.chdir(results.project_root())
    name = given.name or notebook.stem
    label = given.label or name
    try:
        run(Path(os.path.relpath(notebook)), given.results_dir, parameters, name, label)
    except Failure:
        return 1
    except Stopped as stopped:
        return 128 + stopped.args[0]
    except OSError as error:  # before its first cell, or in clearing up
        say(label, f"failed: {machine.explain(error)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # where the terminal knows no Greek
    sys.exit(main())
