"""What a run runs on: the device and the precision that are meant, or one line that says why not."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import warnings
from pathlib import Path

WORDS = "cpu, cuda, cuda:1, gpu, mps or the number of a GPU (default: a GPU where there is one)"
WAY_OUT = "or take the processor, with --device cpu or DCOPY_DEVICE=cpu"
NATIVE_BF16 = {"avx512_bf16", "amx_bf16"}  # of a processor, as /proc/cpuinfo names them


def choose(device=None, precision: str = "fp32"):
    """The device and the precision to use: everything that computes asks here.

    Args:
        device: cpu, cuda, cuda:1, gpu, mps, the number of a GPU, or a torch.device; None or auto: what the
            environment variable DCOPY_DEVICE names, else a GPU where there is one.
        precision: as in TrainConfig; auto becomes what the device is fast in.

    Returns:
        A torch.device, on which a first operation has succeeded, and fp32, bf16 or fp16.

    Raises:
        ValueError: there is no such device, it cannot be used, or not in this precision; the message
            says what there is.
    """
    import torch

    wanted = os.environ.get("DCOPY_DEVICE") or "auto" if device in (None, "auto") else device
    here, reason = available(), unusable()
    found = _find(str(wanted), here)
    if found is None or (wanted == "auto" and found == "cpu" and reason):
        given, allowed = f"device={str(wanted)!r}", "one of " + ", ".join([*here, "auto"])
        if reason:
            raise ValueError(f"{given} is not possible: {reason}; {_torch_for()}, {WAY_OUT}")
        hint = "" if here != ["cpu"] else ", since torch finds no GPU here"
        raise ValueError(f"{given} is not allowed; it must be {allowed}{hint}")
    chosen = torch.device(found)
    if chosen.type != "cpu":
        _try(chosen)
    return chosen, precision_on(chosen, precision)


def available() -> list[str]:
    """The devices that torch finds here, as it names them, the fastest first."""
    import torch

    with warnings.catch_warnings():  # what torch warns of, `unusable` says
        warnings.simplefilter("ignore")
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    apple = ["mps"] if torch.backends.mps.is_available() else []
    return [*(f"cuda:{i}" for i in range(gpus)), *apple, "cpu"]


def _find(word: str, here: list[str]) -> str | None:
    """torch's name for what a user typed, or None where there is no such device."""
    match = re.fullmatch(r"(auto|cpu|gpu|cuda|mps|)[: ]?(\d*)", word.strip().lower())
    if match is None or not any(match.groups()):
        return None
    kind, number = match.groups()
    gpus = [name for name in here if name != "cpu"]
    pool = {"auto": here, "gpu": gpus, "": gpus}.get(kind, [name for name in here if name.startswith(kind)])
    if int(number or 0) >= len(pool):
        return None
    found = pool[int(number or 0)]
    return found if number else found.split(":")[0]  # `cuda` is the current one


def unusable() -> str | None:
    """Why torch does not reach the NVIDIA GPU of this machine; None where it does, or where there is none."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if torch.cuda.is_available():
            return None
        try:
            return torch.cuda.init()
        except (RuntimeError, AssertionError) as error:  # the latter: built without CUDA
            reason = _first_sentence(error)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if "No CUDA GPUs are available" in reason and visible not in (None, "", "-1", "NoDevFiles"):
        return f"CUDA_VISIBLE_DEVICES={visible} names no GPU of this machine"
    if any(words in reason for words in ("no NVIDIA driver", "not compiled with CUDA", "No CUDA GPUs")):
        return reason if visible is None and os.path.exists("/dev/nvidia0") else None
    return reason


def _try(device) -> None:
    """One operation: a GPU may be found and yet be too old for torch's kernels, or be taken by others."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (torch.ones(2, device=device) + 1).cpu()
    except RuntimeError as error:
        raise ValueError(
            f"device={str(device)!r} is not possible: {_first_sentence(error)} ({name(device)}); "
            f"{_torch_for()}, {WAY_OUT}"
        ) from None


def _torch_for() -> str:
    """The way out for a GPU that does not fit torch."""
    import torch

    kinds = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
    built = next((f"{kind} {version}" for kind, version in kinds.items() if version), "processors only")
    kernels = " ".join(torch.cuda.get_arch_list())
    built += f" ({kernels})" if kernels else ""
    return f"this torch is built for {built}; install one that fits driver and GPU"


def _first_sentence(error: Exception) -> str:
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line.split(". ")[0].rstrip(".")


def precision_on(device, precision: str) -> str:
    """fp32, bf16 or fp16 for a precision of TrainConfig.

    auto is bf16 where the hardware has it, fp16 on older NVIDIA GPUs, else fp32. That torch can compute in
    bf16 says nothing (`torch.cuda.is_bf16_supported`): it emulates what is missing.
    """
    import torch

    kind = torch.device(device).type
    if kind == "mps" and precision == "fp16":
        raise ValueError("precision='fp16' is not possible on mps; it must be one of auto, fp32, bf16")
    if precision != "auto":
        return precision
    if kind == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    return "bf16" if kind == "cpu" and NATIVE_BF16 & set(_cpuinfo("flags").split()) else "fp32"


def name(device) -> str:
    """The GPU's name, or the processor's model and the number of threads in use."""
    import torch

    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.get_device_name(device)
    model = _cpuinfo("model name") or platform.processor() or platform.machine()
    return f"{model} (mps)" if kind == "mps" else f"{model}, {torch.get_num_threads()} threads"


def describe(device, precision: str) -> str:
    """Device and precision in a line, and what `auto` would take where that is another one."""
    best = precision_on(device, "auto")
    hint = "" if precision == best else f" (precision=auto would take {best} here)"
    return f"{name(device)}, {precision}{hint}"


def _cpuinfo(key: str) -> str:
    """What Linux says of the first processor; empty elsewhere."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.split("\t")[0].strip() == key)
    return ""
