"""Prepare a data set, and say what it holds, before hours of training: `python -m dcopy.data imagenet`."""

from __future__ import annotations

import argparse
import sys

from ..machine import explain
from .checks import fingerprint
from .datasets import describe, load


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dcopy.data", description=__doc__ and __doc__.splitlines()[0]
    )
    parser.add_argument("name", help="digits, cifar10, cifar100, stl10, imagenette, imagenet or folder:PATH")
    parser.add_argument(
        "--image-size", type=int, help="pixels, side of a view where it may be chosen (a folder: 32)"
    )
    parser.add_argument("--data-root", help="where data sets lie (default: DCOPY_DATA or ~/.cache/dcopy)")
    parser.add_argument("--skip-bad", action="store_true", help="leave out unreadable files of a folder")
    given = parser.parse_args(arguments)
    try:
        data = load(given.name, given.data_root, image_size=given.image_size, skip_bad=given.skip_bad)
        print(describe(data))
        print(f"fingerprint of what pretraining sees: {fingerprint(data.pretrain())}")
    except (ValueError, OSError) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
