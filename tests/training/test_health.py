"""Collapse: the measures on spectra where the answer is known, and the verdict on runs that do and do not."""

import json

import pytest
import torch
from helpers.tiny import tiny_config, tiny_run

from dcopy.config import TrainConfig
from dcopy.training import checkpoint, health
from dcopy.training.health import RANK_LIMITS, STD_LIMITS, effective_rank, projection_std, spectrum, verdict
from dcopy.training.loop import pretrain

D = 16


def orthogonal(seed=0):
    U, _ = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(seed)))
    return U


def test_projection_std_is_1_on_the_sphere_and_0_at_a_point():
    spread = torch.randn(20_000, D, generator=torch.Generator().manual_seed(0))
    assert projection_std(spread) == pytest.approx(1, abs=0.01)
    assert projection_std(spread * torch.rand(20_000, 1)) == pytest.approx(
        1, abs=0.01
    )  # length does not count
    assert projection_std(spread[:1].expand(50, D)) == pytest.approx(0, abs=1e-6)
    assert projection_std(torch.rand(50, 1) * spread[:1]) == pytest.approx(0, abs=1e-6)
    assert projection_std(torch.zeros(50, D)) == 0


@pytest.mark.parametrize("k", [1, 3, D])
def test_effective_rank_counts_equal_eigenvalues(k):
    eigenvalues = torch.cat((torch.full((k,), 0.7), torch.zeros(D - k)))
    assert effective_rank(eigenvalues) == pytest.approx(k)
    assert effective_rank(1e-6 * eigenvalues) == pytest.approx(k)


def test_effective_rank_lies_between():
    assert 1 < effective_rank(torch.tensor([1.0, 0.5, 0.0])) < 2
    assert effective_rank(torch.zeros(D)) == 1


def test_spectrum_is_sorted_from_large_to_small_and_not_negative():
    s, U = torch.linspace(2, -1e-3, D), orthogonal()  # a negative one, as rounding makes
    F = U @ s.diag() @ U.T
    F[0, 1] += 1e-8
    torch.testing.assert_close(spectrum(F), s.clamp(min=0).double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "std, rank, expected",
    [
        (1.0, 10.0, "healthy"),
        (STD_LIMITS[1], RANK_LIMITS[1], "healthy"),
        (STD_LIMITS[1] - 0.01, 10.0, "partial collapse"),
        (1.0, RANK_LIMITS[1] - 0.1, "partial collapse"),
        (STD_LIMITS[0] - 0.01, 10.0, "collapsed"),
        (1.0, RANK_LIMITS[0] - 0.1, "collapsed"),
        (float("nan"), 10.0, "collapsed"),
    ],
)
def test_either_measure_suffices_for_a_verdict(std, rank, expected):
    assert verdict(std, rank) == expected


def test_a_record_holds_all_measures_as_plain_numbers():
    z = torch.randn(200, D) @ orthogonal().diag().diag()
    record = health.measure(z, z.T @ z / 200)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["projection_std"] == projection_std(z)
    assert record["verdict"] == verdict(record["projection_std"], record["effective_rank"])
    assert record["spectrum"] == pytest.approx(spectrum(z.T @ z / 200).tolist(), rel=1e-4)


# alignment


def write(folder, **tensors):
    checkpoint.save(folder, {f"predictor.{name.replace('__', '.')}": t for name, t in tensors.items()}, {})
    return health.alignment(folder)


def test_alignment_is_the_share_of_W_p_on_the_diagonal_in_the_basis_of_F(tmp_path):
    U, s = orthogonal(), torch.linspace(1, 3, D)
    F = U @ s.diag() @ U.T
    assert write(tmp_path, F=F, weight=U @ s.sqrt().diag() @ U.T) == pytest.approx(1)
    half = U @ (torch.eye(D) + torch.roll(torch.eye(D), 1, dims=0)) @ U.T  # as much off as on the diagonal
    assert write(tmp_path, F=F, linear__weight=half) == pytest.approx(0.5**0.5)
    assert write(tmp_path, F=F) is None


@pytest.mark.parametrize("method, aligned", [("directcopy", 1), ("mlp", None), ("none", None)])
def test_alignment_of_runs(method, aligned, tmp_path):
    run = tiny_run(tmp_path, tiny_config(method=method, epochs=1))
    assert health.alignment(run.folder) == (aligned and pytest.approx(aligned))


# the phenomenon


def test_directcopy_stays_healthy_where_no_predictor_collapses(tmp_path):
    """80 steps on digits with a net of width 4; no label is used."""
    small = {"epochs": 4, "batch_size": 64, "width": 4, "hidden_dim": 64, "projection_dim": 32}
    runs = [
        pretrain(TrainConfig(method=m, **small), tmp_path, progress=False) for m in ("directcopy", "none")
    ]
    (copy, none) = (run.result["metrics"] for run in runs)
    assert (copy["verdict"], none["verdict"]) == ("healthy", "collapsed")
    assert copy["projection_std"] > 3 * none["projection_std"]
    assert none["loss"] < copy["loss"]  # so the loss does not tell
