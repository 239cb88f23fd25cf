"""A network next to the flow: units, predictions, and what is said of them."""

import dataclasses

import pytest
import torch

import dcopy
from dcopy import data, theory
from dcopy.evaluation import variance
from dcopy.theory import claims_network, figures_network, network

CONFIG = dcopy.TrainConfig(
    dataset="digits", epochs=2, batch_size=32, width=4, hidden_dim=16, projection_dim=8
)


def test_sgd_with_momentum_takes_the_time_that_the_units_say():
    config = dataclasses.replace(CONFIG, lr=1e-4, weight_decay=0.8)
    units = network.units(config, images=3200)
    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    sgd = torch.optim.SGD([weight], lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    for _ in range(300):
        sgd.zero_grad()
        (4 * weight.square().sum() / 2).backward()  # four times the flow's loss
        sgd.step()
    flow = torch.tensor(-(1 + units.eta) * 300 * units.step).exp().item()
    assert weight.item() == pytest.approx(flow, rel=0.05)
    assert units.epoch == pytest.approx(100 * units.step)
    assert network.units(dataclasses.replace(config, symmetric_loss=False), 3200).eta == 2 * units.eta
    assert network.units(dataclasses.replace(config, ema=0.0), 3200).beta is None
    assert network.units(config, 3200).beta * units.step == pytest.approx(1 - config.ema)


def test_the_quadratic_prediction_ends_at_the_closed_form():
    sigma2 = torch.tensor([0.1, 0.5, 4.0], dtype=torch.float64).expand(2, 3)
    first = torch.tensor([2.0, 0.3, 0.5], dtype=torch.float64)
    units = network.Units(step=1.0, epoch=200.0, eta=0.02, beta=None)
    start, end = network.predict(first, sigma2, [1, 3], units, "quadratic", eps=0.2)
    x = 1 / (1 + sigma2[0])
    q_plus = theory.fixed_points(0.02, 1 - x, signal=x)[1]
    torch.testing.assert_close(start, first)
    torch.testing.assert_close(end, (q_plus - 0.2).nan_to_num(nan=0.0).clamp(min=0), rtol=1e-5, atol=1e-6)
    slow = dataclasses.replace(units, epoch=1.0, beta=0.01)
    lagging = network.predict(first, sigma2, [1, 3], slow, "quadratic", eps=0.2)[-1]
    free = network.predict(first, sigma2, [1, 3], dataclasses.replace(slow, beta=None), "quadratic", eps=0.2)[
        -1
    ]
    assert (lagging - first).abs()[1] < (free - first).abs()[1]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place, images = tmp_path_factory.mktemp("runs"), data.load("digits").pretrain()[:96]
    options = {"images": images, "progress": False, "device": "cpu"}
    return [dcopy.pretrain(dataclasses.replace(CONFIG, epochs=n), place, **options) for n in (1, 2)], images


def test_variances_along_given_directions_are_those_of_the_eigenvectors(runs):
    (_, run), images = runs
    _, F, _ = variance.load_network(run.folder)
    U = torch.linalg.eigh(F.double())[1].flip(1)
    own, given = (variance.variances(run.folder, images, 2, "cpu", directions) for directions in (None, U))
    for name in ("eigenvalue", "image", "augmentation"):
        torch.testing.assert_close(torch.tensor(given[name]), torch.tensor(own[name]))
    turned = variance.variances(run.folder, images, 2, "cpu", U.flip(1))
    assert turned["augmentation"] == pytest.approx(own["augmentation"][::-1])


def test_a_run_is_measured_against_every_prediction(runs):
    family, images = runs
    evidence = theory.network_in_time([family], images, views=2)
    table = evidence.data["table"]
    names = ["measured", *evidence.data["predicted"]]
    assert [row["prediction"] for row in table] == [name for name in names for _ in range(2)]
    assert all(
        row["distance"] < 1e-12 for row in table if row["epoch"] == 1 or row["prediction"] == "measured"
    )
    assert all(row["pass"] is None for row in evidence.rows) and evidence.passed
    measured = evidence.data["measured"]
    torch.testing.assert_close(
        measured[-1],
        variance.load_network(family[-1].folder)[1].double().trace() * network.shares(measured)[-1],
        rtol=1e-5,
        atol=1e-6,
    )
    shown = {name: evidence.data[name] for name in ("epochs", "measured", "sigma2", "predicted")}
    assert len(figures_network.network_in_time(**shown, shown=8).axes) == 6
    assert claims_network.distance_table(table).count("\n") == 1 + len(evidence.data["predicted"])


@pytest.mark.parametrize(
    ("still", "words"),
    [(0.5, "All four are better"), (0.25, "No better than nothing moving: d (30 %)"), (0.01, "a (10 %)")],
)
def test_the_finding_says_which_predictions_do_not_beat_standing_still(still, words):
    distances = {"measured": 0.0, "nothing moves": still, "a": 0.1, "b": 0.2, "c": 0.22, "d": 0.3}
    table = [
        {"seed": 0, "prediction": name, "epoch": epoch, "distance": value * (epoch > 1), "trace": 1.0}
        for name, value in distances.items()
        for epoch in (1, 2, 3)
    ]
    text = claims_network.finding(table)
    assert "**a** comes nearest: 10 %" in text and words in text
