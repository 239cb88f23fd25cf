"""Augmentation and step as one call, as fast as the device allows; what they compute stays as it is.

On a GPU the networks and the augmentation are compiled, and after a few steps the work of a step is
captured as two CUDA graphs and replayed. The predictor's update lies between the graphs and runs as it
is written: DirectPred's `eigh` waits for the host, which no graph can hold, and `freq` is a condition.
Where compiling or capturing is not possible, one line says so and training goes on without it.
"""

from __future__ import annotations

import copy
import logging

import torch
from torch import Generator, Tensor

from ..data.augment import Augmentation, require_batch
from .ranks import Alone
from .step import Trainer

log = logging.getLogger(__name__)

WARMUP = 3  # steps before the capture: gradients, momentum and kernels have to be there


class FastStep:
    """What a run does at each step, from a batch of images on.

    Args:
        trainer: whose state the steps move.
        augmentation: makes the two views.
        compile: whether to use torch.compile and, on a GPU, CUDA graphs; None: on a GPU. With several
            processes only the augmentation is compiled: messages between them break graphs.
        ranks: the processes that share a batch.
    """

    def __init__(
        self,
        trainer: Trainer,
        augmentation: Augmentation,
        compile: bool | None = None,
        ranks: Alone | None = None,
    ):
        self.trainer, self.augmentation, self.ranks = trainer, augmentation, ranks or Alone()
        self.applies = [view.apply for view in augmentation.views]
        self.is_cuda = trainer.device.type == "cuda"
        self.compiled = self.is_cuda if compile is None else compile
        alone = self.ranks.size == 1
        obstacle = why_no_graphs(trainer) if self.compiled and self.is_cuda and alone else None
        self.captures = self.compiled and self.is_cuda and alone and obstacle is None
        if obstacle:
            log.warning("%s", obstacle)
        self.networks = {trainer.online, trainer.target} if self.compiled and alone else ()
        self.steps, self.graphs = 0, None
        if self.compiled:
            torch._dynamo.config.recompile_limit = 64  # past it, further settings in a process would be eager
            self.applies = [torch.compile(apply, dynamic=False) for apply in self.applies]
        for network in self.networks:  # its forward alone: hooks stay outside
            network.forward = torch.compile(network.forward, dynamic=False)
        self.stream = None
        if self.is_cuda:
            torch.backends.cudnn.benchmark = True  # shapes stay the same
            self.stream = torch.cuda.Stream(trainer.device)

    def __call__(self, images: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """One step on a batch.

        Args:
            images: (N, C, H, W) uint8, or two crops of each, (N, 2, C, h, w); of the same shape at every
                call; those of this rank.
            generator: gives the augmentation of both views.

        Returns:
            As `Trainer.step`; on a GPU the next call overwrites both.
        """
        if not self.is_cuda:
            return self._step(images, generator)
        # A capture must not meet work on the default stream, so nothing here runs there.
        here = torch.cuda.current_stream(images.device)
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            outcome = self._step(images, generator)
        here.wait_stream(self.stream)
        return outcome

    def views(self, images: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Two views (N, C, h, w) float32, each with random numbers of its own."""
        pair, views = images.unbind(1) if images.dim() == 5 else (images, images), self.augmentation.views
        for one in pair:
            require_batch(one)
        drawn = [self.ranks.sample(view, one, generator) for view, one in zip(views, pair, strict=True)]
        x1, x2 = (apply(*given) for apply, *given in zip(self.applies, pair, drawn, strict=True))
        return x1, x2

    def _step(self, images: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        self.steps += 1
        if self.compiled and self.steps == 1:
            return self._first(images, generator)
        if self.captures and self.graphs is None and self.steps > WARMUP:
            self._capture(images)
        if self.graphs is not None:
            return self.graphs.replay(images, generator)
        return self.trainer.step(*self.views(images, generator))

    def _first(self, images: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """The first step compiles. If that fails, it is taken back and done again without."""
        parts = self.trainer.parts.values()
        before = copy.deepcopy([part.state_dict() for part in parts]), generator.get_state()
        try:
            return self.trainer.step(*self.views(images, generator))
        except RuntimeError as error:  # of Dynamo, Inductor, Triton or a C++ compiler
            log.warning(
                "torch.compile is not possible here (%s); training goes on without it", one_line(error)
            )
        self.compiled, self.applies = False, [view.apply for view in self.augmentation.views]
        for network in self.networks:
            del network.forward  # the class's own is there again
        for part, state in zip(parts, before[0], strict=True):
            part.load_state_dict(state)
        generator.set_state(before[1])
        return self.trainer.step(*self.views(images, generator))

    def _capture(self, images: Tensor) -> None:
        try:
            self.graphs = Graphs(self.trainer, self.views, images, self.stream)
        except RuntimeError as error:
            log.warning("CUDA graphs are not possible here (%s); training goes on without", one_line(error))
            self.captures = False


def why_no_graphs(trainer: Trainer) -> str | None:
    """What keeps a trainer's step out of CUDA graphs, which do the same at each replay; None: nothing."""
    config = trainer.config
    if trainer.scaler.is_enabled():
        return "fp16 goes without CUDA graphs: after each step the host asks whether it overflowed"
    if config.warmup or not config.begins_longer_runs:
        return "schedules go without CUDA graphs: lr and ema are others at each step"
    if config.optimizer == "lars" or config.accumulate > 1:
        return "LARS and accumulate go without CUDA graphs, which are made for a plain step of SGD"
    return None


class Graphs:
    """Augmentation and `Trainer.step` as two CUDA graphs with the predictor's update between them.

    Capturing runs nothing, so it leaves the state of the trainer as it is.

    Args:
        trainer: whose step it is.
        augment: makes two views of images, with a generator.
        images: as each step gets them.
        stream: in which to capture.
    """

    def __init__(self, trainer: Trainer, augment, images: Tensor, stream):
        self.predictor, self.images = trainer.predictor, images.clone()
        self.generator = Generator(images.device)  # the one that a replay draws from

        def project() -> list[Tensor]:
            views = augment(self.images, self.generator)
            z = trainer.project(*views)
            return [torch.cat(z).detach(), *views, *z]

        def learn() -> list[Tensor]:
            _, x1, x2, *z = self.projected
            loss = trainer.loss(z, x1, x2)
            trainer.descend(loss)
            return [loss.detach()]

        self.project, self.projected = capture(project, stream, generator=self.generator)
        self.learn, self.loss = capture(learn, stream, self.project.pool())

    def replay(self, images: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """One step on these images; the tensors returned are the same at every call."""
        self.images.copy_(images)
        self.generator.set_state(generator.get_state())
        self.project.replay()
        generator.set_state(self.generator.get_state())
        self.predictor.update(self.projected[0])
        self.learn.replay()
        return self.loss[0], self.projected[3].detach()


def capture(function, stream, pool=None, generator=None) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    """A graph that does what `function` does, and the tensors that a replay fills."""
    graph = torch.cuda.CUDAGraph()
    if generator is not None:
        graph.register_generator_state(generator)
    # thread_local: the thread that pins the next batch may allocate meanwhile
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        outputs = function()
    return graph, outputs


def one_line(error: Exception) -> str:
    """What an error says, for a sentence: its first line that does not only announce others."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line and not line.endswith(":")), type(error).__name__)
