"""Published numbers beside ours: which is chosen, which runs count, and that recalled ones show it."""

import shutil
import subprocess

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from helpers.records import PROBE, result_of

from dcopy import results
from dcopy.config import TrainConfig
from dcopy.report import plotting, published, table2, tables


@pytest.fixture(scope="module")
def reference() -> list[dict]:
    return published.read()


@pytest.fixture
def add_run(tmp_path):
    """A function that writes the result files of a run: add_run(folder, accuracy, field=value...).

    The number that peeks is 0.01 above the accuracy.
    """

    def add(folder: str, accuracy: float | None, converged: bool = True, used=None, **fields):
        config = TrainConfig(**{"dataset": "cifar10", **fields})
        path = tmp_path / folder / "runs" / config.name
        results.write_json(path / "result.json", result_of(config, precision=used or config.precision))
        if accuracy is not None:
            linear = {"accuracy": accuracy, "converged": converged}
            probe = PROBE | {"linear": linear, "reference": {"best": accuracy + 0.01}}
            results.write_json(path / "probe.json", probe)

    return add


def cells(rows: list[dict], **wanted) -> list[dict]:
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def number(publication="Tian et al.", setting="", recalled=False, value=1.0) -> dict:
    return {
        **{"dataset": "cifar10", "method": "DirectPred", "epochs": 100, "metric": "linear top-1 %"},
        **{"publication": publication, "setting": setting, "recalled": recalled, "value": value},
    }


def test_a_number_that_was_read_goes_before_one_that_was_recalled():
    both = [number("Wang et al.", recalled=True), number("Höppe et al.", "EMA", value=2.0)]
    for rows in (both, both[::-1]):
        assert published.choose(rows, "cifar10", 100, "DirectPred")["value"] == 2


def test_then_the_paper_goes_before_its_forerunner_and_that_before_the_replication():
    names = list(published.SOURCES)
    rows = [number(name, value=float(i)) for i, name in enumerate(names)][::-1]
    for i in range(len(names)):
        assert published.choose(rows, "cifar10", 100, "DirectPred")["value"] == i
        rows.pop()
    assert published.choose(rows, "cifar10", 100, "DirectPred") is None


def test_a_number_of_another_setting_source_or_metric_is_not_taken():
    others = [
        number(setting="EMA", publication="another library"),
        number(setting="no EMA"),
        number() | {"metric": "kNN top-1 %"},
        number() | {"epochs": 300},
    ]
    assert published.choose(others, "cifar10", 100, "DirectPred") is None


def test_table_1_has_what_the_papers_list(reference):
    rows = published.table1(reference, {})
    pred = cells(rows, data="CIFAR-10", epochs=100, method="DirectPred")
    assert [(row["published"], row["published_std"], row["source"]) for row in pred] == [
        (85.21, 0.23, "Tian et al., T8")
    ]
    main = [label for label in published.LISTED if not label.startswith("BYOL") and "," not in label]
    assert all(cells(rows, data=d, epochs=e, method=m) for d in published.DATASETS.values()
               for e in published.EPOCHS for m in main)  # fmt: skip
    assert all(row["here"] is None and row["n"] == 0 for row in rows)
    shown = published.shown(rows)
    assert set(shown["here"]) == set(shown[f"here, {tables.PEEKS}"]) == {"not run"}
    assert set(shown["difference"]) == set(shown["difference, like for like"]) == {"—"}


def test_a_dagger_marks_every_recalled_number_and_no_other(reference, tmp_path):
    rows = published.table1(reference, {})
    recalled = {row["provenance"].startswith("recalled") for row in rows}
    assert recalled == {True, False}
    shown = published.shown(rows)["published"]
    assert [text.endswith("†") for text in shown] == [
        row["provenance"].startswith("recalled") for row in rows
    ]
    assert any(note.startswith("†") for note in published.NOTES)

    tables.write_table(published.shown(rows), tmp_path / "table1", "Table 1", published.NOTES, data=rows)
    count = sum(row["recalled"] for row in rows)
    notes = sum("†" in note for note in published.NOTES)
    assert (tmp_path / "table1.md").read_text().count("†") == count + notes
    assert (tmp_path / "table1.tex").read_text().count("textdagger") == count + notes
    figure = plotting.compare_published(rows)
    assert sum(text.get_text() == "†" for ax in figure.axes for text in ax.texts) == count
    plt.close(figure)


