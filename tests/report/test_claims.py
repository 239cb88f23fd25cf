"""The claims: each sentence is recomputed from the files, by other code than that which wrote it."""

import csv
import json
import re
import statistics
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from helpers.axes import labels_are_apart
from helpers.records import PROBE, result_of

from dcopy import results
from dcopy.report import claim_figures, claims
from dcopy.workflow import presets

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "results" / "reference"
METHODS = {"directcopy": "DirectCopy", "directpred": "DirectPred", "linear": "SGD linear predictor"}
MEDIANS = ("sigma2_survivors", "sigma2_dropped")
T = {2: 12.706, 3: 4.303, 5: 2.776}  # Student's 97.5 % with one degree of freedom less than seeds


def write_run(folder: Path, config, accuracy: float, rank: float) -> None:
    points = [{"labels_per_class": n, "accuracy_mean": accuracy - 1 / (n + 2)} for n in (1, 5, 10, 20, 100)]
    probe = PROBE | {
        **{"name": config.name, "label": config.label, "method": config.method, "seed": config.seed},
        "linear": {"accuracy": accuracy, "converged": True},
        "label_efficiency": [*points, {"labels_per_class": "all", "accuracy_mean": accuracy}],
        "baselines": ["pixels", f"random-{config.seed}"],
    }
    metrics = {"effective_rank": rank}
    results.write_json(folder / config.name / "probe.json", probe)
    results.write_json(folder / config.name / "result.json", result_of(config, metrics=metrics))
    for name, method, less in (("pixels", "pixels", 0.06), (f"random-{config.seed}", "random", 0.25)):
        few = [{**p, "accuracy_mean": p["accuracy_mean"] - less} for p in probe["label_efficiency"]]
        linear = {"accuracy": accuracy - less, "converged": True}
        other = {"name": name, "label": name, "method": method, "linear": linear}
        if config.method == "directcopy":
            results.write_json(folder / name / "probe.json", probe | other | {"label_efficiency": few})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """CIFAR-10 with three seeds, CIFAR-100 with one, digits not run; and the table of the weight decays."""
    root = tmp_path_factory.mktemp("results") / "reference"
    above = {"directcopy": 0.01, "directpred": 0.012, "linear": -0.03, "none": -0.2}
    for preset, seeds in (("cifar10-small", 3), ("cifar100-small", 1)):
        for config in presets.get(preset).runs():
            if config.seed < seeds:
                noise = 0.002 * config.seed**2 if config.method == "linear" else 0
                rank = 1.1 if config.method == "none" else 20.0
                write_run(root / preset / "runs", config, 0.6 + above.get(config.method, 0) + noise, rank)
    rows = [
        {"weight decay": decay, "survivors": n, "rank_correlation": r, **dict.fromkeys(MEDIANS, 0.2)}
        | {"runs": 3, "healthy": 3, "falls": 0}
        for decay, n, r in (("0", 12, -0.5), ("0.04", 4, 0.1))
    ]
    results.write_csv(root / "ablations-cifar10-small/tables/surviving-directions.csv", rows)
    return root


def sentences(root: Path) -> dict[tuple[str, str, str], dict]:
    """By claim, data set, and for claim b the method that the sentence begins with."""
    rows = [row for row in claims.findings(root) if row["finding"] != claims.NOT_RUN]
    first = [row["finding"].split(" minus ")[0] if row["claim"] == "b" else "" for row in rows]
    return {(row["claim"], row["data"], name): row for row, name in zip(rows, first, strict=True)}


def test_what_is_no_accuracy_is_refused_by_name(tmp_path):
    write_run(tmp_path / "quick/runs", presets.get("quick").runs()[0], 95.0, 20.0)
    with pytest.raises(ValueError, match=r"probe\.json: 95\.0 is no accuracy"):
        claims.load(tmp_path, "quick")


