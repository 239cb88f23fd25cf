"""Profiles and words for a cluster, where there is none; tests/cluster has a real Slurm."""

import re
import shutil

import pytest
import yaml
from helpers import toy_project

from dcopy.workflow import cluster, outcome

ONE = ("smoke", "methods=directcopy")
RULES = re.findall(r"^rule (?!all:)(\w+):", (toy_project.ROOT / "Snakefile").read_text(), re.M)


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("time=30:00", "time='30:00' is not allowed; it must be minutes, as 90, or as 4h, 2d, HH:MM:SS"),
        ("time=0", "time='0' is not allowed"),
        ("memory=16", "memory=16 is not allowed; it must be a number with its unit, as 500M or 16G"),
        ("gpus=0", "gpus=0 is not allowed; it must be an integer of at least 1"),
        ("cores=two", "cores='two' is not allowed; it must be an integer of at least 1"),
    ],
)
def test_wrong_words_are_refused_with_exit_code_2(word, complaint):
    code, output = toy_project.finish(toy_project.ROOT, *ONE, "--slurm", word, "--check")
    assert code == 2 and output.startswith(complaint) and output.count("\n") == 1


def test_words_for_a_cluster_need_one():
    code, output = toy_project.finish(toy_project.ROOT, *ONE, "partition=gpu", "--check")
    assert code == 2 and "option 'partition' is unknown" in output


def test_words_go_before_what_the_profile_says_of_single_rules():
    settings = cluster.read_profile(cluster.SLURM)
    words = {"partition": "p", "account": "me", "time": 30, "memory": 2000, "cores": 3, "gpus": 2, "nodes": 2}
    merged = cluster.merged(settings, words)
    assert merged["default-resources"] == {
        "runtime": 30, "mem_mb": 2000, "slurm_partition": "p", "slurm_account": "me"
    }  # fmt: skip
    gpus = {"gres": "gpu:2", "tasks_per_gpu": 0}
    nodes = {"nodes": 2, "tasks": 2, "mpi": "srun"}
    assert merged["set-resources"] == {"pretrain": gpus | nodes, "linear_probe": gpus}
    assert merged["set-threads"] == dict.fromkeys(RULES, 3)
    assert cluster.merged(settings, {}) == settings == cluster.read_profile(cluster.SLURM)


def test_the_profile_speaks_of_rules_that_exist():
    settings = cluster.read_profile(cluster.SLURM)
    assert set(settings["set-threads"]) == set(RULES)
    assert set(settings["set-resources"]) | set(cluster.TRAINING) <= set(RULES)


def test_where_there_is_no_slurm_a_line_says_so_before_any_work(tmp_path):
    pytest.importorskip("snakemake_executor_plugin_slurm")
    project = toy_project.make(tmp_path / "project")
    (tmp_path / "which").symlink_to(shutil.which("which"))  # the plugin asks it
    environment = toy_project.environment(project, PATH=str(tmp_path))
    code, output = toy_project.finish(project, *ONE, "--slurm", env=environment)
    assert code == 1
    assert output.splitlines()[1:] == ["there is no Slurm here: scontrol is not in the PATH"], output


def test_another_profile_is_handed_through(tmp_path):
    project = toy_project.make(tmp_path / "project")
    profile = tmp_path / "mine"
    code, output = toy_project.finish(project, *ONE, "--profile", str(profile))
    assert code == 1 and f"--profile {profile} is no profile of Snakemake's; it has no config.yaml" in output
    profile.mkdir()
    settings = {"cores": 2, "set-threads": dict.fromkeys(RULES, 2), "printshellcmds": True}
    (profile / "config.yaml").write_text(yaml.safe_dump(settings))
    code, output = toy_project.finish(project, *ONE, "--profile", str(profile), "time=3")
    assert code == 1 and f"time=... is for Slurm; the executor in {profile} is local\n" in output
    code, output = toy_project.finish(project, *ONE, "--profile", str(profile))
    assert code == 0, output
    assert "Jobs go to local" in output and "| threads 2\n" in output
    assert "-m dcopy.workflow.notebook" in (project / "results/smoke/logs/snakemake.log").read_text()


CHATTER = """
Error in rule pretrain:
    message: SLURM-job '8' failed, SLURM status is: 'TIMEOUT'. No reason.For further error details see the log
    jobid: 4
    output: .done/a.json
Error in rule pretrain:
    message: SLURM sbatch failed. The error message was 'sbatch: error: invalid partition specified: nope
sbatch: error: Batch job submission failed'.
    sbatch call:
        sbatch --parsable
    output: .done/b.json
Error in rule pretrain:
    message: None
    output: .done/c.json
"""


def test_why_a_job_failed_is_read_from_what_snakemake_says(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/snakemake.log").write_text(CHATTER)
    why = outcome.reasons(tmp_path)
    assert list(why) == [".done/a.json", ".done/b.json"]
    assert why[".done/a.json"] == "SLURM-job '8' failed, SLURM status is: 'TIMEOUT'. No reason."
    assert why[".done/b.json"].endswith("'sbatch: error: invalid partition specified: nope")
