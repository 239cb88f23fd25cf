"""A preset's jobs on a real Slurm: two nodes on one machine, which .ci/slurm starts."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import toy_project
from helpers.tiny import tiny_config, tiny_run, untimed

from dcopy import TrainConfig, pretrain, results
from dcopy.training import checkpoint

if not os.environ.get("DCOPY_TEST_SLURM"):
    pytest.skip(
        "takes minutes and a Slurm: as root on Debian, bash .ci/slurm starts one; then DCOPY_TEST_SLURM=1",
        allow_module_level=True,
    )
if sys.version_info < (3, 11):
    pytest.skip("Snakemake's plugin for Slurm needs Python 3.11", allow_module_level=True)

ONE = "one"  # a run and its probe
SMALL = ("--slurm", "time=5", "cores=1", "memory=500M")


@pytest.fixture
def project(tmp_path) -> Path:
    """A small checkout with a profile that looks at its jobs after two seconds."""
    root = toy_project.make(tmp_path / "project")
    look_after(2, root)
    return root


def look_after(seconds: int, root: Path) -> None:
    """When Snakemake first looks at a job; each later look is 10 seconds further from the one before."""
    profile = root / "profiles/slurm/config.yaml"
    text, count = re.subn("status-checks: .*", f"status-checks: {seconds}", profile.read_text())
    assert count == 1
    profile.write_text(text)


def slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def queue(root: Path) -> list[str]:
    """The jobs of this checkout that wait, run or end."""
    return [
        line for line in slurm("squeue", "--noheader", "--format=%i %T %Z").splitlines() if str(root) in line
    ]


def submitted(root: Path, preset: str = ONE) -> list[tuple[str, str]]:
    """Rule and id of each job that was sent, in this order."""
    chatter = (root / "results" / preset / "logs/snakemake.log").read_text()
    return [found[::-1] for found in re.findall(r"SLURM jobid (\d+) \(log: .*/rule_(\w+)/", chatter)]


def test_each_notebook_is_a_job_with_its_own_time_cores_memory_and_gpus(project):
    code, output = toy_project.finish(project, "smoke", *SMALL, "gpus=1", seconds=300)
    assert code == 1, output  # method none fails, once; nothing else does
    assert "digits-none-" in output and ": failed in cell [3]: ValueError: this method fails\n" in output
    done = {path.name.split("-")[0].split(".")[0] for path in (project / "results/smoke/.done").iterdir()}
    assert done == {"01_linear_theory", "03_pretrain", "04_linear_probe"}
    assert "] 03 directcopy-" in output and "| epoch 1\n" in output and "| threads 1\n" in output
    jobs = submitted(project, "smoke")
    assert sorted(rule for rule, _ in jobs) == ["linear_probe", "linear_theory", "pretrain", "pretrain"]
    for rule, number in jobs:
        facts = slurm("scontrol", "show", "job", number)
        assert "TimeLimit=00:05:00" in facts and "MinMemoryNode=500M" in facts and "NumCPUs=1 " in facts
        assert ("TresPerNode=gres:gpu:1" in facts) == (rule != "linear_theory")


def test_what_slurm_refuses_is_named(project):
    code, output = toy_project.finish(project, ONE, *SMALL, "partition=nope")
    assert code == 1
    assert "03_pretrain-" in output and "invalid partition specified: nope" in output


TRAIN = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from helpers.tiny import tiny_config, tiny_run
from dcopy.training.step import Trainer
starts = Path(results_dir, "starts.txt")
with starts.open("a") as file:
    print("start", file=file)
if len(starts.read_text().splitlines()) < 2:
    step = Trainer.step
    Trainer.step = lambda *args: (time.sleep(2), step(*args))[1]
tiny_run(Path(results_dir, "runs"), tiny_config(epochs=epochs), checkpoint_minutes=60)
"""


def test_a_run_that_meets_its_time_limit_ends_with_the_bits_of_one_that_does_not(project, tmp_path):
    toy_project.write_notebook(
        project / "notebooks/03_pretrain.ipynb", toy_project.RESULTS + toy_project.FIELDS, TRAIN
    )
    look_after(15, project)  # then after 40, and after 75, when the limit of a minute is over
    words = (ONE, "epochs=100", "--slurm", "time=1", "cores=1", "memory=500M")
    code, output = toy_project.finish(project, *words, seconds=1000)
    assert code == 0, output
    assert "1 jobs met their time limit or lost their node; they go on." in output  # or oftener
    (folder,) = (project / "results/one/runs").iterdir()
    whole = tiny_run(tmp_path, tiny_config(epochs=100)).folder

    logs = [results.read_jsonl(place / "metrics.jsonl") for place in (folder, whole)]
    assert untimed(logs[0]) == untimed(logs[1])
    one, other = (results.read_json(place / "result.json") for place in (folder, whole))
    assert one["encoder_fingerprint"] == other["encoder_fingerprint"]


def test_a_stopped_workflow_leaves_no_job_behind(project):
    many = (ONE, "epochs=1000", "lr=0.01,0.02,0.03,0.04", "--slurm", "time=5", "cores=2", "memory=500M")

    def states():
        return {line.split()[1] for line in queue(project)}

    def start():
        process = toy_project.start(project, *many)
        toy_project.wait_for(lambda: {"RUNNING", "PENDING"} <= states(), seconds=120)
        return process

    process = start()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "The same command goes on from here." in output
    assert not queue(project)

    process = start()
    process.kill()  # which leaves the jobs to themselves, until the next start
    process.communicate()
    assert queue(project)
    code, output = toy_project.finish(project, ONE, *SMALL, seconds=600)
    assert code == 0, output
    assert re.search(
        r"\d jobs of a start that was killed were still there; they have saved and stopped", output
    )
    assert not queue(project)


ON_TWO = """
from dcopy import TrainConfig, pretrain
config = TrainConfig(method=method, epochs=epochs, width=2, batch_size=256)
pretrain(config, results_dir + "/runs", device="cpu", processes=processes)
"""


def test_a_run_on_two_nodes_is_that_of_one_process(project, tmp_path):
    toy_project.write_notebook(
        project / "notebooks/03_pretrain.ipynb",
        toy_project.RESULTS + toy_project.FIELDS + "processes: int = 1\n",
        ON_TWO,
    )
    code, output = toy_project.finish(project, ONE, *SMALL, "nodes=2", seconds=500)
    assert code == 0, output
    numbers = [number for rule, number in submitted(project) if rule == "pretrain"]
    assert len(numbers) == 1 and "NumNodes=2 " in slurm("scontrol", "show", "job", *numbers)
    (folder,) = (project / "results/one/runs").iterdir()
    record = results.read_json(folder / "result.json")
    assert record["processes"] == 2
    alone = pretrain(TrainConfig.from_dict(record["config"]), tmp_path, device="cpu", progress=False)
    assert alone.folder.name == folder.name
    both = (results.read_jsonl(place / "metrics.jsonl") for place in (folder, alone.folder))
    for two, one in zip(*both, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-4)  # of float32, summed in another order
    (state, _), (expected, _) = (checkpoint.load(place) for place in (folder, alone.folder))
    assert set(state) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-3, atol=1e-3, msg=name)
