"""Ablations: which runs belong to one, what is said of them, and which directions survive."""

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from helpers.axes import labels_are_apart
from helpers.records import PROBE, result_of
from scipy import stats
from torch import nn

from dcopy import results
from dcopy.config import TrainConfig
from dcopy.evaluation import variance
from dcopy.report import ablation_figures, ablations
from dcopy.workflow import plan, presets
from dcopy.workflow.presets import ABLATIONS

SHARED = {"dataset": "digits", "epochs": 1}


def outcome(accuracy, **fields):
    """result.json and probe.json of a run, as far as the ablations read them."""
    config = TrainConfig(**SHARED | fields)
    health = {"effective_rank": 9.0, "projection_std": 0.9, "verdict": "healthy", "spectrum": [2.0, 1.0]}
    points = [{"labels_per_class": 1, "accuracy_mean": accuracy}]
    return (
        {"name": config.name, "config": config.to_dict(), "metrics": health},
        {"name": config.name, "label_efficiency": points, "linear": {"accuracy": 0.9}},
    )


def frame(*outcomes):
    return ablations.ablation_frame([result for result, _ in outcomes], [probe for _, probe in outcomes])


def test_an_ablation_takes_the_runs_that_differ_in_what_it_varies_and_nothing_else():
    table = frame(
        outcome(0.6, rho=0.8, seed=1),
        outcome(0.5, rho=0.0),
        outcome(0.4),  # the default, a setting of every ablation around it
        outcome(0.3, rho=0.8, eps=0.5),  # two things at once
        outcome(0.2, method="none", rho=0.8),
    )
    chosen = ablations.select(table, "rho")
    assert chosen["setting"].tolist() == ["0", "0.3", "0.8"]  # in the ablation's order
    assert chosen["accuracy"].tolist() == pytest.approx([50, 40, 60])


def test_runs_that_differ_in_what_is_no_ablation_are_refused():
    with pytest.raises(ValueError, match=r"differ in epochs \(1, 20\).*parameter `runs`"):
        frame(outcome(0.6), outcome(0.2, rho=0.8, epochs=20))


def test_trials_beside_the_runs_of_the_preset_change_nothing(tmp_path):
    (own, *_) = presets.get("ablations").runs()
    for config in (own, dataclasses.replace(own, epochs=2)):
        _, probe = outcome(0.5, **{k: v for k, v in config.to_dict().items() if v is not None})
        run = tmp_path / "ablations" / "runs" / config.name
        results.write_json(run / "result.json", result_of(config, metrics={"verdict": "healthy"}))
        results.write_json(run / "probe.json", PROBE | probe | {"linear": PROBE["linear"]})
    assert ablations.beside(tmp_path)["digits"]["name"].tolist() == [own.name]


def test_where_all_is_computed_in_bf16_that_is_the_default_of_every_ablation():
    table = frame(
        *(outcome(0.5, precision="bf16", rho=rho) for rho in (0.0, 0.3, 0.8)), outcome(0.4)
    )  # the last one in fp32
    assert ablations.select(table, "rho")["setting"].tolist() == ["0", "0.3", "0.8"]
    assert ablations.select(table, "precision")["setting"].tolist() == ["fp32", "bf16"]


def test_where_the_machine_chose_the_precision_its_choice_counts():
    runs = [outcome(0.5, precision="auto", rho=rho) for rho in (0.0, 0.3)] + [outcome(0.4)]
    for result, _ in runs[:2]:
        result["precision"] = "bf16"
    assert ablations.select(frame(*runs), "rho")["setting"].tolist() == ["0", "0.3"]
    assert ablations.select(frame(*runs), "precision")["setting"].tolist() == ["fp32", "bf16"]


def test_where_machines_chose_differently_all_their_runs_count():
    runs = [outcome(0.5, precision="auto", rho=rho) for rho in (0.0, 0.3, 0.8)]
    for (result, _), used in zip(runs, ("bf16", "bf16", "fp32"), strict=True):
        result["precision"] = used
    assert ablations.select(frame(*runs), "rho")["setting"].tolist() == ["0", "0.3", "0.8"]


