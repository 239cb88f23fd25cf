"""Claims 9 to 11: finite samples, labels needed downstream, and SGD with its running correlation."""

from __future__ import annotations

import torch
from torch import Tensor

from . import closed_forms as theory
from .evidence import Evidence, exact, experiment, statistical
from .flow import directset, moments
from .grid import random_basis
from .sample_forms import check_rank, excess_risk, finite_sample_error, labels_needed, sgd_ball
from .samples import crossing, least_squares_excess, polar, row_space, sample_views, sgd, slope
from .solver import integrate, limit

SEARCH = (
    0.5,
    0.6,
    0.7,
    0.8,
    0.9,
    1.0,
    1.1,
    1.25,
    1.5,
    2.0,
    2.5,
)  # label counts tried, over the predicted one


def two_variances(d: int, rank: int, variance: float) -> Tensor:
    """Variances (d,) of the paper's model: 0 on S, the first `rank` features, `variance` on the rest.

    >>> two_variances(3, 1, 2.0).tolist()
    [0.0, 2.0, 2.0]
    """
    check_rank(rank, d)
    theory.check(variance=variance)
    return torch.cat([torch.zeros(rank), torch.full((d - rank,), variance)]).double()


def _generator(seed: int, device) -> torch.Generator:
    return torch.Generator(device=device).manual_seed(seed)


def learned_from_pairs(
    pairs: list[int],
    variances: Tensor,
    eta: float,
    repeats: int,
    generator: torch.Generator,
    time: float = 160.0,
) -> tuple[Tensor, Tensor]:
    """W after `time` from W(0) = I, when the flow sees n unlabelled pairs, and its velocity there.

    W itself has no limit: it goes on rotating its outputs, the slower the larger n. WᵀW has one.

    Returns:
        W and dW/dt, each (len(pairs), repeats, d, d).
    """
    samples = [moments(*sample_views(n, variances, generator, grid=(repeats,))) for n in pairs]
    auto, cross = (torch.stack(m) for m in zip(*samples, strict=True))  # (len(pairs), repeats, d, d)
    start = torch.eye(len(variances), dtype=torch.float64, device=auto.device).expand_as(auto)
    W = integrate(directset, start, [time], (auto, cross, eta), state_dims=2, rtol=1e-9, atol=1e-11)[0]
    return W, directset(W, auto, cross, eta)


@experiment
def claim_9(device="cpu", repeats: int = 20, seed: int = 0, most_pairs: int = 32_768) -> Evidence:
    """With n unlabelled pairs the learned projection is off by about n^(-1/2), with no floor."""
    d, rank, variance, eta = 6, 3, 3.0, 0.14
    variances = two_variances(d, rank, variance).to(device)
    pairs = [most_pairs >> k for k in reversed(range(6))]
    W, velocity = learned_from_pairs(pairs, variances, eta, repeats, _generator(seed, device))
    target = torch.diag(theory.final_weight(1.0, eta, variances))
    errors = torch.linalg.matrix_norm(polar(W) - target).mT  # (repeats, len(pairs))
    gram_speed = torch.linalg.matrix_norm(velocity.mT @ W + W.mT @ velocity).max()
    slopes = slope(torch.tensor(pairs, dtype=torch.float64, device=device), errors)  # (repeats,)
    leading = finite_sample_error(pairs, eta, variance, d, rank)
    next_order = d**2 / pairs[0]  # relative size of the 1/n term at the fewest pairs
    rows = [
        statistical(9, "slope of log error against log n", -0.5, slopes, allowance=next_order),
        statistical(
            9,
            "mean square error over its leading order, mean over n",
            1.0,
            (errors / leading.to(device)).square().mean(1),
            allowance=next_order,
        ),
        exact(9, "WᵀW comes to rest: largest speed", 0.0, gram_speed),
    ]
    data = {"pairs": pairs, "errors": errors, "leading": leading, "slopes": slopes}
    speeds = torch.linalg.matrix_norm(velocity).mT  # (repeats, len(pairs)), of the rotation that stays
    return Evidence(rows, data | {"speeds": speeds, "d": d, "rank": rank})


