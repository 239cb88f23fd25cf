"""Tables and figures: every format says the same, and what was not run says so."""

import csv
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from dcopy.config import METHODS, TrainConfig
from dcopy.report import plotting, tables

LABELS = METHODS | tables.BASELINES


def probe(method, seed, accuracy):
    """What `evaluate.probe_runs` writes, as far as tables read it."""
    points = [
        {"labels_per_class": number, "accuracy_mean": accuracy + gain}
        for number, gain in ((1, 0.0), (5, 0.1), ("all", 0.2))
    ]
    name = {"label": LABELS[method], "method": method, "dataset": "digits", "seed": seed}
    linear = {"accuracy": accuracy + 0.2, "converged": True}
    numbers = {"label_efficiency": points, "linear": linear, "knn": accuracy}
    numbers["reference"] = {"best": accuracy + 0.25}
    return name | numbers | {"protocol": {"train": 1297, "classes": 10}}


def outcome(method, seed, verdict):
    """What a run writes as result.json, as far as tables read it."""
    config = TrainConfig(method=method, seed=seed)
    metrics = {"verdict": verdict, "projection_std": 0.8, "effective_rank": 12.3, "loss": -3.5 - seed / 10}
    name = {"name": config.name, "label": config.label, "config": config.to_dict()}
    return name | {"metrics": metrics, "seconds": 20.0 + seed, "device": "a CPU"}


PROBES = [
    probe("random", 0, 0.25), probe("pixels", 0, 0.3), probe("none", 1, 0.2), probe("none", 0, 0.2),
    probe("directcopy", 1, 0.52), probe("directcopy", 0, 0.5),
]  # fmt: skip
RUNS = [
    outcome("directcopy", 0, "healthy"), outcome("directcopy", 1, "healthy"),
    outcome("none", 0, "collapsed"), outcome("none", 1, "partial collapse"),
]  # fmt: skip


# tables


def test_the_caption_says_what_was_trained_and_lists_what_differs():
    configs = [TrainConfig(dataset="cifar10", width=8, epochs=epochs) for epochs in (4, 4, 100)]
    outcomes = [{"config": config.to_dict()} for config in configs]
    told = tables.summary_caption(outcomes)
    assert told.endswith("cifar10: resnet18-cifar of width 8, 4, 100 epochs, batches of 128, in fp32.")


def test_the_precision_that_was_used_is_shown_and_not_that_it_was_left_to_the_machine():
    asked = TrainConfig(precision="auto").to_dict()
    outcomes = [{"config": asked, "precision": used} for used in ("bf16", "bf16", "fp16")]
    assert tables.summary_caption(outcomes).endswith(", in bf16, fp16.")


def test_mean_std():
    assert tables.mean_std(pd.Series([80.0, 82.0])) == "81.0 ± 1.4"  # n - 1
    assert tables.mean_std(pd.Series([80.0, 82.0]), 2) == "81.00 ± 1.41"
    assert tables.mean_std(pd.Series([80.0])) == "80.0"
    assert tables.mean_std(pd.Series([80.0, None])) == "80.0"
    assert tables.mean_std(pd.Series([], dtype=float)) == tables.mean_std(pd.Series([None])) == "not run"


def test_a_row_a_probe_in_the_order_of_methods_and_seeds():
    frame = tables.probe_frame(PROBES)
    assert list(zip(frame["method"], frame["seed"], strict=True)) == [
        ("directcopy", 0), ("directcopy", 1), ("none", 0), ("none", 1), ("pixels", 0), ("random", 0),
    ]  # fmt: skip
    first = frame.iloc[0]
    assert [first[name] for name in ("1 a class", "5 a class", "all labels", "k-NN")] == pytest.approx(
        [50, 60, 70, 50]
    )


def test_the_summary_has_a_row_a_method_with_its_health():
    table = tables.summary(tables.probe_frame(PROBES), tables.run_frame(RUNS)).set_index("method")
    assert list(table.index) == ["DirectCopy", "no predictor", "raw pixels", "random encoder"]
    assert list(table["n"]) == [2, 2, 1, 1]
    assert list(table["1 a class"]) == ["51.0 ± 1.4", "20.0 ± 0.0", "30.0", "25.0"]
    assert list(table["health (no labels used)"]) == [
        "healthy 2/2",
        "collapsed 1/2, partial collapse 1/2",
        "—",
        "—",
    ]
    assert list(table["pretraining, s"]) == ["20 ± 1", "20 ± 1", "—", "—"]