def test_every_setting_of_an_ablation_has_a_name_of_its_own():
    """In one frame, where a field that not all methods have is NaN for the others."""
    runs = [outcome(0.5, **variant) for variants in ABLATIONS.values() for variant in variants]
    table = frame(*{result["name"]: (result, probe) for result, probe in runs}.values())
    for name, variants in ABLATIONS.items():
        assert ablations.select(table, name)["setting"].nunique() == len(variants)


@pytest.mark.parametrize("order, verdict", [((1, 2, 3), "agree"), ((3, 2, 1), "disagree")])
def test_two_data_sets_agree_where_they_rank_the_settings_alike(order, verdict, tmp_path):
    """By the number of labels that tells settings apart on each; what one lacks is left out."""
    settings = (0.0, 0.9, 0.99)
    for dataset, preset, points in (
        ("digits", "ablations", (1, 2, 3)),
        ("cifar10", "ablations-cifar10-small", order),
    ):
        runs = [
            outcome(point / 10, dataset=dataset, ema=ema) for ema, point in zip(settings, points, strict=True)
        ]
        for (result, probe), point in zip(runs, points, strict=True):
            run = tmp_path / preset / "runs" / result["name"]
            config = TrainConfig.from_dict(result["config"])
            results.write_json(run / "result.json", result_of(config))
            linear = {"linear": {"accuracy": point / 5, "converged": True}}
            results.write_json(run / "probe.json", PROBE | probe | linear)
    frames = ablations.beside(tmp_path)
    assert frames["digits"]["accuracy"].max() == 30 and frames["CIFAR-10"]["accuracy"].max() == 60
    assert set(frames["digits"]["labels"]) == {"one label per class"}
    assert set(frames["CIFAR-10"]["labels"]) == {"all labels"}
    rows = {row["ablation"]: row for row in ablations.side_by_side(frames)}
    row = rows[ablations.TITLES["ema"]]
    assert (row["verdict"], row["settings in both"]) == (verdict, 3)
    assert row["best on CIFAR-10"] == f"{settings[order.index(3)]:g} (60.0 %)"
    del frames["CIFAR-10"]
    for missing in (frames, {}):
        row = ablations.side_by_side(missing)[0]
        assert (row["best on CIFAR-10"], row["verdict"]) == ("not run", "not run on both")
        plt.close(ablation_figures.beside(missing))


def test_a_finding_compares_the_same_seeds():
    noise = (0.0, 0.1, 0.2)  # between seeds, far more than between settings
    runs = [outcome(0.5 + bonus + extra, freq=freq, seed=seed)
            for freq, bonus in ((1, 0.01), (2, 0.0))
            for seed, extra in enumerate(noise)]  # fmt: skip
    found = ablations.finding(frame(*runs), "freq")
    assert (found["best"], found["worst"], found["n"]) == ("1", "2", 3)
    assert found["difference"] == pytest.approx(1.0, abs=1e-3)
    assert found["standard_error"] == pytest.approx(0, abs=1e-3) and found["clear"]


def test_noise_is_not_called_clear():
    runs = [outcome(accuracy, freq=freq, seed=seed)
            for freq, accuracies in ((1, (0.5, 0.7, 0.6)), (2, (0.6, 0.5, 0.65)))
            for seed, accuracy in enumerate(accuracies)]  # fmt: skip
    found = ablations.finding(frame(*runs), "freq")
    assert "within the noise" in found["sentence"] and not found["clear"]
    without = ablations.finding(frame(*runs[:-1]), "freq")  # the last seed lacks a setting
    assert without["n"] == 2 and without["difference"] == pytest.approx(5)
    only = ablations.finding(frame(*runs[::3]), "freq")  # one seed
    assert "one seed cannot tell the difference of 10.0 points from noise" in only["sentence"]


def test_of_two_settings_the_range_test_is_the_paired_t_test():
    table = pd.DataFrame([[1.0, 2.1], [4.0, 4.5], [2.0, 3.3], [9.0, 9.2]])
    assert ablations.range_test(table) == pytest.approx(stats.ttest_rel(table[0], table[1]).pvalue, rel=1e-3)


