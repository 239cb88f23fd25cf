"""Collapse: the measures on spectra where the answer is known, and the verdict on runs that do and do not."""

import json

import pytest
import torch
from helpers.records import PROBE
from helpers.tiny import tiny_config, tiny_run

from dcopy.config import TrainConfig
from dcopy.evaluation import variance
from dcopy.evaluation.evaluate import load_results
from dcopy.report import plotting
from dcopy.training import checkpoint, health
from dcopy.training.health import RANK_LIMITS, STD_LIMITS, effective_rank, projection_std, spectrum, verdict
from dcopy.training.loop import pretrain
from dcopy.training.runs import load_run

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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "spread, expected", [(1.0, "healthy"), (0.3, "partial collapse"), (0.03, "collapsed")]
)
def test_projections_alone_get_a_verdict(spread, expected, dtype):
    """Around a point that all share; F is then their own correlation. No gradient is needed or kept."""
    noise = torch.randn(257, D, generator=torch.Generator().manual_seed(0))
    z = (noise[:1] + spread * noise[1:]).to(dtype).requires_grad_()
    record = health.measure(z)
    assert health.verdict_of(z) == record["verdict"] == expected
    F = z.detach().float().T @ z.detach().float() / len(z)
    assert record == health.measure(z, F)


@pytest.mark.parametrize("shape", [(D,), (1, D), (2, 3, D)])
def test_projections_of_another_shape_get_none(shape):
    with pytest.raises(ValueError, match=r"z has shape .*; it must be \(N, D\) with N at least 2"):
        health.verdict_of(torch.zeros(shape))


def test_projections_that_are_not_finite_get_none():
    with pytest.raises(ValueError, match="of 64 numbers in z, 2 are not finite"):
        health.verdict_of(torch.tensor([[torch.nan, torch.inf, 0, 0], *15 * [[0.0] * 4]]))


def test_old_records_are_judged_by_todays_limits(tmp_path):
    """Wherever a finished run is read, so that no table contradicts another."""
    run = tiny_run(tmp_path / "runs", tiny_config(epochs=1))
    for name in ("result.json", "metrics.jsonl"):
        record = json.loads((run.folder / name).read_text())
        old = {"projection_std": STD_LIMITS[0] / 2, "effective_rank": 9.0, "verdict": "healthy"}
        written = record | {"metrics": record["metrics"] | old} if name == "result.json" else record | old
        (run.folder / name).write_text(json.dumps(written) + "\n")
    (run.folder / "probe.json").write_text(json.dumps(PROBE | {"name": run.config.name}))
    again, (outcome,) = load_run(run.folder), load_results(tmp_path)[0]
    for record in (again.result["metrics"], again.metrics[-1], outcome["metrics"]):
        assert record["verdict"] == "collapsed"
    metrics = [json.loads((run.folder / "metrics.jsonl").read_text())]
    assert "collapsed" in plotting.training_curves(metrics, "DirectCopy", "black").get_suptitle()


# alignment


def write(folder, **tensors):
    header = {"config": {}, "channels": 1, "epoch": 1, "step": 0, "seconds": 1.0}
    tensors = {f"predictor.{name.replace('__', '.')}": tensor for name, tensor in tensors.items()}
    checkpoint.save(folder, tensors, header)
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


@pytest.mark.parametrize("read", [health.alignment, variance.load_network])
@pytest.mark.parametrize(
    "change", [lambda t: t.pop("predictor.F"), lambda t: t.update({"predictor.F": torch.zeros(3)})]
)
def test_a_checkpoint_without_the_whole_F_is_refused_in_one_line(read, change, tmp_path):
    run = tiny_run(tmp_path, tiny_config(epochs=1))
    tensors, header = checkpoint.load(run.folder)
    change(tensors)
    checkpoint.save(run.folder, tensors, header)
    with pytest.raises(ValueError, match=r"safetensors is not complete \(.+\); delete it") as caught:
        read(run.folder)
    assert "\n" not in str(caught.value)


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
