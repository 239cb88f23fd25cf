"""Pretrain from the shell: `python -m dcopy dataset=digits method=directcopy epochs=60`.

Several numbers, as in epochs=100,300, make a run for each, which goes on from the one before.
Long runs are best started here: no browser needs to stay open, and the same command continues a
run that was stopped (exit code 128 + the signal, or 75, see `dcopy.training.interrupt`). On several GPUs
the same run is `torchrun --nproc-per-node 8 -m dcopy ...`, or `--processes 8`.
"""

from __future__ import annotations

import argparse
import sys

from . import hardware, results
from .config import TrainConfig, parse_options
from .machine import explain, shown
from .training.interrupt import Interrupted, is_first, say


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dcopy", description=__doc__ and __doc__.splitlines()[0])
    parser.add_argument("options", nargs="*", metavar="name=value", help="a field of dcopy.TrainConfig")
    parser.add_argument("--out-dir", default="runs", help="folder of run folders (default: runs)")
    parser.add_argument("--data-root", help="where data sets lie (default: DCOPY_DATA or ~/.cache/dcopy)")
    parser.add_argument("--skip-bad", action="store_true", help="leave out unreadable files of a folder")
    parser.add_argument("--device", help=hardware.WORDS)
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="compile the step, use CUDA graphs (default: on a GPU)",
    )
    parser.add_argument("--checkpoint-minutes", type=float, default=5.0)
    parser.add_argument("--stop-after", type=float, metavar="SECONDS", help="then save and exit with 75")
    parser.add_argument("--processes", type=int, default=1, help="as torchrun --nproc-per-node, in short")
    parser.add_argument("--timeout-minutes", type=float, default=10.0, help="for one of several processes")
    given = vars(parser.parse_intermixed_args(arguments))
    try:
        fields = parse_options(given.pop("options"))
        epochs = fields.pop("epochs", TrainConfig.epochs)
        numbers = epochs if isinstance(epochs, tuple) else [epochs]
        configs = {TrainConfig.from_dict(fields | {"epochs": number}) for number in numbers}
        from .training.loop import pretrain  # after the options are known to be good: torch is slow

        for config in sorted(configs, key=lambda config: config.epochs):  # each goes on from the one before
            run = pretrain(config, **given)
            if is_first():
                health, seconds = run.result["metrics"]["verdict"], run.result["seconds"]
                where = f"{run.result['device']} in {results.precision(run.result)}"
                print(
                    f"{config.label}: {health}, {seconds:.1f} s on {where}, {shown(run.folder)}", flush=True
                )
    except (ValueError, OSError, FloatingPointError) as error:
        say(f"error: {explain(error)}")
        return 1 if isinstance(error, FloatingPointError) else 2
    except KeyboardInterrupt as error:
        message = str(error) or "interrupted; the same command goes on from the last checkpoint"
        say(message)
        return error.exit_code if isinstance(error, Interrupted) else 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
