"""The probe by SGD: as scikit-learn on the same features, and on crops of very many images."""

import numpy as np
import pytest
import torch

from dcopy import data
from dcopy.config import TrainConfig
from dcopy.evaluation import evaluate, probes, sgd_probe
from dcopy.evaluation.features import RawPixels, extract_features, random_encoder
from dcopy.report import tables

FEW = {"lr_grid": (0.1,), "C_grid": (0.1,), "epochs": 3, "device": "cpu"}


@pytest.fixture(scope="module")
def digits():
    """Features of an untrained encoder on scikit-learn's digits, with labels: 1,297 and 500."""
    images = data.load("digits")
    encoder = random_encoder(TrainConfig(width=16), 1)
    features = (extract_features(encoder, split) for split in (images.train, images.test))
    train_x, test_x = features
    return train_x, images.train_labels.numpy(), test_x, images.test_labels.numpy()


@pytest.mark.parametrize("C", [0.01, 1.0])
def test_it_agrees_with_scikit_learns_within_half_a_point(C, digits):
    """Up to two of 500 test images: the objective is the same, the solver is not."""
    exact = probes.linear_probe(*digits, C_grid=(C,))
    ours = sgd_probe.sgd_probe(*digits, C_grid=(C,), lr_grid=(0.1,), batch_size=64)
    assert abs(ours["accuracy"] - exact["accuracy"]) <= 0.005
    assert ours["accuracy"] <= ours["top5"] and ours["converged"]


def test_the_penalty_of_two_classes_is_scikit_learns_and_leaves_the_bias_alone():
    """One feature and unequal classes, so that the border between them moves with the penalty."""
    generator = np.random.default_rng(0)
    y = (generator.random(800) < 0.25).astype(int)
    x = (2 * y + generator.normal(size=800))[:, None].astype(np.float32)
    features = x[:400], y[:400], x[400:], y[400:]
    for C, accuracy in ((0.001, 0.7575), (0.01, 0.82)):
        options = {"lr_grid": (0.1,), "epochs": 30, "batch_size": 64, "device": "cpu"}
        assert probes.linear_probe(*features, C_grid=(C,))["accuracy"] == accuracy
        assert abs(sgd_probe.sgd_probe(*features, C_grid=(C,), **options)["accuracy"] - accuracy) <= 0.005


def test_top5_counts_the_class_among_the_first_five():
    layer, scale = torch.nn.Linear(7, 7), (torch.zeros(7), torch.ones(7))
    layer.weight.data, layer.bias.data = torch.eye(7), torch.zeros(7)
    x = np.tile(np.arange(7, 0, -1, dtype=np.float32), (4, 1))  # class 0 first, class 6 last
    assert sgd_probe.hits(layer, scale, x, np.array([0, 4, 5, 6])) == (0.25, 0.5)


def test_the_pair_is_chosen_on_held_out_training_images_and_the_test_set_read_once(digits, monkeypatch):
    train_x, train_y, test_x, test_y = digits
    read = []
    hits = sgd_probe.hits
    monkeypatch.setattr(sgd_probe, "hits", lambda *args: (read.append(args[2].shape[0]), hits(*args))[1])
    options = {"lr_grid": (1e-6, 0.1), "C_grid": (0.1,), "epochs": 5}
    first = sgd_probe.sgd_probe(*digits, **options)
    assert first["lr"] == 0.1 and read == [260, 260, 500]
    second = sgd_probe.sgd_probe(train_x, train_y, test_x, (test_y + 1) % 10, **options)
    told = {"accuracy": 0, "top5": 0, "seconds": 0}
    assert first | told == second | told and first["accuracy"] > second["accuracy"]


def test_each_epoch_sees_other_crops_of_every_training_image(digits):
    seen = []

    def crops(batches, epoch):
        seen.append((epoch, np.sort(np.concatenate(batches))))
        return (torch.from_numpy(digits[0][own]) for own in batches)

    with_crops = sgd_probe.sgd_probe(*digits, crops=crops, **FEW)
    assert [epoch for epoch, _ in seen] == 2 * [0, 1, 2] and len(seen[0][1]) == 1037
    assert all((which == np.arange(1297)).all() for _, which in seen[3:])
    assert with_crops["accuracy"] == sgd_probe.sgd_probe(*digits, **FEW)["accuracy"]


