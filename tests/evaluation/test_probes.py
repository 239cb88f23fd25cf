"""Probes: each against a plain reference, and none chooses anything by the test set."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_info, threadpool_limits

from dcopy import data
from dcopy.evaluation import evaluate, probes
from dcopy.evaluation.probes import C_GRID, choose_labels, knn_probe, label_efficiency, linear_probe
from dcopy.evaluation.reference_probe import reference_probe


def blobs(train=160, test=80, dim=30, classes=4, noise=2.5, seed=0):
    """Gaussian classes whose features have other means and scales: train_x, train_y, test_x, test_y."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(classes, dim))
    y = np.arange(train + test) % classes
    x = centres[y] + noise * generator.normal(size=(train + test, dim))
    x = (x * 10.0 ** (np.arange(dim) % 5 - 2) + 5).astype(np.float32)
    return x[:train], y[:train], x[train:], y[train:]


LABELS = {  # the same labels in other types; in the same order, but for the last
    "int32": lambda y: y.astype(np.int32),
    "uint8": lambda y: y.astype(np.uint8),
    "gaps and negative": lambda y: 10 * y - 5,
    "float": lambda y: y.astype(np.float64),
    "names": lambda y: np.array(["ant", "bee", "cat", "dog"])[y],
    "a list": lambda y: y.tolist(),
    "a tensor": torch.from_numpy,
}


@pytest.mark.parametrize("change", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("probe", [linear_probe, knn_probe, label_efficiency, reference_probe])
def test_every_probe_takes_labels_of_every_type(probe, change):
    train_x, train_y, test_x, test_y = blobs()
    options = {"labels_per_class": (5,), "draws": 2} if probe is label_efficiency else {}

    def outcome(train_y, test_y):
        found = probe(train_x, train_y, test_x, test_y, **options)
        return found | {"seconds": 0} if isinstance(found, dict) else found

    assert outcome(change(train_y), change(test_y)) == outcome(train_y, test_y)


FEATURES = {  # the same features in other types
    "float64": np.float64,
    "big-endian": lambda x: x.astype(">f4"),
    "reversed memory": lambda x: np.ascontiguousarray(x[:, ::-1])[:, ::-1],
    "a tensor that trains": lambda x: torch.from_numpy(x).requires_grad_(),
}


@pytest.mark.parametrize("change", FEATURES.values(), ids=FEATURES)
@pytest.mark.parametrize("probe", [linear_probe, knn_probe, reference_probe])
def test_every_probe_takes_features_of_every_type(probe, change):
    train_x, train_y, test_x, test_y = blobs(noise=0.1)
    outcomes = [probe(x, train_y, test_x, test_y) for x in (change(train_x), train_x)]
    found, expected = (o if isinstance(o, float) else o.get("accuracy", o.get("last")) for o in outcomes)
    assert found == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, y.astype(float).astype(str), x, y), "no class is in both training and test labels"),
        (lambda x, y: (x, y, x, y + 9), "no class is in both training and test labels"),
        (lambda x, y: (x, np.where(y == 1, np.nan, y), x, y), "one is missing"),
        (lambda x, y: (x, [None if label == 1 else label for label in y], x, y), "one is missing"),
        (lambda x, y: (x.astype(str), y, x, y), "features are of type .*; real numbers expected"),
        (lambda x, y: (x + 1j, y, x, y), "features are of type complex.*; real numbers expected"),
        (lambda x, y: (x, y, x[:, 1:], y), "features of 30 and of 29 dimensions"),
        (lambda x, y: (x[:0], y[:0], x, y), "there is nothing to probe"),
        (lambda x, y: (x, y, x[:0], y[:0]), "there is nothing to probe"),
    ],
)
@pytest.mark.parametrize("probe", [linear_probe, knn_probe])
def test_what_cannot_be_probed_is_refused_in_a_line(probe, change, message):
    with pytest.raises(ValueError, match=message):
        probe(*change(*blobs()[:2]))


@pytest.mark.parametrize("probe", [linear_probe, knn_probe, label_efficiency, reference_probe])
def test_one_class_is_refused_in_a_line(probe):
    train_x, _, test_x, test_y = blobs()
    with pytest.raises(ValueError, match="all 160 training images are of class 3; a probe needs two"):
        probe(train_x, [3] * 160, test_x, test_y)


def test_two_training_images_of_each_class_are_enough_for_the_linear_probe_and_one_is_not():
    train_x, train_y, test_x, test_y = blobs(train=8, noise=0.1)
    assert 0 <= linear_probe(train_x, train_y, test_x, test_y)["accuracy"] <= 1
    with pytest.raises(ValueError, match="class bee has one training image; a probe needs two of each"):
        linear_probe(train_x[:5], np.array(["ant", "bee", "ant", "cat", "cat"]), test_x[:1], ["bee"])