def test_runs_of_the_protocol_are_found_wherever_they_are(reference, add_run, tmp_path):
    add_run("cifar10", 0.83, seed=0)
    add_run("paper", 0.85, seed=1)
    add_run("paper", 0.83, seed=0)  # the same run once more
    rows = published.table1(reference, published.own_runs(tmp_path.glob("*")))
    (row,) = cells(rows, data="CIFAR-10", epochs=100, method="DirectCopy")
    assert (row["here"], row["n"]) == (pytest.approx(84), 2)
    assert row["here_std"] == pytest.approx(2**0.5)
    assert row["difference"] == pytest.approx(84 - row["published"])
    assert sum(row["n"] for row in rows) == 2
    text = published.shown([row]).iloc[0]
    assert (text["here"], text["difference"]) == ("84.00 ± 1.41", "−0.02†")


def test_the_number_that_peeks_stands_beside_and_does_not_enter_the_difference(reference, add_run, tmp_path):
    add_run("cifar10", 0.83, seed=0)
    add_run("cifar10", 0.85, seed=1)
    rows = published.table1(reference, published.own_runs(tmp_path.glob("*")))
    (row,) = cells(rows, data="CIFAR-10", epochs=100, method="DirectCopy")
    assert (row["here"], row["here_peeking"]) == (pytest.approx(84), pytest.approx(85))
    assert row["here_peeking_std"] == pytest.approx(2**0.5)
    assert row["difference"] == pytest.approx(84 - row["published"])
    assert row["difference_peeking"] == pytest.approx(85 - row["published"])
    shown = published.shown([row])
    place = list(shown.columns).index("here")
    assert shown.columns[place + 1] == f"here, {tables.PEEKS}"
    assert list(shown.iloc[0, place : place + 2]) == ["84.00 ± 1.41", "85.00 ± 1.41"]
    assert list(shown.iloc[0][["difference", "difference, like for like"]]) == ["−0.02†", "+0.98†"]
    assert any(note.startswith(f"here, {tables.PEEKS}") for note in published.NOTES)


def test_probes_that_did_not_converge_are_marked_and_counted(reference, add_run, tmp_path):
    add_run("cifar10", 0.83, seed=0)
    add_run("cifar10", 0.85, seed=1)
    everywhere = published.table1(reference, published.own_runs(tmp_path.glob("*")))
    assert published.notes(everywhere) == list(published.NOTES)
    add_run("cifar10", 0.84, seed=2, converged=False)
    rows = published.table1(reference, published.own_runs(tmp_path.glob("*")))
    marked = [text for text in published.shown(rows)["here"] if "‡" in text]
    assert marked == ["84.00 ± 1.00‡"]
    *rest, last = published.notes(rows)
    assert rest == list(published.NOTES)
    assert "CIFAR-10, 100 epochs, DirectCopy" in last and "1 of 3" in last


@pytest.mark.parametrize(
    "fields",
    [
        {"lr": 0.1},
        {"eps": 0.1},
        {"normalize": "frobenius"},
        {"batch_size": 256},
        {"width": 8},
        {"epochs": 60},
        {"freq": 2},
        {"dataset": "digits"},
        {"method": "directset", "alpha": 2.0},
        {"method": "none"},
        {"method": "linear", "predictor_bias": True},
    ],
    ids=str,
)
def test_a_run_that_leaves_the_protocol_does_not_count(fields, add_run, tmp_path):
    add_run("cifar10", 0.9, **fields)
    assert published.own_runs(tmp_path.glob("*")) == {}


def test_directcopy_as_its_reimplementations_have_it_is_a_row_of_its_own(reference, add_run, tmp_path):
    """Beside the number of the replication, which is such a run; both were read, so neither has a dagger."""
    add_run("cifar10", 0.83)
    add_run("cifar10", 0.85, normalize="frobenius", rho=0.5)
    add_run("cifar10", 0.87, normalize="frobenius")  # is neither
    rows = published.table1(reference, published.own_runs(tmp_path.glob("*")))
    (plain,) = cells(rows, data="CIFAR-10", epochs=100, method="DirectCopy")
    (scaled,) = cells(rows, data="CIFAR-10", epochs=100, method="DirectCopy, F/‖F‖")
    assert (plain["here"], scaled["here"]) == (pytest.approx(83), pytest.approx(85))
    assert (scaled["published"], scaled["source"], scaled["recalled"]) == (84.6, "Höppe et al., T2", False)
    assert sum(row["n"] for row in rows) == 2


