"""Cells of a phase diagram per second: the batched integrator against a plain Python loop.

    python benchmarks/theory.py --grid 80 --out results/bench/theory.json

The loop solves the same equation to the same verdict in plain Python floats, one cell after the
other, with SciPy's integrator and with a hand-written fourth-order one; it runs on a sample of
the cells. Both run in this process, in turn, so that what else the machine does falls on both.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import torch
from scipy.integrate import solve_ivp

from dcopy import results, theory
from dcopy.bench.measure import out_file, positive
from dcopy.theory.explorer import Explorer
from dcopy.theory.grid import cell_centres

ALIVE, DEAD_TIME = 1e-3, 2000.0  # a weight below ALIVE is dead; cells close to the edge need this long


def velocity(lam: float, variance: float, eta: float) -> float:
    c = 1 + variance
    q = c * lam * lam
    return lam * (q - c * q * q - eta)


def plain_loop(variance: float, eta: float, step: float = 0.5) -> bool:
    """Fourth-order Runge-Kutta until the weight is dead or at rest."""
    lam, time_left = 1.0, DEAD_TIME
    step = min(step, 1 / (1 + variance) ** 3)  # stable from the start at weight 1
    while time_left > 0 and lam > ALIVE:
        k1 = velocity(lam, variance, eta)
        k2 = velocity(lam + step / 2 * k1, variance, eta)
        k3 = velocity(lam + step / 2 * k2, variance, eta)
        k4 = velocity(lam + step * k3, variance, eta)
        change = step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        if abs(change) < 1e-10 * step:
            break
        lam, time_left = lam + change, time_left - step
    return lam > ALIVE


def scipy_loop(variance: float, eta: float) -> bool:
    options = {"method": "RK45", "rtol": 1e-8, "atol": 1e-10}
    path = solve_ivp(lambda _, y: velocity(y[0], variance, eta), (0, DEAD_TIME), [1.0], **options)
    return path.y[0, -1] > ALIVE


def rate(function, cells: list[tuple]) -> tuple[float, list]:
    started = time.perf_counter()
    found = [function(*cell) for cell in cells]
    return len(cells) / (time.perf_counter() - started), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--grid", type=positive, default=80, help="cells along a side")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sample", type=positive, default=200, help="cells that the plain loops solve")
    parser.add_argument("--out", type=out_file, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    record = {"provenance": results.provenance(arguments.device), "batched": []}
    for grid in (arguments.grid // 2, arguments.grid, 2 * arguments.grid):
        started = time.perf_counter()
        diagrams = theory.phase_diagrams(arguments.device, grid)
        seconds = time.perf_counter() - started
        per_second = 3 * grid * grid / seconds
        record["batched"].append({"grid": grid, "seconds": seconds, "cells_per_second": per_second})
        print(f"batched, three {grid} x {grid} diagrams: {seconds:.2f} s, {per_second:,.0f} cells/s")
        assert all(row["pass"] for row in diagrams.rows)

    etas, variances = cell_centres(0.0, 0.3, arguments.grid), cell_centres(0.0, 3.0, arguments.grid)
    pick = random.Random(0)
    cells = [(pick.choice(variances).item(), pick.choice(etas).item()) for _ in range(arguments.sample)]
    expected = [eta < theory.threshold(variance).item() for variance, eta in cells]
    best = max(entry["cells_per_second"] for entry in record["batched"])
    for name, function in (("plain Python loop", plain_loop), ("SciPy in a loop", scipy_loop)):
        per_second, found = rate(function, cells)
        wrong = sum(a != b for a, b in zip(found, expected, strict=True))
        record[name] = {"cells_per_second": per_second, "wrong": wrong, "sample": len(cells)}
        print(f"{name}: {per_second:,.0f} cells/s, 1/{best / per_second:,.0f} of the batch, {wrong} wrong")

    explorer, redraws = Explorer(), []
    for eta in cell_centres(0.0, 0.3, 40).tolist():
        started = time.perf_counter()
        explorer.update(eta=eta)
        redraws.append(time.perf_counter() - started)
    record["redraw_ms"] = {"median": 1e3 * statistics.median(redraws), "slowest": 1e3 * max(redraws)}
    print("a slider redraws in {median:.0f} ms, at most {slowest:.0f} ms".format(**record["redraw_ms"]))
    if arguments.out:
        results.write_json(arguments.out, record)


if __name__ == "__main__":
    main()
