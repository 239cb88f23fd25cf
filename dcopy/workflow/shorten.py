"""What training printed, shortened in the executed copy of a notebook."""

from __future__ import annotations

import re

EPOCHS = re.compile(r"^epoch \d+/\d+ .*\n(?=epoch \d+/\d+ )", re.MULTILINE)  # lines that another follows


def shorten(executed) -> None:
    """Keep the last of the lines that training prints, one an epoch; the job's log has them all.

    Args:
        executed: a notebook as nbformat reads it; its cells' outputs change in place.
    """
    for cell in executed.cells:
        merged = []
        for output in cell.get("outputs", []):
            if merged and output.get("name") == merged[-1].get("name") == "stdout":
                merged[-1]["text"] += output["text"]  # one text of what came in pieces
            else:
                merged.append(output)
        for output in merged:
            if output.get("name") == "stdout":
                output["text"] = EPOCHS.sub("", output["text"])
        if merged:
            cell["outputs"] = merged