def test_without_a_baseline_nothing_is_said_of_it(tmp_path):
    for config in presets.get("cifar100-small").runs():
        if config.seed == 0 and config.method in ("none", "directcopy"):
            write_run(tmp_path / "cifar100-small/runs", config, 0.7, 17.0)
    for complete in (True, False):
        (found,) = (r for r in claims.findings(tmp_path) if (r["claim"], r["data"]) == ("c", "CIFAR-100"))
        assert (found["finding"] != claims.NOT_RUN) == complete
        for path in (tmp_path / "cifar100-small/runs").glob("random-*/probe.json"):
            path.unlink()


def test_ranks_that_are_close_leave_room_for_the_labels_of_their_axis(tmp_path):
    for config, rank in zip(presets.get("cifar100-small").runs()[::3][:2], (17.0, 29.0), strict=True):
        write_run(tmp_path / "cifar100-small/runs", config, 0.7, rank)
    picture = claim_figures.collapse({"CIFAR-100": claims.load(tmp_path, "cifar100-small")})
    picture.canvas.draw()
    assert labels_are_apart(picture.axes[0])
    plt.close(picture)


@pytest.mark.parametrize(
    "low, high, words",
    [
        (-1.9, 0.1, "rivals it, with a margin of 2 points"),
        (-1.9, -0.1, "rivals it, with a margin of 2 points, and yet is behind"),
        (-2.1, 0.1, "open, with a margin of 2 points"),
        (-2.1, -0.1, "open, with a margin of 2 points, but is behind"),
        (-3.0, -2.1, "falls behind, with a margin of 2 points"),
    ],
)
def test_a_rival_is_within_the_margin_and_whoever_is_behind_is_called_so(low, high, words):
    found = {"mean": (low + high) / 2, "low": low, "high": high, "seeds": [0, 1, 2]}
    pair = {"first": "directcopy", "second": "directpred"}
    assert claims._compared("a", found | pair).endswith(f", paired, n = 3): {words}")


def test_sentences_say_what_the_files_hold(written):
    rows = {key: row["finding"] for key, row in sentences(written).items()}
    assert rows["a", "CIFAR-10", ""] == (
        "DirectCopy minus DirectPred: −0.2 points with all labels (95 % interval −0.2 to −0.2, paired, "
        "n = 3): rivals it, with a margin of 2 points, and yet is behind"
    )
    assert "one seed" in rows["a", "CIFAR-100", ""]
    assert rows["b", "CIFAR-10", "DirectCopy"].endswith("n = 3): beats it")
    assert rows["c", "CIFAR-10", ""] == (
        "without a predictor, 3 of 3 runs collapsed; with DirectCopy, 3 of 3 were healthy. A probe with all "
        "labels then finds 40.0 % without a predictor, 36.0 % in a random encoder and 61.0 % with DirectCopy"
    )
    assert rows["d", "CIFAR-10", ""].endswith(": raw pixels 100, random encoder more than all")
    assert rows["e", "CIFAR-10", ""].startswith(
        "from weight decay 0 to 0.04, the surviving directions of F fall from 12.0 to 4.0"
    )
    assert "at 1 of 2 weight decays" in rows["e", "CIFAR-10", ""]


def decay_table(root: Path, *rows: dict) -> str:
    """The sentence of claim e on digits, with this table of surviving directions and no other result."""
    root = root / "reference"
    results.write_csv(root / "ablations/tables/surviving-directions.csv", list(rows))
    (found,) = [row for row in claims.findings(root) if (row["claim"], row["data"]) == ("e", "digits")]
    return found["finding"]


def test_directions_that_do_not_fall_are_not_said_to(tmp_path):
    rows = [
        {"weight decay": decay, "survivors": n, "rank_correlation": -0.5}
        for decay, n in (("0", 4), ("0.04", 5))
    ]
    assert "of F do not fall: they go from 4.0 to 5.0" in decay_table(tmp_path, *rows)


