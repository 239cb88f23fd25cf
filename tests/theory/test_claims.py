"""All twelve claims hold; a wrong claim is caught, written, and named."""

import csv
import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch

from dcopy import theory
from dcopy.theory import evidence
from dcopy.theory.claims_samples import learned_from_pairs
from dcopy.theory.samples import crossing, slope

CLAIMS = {  # the experiments at a size for tests
    "1": theory.claim_1,
    "2": theory.claim_2,
    "3": theory.claim_3,
    "4": theory.claim_4,
    "5": partial(theory.claim_5, grid=12),
    "6": theory.claim_6,
    "7": theory.claim_7,
    "8": partial(theory.claim_8, starts=4),
    "9": partial(theory.claim_9, repeats=6),
    "10": partial(theory.claim_10, repeats=8, ranks=(2, 4), dims=(8, 16)),
    "10, unlabelled pairs": partial(theory.imperfect_pretraining, repeats=6, d=12),
    "11": partial(theory.claim_11, repeats=6, time=30.0),
    "12, phase": partial(theory.phase_diagrams, grid=12),
    "12, depth": theory.depth,
    "12, correlated": theory.correlated_noise,
    "12, discrete": theory.discrete_steps,
    "12, learned": partial(theory.learned_predictor, starts=3),
    "13": theory.cosine_loss,
    "13, dimensions": partial(theory.concentration, repeats=4, samples=2000),
}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CLAIMS)
def test_claim_holds(name, device):
    rows = CLAIMS[name](device=device).rows
    judged = [row for row in rows if row["pass"] is not None]  # the others are measured only
    failing = [row for row in judged if not row["pass"]]
    assert judged and not failing, failing
    for row in judged:
        assert row["repeats"] > 1 or row["tolerance"] <= 1e-6  # deterministic rows are held to 1e-6


def test_deterministic_rows_report_the_worst_cell():
    row = evidence.exact(1, "two cells", torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.2]))
    assert not row["pass"]
    assert (row["predicted"], row["relative_error"]) == (2.0, pytest.approx(0.1, rel=1e-6))
    broken = torch.tensor([1.0, float("nan"), 1.0])
    assert not evidence.exact(1, "NaN is the worst of all", torch.ones(3), broken)["pass"]
    assert not evidence.exact(1, "absolute against 0", 0.0, 1e-5)["pass"]


def test_statistical_rows_are_held_to_their_interval():
    draws = 1 + 0.1 * torch.randn(400, 20, generator=torch.Generator().manual_seed(0))
    covered = [evidence.statistical(9, "true mean", 1.0, d)["pass"] for d in draws]
    missed = [evidence.statistical(9, "wrong mean", 1.2, d)["pass"] for d in draws]
    assert sum(covered) >= 396 and sum(missed) <= 4  # 99.9 %, and 0.2 is nine standard errors
    few, many = (evidence.interval(draws[0, :n])[1] for n in (3, 20))
    assert few > 3 * many  # fewer repeats widen the interval by formula
    with pytest.raises(ValueError, match="repeats=1 is not allowed"):
        evidence.interval(torch.ones(1))


def test_a_failing_row_is_written_and_then_named(tmp_path):
    good, bad = evidence.exact(1, "holds", 1.0, 1.0), evidence.exact(2, "does not hold", 1.0, 1.5)
    with pytest.raises(ValueError, match=r"1 of 2 rows fail:\nclaim 2 \(does not hold\)"):
        theory.record([good, bad], tmp_path, "01")
    with open(tmp_path / "theory" / "claims.csv", encoding="utf-8") as file:
        assert [row["pass"] for row in csv.DictReader(file)] == ["True", "False"]


def test_notebooks_that_finish_together_keep_each_others_rows(tmp_path, monkeypatch):
    def slowly(device):  # between reading the old rows and writing the new ones
        time.sleep(0.05)
        return {"commit": "unknown"}

    def write(i):
        theory.record([evidence.exact(i, "row", 1.0, 1.0)], tmp_path, f"{i:02d}")

    monkeypatch.setattr(evidence.results, "provenance", slowly)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    with open(tmp_path / "theory" / "claims.csv", encoding="utf-8") as file:
        assert [row["claim"] for row in csv.DictReader(file)] == ["0", "1", "2", "3"]
    origin = json.loads((tmp_path / "theory" / "claims.json").read_text())
    assert all("commit" in part["provenance"] for part in origin.values())


def test_finite_sample_error_holds_where_the_tilt_dominates():
    d, rank, variance, eta, n = 4, 1, 0.5, 0.2, 100_000
    variances = theory.two_variances(d, rank, variance)
    generator = torch.Generator().manual_seed(0)
    W, _ = learned_from_pairs([n], variances, eta, 60, generator)
    target = torch.diag(theory.final_weight(1.0, eta, variances))
    squares = torch.linalg.matrix_norm(theory.polar(W[0]) - target).square()  # (60,)
    predicted = theory.finite_sample_error(n, eta, variance, d, rank).item() ** 2
    mean, half = evidence.interval(squares / predicted)
    assert abs(mean - 1) < half < 0.6