def test_smoke_runs_and_runs_without_a_probe_do_not_count(add_run, tmp_path):
    add_run("smoke", 0.9)
    add_run("cifar10", None)
    results.write_json(tmp_path / "cifar10/runs/cifar10-pixels/probe.json", {"linear": {"accuracy": 0.4}})
    assert published.own_runs(tmp_path.glob("*")) == {}


def test_what_is_no_accuracy_is_refused_by_name(add_run, tmp_path):
    add_run("cifar10", 62.7)
    (path,) = tmp_path.glob("cifar10/runs/*/probe.json")
    with pytest.raises(ValueError, match=rf"{path}: 62.7 is no accuracy"):
        published.own_runs(tmp_path.glob("*"))


def test_runs_under_different_protocols_are_not_averaged(reference, add_run, tmp_path):
    add_run("a", 0.80, precision="fp32")
    add_run("a", 0.70, precision="bf16")
    add_run("a", 0.50, precision="auto", used="fp16")
    add_run("a", 0.60, target_start="random")
    rows = published.table1(reference, published.own_runs([tmp_path / "a"]))
    found = cells(rows, data="CIFAR-10", epochs=100, method="DirectCopy")
    assert {row["protocol"]: (row["n"], round(row["here"])) for row in found} == {
        "sklearn, fp32, copy": (1, 80),
        "sklearn, bf16, copy": (1, 70),
        "sklearn, fp16, copy": (1, 50),
        "sklearn, fp32, random": (1, 60),
    }
    for word in ("sklearn", "bf16", "copy"):
        assert any(word in note for note in published.NOTES)


def test_a_method_that_nobody_published_shows_ours_alone(reference, add_run, tmp_path):
    add_run("cifar100", 0.5, dataset="cifar100", method="mlp", epochs=300)
    rows = published.table1(reference, published.own_runs(tmp_path.glob("*")))
    (row,) = cells(rows, data="CIFAR-100", epochs=300, method="BYOL 2-layer predictor")
    text = published.shown([row]).iloc[0]
    assert (text["published"], text["here"], text["n"], text["difference"]) == ("—", "50.0", 1, "—")


def test_the_figure_shows_every_number_published_hollow_and_ours_filled(reference, add_run, tmp_path):
    for seed in (0, 1):
        add_run("cifar10", 0.8 + seed / 100, seed=seed)
    rows = published.table1(reference, published.own_runs(tmp_path.glob("*")))
    figure = plotting.compare_published(rows)
    points = [bars.lines[0] for ax in figure.axes for bars in ax.containers]
    hollow = sorted(p.get_ydata()[0] for p in points if p.get_markerfacecolor() == "white")
    filled = [p.get_ydata()[0] for p in points if p.get_markerfacecolor() != "white"]
    assert hollow == sorted(row["published"] for row in rows if row["published"] is not None)
    assert filled == [pytest.approx(80.5)]
    assert all(ax.get_xlabel() for ax in figure.axes) and "%" in figure.axes[0].get_ylabel()
    plt.close(figure)


def test_the_figure_sets_two_protocols_of_ours_apart_and_draws_the_published_number_once(
    reference, add_run, tmp_path
):
    for precision, accuracy in (("fp32", 0.84), ("bf16", 0.86)):
        add_run("cifar10", accuracy, precision=precision)
    rows = published.table1(reference, published.own_runs(tmp_path.glob("*")))
    figure = plotting.compare_published(rows)
    points = [bars.lines[0] for ax in figure.axes for bars in ax.containers]
    hollow = [p for p in points if p.get_markerfacecolor() == "white"]
    filled = [p.get_xydata()[0].tolist() for p in points if p.get_markerfacecolor() != "white"]
    (first, second) = filled
    assert [first[1], second[1]] == [pytest.approx(86), pytest.approx(84)]  # bf16 first, as in the table
    assert second[0] - first[0] > 0.03
    assert len(hollow) == sum(row["published"] is not None for row in rows) - 1
    plt.close(figure)


