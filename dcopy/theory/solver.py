"""A batched Dormand-Prince integrator in which every cell of a grid keeps its own step size.

Near a threshold a cell crawls while its neighbours are done; with one common step the crawling
cell would be charged for all, and all for the fastest. Here each cell steps at its own pace and
leaves the batch when it arrives, so the cost is linear in the number of cells.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..config import require

# Dormand and Prince (1980), orders 5 and 4; the last row of A is also the fifth-order weights.
A = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
E = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)  # error of a step

LONGEST = 1e8  # time units after which `limit` stops looking


def integrate(
    field: Callable[..., Tensor],
    start: Tensor,
    times: Tensor | Sequence[float],
    args: Sequence[Tensor | float] = (),
    *,
    state_dims: int = 1,
    rtol: float = 1e-10,
    atol: float = 1e-12,
    settle: bool = False,
    max_steps: int = 50_000,
) -> Tensor:
    """States at `times` of dy/dt = field(y, *args) from y(0) = start, one solution per cell.

    Args:
        field: velocity of a batch of states; called as field(y, *args) with y (N, *state).
        start: (*grid, *state), the states at time 0; float64 for the tolerances below.
        times: (T,), finite and increasing, in the flow's time unit, the first at least 0.
        args: parameters of the field; a tensor carries the grid dimensions first (size 1
            broadcasts), a number is shared by all cells.
        state_dims: how many trailing dimensions of `start` are one state (0 numbers, 1 features, 2 matrix).
        rtol: local error of a step relative to the state.
        atol: local error of a step, absolute.
        settle: stop a cell once ten steps in a row, each as long as it may be, hardly move it.
        max_steps: steps of the slowest cell before the integrator gives up.

    Returns:
        (T, *grid, *state), the states at `times`.

    Raises:
        ValueError: `times` do not increase or are not finite, a tolerance is below 0, or a solution leaves
            the finite numbers.

    >>> rates = torch.tensor([1.0, 2.0], dtype=torch.float64)
    >>> decay = integrate(lambda y, rate: -rate * y, torch.ones_like(rates), [1.0], (rates,), state_dims=0)
    >>> decay.log().round(decimals=6).tolist()
    [[-1.0, -2.0]]
    """
    times = [float(t) for t in times]
    for time in times:
        require("times", time, math.isfinite(time), "finite numbers; `limit` goes on until nothing moves")
    if not times or times[0] < 0 or any(b <= a for a, b in itertools.pairwise(times)):
        raise ValueError(f"times={times[:3]}... must increase from 0 or later: the flow runs forward only")
    for name, value in (("rtol", rtol), ("atol", atol)):
        require(name, value, value >= 0, "a number of at least 0")
    split = start.dim() - state_dims
    grid, state = start.shape[:split], start.shape[split:]
    N = math.prod(grid)  # cells
    y = start.reshape(N, *state)
    args = [_per_cell(a, grid, N) for a in args]
    step = torch.full((N,), 1e-3, dtype=y.dtype, device=y.device)
    states, now = [], 0.0
    for time in times:
        if time > now:
            y, step = _advance(field, y, time - now, step, args, rtol, atol, settle, max_steps)
            now = time
        states.append(y)
    return torch.stack(states).reshape(len(times), *grid, *state)


def limit(
    field: Callable[..., Tensor], start: Tensor, args: Sequence = (), *, state_dims: int = 1, **options
) -> Tensor:
    """Where the flow comes to rest: `integrate` until no cell moves any more, to about 1e-9.

    Args: as `integrate`, with its further options; without `times`.

    Returns:
        (*grid, *state), the resting states.

    >>> logistic = lambda y: y * (1 - y)
    >>> limit(logistic, torch.tensor([0.1], dtype=torch.float64), state_dims=0).round(decimals=9).tolist()
    [1.0]
    """
    options = {"rtol": 1e-10, "atol": 1e-12, "settle": True} | options
    return integrate(field, start, [LONGEST], args, state_dims=state_dims, **options)[0]


def survives(
    field: Callable[..., Tensor], start: Tensor, args: Sequence = (), *, state_dims: int = 1
) -> Tensor:
    """Whether the flow comes to rest away from 0; looser tolerances than `limit`, as a verdict needs.

    Args: as `limit`.

    Returns:
        (*grid,), bool.

    >>> start = torch.tensor([0.4, 0.6], dtype=torch.float64)
    >>> survives(lambda y: y * (y - 0.5) * (1 - y), start, state_dims=0).tolist()
    [False, True]
    """
    end = limit(field, start, args, state_dims=state_dims, rtol=1e-8, atol=1e-10).abs()
    return (end.flatten(-state_dims).amax(-1) if state_dims else end) > 1e-3


def _per_cell(arg, grid, N):
    if not isinstance(arg, Tensor):
        return arg
    tail = arg.shape[len(grid) :]
    return arg.expand((*grid, *tail)).reshape(N, *tail)  # a grid without dimensions is one cell


def _largest(y: Tensor) -> Tensor:
    return y.reshape(len(y), -1).amax(1)  # (N, *state) -> (N,)


def _advance(field, y, span, step, args, rtol, atol, settle, max_steps):
    """Move every cell of y (N, *state) forward by `span`; also returns the last step sizes (N,)."""
    arrived, last_step = y.clone(), step.clone()
    cells = torch.arange(len(y), device=y.device)
    left, calm = torch.full_like(step, span), torch.zeros_like(step)  # calm: steps without motion
    slope = field(y, *args)
    wide = (-1,) + (1,) * (y.dim() - 1)  # (N,) against (N, *state)
    rows, weights = (
        [torch.tensor(row, dtype=y.dtype, device=y.device) for row in A],
        torch.tensor(E, dtype=y.dtype, device=y.device),
    )
    for _ in range(max_steps):
        h = torch.minimum(step, left)
        stages = y.new_empty(7, *y.shape)
        stages[0] = slope
        for i, row in enumerate(rows, start=1):
            trial = y + h.view(wide) * torch.tensordot(row, stages[:i], 1)
            stages[i] = field(trial, *args)
        error = h.view(wide) * torch.tensordot(weights, stages, 1)
        tolerance = atol + rtol * torch.maximum(y.abs(), trial.abs())
        ratio = _largest(error.abs() / tolerance)
        good = ratio <= 1  # a NaN is not good: the step is tried again, smaller
        factor = (0.9 * ratio.clamp(min=1e-10) ** -0.2).clamp(0.2, 5.0).nan_to_num(nan=0.2)
        y = torch.where(good.view(wide), trial, y)
        slope = torch.where(good.view(wide), stages[-1], slope)  # first stage of the next step
        # A step cut short by the end of the span says nothing about the size of the next one.
        step = torch.where(good & (h < step), step, h * factor)
        left = torch.where(good, left - h, left)
        done = left <= 1e-14 * span
        if settle:
            small = _largest(h.view(wide) * slope.abs() / tolerance) < 100
            calm = torch.where(good, (calm + 1) * small, calm)
            done |= calm >= 10  # at an unstable point the steps would have grown until they move it
        if done.any():
            arrived[cells[done]], last_step[cells[done]] = y[done], step[done]
            keep = ~done
            cells, y, step, left, slope, calm = (v[keep] for v in (cells, y, step, left, slope, calm))
            args = [a[keep] if isinstance(a, Tensor) else a for a in args]
            if not len(cells):
                return arrived, last_step
        if step.min() < 1e-14 * span and step.min() < 1e-12:
            raise ValueError("a solution leaves the finite numbers: the step size fell below 1e-12")
    raise ValueError(f"{len(cells)} cells did not arrive within max_steps={max_steps}; give a shorter time")


def edge(
    outcome: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, rounds: int = 3, points: int = 257
) -> Tensor:
    """Where a yes-no outcome changes between `low` and `high`, by rounds of `points` trials at once.

    Args:
        outcome: trials (*grid, points) -> bool (*grid, points), changing once.
        low: (*grid,), one side, positive.
        high: (*grid,), the other side.
        rounds: each narrows the bracket by points - 1.
        points: trials in a round, in equal ratios.

    Returns:
        (*grid,), middle of the last bracket, within a factor (high / low)^(1 / (points - 1)^rounds).

    >>> one = torch.ones(1, dtype=torch.float64)
    >>> round(edge(lambda x: x > 0.3, 0.1 * one, one).item(), 6)
    0.3
    """
    for name, side in (("low", low), ("high", high)):
        require(name, side.min().item(), (side > 0).all(), "positive: trials are in equal ratios")
    part = torch.linspace(0, 1, points, dtype=low.dtype, device=low.device)
    for _ in range(rounds):
        trials = low.unsqueeze(-1) * (high / low).unsqueeze(-1) ** part  # (*grid, points)
        found = outcome(trials)
        like_low = (found == found[..., :1]).to(torch.int8).cumprod(-1).sum(-1, keepdim=True)
        low = trials.gather(-1, like_low - 1).squeeze(-1)
        high = trials.gather(-1, like_low.clamp(max=points - 1)).squeeze(-1)
    return (low * high).sqrt()