def test_times_of_several_machines_make_no_mean():
    frame, runs = tables.probe_frame(PROBES), tables.run_frame([RUNS[0] | {"device": "a GPU"}, *RUNS[1:]])
    table = tables.summary(frame, runs)
    assert list(table["pretraining, s"]) == ["mixed", "20 ± 1", "—", "—"]
    assert tables.MIXED_NOTE in tables.summary_notes(frame, table)


def test_baselines_of_other_networks_are_other_rows():
    outcomes, probes = [], []
    for width in (2, 16):
        config = TrainConfig(encoder="conv", width=width)
        result = outcome("directcopy", 0, "healthy")
        outcomes.append(result | {"name": config.name, "config": config.to_dict()})
        run = probe("directcopy", 0, 0.5) | {"name": config.name, "baselines": ["pixels", f"random-{width}"]}
        probes += [run, probe("random", 0, width / 20) | {"name": f"random-{width}", "baselines": []}]
    probes.append(probe("pixels", 0, 0.3) | {"name": "pixels", "baselines": []})
    outcomes, probes = tables.told_apart(outcomes, probes)
    assert [outcome["label"] for outcome in outcomes] == ["DirectCopy, width=2", "DirectCopy, width=16"]
    labels = [probe["label"] for probe in probes]
    assert labels[1::2] == ["random encoder, width=2", "random encoder, width=16"]
    assert labels[-1] == "raw pixels"


def test_the_number_that_peeks_is_the_last_accuracy_and_says_so():
    frame = tables.probe_frame(PROBES)
    assert frame[tables.PEEKS].tolist()[:2] == pytest.approx([75, 77])
    table = tables.summary(frame, tables.run_frame(RUNS))
    assert list(table.columns[-3:]) == ["k-NN", tables.PEEKS, "pretraining, s"]
    assert "peeks" in tables.PEEKS and table[tables.PEEKS][0] == "76.0 ± 1.4"
    assert [note for note in tables.summary_notes(frame, table) if "chosen on the test set" in note]


def unconverged(probe):
    return probe | {"linear": probe["linear"] | {"converged": False}}


def test_a_probe_that_did_not_converge_is_marked_and_counted():
    kept = [probe for probe in PROBES if probe["method"] != "directcopy"]
    kept += [probe("directcopy", 0, 0.5), unconverged(probe("directcopy", 1, 0.52))]
    frame = tables.probe_frame(kept)
    table = tables.summary(frame, tables.run_frame(RUNS))
    (note,) = (note for note in tables.summary_notes(frame, table) if "‡" in note)
    table = table.set_index("method")
    assert list(table["all labels"]) == ["71.0 ± 1.4‡", "40.0 ± 0.0", "50.0", "45.0"]
    assert table.drop(columns="all labels").map(lambda cell: "‡" in str(cell)).to_numpy().sum() == 0
    assert "DirectCopy 1 of 2" in note and "predictor" not in note

    frame = tables.probe_frame(PROBES)
    notes = tables.summary_notes(frame, tables.summary(frame, tables.run_frame(RUNS)))
    assert not any("‡" in note for note in notes)


def without(probe, *numbers):
    points = [p for p in probe["label_efficiency"] if p["labels_per_class"] not in numbers]
    return probe | {"label_efficiency": points}


def test_numbers_of_labels_are_in_their_order_whichever_probe_has_them():
    rich = probe("directcopy", 1, 0.5)
    for number, accuracy in ((100, 0.65), (10, 0.62)):
        rich["label_efficiency"].insert(2, {"labels_per_class": number, "accuracy_mean": accuracy})
    poor = without(rich, 5, 10) | {"seed": 0}
    frame = tables.probe_frame([poor, rich])
    few = [name for name in frame.columns if name.endswith("a class")]
    assert few == ["1 a class", "5 a class", "10 a class", "100 a class"]
    row = tables.summary(frame, tables.run_frame(RUNS)).iloc[0]
    assert [row[name] for name in few] == ["50.0 ± 0.0", "60.0", "62.0", "65.0 ± 0.0"]
    curve = tables.label_curves([poor, rich])["DirectCopy"]
    assert curve["x"] == [1, 5, 10, 100, 129.7]
    assert curve["mean"] == pytest.approx([50, 60, 62, 65, 70])


