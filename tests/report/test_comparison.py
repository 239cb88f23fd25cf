"""Tables from benchmark files: a row a part, a device or a way to train; what was not measured says so."""

import copy

import matplotlib.pyplot as plt
import pytest
from helpers.records import BENCH, LIGHTLY

from dcopy import results
from dcopy.bench import bench
from dcopy.config import TrainConfig
from dcopy.report import comparison, plotting, tables


def with_graphs():
    record = copy.deepcopy(BENCH)
    record["step"]["captured"] = {"ms": 1500.0, "images_per_second": 85.0, "tflop_per_second": 0.2}
    return record


def test_parts_of_a_step_are_followed_by_their_sum():
    table = comparison.step_parts(BENCH)
    assert table.to_numpy().tolist() == [
        ["augmentation", "500.00", "25.0"],
        ["predictor update", "30.00", "1.5"],
        ["loss and backward", "1,470.00", "73.5"],
        ["whole step", "2,000.00", "100.0"],
    ]
    for word in ("a processor, 2 threads", "batch of 128", "bf16", "cifar10", "directcopy"):
        assert word in comparison.what(BENCH)
    compiled = BENCH | {"step": BENCH["step"] | {"compiled": True}}
    assert "compiled" in comparison.what(compiled) and "compiled" not in comparison.what(BENCH)


def test_a_step_as_graphs_is_shown_where_it_was_measured():
    (last,) = comparison.step_parts(with_graphs()).tail(1).to_numpy().tolist()
    assert last == ["whole step as CUDA graphs", "1,500.00", "75.0"]
    not_there = copy.deepcopy(BENCH)
    not_there["step"]["captured"] = None
    assert comparison.step_parts(not_there).equals(comparison.step_parts(BENCH))


def test_a_step_as_graphs_is_shown_by_its_kernels():
    record = with_graphs()
    record["step"]["captured"]["parts"] = [
        {"part": "convolutions", "ms": 900.0, "share": 0.6, "kernels": 80.0}
    ]
    (last,) = comparison.step_parts(record).tail(1).to_numpy().tolist()
    assert last == ["of it convolutions", "900.00", "60.0"]


def test_whole_steps_on_a_gpu_are_compared_in_a_sentence(tmp_path):
    assert comparison.step_cost(tmp_path / "nowhere") is not None  # that of the reference
    for method, ms in (("directcopy", 8.0), ("directpred", 12.0)):
        record = with_graphs()
        record["step"]["captured"]["ms"] = ms
        results.write_json(tmp_path / "bench" / f"gpu-bf16-{method}.json", record)
    sentence, files = comparison.step_cost(tmp_path)
    assert "takes 8.0 ms with DirectCopy and 12.0 ms with DirectPred" in sentence
    assert sentence.endswith("a processor, 2 threads): 1.50 times as long") and len(files) == 2
    other = copy.deepcopy(record)
    other["provenance"]["device"] = "another GPU"
    for unlike in (other, BENCH):  # which was not captured
        results.write_json(tmp_path / "bench" / "gpu-bf16-directpred.json", unlike)
        assert comparison.step_cost(tmp_path) is None


def test_a_benchmark_is_a_row():
    rows = comparison.speeds({"cpu": BENCH, "gpu": with_graphs()})
    assert [row["benchmark"] for row in rows] == ["cpu", "gpu"]
    first = rows[0]
    assert (first["device"], first["precision"], first["batch"]) == ("a processor, 2 threads", "bf16", 128)
    assert (first["ms a step"], first["images/s"]) == ("2,000.0", "64")
    assert (first["augmentation takes"], first["predictor update takes"]) == ("25.0 %", "1.5 %")
    assert [row["as CUDA graphs, images/s"] for row in rows] == ["—", "85"]
    assert [row["as CUDA graphs, ms"] for row in rows] == ["—", "1,500.0"]
    assert first["speed relative to a large matrix product"] == "80 %" and "at 80 % of" in comparison.what(
        BENCH
    )
    older = BENCH["step"].keys() - {"matrix_tflop_per_second"}
    assert comparison.of_limit({key: BENCH["step"][key] for key in older}) == "—"
    auto = BENCH | {"config": BENCH["config"] | {"precision": "auto"}, "precision": "fp16"}
    assert comparison.speeds({"t4": auto})[0]["precision"] == "fp16" and "fp16" in comparison.what(auto)


