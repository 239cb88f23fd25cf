"""A finished run: what its folder holds, and its encoder, frozen for evaluation."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from .. import results
from ..config import TrainConfig, require
from ..data import augment
from ..models import Network
from . import checkpoint, health
from .step import Trainer

log = logging.getLogger(__name__)

AGAIN = ".again"  # in the folder of a finished run: where it is trained again, its weights being gone
RESULT = (  # what reports read of a result.json
    *("name", "label", "config", "seconds", "commit", "versions", "device", "finished"),
    *("metrics.projection_std", "metrics.effective_rank", "metrics.loss", "metrics.spectrum"),
)


@dataclass(frozen=True)
class Run:
    """A finished pretraining run.

    Attributes:
        config: what was run.
        folder: its folder, with config.json, metrics.jsonl, result.json and the checkpoint.
        encoder: frozen, in eval mode; takes uint8 images (N, C, H, W), gives representations (N, d).
        metrics: one record per epoch.
        result: the content of result.json.
    """

    config: TrainConfig
    folder: Path
    encoder: nn.Module
    metrics: list[dict]
    result: dict


class FrozenEncoder(nn.Module):
    """An encoder for evaluation: clean images in, representations before the projector out."""

    def __init__(self, encoder: nn.Module, config: TrainConfig):
        super().__init__()
        self.augmentation = augment.build(config.recipe.augmentation, config.image_size)
        self.encoder = encoder
        self.requires_grad_(False).train(False)

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Stays in eval mode, so that no BatchNorm statistic moves while probing."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) uint8 -> (N, d) float32"""
        return self.encoder(self.augmentation.clean(images)).float()


def on_images(config: TrainConfig, out_dir: str | Path, fingerprint: str, count: int) -> TrainConfig:
    """The run of `config` on these images.

    That is `config` itself while its folder is free or holds a run on them. Where it holds a run on others,
    as after photos were added, their fingerprint joins the configuration, and so the name of the run.

    Args:
        config: what was asked for.
        out_dir: folder of run folders.
        fingerprint: of the images, see `dcopy.data.fingerprint`.
        count: of the images.

    Raises:
        ValueError: `config` names the fingerprint of other images.
    """
    if config.data_fingerprint:
        allowed = f"{fingerprint}, that of the {count} images there are; they have changed, or are others"
        require("data_fingerprint", config.data_fingerprint, config.data_fingerprint == fingerprint, allowed)
        return config
    beside = dataclasses.replace(config, data_fingerprint=fingerprint)
    own = Path(out_dir, config.name)
    taken = Path(out_dir, beside.name).exists() or not _may_hold(own, config, fingerprint, count)
    return beside if taken else config


def _may_hold(folder: Path, config: TrainConfig, fingerprint: str, count: int) -> bool:
    """Whether what a folder holds, if anything, is a run on these images.

    A run that was made before fingerprints were recorded counts as one on its data set's images if
    their number is right, and on a folder of images never: files may have changed since.
    """
    if (folder / "result.json").exists():
        record = read_result(folder / "result.json")
    else:
        loaded = checkpoint.load(folder)
        record = loaded[1] if loaded else {"data_fingerprint": fingerprint}
    if "data_fingerprint" in record:
        return record["data_fingerprint"] == fingerprint
    return not config.dataset.startswith("folder:") and record.get("images", count) == count


def go_on_from_fewer_epochs(
    config: TrainConfig, folder: Path, fingerprint: str, count: int, place: Path
) -> None:
    """Begin a run, in `place`, with the state and metrics of one that differs in the number of epochs alone.

    Where rates are constant, 100 epochs are the beginning of 300, since the random streams are keyed by
    seed, epoch and step. Of the runs beside `folder` that are on these images it takes the one that
    got furthest, finished or not, but not past the end of `config`; where there is none, or where a schedule
    depends on the number of epochs, it does nothing.
    """
    best, beside = None, folder.parent.glob("*/config.json") if config.begins_longer_runs else ()
    for path in beside:
        try:
            other = TrainConfig.from_dict(results.read_json(path))
            ours = {"epochs": config.epochs, "data_fingerprint": config.data_fingerprint}
            if path.parent == folder or dataclasses.replace(other, **ours) != config:
                continue
            tensors, header = checkpoint.load(path.parent)
            reached = header["epoch"], header["step"]
            further = reached <= (config.epochs, 0) and (best is None or reached > best[0])
            if further and _may_hold(path.parent, other, fingerprint, count):
                Trainer(config, header["channels"], "cpu").load_tensors(tensors)  # or one is missing
                best = reached, other.name, read_metrics(path.parent, reached[0]), tensors, header
        except (ValueError, TypeError, KeyError, OSError, RuntimeError):  # it is not whole
            continue
    if best is not None:
        (epoch, step), name, records, tensors, header = best
        results.write_jsonl(place / "metrics.jsonl", records)
        header |= {"config": config.to_dict(), "went_on_from": {"run": name, "epoch": epoch, "step": step}}
        checkpoint.save(place, tensors, header)