def test_least_squares_excess_is_that_of_torch_lstsq():
    generator = torch.Generator().manual_seed(0)
    d, n = 3, 12
    w = torch.randn(1, d, 2, generator=generator, dtype=torch.float64)
    identity = torch.eye(d, dtype=torch.float64)[None]
    measured = theory.least_squares_excess(identity, w, [n], 0.5, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, n, d, generator=generator, dtype=torch.float64)
    y = x @ w + 0.5 * torch.randn(1, n, 2, generator=generator, dtype=torch.float64)
    expected = (torch.linalg.lstsq(x, y).solution - w).square().sum(1).mean(1)
    torch.testing.assert_close(measured[:, 0], expected)
    with pytest.raises(ValueError, match="4 labels for 3 features"):
        theory.least_squares_excess(identity, w, [4], 0.5, generator)


def test_sgd_with_a_huge_batch_takes_the_step_of_the_flow():
    variances = theory.two_variances(3, 1, 1.0)
    W = 0.9 * torch.eye(3, dtype=torch.float64)[None]
    (stepped,) = theory.sgd(W, variances, 0.16, 0.1, 200_000, 0.5, 1, torch.Generator().manual_seed(0))
    auto, cross = torch.diag(1 + variances), torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(stepped, W + 0.1 * theory.directset(W, auto, cross, 0.16), rtol=0, atol=3e-3)


def test_views_differ_in_the_nuisance_features_alone():
    x1, x2 = theory.sample_views(100_000, theory.two_variances(2, 1, 2.0), torch.Generator().manual_seed(0))
    assert torch.equal(x1[:, 0], x2[:, 0])
    auto, cross = theory.moments(x1, x2)
    torch.testing.assert_close(auto, torch.diag(torch.tensor([1.0, 3.0])).double(), rtol=0, atol=0.05)
    torch.testing.assert_close(cross, torch.eye(2).double(), rtol=0, atol=0.05)


def test_polar_and_angles_do_not_see_a_rotation_of_the_outputs():
    W = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    Q = theory.random_basis(4, seed=1)
    torch.testing.assert_close(theory.polar(Q @ W), theory.polar(W))
    S = Q[:, :2]
    rotated, plain = theory.row_space(Q @ W, 2), theory.row_space(W, 2)
    torch.testing.assert_close(theory.sine_to(rotated, plain), torch.tensor(0.0).double(), rtol=0, atol=1e-12)
    tilt = torch.tensor(1e-9, dtype=torch.float64)
    tilted = tilt.cos() * Q[:, :1] + tilt.sin() * Q[:, 3:]
    torch.testing.assert_close(theory.sine_to(tilted, S), tilt, rtol=1e-6, atol=0)


def test_crossing_is_nan_where_the_curve_does_not_pass():
    counts = torch.tensor([1.0, 2.0, 4.0])
    curves = torch.tensor([[4.0, 2.0, 1.0], [4.0, 3.0, 2.9], [0.5, 0.4, 0.3]])
    found = crossing(counts, curves, 1.5)
    assert found[0] == pytest.approx(2 * 2 ** (2 - 1.5849625), rel=1e-5) and found[1:].isnan().all()
    assert slope(counts, 3 * counts.square()).item() == pytest.approx(2.0)


def probe(label, accuracies):
    counts = (1, 5, 20, "all")
    points = [{"labels_per_class": n, "accuracy_mean": a} for n, a in zip(counts, accuracies, strict=True)]
    return {
        "label": label,
        "method": "directcopy",
        "label_efficiency": points,
        "protocol": {"train": 1000, "classes": 10},
    }


def test_labels_for_an_accuracy_are_read_off_between_points_and_said_to_be_missing():
    probes = [
        probe("good", (0.6, 0.9, 0.95, 0.99)),
        probe("good", (0.6, 0.8, 0.9, 0.99)),
        probe("late", (0.2, 0.4, 0.8, 0.95)),
        probe("never", (0.1, 0.2, 0.3, 0.4)),
        probe("at once", (0.93, 0.95, 0.96, 0.97)),
    ]
    rows = {row["label"]: row for row in theory.labels_for_accuracy(probes, 0.9)}
    assert (rows["good"]["lowest"], rows["good"]["highest"]) == (pytest.approx(5), pytest.approx(20))
    assert (rows["good"]["seeds"], rows["good"]["reached"]) == (2, 2)
    assert rows["late"]["mean"] == pytest.approx(20 * 5**0.5)  # half way in log-log to 100, which is all
    assert rows["never"]["reached"] == 0 and rows["never"]["mean"] != rows["never"]["mean"]
    assert rows["at once"]["mean"] == 1
    with pytest.raises(ValueError, match="accuracy=90 is not allowed"):
        theory.labels_for_accuracy(probes, 90)
