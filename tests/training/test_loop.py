"""A run: the same seed gives the same bits, however often it is stopped, killed or met by bad input."""

import errno
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from helpers.pictures import picture, put
from helpers.processes import CONFIG, KILLS, SIGNALS
from helpers.records import result_of
from helpers.tiny import assert_same, tiny_config, tiny_images, tiny_run, untimed
from safetensors.torch import save_file

from dcopy import data, hardware, results
from dcopy.__main__ import main
from dcopy.config import METHODS
from dcopy.training import checkpoint, loop
from dcopy.training.interrupt import Interrupted
from dcopy.training.loop import pretrain
from dcopy.training.runs import finished_run, load_run
from dcopy.training.step import Trainer
from dcopy.workflow.plan import ROOT


def run(folder, config=CONFIG, **options):
    return tiny_run(folder, config, **options)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The uninterrupted run, which no test may change."""
    return run(tmp_path_factory.mktemp("reference"))


@pytest.fixture
def at_step(monkeypatch):
    """Make `action()` happen after the n-th step of the run."""

    def install(n, action):
        step, count = Trainer.step, iter(range(1, 1000))

        def counted(self, x1, x2):
            outcome = step(self, x1, x2)
            if next(count) == n:
                action(self)
            return outcome

        monkeypatch.setattr(Trainer, "step", counted)

    return install


# randomness


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(reference, tmp_path):
    assert_same(reference, run(tmp_path))
    other = run(tmp_path, tiny_config(method="directpred", freq=2, seed=1))
    assert untimed(other.metrics) != untimed(reference.metrics)


def test_all_methods_see_the_same_views(tmp_path, monkeypatch):
    step, views = Trainer.step, {}

    def spy(self, x1, x2):
        views.setdefault(self.config.method, []).append(torch.stack((x1, x2)))
        return step(self, x1, x2)

    monkeypatch.setattr(Trainer, "step", spy)
    for method in METHODS:
        run(tmp_path, tiny_config(method=method, alpha=2.0 if method == "directset" else None))
    seen = [torch.stack(own) for own in views.values()]  # each (step, view, N, C, H, W)
    assert len(seen) == len(METHODS) and all(torch.equal(own, seen[0]) for own in seen)


def test_no_view_comes_twice(tmp_path, monkeypatch):
    """All images are the same here, so views differ by their augmentation alone."""
    step, views = Trainer.step, []
    monkeypatch.setattr(Trainer, "step", lambda self, *both: (views.extend(both), step(self, *both))[1])
    run(tmp_path, images=tiny_images(1).expand(50, 1, 16, 16))
    assert len(torch.cat(views).flatten(1).unique(dim=0)) == 3 * 3 * 2 * 16


def test_an_epoch_takes_every_image_once_and_drops_a_partial_batch(tmp_path, monkeypatch):
    images = torch.arange(50, dtype=torch.uint8).view(50, 1, 1, 1).expand(50, 1, 16, 16)
    seen = []
    monkeypatch.setattr(
        "dcopy.data.augment.Augmentation.apply", lambda self, batch, _: seen.append(batch) or batch
    )
    monkeypatch.setattr(Trainer, "step", lambda self, x1, x2: (torch.zeros(()), torch.randn(16, 8)))
    monkeypatch.setattr(Trainer, "tensors", lambda self: {"online.x": torch.zeros(1)})
    with pytest.raises(ValueError, match="are not those of its result"):  # its checkpoint is no network
        run(tmp_path, images=images)
    epochs = torch.stack(seen[::2])[:, :, 0, 0, 0].view(3, 48)
    assert all(len(epoch.unique()) == 48 for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])


# the run's folder


def test_the_folder_holds_all_that_a_reader_needs(reference):
    names = {path.name for path in reference.folder.iterdir() if not path.name.startswith(".")}
    assert names == {
        *("config.json", "metrics.jsonl", "result.json"),
        *("checkpoint.safetensors", "checkpoint.previous.safetensors"),
    }
    assert reference.folder.name == CONFIG.name
    assert results.read_json(reference.folder / "config.json") == CONFIG.to_dict()
    record = results.read_json(reference.folder / "result.json")
    assert {"commit", "versions", "device", "seconds", "metrics", "encoder_fingerprint"} <= record.keys()
    assert record["config"] == CONFIG.to_dict() and record["images"] == 50
    assert {"loss", "projection_std", "effective_rank", "spectrum", "verdict"} <= record["metrics"].keys()


def test_the_folder_can_be_read_while_it_runs(tmp_path, at_step):
    def look(trainer):
        folder = tmp_path / CONFIG.name
        assert results.read_json(folder / "config.json") == CONFIG.to_dict()
        assert [record["epoch"] for record in results.read_jsonl(folder / "metrics.jsonl")] == [1]
        assert checkpoint.read(folder / checkpoint.NEWEST)[1]["epoch"] == 1

    at_step(5, look)
    run(tmp_path)


def test_a_finished_run_is_read_and_not_run_again(reference, monkeypatch):
    monkeypatch.setattr(Trainer, "step", None)
    assert_same(run(reference.folder.parent), reference)
    assert_same(load_run(reference.folder), reference)


def without_weights(reference, tmp_path, lost="*.safetensors"):
    """A finished run as in a fresh clone; its result and metrics are told from new ones by their seconds."""
    folder = shutil.copytree(reference.folder, tmp_path / CONFIG.name)
    for path in folder.glob(lost):
        path.unlink()
    record = results.read_json(folder / "result.json") | {"encoder_fingerprint": "of another machine"}
    results.write_json(folder / "result.json", record | {"seconds": 1e6})
    records = [record | {"seconds": 1e6} for record in results.read_jsonl(folder / "metrics.jsonl")]
    results.write_jsonl(folder / "metrics.jsonl", records)
    return folder


def both(folder):
    return [(folder / name).read_bytes() for name in ("result.json", "metrics.jsonl")]


def test_a_result_without_weights_stays_until_the_run_is_trained_again(reference, tmp_path, at_step, caplog):
    folder = without_weights(reference, tmp_path)
    before, seen = both(folder), []
    with pytest.raises(ValueError, match="holds no finished run; the command that began it continues it"):
        load_run(folder)
    for _ in range(8):
        caplog.clear()
        with pytest.raises(Interrupted, match="the same command continues"):
            run(tmp_path, stop_after=0)
        assert both(folder) == before and len(caplog.messages) == 1
        assert caplog.messages[0].startswith(f"{CONFIG.name} is finished, but its weights are gone; it is ")
    at_step(1, lambda trainer: seen.append(both(folder)))
    again = run(tmp_path)
    assert seen == [before] and again.result["seconds"] < 1e6
    assert_same(again, reference)
    assert_same(load_run(folder), reference)
    names = {path.name for path in folder.iterdir()}
    assert names == {path.name for path in reference.folder.iterdir()}  # nothing is left beside


@pytest.mark.parametrize("moved", range(4))
def test_a_kill_while_the_new_result_takes_its_place_loses_nothing(moved, reference, tmp_path, monkeypatch):
    folder, replace = without_weights(reference, tmp_path), results.replace
    count = iter(range(moved))

    def killed(source, target):
        if source.parent.name == ".again" and target.parent == folder and next(count, None) is None:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(results, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    with pytest.raises(ValueError, match="holds no finished run; the command that began it continues it"):
        load_run(folder)  # and not a part of one with a part of the other
    monkeypatch.setattr(results, "replace", replace)
    monkeypatch.setattr(Trainer, "step", None)
    assert_same(run(tmp_path), reference)


def test_a_finished_run_goes_on_from_an_earlier_checkpoint_that_is_left(reference, tmp_path, at_step):
    folder, steps = without_weights(reference, tmp_path, checkpoint.NEWEST), []
    left = checkpoint.read(folder / checkpoint.PREVIOUS)[1]["epoch"]
    for n in range(1, 10):
        at_step(n, steps.append)
    assert_same(run(tmp_path), reference)
    assert 1 <= left < 3 and len(steps) == 3 * (3 - left)


def test_what_was_written_before_a_field_was_added_still_counts(reference, tmp_path):
    """A field whose default changes nothing may come later: names and contents of finished runs stay good."""
    folder = run(tmp_path).folder
    for path in (folder / "config.json", folder / "result.json"):
        text = path.read_text()
        path.write_text(re.sub(r' *"predictor_symmetric": false,\n', "", text))
        assert path.read_text() != text
    assert_same(load_run(folder), reference)
    (folder / "result.json").unlink()
    tensors, header = checkpoint.read(folder / checkpoint.NEWEST)
    del header["config"]["predictor_symmetric"]
    checkpoint.save(folder, tensors, header)
    assert_same(run(tmp_path), reference)


def test_progress_is_a_line_an_epoch(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DCOPY_PROGRESS", "lines")
    run(tmp_path, progress=True)
    lines = capsys.readouterr().out.splitlines()
    line = r"epoch {}/3  loss -?\d.\d+  std \d.\d+  rank \d.\d+  [a-z ]+  [\d,]+ images/s  \d+ s left"
    assert len(lines) == 4
    assert lines.pop(0).startswith(f"DirectPred (freq=2) on {hardware.name('cpu')}, fp32")
    assert all(re.fullmatch(line.format(epoch), text) for epoch, text in enumerate(lines, start=1))
    run(tmp_path, tiny_config(method="none"), progress=False)
    assert capsys.readouterr().out == ""


# the images are a part of what a run is

OTHERS = {"more": tiny_images(60), "fewer": tiny_images(40), "changed": tiny_images(seed=1)}
OTHERS["one pixel"] = tiny_images()
OTHERS["one pixel"][7, 0, 3, 3] ^= 1
OTHERS["another order"] = tiny_images().flip(0)


@pytest.mark.parametrize("images", OTHERS.values(), ids=OTHERS)
def test_other_images_are_another_run_beside_the_first(images, reference, tmp_path):
    first = run(tmp_path)
    second = run(tmp_path, images=images)
    assert second.folder != first.folder and second.result["images"] == len(images)
    assert untimed(second.metrics) != untimed(first.metrics)
    assert second.result["data_fingerprint"] == data.fingerprint(images) == second.config.data_fingerprint
    assert_same(load_run(first.folder), reference)


def test_each_of_two_runs_is_found_again_by_its_images(tmp_path, monkeypatch):
    others = OTHERS["changed"]
    made = [run(tmp_path), run(tmp_path, images=others)]
    monkeypatch.setattr(Trainer, "step", None)
    for again, first in zip([run(tmp_path), run(tmp_path, images=others)], made, strict=True):
        assert (again.folder, again.result) == (first.folder, first.result)


def test_a_checkpoint_is_not_continued_on_other_images(reference, tmp_path, at_step):
    interrupted(tmp_path, at_step)
    clean = run(tmp_path / "clean", images=OTHERS["changed"])
    assert_same(run(tmp_path, images=OTHERS["changed"]), clean)
    assert_same(run(tmp_path), reference)


def test_a_result_that_another_process_has_just_made_from_other_images_is_not_handed_over(tmp_path):
    folder = run(tmp_path).folder
    with pytest.raises(
        ValueError, match="has just been made from other images; the same command makes a run"
    ):
        finished_run(CONFIG, folder, data.fingerprint(OTHERS["fewer"]))


def strip_fingerprint(folder):
    """As runs were written before fingerprints were."""
    record = results.read_json(folder / "result.json")
    del record["data_fingerprint"], record["config"]["data_fingerprint"]
    results.write_json(folder / "result.json", record)


def test_a_run_from_before_fingerprints_stays_valid_on_as_many_images(tmp_path, monkeypatch):
    first = run(tmp_path)
    strip_fingerprint(first.folder)
    assert run(tmp_path, images=OTHERS["more"]).result["images"] == 60
    monkeypatch.setattr(Trainer, "step", None)
    assert run(tmp_path).folder == first.folder


def test_a_run_on_a_folder_from_before_fingerprints_is_not_handed_over(tmp_path):
    config = tiny_config(dataset="folder:photos", encoder="conv", image_size=16)
    images = tiny_images().expand(-1, 3, -1, -1)
    first = run(tmp_path, config, images=images)
    strip_fingerprint(first.folder)
    assert run(tmp_path, config, images=images).folder != first.folder


def test_a_checkpoint_from_before_fingerprints_goes_on_with_as_many_images(reference, tmp_path, at_step):
    folder = interrupted(tmp_path, at_step)
    tensors, header = checkpoint.read(folder / checkpoint.NEWEST)
    del header["data_fingerprint"]
    checkpoint.save(folder, tensors, header)
    with pytest.raises(ValueError, match="was made with other images; move it away"):
        run(tmp_path, images=tiny_images(100))
    assert_same(run(tmp_path), reference)


def test_a_fingerprint_that_was_asked_for_must_be_that_of_the_images(tmp_path):
    asked = tiny_config(data_fingerprint=data.fingerprint(tiny_images()))
    assert run(tmp_path, asked).config == asked
    with pytest.raises(
        ValueError, match=r"data_fingerprint='.*' is not allowed; it must be .*, that of the 40"
    ):
        run(tmp_path, asked, images=OTHERS["fewer"])


@pytest.mark.parametrize("name", ["photos", os.fsdecode(b"-my #2: {a}'\"\\ \n caf\xc3\xa9 \xe9")])
def test_photos_that_were_added_are_trained_on_by_the_same_command(name, tmp_path, capsys):
    place = tmp_path / name
    photos = place / name
    small = ["epochs=1", "batch_size=8", "encoder=conv", "image_size=16"]
    command = [f"dataset=folder:{photos}", *TINY[2:], *small]
    command += [f"--out-dir={place}", f"--data-root={place}/root", "--device=cpu"]
    for number in range(8):
        put(photos / f"{number}.png", picture(number))
    counts = []
    for change in (lambda: None, lambda: put(photos / "8.png"), (photos / "0.png").unlink):
        change()
        for _ in range(2):  # trained, then found again
            assert main(command) == 0
        counts.append(sorted(results.read_json(path)["images"] for path in place.glob("*/result.json")))
    assert counts == [[8], [8, 9], [8, 8, 9]]
    shutil.rmtree(photos)
    assert main(command) == 2
    said = capsys.readouterr()
    assert re.search("^error: .* is not a folder\n$", said.err)
    said.out.encode()  # any terminal can show it


# stopping and continuing


def test_stopped_after_every_step_it_ends_the_same(reference, tmp_path):
    stops = []
    while True:
        try:
            finished = run(tmp_path, stop_after=0)
            break
        except Interrupted as stop:
            stops.append(re.search(r"after (\d) of 3 epochs and (\d) of 3 steps", str(stop)).groups())
            assert stop.exit_code == 75
    assert stops == [(str(n // 3), str(n % 3)) for n in range(1, 10)]
    assert_same(finished, reference)


def move(folder, place, steps):
    """Stop a run of nine steps after each of these, and move its folder to another place."""
    for _ in range(steps):
        with pytest.raises(Interrupted):
            run(folder, stop_after=0)
    shutil.move(folder / CONFIG.name, place / CONFIG.name)


def test_a_folder_that_was_moved_goes_on_and_ends_the_same(reference, tmp_path):
    move(tmp_path / "here", tmp_path / "there", steps=4)
    finished = run(tmp_path / "there")
    assert_same(finished, reference)
    assert finished.folder.parent == tmp_path / "there" and not [*(tmp_path / "here").iterdir()]
    assert finished.result["ran_on"] == [finished.result["device"]] == [hardware.name("cpu")]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the other machine is a fork")
def test_on_another_machine_a_run_goes_on_up_to_rounding_and_says_where_it_was(reference, tmp_path):
    """One of two threads: sums are split otherwise."""

    def go_on():
        torch.set_num_threads(2)
        with open(tmp_path / "said", "w", encoding="utf-8") as sys.stdout:
            run(tmp_path / "there", progress=True)

    move(tmp_path / "here", tmp_path / "there", steps=8)
    elsewhere = multiprocessing.get_context("fork").Process(target=go_on)
    elsewhere.start()
    elsewhere.join()
    finished = load_run(tmp_path / "there" / CONFIG.name)
    first, second = finished.result["ran_on"]
    assert finished.result["device"] == second and first.endswith(", 1 threads")
    assert second == first.replace(", 1 threads", ", 2 threads") and finished.result["precision"] == "fp32"
    said = (tmp_path / "said").read_text(encoding="utf-8").splitlines()[0]
    assert said.endswith(f", before on {first}: the same up to rounding")
    for ours, theirs in zip(finished.metrics, reference.metrics, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)


@pytest.fixture
def heard():
    """SIGHUP, which nohup ignores."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 138), ("SIGHUP", 129)])
