"""What a stranger would see in a figure."""

import itertools


def labels_are_apart(ax) -> bool:
    """Whether no label of the x axis runs into the next; the figure has been drawn."""
    shown = [label for label in ax.get_xticklabels(which="both") if label.get_text()]
    boxes = sorted((label.get_window_extent() for label in shown), key=lambda box: box.x0)
    return all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
