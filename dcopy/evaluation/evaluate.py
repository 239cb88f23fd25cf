"""Evaluation of frozen encoders: features once, all probes on them, one probe.json for each.

The protocol: representations before the projector, of clean images, from the last checkpoint, in
eval mode; C is chosen on a held-out part of the training set, and the test set is read once.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .. import data, hardware, results
from ..config import TrainConfig
from ..data import ImageData
from ..training import checkpoint
from ..training.runs import Run, read_result
from .features import RawPixels, extract_features, random_encoder
from .probes import (
    C_GRID,
    LABELS_PER_CLASS,
    SHARES,
    draws_of,
    knn_probe,
    label_efficiency,
    linear_probe,
)
from .reference_probe import reference_probe
from .sgd_probe import LR_GRID, crop_features, sgd_probe

log = logging.getLogger(__name__)

FIRST = 8  # images whose features tell one function from another of the same weights
LARGE = 200_000  # training images, from which on the linear probe is by SGD, on random crops
HELD_OUT = 10_000  # of those, to choose its learning rate and C
PROBE = (  # what reports read of a probe.json
    *("name", "label", "method", "seed", "dataset", "linear.accuracy", "linear.converged", "knn"),
    *("label_efficiency", "reference", "encoder_fingerprint"),
    *("protocol.train", "protocol.test", "protocol.classes", "commit", "versions", "device", "finished"),
)


def cached_features(encoder: nn.Module, images: Tensor, folder: str | Path | None) -> np.ndarray:
    """`extract_features`, kept in `folder` under the fingerprints of encoder and images.

    Other weights, another function of the first images, or other images have another name, so a stale file is
    never read; one that cannot be read is made anew. None: no cache, and none of more than LARGE images
    either, whose 10 GB a run would fill a disk.
    """
    if folder is None or len(images) > LARGE:
        return extract_features(encoder, images)
    function = data.fingerprint(torch.from_numpy(extract_features(encoder, images[:FIRST])))
    names = checkpoint.fingerprint(encoder), function, data.fingerprint(images)
    path = Path(folder) / f"features-{'-'.join(names)}.npy"
    with contextlib.suppress(FileNotFoundError):
        try:
            return np.load(path, allow_pickle=False)
        except (EOFError, ValueError) as error:  # empty or cut off
            log.warning("%s cannot be read (%s); its features are extracted anew", path, error)
    features = extract_features(encoder, images)
    with results.atomic(path) as temporary, open(temporary, "wb") as file:
        np.save(file, features, allow_pickle=False)
    return features


def protocol(images: ImageData, draws: int = 20, k: int = 200) -> dict:
    """What a probe's numbers depend on besides the encoder; two probes with equal ones compare.

    Numbers of labels that the smallest class does not have are left out. Of more than LARGE images, 1 % and
    10 % of the labels are taken, the same number of each class.
    """
    smallest = int(images.train_labels.bincount(minlength=len(images.classes)).min())
    numbers, linear = LABELS_PER_CLASS, {"linear": "C of least held-out cross-entropy"}
    if len(images.train) > LARGE:
        numbers = [round(share * len(images.train) / len(images.classes)) for share in SHARES]
        linear = {"linear": "SGD on random crops", "lr_grid": list(LR_GRID)}
    numbers = [n for n in numbers if n <= smallest]
    taken = [draws_of(n, len(images.classes), draws) for n in numbers]
    return {
        "draws": max(taken, default=draws),
        **({"draws_of_many": min(taken)} if min(taken, default=draws) < draws else {}),
        "k": k,
        "C_grid": list(C_GRID),
        **linear,
        "labels_per_class": numbers,
        "train": len(images.train),
        "test": len(images.test),
        "classes": len(images.classes),
    }


def evaluate(
    encoder: nn.Module,
    images: ImageData,
    *,
    draws: int = 20,
    k: int = 200,
    cache: str | Path | None = None,
) -> dict:
    """All probes of one encoder, from features that are extracted once.

    Args:
        encoder: takes uint8 images.
        images: its train split fits the probes, its test split is read once.
        draws: random choices of the labelled images in `label_efficiency`.
        k: neighbours in `knn_probe`.
        cache: folder in which to keep the features.

    Returns:
        linear (see `linear_probe`; with more than LARGE training images `sgd_probe`, on random crops), knn
        (accuracy), label_efficiency (its last point, "all", is the linear probe), reference (see
        `reference_probe`; None with so many images), feature_dim, encoder_fingerprint, data_fingerprint (of
        images and labels), protocol, seconds.

    Raises:
        ValueError: the data set lacks labelled images of a split, a second class, or images of a class.
    """
    if reason := data.why_no_probe(images):
        raise ValueError(reason)
    start, settings = time.perf_counter(), protocol(images, draws, k)
    train_y, test_y = images.train_labels.numpy(), images.test_labels.numpy()
    train_x = cached_features(encoder, images.train, cache)
    test_x = cached_features(encoder, images.test, cache)
    features = (train_x, train_y, test_x, test_y)
    large = len(images.train) > LARGE
    if large:
        crops, held_out = crop_features(encoder, images.train), HELD_OUT / len(images.train)
        linear = sgd_probe(*features, crops=crops, validation=held_out)
    else:
        linear = linear_probe(*features)
    everything = {"labels_per_class": "all", "accuracy_mean": linear["accuracy"], "accuracy_std": 0.0}
    few = label_efficiency(*features, labels_per_class=settings["labels_per_class"], draws=settings["draws"])
    return {
        "linear": linear,
        "knn": knn_probe(*features, k=k),
        "label_efficiency": [*few, {**everything, "accuracies": [linear["accuracy"]]}],
        "reference": None if large else reference_probe(*features),
        "feature_dim": train_x.shape[1],
        "encoder_fingerprint": checkpoint.fingerprint(encoder),
        "data_fingerprint": _fingerprint(images),
        "protocol": settings,
        "seconds": round(time.perf_counter() - start, 3),
    }


def probe_runs(finished: list[Run], images: ImageData, run_dir: str | Path, **options) -> list[dict]:
    """Probe finished runs and their baselines, raw pixels and the encoder before training.

    Writes `run_dir/NAME/probe.json` for each. What another call has probed already, with the same weights,
    images, labels and options, is read instead.

    Args:
        finished: runs on the same data.
        images: of that data set.
        run_dir: folder of run folders.
        options: of `evaluate`.

    Returns:
        The probes as `load_probes` gives them: raw pixels first, then each run after its baseline.

    Raises:
        ValueError: a run was trained on other images, or `evaluate` refuses these.
    """
    config, fingerprint = finished[0].config, data.fingerprint(images.pretrain())
    for run in finished:
        if run.result.get("data_fingerprint", fingerprint) != fingerprint:
            raise ValueError(
                f"{run.folder} was trained on other images than {images.name} has now; pretrain on these, or "
                "call `evaluate` to probe with other data"
            )
    probe = functools.partial(_probe, config, images, Path(run_dir), options)
    pixels = {"name": f"{config.dataset_name}-pixels", "label": "raw pixels", "method": "pixels", "seed": 0}
    probes = [probe(pixels, RawPixels())]
    for run in finished:
        seed, untrained = run.config.seed, random_encoder(run.config, images.train.shape[1])
        name = f"{config.dataset_name}-random-seed{seed}-{checkpoint.fingerprint(untrained)[:6]}"
        start = probe({"name": name, "label": "random encoder", "method": "random", "seed": seed}, untrained)
        record = {
            "name": run.config.name,
            "label": run.config.label,
            "method": run.config.method,
            "seed": seed,
            "baselines": [probes[0]["name"], start["name"]],
        }
        probes += [start, probe(record, run.encoder)]
    return probes


def _probe(config, images, run_dir, options, record, encoder) -> dict:
    """Read the probe of an encoder, or make it; a baseline on other data has its place beside the first."""
    fingerprint, known = _fingerprint(images), _read_probe(run_dir, record["name"])
    if "baselines" not in record and not _is_on(known, config, fingerprint):
        record = record | {"name": f"{record['name']}-{fingerprint[:6]}"}
        known = _read_probe(run_dir, record["name"])
    settings = protocol(images, **{name: options[name] for name in ("draws", "k") if name in options})
    wanted = {"encoder_fingerprint": checkpoint.fingerprint(encoder), "protocol": settings}
    with results.locked(run_dir / record["name"], wait=True):  # two notebooks at a time, and one baseline
        for folder in (run_dir, *sorted(run_dir.parent.parent.glob("*/runs"))):  # of the other presets, too
            known = _read_probe(folder, record["name"])
            if not _lacks(known) and _is_on(known, config, fingerprint) and known == known | wanted:
                break
        else:
            known = {
                **record,
                "dataset": config.dataset,
                **evaluate(encoder, images, **options),
                **results.provenance(hardware.choose()[0]),
            }
        if known != _read_probe(run_dir, record["name"]):
            results.write_json(run_dir / record["name"] / "probe.json", known)
    return known


def _read_probe(run_dir: Path, name: str) -> dict:
    path = run_dir / name / "probe.json"
    return results.read_json(path) if path.exists() else {}


def _is_on(known: dict, config: TrainConfig, fingerprint: str) -> bool:
    """Whether a probe is of these data; what is older than fingerprints is, but for a folder."""
    unknown = "" if known and config.dataset.startswith("folder:") else fingerprint
    return known.get("data_fingerprint", unknown) == fingerprint


def _fingerprint(images: ImageData) -> str:
    return data.fingerprint(images.train, images.train_labels, images.test, images.test_labels)


def load_probes(results_dir: str | Path, runs: list[str] | None = None) -> list[dict]:
    """What notebook 04 wrote, in `results_dir/runs/*/probe.json`: of these runs and their baselines, or all.

    Each has name, label, method, dataset, seed, baselines (names) and the keys of `evaluate`. The
    baselines are of method "pixels" or "random".
    """
    probes = _by_name(sorted(Path(results_dir).glob("runs/*/probe.json")), read_probe)
    if runs:
        own = [probes[name] for name in runs if name in probes]
        names = {name for probe in own for name in (probe["name"], *probe["baselines"])}
        probes = {name: probe for name, probe in probes.items() if name in names}
    return list(probes.values())


def _by_name(paths: list[Path], read) -> dict[str, dict]:
    """What files hold, by the name in it; where several have one name, that of the folder called so."""
    found = {}
    for path in paths:
        record = read(path)
        if record["name"] not in found or path.parent.name == record["name"]:
            found[record["name"]] = record
    return found


def _lacks(probe) -> list[str]:
    """What a probe.json has to have, and does not."""
    lacks = results.lacking(probe, PROBE)
    if not lacks:
        own = [] if probe["method"] in ("pixels", "random") else ["baselines"]  # of a trained encoder
        lacks = results.lacking(probe, own if probe["reference"] is None else [*own, "reference.best"])
        for point in probe["label_efficiency"]:
            found = results.lacking(point, ("labels_per_class", "accuracy_mean"))
            lacks += [f"label_efficiency.{name}" for name in found]
    return list(dict.fromkeys(lacks))


def read_probe(path: Path) -> dict:
    """Raises ValueError, naming the file, where it is no probe.json or an accuracy is not in [0, 1]."""
    probe = results.read_json(path)
    try:
        if lacks := _lacks(probe):
            raise TypeError(f"it lacks {', '.join(lacks)}")
        accuracies = [probe["linear"]["accuracy"], probe["knn"]]
        accuracies += [point["accuracy_mean"] for point in probe["label_efficiency"]]
        peeking = probe["reference"] or {}
        accuracies += [peeking[name] for name in ("best", "last") if name in peeking]
        wrong = [value for value in accuracies if not 0 <= value <= 1]
    except TypeError as error:
        raise ValueError(f"{path} is no complete probe ({error}); delete it to make it again") from None
    if wrong:
        raise ValueError(f"{path}: {wrong[0]} is no accuracy in [0, 1]; delete the file to make it again")
    return probe


def load_results(results_dir: str | Path, runs: list[str] | None = None) -> tuple[list[dict], list[dict]]:
    """The contents of result.json, the verdict being that of today's limits, and of probe.json.

    Args:
        results_dir: a preset's.
        runs: names; default: all.

    Raises:
        ValueError: there is no run, or none was probed.
    """
    folder = Path(results_dir)
    paths = [folder / "runs" / name / "result.json" for name in runs or []]
    outcomes = _by_name(paths or sorted(folder.glob("runs/*/result.json")), _read_outcome)
    probes = load_probes(folder, runs or list(outcomes))
    if not (outcomes and probes):
        raise ValueError(f"{folder} holds no probed runs; `bash run_all.sh {folder.name}` makes them")
    return list(outcomes.values()), probes


def _read_outcome(path: Path) -> dict:
    result = read_result(path)
    if path.parent.name != result["name"]:
        log.warning(
            "%s holds the run %s, as its result.json says, which counts once", path.parent, result["name"]
        )
    return result
