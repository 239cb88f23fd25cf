"""A run of a fraction of a second, for tests that look at how a run goes and not at what it learns."""

import torch

from dcopy.config import TrainConfig
from dcopy.training import checkpoint
from dcopy.training.loop import pretrain
from dcopy.training.runs import Run

torch.set_num_threads(1)  # the fastest for networks so small; and a process without threads can fork


def tiny_config(**fields) -> TrainConfig:
    """3 epochs of 3 steps on `tiny_images`."""
    small = {"epochs": 3, "batch_size": 16, "width": 2, "hidden_dim": 16, "projection_dim": 8}
    return TrainConfig(**small | fields)


def tiny_images(count: int = 50, seed: int = 0) -> torch.Tensor:
    """Random blobs (N, 1, 16, 16) uint8; with batches of 16, two are left over."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 1, 4, 4, generator=generator)
    return (torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear") * 255).byte()


def tiny_run(folder, config: TrainConfig, **options) -> Run:
    return pretrain(config, folder, **{"images": tiny_images(), "device": "cpu", "progress": False} | options)


def tiny_views(batch_size: int = 16, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two views of a batch (N, 1, 16, 16) float32, as augmentation might make them."""
    generator = torch.Generator().manual_seed(seed)
    images = tiny_images(batch_size, seed).float() / 255
    noise = torch.randn(2, *images.shape, generator=generator)
    return images + 0.1 * noise[0], images + 0.1 * noise[1]


def untimed(records):
    timed = ("seconds", "data_wait")
    return [{key: value for key, value in record.items() if key not in timed} for record in records]


def assert_same(first, second):
    """Bitwise equal: every tensor of the last state, every record of metrics, every number of the result."""
    states = [checkpoint.read(run.folder / checkpoint.NEWEST) for run in (first, second)]
    (tensors, header), (others, other_header) = states
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name
    assert [header[key] for key in ("epoch", "step")] == [other_header[key] for key in ("epoch", "step")]
    assert untimed(first.metrics) == untimed(second.metrics)
    assert [record["epoch"] for record in first.metrics] == [*range(1, first.config.epochs + 1)]
    for run in (first, second):
        assert untimed([run.result["metrics"]]) == untimed(run.metrics[-1:])
        assert run.result["encoder_fingerprint"] == checkpoint.fingerprint(run.encoder.encoder)
        assert not list(run.folder.glob(".*.tmp"))