def test_signals_finish_the_step_save_and_leave(name, code, reference, tmp_path, at_step, heard):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    at_step(5, lambda trainer: signal.raise_signal(getattr(signal, name)))
    with pytest.raises(Interrupted, match=f"stopped by {name} after 1 of 3 epochs and 2 of 3 steps") as stop:
        run(tmp_path)
    assert stop.value.exit_code == code
    assert handlers == [
        signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    ]
    assert_same(run(tmp_path), reference)


def test_a_second_ctrl_c_stops_at_once(reference, tmp_path, at_step):
    def twice(trainer):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    at_step(5, twice)
    with pytest.raises(KeyboardInterrupt) as stop:
        run(tmp_path)
    assert not isinstance(stop.value, Interrupted)
    assert_same(run(tmp_path), reference)  # from the end of the first epoch


def test_outside_the_main_thread_it_runs_without_signals(reference, tmp_path):
    finished = []
    thread = threading.Thread(target=lambda: finished.append(run(tmp_path)))
    thread.start()
    thread.join()
    assert_same(finished[0], reference)


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """The folder and the exit codes of `helpers.processes`."""
    folder = tmp_path_factory.mktemp("processes")
    script = [sys.executable, "-m", "helpers.processes", str(folder)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}
    done = subprocess.run(script, env=env, capture_output=True, text=True, check=True)
    return folder, dict(line.split(": ") for line in done.stdout.splitlines())