@pytest.mark.parametrize(("x", "y"), [((8, 2, 2), (8,)), ((8, 2), (8, 1))])
def test_shapes_are_named(x, y):
    with pytest.raises(ValueError, match=r"features \(N, d\) and labels \(N,\) expected, got"):
        knn_probe(np.zeros(x), np.zeros(y), np.zeros(x), np.zeros(y))


def standardize(x, reference):
    return (x - reference.mean(axis=0)) / reference.std(axis=0)


# linear probe


def test_linear_probe_is_logistic_regression_on_features_standardized_by_the_training_set():
    train_x, train_y, test_x, test_y = blobs()
    fit = train_test_split(train_x, train_y, test_size=0.2, stratify=train_y, random_state=0)
    fit_x, held_x, fit_y, held_y = fit

    def fitted(C, x, y, other_x, other_y):
        model = LogisticRegression(C=C, max_iter=500).fit(standardize(x, x), y)
        other_x = standardize(other_x, x)
        return model.score(other_x, other_y), log_loss(other_y, model.predict_proba(other_x))

    held = {C: fitted(C, fit_x, fit_y, held_x, held_y) for C in C_GRID}
    outcome = linear_probe(train_x, train_y, test_x, test_y)
    accuracy, loss = held[outcome["C"]]
    assert loss == min(loss for _, loss in held.values())
    assert outcome["validation_loss"] == pytest.approx(loss, abs=1e-3)
    assert outcome["validation_accuracy"] == accuracy
    assert outcome["accuracy"] == fitted(outcome["C"], train_x, train_y, test_x, test_y)[0]
    assert outcome["converged"] and outcome["iterations"] < 500


def test_linear_probe_follows_the_path_to_where_held_out_cross_entropy_rises(monkeypatch):
    """From small to large; each fit starts from the last, and the one on all images from the best."""
    fits = []

    class Spy(LogisticRegression):
        def fit(self, x, y):
            fits.append((self.C, len(x), getattr(self, "coef_", None)))
            return super().fit(x, y)

        def predict_proba(self, x):  # of the right class
            right = {0.001: 0.5, 0.01: 0.6, 0.1: 0.6, 1.0: 0.4}[self.C]
            rest = (1 - right) / (len(self.classes_) - 1)
            return np.where(held == self.classes_, right, rest)

    monkeypatch.setattr(probes, "LogisticRegression", Spy)
    held = train_test_split(blobs()[1], test_size=0.2, stratify=blobs()[1], random_state=0)[1][:, None]
    outcome = linear_probe(*blobs(), C_grid=(1.0, 10.0, 0.1, 0.01, 0.001))
    assert [(C, images) for C, images, _ in fits] == [
        *((0.001, 128), (0.01, 128), (0.1, 128), (1.0, 128)),
        (0.01, 160),
    ]
    starts = [start for *_, start in fits]
    assert starts[0] is None and all(start is not None for start in starts[1:])
    assert np.array_equal(starts[4], starts[2])  # the weights at C = 0.01, from which 0.1 went on
    assert outcome["C"] == 0.01 and outcome["validation_loss"] == pytest.approx(-np.log(0.6))


def test_linear_probe_on_tensors_is_that_on_arrays(monkeypatch):
    """The way it takes on a GPU, here on the processor."""
    pytest.importorskip("sklearn", "1.9")
    expected = linear_probe(*blobs())
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")
    monkeypatch.setattr(probes, "_tensor_device", lambda: "cpu")
    seen, score = [], LogisticRegression.score
    monkeypatch.setattr(LogisticRegression, "score", lambda *args: seen.append(type(args[1])) or score(*args))
    outcome = linear_probe(*blobs())
    assert set(seen) == {torch.Tensor}
    for name in ("accuracy", "C", "validation_accuracy", "validation_loss"):
        assert outcome[name] == pytest.approx(expected[name]) and type(outcome[name]) is float


@pytest.mark.parametrize("probe", [linear_probe, label_efficiency])
def test_fits_use_all_threads_but_of_scipy_one(monkeypatch, probe):
    def threads():
        pools = [
            (Path(p["filepath"]), p["num_threads"]) for p in threadpool_info() if p["user_api"] == "blas"
        ]
        own = {n for path, n in pools if str(path).startswith(str(Path(scipy.__file__).parent))}
        return own, {n for path, n in pools} - own

    seen, fit = [], LogisticRegression.fit
    monkeypatch.setattr(LogisticRegression, "fit", lambda *args: seen.append(threads()) or fit(*args))
    with threadpool_limits(limits=3, user_api="blas"):
        if not threads()[0]:
            pytest.skip("scipy and NumPy share one BLAS here")
        probe(*blobs(), **({"labels_per_class": (1,), "draws": 1} if probe is label_efficiency else {}))
        assert threads() == ({3}, set()), "as it was"
    assert set(map(str, seen)) == {str(({1}, {3}))}


