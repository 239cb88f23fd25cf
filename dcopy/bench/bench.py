"""Where the time of pretraining goes: a predictor's update against D, and the parts of one step.

    python -m dcopy.bench --config dataset=cifar10 precision=bf16 --out results/bench/gpu.json

The images are random, so no data set is needed. The parts come from hooks on the trainer that
pretraining uses, not from a copy of its step.
"""

from __future__ import annotations

import argparse
import statistics
import sys

import torch
from torch import Tensor

from .. import hardware, machine, results
from ..config import TrainConfig, parse_options, require
from ..data import augment
from ..predictors import Predictor, SetPredictor, build_predictor
from ..training.graphs import WARMUP, FastStep
from ..training.step import Trainer
from .measure import Clock, PeakMemory, by_kind, count, gpu_clocks, kernels, matrix_tflop_per_second

DIMS = (64, 128, 256, 512, 1024, 2048)
LARGE_DIM = 4096  # takes a CPU seconds an update

VARIANTS = (
    *({"method": "directcopy", "normalize": normalize} for normalize in ("none", "frobenius", "spectral")),
    {"method": "directpred"},
    {"method": "directpred", "freq": 5},
    {"method": "directset", "alpha": 2.0},
    {"method": "linear"},
)


def predictor_costs(dims, device, seconds: float = 0.5) -> list[dict]:
    """Time per step of having a new W_p, for every method and D, at the batch size of the paper.

    Args:
        dims: the D to time.
        device: where.
        seconds: to spend on each, about; three updates are timed in any case.

    Returns:
        label, method, normalize, freq, dim, ms (the median), and eigh_fallbacks (decompositions that a GPU
        left to the CPU) for each.
    """
    generator = torch.Generator().manual_seed(0)
    rows = []
    for D in dims:
        for variant in VARIANTS:
            config = TrainConfig(dataset="cifar10", projection_dim=D, **variant)
            z = torch.randn(2 * config.batch_size, D, generator=generator)  # two views
            predictor = build_predictor(config).to(device)
            ms = update_ms(predictor, z.to(device), config, seconds)
            row = {name: getattr(config, name) for name in ("label", "method", "normalize", "freq")}
            row["label"] += "" if config.normalize == "none" else f" ({config.normalize})"
            fallbacks = getattr(predictor, "eigh_fallbacks", 0)
            rows.append({**row, "dim": D, "ms": ms, "eigh_fallbacks": fallbacks})
    return rows


