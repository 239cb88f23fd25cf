"""A rerun against the reference: a copy agrees, a moved number is named, and honest reruns are left alone."""

import json
import shutil

import numpy as np
import pytest
from matplotlib import pyplot

from dcopy import results
from dcopy.report import __main__ as command
from dcopy.report import reproduction, reproduction_figures
from dcopy.workflow.plan import ROOT

QUICK = ROOT / "results" / "reference" / "quick"


@pytest.fixture
def rerun(tmp_path):
    """A copy of the reference."""
    for kind in ("config", "result", "probe"):
        for path in QUICK.glob(f"runs/*/{kind}.json"):
            target = tmp_path / "quick" / path.relative_to(QUICK)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    shutil.copytree(QUICK / "theory", tmp_path / "quick" / "theory")
    return tmp_path / "quick"


def edit(folder, pattern, change):
    for path in folder.glob(pattern):
        record = json.loads(path.read_text(encoding="utf-8"))
        change(record)
        path.write_text(json.dumps(record), encoding="utf-8")


def accuracy(number, points):
    """Moves one accuracy of a probe."""

    def change(probe):
        if number == "all labels":
            probe["linear"]["accuracy"] -= points / 100
        elif number == "k-NN":
            probe["knn"] -= points / 100
        else:
            probe["label_efficiency"][0]["accuracy_mean"] -= points / 100

    return change


def other_weights(probe):
    """As from another processor."""
    noise = iter(np.random.default_rng(probe["seed"]).normal(size=9) / 500)
    probe["encoder_fingerprint"], probe["versions"]["torch"] = "other", "9.9"
    probe["linear"]["accuracy"] = min(probe["linear"]["accuracy"] + next(noise), 1)
    probe["knn"] += next(noise)
    for point in probe["label_efficiency"]:
        point["accuracy_mean"] += next(noise)


def test_a_true_copy_is_a_reproduction(rerun):
    record = reproduction.check(rerun, QUICK)
    n = sum(row["agrees"] is not None for row in record["numbers"])
    assert n > 60 and record["verdict"] == f"reproduced: {n} of {n} numbers agree"
    assert record["reproduced"] is True and record["differs"] == record["not run"] == []


def test_theory_that_was_not_run_is_missing(rerun):
    (rerun / "theory" / "claims.json").unlink()
    record = reproduction.check(rerun, QUICK)
    (told,) = record["not run"]
    assert told.endswith("numbers of the theory") and record["verdict"].endswith(f"agree; {told} are missing")


@pytest.mark.parametrize("number", ["all labels", "k-NN", "1 a class"])
@pytest.mark.parametrize("method", ["directpred", "none"])
def test_one_accuracy_moved_by_five_points_is_named(rerun, number, method):
    edit(rerun, f"runs/digits-{method}-seed1-*/probe.json", accuracy(number, 5))
    record = reproduction.check(rerun, QUICK)
    (wrong,) = (row for row in record["numbers"] if row["agrees"] is False)
    assert (wrong["label"], wrong["number"]) == (
        dict(directpred="DirectPred", none="no predictor")[method],
        number,
    )
    assert record["reproduced"] is False and record["verdict"].startswith("not reproduced: ")
    assert f"{wrong['label']}, {number}: " in record["verdict"]


def test_it_matters_not_which_other_numbers_there_are(rerun):
    def fewer(probe):
        del probe["label_efficiency"][2]
        probe["protocol"]["labels_per_class"] = [1, 5]

    edit(rerun, "runs/*/probe.json", fewer)
    record = reproduction.check(rerun, QUICK)
    assert record["reproduced"] and not any(row["number"] == "10 a class" for row in record["numbers"])


def test_a_rerun_with_other_weights_is_held_to_the_spread_of_its_seeds(rerun):
    edit(rerun, "runs/*-seed?-*/probe.json", other_weights)
    record = reproduction.check(rerun, QUICK)
    assert record["reproduced"], record["verdict"]
    assert any("9.9 (reference: " in line for line in record["differs"])
    edit(rerun, "runs/digits-directcopy-*/probe.json", accuracy("all labels", 5))
    record = reproduction.check(rerun, QUICK)
    assert "not DirectCopy, all labels: " in record["verdict"] and " and 9.9 (ref" in record["verdict"]
    assert [row["number"] for row in record["numbers"] if row["agrees"] is False] == ["all labels"]


@pytest.mark.parametrize("step", [1e-9, 0.2])  # an image of 500 is 0.2 %
def test_honest_reruns_are_seldom_called_wrong(step):
    """1,000 pairs of three seeds, for 63 numbers whose spread is from 0.1 to 5 points."""
    rng, shape, n = np.random.default_rng(0), (3, 1000, 63), np.array(3)
    std = np.geomspace(0.1, 5, shape[-1])
    ours, theirs = (np.round(rng.normal(90, std, shape) / step) * step for _ in range(2))
    error = reproduction.standard_error(ours.std(0, ddof=1), n, theirs.std(0, ddof=1), n, step)
    wrong = abs(ours.mean(0) - theirs.mean(0)) > error * reproduction.critical(n, n, shape[-1])
    assert wrong.any(axis=1).mean() < 0.05
    moved = abs(ours.mean(0) - theirs.mean(0) - 5) > error * reproduction.critical(n, n, shape[-1])
    assert moved[:, std < 0.4].mean() > 0.9  # and 5 points are found where seeds differ by little