def test_survivors_are_judged_by_seeds_and_where_all_runs_are_healthy(tmp_path):
    rows = [
        {"weight decay": decay, "runs": 3, "healthy": healthy, "survivors": n, "rank_correlation": -0.5}
        | {"sigma2_survivors": median, "falls": falls}
        for decay, healthy, n, median, falls in (
            ("0", 3, 9, 0.56, 0),
            ("0.004", 3, 8, 0.51, 2),
            ("0.04", 1, 4, 0.8, 1),
        )
    ]
    sentence = decay_table(tmp_path, *rows)
    assert "Not all runs are healthy: 1 of 3 at 0.04. Up to 0.004, where all runs are healthy" in sentence
    assert "median variance goes from 0.56 to 0.51: it falls in 2 of 3 seeds" in sentence


def test_where_no_direction_is_left_there_is_no_rank_correlation(tmp_path):
    rows = [
        {"weight decay": decay, "survivors": n, "rank_correlation": r}
        for decay, n, r in (("0", 4, -0.5), ("0.04", 0, None))
    ]
    sentence = decay_table(tmp_path, *rows)
    assert "fall from 4.0 to 0.0" in sentence and sentence.endswith("(rank correlation −0.50 at 0)")
    assert "at 1 of 1 weight decays" in sentence


def test_a_weight_decay_that_was_not_measured_is_not_run(tmp_path):
    """What notebook 06 writes where neither weights nor variances are there."""
    assert decay_table(tmp_path, {"weight decay": "not run"}) == claims.NOT_RUN


def test_what_has_not_been_run_says_so(written):
    rows = claims.findings(written)
    (*told, last) = claims.told(rows, "b").splitlines()
    assert [line.split("**")[1] for line in told] == ["CIFAR-10"] * 2 + ["CIFAR-100"] * 2
    assert last == "- **digits, Imagenette**: not run."
    missing = [row for row in rows if row["finding"] == "not run"]
    assert {row["data"] for row in missing} == {"digits", "Imagenette", "processor", "GPU"}
    assert all(row["files"] == [] for row in missing)


def test_every_file_behind_a_sentence_is_there(written):
    for row in (*claims.findings(written), *claims.findings(REFERENCE)):
        assert all((ROOT / name).is_file() for name in row["files"]), row


def numbers(text: str) -> list[float]:
    return [float(n) for n in re.findall(r"(?<![\w.])[+-]?\d+(?:\.\d+)?", text.replace("−", "-"))]


def read(files: list[str], kind: str) -> list[dict]:
    return [
        json.loads((ROOT / name).read_text(encoding="utf-8"))
        for name in files
        if name.endswith(f"{kind}.json")
    ]