def written(reference, folder) -> list:
    rows = published.table1(reference, {})
    rows[0] |= {"here": 78.0, "here_std": 0.25, "n": 5, "difference": 0.2, "protocol": "sklearn, bf16, copy"}
    rows[0] |= {"here_peeking": 78.5, "here_peeking_std": 0.25, "difference_peeking": 0.7, "not_converged": 1}
    imagenet, notes = table2.rows(reference), table2.notes(reference)
    notes1 = published.notes(rows)
    tables.write_table(published.shown(rows), folder / "table1", "5 % of A & B_1", notes1, data=rows)
    tables.write_table(pd.DataFrame(imagenet), folder / "imagenet", "ImageNet", notes)
    return rows


def test_markdown_latex_and_csv_hold_the_same_rows(reference, tmp_path):
    rows = written(reference, tmp_path)
    shown = published.shown(rows).astype(str)
    markdown = (tmp_path / "table1.md").read_text().splitlines()
    body = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in markdown if line.startswith("| ")
    ]
    assert body[0] == list(shown.columns) and body[1:] == shown.to_numpy().tolist()
    latex = (tmp_path / "table1.tex").read_text().split(r"\midrule")[1].split(r"\bottomrule")[0]
    signs = {
        r"$\pm$": " ± ",
        r"\textdagger{}": "†",
        r"\textdaggerdbl{}": "‡",
        "--": "—",
        "$-$": "−",
        r"$\|$": "‖",
    }
    for sign, plain in signs.items():
        latex = latex.replace(sign, plain)
    lines = [line.removesuffix(r"\\") for line in latex.strip().splitlines()]
    assert [[cell.strip() for cell in line.split(" & ")] for line in lines] == body[1:]
    assert " 91.0 |" in (tmp_path / "imagenet.md").read_text()  # as published, not 91
    data = pd.read_csv(tmp_path / "table1.csv")
    assert data["published"].tolist() == pytest.approx([row["published"] for row in rows])
    assert data["provenance"].tolist() == [row["provenance"] for row in rows]


def test_latex_compiles_and_fits_the_page(reference, tmp_path):
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed")
    written(reference, tmp_path)
    row = {
        "method": "BYOL 2-layer predictor",
        "n": 3,
        "health (no labels used)": "partial collapse 2/3, healthy 1/3",
    }
    row |= {f"{number} a class": "81.0 ± 0.6" for number in (1, 5, 10, 20, 100)}
    row |= {"all labels": "81.0 ± 0.6‡", "k-NN": "81.0 ± 0.6", tables.PEEKS: "81.0 ± 0.6"}
    methods = pd.DataFrame([row | {"pretraining, s": "1210 ± 10"}])
    tables.write_table(methods, tmp_path / "methods", "As in notebook 05", [tables.PEEKS_NOTE])
    lines = [
        r"\documentclass{article}",
        r"\usepackage{booktabs}",
        r"\usepackage[a4paper,margin=25mm]{geometry}",
    ]
    inputs = (rf"\input{{{name}}}" for name in ("table1", "imagenet", "methods"))
    lines += [r"\begin{document}", *inputs, r"\end{document}"]
    results.write_text(tmp_path / "main.tex", "\n".join(lines))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert run.returncode == 0, run.stdout[-2000:]
    assert "Overfull" not in run.stdout and "Missing character" not in run.stdout


def test_a_missing_file_of_published_numbers_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.csv"):
        published.read(tmp_path / "nowhere.csv")


def test_table_1_has_the_papers_shape(reference):
    rows = published.table1(reference, {})
    table = published.across(rows)
    assert list(table.columns)[:4] == ["method", "STL-10, 100", "STL-10, 300", "STL-10, 500"]
    assert table.shape == (len({row["method"] for row in rows}), 10) and len(published.ACROSS) == 3
    listed = {(row["method"], f"{row['data']}, {row['epochs']}"): row for row in rows}
    for record in table.to_dict("records"):
        for column, text in list(record.items())[1:]:
            row = listed.get((record["method"], column))
            assert text == "—" if row is None else text.endswith(" / not run"), (record["method"], column)
            assert row is None or f"{row['published']:.1f}" in text or f"{row['published']:.2f}" in text