def test_a_changed_setting_is_not_comparable(rerun):
    edit(rerun, "runs/*/result.json", lambda result: result["config"].update(epochs=5))
    record = reproduction.check(rerun, QUICK)
    assert record["verdict"].startswith("not comparable: epochs=5 instead of 60 (DirectCopy, ")
    assert record["reproduced"] is None
    edit(rerun, "runs/*/result.json", lambda result: result["config"].update(epochs=60))
    edit(rerun, "runs/*/probe.json", lambda probe: probe["protocol"].update(draws=2))
    assert "draws=2 instead of 20" in reproduction.check(rerun, QUICK)["verdict"]


def test_the_theory_is_held_to_its_own_tolerances(rerun):
    def change(claims):
        row = next(row for row in claims["01_linear_theory"]["rows"] if row["predicted"])
        row["measured"] += 3 * row["tolerance"] * abs(row["predicted"])

    edit(rerun, "theory/claims.json", change)
    record = reproduction.check(rerun, QUICK)
    (wrong,) = (row for row in record["numbers"] if row["agrees"] is False)
    assert wrong["label"].endswith("of the theory") and wrong["number"] in record["verdict"]


def test_one_seed_on_both_sides_is_not_judged(rerun):
    edit(rerun, "runs/*/probe.json", other_weights)
    edit(rerun, "theory/claims.json", lambda claims: claims.clear())
    for path in rerun.glob("runs/*seed[1-9]*"):
        shutil.rmtree(path)
    record = reproduction.check(rerun, rerun, [path.name for path in rerun.glob("runs/digits-linear-*")])
    assert record["reproduced"] is True  # the same weights need no seeds
    shutil.copytree(rerun, rerun.with_name("other"))
    edit(rerun.with_name("other"), "runs/*/probe.json", lambda probe: probe.update(encoder_fingerprint="new"))
    record = reproduction.check(rerun.with_name("other"), rerun)
    assert record["reproduced"] is None and "single seed" in record["verdict"]
    pyplot.close(reproduction_figures.figure(record))


def test_a_seed_that_collapses_is_told(rerun):
    def collapse(result):
        (collapsed,) = QUICK.glob("runs/digits-none-seed0-*/result.json")
        result["metrics"] = results.read_json(collapsed)["metrics"]

    edit(rerun, "runs/digits-directcopy-seed1-*/result.json", collapse)
    (line,) = reproduction.check(rerun, QUICK)["differs"]
    assert line == "health of DirectCopy collapsed and healthy (reference: healthy)"


def test_missing_runs_are_told(rerun):
    (gone,) = rerun.glob("runs/digits-directcopy-seed1-*")
    names = [path.parent.name for path in rerun.glob("runs/*/result.json")]
    shutil.rmtree(gone)
    record = reproduction.check(rerun, QUICK, names)
    assert record["verdict"].endswith(f"; 1 of {len(names)} runs are missing, such as {gone.name}")
    with pytest.raises(ValueError, match="quick holds none of the preset's runs"):
        reproduction.check(rerun, QUICK, [gone.name])


@pytest.mark.parametrize(
    "kind, change, message",
    [
        ("probe", accuracy("k-NN", float("nan")), "NaN is no number"),
        ("probe", accuracy("1 a class", -100), "is no accuracy in"),
        ("probe", lambda probe: probe.pop("linear"), "no complete probe"),
        ("probe", lambda probe: probe.pop("versions"), "no complete probe .it lacks versions"),
        ("result", lambda result: result.pop("name"), "not a complete result of a run .it lacks name"),
        ("result", lambda result: result["config"].update(lr="a"), "lr='a' is not allowed"),
    ],
)
def test_a_damaged_record_is_refused_by_name(rerun, kind, change, message):
    (path,) = rerun.glob(f"runs/digits-none-seed1-*/{kind}.json")
    edit(rerun, str(path.relative_to(rerun)), change)
    with pytest.raises(ValueError, match=message) as error:
        reproduction.check(rerun, QUICK)
    assert str(path) in str(error.value)


def test_the_command_says_it_and_keeps_it(rerun, capsys):
    root = str(rerun.parent)
    assert command.main(["check", "--results", root]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("reproduced: ")
    assert results.read_json(rerun / "check" / "check.json")["reproduced"] is True
    assert (rerun / "check" / "check.png").stat().st_size and (rerun / "check" / "check.md").exists()
    edit(rerun, "runs/digits-mlp-seed0-*/probe.json", accuracy("k-NN", 5))
    assert command.main(["check", "quick", "methods=mlp,none", "--brief", "--results", root]) == 1
    assert "BYOL 2-layer predictor, k-NN: " in capsys.readouterr().out.splitlines()[-1]
    for words in (["check", "quick", "epochs=3"], ["check", "smoke"], ["check", "nothing"]):
        assert command.main([*words, "--results", root]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and words[1] in error