def begin_again(folder: Path) -> Path:
    """Where to train a finished run whose weights are gone: inside its folder, which stays as it is.

    A checkpoint of an earlier epoch that is left goes there, with the metrics up to it.
    """
    log.warning(
        "%s is finished, but its weights are gone; it is trained again, and its result stays until then",
        folder.name,
    )
    place = folder / AGAIN
    place.mkdir(exist_ok=True)
    left = checkpoint.load(folder)
    if left is not None and checkpoint.load(place) is None:
        results.write_jsonl(place / "metrics.jsonl", read_metrics(folder, left[1]["epoch"]))
        _move(folder, place, checkpoint.PREVIOUS, checkpoint.NEWEST)
    return place


def end_again(folder: Path) -> None:
    """Put a run that was trained again in place of the first; after a kill, the next call does the rest."""
    place = folder / AGAIN
    if (place / "result.json").exists():  # all the others are complete, and it goes last
        _move(place, folder, "metrics.jsonl", checkpoint.PREVIOUS, checkpoint.NEWEST, "result.json")
        shutil.rmtree(place, ignore_errors=True)


def _move(source: Path, target: Path, *names: str) -> None:
    for name in names:
        if (source / name).exists():
            results.replace(source / name, target / name)


def read_metrics(folder: Path, epochs: int) -> list[dict]:
    """The records of the first `epochs` epochs of a run.

    Raises:
        ValueError: one of them is not there, or is broken; the message names the file.
    """
    path = folder / "metrics.jsonl"
    try:
        records = results.read_jsonl(path)[:epochs] if path.exists() else []
        for epoch in range(1, epochs + 1):
            record = records[epoch - 1] if epoch <= len(records) else {}
            if record.get("epoch") != epoch or not _is_measured(record):
                raise ValueError(f"{path} lacks the record of epoch {epoch} of {epochs}")
    except ValueError as error:
        raise ValueError(f"{error}; put a copy of the file back, or delete {folder} to train again") from None
    return records


def read_result(path: Path) -> dict:
    """The content of a result.json, with the verdict that today's limits give.

    Raises:
        ValueError: it is none, lacks what reports read, or its configuration is not known.
    """
    result = results.read_json(path)
    lacks = results.lacking(result, RESULT)
    if lacks or not _is_measured(result["metrics"]):
        what = ", ".join(lacks) or "metrics that are numbers"
        raise ValueError(
            f"{path} is not a complete result of a run (it lacks {what}); delete it to make it again"
        )
    read_config(result["config"], path)
    return result | {"metrics": health.judged(result["metrics"])}


def _is_measured(record) -> bool:
    names = ("projection_std", "effective_rank")
    return isinstance(record, dict) and all(isinstance(record.get(name), (int, float)) for name in names)


def read_config(values, where) -> TrainConfig:
    """The configuration that a file holds; `where` is the file's name for the message.

    Raises:
        ValueError: it is none, or one of another version of dcopy.
    """
    try:
        return TrainConfig.from_dict(values)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{where} holds no configuration that this version of dcopy knows ({error}); "
            f"update dcopy, or delete the file to make it again"
        ) from None


def load_run(folder: str | Path) -> Run:
    """A finished run from its folder.

    Raises:
        ValueError: the run is not finished, or a file in it is broken or of another configuration.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not the folder of a run; there is no config.json in it")
    path = folder / "config.json"
    config = read_config(results.read_json(path), path)
    run = finished_run(config, folder)
    if run is None:
        raise ValueError(f"{folder} holds no finished run; the command that began it continues it")
    return run


def finished_run(config: TrainConfig, folder: Path, fingerprint: str | None = None) -> Run | None:
    """The run in a folder if it is finished and its weights are there, else None.

    Raises:
        ValueError: a file in the folder is broken or of another configuration, or the run is not on the
            images of this fingerprint.
    """
    path = folder / "result.json"
    if not path.exists() or (folder / AGAIN / "result.json").exists():  # whose files are on their way
        return None
    result = read_result(path)
    if read_config(result["config"], path) != config:
        raise ValueError(f"{path} belongs to another configuration than {config.name}; move it away")
    if fingerprint is not None and result.get("data_fingerprint", fingerprint) != fingerprint:
        raise ValueError(
            f"{path} has just been made from other images; the same command makes a run beside it"
        )
    encoder = _encoder(config, folder, result)
    if encoder is None:
        return None
    metrics = [health.judged(record) for record in read_metrics(folder, config.epochs)]
    return Run(config, folder, FrozenEncoder(encoder, config), metrics, result)


def _encoder(config: TrainConfig, folder: Path, result: dict) -> nn.Module | None:
    """The trained encoder, from the checkpoint, or of a committed run from the file that holds it alone.

    None where neither is there, or the checkpoint is of an earlier epoch.

    Raises:
        ValueError: the weights are not those that result.json was written with.
    """
    loaded = checkpoint.load(folder)
    if loaded is not None:
        tensors, header = loaded
        weights = checkpoint.part(checkpoint.part(tensors, "online"), "encoder")
    elif (folder / checkpoint.ENCODER).exists():
        weights, header = checkpoint.read(folder / checkpoint.ENCODER)
    else:
        return None
    if header["epoch"] != config.epochs:
        return None
    found = checkpoint.digest(weights)
    if result.get("encoder_fingerprint", found) != found:
        raise ValueError(f"the weights in {folder} are not those of its result.json; delete them")
    encoder = Network(config, header["channels"]).encoder
    with checkpoint.complete(f"the encoder in {folder}"):
        encoder.load_state_dict(weights, strict=True)
    return encoder