@pytest.mark.parametrize("name", KILLS)
def test_killed_it_goes_on_and_ends_the_same(name, processes, reference):
    folder, codes = processes
    assert codes[name] == str(-signal.SIGKILL)
    assert not (folder / name / CONFIG.name / "result.json").exists()
    assert_same(run(folder / name), reference)


@pytest.mark.parametrize("name", SIGNALS)
def test_the_command_stops_on_a_signal_from_outside(name, processes):
    folder, codes = processes
    assert codes[name] == str(SIGNALS[name])
    device, *epochs, message = (folder / f"{name}.log").read_text().splitlines()
    assert " on " in device and epochs[0].startswith("epoch 1/100000")
    assert re.fullmatch(f"stopped by {name} after .* saved in .*, the same command continues", message)


def test_a_second_process_is_refused(processes):
    folder, codes = processes
    assert codes["second"] == "2"
    message = (folder / "second.log").read_text()
    assert re.fullmatch("error: another process is at work in .*; wait for it or stop it\n", message)


def test_a_line_that_a_kill_cut_short_is_written_again(reference, tmp_path, at_step):
    at_step(5, lambda trainer: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted):
        run(tmp_path)
    with open(tmp_path / CONFIG.name / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"epoch": 2, "loss": 0}\n{"epoch": 3, "lo')
    assert_same(run(tmp_path), reference)


# faults on disk


def interrupted(folder, at_step):
    """A run with two checkpoints: the end of the second epoch, and the step after it."""
    at_step(7, lambda trainer: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted):
        run(folder)
    return folder / CONFIG.name


def test_a_broken_checkpoint_falls_back_to_the_one_before(reference, tmp_path, at_step):
    folder = interrupted(tmp_path, at_step)
    newest = folder / checkpoint.NEWEST
    newest.write_bytes(newest.read_bytes()[:-100])
    assert_same(run(tmp_path), reference)


def test_two_broken_checkpoints_are_reported(tmp_path, at_step):
    folder = interrupted(tmp_path, at_step)
    for path in folder.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"{folder}/checkpoint.safetensors is not a complete checkpoint"):
        run(tmp_path)