def test_the_figure_of_costs_says_of_which_step_the_percentage_is():
    row = {"label": "DirectCopy", "method": "directcopy", "ms": 20.0}
    figure = plotting.predictor_cost(BENCH | {"predictors": [row | {"dim": dim} for dim in (64, 128)]})
    (share,) = figure.axes[0].child_axes
    assert share.get_ylabel() == "of a cifar10 step in bf16, 2,000 ms"
    figure.canvas.draw()
    assert share.get_ylim() == pytest.approx([ms / 20 for ms in figure.axes[0].get_ylim()])
    assert {label.get_text()[-2:] for label in share.get_yticklabels()} == {" %"}
    plt.close(figure)


def test_what_the_benchmark_writes_can_be_read(tmp_path):
    config = TrainConfig(width=4, batch_size=8)
    step = bench.step_parts(config, "cpu", steps=1, warmup=0)
    record = {"config": config.to_dict(), "step": step, "predictors": []}
    record["provenance"] = results.provenance()
    results.write_json(tmp_path / "augment.json", {"images": 3})  # from another benchmark
    results.write_json(tmp_path / "b.json", record)
    results.write_json(tmp_path / "a.json", record)
    records = comparison.benchmarks(tmp_path)
    assert list(records) == ["a", "b"]
    assert len(comparison.step_parts(record)) == len(step["parts"]) + 1
    assert all("%" in row["predictor update takes"] for row in comparison.speeds(records))
    assert comparison.benchmarks(tmp_path / "nowhere") == {}


def test_a_gpu_is_told_by_its_clocks_or_by_the_name_of_the_file():
    clocked = BENCH | {"step": BENCH["step"] | {"clocks": {"clocks.sm": 1980.0}}}
    assert comparison.on_gpu("step", clocked) and comparison.on_gpu("gpu-bf16", BENCH)
    assert not comparison.on_gpu("cpu", BENCH)


def test_a_way_to_train_is_a_row_and_what_was_not_measured_is_not_run():
    table = comparison.lightly(LIGHTLY).astype(str)
    assert table.to_numpy().tolist() == [
        ["BYOL, dcopy, fp32", "96.5 ± 0.7", "90.0 ± 0.0", "2", "36", "3.00"],
        ["BYOL, lightly, fp32", "95.5 ± 0.7", "90.0 ± 0.0", "2", "12", "1.00"],  # the median, not the mean
        ["SimSiam, lightly, fp32", "94.5 ± 0.7", "90.0 ± 0.0", "2", "not run", "not run"],
        ["BYOL, dcopy, bf16", "not run", "not run", "—", "24", "2.00"],
    ]


def test_caption_and_notes_of_the_comparison_name_what_it_depends_on(tmp_path):
    caption, notes = comparison.lightly_caption(LIGHTLY), comparison.lightly_notes(LIGHTLY)
    assert "lightly 1.5.20" in caption and "a processor, 2 threads" in caption
    accuracy, speed = notes
    for word in ("digits", "conv", "60 epochs", "batch 64"):
        assert word in accuracy
    for word in ("resnet18-cifar", "batch 32", "7 workers", "3 rounds of 4 steps"):
        assert word in speed
    tables.write_table(comparison.lightly(LIGHTLY), tmp_path / "comparison", caption, notes)
    assert "95.5 ± 0.7" in (tmp_path / "comparison.csv").read_text()
    assert r"95.5 $\pm$ 0.7" in (tmp_path / "comparison.tex").read_text()


def test_the_finding_pairs_the_seeds():
    record = copy.deepcopy(LIGHTLY)
    assert "+1.0 ± 0.0 points" in comparison.lightly_finding(record)
    assert "n = 2" in comparison.lightly_finding(record) and "3.00 times" in comparison.lightly_finding(
        record
    )
    record["accuracy"]["runs"] = record["accuracy"]["runs"][:3][::-1]
    assert "+1.0 points" in comparison.lightly_finding(record)  # one seed has no error
    assert "n = 1)" in comparison.lightly_finding(record)


def test_the_finding_compares_each_precision_with_the_same_one_of_lightly():
    record = copy.deepcopy(LIGHTLY)
    record["speed"]["times_as_fast"]["BYOL, lightly, bf16"] = 1.6
    assert "3.00 (fp32) and 1.25 (bf16) times as fast" in comparison.lightly_finding(record)


@pytest.mark.parametrize("times", [0.5, 2.25])
def test_the_finding_says_so_where_dcopy_is_slower(times):
    record = copy.deepcopy(LIGHTLY)
    record["speed"]["times_as_fast"]["BYOL, dcopy, fp32"] = times
    assert f"{times:.2f} times as fast" in comparison.lightly_finding(record)
