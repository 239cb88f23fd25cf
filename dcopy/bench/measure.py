"""Time, memory, operations and clocks, read without disturbing what is measured."""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import re
import subprocess
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from .. import machine, results
from ..training.step import LOW

KINDS = {  # of a GPU's kernels, by what their names hold; the first that fits
    "convolutions, forward": "fprop|convolve|precompute_indices",
    "convolutions, gradient of inputs": "dgrad",
    "convolutions, gradient of weights": "wgrad|ReduceSplitK|ImplicitGemmConvolution",
    "change of layout for convolutions": "nhwcToNchw|nchwToNhwc|nhwcAddPadding",
    "BatchNorm, with what is fused into it": "batch_norm",
    "optimizer and EMA": "multi_tensor_apply",
    "weights to a lower precision": r"poi_fused__to_copy_\d+$",
    "sums of both views' gradients": r"vectorized.*CUDAFunctor_add<float>",
    "products of matrices": "gemm|nvjet|splitK",
}
OTHER = "augmentation, loss, predictor, counters"


def positive(text: str) -> int:
    """An option of a script that counts something, for `argparse`.

    >>> positive("0")
    Traceback (most recent call last):
    argparse.ArgumentTypeError: '0' is not allowed; it must be an integer of at least 1
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; it must be an integer of at least 1")
    return int(text)


def out_file(text: str) -> Path:
    """A file that a script writes at its end, for `argparse`: refused before the work rather than after."""
    path = results.resolve(text)
    try:
        results.require_writable(path)
    except OSError as error:
        raise argparse.ArgumentTypeError(machine.explain(error)) from None
    return path


class Clock:
    """Moments on a device; on a GPU they are events in its stream, so that nothing waits for them."""

    def __init__(self, device: str | torch.device):
        self.device = torch.device(device)
        self.is_cuda = self.device.type == "cuda"

    def now(self):
        if not self.is_cuda:
            if self.device.type == "mps":
                torch.mps.synchronize()
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def ms(self, moments: list) -> list[float]:
        """Milliseconds from each moment to the next."""
        if not self.is_cuda:
            return [1e3 * (b - a) for a, b in itertools.pairwise(moments)]
        moments[-1].synchronize()
        return [a.elapsed_time(b) for a, b in itertools.pairwise(moments)]


class PeakMemory:
    """`bytes` that the block needed at its peak beyond what was in use before it.

    On a GPU those of tensors; on Linux's CPU those of the process, the libraries' own included;
    None elsewhere.
    """

    def __init__(self, device: str | torch.device):
        self.device, self.bytes = torch.device(device), None

    def __enter__(self) -> PeakMemory:
        gc.collect()  # garbage freed within the block would hide as much of its peak
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        else:
            self.before = None
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text(
                    "5", encoding="utf-8"
                )  # the peak starts anew from what is in use
                self.before = self._of_process("VmRSS")
        return self

    def __exit__(self, *error) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self.before
        elif self.before is not None:
            self.bytes = self._of_process("VmHWM") - self.before

    @staticmethod
    def _of_process(name: str) -> int:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def count(step) -> tuple[int, dict[int, int]]:
    """Floating-point operations of one step, and what it keeps for backward: bytes by address."""
    kept = {}  # each storage once, however many operations keep it

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would keep its own graph alive

    with FlopCounterMode(display=False) as flops, saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return flops.get_total_flops(), kept


def matrix_tflop_per_second(device: str | torch.device, precision: str) -> float:
    """TFLOP/s in a product of two large matrices: what arithmetic alone leaves a training step to reach.

    In fp32 the convolutions of a GPU may be faster than that, since they take TF32 by default.
    """
    dtype = LOW.get(precision, torch.float32)
    clock = Clock(device)
    size = 8192 if clock.is_cuda else 2048
    a, b = torch.randn(2, size, size, device=clock.device).to(dtype)
    a @ b  # the first one allocates
    moments = [clock.now()]
    for _ in range(3):
        a @ b
        moments.append(clock.now())
    return 2 * size**3 / min(clock.ms(moments)) / 1e9


def gpu_clocks(device) -> dict | None:
    """The GPU's clocks in MHz, now and at most, and its power in watts, where nvidia-smi answers."""
    device = torch.device(device)
    if device.type != "cuda":
        return None
    names = ("clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw")
    uuid = torch.cuda.get_device_properties(device).uuid
    command = ["nvidia-smi", f"--id=GPU-{uuid}", f"--query-gpu={','.join(names)}"]
    try:
        answer = subprocess.run(
            [*command, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
        return {name: float(value) for name, value in zip(names, answer.stdout.split(","), strict=True)}
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def kernels(step, steps: int = 5) -> list[tuple[str, float, float]]:
    """Name, milliseconds a step and number a step of each kernel that a GPU runs in `step()`."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    return [
        (event.key, event.self_device_time_total / 1e3 / steps, event.count / steps)
        for event in profile.key_averages()
        if event.self_device_time_total > 0
    ]


def by_kind(timed: list[tuple[str, float, float]]) -> list[dict]:
    """What `kernels` found, summed by what they do: part, ms, share and kernels (a step), the longest first.

    >>> by_kind([("sm90_fprop", 3.0, 4.0), ("triton_batch_norm", 1.0, 2.0), ("sm80_fprop", 1.0, 1.0)])[0]
    {'part': 'convolutions, forward', 'ms': 4.0, 'share': 0.8, 'kernels': 5.0}
    """
    sums: dict[str, list[float]] = {}
    for name, ms, count in timed:
        kind = next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), OTHER)
        total = sums.setdefault(kind, [0.0, 0.0])
        total[0] += ms
        total[1] += count
    whole = sum(ms for ms, _ in sums.values())
    rows = [{"part": kind, "ms": ms, "share": ms / whole, "kernels": n} for kind, (ms, n) in sums.items()]
    return sorted(rows, key=lambda row: -row["ms"])
