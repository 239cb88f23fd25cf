"""Runs a preset: checks the plan, lets Snakemake run the notebooks, follows them, says what came of it.

This is the command behind run_all.sh and takes the same words, as in
`python -m dcopy.workflow.preset quick seeds=5`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from .. import machine, results
from . import cost, plan, presets
from .cluster import Executor, split
from .live import Live
from .mirror import Mirror
from .options import local, parse, processes, threads
from .outcome import complain, cut_off, report, report_failures, say

TRIGGERS = ("mtime", "params", "input")  # of a rerun; mtime counts where the content differs as well


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, 1 where something failed, 2 for a wrong word, 128 + its number for a signal."""
    given = parse(arguments)
    if given.list:
        width = max(map(len, presets.PRESETS))
        for name, preset in presets.PRESETS.items():
            say(f"{name:{width}}  {preset.summary}")
        return 0
    os.chdir(plan.ROOT)
    place = results.resolve(given.results) if given.results else results.root()
    folder = Path(plan.shortest(place / given.preset))
    try:
        ours = [word for word in given.options if given.profile or word.startswith("gpus=")]
        rest = [word for word in given.options if word not in ours]
        given.options, given.words = split(ours)
        given.options += rest
        jobs = plan.jobs(given.preset, given.options, str(folder))
        for job in jobs:
            plan.check(Path("notebooks", f"{job.notebook}.ipynb"), job.parameters)
    except ValueError as error:
        complain(error)
        return 2
    if given.check:
        return 0
    machine.on_signals(stop_at_once)
    try:
        check_models(given)
        given.options += fingerprints(given)
        jobs = plan.jobs(given.preset, given.options, str(folder))
        if given.dry_run:
            return dry_run(given, jobs, folder)
        check_writable(folder)
        with results.locked(folder), mirrored(folder, given.mirror):
            return run(given, jobs, folder)
    except (OSError, ValueError) as error:
        complain(machine.explain(error))
        return 1
    except Stopped as stopped:
        name = signal.Signals(stopped.number).name
        say(f"Stopped by {name}; what was trained is saved. The same command goes on from here.")
        return 128 + stopped.number


def mirrored(folder: Path, place: Path | None):
    """A copy of the folder follows it in `place`, if one was asked for."""
    return Mirror(folder, results.resolve(place) / folder.name) if place else contextlib.nullcontext()


def fingerprints(given: argparse.Namespace) -> list[str]:
    """An option that names the images of a folder of photos, by their size: other images are other runs."""
    runs = presets.with_options(presets.get(given.preset), given.options).runs()
    folders = {run.image_size: run.dataset for run in runs if run.dataset.startswith("folder:")}
    found = {}
    for size, dataset in folders.items():
        command = [sys.executable, "-m", "dcopy.data", dataset, "--image-size", str(size)]
        reading = {"stdout": subprocess.PIPE, "encoding": "utf-8", "errors": "replace", "env": utf8()}
        with subprocess.Popen(command, **reading) as process:
            try:
                for line in process.stdout:
                    say(line, end="")
                    found[size] = line.split()[-1]  # of the last line
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            raise SystemExit(process.returncode)  # it has said why
    return [f"data_fingerprint={found}"] if found else []


def check_models(given: argparse.Namespace) -> None:
    """Raise ValueError where a run needs a model, or a library, that is not here, before anything runs."""
    runs = presets.with_options(presets.get(given.preset), given.options).runs()
    needed = {(run.encoder, run.optimizer) for run in runs if run.library or run.optimizer == "lars"}
    for encoder, optimizer in sorted(needed):
        command = [sys.executable, "-m", "dcopy.models", f"encoder={encoder}", f"optimizer={optimizer}"]
        answer = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", env=utf8())
        if answer.returncode:
            raise ValueError(answer.stderr.strip().splitlines()[-1])


class Stopped(KeyboardInterrupt):
    """A signal asked for it; what was under way is saved."""

    def __init__(self, number: int):
        self.number = number


def stop_at_once(number: int, frame) -> None:
    raise Stopped(number)


def check_writable(folder: Path) -> None:
    """Raises OSError before any work is done, rather than after hours of it."""
    try:
        for part in (folder, folder / ".done", folder / "logs", folder / "notebooks"):
            results.require_writable(part / "a file")
    except OSError as error:
        where = f"cannot write to {machine.explain(ValueError(folder))}: {error.strerror}"
        message = f"{where}; --results DIR chooses another place"
        raise OSError(message) from None


def dry_run(given: argparse.Namespace, jobs: list[plan.Job], folder: Path) -> int:
    todo = unfinished(given, jobs, folder)
    for job in todo:
        say(f"would run {job.name}")
    if todo:
        say_cost(given, jobs, todo)
    return 0


def say_cost(given: argparse.Namespace, jobs: list[plan.Job], todo: list[plan.Job]) -> None:
    say(presets.get(given.preset).summary)
    for line in cost.estimate(jobs, todo, given.preset, given.jobs or 1, threads(given)):
        say(line)
    if given.profile:
        say("Steps are timed on this machine; the nodes of the cluster may be others.")
    if (n := processes(given)) > 1:
        say(f"{n} GPUs share a run: as many GPU hours, in a {n}th of the time at best.")