def pretrained(Q: Tensor, rank: int, variance: float = 1.0, eta: float = 0.2) -> Tensor:
    """W (d, d) that the flow ends at when S is spanned by the first `rank` columns of Q."""
    check_rank(rank, len(Q))
    eye = torch.eye(len(Q), dtype=Q.dtype, device=Q.device)
    auto = eye + variance * Q[:, rank:] @ Q[:, rank:].mT
    return limit(directset, eye, (auto, eye, eta), state_dims=2)


@experiment
def claim_10(
    device="cpu",
    repeats: int = 20,
    seed: int = 0,
    ranks: tuple[int, ...] = (2, 4, 8, 16),
    dims: tuple[int, ...] = (8, 16, 32, 64),
    excess: float = 0.1,
    noise: float = 1.0,
) -> Evidence:
    """Least squares needs labels in proportion to r after pretraining, and to d on the raw input."""
    generator = _generator(seed, device)
    sweeps = {
        "r": (ranks, [(max(dims), r) for r in ranks]),  # d fixed
        "d": (dims, [(d, min(ranks[1], min(dims))) for d in dims]),  # r fixed
    }
    rows, data = [], {"excess": excess, "noise": noise}
    for name, (values, sizes) in sweeps.items():
        found = {"pretrained": [], "raw": []}
        for d, r in sizes:
            needed = _labels_needed(d, r, excess, noise, repeats, generator)
            for key, value in zip(found, needed, strict=True):
                found[key].append(value)
        axis = torch.tensor(values, dtype=torch.float64, device=device)
        for key, grows_with in (("pretrained", "r"), ("raw", "d")):
            labels = torch.stack(found[key], dim=-1)  # (repeats, len(values))
            features = [r if grows_with == "r" else d for d, r in sizes]
            theory_labels = torch.tensor(
                [labels_needed(excess, p, noise) for p in features], dtype=torch.float64
            )
            statement = f"labels needed against {name}, {key}: exponent"
            predicted = round(slope(axis.cpu(), theory_labels).item(), 12)
            rows.append(statistical(10, statement, predicted, slope(axis, labels).cpu()))
            data[name, key] = {"axis": values, "labels": labels, "theory": theory_labels, "sizes": sizes}
    return Evidence(rows, data)