def test_the_health_table_has_a_row_a_method():
    table = tables.health(tables.run_frame(RUNS)).set_index("label")
    assert table.loc["DirectCopy"].to_dict() == {
        **{
            "n": 2,
            "loss": "-3.55 ± 0.07",
            "spread": "0.80 ± 0.00",
            "rank": "12.3 ± 0.0",
            "verdict": "healthy",
        }
    }
    assert table.loc["no predictor", "verdict"] == "collapsed, partial collapse"


def test_label_curves_hold_mean_and_std_over_seeds():
    curves = tables.label_curves(PROBES)
    assert list(curves) == ["DirectCopy", "no predictor", "raw pixels", "random encoder"]
    curve = curves["DirectCopy"]
    assert curve["x"] == [1, 5, 129.7]
    assert curve["mean"] == pytest.approx([51, 61, 71]) and curve["std"] == pytest.approx([2**0.5] * 3)
    assert curves["raw pixels"]["std"] == [0, 0, 0]


def test_variant_labels_name_what_differs_and_nothing_else():
    configs = [TrainConfig(eps=0.1), TrainConfig(eps=0.3, seed=1), TrainConfig(eps=0.1, normalize="spectral")]
    assert tables.variant_labels(configs) == [
        "DirectCopy, eps=0.1", "DirectCopy", "DirectCopy, eps=0.1, normalize=spectral",
    ]  # fmt: skip
    assert tables.variant_labels([TrainConfig(), TrainConfig(method="mlp")]) == ["DirectCopy", METHODS["mlp"]]


TABLE = pd.DataFrame(
    {
        "method": ["DirectSet(2)", "folder_a & b", "100 % #1"],
        "n": [3, 3, 1],
        "seconds": ["1.50", "20.00", "3.25"],
        "accuracy ± std, %": ["81.0 ± 0.6", "−3.5", "not run"],
    }
)


def read_latex(text):
    """Caption, and the cells of a tabular with the escapes undone."""
    for sign, plain in {r"$\pm$": "±", "$-$": "−"}.items():
        text = text.replace(sign, plain)
    (caption,) = re.findall(r"\\caption\{(.*)\}", text)
    rows = re.findall(r"^(.*) \\\\$", text, flags=re.MULTILINE)
    cells = [[re.sub(r"\\([%&_#$])", r"\1", cell) for cell in re.split(r"(?<!\\) & ", row)] for row in rows]
    assert not re.search(r"(?<!\\)[%#_]", text)
    return re.sub(r"\\([%&_#$])", r"\1", caption), cells


def test_markdown_latex_and_csv_say_the_same(tmp_path):
    caption, notes = "Accuracy in %, mean ± std; my_data.", ["† recalled, 50 % sure", "second"]
    assert tables.write_table(TABLE, tmp_path / "t", caption, notes) is TABLE
    expected = [list(TABLE.columns), *TABLE.astype(str).to_numpy().tolist()]

    first, _, *lines = (tmp_path / "t.md").read_text().splitlines()
    markdown = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")
    ]
    assert first == caption and [markdown[0], *markdown[2:]] == expected
    assert [line for line in lines if line.startswith("- ")] == [f"- {note}" for note in notes]

    latex = (tmp_path / "t.tex").read_text()
    assert read_latex(latex) == (caption, expected)
    assert r"\begin{tabular}{lrrr}" in latex  # numbers flush right, also where one was not run
    assert r"\textdagger{} recalled, 50 \% sure\par" in latex

    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == expected


def test_a_wide_table_has_long_texts_in_two_lines(tmp_path):
    names = ["method, its health", *(f"{number} a class" for number in range(8)), tables.PEEKS]
    row = ["partial collapse 2/3, healthy 1/3", *["81.0 ± 0.6‡"] * 9]
    latex = tables.to_latex(pd.DataFrame([row], columns=names), "caption")
    assert r"\tiny" in latex and r"81.0$\pm$0.6\textdaggerdbl{} &" in latex
    assert r"{@{}l@{}}partial collapse 2/3,\\healthy 1/3\end{tabular} &" in latex
    assert r"{@{}r@{}}best of 50\\epochs (peeks)\end{tabular} \\" in latex
    assert r"\begin{tabular}{lrrrrrrrrr}" in latex


def test_the_csv_can_hold_numbers_that_are_not_shown(tmp_path):
    tables.write_table(TABLE, tmp_path / "t", "caption", data=[{"seed": 0, "accuracy": 0.81}])
    assert (tmp_path / "t.csv").read_text().splitlines() == ["seed,accuracy", "0,0.81"]


# figures