def run(given: argparse.Namespace, jobs: list[plan.Job], folder: Path) -> int:
    started, code = time.time(), 0
    todo = unfinished(given, jobs, folder)
    if todo:
        executor = Executor.of_profile(given.profile, given.words, folder)
        where = f"Jobs go to {executor.name}" if given.profile else local(given)
        say(f"{where}. Ctrl-C stops; the same command goes on.")
        if left := executor.cancel():
            say(f"{left} jobs of a start that was killed were still there; they have saved and stopped.")
        if any(job.parameters.get("dataset") == "imagenet" for job in todo):  # weeks, so not without a word
            say_cost(given, jobs, todo)
        for job in todo:
            Path(job.marker).unlink(missing_ok=True)
        command = [*snakemake(given, folder), "--keep-going", "--scheduler", "greedy", *executor.arguments]
        for again in reversed(range(1 + executor.retries)):
            code = follow(command, jobs, folder, started, executor)
            left = cut_off(jobs, folder) if code else []
            if not (left and again):
                break
            say(f"{len(left)} jobs met their time limit or lost their node; they go on.")
    report(jobs, folder, started)
    if not code and (results.reference() / given.preset / "runs").is_dir():
        command = [sys.executable, "-m", "dcopy.report", "check", given.preset, *given.options, "--brief"]
        subprocess.run([*command, "--results", folder.parent], env=utf8())  # it says what came of it
    if todo or not (folder / "site" / "index.html").exists():
        make_site(given, folder)
    if code:
        report_failures(jobs, folder, started)  # last, where a person looks
    return code


def make_site(given: argparse.Namespace, folder: Path) -> None:
    """Show the preset as pages. If that fails, one line says so; all else is done and stays."""
    command = [sys.executable, "-m", "dcopy.report", "site", given.preset, *given.options, "--pages"]
    captured = {"capture_output": True, "encoding": "utf-8", "errors": "replace", "env": utf8()}
    answer = subprocess.run([*command, "--results", folder.parent], **captured)
    if answer.returncode:
        reason = (answer.stderr.strip() or f"exit code {answer.returncode}").splitlines()[-1]
        complain(f"no page was made: {reason}; `bash run_all.sh site {given.preset}` tries it again")
    else:
        say(answer.stdout.strip())


def snakemake(given: argparse.Namespace, folder: Path) -> list[str]:
    """The command; Snakemake hands each job its threads as OMP_NUM_THREADS."""
    config = {"preset": given.preset, "options": plan.pack(given.options), "threads": threads(given)}
    config["processes"] = processes(given)
    config["results_dir"] = plan.pack([str(folder)])
    command = [sys.executable, "-m", "snakemake", "--nolock", "--rerun-incomplete"]
    command += ["--snakefile", plan.ROOT / "Snakefile", "--directory", folder]
    command += ["--rerun-triggers", *TRIGGERS]
    if not given.profile:
        command += ["--cores", str(threads(given) * given.jobs)]
    elif given.jobs:
        command += ["--jobs", str(given.jobs)]
    return [*command, "--config", *(f"{name}={value}" for name, value in config.items())]


def unfinished(given: argparse.Namespace, jobs: list[plan.Job], folder: Path) -> list[plan.Job]:
    """The jobs that Snakemake would run."""
    pending = {job.done for job in jobs}
    if finished(jobs):
        command = [*snakemake(given, folder), "--summary"]
        answer = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", env=utf8())
        if answer.returncode:
            reason = (answer.stderr.split("\n\n")[0].strip() or "no reason given").splitlines()[-1]
            raise ValueError(f"Snakemake refuses the plan in {folder}: {reason}")
        rows = [line.split("\t") for line in answer.stdout.splitlines()]  # first the file, last the verdict
        pending = {row[0] for row in rows if row[-1] == "update pending"}
    todo = [job for job in jobs if job.done in pending]
    say(f"{given.preset}: {len(jobs)} notebooks to execute, {len(jobs) - len(todo)} of them done before")
    return todo


def utf8() -> dict[str, str]:
    """The environment of children, which speak UTF-8 to us whatever the terminal does."""
    return os.environ | {"PYTHONUTF8": "1"}


def finished(jobs: list[plan.Job]) -> int:
    """How many of them are."""
    return sum(Path(job.marker).exists() for job in jobs)


def follow(command: list[str], jobs: list[plan.Job], folder: Path, started: float, executor: Executor) -> int:
    """Let Snakemake run, and show each line of the notebooks after the count of jobs and the time.

    Snakemake gets a process group of its own. A signal to this process goes to that whole group
    as Ctrl-C, and from the runners on to their kernels, which save what they have. On a cluster the
    jobs are cancelled, with the same effect.
    """
    chatter = folder / "logs" / "snakemake.log"
    received = []

    def stop(number, frame):
        received.append(number)
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.killpg(process.pid, executor.stop_signal)

    def deaf():  # where a batch system signals every process, Snakemake waits for our Ctrl-C
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)

    with open(chatter, "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            encoding="utf-8",
            errors="replace",
            env=utf8(),
            start_new_session=True,
            preexec_fn=deaf,
        )
        machine.on_signals(stop)
        with contextlib.closing(Live(len(jobs), finished(jobs), started)) as live:
            for line in executor.lines(process, jobs):
                live.show(line, finished(jobs))
        code = process.wait()
        executor.cancel()  # there are some after a stop, or if Snakemake died
    if received:
        raise Stopped(received[0])
    return int(code != 0)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # where the terminal knows no Greek
    sys.exit(main())