def test_best_and_worst_of_many_equal_settings_are_seldom_called_different():
    rng = np.random.default_rng(0)
    seeds = 5 * rng.normal(size=(400, 3, 1))  # good and bad ones, which the pairing takes off
    tables = seeds + rng.normal(size=(400, 3, 18))
    below = np.mean([ablations.range_test(pd.DataFrame(table)) < 0.05 for table in tables])
    assert 0.02 < below < 0.08
    assert ablations.range_test(pd.DataFrame(tables[0] + 10 * np.eye(18)[4])) < 0.001


@pytest.mark.parametrize(
    ("symmetric", "told"), [(0.4, "as they find."), (0.7, "the reverse of what they find")]
)
def test_symmetry_without_ema_is_held_against_the_publication(symmetric, told):
    runs = [outcome(accuracy + noise, method="linear", ema=ema, predictor_symmetric=kind, seed=seed)
            for seed, noise in enumerate((0.0, 0.05))
            for ema, kind, accuracy in ((0, False, 0.5), (0, True, symmetric), (0.9, True, 0.1))]  # fmt: skip
    sentence = ablations.symmetry_finding(frame(*runs))
    assert f"{100 * (symmetric - 0.5):.1f} ± 0.0 points (paired, n = 2)" in sentence and told in sentence


def test_symmetry_counts_seeds_and_is_open_where_they_differ():
    shared = {"method": "linear", "ema": 0}
    runs = [outcome(accuracy, **shared, predictor_symmetric=kind, seed=seed, predictor_bias=bias)
            for seed, symmetric in enumerate((0.4, 0.7)) for bias in (False, True)
            for kind, accuracy in ((False, 0.5), (True, symmetric))]  # fmt: skip
    sentence = ablations.symmetry_finding(frame(*runs))
    assert "5.0 ± 15.0 points (paired, n = 2), which the seeds do not decide." in sentence


def test_a_cell_that_was_not_run_says_so():
    runs = [outcome(0.5, eps=eps, normalize=scale) for eps, scale in ((0.1, "none"), (1.0, "none"))]
    chosen = ablations.select(frame(*runs, outcome(0.5, eps=0.1, normalize="spectral")), "eps")
    grid = chosen.pivot_table(index="normalize", columns="eps", values="accuracy")
    figure = ablation_figures.heatmap(grid, "")
    shown = sorted(text.get_text() for text in figure.axes[0].texts)
    assert shown == ["50.0", "50.0", "50.0", "not run"]
    plt.close(figure)


def test_settings_that_are_numbers_are_joined_and_words_are_not():
    table = frame(*(outcome(0.5, **variant) for variant in ABLATIONS["weight_decay"] + ABLATIONS["linear"]))
    numbers, words = (
        ablation_figures.lines(ablations.select(table, name), name) for name in ("weight_decay", "linear")
    )
    assert [len(ax.collections) for ax in numbers.axes] == [1, 1]  # the band
    assert [len(ax.containers) for ax in words.axes] == [1, 1]  # the whiskers
    assert [ax.get_xlabel() for ax in numbers.axes] == ["weight_decay"] * 2
    plt.close("all")


def test_switches_join_the_two_settings_of_each_seed():
    runs = [outcome(accuracy + 0.1 * seed, precision=precision, seed=seed)
            for precision, accuracy in (("fp32", 0.5), ("bf16", 0.6)) for seed in range(2)]  # fmt: skip
    table = frame(*runs)
    figure = ablation_figures.switches({"precision": ablations.select(table, "precision"), "none": table[:0]})
    first, second, mean = (line.get_ydata() for line in figure.axes[0].lines)
    assert first == pytest.approx([50, 60]) and second == pytest.approx([60, 70])
    assert list(mean) == pytest.approx([55, 65])
    assert [text.get_text() for text in figure.axes[1].texts] == ["not run"]
    plt.close(figure)


def test_the_default_alone_is_no_ablation():
    """It belongs to each, and a figure of one setting beside the sentence "not run" would contradict it."""
    table = frame(outcome(0.4, ema=0.9), outcome(0.5))
    assert ablations.select(table, "rho").empty and len(ablations.select(table, "ema")) == 2
    row = ablations.side_by_side({"digits": table})[0]
    assert row["best on digits"] == "not run"