@pytest.mark.parametrize("which", ["made up", "of the repository"])
def test_each_sentence_is_recomputed_from_its_files(which, written):
    for (claim, *_), row in sentences(written if which == "made up" else REFERENCE).items():
        found, probes = numbers(row["finding"]), read(row["files"], "probe")
        linear = {(p["method"], p["seed"]): 100 * p["linear"]["accuracy"] for p in probes}
        if claim in "ab":
            methods = list(dict.fromkeys(method for method, _ in linear))
            assert row["finding"].startswith(" minus ".join(METHODS[method] for method in methods))
            seeds = [seed for method, seed in linear if method == methods[0]]
            gaps = [linear[methods[0], seed] - linear[methods[1], seed] for seed in seeds]
            mean = statistics.mean(gaps)
            assert found[0] == pytest.approx(mean, abs=0.051)
            if len(gaps) > 1:
                half = T[len(gaps)] * statistics.stdev(gaps) / len(gaps) ** 0.5
                assert found[2:5] == pytest.approx([mean - half, mean + half, len(gaps)], abs=0.06)
        elif claim == "c":
            own = {name: [v for (m, _), v in linear.items() if m == name] for name, _ in linear}
            means = [statistics.mean(own[name]) for name in ("none", "random", "directcopy")]
            assert found[-3:] == pytest.approx(means, abs=0.051)
            ranks = [r["metrics"]["effective_rank"] for r in read(row["files"], "result")]
            assert len(ranks) == found[1] + found[3] and sum(rank < 1.5 for rank in ranks) == found[0]
        elif claim == "d":
            few = [100 * point["accuracy_mean"] for p in probes if p["method"] == "directcopy"
                   for point in p["label_efficiency"] if point["labels_per_class"] == 10]  # fmt: skip
            assert found[:2] == [10, pytest.approx(statistics.mean(few), abs=0.051)]
        elif claim == "e":
            with open(ROOT / row["files"][0], newline="", encoding="utf-8") as file:
                decays = list(csv.DictReader(file))
            ends = [float(decays[i][name]) for name in ("survivors", "rank_correlation") for i in (0, -1)]
            assert [*found[2:4], found[6], found[8]] == pytest.approx(ends, abs=0.051)
            assert found[4] == sum(float(decay["rank_correlation"]) < 0 for decay in decays)
            last = [decay for decay in decays if decay["healthy"] == decay["runs"]][-1]
            medians = [float(decay["sigma2_survivors"]) for decay in (decays[0], last)]
            expected = [float(last["weight decay"]), *medians, int(last["falls"]), int(last["runs"])]
            assert found[-5:] == pytest.approx(expected, abs=0.0051)
        elif row["data"] == "GPU":
            records = [json.loads((ROOT / path).read_text(encoding="utf-8")) for path in row["files"]]
            assert [record["config"]["method"] for record in records] == ["directcopy", "directpred"]
            times = [record["step"]["captured"]["ms"] for record in records]
            assert found[:2] == pytest.approx(times, abs=0.051)
            assert found[-1] == pytest.approx(times[1] / times[0], abs=0.0051)
        else:
            record = json.loads((ROOT / row["files"][0]).read_text(encoding="utf-8"))
            ms = {r["label"]: r["ms"] for r in record["predictors"] if r["dim"] == 128}
            times = [ms["DirectCopy"], ms["DirectPred"]]
            assert [found[1], found[3]] == pytest.approx(times, abs=0.0051)
            assert found[-1] == pytest.approx(times[1] / times[0], abs=0.051)


def test_every_claim_has_a_figure_with_and_without_runs(written):
    for root in (written, written.parent / "nothing" / "reference"):
        records = {data: claims.load(root, preset) for data, preset in claims.DATA.items()}
        figures = [claim_figures.differences(records, claim) for claim in "ab"]
        figures += [
            claim_figures.collapse(records),
            claim_figures.labels(records),
            claim_figures.decays(root),
        ]
        for figure in figures:
            shown = " ".join(text.get_text() for ax in figure.axes for text in ax.texts)
            assert "not run" in shown
            plt.close(figure)


def test_a_legend_shows_each_method_as_it_is_drawn(written):
    records = {"CIFAR-10": claims.load(written, "cifar10-small")}
    for figure, baseline in (
        (claim_figures.collapse(records), ("--", "None")),
        (claim_figures.labels(records), ("None", "P")),
    ):
        handles = figure.axes[-1].get_legend().legend_handles
        shown = {handle.get_label(): (handle.get_linestyle(), handle.get_marker()) for handle in handles}
        assert shown["DirectCopy"] == ("None", "o") and shown["raw pixels"] == baseline
        plt.close(figure)


def test_it_is_said_which_presets_are_ones_own(tmp_path, monkeypatch, written):
    monkeypatch.setattr(results, "reference", lambda: written)
    (config, *_) = presets.get("cifar10-small").runs()
    write_run(tmp_path / "cifar10-small" / "runs", config, 0.6, 20.0)
    said = claims.sources(tmp_path)
    assert said["cifar10-small"] == str(tmp_path / "cifar10-small")  # one run of one's own is enough
    assert said["cifar100-small"] == str(written / "cifar100-small") and said["quick"] == "not run"
    assert {row["path"] for row in claims.load(tmp_path, "cifar10-small")} >= {
        f"{tmp_path}/cifar10-small/runs/{config.name}"
    }
