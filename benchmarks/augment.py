"""Time the batched augmentation against torchvision's per-image transforms, same operations.

    python benchmarks/augment.py --recipe cifar --device cpu --out results/bench/augment.json

Both run in this process, in turn, so that what else the machine does falls on both. torchvision
runs twice: on float tensors, which is what ours equals, and on PIL images, which is what most
training code does. It takes no workers: on n cores they divide its time by n at best.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torchvision.transforms import v2

from dcopy import hardware, results
from dcopy.bench.measure import out_file, positive
from dcopy.data import augment

SHAPES = {"digits": (1, 16, 16), "cifar": (3, 32, 32), "stl10": (3, 96, 96)}

TORCHVISION = {  # operation of ours: torchvision's
    augment.RandomResizedCrop: lambda op: v2.RandomResizedCrop(op.size, op.area, op.ratio, antialias=True),
    augment.HorizontalFlip: lambda op: v2.RandomHorizontalFlip(op.p),
    augment.RandomAffine: lambda op: v2.RandomAffine(
        op.degrees, (op.translate, op.translate), op.scale, op.shear, v2.InterpolationMode.BILINEAR
    ),
    augment.ColorJitter: lambda op: v2.RandomApply(
        [v2.ColorJitter(op.brightness, op.contrast, op.saturation, op.hue)], op.p
    ),
    augment.Grayscale: lambda op: v2.RandomGrayscale(op.p),
    augment.GaussianBlur: lambda op: v2.RandomApply([v2.GaussianBlur(op.kernel, op.sigma)], op.p),
}
FLOAT_ONLY = {
    augment.GaussianNoise: lambda op: v2.GaussianNoise(0.0, op.std),
    augment.Normalize: lambda op: v2.Normalize(op.mean, op.std),
}


def torchvision_transforms(recipe: augment.Augmentation) -> dict[str, v2.Compose]:
    """The recipe as torchvision's transforms of one uint8 image, on tensors and on PIL images."""
    on_any = [TORCHVISION[type(op)](op) for op in recipe.operations if type(op) in TORCHVISION]
    on_float = [FLOAT_ONLY[type(op)](op) for op in recipe.operations if type(op) in FLOAT_ONLY]
    to_float = v2.ToDtype(torch.float32, scale=True)
    return {
        "torchvision, float tensors": v2.Compose([to_float, *on_any, *on_float]),
        "torchvision, PIL images": v2.Compose([*on_any, v2.ToImage(), to_float, *on_float]),
    }


def seconds(work, device: str) -> float:
    """Wall time of one call, the device's own work included."""
    synchronize = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


def median_seconds(works: dict, repeats: int, device: str) -> dict[str, float]:
    """Median time of each piece of work; they take turns, and the first round only warms up."""
    times = {name: [] for name in works}
    for _ in range(1 + repeats):
        for name, work in works.items():
            times[name].append(seconds(work, device))
    return {name: statistics.median(drawn[1:]) for name, drawn in times.items()}


def compare(recipe: augment.Augmentation, images: torch.Tensor, repeats: int, compiled: bool) -> list[dict]:
    """Images per second of each way, and ours as a multiple of it."""
    device = str(images.device)
    generator = torch.Generator(images.device).manual_seed(0)
    works = {"dcopy, batch": lambda: recipe(images, generator)}
    if compiled:
        apply = torch.compile(recipe.apply, fullgraph=True)
        works["dcopy, batch, compiled"] = lambda: apply(images, recipe.sample(images.shape, generator))
    tensors, pil = torchvision_transforms(recipe).items()
    inputs = {tensors[0]: list(images.cpu()), pil[0]: [v2.functional.to_pil_image(x) for x in images.cpu()]}
    for name, transform in (tensors, pil):  # per image, on the CPU, as in a loader's worker
        works[name] = lambda t=transform, xs=inputs[name]: torch.stack([t(x) for x in xs]).to(device)
    times = median_seconds(works, repeats, device)
    ours = times["dcopy, batch"]
    return [
        {"way": name, "images_per_second": len(images) / t, "ms": 1e3 * t, "ours_is_faster_by": t / ours}
        for name, t in times.items()
    ]


def shares(recipe: augment.Augmentation, images: torch.Tensor, repeats: int) -> list[dict]:
    """Time of each part of ours, called alone, and its share of their sum."""
    generator = torch.Generator(images.device).manual_seed(0)
    params = recipe.sample(images.shape, generator)
    works = {
        "sample": lambda: recipe.sample(images.shape, generator),
        "to float": lambda: augment.to_float(images),
    }
    x = augment.to_float(images)
    for operation, drawn in zip(recipe.operations, params, strict=True):
        works[type(operation).__name__] = lambda op=operation, x=x, drawn=drawn: op.apply(x, drawn)
        x = operation.apply(x, drawn)
    times = median_seconds(works, repeats, str(images.device))
    total = sum(times.values())
    return [{"part": name, "ms": 1e3 * t, "share": t / total} for name, t in times.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__ and __doc__.splitlines()[0])
    parser.add_argument("--recipe", default="cifar", choices=augment.RECIPES)
    parser.add_argument(
        "--images", type=positive, default=256, help="images a batch; 256 are two views of 128"
    )
    parser.add_argument("--repeats", type=positive, default=10)
    parser.add_argument("--device", help=hardware.WORDS)
    parser.add_argument("--compile", action="store_true", help="time the compiled batch, too (a minute more)")
    parser.add_argument("--out", type=out_file, help="JSON file to write")
    args = parser.parse_args()

    recipe = augment.build(args.recipe)
    images = torch.randint(0, 256, (args.images, *SHAPES[args.recipe]), dtype=torch.uint8).to(args.device)
    ways = compare(recipe, images, args.repeats, args.compile)
    parts = shares(recipe, images, args.repeats)

    print(f"{args.recipe}, batches of {args.images}, {hardware.name(args.device)}")
    for way in ways:
        print(f"{way['way']:28}{way['images_per_second']:12,.0f} images/s{way['ours_is_faster_by']:10.1f}x")
    for part in parts:
        print(f"  {part['part']:26}{part['ms']:12.2f} ms{part['share']:16.0%}")
    if args.out:
        record = {"recipe": args.recipe, "batch": args.images, "threads": torch.get_num_threads()}
        record |= {"ways": ways, "parts": parts, "provenance": results.provenance(args.device)}
        results.write_json(args.out, record)


if __name__ == "__main__":
    main()
