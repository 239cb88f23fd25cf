"""Networks: the published architectures, and an EMA that is exact and leaves buffers alone."""

import copy
import sys

import pytest
import torch
import torchvision
from helpers.tiny import tiny_config, tiny_views
from torch import nn

from dcopy.config import RECIPES, TrainConfig
from dcopy.models import ENCODERS, ConvNet, Network, ResNet18, check_names, ema_update
from dcopy.predictors import build_predictor


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


# models of torchvision and timm


def library_config(encoder, **fields):
    return TrainConfig(dataset="folder:photos", encoder=encoder, hidden_dim=16, projection_dim=8, **fields)


@pytest.mark.parametrize(
    "encoder, size, dim",
    [
        ("torchvision:resnet50", 32, 2048),
        ("torchvision:mobilenet_v3_small", 32, 1024),  # with dropout before its last layer
        ("timm:test_vit", 32, 64),  # made for 160 pixels
        ("timm:test_efficientnet", 32, 256),
    ],
)
def test_models_of_libraries_are_encoders_by_their_name(encoder, size, dim):
    """Without their classifier, and the same features at each pass, since nothing is dropped out."""
    network, x = Network(library_config(encoder, image_size=size), channels=3), torch.randn(4, 3, size, size)
    assert network.training and network.encoder.out_dim == dim and network(x).shape == (4, 8)
    assert torch.equal(network.encoder(x), network.encoder(x))


def test_what_features_do_not_depend_on_is_not_trained(monkeypatch):
    class Masked(nn.Sequential):  # as some transformers have a token for masked patches
        def __init__(self):
            super().__init__(nn.Flatten(), nn.Linear(3 * 8 * 8, 5), nn.Linear(5, 10))
            self.mask_token = nn.Parameter(torch.zeros(5))

    monkeypatch.setattr(torchvision.models, "get_model", lambda name, **_: Masked())
    encoder = Network(library_config("torchvision:resnet18", image_size=8), 3).encoder
    assert {name for name, p in encoder.named_parameters() if not p.requires_grad} == {"mask_token"}
    assert encoder.out_dim == 5


@pytest.mark.parametrize(
    "encoder, message",
    [
        (
            "torchvision:resnet5",
            "resnet5 is not a model of torchvision; names near it: resnet50,",
        ),
        ("timm:vit_smal_patch16_224", "is not a model of timm; names near it: vit_small_patch16_224,"),
        ("torchvision:squeezenet1_0", "has no linear layer to take off; choose another"),
        ("timm:test_vit", r"does not take images of 3x8x8 \(.+\)$"),
        ("torchvision:vit_b_16", r"does not take images of 3x8x8 \(.+\)$"),  # found when it is built
    ],
)
def test_a_model_that_does_not_fit_gives_one_line(encoder, message):
    with pytest.raises(ValueError, match=message) as error:
        Network(library_config(encoder, image_size=8), channels=3)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fields", [{"encoder": "timm:test_vit"}, {"optimizer": "lars"}])
def test_without_timm_one_line_says_what_needs_it(fields, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    (name, value) = fields.popitem()
    with pytest.raises(ValueError, match=f"^{name}={value} needs the package timm, .*pip install timm$"):
        check_names(tiny_config(dataset="folder:photos", width=None, **{name: value}))


def test_byols_own_heads_have_an_affine_batchnorm_and_no_last_bias():
    """`google-deepmind/deepmind-research:byol/utils/networks.py`; hidden 4096, 256 out on ImageNet."""
    config = tiny_config(heads="byol", method="mlp")
    for layers in (Network(config, 1).projector, build_predictor(config).layers):
        assert [type(layer) for layer in layers] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
        assert layers[1].affine and layers[0].bias is not None and layers[3].bias is None
    assert (RECIPES["imagenet"].hidden_dim, RECIPES["imagenet"].projection_dim) == (4096, 256)


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
