"""A step whose batch lies in parts on several ranks: gradients and BatchNorm are those of the whole batch.

`nn.SyncBatchNorm` refuses tensors on the CPU and waits for the host in every layer. The BatchNorm here sends
mean, variance and number of each rank's part in one message forward, and two sums a channel in one backward.
The passes over the images are torch's own kernels.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from .step import Trainer


def parallelize(trainer: Trainer, share: float) -> None:
    """Have the trainer's steps be those of the whole batch.

    Args:
        trainer: of this rank, in the state of all ranks.
        share: this rank's part of a batch, 1 where all parts are equal.
    """
    for module in trainer.parts.values():
        for layer in module.modules():
            if isinstance(layer, _BatchNorm):
                own = type(layer).forward is not _BatchNorm.forward
                if own and not hasattr(layer, "act"):
                    name = type(layer).__name__
                    raise ValueError(
                        f"{name} is a BatchNorm of its own kind; train this encoder in one process"
                    )
                layer.forward = functools.partial(batch_norm, layer)
    passes = Passes(trainer, share)
    trainer.forward = DistributedDataParallel(passes, broadcast_buffers=False, gradient_as_bucket_view=True)


class Passes(nn.Module):
    """The passes of a trainer's step as a module, which is what DistributedDataParallel takes.

    It averages gradients over ranks, so a rank with a larger part of the batch has a larger loss.
    """

    def __init__(self, trainer, share: float):
        super().__init__()
        self.online, self.predictor = trainer.online, trainer.predictor
        self.passes, self.share = trainer.forward, share

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        loss, z = self.passes(x1, x2)
        return loss * self.share, z


def batch_norm(layer: _BatchNorm, x: Tensor) -> Tensor:
    """As the layer's own forward on the whole batch, of which x (N, C, ...) is this rank's part."""
    if not layer.training:
        return type(layer).forward(layer, x)
    mean, var, count = statistics(x.detach())
    if layer.track_running_stats:
        with torch.no_grad():
            layer.num_batches_tracked += 1
            layer.running_mean.lerp_(mean, layer.momentum)
            layer.running_var.lerp_(var * (count / (count - 1)), layer.momentum)
    y = Normalize.apply(x, mean, var, count, layer.weight, layer.bias, layer.eps)
    return layer.act(layer.drop(y)) if hasattr(layer, "act") else y  # timm's BatchNormAct2d


def statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), variance (C,) and number () of a channel's values in the x (N, C, ...) of all ranks."""
    C, ranks = x.shape[1], distributed.get_world_size()
    if not x.is_cuda:  # which sums in float32 by itself
        x = x.to(torch.promote_types(x.dtype, torch.float32))
    mean, var = torch.batch_norm_update_stats(x, None, None, 0.0)  # (C,), (C,)
    every = mean.new_zeros(ranks, 2 * C + 1)
    every[distributed.get_rank()] = torch.cat((mean, var, mean.new_full((1,), x.numel() // C)))
    distributed.all_reduce(every)
    means, variances, counts = every.split((C, C, 1), dim=1)  # (ranks, C), (ranks, C), (ranks, 1)
    count = counts.sum()
    mean = (counts * means).sum(0) / count
    var = (counts * (variances + (means - mean) ** 2)).sum(0) / count
    return mean, var, count


class Normalize(torch.autograd.Function):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, where mean and var depend on the x of all ranks.

    With s = weight / sqrt(var + eps) and x^ the normalized x, the gradient is
    dx = s (dy - mean(dy) - x^ mean(dy x^)). Its first term is that of constant mean and var; the means are
    over all ranks.
    """

    @staticmethod
    def forward(ctx, x, mean, var, count, weight, bias, eps):
        ctx.save_for_backward(x, mean, var, count, weight)
        ctx.eps = eps
        return nn.functional.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx, dy):
        x, mean, var, count, weight = ctx.saved_tensors
        scale = torch.ones_like(mean) if weight is None else weight
        invstd = (var + ctx.eps).rsqrt()
        dx, d_weight, d_bias = torch.ops.aten.native_batch_norm_backward(
            dy, x, scale, mean, var, mean, invstd, False, ctx.eps, [True, True, True]
        )
        means = torch.stack((d_weight, d_bias))  # (2, C)
        distributed.all_reduce(means)
        mean_dy_x, mean_dy = means / count
        slope = scale * invstd.square() * mean_dy_x
        shift = scale * invstd * mean_dy - slope * mean
        shape = (1, -1, *(1,) * (x.ndim - 2))
        dx = dx.addcmul_(x, -slope.view(shape)).sub_(shift.view(shape))
        own = (None, None) if weight is None else (d_weight, d_bias)
        return dx, None, None, None, *own, None
