"""Configurations and presets: what is refused, what names a run, and that planning costs no torch."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

import dcopy
from dcopy.config import METHODS, RECIPES, TrainConfig, parse_options
from dcopy.predictors import build_predictor
from dcopy.workflow import presets
from dcopy.workflow.plan import ROOT
from dcopy.workflow.presets import PRESETS, Preset, with_options

DATASETS = [*(name for name in RECIPES if name != "folder"), "folder:/data/birds"]


def config_of(method, **fields):
    return TrainConfig(method=method, **({"alpha": 2.0} if method == "directset" else {}), **fields)


# what is refused


@pytest.mark.parametrize(
    "field, value, allowed",
    [
        ("dataset", "mnist", "one of digits, cifar10, cifar100, stl10, imagenet, imagenette, folder:PATH"),
        ("dataset", "folder:", "folder:PATH"),
        ("method", "simclr", "one of directcopy, directpred, directset, linear, mlp, simsiam, none"),
        ("epochs", 0, "an integer of at least 1"),
        ("epochs", 1.5, "of type int"),
        ("epochs", True, "of type int"),
        ("batch_size", 1, "an integer of at least 2, for BatchNorm"),
        ("seed", -1, r"an integer in \[0, 2\^31\)"),
        ("lr", 0.0, "a positive number"),
        ("lr", float("inf"), "a positive number"),
        ("lr", "fast", "of type float"),
        pytest.param("lr", 10**400, r"below 1e\+300", id="lr-of-401-digits"),
        ("width", 2**63, r"below 9\.22337e\+18"),
        ("image_size", 10**7, "an integer from 8 to 16384"),
        ("momentum", 1.0, r"a number in \[0, 1\)"),
        ("weight_decay", -1e-4, "a number of at least 0"),
        ("ema", 1.1, r"a number in \[0, 1\]"),
        ("rho", 1.0, r"a number in \[0, 1\)"),
        ("rho", -0.1, r"a number in \[0, 1\)"),
        ("rho", float("nan"), r"a number in \[0, 1\)"),
        ("eps", -0.1, "a number of at least 0"),
        ("freq", 0, "an integer of at least 1"),
        ("alpha", 0.5, "1.0 with method=directcopy; other powers are method=directset"),
        ("normalize", "l2", "one of none, frobenius, spectral"),
        ("target_start", "zero", "one of copy, random"),
        ("batchnorm", "off", "one of per-view, joint"),
        ("precision", "fp8", "one of auto, fp32, bf16, fp16"),
        ("encoder", "vit", "one of conv, resnet18-cifar, resnet18, torchvision:NAME, timm:NAME"),
        ("encoder", "timm:", "one of conv, .*, timm:NAME"),
        ("optimizer", "adam", "one of sgd, lars"),
        ("lr_schedule", "step", "one of constant, cosine"),
        ("warmup", 100, "below epochs=100"),
        ("accumulate", 3, "a divisor of batch_size=128 that leaves two images in each part"),
        ("accumulate", 128, "a divisor of batch_size=128 that leaves two images in each part"),
        ("symmetric_loss", 1, "of type bool"),
        ("projection_dim", 0, "an integer of at least 1"),
    ],
)
def test_a_bad_value_is_refused_with_what_is_allowed(field, value, allowed):
    message = f"{field}={value!r} is not allowed; it must be .*{allowed}"
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{field: value})


def test_directset_needs_its_power():
    with pytest.raises(ValueError, match="alpha=None is not allowed; it must be a positive number"):
        TrainConfig(method="directset")
    with pytest.raises(ValueError, match=r"alpha=-1\.0 is not allowed"):
        TrainConfig(method="directset", alpha=-1)


# what a configuration is


@pytest.mark.parametrize("method", METHODS)
def test_every_method_and_data_set_makes_a_complete_configuration(method):
    for dataset in DATASETS:
        config = config_of(method, dataset=dataset)
        blank = {name for name, value in config.to_dict().items() if value is None}
        blank -= {"width"} if config.library else set()  # its name says how wide it is
        assert blank <= {"alpha"}  # which learned predictors do not have
        assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert build_predictor(config).rho == config.rho  # each method names a predictor


def test_methods_that_are_powers_of_F_know_theirs():
    assert (config_of("directcopy").alpha, config_of("directcopy").eps) == (1.0, 0.3)
    assert (config_of("directpred").alpha, config_of("directpred").eps) == (0.5, 0.1)


def test_the_hash_names_the_configuration():
    """Spelled-out defaults and 1 for 1.0 are the same run; any other value of any field is another."""
    base = {"dataset": "folder:birds"}
    config = TrainConfig(**base)
    assert TrainConfig(**base, eps=0.3, width=64, lr=0.03).hash == config.hash
    assert TrainConfig(**base, eps=1).hash == TrainConfig(**base, eps=1.0).hash
    changes = {
        **{"dataset": "digits", "method": "none", "normalize": "spectral", "target_start": "random"},
        **{"batchnorm": "joint", "encoder": "resnet18", "precision": "bf16"},
        **{"optimizer": "lars", "lr_schedule": "cosine", "warmup": 1, "decay": "weights", "heads": "byol"},
        **{"ema_schedule": "cosine", "accumulate": 2, "data_fingerprint": "8864e0a70ebc49b3"},
    }
    for field in dataclasses.fields(TrainConfig):
        value = getattr(config, field.name)
        if isinstance(value, bool):
            changes[field.name] = not value
        elif isinstance(value, int):
            changes.setdefault(field.name, 2 * value + 1)
        elif isinstance(value, float):
            changes[field.name] = value / 2
        other = {field.name: changes[field.name]}
        if field.name == "alpha":
            other["method"] = "directset"
        assert TrainConfig(**base | other).hash != config.hash, field.name


def test_a_field_that_is_added_later_leaves_names_of_finished_runs_alone():
    @dataclass(frozen=True)
    class Later(TrainConfig):
        added: "int" = 3

    assert Later().hash == TrainConfig().hash
    assert Later(added=4).hash != TrainConfig().hash


def test_names_are_good_for_folders_and_labels_for_tables():
    folder = TrainConfig(dataset="folder:/data/birds/", method="directset", alpha=2, freq=5, seed=3)
    assert folder.name == f"folder-birds-directset-seed3-{folder.hash}"
    assert folder.label == "DirectSet(2) (freq=5)"
    assert TrainConfig(method="none").label == "no predictor"


@pytest.mark.parametrize("name", ["x" * 255, "\u65e5" * 85, "caf\udce9" * 50, "a" * 199 + "\u00e9" * 20])
def test_names_stay_short_enough_for_files_whatever_the_folder_is_called(name):
    config = TrainConfig(dataset=f"folder:/data/{name}", method="directcopy", seed=2**31 - 1)
    assert len(os.fsencode(config.name)) <= 255 and config.name.endswith(config.hash)


# presets


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_runs_with_names_of_their_own(name):
    runs = presets.get(name).runs()
    assert len({run.name for run in runs}) == len(runs) > 0


def test_an_unknown_preset_lists_those_that_exist():
    with pytest.raises(
        ValueError, match=f"preset 'fast' does not exist; it must be one of {', '.join(PRESETS)}"
    ):
        presets.get("fast")


def test_runs_are_every_variant_with_every_seed_once():
    preset = Preset("", ({"method": "none"}, {"eps": 0.3}, {}), shared={"epochs": 2}, seeds=2)
    runs = [(run.method, run.seed, run.epochs) for run in preset.runs()]
    assert runs == [("none", 0, 2), ("none", 1, 2), ("directcopy", 0, 2), ("directcopy", 1, 2)]


def test_a_variant_may_have_its_own_number_of_seeds_unless_one_is_asked_for():
    preset = Preset("", ({"method": "none", "seeds": 2}, {}), seeds=3)
    runs = [("none", 0), ("none", 1), *(("directcopy", seed) for seed in range(3))]
    assert [(run.method, run.seed) for run in preset.runs()] == runs
    assert len(with_options(preset, ["seeds=1"]).runs()) == 2
    assert len(with_options(preset, ["seeds=5"]).runs()) == 10


def test_options_change_every_run():
    preset = with_options(presets.get("quick"), ["epochs=3", "seeds=2", "methods=none,mlp", "lr=0.5"])
    assert {(run.method, run.seed) for run in preset.runs()} == {
        (m, s) for m in ("none", "mlp") for s in (0, 1)
    }
    assert {(run.epochs, run.lr) for run in preset.runs()} == {(3, 0.5)}


def test_several_numbers_make_a_variant_for_each():
    preset = with_options(presets.get("cifar10"), ["epochs=100,300", "methods=linear,mlp", "seeds=1"])
    assert [(run.method, run.epochs) for run in preset.runs()] == [
        *(("linear", 100), ("mlp", 100), ("linear", 300), ("mlp", 300))
    ]
    with pytest.raises(ValueError, match="epochs=0 is not allowed"):
        with_options(presets.get("cifar10"), ["epochs=100,0"])


@pytest.mark.parametrize(
    "option, message",
    [
        ("epoch=3", "option 'epoch' is unknown; it must be one of seeds, methods, dataset, epochs"),
        ("seed=3", "option 'seed' is unknown"),
        ("method=none", "option 'method' is unknown"),
        ("methods=simclr", "methods='simclr' is not in this preset; it must be one of directcopy"),
        ("seeds=0", "seeds=0 is not allowed; it must be an integer of at least 1"),
        ("seeds=True", "seeds=True is not allowed; it must be an integer of at least 1"),
        ("epochs=()", r"epochs=\(\) is not allowed; it must be at least one value"),
        ("epochs=1 epochs=2", "option 'epochs=2' gives epochs again; it must be given once"),
        ("epochs=0", "epochs=0 is not allowed"),
        ("epochs", "option 'epochs' is not of the form name=value"),
        ("=3", "option '=3' is not of the form name=value"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(option, message):
    with pytest.raises(ValueError, match=message):
        with_options(presets.get("quick"), option.split())


def test_options_are_python_literals_or_text():
    options = ["seed=3", "lr=1e-2", "symmetric_loss=False", "eps=None", "method=none", "dataset=folder:/a=b"]
    values = {"seed": 3, "lr": 0.01, "symmetric_loss": False, "eps": None, "method": "none"}
    assert parse_options(options) == {**values, "dataset": "folder:/a=b"}


@pytest.mark.parametrize("text", ["(" * 3000, "-" * 100_000, "{[]: 1}"], ids=len)
def test_what_python_cannot_parse_is_text(text):
    assert parse_options([f"method={text}"]) == {"method": text}


# the package


def test_public_names_exist_and_no_others():
    for name in dcopy.__all__:
        assert getattr(dcopy, name) is not None
    assert set(dir(dcopy)) == set(dcopy.__all__)
    with pytest.raises(AttributeError, match="module 'dcopy' has no attribute 'direct_copy'"):
        dcopy.direct_copy  # noqa: B018


@pytest.mark.parametrize(
    "name", ["__main__", "data.__main__", "report.__main__", "report.address", "bench.bench"]
)
def test_commands_start_without_docstrings(name, monkeypatch):
    """As PYTHONOPTIMIZE=2 leaves them."""
    command = importlib.import_module(f"dcopy.{name}")
    monkeypatch.setattr(command, "__doc__", None)
    with pytest.raises(SystemExit, match=r"^0$"):
        command.main(["--help"])


def test_planning_imports_nothing_heavy():
    heavy = {"torch", "numpy", "sklearn", "pandas", "matplotlib"}
    code = (
        f"import sys, dcopy, dcopy.workflow.presets; dcopy.TrainConfig(); print({heavy} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_simsiam_has_no_momentum():
    """Its target is the online network, so the default of the others becomes 0 and nothing else is taken."""
    assert TrainConfig(method="simsiam").ema == 0
    assert TrainConfig(method="simsiam") == TrainConfig(method="simsiam", ema=0.0)
    for field in ({"ema": 0.9}, {"target_start": "random"}):
        with pytest.raises(ValueError, match="with method=simsiam"):
            TrainConfig(method="simsiam", **field)


def test_an_option_chooses_the_variants_that_have_its_value_or_changes_all():
    """No variant keeps a value of its own in silence."""
    assert {run.epochs for run in with_options(presets.get("imagenet"), ["epochs=100"]).runs()} == {100}
    assert {run.lr for run in with_options(presets.get("imagenet"), ["epochs=100"]).runs()} == {7.2}
    assert {run.freq for run in with_options(presets.get("cifar10"), ["freq=2"]).runs()} == {2}
    assert {run.epochs for run in with_options(presets.get("imagenet"), ["epochs=5"]).runs()} == {5}


def test_the_presets_of_imagenet_are_the_two_published_settings():
    """Tian et al. 2021, Table 9; a run by SGD has nothing of the recipe's LARS left."""
    for run in presets.get("imagenet-60").runs():
        assert (run.optimizer, run.batch_size, run.lr, run.epochs) == ("sgd", 256, 0.05, 60)
        assert (run.weight_decay, run.decay, run.warmup, run.symmetric_loss) == (1e-4, "all", 0, False)
        assert (run.lr_schedule, run.ema, run.ema_schedule) == ("cosine", 0.99, "cosine")
    for run in presets.get("imagenet").runs():
        assert (run.optimizer, run.batch_size, run.warmup, run.symmetric_loss) == ("lars", 4096, 10, True)
        assert (run.weight_decay, run.decay, run.heads) == (1e-6, "weights", "byol")
        assert run.lr == pytest.approx({100: 7.2, 300: 4.8}[run.epochs])


def test_runs_that_were_committed_keep_their_names():
    """Whatever fields there are by now: what the protocol of small images has is in no name."""
    found = list((ROOT / "results" / "reference").glob("*/runs/*/result.json"))
    for path in found:
        assert TrainConfig.from_dict(json.loads(path.read_text())["config"]).name == path.parent.name
    assert found
