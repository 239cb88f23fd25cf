"""Training state on disk: tensors in safetensors, counters in its JSON header, never a pickle."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..results import atomic

log = logging.getLogger(__name__)

NEWEST, PREVIOUS = "checkpoint.safetensors", "checkpoint.previous.safetensors"
ENCODER = "encoder.safetensors"  # of a finished run, to be passed on; training cannot go on from it
HEADER = {"config": dict, "channels": int, "epoch": int}  # of every file
POSITION = {"step": int, "seconds": (int, float)}  # and of those that training goes on from


def save(folder: Path, tensors: dict[str, Tensor], header: dict) -> None:
    """Write the newest checkpoint of a run and keep the one before it.

    Raises:
        OSError: the disk is full or read-only; the checkpoints that were there are untouched.
    """
    _write(folder / NEWEST, tensors, header, keep=folder / PREVIOUS)


def save_encoder(folder: Path, path: Path) -> None:
    """Write the online encoder of a run's newest checkpoint to `path`, from which `load_run` takes it."""
    tensors, header = load(folder)
    encoder = part(part(tensors, "online"), "encoder")
    _write(path, encoder, {name: header[name] for name in ("config", "channels", "epoch")})


def _write(path: Path, tensors: dict[str, Tensor], header: dict, keep: Path | None = None) -> None:
    with atomic(path, keep=keep) as temporary:
        contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        try:
            save_file(contiguous, temporary, metadata={"dcopy": json.dumps(header)})
        except SafetensorError as problem:  # its word for a full disk
            raise OSError(f"{path} could not be written ({problem})") from None


def load(folder: Path) -> tuple[dict[str, Tensor], dict] | None:
    """The newest readable checkpoint of a run as (tensors, header), or None where there is none.

    Raises:
        ValueError: there are checkpoints, but none that is complete; the message names the file.
    """
    error = None
    for path in (folder / NEWEST, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            return read(path)
        except ValueError as problem:
            log.warning("%s", problem)
            error = error or problem
    if error is not None:
        raise error
    return None


def read(path: Path, device="cpu") -> tuple[dict[str, Tensor], dict]:
    """One checkpoint file as (tensors, header).

    Raises:
        ValueError: the file is truncated, corrupt, a pickle, not of this package, lacks a part of its
            header, or holds NaN or infinity.
    """
    try:
        with _named(path) as name, safe_open(name, framework="pt", device=str(device)) as file:
            header = json.loads((file.metadata() or {})["dcopy"])
            for name, kind in (HEADER if path.name == ENCODER else HEADER | POSITION).items():
                if not (isinstance(header, dict) and isinstance(header.get(name), kind)):
                    raise ValueError(f"its header has no {name}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            for name, tensor in tensors.items():
                if not tensor.isfinite().all():
                    raise ValueError(f"{name} is not finite")
            return tensors, header
    except (SafetensorError, KeyError, ValueError, OSError) as problem:
        reason = str(problem).strip("'") or type(problem).__name__
        raise ValueError(
            f"{path} is not a complete checkpoint of dcopy ({reason}); delete it to train again"
        ) from None


@contextlib.contextmanager
def complete(what: str | Path) -> Iterator[None]:
    """For taking tensors out of a checkpoint; `what` it is for the message.

    Raises:
        ValueError: a tensor is missing or of another shape.
    """
    try:
        yield
    except (KeyError, RuntimeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ValueError(f"{what} is not complete ({reason}); delete it to train again") from None


@contextlib.contextmanager
def _named(path: Path) -> Iterator[str]:
    """The name under which safetensors opens a file: the number of the open file where a name is no UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with open(path, "rb") as file:
            yield f"/dev/fd/{file.fileno()}"
    else:
        yield str(path)


def part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The state_dict of one part of a checkpoint: online, target, predictor or momentum."""
    prefix = f"{name}."
    return {key[len(prefix) :]: tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def fingerprint(module: nn.Module) -> str:
    """Sixteen hexadecimal digits over parameters and buffers: the same weights, the same digits."""
    return digest(module.state_dict())


def digest(tensors: dict[str, Tensor]) -> str:
    """Sixteen hexadecimal digits over names, shapes and bits."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]
