"""Several processes: they train the run that one process trains, and one line says why they stop."""

import dataclasses
import functools
import os
import re
import signal
import subprocess
import sys
import zipfile

import pytest
import torch
from helpers.ranks import as_torchrun
from helpers.tiny import tiny_config, tiny_images, tiny_run, tiny_views

from dcopy import data, results
from dcopy.__main__ import main
from dcopy.config import METHODS, parse_options
from dcopy.data import augment, imagenet
from dcopy.data.stored import StoredImages
from dcopy.training import checkpoint, interrupt, launch, ranks
from dcopy.training.loop import pretrain
from dcopy.training.step import Trainer
from dcopy.workflow import presets
from dcopy.workflow.plan import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forks")

# One field differs at a time, but for what several processes compute together.
VARIANTS = [
    {"method": method, "symmetric_loss": symmetric, "batchnorm": batchnorm}
    for method in METHODS
    for symmetric in (True, False)
    for batchnorm in ("per-view", "joint")
]
VARIANTS += [{"normalize": normalize} for normalize in ("frobenius", "spectral")]
VARIANTS += [
    {"method": "directpred", "freq": 2},
    {"batch_size": 17},
    {"width": 8},
    {"target_start": "random"},
    {"accumulate": 2},
    {"optimizer": "lars", "decay": "weights", "heads": "byol", "method": "mlp"},
    {"encoder": "timm:test_efficientnet", "width": None},  # whose BatchNorm has the activation in it
]
VARIANTS = [{"alpha": 2.0} | v if v.get("method") == "directset" else v for v in VARIANTS]
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def name_of(fields: dict) -> str:
    return " ".join(f"{name}={value}" for name, value in fields.items())