def test_what_was_not_run_says_so():
    assert "not run" in ablations.symmetry_finding(frame(outcome(0.5)))
    runs = [outcome(0.5, method="linear", ema=0, predictor_symmetric=kind) for kind in (False, True)]
    assert ablations.symmetry_finding(frame(*runs)) == "Symmetry without EMA: not run with two seeds."
    assert ablations.finding(frame(outcome(0.5)), "linear")["sentence"].endswith("not run.")


def test_committed_findings_are_those_of_the_committed_runs():
    folder = plan.ROOT / "results" / "reference" / "ablations"
    if not (folder / "tables" / "findings.json").exists():
        pytest.skip("results/reference/ablations has no findings yet")
    from dcopy.evaluation.evaluate import load_results

    table = ablations.ablation_frame(*load_results(folder))
    findings = {found["ablation"]: found for found in results.read_json(folder / "tables" / "findings.json")}
    decay = ablations.select(table, "weight_decay")
    records = {name: results.read_json(folder / "runs" / name / "variance.json") for name in decay["name"]}
    directions = ablations.variance_finding(decay, records)
    assert findings == {
        **{name: ablations.finding(table, name) for name in ABLATIONS},
        "surviving directions": directions,
    }
    rows = pd.read_csv(folder / "tables" / "surviving-directions.csv")
    expected = ablations.variance_summary(decay, records).astype({"weight decay": float})
    pd.testing.assert_frame_equal(rows, expected, check_dtype=False)


def test_rank_correlations_of_all_runs_make_one_sentence():
    decay = frame(*(outcome(0.5, weight_decay=0.0, seed=seed) for seed in range(3)))
    falls = {"eigenvalue": [3.0, 2.0, 1.0], "sigma2": [0.1, 0.2, 0.3]}
    rises = {"eigenvalue": [3.0, 2.0, 1.0], "sigma2": [0.3, 0.2, None]}
    found = ablations.variance_finding(decay, dict(zip(decay["name"], (falls, falls, rises), strict=True)))
    assert found["rank_correlations"] == pytest.approx([-1, -1, -0.5])
    assert "-0.83 on average, from -1.00 to -0.50; 3 of 3 runs have" in found["sentence"]
    assert "not run" in ablations.variance_finding(decay[:0], {})["sentence"]
    assert "not run" in ablations.variance_summary(decay[:0], {}).to_string()


def test_each_weight_decay_says_how_many_of_its_runs_are_healthy_and_fall():
    runs = [outcome(0.5, weight_decay=decay, seed=seed) for decay in (0.0, 0.04) for seed in range(2)]
    decay = ablations.select(frame(*runs), "weight_decay")
    decay.loc[decay.index[-1], "verdict"] = "collapsed"
    records = [{"eigenvalue": [3.0, 2.0], "sigma2": [value, value]} for value in (0.1, 0.3, 0.2, 0.2)]
    rows = ablations.variance_summary(decay, dict(zip(decay["name"], records, strict=True)))
    assert rows["weight decay"].tolist() == ["0", "0.04"]
    assert rows["runs"].tolist() == [2, 2] and rows["healthy"].tolist() == [2, 1]
    assert rows["falls"].tolist() == [0, 1] and rows["sigma2_survivors"].tolist() == [0.2, 0.2]


