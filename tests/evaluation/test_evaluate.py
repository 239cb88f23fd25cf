"""Evaluation: the encoder is left as it is, and every probed encoder leaves one file that can be trusted."""

import copy

import numpy as np
import pytest
import torch
from helpers.records import PROBE, result_of
from helpers.tiny import tiny_config, tiny_images, tiny_run
from torch import nn

from dcopy import results
from dcopy.data import ImageData, augment
from dcopy.evaluation import evaluate
from dcopy.evaluation.evaluate import cached_features, load_probes, load_results, probe_runs
from dcopy.evaluation.features import RawPixels, extract_features, random_encoder
from dcopy.models import Network
from dcopy.training import checkpoint
from dcopy.training.runs import RESULT, FrozenEncoder, read_result
from dcopy.training.step import Trainer


@pytest.fixture(scope="module")
def labelled():
    """Two classes, dark and bright, of 30 training and 10 test images."""
    images = tiny_images(80)
    images[::2] = images[::2] // 2
    labels = torch.arange(80) % 2
    return ImageData("tiny", images[:60], labels[:60], images[60:], labels[60:], ("dark", "bright"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory, labelled):
    """Two methods with the same seed, and so with the same encoder before training."""
    folder = tmp_path_factory.mktemp("results") / "runs"
    return [one_epoch(folder, labelled, method=method) for method in ("directcopy", "none")]


def one_epoch(folder, images, **fields):
    return tiny_run(folder, tiny_config(epochs=1, **fields), images=images.pretrain())


# features


def test_a_frozen_encoder_stays_frozen():
    encoder = FrozenEncoder(Network(tiny_config(), 1).encoder, tiny_config())
    for mode in (True, False):
        assert encoder.train(mode) is encoder
        assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_features_are_representations_of_clean_images_in_eval_mode():
    config, images = tiny_config(), tiny_images()
    network = Network(config, 1)
    network(torch.randn(20, 1, 16, 16))  # moves the running statistics away from 0 and 1
    features = extract_features(FrozenEncoder(network.encoder, config), images)
    clean = augment.build("digits").clean(images)
    with torch.no_grad():
        expected = network.encoder.eval()(clean)
    assert features.dtype == np.float32 and features.shape == (50, network.encoder.out_dim)
    np.testing.assert_allclose(features, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_a_network_that_is_still_being_trained_goes_on_in_train_mode():
    encoder = nn.Sequential(RawPixels(), nn.Linear(256, 8), nn.BatchNorm1d(8).eval())
    extract_features(encoder, tiny_images())
    assert [module.training for module in encoder.modules()] == [True, True, True, False]


def test_extracting_moves_nothing():
    """Also for an encoder of one's own that is in train mode; the batch size changes nothing but speed."""
    encoder = nn.Sequential(RawPixels(), nn.Linear(256, 8), nn.BatchNorm1d(8))
    before = copy.deepcopy(encoder.state_dict())
    features = extract_features(encoder.train(), tiny_images())
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    np.testing.assert_allclose(extract_features(encoder, tiny_images(), batch_size=7), features, atol=1e-6)


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="there are no images"):
        extract_features(RawPixels(), tiny_images()[:0])


def test_raw_pixels_are_the_pixels():
    images = tiny_images()
    assert np.array_equal(
        extract_features(RawPixels(), images), images.numpy().reshape(50, 256) / np.float32(255)
    )


def test_the_random_encoder_is_the_one_a_run_starts_from(runs):
    config = runs[0].config
    start = checkpoint.fingerprint(Trainer(config, 1).online.encoder)
    assert checkpoint.fingerprint(random_encoder(config, 1).encoder) == start
    other = tiny_config(method="mlp", target_start="random")
    assert checkpoint.fingerprint(random_encoder(other, 1).encoder) == start
    assert checkpoint.fingerprint(runs[0].encoder.encoder) != start


def test_cached_features_are_those_of_these_weights_and_images(tmp_path, monkeypatch):
    images, encoder = tiny_images(), nn.Sequential(RawPixels(), nn.Linear(256, 4))
    features = cached_features(encoder, images, tmp_path)
    assert np.array_equal(features, cached_features(encoder, images, None))
    with torch.no_grad():
        other = copy.deepcopy(encoder)
        other[1].bias[0] += 1
    assert not np.array_equal(cached_features(other, images, tmp_path), features)
    assert not np.array_equal(cached_features(encoder, images.flip(0), tmp_path), features)
    assert len(list(tmp_path.iterdir())) == 3
    first = extract_features(encoder, images[: evaluate.FIRST])
    monkeypatch.setattr(evaluate, "extract_features", lambda _, some: {len(first): first}[len(some)])
    assert np.array_equal(cached_features(encoder, images, tmp_path), features)


def test_cached_features_are_those_of_this_function_and_not_of_another_without_weights(tmp_path):
    images, brighter = tiny_images(), RawPixels()
    brighter.register_forward_hook(lambda module, inputs, output: 2 * output)  # same class, same repr
    features = cached_features(RawPixels(), images, tmp_path)
    assert np.array_equal(cached_features(brighter, images, tmp_path), 2 * features)
    assert np.array_equal(cached_features(RawPixels(), images, tmp_path), features)


@pytest.mark.parametrize("kept", [0, 5, 100, 1000])  # bytes: of nothing, the magic, the header, the features
def test_cached_features_that_cannot_be_read_are_made_anew(tmp_path, kept, caplog):
    features = cached_features(RawPixels(), tiny_images(), tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    assert np.array_equal(cached_features(RawPixels(), tiny_images(), tmp_path), features)
    assert path.read_bytes() == whole and [*tmp_path.iterdir()] == [path]
    (line,) = caplog.messages
    assert str(path) in line and "extracted anew" in line


# all probes


def test_evaluate_gives_every_probe_of_one_encoder(labelled, tmp_path):
    record = evaluate.evaluate(RawPixels(), labelled, draws=2, cache=tmp_path)
    assert record["linear"]["accuracy"] > 0.7 and 0 <= record["knn"] <= 1
    assert [point["labels_per_class"] for point in record["label_efficiency"]] == [1, 5, 10, 20, "all"]
    assert record["feature_dim"] == 256
    assert record["protocol"] == evaluate.protocol(labelled, draws=2)
    everything = record["label_efficiency"][-1]
    assert everything["accuracies"] == [everything["accuracy_mean"]] == [record["linear"]["accuracy"]]
    results.write_json(tmp_path / "probe.json", record)  # plain numbers, no NaN
    assert results.read_json(tmp_path / "probe.json") == record


@pytest.mark.parametrize("split", ["train", "test"])
def test_evaluate_needs_labelled_images(split, labelled):
    empty = {f"{split}": labelled.train[:0], f"{split}_labels": labelled.train_labels[:0]}
    data = ImageData(**vars(labelled) | empty)
    with pytest.raises(ValueError, match=f"tiny has no labelled {split} images"):
        evaluate.evaluate(RawPixels(), data)


def test_runs_are_probed_with_their_baselines_once(runs, labelled, monkeypatch):
    run_dir = runs[0].folder.parent
    records = probe_runs(runs, labelled, run_dir, draws=2)
    assert [record["method"] for record in records] == ["pixels", "random", "directcopy", "random", "none"]
    assert records[1] == records[3]  # the same encoder, probed once
    assert records[2]["baselines"] == records[4]["baselines"] == ["digits-pixels", records[1]["name"]]
    for record in records:
        assert results.read_json(run_dir / record["name"] / "probe.json") == record
    assert records[2]["encoder_fingerprint"] == checkpoint.fingerprint(runs[0].encoder)

    probed = []
    monkeypatch.setattr(evaluate, "evaluate", lambda encoder, *_, **__: probed.append(encoder) or records[0])
    assert probe_runs(runs, labelled, run_dir, draws=2) == records and not probed
    with torch.no_grad():
        next(runs[0].encoder.parameters()).add_(1)  # as a run that was made again
    probe_runs(runs, labelled, run_dir, draws=2)
    assert probed == [runs[0].encoder]


def test_what_another_preset_has_probed_is_taken_over(labelled, tmp_path, monkeypatch):
    folders = [tmp_path / preset / "runs" for preset in ("one", "two")]
    runs = [tiny_run(folder, tiny_config(epochs=1), images=labelled.train) for folder in folders]
    first = probe_runs(runs[:1], labelled, folders[0], draws=1)
    monkeypatch.setattr(evaluate, "evaluate", None)  # nothing is probed a second time
    assert probe_runs(runs[1:], labelled, folders[1], draws=1) == first
    assert len(load_probes(folders[1].parent)) == 3


def test_probes_of_other_options_or_images_are_made_again(labelled, tmp_path, monkeypatch):
    run = one_epoch(tmp_path, labelled)
    probe_runs([run], labelled, tmp_path, draws=1)
    probed, probe = [], evaluate.evaluate
    monkeypatch.setattr(evaluate, "evaluate", lambda *a, **o: probed.append(o) or probe(*a, **o))
    probe_runs([run], labelled, tmp_path, draws=2)
    assert probed == [{"draws": 2}] * 3
    probe_runs([run], changed(labelled, test_labels=labelled.test_labels.flip(0)), tmp_path, draws=2)
    assert len(probed) == 6


def changed(images, **fields):
    return ImageData(**vars(images) | fields)


def test_baselines_of_other_data_lie_beside_the_first(labelled, tmp_path):
    """So the probes of an earlier run keep the baselines that they are compared with."""
    swapped = changed(labelled, train=labelled.train.flip(0))
    first, other = one_epoch(tmp_path / "runs", labelled), one_epoch(tmp_path / "runs", swapped)
    records = probe_runs([first], labelled, tmp_path / "runs", draws=1)
    others = probe_runs([other], swapped, tmp_path / "runs", draws=1)
    assert not {record["name"] for record in records} & {record["name"] for record in others}
    assert others[2]["baselines"] == [others[0]["name"], others[1]["name"]]
    assert probe_runs([first], labelled, tmp_path / "runs", draws=1) == records
    assert probe_runs([other], swapped, tmp_path / "runs", draws=1) == others
    names = {probe["name"] for probe in load_probes(tmp_path, [first.folder.name])}
    assert names == {record["name"] for record in records}


@pytest.mark.parametrize("name, channels, valid", [("digits", 1, True), ("folder:photos", 3, False)])
def test_probes_from_before_fingerprints_stay_valid_but_for_a_folder(
    name, channels, valid, labelled, tmp_path
):
    splits = {split: getattr(labelled, split).expand(-1, channels, -1, -1) for split in ("train", "test")}
    images = changed(labelled, **splits)
    run = one_epoch(tmp_path, images, dataset=name, encoder="conv", image_size=16)
    for record in probe_runs([run], images, tmp_path, draws=1):
        del record["data_fingerprint"]
        results.write_json(tmp_path / record["name"] / "probe.json", record)
    again = probe_runs([run], images, tmp_path, draws=1)
    assert all(("data_fingerprint" not in record) is valid for record in again)


def test_a_run_on_other_images_is_not_probed(runs, labelled):
    others = changed(labelled, train=labelled.train.flip(0))
    with pytest.raises(ValueError, match="was trained on other images than tiny has now; pretrain on these"):
        probe_runs(runs, others, runs[0].folder.parent)


def test_probes_are_read_with_the_baselines_of_the_runs_asked_for(tmp_path):
    baselines = {"pixels": [], "random-0": [], "random-1": []}
    own = {"run-0": ["pixels", "random-0"], "run-1": ["pixels", "random-1"]}
    for name, behind in (baselines | own).items():
        record = PROBE | {"name": name, "baselines": behind}
        if not behind:
            record |= {"method": name.partition("-")[0]}
            del record["baselines"]
        results.write_json(tmp_path / "runs" / name / "probe.json", record)
    assert {probe["name"] for probe in load_probes(tmp_path)} == baselines.keys() | own.keys()
    assert {probe["name"] for probe in load_probes(tmp_path, ["run-1"])} == {"pixels", "random-1", "run-1"}
    with pytest.raises(ValueError, match="holds no probed runs"):
        load_results(tmp_path)  # none has a result
    result = result_of(tiny_config(), name="run-0")
    results.write_json(tmp_path / "runs" / "run-0" / "result.json", result)
    outcomes, probes = load_results(tmp_path)
    assert outcomes == [result | {"metrics": result["metrics"] | {"verdict": "healthy"}}]
    assert {probe["name"] for probe in probes} == {"pixels", "random-0", "run-0"}


@pytest.mark.parametrize("copied", ["b (copy)", "Copy of b"])  # before and after it
@pytest.mark.parametrize("asked", [None, ["a", "b"]])
def test_a_copied_folder_is_no_run_more_and_said(asked, copied, tmp_path, caplog):
    for name in ("a", "b", copied):
        result = result_of(
            tiny_config(), name=name[-1] if name == "Copy of b" else name[0], seconds=len(name)
        )
        results.write_json(tmp_path / "runs" / name / "result.json", result)
        probe = PROBE | {"name": result["name"], "seconds": len(name)}
        results.write_json(tmp_path / "runs" / name / "probe.json", probe)
    both = load_results(tmp_path, asked)
    assert [sorted((one["name"], one["seconds"]) for one in kind) for kind in both] == [
        [("a", 1), ("b", 1)]
    ] * 2
    notes = (
        [] if asked else [f"{tmp_path / 'runs' / copied} holds the run b, as its result.json says, which "]
    )
    assert [message.partition("counts")[0] for message in caplog.messages] == notes


def without(record, name):
    """The record without a part of it, which `linear.converged` names."""
    first, _, rest = name.partition(".")
    if rest:
        return record | {first: without(record[first], rest)}
    return {key: value for key, value in record.items() if key != name}


POINT = {"labels_per_class": 1, "accuracy_mean": 0.5}
WHOLE = PROBE | {"reference": {"best": 0.6, "last": 0.5}, "label_efficiency": [POINT]}
WRONG = {
    **{name: (without(WHOLE, name), f"it lacks {name}") for name in (*evaluate.PROBE, "baselines")},
    "reference.best": (without(WHOLE, "reference.best"), "it lacks reference.best"),
    "a point": (
        WHOLE | {"label_efficiency": [{"accuracy_mean": 1}]},
        "it lacks label_efficiency.labels_per_",
    ),
    "a list": ([], "it lacks name, label, "),
    "best": (WHOLE | {"reference": {"best": 62.7, "last": 0.5}}, r"62.7 is no accuracy in \[0, 1\]"),
    "last": (WHOLE | {"reference": {"best": 0.5, "last": -1}}, r"-1 is no accuracy in \[0, 1\]"),
}


@pytest.mark.parametrize("probe, message", WRONG.values(), ids=WRONG)
def test_a_probe_that_lacks_what_reports_read_is_refused_by_name(probe, message, tmp_path):
    whole = results.write_json(tmp_path / "whole.json", WHOLE)
    assert evaluate.read_probe(whole) == WHOLE
    path = results.write_json(tmp_path / "probe.json", probe)
    with pytest.raises(ValueError, match=message) as caught:
        evaluate.read_probe(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", RESULT)
def test_a_result_that_lacks_what_reports_read_is_refused_by_name(name, tmp_path):
    path = results.write_json(tmp_path / "result.json", without(result_of(tiny_config()), name))
    with pytest.raises(ValueError, match=rf"{path} is not a complete result of a run .it lacks {name}\)"):
        read_result(path)


def test_every_committed_file_can_be_read():
    for name, read in (("probe.json", evaluate.read_probe), ("result.json", read_result)):
        paths = list(results.reference().glob(f"*/runs/*/{name}"))
        assert paths and all(read(path) for path in paths)


def test_a_probe_that_is_not_complete_is_made_anew(labelled, tmp_path):
    run = one_epoch(tmp_path, labelled)
    records = probe_runs([run], labelled, tmp_path, draws=1)
    for record in records:
        results.write_json(tmp_path / record["name"] / "probe.json", without(record, "knn"))
    again = probe_runs([run], labelled, tmp_path, draws=1)
    assert [record["knn"] for record in again] == [record["knn"] for record in records]


def test_few_labels_are_as_many_as_the_smallest_class_has(labelled):
    scarce = ImageData("scarce", labelled.train[:16], labelled.train_labels[:16], labelled.test,
                       labelled.test_labels, labelled.classes)  # fmt: skip
    record = evaluate.evaluate(RawPixels(), scarce, draws=2)
    assert [point["labels_per_class"] for point in record["label_efficiency"]] == [1, 5, "all"]