def five_steps(fields: dict) -> dict[str, torch.Tensor]:
    """Losses, the last projections, and all that five steps in float64 leave behind."""
    config = tiny_config(**fields)
    with ranks.joined(config, torch.device("cpu"), minutes=1) as group:
        trainer = Trainer(config, channels=1)
        for module in trainer.parts.values():
            module.double()
        group.parallelize(trainer)
        losses = []
        for seed in range(5):
            views = tiny_views(config.batch_size, seed)
            loss, z = trainer.step(*(group.part(view.double()) for view in views))
            losses.append(group.mean(loss))
        group.require_equal(trainer.tensors(), "after five steps")
        state = {name: tensor.clone() for name, tensor in trainer.tensors().items()}
        return {"losses": torch.stack(losses), "z": group.gather(z).clone(), **state}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What five steps of each variant leave behind on both ranks."""
    folder = tmp_path_factory.mktemp("steps")
    return as_torchrun(lambda rank: [five_steps(fields) for fields in VARIANTS], folder)


@pytest.mark.parametrize("number", range(len(VARIANTS)), ids=map(name_of, VARIANTS))
def test_two_processes_take_the_steps_of_one(number, two_processes):
    """Loss, projections, F, W_p, parameters, momentum, target and running statistics."""
    alone = five_steps(VARIANTS[number])
    for rank in two_processes:
        assert rank[number].keys() == alone.keys()
        torch.testing.assert_close(rank[number], alone, **CLOSE)


def test_three_processes_take_the_steps_of_one(tmp_path):
    alone = five_steps({})  # 16 images: 5, 5 and 6
    for state in as_torchrun(lambda rank: five_steps({}), tmp_path, ranks=3):
        torch.testing.assert_close(state, alone, **CLOSE)


# a run


@pytest.fixture
def float64(monkeypatch):
    """Trainers and augmentation in float64, so that the order of sums shows in no digit that is compared."""
    apply, init = augment.Augmentation.apply, Trainer.__init__

    def doubled(self, *args):
        init(self, *args)
        for module in self.parts.values():
            module.double()

    monkeypatch.setattr(Trainer, "__init__", doubled)
    monkeypatch.setattr(augment.Augmentation, "apply", lambda self, *args: apply(self, *args).double())


@pytest.mark.parametrize("fields", [{"method": "directpred", "freq": 2}, {"method": "mlp"}], ids=name_of)
def test_a_run_goes_on_with_another_number_of_processes(fields, float64, tmp_path):
    """Two processes, one, two: the names, the records and the weights of one process that never stopped."""
    config = tiny_config(**fields)
    alone = tiny_run(tmp_path / "alone", config)
    shared = tmp_path / "shared"

    for step, count in enumerate((2, 1, 2, 1), start=1):
        stops = as_torchrun(
            lambda rank, last=count - 1: tiny_run(shared, config, stop_after=0 if rank == last else None),
            tmp_path / str(step),
            count,
        )
        where = rf"Interrupted: stopped by stop_after after {step // 3} of 3 epochs and {step % 3} of 3 steps"
        assert len(stops) == count and all(re.match(where, stop) for stop in stops)
    last = as_torchrun(lambda rank: tiny_run(shared, config), tmp_path / "last")
    assert [path.name for path in shared.iterdir()] == [config.name]
    assert {run.folder for run in last} == {shared / config.name}
    (tensors, _), (others, _) = (checkpoint.load(run.folder) for run in (alone, last[0]))
    torch.testing.assert_close(others, tensors, **CLOSE | {"check_dtype": True})
    for ours, theirs in zip(last[1].metrics, alone.metrics, strict=True):
        assert ours["epoch"] == theirs["epoch"] and ours["verdict"] == theirs["verdict"]
        for name in ("loss", "projection_std", "effective_rank"):  # the mean loss is kept in float32
            assert ours[name] == pytest.approx(theirs[name], rel=1e-6)
    assert results.read_json(last[0].folder / "result.json")["processes"] == 2


def test_two_processes_train_the_imagenette_preset_as_one(real_data, float64, tmp_path, monkeypatch):
    """Real photographs, read as ImageNet is: JPEGs on disk that workers decode for each rank."""
    place = tmp_path / "imagenette"
    with zipfile.ZipFile(real_data / "imagenette128.zip") as archive:
        for split, every in (("train", 150), ("val", 400)):
            names = [name for name in archive.namelist() if re.match(rf"{split}/.+\.", name)]
            archive.extractall(place, names[::every])
    train, val = (len(list(place.glob(f"{split}/*/*"))) for split in ("train", "val"))
    monkeypatch.setitem(imagenet.KNOWN, "imagenette", (10, train, val))  # else a part of it is refused
    config = presets.get("imagenette").runs()[0]
    images = data.load("imagenette", tmp_path, image_size=config.image_size, progress=False).pretrain()
    assert isinstance(images, StoredImages) and len(images) > 60
    config = dataclasses.replace(config, epochs=1, warmup=0, batch_size=20, precision="fp32")
    run = functools.partial(pretrain, config, images=images, device="cpu", compile=False, progress=False)
    alone = run(tmp_path / "alone")
    for shared in as_torchrun(lambda rank: run(tmp_path / "shared"), tmp_path / "ranks"):
        (tensors, _), (others, _) = (checkpoint.load(one.folder) for one in (alone, shared))
        torch.testing.assert_close(others, tensors, **CLOSE)


# what is refused


def refused(folder, rank_1, config=None, **options) -> str:
    """The one error of both ranks when `rank_1()` has been called on the second of them."""

    def run(rank):
        if rank == 1:
            rank_1()
        return tiny_run(folder / "runs", config or tiny_config(), **options)

    first, second = as_torchrun(run, folder)
    assert first == second and "\n" not in first
    return first


def test_other_versions_options_or_images_on_a_rank_are_refused(tmp_path, monkeypatch):
    def other_version():
        monkeypatch.setattr(results, "versions", lambda: {"dcopy": "0.1.0", "torch": "1.13"})

    def other_images():
        monkeypatch.setattr("helpers.tiny.tiny_images", lambda: tiny_images(seed=1))

    error = refused(tmp_path / "versions", other_version)
    assert error.startswith("ValueError: torch on rank 1='1.13' is not allowed; it must be '2.")
    assert error.endswith("', as on rank 0")
    error = refused(tmp_path / "images", other_images)
    assert re.fullmatch(r"ValueError: data_fingerprint on rank 1='\w+' is not allowed; it must be .*", error)
    configs = iter([tiny_config(lr=0.1)])
    both = as_torchrun(
        lambda rank: tiny_run(tmp_path, next(configs) if rank else tiny_config()), tmp_path / "options"
    )
    assert both == ["ValueError: lr on rank 1=0.1 is not allowed; it must be 0.03, as on rank 0"] * 2
    assert not list(tmp_path.glob("*/runs/*/config.json"))


def test_more_processes_than_images_in_a_batch_are_refused(tmp_path):
    both = as_torchrun(lambda rank: tiny_run(tmp_path / "runs", tiny_config(batch_size=2)), tmp_path, 3)
    assert both == ["ValueError: processes=3 is not allowed; it must be at most batch_size=2"] * 3


def test_a_batch_that_cannot_be_shared_evenly_is_told_once(tmp_path, caplog):
    def run(rank):
        tiny_run(tmp_path / "runs", tiny_config(epochs=1, batch_size=17))
        return caplog.messages

    assert as_torchrun(run, tmp_path) == [["batch_size=17 over 2 processes: 8 or 9 images each"], []]


def test_ranks_that_drift_apart_are_stopped(tmp_path, monkeypatch):
    def drift():
        step = Trainer.step

        def inexact(self, *views):
            outcome = step(self, *views)
            self.target.projector[0].bias[0] += 1e-7
            return outcome

        monkeypatch.setattr(Trainer, "step", inexact)

    error = refused(tmp_path, drift)
    assert error.startswith("FloatingPointError: rank 1 has other weights than rank 0 at the end of epoch 1")
    assert not list(tmp_path.glob("runs/*/checkpoint*"))


def test_errors_of_rank_0_stop_all(tmp_path):
    """A folder in use, as one example of what rank 0 alone finds."""
    config = tiny_config()
    with results.locked(tmp_path / "runs" / config.name):
        assert "another process is at work in" in refused(tmp_path, lambda: None, config)


# faults


@pytest.fixture(scope="module")
def torchrun(tmp_path_factory):
    """The folder, the exit codes and the seconds of `helpers.torchrun`."""
    folder = tmp_path_factory.mktemp("torchrun")
    script = [sys.executable, "-m", "helpers.torchrun", str(folder)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}
    done = subprocess.run(script, env=env, capture_output=True, text=True, check=True)
    lines = (line.split(": ") for line in done.stdout.splitlines())
    return folder, {name: [float(word) for word in words.split(", ")] for name, words in lines}


ENDED = (
    "error: a process of this run has ended, so all stop; the same command goes on from the last checkpoint"
)
STOPPED = (
    r"stopped by {} after \d+ of 100000 epochs and [01] of 2 steps; saved in .*, the same command continues"
)
SAID = {
    "rank 1 is killed": ENDED,
    "rank 0 is killed": ENDED,
    "rank 1 is asked to stop": STOPPED.format("SIGTERM"),
    "torchrun is asked to stop": STOPPED.format("SIGTERM"),
    "torchrun is interrupted": STOPPED.format("SIGINT"),
    "torchrun is killed": STOPPED.format("the end of torchrun"),
    "the disk is full": "error: .*/checkpoint.safetensors: No space left on device; make room, then .*",
    "rank 1 hangs": ENDED.replace("has ended", "did not answer for 0.05 minutes"),
}


@pytest.mark.parametrize("name", SAID)
def test_where_one_process_stops_all_do_and_one_line_says_why(name, torchrun):
    """No process is left over: that `helpers.torchrun` came to its end shows it."""
    folder, outcomes = torchrun
    code, _ = outcomes[name]
    assert code != 0
    ours = re.compile("error:|stopped|interrupted", re.IGNORECASE)
    said = [line for line in (folder / f"{name}.log").read_text().splitlines() if ours.match(line)]
    assert len(said) == 1 and re.fullmatch(SAID[name], said[0]), said


def test_the_signal_of_a_torchrun_that_is_about_to_end_is_not_taken_for_ctrl_c(monkeypatch):
    parents = iter([7] * 6 + [1] * 9)  # 7 has lost the thread that forked this process, and then ends
    monkeypatch.setattr(interrupt, "parent", 7)
    monkeypatch.setattr(interrupt.os, "getppid", lambda: next(parents))
    assert not interrupt.orphaned() and interrupt.orphaned(signalled=True)
    monkeypatch.setattr(interrupt.os, "getppid", lambda: 7)
    assert not interrupt.orphaned(signalled=True)


@pytest.mark.parametrize("name", SAID)
def test_the_same_command_goes_on(name, torchrun, capsys):
    from helpers.torchrun import OPTIONS

    folder, _ = torchrun
    [run] = (folder / name).iterdir()
    epoch, step = (checkpoint.load(run)[1][key] for key in ("epoch", "step"))
    assert main([*OPTIONS, f"--out-dir={folder / name}", "--stop-after=0"]) == 75
    after = f"after {epoch + (step + 1) // 2} of 100000 epochs and {(step + 1) % 2} of 2 steps"
    assert f"stopped by stop_after {after}" in capsys.readouterr().err


# torchrun as a child


def test_a_call_starts_processes_and_reads_the_finished_run(tmp_path, capfd):
    config = tiny_config(dataset="digits", epochs=1, batch_size=320, eps=0.25)
    run = pretrain(config, tmp_path, processes=2, device="cpu")
    assert run.folder == tmp_path / config.name and run.result["processes"] == 2
    alone = pretrain(config, tmp_path / "alone", device="cpu", progress=False)
    assert run.metrics[0]["loss"] == pytest.approx(alone.metrics[0]["loss"], rel=1e-4)
    shown, noise = capfd.readouterr()
    assert re.match("DirectCopy on .*\nepoch 1/1  loss ", shown) and len(shown.splitlines()) == 2
    assert noise == ""
    assert pretrain(config, tmp_path, processes=2).result == run.result  # without torchrun
    with pytest.raises(ValueError, match=r"images='.*' is not allowed; it must be those of dataset=digits"):
        pretrain(config, tmp_path, processes=2, images=tiny_images())


def stand_in(folder, monkeypatch, script: str) -> None:
    """Have a script in the place of Python, and so of torchrun."""
    path = folder / "python"
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


LOG = "W1125 20:20:08.463000 1 torch/distributed/elastic/multiprocessing/api.py:1014] Sending process"


@pytest.mark.parametrize(
    "lines, error",
    [
        (f"error: lr=0 is not allowed\n{LOG}\nTraceback", "ChildProcessError: lr=0 is not allowed"),
        (f"{LOG}\nTraceback", "ChildProcessError: torchrun ended with exit code 3; see above"),
        (
            f"{LOG}\nstopped by SIGTERM after 1 of 2 epochs; saved in x, the same\nTraceback",
            "Interrupted: stopped by SIGTERM after 1 of 2 epochs; saved in RUN, the same command continues",
        ),
    ],
)
def test_what_the_processes_say_is_the_error(lines, error, tmp_path, monkeypatch, capsys):
    stand_in(tmp_path, monkeypatch, f"echo 'epoch 1'; echo '{lines}'; exit 3")
    with pytest.raises((OSError, KeyboardInterrupt)) as caught:
        launch.torchrun([], 2, "RUN")
    assert f"{type(caught.value).__name__}: {caught.value}" == error
    assert capsys.readouterr().out == "epoch 1\n"


def test_signals_are_handed_on(tmp_path, monkeypatch):
    stop = "trap 'echo \"stopped by SIGINT after 0 of 1; saved in x\"; exit 1' INT"
    stand_in(tmp_path, monkeypatch, f"{stop}; kill -INT {os.getpid()}; while :; do sleep 0.1; done")
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(interrupt.Interrupted) as caught:
        launch.torchrun([], 2, "RUN")
    assert caught.value.exit_code == 130 and signal.getsignal(signal.SIGINT) is handler


def test_options_are_those_of_the_command():
    config = tiny_config(dataset="folder:/a b", method="directset", alpha=2.0)
    again = parse_options(launch.words(config))
    assert type(config).from_dict(again) == config
    assert launch.flags({"skip_bad": True, "compile": False, "stop_after": None, "out_dir": "a b"}) == [
        *("--skip-bad", "--no-compile", "--out-dir=a b")
    ]