def test_linear_probe_reads_the_test_set_for_its_accuracy_alone():
    train_x, train_y, test_x, test_y = blobs()
    chosen = ("C", "validation_accuracy", "validation_loss", "iterations", "converged")
    outcome = linear_probe(train_x, train_y, test_x, test_y)
    other = linear_probe(train_x, train_y, -3 * test_x, np.roll(test_y, 1))
    assert all(outcome[key] == other[key] for key in chosen)
    assert other["accuracy"] < outcome["accuracy"] - 0.2


def test_linear_probe_says_when_it_has_not_converged(caplog):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outcome = linear_probe(*blobs(), max_iter=2)
    assert not caught  # none for each fit, and no path of this machine in an executed notebook
    (record,) = caplog.records
    assert record.message.startswith("linear probe: not converged after 2 iterations at C=")
    assert not outcome["converged"] and outcome["iterations"] == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert linear_probe(*blobs())["converged"]


# k-NN


def knn_reference(train_x, train_y, test_x, test_y, k, temperature):
    """The votes of the k nearest, one test image at a time, in float64."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train_x, test_x)]
    bank, queries = (x.astype(np.float64) for x in unit)
    correct = 0
    for query, label in zip(queries, test_y, strict=True):
        cosine = bank @ query
        nearest = np.argsort(-cosine)[:k]
        votes = {
            c: np.exp((cosine[nearest] - 1) / temperature)[train_y[nearest] == c].sum() for c in set(train_y)
        }
        correct += max(votes, key=votes.get) == label
    return correct / len(test_y)


@pytest.mark.parametrize("temperature", [10.0, 0.1, 0.005])  # the last one overflows float32 as exp(1 / t)
@pytest.mark.parametrize("k", [1, 7, 1000])
def test_knn_probe_equals_a_plain_reference(k, temperature):
    data = blobs(noise=1.0)
    data = (standardize(data[0], data[0]), data[1], standardize(data[2], data[0]), data[3])
    accuracy = knn_probe(*data, k=k, temperature=temperature)
    assert accuracy == knn_reference(*data, k, temperature) > 0.3


@pytest.mark.parametrize("scale", [1e-35, 1e20, 1e30])  # whose squares float32 does not have
def test_knn_probe_does_not_see_the_scale_of_features(scale):
    train_x, train_y, test_x, test_y = blobs(noise=1.0)
    train_x, test_x = standardize(train_x, train_x), standardize(test_x, train_x)
    train_x[3] = test_x[5] = 0  # has no direction, and stays so
    accuracy = knn_probe(train_x, train_y, test_x, test_y, k=7)
    assert accuracy > 0.8
    factor = np.float32(scale)
    assert knn_probe(factor * train_x, train_y, factor * test_x, test_y, k=7) == accuracy


def test_knn_probe_counts_all_of_a_large_test_set():
    train_x, train_y, test_x, test_y = blobs(test=2500, noise=1.0)
    parts = [
        knn_probe(train_x, train_y, test_x[i : i + 500], test_y[i : i + 500]) for i in range(0, 2500, 500)
    ]
    assert knn_probe(train_x, train_y, test_x, test_y) == pytest.approx(np.mean(parts))


# few labels


def test_labels_are_chosen_a_number_of_each_class_and_anew_in_every_draw():
    labels = np.array([0] * 10 + [2] * 6 + [5] * 30)
    draws = [choose_labels(labels, 4, draw) for draw in range(5)]
    for chosen in draws:
        assert len(set(chosen)) == 12
        assert np.bincount(labels[chosen]).tolist() == [4, 0, 4, 0, 0, 4]
    assert len({tuple(chosen) for chosen in draws}) == 5
    assert np.array_equal(choose_labels(labels, 4, 3), draws[3])


def test_every_encoder_is_probed_with_the_same_labels(monkeypatch):
    taken = []

    def spy(*args):
        taken.append(choose_labels(*args))
        return taken[-1]

    monkeypatch.setattr(probes, "choose_labels", spy)
    train_x, train_y, test_x, test_y = blobs()
    for features in (train_x, np.random.default_rng(1).normal(size=(160, 3)).astype(np.float32)):
        test = test_x if features is train_x else test_x[:, :3]
        label_efficiency(features, train_y, test, test_y, labels_per_class=(1, 5), draws=3)
    first, second = taken[:6], taken[6:]
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_label_efficiency_is_logistic_regression_on_the_chosen_images():
    train_x, train_y, test_x, test_y = blobs()
    records = label_efficiency(train_x, train_y, test_x, test_y, labels_per_class=(2, 5), draws=3)
    x, other_x = standardize(train_x, train_x), standardize(test_x, train_x)
    for record, number in zip(records, (2, 5), strict=True):
        chosen = [choose_labels(train_y, number, draw) for draw in range(3)]
        models = [LogisticRegression(C=1.0, max_iter=1000).fit(x[i], train_y[i]) for i in chosen]
        scores = [model.score(other_x, test_y) for model in models]
        assert record["labels_per_class"] == number and record["accuracies"] == scores
        assert record["accuracy_mean"] == pytest.approx(np.mean(scores))
        assert record["accuracy_std"] == pytest.approx(np.std(scores))


def test_many_labels_are_drawn_less_often_and_the_protocol_says_so(monkeypatch):
    train_x, train_y, test_x, test_y = blobs()  # four classes
    monkeypatch.setattr(probes, "MANY", 20)
    records = label_efficiency(train_x, train_y, test_x, test_y, labels_per_class=(1, 4, 5, 6), draws=7)
    assert [len(record["accuracies"]) for record in records] == [7, 7, 3, 3]
    digits = data.load("digits")
    for most, draws in ((10, {"draws": 3, "draws_of_many": 3}), (1000, {"draws": 7, "draws_of_many": 3})):
        monkeypatch.setattr(probes, "MANY", most)
        assert evaluate.protocol(digits, draws=7).items() >= draws.items()
    monkeypatch.setattr(probes, "MANY", 1001)
    assert evaluate.protocol(digits)["draws"] == 20 and "draws_of_many" not in evaluate.protocol(digits)


@pytest.mark.filterwarnings("error")
def test_one_label_of_each_of_many_classes_is_no_reason_to_warn():
    x = np.random.default_rng(0).normal(size=(120, 4)).astype(np.float32)
    y = np.arange(120) % 40
    assert label_efficiency(x, y, x, y, labels_per_class=(1,), draws=1)[0]["accuracy_mean"] > 0


# the published protocol


def test_features_are_standardized_by_all_of_many_blocks(monkeypatch):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(60, 3)) * np.linspace(0.1, 9, 60)[:, None]
    y = np.arange(60) % 3
    whole, cut = label_efficiency(x, y, x, y, labels_per_class=(2,), draws=3), probes.blocks
    monkeypatch.setattr(probes, "blocks", lambda count, size=7: cut(count, size))
    assert label_efficiency(x, y, x, y, labels_per_class=(2,), draws=3) == whole


def test_reference_probe_reports_the_best_epoch_and_the_last():
    data = blobs(train=1000, noise=1.0)
    outcome = reference_probe(*data)
    assert outcome["best"] >= outcome["last"] > 0.8 and 1 <= outcome["best_epoch"] <= 50
    assert reference_probe(*data) == outcome
    noisy = [reference_probe(*blobs(noise=50, seed=seed)) for seed in range(3)]  # accuracy goes up and down
    assert any(outcome["best"] > outcome["last"] and outcome["best_epoch"] < 50 for outcome in noisy)


# bad input


@pytest.mark.parametrize("probe", [linear_probe, knn_probe, label_efficiency, reference_probe])
def test_bad_features_are_refused(probe):
    train_x, train_y, test_x, test_y = blobs()
    with pytest.raises(ValueError, match="80 features, but 79 labels"):
        probe(train_x, train_y, test_x, test_y[1:])
    for value in (np.nan, np.inf):
        spoiled = train_x.copy()
        spoiled[7, 2] = spoiled[9, 0] = value
        with pytest.raises(ValueError, match="features of image 7 are not finite"):
            probe(spoiled, train_y, test_x, test_y)


@pytest.mark.parametrize(
    "probe, options, message",
    [
        (knn_probe, {"k": 0}, "k=0 is not allowed; it must be an integer of at least 1"),
        (knn_probe, {"temperature": 0}, "temperature=0 is not allowed; it must be a positive number"),
        (label_efficiency, {"draws": 0}, "draws=0 is not allowed; it must be an integer of at least 1"),
        (label_efficiency, {"labels_per_class": (41,)}, "labels_per_class=41 .* between 1 and 40"),
        (label_efficiency, {"labels_per_class": (0,)}, "labels_per_class=0 is not allowed"),
    ],
)
def test_bad_options_are_refused(probe, options, message):
    with pytest.raises(ValueError, match=message):
        probe(*blobs(), **options)