def update_ms(predictor: Predictor, z: Tensor, config: TrainConfig, seconds: float) -> float:
    """Median time of `predictor.update` and, where the weight is learned, of its gradient and SGD.

    The F that a learned predictor keeps for the health plots is left out: its W_p needs none. The
    predictor's forward pass is left out, too; it is the same for all of them.
    """
    learned = list(predictor.parameters())
    prediction, upstream = predictor(z), torch.randn_like(z)  # (N, D)
    if learned:
        optimizer = torch.optim.SGD(
            learned, config.lr, config.momentum, weight_decay=config.weight_decay, fused=z.is_cuda
        )

    def cycle():  # of `freq` updates, one of which sets the weight
        for _ in range(predictor.freq):
            if isinstance(predictor, SetPredictor):
                predictor.update(z)
            if learned:
                gradients = torch.autograd.grad(prediction, learned, upstream, retain_graph=True)
                for parameter, gradient in zip(learned, gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()

    clock = Clock(z.device)
    cycle()  # the first one allocates, and starts the power iteration
    start = clock.now()
    cycle()
    moments = [clock.now()]
    once = clock.ms([start, *moments])[0]
    for _ in range(min(max(3, round(1e3 * seconds / once)), 1000)):
        cycle()
        moments.append(clock.now())
    return statistics.median(clock.ms(moments)) / predictor.freq


def step_parts(config: TrainConfig, device, steps: int, warmup: int = 2, compile: bool | None = None) -> dict:
    """Time of each part of a training step, its memory and its floating-point operations.

    Args:
        config: what to train.
        device: where.
        steps: how many to time.
        warmup: steps before those.
        compile: as of `dcopy.pretrain`.

    Returns:
        parts (part, ms and share; means over the steps), step_ms (one a step), ms (their mean),
        images_per_second, tflop and tflop_per_second of a step, matrix_tflop_per_second (see there; of the
        same precision), compiled (whether it was), captured (ms and the two rates of the step as
        pretraining does it on a GPU, in CUDA graphs, and as parts its kernels by what they do; None where it
        is not captured),
        seconds_to_compile (the first step), clocks (see `gpu_clocks`), and memory (see `memory_estimate`;
        measured is the peak, or None where it cannot be read).

    Raises:
        ValueError: steps is below 1.
        RuntimeError: no step could be timed, as gradients overflowed in fp16.
    """
    require("steps", steps, steps >= 1, "an integer of at least 1")
    with PeakMemory(device) as peak:
        images = random_images(config).to(device)
        trainer = Trainer(config, images.shape[1], device)
        generator = torch.Generator(device).manual_seed(0)
        augmentation = augment.build(config.recipe.augmentation)
        flop, kept = count(lambda: trainer.step(*(augmentation(images, generator) for _ in range(2))))
        fast_step = FastStep(trainer, augmentation, compile)
        clock = Clock(device)
        start = clock.now()
        fast_step(images, generator)
        first_ms = clock.ms([start, clock.now()])[0]
        times = part_times(fast_step, images, generator, clock, warmup + steps)[warmup:]
        times = [parts for parts in times if "optimizer" in parts]  # fp16 leaves it out where it overflows
        captured_ms = captured_step_ms(fast_step, images, generator, clock, steps)
        timed = kernels(lambda: fast_step(images, generator)) if captured_ms else []
        clocks = gpu_clocks(device)  # while they are still up
    if not times:
        raise RuntimeError(f"the gradients overflowed in each of {steps} steps; time more of them")
    limit = matrix_tflop_per_second(device, trainer.precision)
    step_ms = [sum(parts.values()) for parts in times]
    ms = statistics.mean(step_ms)
    parts = {part: statistics.mean(step[part] for step in times) for part in times[0]}

    def rates(ms: float) -> dict:
        images_per_second, tflop_per_second = 1e3 * config.batch_size / ms, flop / 1e9 / ms
        return {"ms": ms, "images_per_second": images_per_second, "tflop_per_second": tflop_per_second}

    return {
        "parts": [{"part": part, "ms": value, "share": value / ms} for part, value in parts.items()],
        "step_ms": step_ms,
        **rates(ms),
        "tflop": flop / 1e12,
        "matrix_tflop_per_second": limit,
        "compiled": fast_step.compiled,
        "captured": captured_ms and rates(captured_ms) | {"parts": by_kind(timed)},
        "seconds_to_compile": first_ms / 1e3 if fast_step.compiled else None,
        "clocks": clocks,
        "memory": {**memory_estimate(trainer, kept, images), "measured": peak.bytes},
    }


def part_times(
    fast_step: FastStep, images: Tensor, generator, clock: Clock, steps: int
) -> list[dict[str, float]]:
    """Milliseconds of each part of each step, in the order of the step; what comes once a view is summed."""
    timed: list[list[tuple]] = []  # of a step: which part ended, and when

    def mark(part):
        timed[-1].append((part, clock.now()))

    handles = mark_parts(fast_step.trainer, mark)
    for _ in range(steps):
        timed.append([])
        mark("start")
        views = fast_step.views(images, generator)
        mark("augmentation")
        fast_step.trainer.step(*views)
        mark("EMA")
    times: list[dict[str, float]] = [{} for _ in range(steps)]
    for parts, marks in zip(times, timed, strict=True):
        spans = clock.ms([moment for _, moment in marks])
        for (part, _), span in zip(marks[1:], spans, strict=True):
            parts[part] = parts.get(part, 0.0) + span
    for handle in handles:
        handle.remove()
    return times


def captured_step_ms(
    fast_step: FastStep, images: Tensor, generator, clock: Clock, steps: int
) -> float | None:
    """Mean time of a step in CUDA graphs, or None where there are none."""
    if not fast_step.captures:
        return None
    for _ in range(WARMUP + 1):
        fast_step(images, generator)
    if fast_step.graphs is None:
        return None
    start = clock.now()
    for _ in range(steps):
        fast_step(images, generator)
    return clock.ms([start, clock.now()])[0] / steps


def random_images(config: TrainConfig) -> Tensor:
    """One batch of noise, shaped as the data set's images: (N, C, H, W) uint8."""
    channels = 1 if config.dataset == "digits" else 3
    shape = (config.batch_size, channels, config.image_size, config.image_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def mark_parts(trainer: Trainer, mark) -> list:
    """Have `trainer.step` call mark(part) as each of its parts ends, but for the last one, EMA.

    What lies between two marks belongs to the part that ends with the second. Returns the handles of
    the hooks, to remove them.
    """
    target = [trainer.target] if "target" in trainer.parts else []  # SimSiam has none of its own
    return [
        trainer.online.register_forward_hook(lambda *_: mark("online forward")),
        trainer.predictor.register_forward_pre_hook(lambda *_: mark("predictor update")),
        trainer.predictor.register_forward_hook(lambda *_: mark("prediction")),
        *(module.register_forward_hook(lambda *_: mark("target forward")) for module in target),
        trainer.optimizer.register_step_pre_hook(lambda *_: mark("loss and backward")),
        trainer.optimizer.register_step_post_hook(lambda *_: mark("optimizer")),
    ]


def memory_estimate(trainer: Trainer, kept: dict[int, int], images: Tensor) -> dict:
    """Bytes of a step: 4 (3 P + P_target) + activations kept for backward + images.

    Each of the P trained parameters has a gradient and a momentum. The images are those of one
    batch; pretraining has the whole data set there. What an operation needs while it runs comes on top.
    """
    trained = trainer.named_parameters.values()
    target = list(trainer.target.parameters()) if "target" in trainer.parts else []
    own = {parameter.untyped_storage().data_ptr() for parameter in trained}
    parts = {
        "parameters": 4 * (3 * sum(p.numel() for p in trained) + sum(p.numel() for p in target)),
        "activations": sum(size for address, size in kept.items() if address not in own),
        "images": images.nbytes,
    }
    return {**parts, "estimate": sum(parts.values())}


def record(config: TrainConfig, device, step: dict, predictors: list[dict]) -> dict:
    """What the file of a benchmark holds: what `step_parts` and `predictor_costs` found, and where."""
    return {
        "config": config.to_dict(),
        "step": step,
        "predictors": predictors,
        "precision": hardware.precision_on(device, config.precision),
        "provenance": results.provenance(device),
    }


def print_tables(record: dict) -> None:
    config = record["config"] | {"precision": results.precision(record)}
    step, memory = record["step"], record["step"]["memory"]
    what = ("dataset", "encoder", "width", "batch_size", "precision", "method")
    print(record["provenance"]["device"])
    print("\none step: " + ", ".join(f"{name}={config[name]}" for name in what))
    for row in step["parts"]:
        print(f"  {row['part']:20}{row['ms']:12.2f} ms{row['share']:9.1%}")
    print(f"  {'sum':20}{step['ms']:12.2f} ms, {step['images_per_second']:,.0f} images/s")
    print(f"  {step['tflop']:.3g} TFLOP, {step['tflop_per_second']:.3g} TFLOP/s; "
          f"a product of large matrices, {step['matrix_tflop_per_second']:.3g} TFLOP/s")  # fmt: skip
    if step["captured"]:
        captured = step["captured"]
        print(f"  in CUDA graphs: {captured['ms']:.2f} ms, {captured['images_per_second']:,.0f} images/s, "
              f"{captured['tflop_per_second']:.3g} TFLOP/s")  # fmt: skip
        for row in captured["parts"]:
            print(f"  {row['part']:38}{row['ms']:8.2f} ms{row['share']:9.1%}{row['kernels']:7.0f} kernels")
    if step["compiled"]:
        print(f"  compiling took {step['seconds_to_compile']:.0f} s")
    if step["clocks"]:
        print("  " + ", ".join(f"{name} {value:g}" for name, value in step["clocks"].items()))
    sizes = {name: "?" if size is None else f"{size / 2**20:,.0f}" for name, size in memory.items()}
    print("  memory in MiB: " + ", ".join(f"{name} {size}" for name, size in sizes.items()))
    dims = sorted({row["dim"] for row in record["predictors"]})
    print("\nms to have a new W_p, per step\n" + " " * 26 + "".join(f"{f'D={D}':>10}" for D in dims))
    for label in dict.fromkeys(row["label"] for row in record["predictors"]):
        times = [row["ms"] for row in record["predictors"] if row["label"] == label]
        print(f"  {label:24}" + "".join(f"{ms:10.3f}" for ms in times))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dcopy.bench", description=__doc__ and __doc__.splitlines()[0]
    )
    parser.add_argument("--config", nargs="*", default=[], metavar="name=value", help="fields of TrainConfig")
    parser.add_argument("--device", help=hardware.WORDS)
    parser.add_argument("--steps", type=int, default=10, help="training steps to time (default: 10)")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="compile the step (default: on a GPU)"
    )
    parser.add_argument("--full", action="store_true", help=f"D={LARGE_DIM} on a CPU, too")
    parser.add_argument("--out", help="JSON file to write")
    args = parser.parse_args(arguments)
    try:
        config = TrainConfig.from_dict(parse_options(args.config))
        device, _ = hardware.choose(args.device, config.precision)
        if args.out:
            results.require_writable(results.resolve(args.out))
        step = step_parts(config, device, args.steps, compile=args.compile)
        large = [LARGE_DIM] if args.full or device.type == "cuda" else []
        measured = record(config, device, step, predictor_costs((*DIMS, *large), device))
        print_tables(measured)
        if args.out:
            results.write_json(results.resolve(args.out), measured)
    except (ValueError, OSError) as error:
        print(f"error: {machine.explain(error)}", file=sys.stderr)
        return 2
    return 0