def _labels_needed(d, r, excess, noise, repeats, generator, tasks: int = 32) -> tuple[Tensor, Tensor]:
    """Labels (repeats,) at which the mean excess of 32 tasks passes `excess`: pretrained, then raw."""
    device = generator.device
    Q = random_basis(d, seed=d + r, device=device)
    basis = row_space(pretrained(Q, r), r)  # what least squares on W x can use
    # Each replicate has its own tasks, all inside S: y = <w*, x> + noise with |w*| = 1.
    coordinates = torch.randn(repeats, r, tasks, generator=generator, dtype=torch.float64, device=device)
    w = Q[:, :r] @ (coordinates / coordinates.norm(dim=1, keepdim=True))
    needed = []
    for B in (basis, torch.eye(d, dtype=torch.float64, device=device)):
        p = B.shape[1]
        designs = max(1, 32 // p)  # few features: a bad design weighs on the mean, so average over several
        labels = sorted({max(p + 2, round(labels_needed(excess, p, noise) * factor)) for factor in SEARCH})
        bases = B.expand(repeats * designs, -1, -1)
        curves = least_squares_excess(bases, w.repeat_interleave(designs, 0), labels, noise, generator)
        curve = curves.reshape(repeats, designs, len(labels)).mean(1)
        counts = torch.tensor(labels, dtype=torch.float64, device=device)
        needed.append(crossing(counts, curve, excess))
    return needed[0], needed[1]


@experiment
def imperfect_pretraining(
    device="cpu", repeats: int = 20, seed: int = 0, d: int = 32, rank: int = 4, noise: float = 0.5
) -> Evidence:
    """Claim 10 with W from finitely many unlabelled pairs: what W misses of S is a floor of the excess."""
    eta, variances = 0.17, two_variances(d, rank, 2.0).to(device)
    generator = _generator(seed, device)
    labels = [d + 4, *range(40, 120, 10), 140, 200, 300, 450, 700, 1000]
    draws = torch.randn(repeats, rank, 32, generator=generator, dtype=torch.float64, device=device)
    w = torch.cat([draws, draws.new_zeros(repeats, d - rank, 32)], dim=1)  # (reps, d, tasks), inside S
    w = w / w.norm(dim=1, keepdim=True)
    pairs = [300, 3000]
    W, _ = learned_from_pairs(pairs, variances, eta, repeats, generator, time=40.0)
    bases = {f"W from {n:,} pairs": row_space(W[i], rank) for i, n in enumerate(pairs)}
    bases["raw input"] = torch.eye(d, dtype=torch.float64, device=device).expand(repeats, d, d)
    bases["S known"] = bases["raw input"][..., :rank]
    curves, rows = {}, []
    for name, basis in bases.items():
        measured = least_squares_excess(basis, w, labels, noise, generator)  # (reps, labels)
        missed = (w - basis @ (basis.mT @ w)).square().sum(1).mean(1)  # (reps,), mean over tasks
        predicted = torch.stack([excess_risk(labels, basis.shape[-1], noise, m) for m in missed.tolist()])
        curves[name] = (measured, predicted)
        ratio = (measured / predicted.to(device))[:, 3:].mean(1)
        rows.append(statistical(10, f"excess risk over its exact mean, {name}", 1.0, ratio))
    return Evidence(rows, {"labels": labels, "curves": curves, "d": d, "rank": rank, "noise": noise})


@experiment
def claim_11(device="cpu", repeats: int = 20, seed: int = 0, time: float = 36.0) -> Evidence:
    """SGD with a running F ends in a ball: radius (lr/batch)^(1/2), centre off by O((1 - rho)/batch)."""
    d, rank, variance, eta = 4, 2, 1.0, 0.16
    variances = two_variances(d, rank, variance).to(device)
    target = torch.diag(theory.final_weight(1.0, eta, variances))
    start = (target > 0).double().expand(repeats, d, d)  # P_S, so that only S has to be forgotten
    generator = _generator(seed, device)
    by_lr = [(lr, 64, 0.8) for lr in (0.02, 0.04, 0.08)]
    by_batch = [(0.04, batch, 0.8) for batch in (32, 64, 128)]
    radii, shifts, paths = {}, {}, {}
    for lr, batch, rho in dict.fromkeys([*by_lr, *by_batch, (0.04, 64, 0.0)]):
        every = round(0.5 / lr)  # steps between two records, half a time unit
        steps = enumerate(sgd(start, variances, eta, lr, batch, rho, round(time / lr), generator), start=1)
        off = torch.stack([polar(W) for step, W in steps if step % every == 0], dim=1) - target
        key = lr, batch, rho
        paths[key] = torch.linalg.matrix_norm(off)  # (chains, records)
        off = off[:, off.shape[1] // 3 :]  # (chains, late records, d, d): the start is forgotten
        radii[key] = (off - off.mean((0, 1))).square().sum((-1, -2)).mean(1).sqrt()  # (chains,)
        shifts[key] = off.mean(1).diagonal(dim1=-2, dim2=-1)[:, :rank].mean(1)  # (chains,)
    balls = {key: sgd_ball(eta, variance, *key, d, rank) for key in radii}
    finite_step = max(lr for lr, *_ in by_lr) / 2  # lr R/2 with R < 1: a step against the flow
    finite_batch = (rank + 1) / min(batch for _, batch, _ in by_batch)  # next order of the noise in F
    rows = []
    for name, keys, axis, power in (("lr", by_lr, 0, 0.5), ("batch", by_batch, 1, -0.5)):
        x = torch.tensor([key[axis] for key in keys], dtype=torch.float64, device=device)
        slopes = slope(x, torch.stack([radii[key] for key in keys], dim=-1))
        rows.append(
            statistical(11, f"radius of SGD's ball against {name}: exponent", power, slopes, finite_step)
        )
    ratios = [(radii[key] / balls[key][1]).square() for key in radii if key[2] > 0]
    rows.append(
        statistical(
            11, "radius² over its leading order, rho = 0.8", 1.0, sum(ratios) / len(ratios), finite_batch
        )
    )
    for key in ((0.04, 64, 0.8), (0.04, 64, 0.0)):
        statement = f"shift of the ball's centre, rho = {key[2]:g}"
        rows.append(statistical(11, statement, balls[key][0], shifts[key], finite_batch))
    data = {"radii": radii, "balls": balls, "paths": paths, "by_lr": by_lr, "by_batch": by_batch}
    return Evidence(rows, data)
