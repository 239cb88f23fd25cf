"""From the linear model to the real one: labels that a linear probe needs for a given accuracy."""

from __future__ import annotations

import torch

from .samples import crossing


def labels_for_accuracy(probes: list[dict], accuracy: float = 0.9) -> list[dict]:
    """Labels a class at which the label-efficiency curves pass an accuracy, one row for each encoder.

    Between two measured numbers of labels, the error rate is taken as a straight line in log-log.

    Args:
        probes: contents of probe.json files, as `dcopy.evaluation.evaluate.load_probes` returns them.
        accuracy: in (0, 1).

    Returns:
        Rows with label, method, seeds (how many), reached (how many seeds get there with all
        labels) and the mean, lowest and highest number of labels a class over those seeds (NaN if none).

    >>> points = [{"labels_per_class": n, "accuracy_mean": a} for n, a in ((1, 0.6), (100, 0.96))]
    >>> probe = {"label": "x", "method": "directcopy", "label_efficiency": points}
    >>> round(labels_for_accuracy([probe], accuracy=0.9)[0]["mean"])
    16
    """
    if not 0 < accuracy < 1:
        raise ValueError(f"accuracy={accuracy} is not allowed: a share between 0 and 1")
    groups: dict[str, list[dict]] = {}
    for probe in probes:
        groups.setdefault(probe["label"], []).append(probe)
    rows = []
    for label, group in groups.items():
        found = torch.stack([_passage(probe, accuracy) for probe in group])  # (seeds,)
        reached = found[~found.isnan()]
        nothing = torch.tensor([torch.nan])
        spread = reached if len(reached) else nothing
        rows.append(
            {
                "label": label,
                "method": group[0]["method"],
                "seeds": len(group),
                "reached": len(reached),
                "mean": spread.mean().item(),
                "lowest": spread.min().item(),
                "highest": spread.max().item(),
            }
        )
    return rows


def _passage(probe: dict, accuracy: float) -> torch.Tensor:
    points = probe["label_efficiency"]
    counts = [
        probe["protocol"]["train"] / probe["protocol"]["classes"] if n == "all" else n
        for n in (point["labels_per_class"] for point in points)
    ]
    errors = torch.tensor([1 - point["accuracy_mean"] for point in points], dtype=torch.float64)
    if errors[0] <= 1 - accuracy:
        return torch.tensor(float(counts[0]), dtype=torch.float64)  # the fewest measured are enough
    errors = errors.clamp(min=1e-6)
    return crossing(torch.tensor(counts, dtype=torch.float64), errors, 1 - accuracy)