def test_a_full_disk_leaves_the_checkpoint_that_was_there(reference, tmp_path, monkeypatch):
    calls = iter(range(10))

    def full(*args, **kwargs):
        if next(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(*args, **kwargs)

    monkeypatch.setattr(checkpoint, "save_file", full)
    monkeypatch.setattr(loop, "SAVING", math.inf)
    with pytest.raises(OSError, match="No space left on device"):
        run(tmp_path)
    folder = tmp_path / CONFIG.name
    assert checkpoint.load(folder)[1]["epoch"] == 2 and not list(folder.glob(".*.tmp"))
    assert_same(run(tmp_path), reference)


@pytest.mark.parametrize("share, saved", [(math.inf, [1, 2, 3]), (0.0, [3])])
def test_checkpoints_at_the_ends_of_epochs_take_no_more_than_their_share(
    share, saved, reference, tmp_path, monkeypatch
):
    save, epochs = checkpoint.save, []

    def counted(folder, tensors, header):
        epochs.append(header["epoch"])
        save(folder, tensors, header)

    monkeypatch.setattr(checkpoint, "save", counted)
    monkeypatch.setattr(loop, "SAVING", share)
    assert_same(run(tmp_path), reference)
    assert epochs == saved


def test_results_of_another_configuration_are_refused(tmp_path, at_step):
    other = tiny_config(method="none")
    folder = interrupted(tmp_path, at_step).rename(tmp_path / other.name)
    with pytest.raises(ValueError, match=r"the checkpoint in .* belongs to another configuration"):
        run(tmp_path, other)
    results.write_json(folder / "result.json", result_of(CONFIG))
    with pytest.raises(ValueError, match=r"result\.json belongs to another configuration than .*-none-"):
        run(tmp_path, other)
    (folder / "result.json").write_text('{"config"')
    with pytest.raises(ValueError, match=r"result\.json is not a complete JSON file"):
        run(tmp_path, other)


def metrics(text):
    return lambda folder: (folder / "metrics.jsonl").write_bytes(text)


def result(edit):
    def write(folder):
        results.write_json(folder / "result.json", edit(results.read_json(folder / "result.json")))

    return write


def state(edit):
    """A checkpoint of other content, and no result: what is left to do is to finish."""

    def write(folder):
        tensors, header = checkpoint.read(folder / checkpoint.NEWEST)
        edit(tensors, header)
        (folder / "result.json").unlink()
        for _ in range(2):  # the one before, too
            checkpoint.save(folder, tensors, header)

    return write


WEIGHT = "online.projector.0.weight"
MOMENTUM = f"momentum.{WEIGHT}"
WRONG = {  # how a finished folder is spoilt, and what is said about it
    "no metrics": (
        lambda folder: (folder / "metrics.jsonl").unlink(),
        "lacks the record of epoch 1 of 3; put",
    ),
    "fewer metrics": (metrics(b""), "metrics.jsonl lacks the record of epoch 1 of 3; put a copy"),
    "metrics no text": (metrics(b"\xff\n"), r"metrics.jsonl: line 1 is no record \(.*\); put a copy"),
    "an epoch alone": (metrics(b'{"epoch": 1}\n' * 3), "metrics.jsonl lacks the record of epoch 1"),
    "result a list": (result(lambda record: []), r"result.json is not a complete result .*; delete it"),
    "result null": (result(lambda record: None), r"result.json is not a complete result"),
    "no health": (result(lambda record: record | {"metrics": {}}), r"result.json is not a complete result"),
    "no configuration": (
        result(lambda record: {name: value for name, value in record.items() if name != "config"}),
        r"result.json is not a complete result of a run \(it lacks config\); delete it",
    ),
    "a field of the configuration": (
        result(lambda record: record | {"config": record["config"] | {"lr": "a"}}),
        r"result.json holds no configuration .* \(lr='a' is not allowed; it must be of type float\)",
    ),
    "config a list": (result(lambda record: record | {"config": []}), "result.json holds no configuration"),
    "config of a newer version": (
        result(lambda record: record | {"config": record["config"] | {"new": 1}}),
        r"result.json holds no configuration .* \(new is not a parameter .*\); update dcopy",
    ),
    "checkpoint of a newer version": (
        state(lambda tensors, header: header["config"].update(new=1)),
        "the checkpoint in .* holds no configuration that this version",
    ),
    "weights missing": (state(lambda t, h: t.pop(WEIGHT)), r"is not complete \(.*Missing key.*\); delete it"),
    "weights of another shape": (
        state(lambda t, h: t.update({WEIGHT: torch.zeros(1)})),
        r"is not complete \(.*size mismatch.*\); delete it",
    ),
    "momentum missing": (state(lambda t, h: t.pop(MOMENTUM)), "is not complete .no .*; delete it"),
    "momentum of another shape": (
        state(lambda t, h: t.update({MOMENTUM: torch.zeros(1)})),
        r"is not complete \(.* has the shape \(1,\)\)",
    ),
    "losses missing": (state(lambda t, h: t.pop("losses")), "is not complete .no 'losses'.; delete it"),
    "losses of another shape": (state(lambda t, h: t.update(losses=torch.zeros(()))), "with other images"),
    "NaN": (
        state(lambda t, h: t[WEIGHT].fill_(torch.nan)),
        f"checkpoint.safetensors is not a complete checkpoint of dcopy .{WEIGHT} is not finite.; delete it",
    ),
    "past the end": (
        state(lambda t, h: h.update(epoch=4)),
        "is at epoch 4, step 0, of a run of 3 epochs of 3",
    ),
    "past an epoch": (state(lambda t, h: h.update(epoch=1, step=3)), "is at epoch 1, step 3, of a run of 3"),
    "before the first": (state(lambda t, h: h.update(epoch=-1)), "is at epoch -1, step 0, of a run"),
}


@pytest.mark.parametrize("spoil, message", WRONG.values(), ids=WRONG)
def test_files_of_wrong_content_are_refused_in_one_line(spoil, message, reference, tmp_path, monkeypatch):
    folder = shutil.copytree(reference.folder, tmp_path / CONFIG.name)
    spoil(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(Trainer, "step", None)
    with pytest.raises(ValueError, match=message) as caught:
        run(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: os.truncate(path, 99)])
def test_a_run_whose_metrics_are_lost_is_not_continued(spoil, tmp_path, at_step, monkeypatch):
    spoil(interrupted(tmp_path, at_step) / "metrics.jsonl")
    monkeypatch.setattr(Trainer, "step", None)
    with pytest.raises(ValueError, match="lacks the record of epoch 1 of 2; put a copy of"):
        run(tmp_path)


def test_load_run_refuses_what_is_no_run(tmp_path, at_step):
    with pytest.raises(ValueError, match=r"is not the folder of a run; there is no config\.json"):
        load_run(tmp_path)
    with pytest.raises(ValueError, match="holds no finished run"):
        load_run(interrupted(tmp_path, at_step))


# bad numbers

FIELDS = {method: {"method": method} for method in METHODS}
FIELDS["directset"]["alpha"] = 0.3  # with an eigendecomposition, which refuses NaN on its own


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
@pytest.mark.parametrize("lr", [1e6, 1e15])
def test_an_absurd_rate_is_reported_with_the_step(fields, lr, tmp_path):
    message = r"the loss or the weights are not finite at epoch \d, step \d of 3; a smaller lr than 1e\+"
    with pytest.raises(FloatingPointError, match=message):
        run(tmp_path, tiny_config(**fields, lr=lr))


@pytest.mark.parametrize("checkpoint_minutes, saved", [(5.0, (1, 0)), (0, (1, 1))])
def test_nan_leaves_the_last_good_checkpoint(checkpoint_minutes, saved, tmp_path, at_step):
    def spoil(trainer):
        with torch.no_grad():
            trainer.online.projector[0].bias[0] = torch.nan

    at_step(5, spoil)
    with pytest.raises(FloatingPointError, match=r"not finite at epoch 2, step [23] of 3"):
        run(tmp_path, checkpoint_minutes=checkpoint_minutes)
    tensors, header = checkpoint.load(tmp_path / CONFIG.name)
    assert (header["epoch"], header["step"]) == saved
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_weights_that_the_last_step_ruins_make_no_result(tmp_path, at_step):
    at_step(9, lambda trainer: trainer.online.projector[0].bias.data.fill_(torch.inf))
    with pytest.raises(FloatingPointError, match="not finite at epoch 3, step 3 of 3"):
        run(tmp_path)
    assert not (tmp_path / CONFIG.name / "result.json").exists()


def test_bad_images_are_refused(tmp_path):
    images = tiny_images().float()
    images[7, 0, 3, 3] = torch.nan
    with pytest.raises(ValueError, match="image 7 has NaN or infinite values"):
        run(tmp_path, images=images)
    with pytest.raises(ValueError, match="batch_size=16 is not allowed; it must be at most the 15 images"):
        run(tmp_path, images=tiny_images(15))


@pytest.mark.parametrize("value", ["10", (10,), math.nan, -1], ids=repr)
@pytest.mark.parametrize("name", ["checkpoint_minutes", "stop_after", "timeout_minutes", "processes"])
def test_what_is_no_number_is_told_in_one_line(name, value, tmp_path):
    message = f"{name}={value!r} is not allowed; it must be an? (positive |)(number|integer)"
    with pytest.raises(ValueError, match=message.replace("(10,)", r"\(10,\)")):
        run(tmp_path, **{name: value})
    assert not list(tmp_path.iterdir())


# the command


@pytest.fixture
def small_digits(monkeypatch):
    monkeypatch.setattr(data, "load", lambda *args, **kwargs: SimpleNamespace(pretrain=tiny_images))


TINY = ["epochs=3", "batch_size=16", "width=2", "hidden_dim=16", "projection_dim=8"]


def test_the_command_is_the_function(small_digits, reference, tmp_path, capsys):
    arguments = [*TINY, "method=directpred", "freq=2", "--out-dir", str(tmp_path), "--device", "cpu"]
    assert main([*arguments, "--stop-after", "0"]) == 75
    assert "stopped by stop_after after 0 of 3 epochs and 1 of 3 steps" in capsys.readouterr().err
    assert main(arguments) == 0
    assert re.search(r"DirectPred \(freq=2\): .*, \d+\.\d s on .+ in fp32, ", capsys.readouterr().out)
    assert_same(load_run(tmp_path / CONFIG.name), reference)


@pytest.mark.parametrize(
    "option, message",
    [
        ("method=simclr", "method='simclr' is not allowed; it must be one of directcopy"),
        ("dataset=mnist", "dataset='mnist' is not allowed; it must be one of digits"),
        ("epochs=0", "epochs=0 is not allowed; it must be an integer of at least 1"),
        ("epochs=1,None", "epochs=None is not allowed; it must be of type int"),
        ("epochs=()", "epochs=() is not allowed; it must be at least one value"),
        ("rho=0 rho=1", "option 'rho=1' gives rho again; it must be given once"),
        ("--stop-after=nan", "stop_after=nan is not allowed; it must be a number of at least 0"),
        (
            "--checkpoint-minutes=-1",
            "checkpoint_minutes=-1.0 is not allowed; it must be a number of at least 0",
        ),
        ("--timeout-minutes=0", "timeout_minutes=0.0 is not allowed; it must be a positive number"),
        ("rho=1", "rho=1.0 is not allowed; it must be a number in [0, 1)"),
        ("eps=-1", "eps=-1.0 is not allowed; it must be a number of at least 0"),
        ("batch_size=64", "batch_size=64 is not allowed; it must be at most the 50 images"),
        ("epoch=3", "epoch is not a parameter of a run; known: dataset, method"),
        ("epochs", "option 'epochs' is not of the form name=value"),
    ],
)
def test_the_command_answers_bad_input_with_one_line(option, message, small_digits, tmp_path, capsys):
    others = [word for word in TINY if word.split("=")[0] != option.split("=")[0]]
    assert main([*others, *option.split(), "--out-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1
    assert not list(tmp_path.glob("*/*.json"))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.\nMore."),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("place", ["__init__", "step"])
def test_what_does_not_fit_in_memory_is_named(error, place, small_digits, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Trainer, place, Mock(side_effect=error))
    assert main([*TINY, "--out-dir", str(tmp_path), "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    given = "batch_size=16 with width=2, hidden_dim=16, projection_dim=8"
    assert f"{given} does not fit in the memory of cpu" in said and said.count("\n") == 1


def test_another_error_of_torch_stays_what_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "step", Mock(side_effect=RuntimeError("another")))
    with pytest.raises(RuntimeError, match="another"):
        run(tmp_path)


def test_the_command_answers_faults_with_one_line(small_digits, tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.touch()
    faults = {
        1: ["lr=1e15", "--out-dir", str(tmp_path)],
        2: ["--out-dir", str(blocked / "runs")],
    }
    for code, arguments in faults.items():
        assert main([*TINY, *arguments]) == code
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_reported(small_digits, tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert main([*TINY, "--out-dir", str(tmp_path)]) == 2
    assert "Permission denied" in capsys.readouterr().err


def test_results_are_valid_json(reference):
    """NaN and Infinity, which Python writes and nobody else reads, are nowhere."""

    def refuse(constant):
        raise AssertionError(constant)

    for path in reference.folder.glob("*.json*"):
        for text in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
            json.loads(text, parse_constant=refuse)


def test_a_device_that_is_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device='cuda' is not allowed"):
        pretrain(tiny_config(), tmp_path, device="cuda")
    assert not list(tmp_path.iterdir())