@pytest.fixture
def linear_world(monkeypatch):
    """Projections are the first two pixels; augmentation adds noise of std 0, 2 to them."""
    network = nn.Flatten()
    F = torch.diag(torch.tensor([3.0, 1.0]))
    noise = torch.tensor([0.0, 2.0])

    def augmentation(images, generator):
        x = images.flatten(1).float()
        return (x + noise * torch.randn(x.shape, generator=generator)).view(images.shape)

    monkeypatch.setattr(variance, "load_network", lambda folder: (network, F, TrainConfig()))
    monkeypatch.setattr(variance.augment, "build", lambda *_: augmentation)
    return torch.randint(0, 9, (4000, 1, 1, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_variances_are_those_of_images_and_of_noise(linear_world):
    found = variance.variances("", linear_world, views=4)
    over = linear_world.float().flatten(1).var(dim=0)
    assert found["eigenvalue"] == pytest.approx([3, 1])
    assert found["augmentation"] == pytest.approx([0, 4], rel=0.05)
    assert found["image"] == pytest.approx(over.tolist(), rel=0.05)  # the noise of 4 views is taken off
    assert found["sigma2"][1] == pytest.approx(4 / over[1].item(), rel=0.1)


def test_variances_are_kept_beside_the_run_and_need_its_weights_once(linear_world, tmp_path):
    images = linear_world[:50]
    assert variance.of_run(tmp_path, images, views=2) is None  # no weights, and not measured before
    weights = tmp_path / variance.checkpoint.NEWEST
    weights.touch()
    record = variance.of_run(tmp_path, images, views=2)
    weights.unlink()
    assert variance.of_run(tmp_path, images, views=2) == record
    assert variance.of_run(tmp_path, images, views=3) is None  # of other views or images it says nothing
    assert variance.of_run(tmp_path, images[1:], views=2) is None


def test_survivors_hold_a_share_of_the_trace():
    record = {"eigenvalue": [5.0, 4.0, 0.01, 0.001], "sigma2": [0.1, 0.3, 2.0, None]}
    found = variance.summarize(record, share=0.01)
    assert found["survivors"] == 2 and found["rank_correlation"] == pytest.approx(-1)
    assert found["sigma2_survivors"] == pytest.approx(0.2)
    assert found["sigma2_dropped"] is None  # between 2 and infinity


def test_variances_that_are_close_leave_room_for_the_labels_of_their_axis():
    record = {"eigenvalue": [3.0, 2.0, 1.0], "sigma2": [0.4, 1.0, 3.9]}
    figure = ablation_figures.surviving_directions({"0": record, "0.04": record})
    figure.canvas.draw()
    assert all(map(labels_are_apart, figure.axes))
    plt.close(figure)


def test_equal_values_share_their_rank():
    record = {"eigenvalue": [3.0, 1.0, 0.0, 0.0, 0.0], "sigma2": [0.1, None, 0.3, 0.4, 0.2]}
    sigma2 = [0.1, np.inf, 0.3, 0.4, 0.2]
    expected = stats.spearmanr(record["eigenvalue"], sigma2).statistic
    assert variance.summarize(record)["rank_correlation"] == pytest.approx(expected)


def test_of_a_run_that_collapsed_to_a_point_no_direction_survives():
    gone = {"eigenvalue": [0.0] * 3, "sigma2": [None] * 3}
    assert variance.summarize(gone) == {
        **{"survivors": 0, "sigma2_survivors": None, "sigma2_dropped": None, "rank_correlation": None}
    }
    decay = frame(*(outcome(0.1, weight_decay=0.04, seed=seed) for seed in range(2)))
    decay = decay.assign(setting="0.04")
    (row,) = ablations.variance_summary(decay, dict.fromkeys(decay["name"], gone)).to_dict("records")
    assert row["survivors"] == 0 and np.isnan(row["rank_correlation"])
    found = ablations.variance_finding(decay, dict.fromkeys(decay["name"], gone))
    assert found["sentence"] == "Surviving directions: every run collapsed to one point."
    falls = {"eigenvalue": [3.0, 2.0], "sigma2": [0.1, 0.2]}
    one = ablations.variance_finding(decay, dict(zip(decay["name"], (falls, gone), strict=True)))
    assert (
        "1 of 1 runs have" in one["sentence"]
        and "For 1 more, collapsed to one point, it is undefined." in one["sentence"]
    )
    plt.close(ablation_figures.surviving_directions({"0.04": gone}))


def test_what_notebook_06_says_of_eps_is_in_the_files():
    frames = {
        name: ablations.select(table, "eps") for name, table in ablations.beside(results.reference()).items()
    }
    means = {name: table.groupby(["normalize", "eps"])["accuracy"].mean() for name, table in frames.items()}
    for found in means.values():
        assert all(found[scale].idxmin() == 1 for scale in ("frobenius", "spectral"))
    photographs, digits = means["CIFAR-10"], means["digits"]
    assert photographs["none"].is_monotonic_increasing and not digits["none"].is_monotonic_increasing
    for scale in ("frobenius", "spectral"):
        assert photographs[scale].idxmax() in (0.1, 0.3)
        assert photographs[scale].max() > photographs[scale][0.01] + 1
