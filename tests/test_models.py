"""Networks: the published architectures, and an EMA that is exact and leaves buffers alone."""

import copy

import pytest
import torch
import torchvision
from helpers.tiny import tiny_config, tiny_views
from torch import nn

from dcopy.config import RECIPES, TrainConfig
from dcopy.models import ENCODERS, ConvNet, Network, ResNet18, ema_update


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_resnet18_is_torchvisions():
    theirs = torchvision.models.resnet18()
    weights = {name: value for name, value in theirs.state_dict().items() if not name.startswith("fc.")}
    ours = ResNet18(3, 64, cifar_stem=False)
    ours.load_state_dict(weights, strict=True)
    theirs.fc = nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    for mode in (True, False):  # with the statistics of the batch, and with those it has left
        torch.testing.assert_close(ours.train(mode)(x), theirs.train(mode)(x))


def test_cifar_stem_keeps_small_images_large():
    """3x3 instead of 7x7 and no max-pool: 11,173,962 parameters with the usual linear layer of 10 classes."""
    encoder = ResNet18(3, 64, cifar_stem=True).eval()
    assert count(encoder) == 11_173_962 - (512 * 10 + 10)
    sizes = []
    encoder.layer1.register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape[2:]))
    encoder(torch.zeros(1, 3, 32, 32))
    assert sizes == [(32, 32)]


def test_conv_has_three_stages_that_halve_the_image():
    encoder = ConvNet(1, width=4)
    assert count(encoder) == 1 * 4 * 25 + 4 * 8 * 9 + 8 * 16 * 9 + 2 * (4 + 8 + 16)
    assert encoder.layers(torch.zeros(2, 1, 16, 16)).shape == (2, 16, 2, 2)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("channels", [1, 3])
def test_encoders_take_any_width_and_say_their_dimension(name, channels):
    encoder = ENCODERS[name](channels, 3)
    assert encoder(torch.randn(2, channels, 32, 32)).shape == (2, encoder.out_dim)


@pytest.mark.parametrize("dataset", ["digits", "cifar10"])
def test_network_follows_the_protocol(dataset):
    """Projector: linear, BatchNorm without affine, ReLU, linear."""
    recipe = RECIPES[dataset]
    network = Network(TrainConfig(dataset=dataset), channels=1)
    h, d, D = network.encoder.out_dim, recipe.hidden_dim, recipe.projection_dim
    assert [type(layer) for layer in network.projector] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert count(network.projector) == (h * d + d) + (d * D + D)
    assert network.eval()(torch.randn(2, 1, 16, 16)).shape == (2, D)


def test_simsiam_projects_with_three_layers_and_a_batchnorm_after_each():
    """The last without affine, as in the published code; everything before the projector is the others'."""
    network, other = Network(TrainConfig(method="simsiam"), channels=1), Network(TrainConfig(), channels=1)
    norms = [layer for layer in network.projector if isinstance(layer, nn.BatchNorm1d)]
    linear = [layer for layer in network.projector if isinstance(layer, nn.Linear)]
    sizes = [(layer.in_features, layer.out_features) for layer in linear]
    assert sizes == [(128, 256), (256, 256), (256, 64)] and [norm.affine for norm in norms] == [1, 1, 0]
    assert network.encoder.state_dict().keys() == other.encoder.state_dict().keys()


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_ema_moves_parameters_by_its_formula_and_no_buffer(momentum):
    """The target's BatchNorm statistics come from its own forward passes in train mode."""
    online, target = (Network(tiny_config(), 1) for _ in range(2))
    x1, x2 = tiny_views()
    online(x1)
    target(x2)
    before = copy.deepcopy(target)
    ema_update(target, online, momentum)
    for new, old, other in zip(target.parameters(), before.parameters(), online.parameters(), strict=True):
        expected = momentum * old.double() + (1 - momentum) * other.double()
        torch.testing.assert_close(new.double(), expected, atol=1e-7, rtol=1e-6)
        assert momentum != 0 or torch.equal(new, other)
        assert momentum != 1 or torch.equal(new, old)
    for (name, new), old in zip(target.named_buffers(), before.buffers(), strict=True):
        assert torch.equal(new, old), name