def metrics(epochs):
    return [
        {
            **{"epoch": epoch, "loss": -3 - epoch / 10, "projection_std": 0.5, "effective_rank": 4.0},
            **{"verdict": "healthy", "spectrum": [1.0, 0.1, 0.0]},
        }
        for epoch in range(1, epochs + 1)
    ]


FIGURES = {
    "training_curves": lambda: plotting.training_curves(metrics(30), "DirectCopy", "#0072B2"),
    "compare_training": lambda: plotting.compare_training({"DirectCopy": ("directcopy", metrics(3))}),
    "spectrum": lambda: plotting.spectrum(metrics(30), "DirectCopy"),
    "spectrum of one epoch": lambda: plotting.spectrum(metrics(1), "DirectCopy"),
    "label_efficiency": lambda: plotting.label_efficiency(tables.label_curves(PROBES)),
}


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")
    plt.rcdefaults()


@pytest.mark.parametrize(
    "draw",
    [
        lambda names: plotting.compare_training({name: ("directcopy", metrics(3)) for name in names}),
        lambda names: plotting.label_efficiency(
            {name: {"method": "directcopy", "x": [1, 5], "mean": [50, 60], "std": [1, 1]} for name in names}
        ),
    ],
    ids=["compare_training", "label_efficiency"],
)
def test_variants_of_a_method_have_its_colour_and_lines_of_their_own(draw):
    for ax in draw(["as it is", "normalized", "seldom"]).axes:
        lines = [line for line in ax.lines if not line.get_label().startswith("_")]
        assert len({line.get_color() for line in lines}) == 1
        assert len({line.get_linestyle() for line in lines}) == len(lines) == 3


@pytest.mark.parametrize("make", FIGURES.values(), ids=FIGURES)
def test_figures_have_labelled_axes_and_are_saved_twice(make, tmp_path):
    plotting.use_style()
    figure = make()
    assert isinstance(figure, Figure)
    panels = [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]
    assert panels and all(ax.get_xlabel() and ax.get_ylabel() and ax.get_title("left") for ax in panels)
    assert all(ax.lines for ax in panels)
    plotting.save_figure(figure, tmp_path / "deep" / "f")
    png, pdf = (tmp_path / "deep" / f"f{suffix}" for suffix in (".png", ".pdf"))
    assert png.read_bytes().startswith(b"\x89PNG") and pdf.read_bytes().startswith(b"%PDF")
    before = png.read_bytes(), pdf.read_bytes()
    plotting.save_figure(make(), tmp_path / "deep" / "f")
    assert (png.read_bytes(), pdf.read_bytes()) == before  # the same figure is the same file


def test_labels_of_the_axis_do_not_overlap_where_all_is_little_more_than_a_hundred():
    plotting.use_style()
    x = [1, 5, 10, 20, 100, 129.7]
    curve = {"method": "directcopy", "x": x, "mean": [*range(6)], "std": [0] * 6}
    figure = plotting.label_efficiency(
        {"DirectCopy": curve | {"x": x[1:], "mean": [*range(5)], "std": [0] * 5}, "other": curve}
    )
    figure.canvas.draw()
    (ax,) = figure.axes
    boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
    lines = [label.get_text().split("\n") for label in ax.get_xticklabels()]
    assert [words[-1] for words in lines] == ["1", "5", "10", "20", "100", "all (130)"]
    for left, right, words in zip(boxes[:-1], boxes[1:], lines[1:], strict=True):
        assert left.x1 < right.x0 or words[0] == ""  # a line below


@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_a_row_each(channels):
    images = torch.randint(256, (5, channels, 16, 16), dtype=torch.uint8)
    view = torch.randn(5, channels, 16, 16)
    figure = plotting.views(images, view, 0 * view, count=4)
    assert len(figure.axes) == 12
    assert all(np.isfinite(ax.images[0].get_array()).all() for ax in figure.axes)  # also of a black view
    assert [ax.get_ylabel() for ax in figure.axes[::4]] == ["image", "view 1", "view 2"]


def test_every_method_has_its_own_colour_and_marker():
    names = METHODS.keys() | tables.BASELINES.keys()
    assert plotting.COLORS.keys() == plotting.MARKERS.keys() == names
    assert len(set(plotting.COLORS.values())) == len(set(plotting.MARKERS.values())) == len(names)


def test_what_is_missing_is_a_dash_in_latex():
    table = pd.DataFrame({"method": ["DirectCopy", None], "sigma2": [0.5, float("nan")]})
    assert r"-- & -- \\" in tables.to_latex(table, "caption")
