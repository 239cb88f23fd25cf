"""Holds a run against the committed reference, makes it the reference, or shows it as pages.

    python -m dcopy.report check [PRESET] [name=value ...]
    python -m dcopy.report adopt PRESET [name=value ...]
    python -m dcopy.report site [PRESET] [name=value ...]

These are the commands behind `bash run_all.sh check`, `adopt` and `site`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from pathlib import Path

from .. import machine, results
from ..workflow import plan, presets
from ..workflow.outcome import say


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bash run_all.sh", description=__doc__ and __doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    about = {
        "check": "is a run a reproduction of the reference? number by number; exit code 0 if it is",
        "adopt": "make a finished run, or the records in bench or comparison, the reference",
        "site": "make tables, figures and pages anew from result files, without training: those of your own "
        "run, or of the reference where there is none",
    }
    for name, text in about.items():
        command = commands.add_parser(name, help=text, description=text)
        optional = {"nargs": "?", "default": "quick"} if name != "adopt" else {}
        command.add_argument("preset", metavar="PRESET", **optional)
        command.add_argument("options", nargs="*", metavar="name=value", help="as the preset was run with")
        command.add_argument("--results", metavar="DIR", help="folder of all results")
    commands.choices["check"].add_argument("--brief", action="store_true", help="say the verdict alone")
    only = "make the pages alone, with tables and figures as they are"
    commands.choices["site"].add_argument("--pages", action="store_true", help=only)
    return parser.parse_args(arguments)


def check(preset: str, options: list[str], root: Path, brief: bool) -> int:
    """Exit code: 0 where the run reproduces the reference, else 1."""
    from . import plotting, reproduction, reproduction_figures, tables

    folder, reference = root / preset, results.reference() / preset
    runs = [run.name for run in presets.with_options(presets.get(preset), options).runs()]
    record = reproduction.check(folder, reference, runs)
    results.write_json(folder / "check" / "check.json", record)
    shown = reproduction_figures.table(record)
    if len(shown):
        tables.write_table(shown, folder / "check" / "check", record["verdict"])
        plotting.use_style()
        plotting.save_figure(reproduction_figures.figure(record), folder / "check" / "check")
    if not brief:
        say(shown.to_string(index=False) if len(shown) else "no number in common")
        say(f"\ntable and figure: {plan.shortest(folder / 'check')}")
    for name, lines in {
        "other than in the reference": record["differs"],
        "not run": record["not run"],
    }.items():
        if lines:
            say(f"{name}: {'; '.join(lines)}")
    say(record["verdict"])
    return 0 if record["reproduced"] else 1


def adopt(name: str, options: list[str], root: Path) -> int:
    from . import health_limits, readme, reference

    say(reference.adopt(name, options, root))
    if name in (health_limits.SET_ON, *health_limits.JUDGED_ON):
        health_limits.main()
    readme.main()
    say("README.md follows it; `git diff` shows what has changed.")
    return 0


def site(preset: str, options: list[str], root: Path, pages: bool) -> int:
    """Exit code: 0, or 1 where a notebook failed, whose tables and figures are then those from before."""
    from .site import build, remake

    failed = []
    remake.places(root / preset)  # or there is nothing to show
    if not pages:
        with results.locked(root / preset):
            failed = remake.remake(preset, options, root / preset)
    page = build.build(preset, options, root / preset)
    say(f"page: {plan.shortest(page)}{opened_by(page)}")
    return int(bool(failed))


def opened_by(page: Path) -> str:
    """How to open a page where there is a desktop, else ''."""
    command = "open" if sys.platform == "darwin" else "xdg-open"
    desktop = sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    shown = shlex.quote(plan.shortest(page))
    return f" (`{command} {shown}` opens it)" if desktop and shutil.which(command) else ""


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    os.chdir(plan.ROOT)
    root = results.resolve(given.results) if given.results else results.root()
    try:
        if given.command == "check":
            return check(given.preset, given.options, root, given.brief)
        if given.command == "site":
            return site(given.preset, given.options, root, given.pages)
        return adopt(given.preset, given.options, root)
    except (OSError, ValueError) as error:
        print(machine.explain(error), file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")
    sys.exit(main())
