"""Each operation against float torchvision: the same numbers at the same parameters, image by
image, and parameters from the same distribution; and the batch as a whole."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from scipy import stats
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.transforms import ColorJitter as TorchvisionJitter
from torchvision.transforms import RandomAffine as TorchvisionAffine
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from dcopy.data import augment
from dcopy.data.augment import (
    Augmentation,
    ColorJitter,
    GaussianBlur,
    GaussianNoise,
    Grayscale,
    HorizontalFlip,
    Normalize,
    RandomAffine,
    RandomResizedCrop,
    Solarize,
)

TOLERANCE = 1e-5  # of values in [0, 1]; the goal is 2/255
ALPHA = 1e-4  # of each distribution test; the seeds are fixed, so a pass stays a pass
SHAPES = {"digits": (1, 16, 16), "cifar": (3, 32, 32), "stl10": (3, 96, 96), "imagenet": (3, 64, 64)}


def build(name):
    """The augmentation that gives views of these shapes."""
    return augment.build(name, SHAPES[name][-1])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_images(n, *shape, seed=0):
    return torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator(seed))


def edge_colors():
    """The colours where hue and saturation are special: grey, dark, pure, two channels equal."""
    levels = [0, 1, 127, 128, 254, 255]
    return torch.tensor(list(itertools.product(levels, repeat=3)), dtype=torch.uint8).T.reshape(1, 3, 12, 18)


def torchvision_jitter(image, order, brightness, contrast, saturation, hue):
    parts = (
        lambda x: F.adjust_brightness(x, brightness),
        lambda x: F.adjust_contrast(x, contrast),
        lambda x: F.adjust_saturation(x, saturation),
        lambda x: F.adjust_hue(x, hue),
    )
    for part in order:
        image = parts[int(part)](image)
    return image


def torchvision_affine(image, angle, dx, dy, scale, shear):
    return F.affine(
        image, angle, [dx, dy], scale, [shear, 0.0], interpolation=InterpolationMode.BILINEAR, fill=None
    )


REFERENCE = {  # one image (C, H, W) by torchvision, from our operation and one row of its parameters
    RandomResizedCrop: lambda op, x, top, left, height, width: F.resized_crop(
        x, int(top), int(left), int(height), int(width), list(op.size), antialias=True
    ),
    HorizontalFlip: lambda op, x, flipped: F.horizontal_flip(x) if flipped else x,
    RandomAffine: lambda op, x, **params: torchvision_affine(x, **params),
    GaussianBlur: lambda op, x, sigma, blurred: F.gaussian_blur(x, op.kernel, sigma) if blurred else x,
    ColorJitter: lambda op, x, **params: torchvision_jitter(x, **params),
    Grayscale: lambda op, x, grey: F.rgb_to_grayscale(x, x.shape[0]) if grey else x,
    Solarize: lambda op, x, solarized: F.solarize(x, op.threshold) if solarized else x,
    GaussianNoise: lambda op, x, noise: (x + noise).clamp(0, 1),  # torchvision takes no noise from outside
    Normalize: lambda op, x: F.normalize(x, list(op.mean), list(op.std)),
}


def row(params, i):
    """The parameters of image i, as plain numbers where they are numbers."""
    return {name: v[i].item() if v[i].ndim == 0 else v[i] for name, v in params.items()}


def by_torchvision(operation, images, params):
    one = REFERENCE[type(operation)]
    return torch.stack([one(operation, x, **row(params, i)) for i, x in enumerate(images)])


def assert_parity(operation, images, params):
    ours, theirs = operation.apply(images, params), by_torchvision(operation, images, params)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 24, 40), (1, 17, 13)], ids=str)
@pytest.mark.parametrize(
    "operation",
    [
        RandomResizedCrop((32, 32)),
        RandomResizedCrop((7, 50), area=(0.01, 1), ratio=(0.2, 5)),
        HorizontalFlip(),
        RandomAffine(degrees=180, translate=0.3, scale=(0.5, 2), shear=40),
        RandomAffine(),
        GaussianBlur(9, p=0.5),
        GaussianBlur(1),
        GaussianBlur(25, sigma=(0.01, 9)),
        ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        ColorJitter(2, 2, 2, 0.5),
        ColorJitter(brightness=1),
        ColorJitter(contrast=1),
        ColorJitter(saturation=1),
        ColorJitter(hue=0.5),
        Grayscale(0.5),
        Solarize(0.3),
        GaussianNoise(0.2),
    ],
    ids=str,
)
def test_each_image_as_torchvision_at_the_same_parameters(operation, shape):
    images = augment.to_float(random_images(48, *shape))
    before = images.clone()
    assert_parity(operation, images, operation.sample(images.shape, generator(1)))
    assert torch.equal(images, before), "apply changed its input"


@pytest.mark.parametrize("size", [(1, 1), (5, 31), (32, 32), (64, 80)], ids=str)
def test_crop_keeps_exact_borders(size):
    H, W = 20, 30
    boxes = [  # top, left, height, width: corners, single pixels, whole sides, whole image
        *[(0, 0, 1, 1), (H - 1, W - 1, 1, 1), (0, W - 1, H, 1), (H - 1, 0, 1, W), (0, 0, H, W)],
        *[(0, 0, 7, 9), (H - 7, W - 9, 7, 9), (6, 11, 5, 19), (3, 4, 2, 25), (1, 1, H - 1, W - 1)],
    ]
    names = ("top", "left", "height", "width")
    params = dict(zip(names, torch.tensor(boxes).float().unbind(1), strict=True))
    images = augment.to_float(random_images(len(boxes), 3, H, W))
    crop = RandomResizedCrop(size)
    assert_parity(crop, images, params)
    changed = 1 - images
    for i, (top, left, height, width) in enumerate(boxes):
        box = (i, slice(None), slice(top, top + height), slice(left, left + width))
        changed[box] = images[box]
    assert torch.equal(crop.apply(changed, params), crop.apply(images, params)), "pixels from outside the box"


@pytest.mark.parametrize("images", [random_images(1, 3, 9, 11), edge_colors()], ids=["noise", "edges"])
def test_jitter_in_every_order(images):
    orders = torch.tensor(list(itertools.permutations(range(4))))  # (24, 4)
    n = len(orders)
    images = augment.to_float(images).expand(n, -1, -1, -1)
    jitter = ColorJitter(0.8, 0.8, 0.8, 0.5)
    params = jitter.sample(images.shape, generator(2)) | {"order": orders}
    assert_parity(jitter, images, params)
    same = {name: v[:1].expand(v.shape) for name, v in params.items()} | {"order": orders}
    assert len(jitter.apply(images, same).flatten(1).unique(dim=0)) > n / 2, "the order makes no difference"


@pytest.mark.parametrize("part", ["brightness", "contrast", "saturation", "hue"])
def test_extreme_factors_on_special_colors(part):
    values = {"hue": [-0.5, -1 / 3, -1e-3, 0.0, 1 / 6, 0.5]}.get(part, [0.0, 0.5, 1.0, 1.5, 10.0])
    n = len(values)
    params = {name: torch.ones(n) for name in ("brightness", "contrast", "saturation")}
    params |= {"hue": torch.zeros(n), "order": torch.arange(4).expand(n, 4)}
    images = augment.to_float(edge_colors()).expand(n, -1, -1, -1)
    assert_parity(ColorJitter(1, 1, 1, 0.5), images, params | {part: torch.tensor(values)})


def test_normalize_as_torchvision():
    assert_parity(Normalize((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), torch.rand(4, 3, 5, 6), {})


@pytest.mark.parametrize("name", augment.RECIPES)
def test_recipe_is_its_operations_one_after_the_other(name):
    images, recipe = random_images(12, *SHAPES[name]), build(name)
    params = recipe.sample(images.shape, generator(3))
    theirs = images / 255
    for operation, drawn in zip(recipe.operations, params, strict=True):
        theirs = by_torchvision(operation, theirs, drawn)
    std = next((op.std for op in recipe.operations if isinstance(op, Normalize)), [1])
    ours = build(name)(images, generator(3))
    torch.testing.assert_close(ours, theirs, atol=3 * TOLERANCE / min(std), rtol=0)


# The distribution of the parameters. KS is conservative for whole numbers, so those that take few
# values are compared by a chi-square test of their table of counts.


def assert_same_distribution(ours, theirs, what):
    assert stats.ks_2samp(ours, theirs).pvalue > ALPHA, what


def assert_same_counts(ours, theirs, what):
    keys = sorted(set(ours) | set(theirs))
    table = torch.tensor([[drawn.count(key) for key in keys] for drawn in (ours, theirs)])
    rare = table.sum(0) < 10
    table = torch.cat([table[:, ~rare], table[:, rare].sum(1, keepdim=True)], 1)
    table = table[:, table.sum(0) > 0]
    if table.shape[1] > 1:
        assert stats.chi2_contingency(table.numpy()).pvalue > ALPHA, what


@pytest.mark.parametrize(
    ("shape", "area", "ratio"),
    [
        ((8, 8), (0.08, 1.0), (3 / 4, 4 / 3)),  # few values: all pairs of sides are compared
        ((32, 32), (0.08, 1.0), (3 / 4, 4 / 3)),
        ((96, 64), (0.5, 1.0), (3 / 4, 4 / 3)),  # many tries fail
        ((16, 60), (0.6, 1.0), (3 / 4, 4 / 3)),  # all fail: too wide
        ((60, 16), (0.6, 1.0), (3 / 4, 4 / 3)),  # too high
        ((16, 60), (0.4, 1.0), (3 / 4, 2.0)),  # some fail ten times
        ((20, 20), (1.0, 1.0), (1.1, 1.2)),  # all fail: the longest allowed shape
    ],
    ids=str,
)
def test_crops_are_distributed_as_torchvisions(shape, area, ratio):
    n = 4000
    torch.manual_seed(0)
    image = torch.empty(3, *shape)
    theirs = [TorchvisionCrop.get_params(image, list(area), list(ratio)) for _ in range(n)]
    params = RandomResizedCrop((32, 32), area, ratio).sample((n, 3, *shape), generator())
    ours = torch.stack(list(params.values()), 1).int().tolist()
    for k, name in enumerate(params):
        assert_same_distribution([box[k] for box in ours], [box[k] for box in theirs], name)
    for name, value in {
        "area": lambda t, le, h, w: h * w,
        "ratio": lambda t, le, h, w: w / h,
        "bottom": lambda t, le, h, w: t + h,
        "right": lambda t, le, h, w: le + w,
    }.items():
        assert_same_distribution([value(*b) for b in ours], [value(*b) for b in theirs], name)
    assert_same_counts([tuple(b[2:]) for b in ours], [tuple(b[2:]) for b in theirs], "height, width")
    assert_same_counts(
        [(b[0], shape[0] - b[2]) for b in ours], [(b[0], shape[0] - b[2]) for b in theirs], "top in its room"
    )


def test_jitter_is_distributed_as_torchvisions():
    n = 4000
    torch.manual_seed(1)
    reference = TorchvisionJitter(0.4, 1.5, 0.8, 0.1)
    ranges = (reference.brightness, reference.contrast, reference.saturation, reference.hue)
    theirs = [TorchvisionJitter.get_params(*ranges) for _ in range(n)]
    params = ColorJitter(0.4, 1.5, 0.8, 0.1).sample((n, 3, 8, 8), generator())
    for k, name in enumerate(("brightness", "contrast", "saturation", "hue"), start=1):
        assert_same_distribution(params[name].tolist(), [drawn[k] for drawn in theirs], name)
    ours = [tuple(order) for order in params["order"].tolist()]
    assert len(set(ours)) == math.factorial(4)
    assert_same_counts(ours, [tuple(drawn[0].tolist()) for drawn in theirs], "order")


def test_affine_is_distributed_as_torchvisions():
    n, (H, W) = 4000, (20, 30)
    torch.manual_seed(2)
    limits = ([-15.0, 15.0], [0.2, 0.2], [0.8, 1.2], [-10.0, 10.0], [W, H])
    theirs = [TorchvisionAffine.get_params(*limits) for _ in range(n)]
    params = RandomAffine(15, 0.2, (0.8, 1.2), 10).sample((n, 1, H, W), generator())
    for name, value in {
        "angle": lambda angle, shift, scale, shear: angle,
        "dx": lambda angle, shift, scale, shear: shift[0],
        "dy": lambda angle, shift, scale, shear: shift[1],
        "scale": lambda angle, shift, scale, shear: scale,
        "shear": lambda angle, shift, scale, shear: shear[0],
    }.items():
        assert_same_distribution(params[name].tolist(), [value(*drawn) for drawn in theirs], name)
    for k, name in enumerate(("dx", "dy")):
        assert_same_counts(params[name].int().tolist(), [drawn[1][k] for drawn in theirs], name)


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (HorizontalFlip(0.5), "flipped"),
        (Grayscale(0.2), "grey"),
        (Solarize(p=0.1), "solarized"),
        (GaussianBlur(9, p=0.7), "blurred"),
    ],
    ids=str,
)
def test_rates(operation, name):
    n = 10_000
    changed = operation.sample((n, 3, 8, 8), generator())[name]
    assert changed.dtype == torch.bool and changed.shape == (n,)
    assert stats.binomtest(int(changed.sum()), n, operation.p).pvalue > ALPHA


def test_rate_of_jitter_and_what_is_spared():
    n = 10_000
    params = ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8).sample((n, 3, 8, 8), generator())
    spared = params["hue"] == 0
    assert stats.binomtest(int((~spared).sum()), n, 0.8).pvalue > ALPHA
    for name in ("brightness", "contrast", "saturation"):
        assert torch.equal(params[name] == 1, spared), name


def test_sigma_and_noise():
    sigma = GaussianBlur(9, sigma=(0.1, 2.0)).sample((4000, 3, 96, 96), generator())["sigma"]
    assert stats.kstest(sigma.numpy(), stats.uniform(0.1, 1.9).cdf).pvalue > ALPHA
    noise = GaussianNoise(0.2).sample((16, 1, 16, 16), generator())["noise"]
    assert stats.kstest(noise.flatten().numpy(), stats.norm(0, 0.2).cdf).pvalue > ALPHA


REFERENCE_CODE = {  # the transforms of facebookresearch/luckmatters:ssl/real-dataset/data/transforms.py
    "cifar": [
        v2.RandomResizedCrop(32),
        v2.RandomHorizontalFlip(p=0.5),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        v2.RandomGrayscale(p=0.2),
        v2.Normalize([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]),
    ],
    "stl10": [
        v2.RandomResizedCrop(size=96),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
        v2.RandomGrayscale(p=0.2),
        v2.GaussianBlur(kernel_size=9, sigma=(0.1, 2.0)),  # there a class of its own, by OpenCV
    ],
}


def our_jitter(apply):
    ranges = [getattr(apply.transforms[0], name) for name in ("brightness", "contrast", "saturation")]
    widths = [round(high - 1, 9) for _, high in ranges]
    return ColorJitter(*widths, hue=apply.transforms[0].hue[1], p=apply.p)


OURS = {  # torchvision's transform: our operation of the same settings
    v2.RandomResizedCrop: lambda t: RandomResizedCrop(t.size, t.scale, t.ratio),
    v2.RandomHorizontalFlip: lambda t: HorizontalFlip(t.p),
    v2.RandomApply: our_jitter,
    v2.RandomGrayscale: lambda t: Grayscale(t.p),
    v2.GaussianBlur: lambda t: GaussianBlur(t.kernel_size[0], tuple(t.sigma)),
    v2.Normalize: lambda t: Normalize(tuple(t.mean), tuple(t.std)),
}


@pytest.mark.parametrize("name", REFERENCE_CODE)
def test_recipe_has_the_settings_of_the_reference_code(name):
    assert augment.RECIPES[name] == tuple(OURS[type(t)](t) for t in REFERENCE_CODE[name])


@pytest.mark.parametrize("name", ["cifar", "stl10"])
def test_views_have_the_side_that_is_asked_for(name):
    views = augment.build(name, 64)(random_images(2, 3, 80, 80), generator())
    assert views.shape == (2, 3, 64, 64)


# The batch.


@pytest.mark.parametrize("name", augment.RECIPES)
def test_identical_images_come_out_different(name):
    views = build(name)(random_images(1, *SHAPES[name]).expand(64, -1, -1, -1), generator())
    assert len(views.flatten(1).unique(dim=0)) == 64


@pytest.mark.parametrize("name", augment.RECIPES)
def test_seed_gives_the_batch(name):
    images, recipe = random_images(8, *SHAPES[name]), build(name)
    stream = generator(5)
    torch.manual_seed(0)
    first, second = recipe(images, stream), recipe(images, stream)
    torch.manual_seed(1)  # the global stream has no say
    assert torch.equal(first, recipe(images, generator(5)))
    assert not torch.equal(first, second)
    assert not torch.equal(first, recipe(images, generator(6)))


@pytest.mark.parametrize("name", augment.RECIPES)
def test_image_knows_nothing_of_its_neighbours(name):
    images, recipe = random_images(6, *SHAPES[name]), build(name)
    params = recipe.sample(images.shape, generator())
    together = recipe.apply(images, params)
    for i in range(6):
        alone = recipe.apply(images[i : i + 1], [{k: v[i : i + 1] for k, v in p.items()} for p in params])
        torch.testing.assert_close(together[i], alone[0], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", augment.RECIPES)
def test_shape_dtype_and_range(name):
    images, recipe = random_images(16, *SHAPES[name]), build(name)
    for views in (recipe(images, generator()), recipe.clean(images)):
        assert views.shape == images.shape and views.dtype == torch.float32 and views.is_contiguous()
        for operation in recipe.operations:
            if isinstance(operation, Normalize):
                mean, std = (torch.tensor(v).view(3, 1, 1) for v in (operation.mean, operation.std))
                views = views * std + mean
        assert views.min() >= -1e-6 and views.max() <= 1 + 1e-6
        assert views.std() > 0.05


def test_crop_gives_its_size_whatever_comes_in():
    recipe = Augmentation((RandomResizedCrop((12, 20)), GaussianNoise(0.1)))
    assert recipe(random_images(3, 3, 40, 17), generator()).shape == (3, 3, 12, 20)


def test_clean_is_the_evaluation_transform():
    images = random_images(5, 3, 32, 32)
    normalized = F.normalize(images / 255, [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])
    torch.testing.assert_close(augment.build("cifar").clean(images), normalized)
    assert torch.equal(augment.build("stl10").clean(images), images / 255)
    digits = random_images(5, 1, 16, 16)
    assert torch.equal(augment.build("digits").clean(digits), digits / 255)


@pytest.mark.parametrize("name", augment.RECIPES)
def test_autocast_leaves_it_alone(name):
    images, recipe = random_images(4, *SHAPES[name]), build(name)
    plain = recipe(images, generator())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(plain, recipe(images, generator()))


@pytest.mark.parametrize("name", [*augment.RECIPES, "solarize"])
def test_nothing_depends_on_values(name):
    """Fake tensors have no values: `.item()`, an index by mask or an `if` on a tensor raises, and
    with it whatever would make the host wait for a GPU."""
    recipe = build(name) if name in SHAPES else Augmentation((Solarize(),))
    with FakeTensorMode():
        images = torch.zeros(4, *SHAPES.get(name, (3, 8, 8)), dtype=torch.uint8)
        assert recipe(images, generator()).shape == images.shape


@pytest.mark.parametrize("name", augment.RECIPES)
def test_apply_is_one_graph(name):
    images, recipe = random_images(4, *SHAPES[name]), build(name)
    params = recipe.sample(images.shape, generator())
    compiled = torch.compile(recipe.apply, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images, params), recipe.apply(images, params))


def test_no_constant_is_sent_to_the_device(monkeypatch):
    """A tensor made from Python numbers is copied from the host, which no captured graph allows."""
    recipes = [(random_images(2, *SHAPES[name]), build(name)) for name in augment.RECIPES]
    with monkeypatch.context() as patch:
        for name in ("tensor", "as_tensor", "from_numpy"):
            patch.setattr(torch, name, lambda *args, **kwargs: pytest.fail("a tensor made on the host"))
        for images, recipe in recipes:
            recipe(images, generator())


# Errors.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HorizontalFlip(1.5), r"p=1.5 .*\[0, 1\]"),
        (lambda: Grayscale(-0.1), "p=-0.1"),
        (lambda: Solarize(threshold=128), r"threshold=128 .*\[0, 1\]"),
        (lambda: ColorJitter(brightness=-1), "brightness=-1 "),
        (lambda: ColorJitter(hue=0.6), r"hue=0.6 .*\[0, 0.5\]"),
        (lambda: RandomResizedCrop((0, 4)), r"size=\(0, 4\)"),
        (lambda: RandomResizedCrop((4, 4), area=(0.5, 2)), r"area=\(0.5, 2\)"),
        (lambda: RandomResizedCrop((4, 4), ratio=(2, 1)), r"ratio=\(2, 1\)"),
        (lambda: RandomAffine(degrees=-5), "degrees=-5 "),
        (lambda: RandomAffine(translate=2), "translate=2 "),
        (lambda: RandomAffine(scale=(0, 1)), r"scale=\(0, 1\)"),
        (lambda: RandomAffine(shear=90), "shear=90 "),
        (lambda: GaussianBlur(8), "kernel=8 .*odd"),
        (lambda: GaussianBlur(9, sigma=(0, 1)), r"sigma=\(0, 1\)"),
        (lambda: GaussianNoise(-1), "std=-1 "),
        (lambda: Normalize((0.5,), (0.0,)), r"std=\(0.0,\)"),
        (lambda: Normalize((0.5,), (1.0, 1.0)), r"mean=\(0.5,\)"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 32, 32), "torch.float32.*torch.uint8"),
        (torch.zeros(3, 32, 32, dtype=torch.uint8), r"\(3, 32, 32\).*\(N, C, H, W\)"),
        (torch.zeros(2, 4, 32, 32, dtype=torch.uint8), r"\(2, 4, 32, 32\).*1 or 3"),
        (torch.zeros(2, 1, 32, 32, dtype=torch.uint8), "channels=1 .*3"),  # the recipe's means are three
    ],
    ids=["dtype", "one image", "RGBA", "grey for a colour recipe"],
)
def test_bad_images(images, message):
    for call in (
        lambda: augment.build("cifar")(images, generator()),
        lambda: augment.build("cifar").clean(images),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_blur_wider_than_the_image():
    with pytest.raises(ValueError, match=r"\(4, 9\).*more than 4"):
        Augmentation((GaussianBlur(9),))(random_images(1, 3, 4, 9), generator())


def test_generator_of_another_device():
    stream = SimpleNamespace(device=torch.device("cuda"))  # stands for one that this machine cannot make
    with pytest.raises(ValueError, match=r"generator.*cuda.*cpu"):
        augment.build("cifar")(random_images(1, 3, 32, 32), stream)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="cifr") as error:
        augment.build("cifr")
    assert all(name in str(error.value) for name in augment.RECIPES)