def test_crops_of_images_in_memory_differ_by_epoch_and_are_the_same_again():
    images = data.load("digits").train[:40]
    encoder = RawPixels()
    batches = [np.arange(0, 16), np.arange(16, 40)]
    crop = sgd_probe.crop_features(encoder, images, "cpu")
    first, again, later = ([*crop(batches, epoch)] for epoch in (0, 0, 1))
    assert [len(own) for own in first] == [16, 24]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], later[0])
    assert not torch.equal(first[0], encoder(images[:16]))


def test_half_of_the_crops_are_mirrored():
    images = torch.arange(0, 256, 8, dtype=torch.uint8).expand(200, 1, 32, 32)  # brighter to the right
    (x,) = sgd_probe.crop_features(RawPixels(), images, "cpu")([np.arange(200)], 0)
    x = x.view(200, 32, 32)
    assert 0.4 < (x[:, 0, 0] > x[:, 0, -1]).float().mean() < 0.6


def test_crops_of_images_on_disk_are_cut_by_their_reader():
    """Boxes of the area and inside of each image's own size; `crops` gets them one image at a time."""
    boxes = {}

    class OnDisk:
        shape = torch.Size((6, 3, 8, 8))

        def sizes(self, which):
            return torch.full((len(which),), 20.0), torch.full((len(which),), 30.0)

        def crops(self, i, own, out):
            boxes[i] = own
            out[:] = i

    crop = sgd_probe.crop_features(RawPixels(), OnDisk(), "cpu")
    (x,) = crop([np.array([4, 2, 5])], 0)
    assert (255 * x).round().unique(dim=1).flatten().tolist() == [4, 2, 5]
    for ((top, left, height, width),) in boxes.values():
        assert 0 <= top <= top + height <= 20 and 0 <= left <= left + width <= 30
        assert 0.05 < height * width / 600 <= 1


def test_a_large_data_set_is_probed_on_crops_with_shares_of_its_labels(digits, monkeypatch):
    """1 % and 10 % of 1,297 labels: one and thirteen of each class."""
    monkeypatch.setattr(evaluate, "LARGE", 1000)
    monkeypatch.setattr(evaluate, "HELD_OUT", 100)
    monkeypatch.setattr(probes, "MANY", 10)
    used = {}

    def quick(*features, **options):
        used.update(options)
        return sgd_probe.sgd_probe(*features, **options, **{**FEW, "epochs": 1})

    monkeypatch.setattr(evaluate, "sgd_probe", quick)
    images = data.load("digits")
    probe = evaluate.evaluate(RawPixels(), images, k=20)
    assert used["validation"] == pytest.approx(100 / 1297) and probe["linear"]["crops"]
    assert probe["protocol"]["labels_per_class"] == [1, 13] and probe["protocol"]["draws"] == 3
    assert [len(point["accuracies"]) for point in probe["label_efficiency"]] == [3, 3, 1]
    named = {"label": "raw pixels", "method": "pixels", "dataset": "digits", "seed": 0}
    frame = tables.probe_frame([probe | named])
    assert frame[tables.PEEKS].isna().all() and frame["all labels"][0] == 100 * probe["linear"]["accuracy"]


def test_large_images_are_averaged_before_their_pixels_are_probed():
    assert RawPixels()(torch.full((2, 3, 224, 224), 255, dtype=torch.uint8)).shape == (2, 768)


@pytest.mark.parametrize("size", [1, 7, 500])
def test_neighbours_found_block_by_block_are_those_found_at_once(size, digits, monkeypatch):
    whole = probes.knn_probe(*digits, k=15)
    monkeypatch.setattr(probes, "blocks", lambda count, _=None, cut=probes.blocks: cut(count, max(size, 50)))
    assert probes.knn_probe(*digits, k=15) == whole


def test_features_read_in_blocks_have_the_statistics_of_all(digits, monkeypatch):
    train_x, which = digits[0], np.array([5, 3, 1000, 40, 41])
    monkeypatch.setattr(sgd_probe, "blocks", lambda count: probes.blocks(count, 2))
    mean, std = sgd_probe.statistics(train_x, which)
    np.testing.assert_allclose(mean, train_x[which].mean(axis=0), rtol=1e-5)
    expected = train_x[which].std(axis=0)
    np.testing.assert_allclose(std, np.where(expected > 0, expected, 1), rtol=1e-3, atol=1e-6)
