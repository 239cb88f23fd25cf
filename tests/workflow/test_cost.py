"""What `-n` says of the cost: the sums over a plan, and where each number comes from."""

import json

from helpers import toy_project

from dcopy.workflow import cost, plan

TAKEN = {"images": 1000, "steps": 10, "seconds": 0.5, "memory": 3e9, "disk": 2e6, "trial": 32}
TAKEN |= {"device": "a processor", "precision": "fp32"}


def lines(*options: str, done=lambda job: False, at_a_time: int = 1) -> dict[str, str]:
    jobs = plan.jobs("quick", list(options), "results/quick")
    wanted = cost.trainings(jobs, [job for job in jobs if not done(job)])
    taken = {training.alike: TAKEN for training in wanted}
    found = cost.training_lines(wanted, taken, at_a_time)
    return dict(line.rstrip(".").split(": ", 1) for line in found)


def test_steps_hours_and_disk_are_sums_over_runs_and_seeds():
    found = lines("methods=directcopy,none", "seeds=3", "epochs=60", at_a_time=2)
    assert found["images"] == "1,000 of digits"
    assert found["steps"] == "3,600 in 6 runs"  # 2 methods × 3 seeds × 60 epochs × 10
    assert found["time of training"] == "0.5 hours of one job at a time, 0.25 with 2, longest 0.25"
    assert found["memory of a job"] == "3 GB"
    assert found["disk"] == "0.012 GB of checkpoints, and the data set itself"
    told = "500 ms a step of 64 images, from three of 32 timed now on a processor in fp32"
    assert found["These are estimates"] == told


def test_runs_of_more_epochs_cost_what_comes_after_the_fewer():
    found = lines("methods=directcopy", "seeds=1", "epochs=10,30,50")
    assert found["steps"] == "500 in 3 runs"


def test_what_is_finished_costs_nothing():
    found = lines("seeds=1", "epochs=1", done=lambda job: "directcopy" in job.label)
    assert found["steps"] == "60 in 6 runs"  # of seven methods


def test_methods_share_a_measurement_and_sizes_do_not():
    jobs = plan.jobs("quick", ["batch_size=32,64"], "results/quick")
    assert {one.alike.batch_size for one in cost.trainings(jobs, jobs)} == {32, 64}
    assert len({one.alike for one in cost.trainings(jobs, jobs)}) == 2


def test_where_no_step_can_be_timed_a_line_says_why(tmp_path):
    project = toy_project.make(tmp_path / "project")  # whose dcopy.bench cannot be imported
    code, output = toy_project.finish(project, "smoke", "-n")
    assert code == 0
    assert "jobs: 7 (1 × 01_linear_theory, 1 × 02_sample_complexity, 2 × 03_pretrain, " in output
    assert "no estimate of time, memory and disk: no step could be timed here (" in output
    assert "no steps are timed in miniature" in output


def test_other_notebooks_take_what_their_executed_copies_took(tmp_path, monkeypatch):
    place = tmp_path / "results/reference/quick/notebooks"
    place.mkdir(parents=True)
    for name, seconds in (("01_linear_theory", 60), ("04_linear_probe-a", 10), ("04_linear_probe-b", 20)):
        (place / f"{name}.ipynb").write_text(json.dumps({"metadata": {"papermill": {"duration": seconds}}}))
    monkeypatch.setattr(plan, "ROOT", tmp_path)
    found = cost.notebook_lines(plan.jobs("quick", ["methods=directcopy,none"], "results/quick"), "quick")
    assert found[0].startswith(
        "time of the other notebooks: 1:30, as in results/reference/quick/notebooks"
    )  # 60 + 2 × 15
    assert found[1].startswith(
        "not estimated, since no executed copy tells: 02_sample_complexity, 05_paper_tables"
    )


def test_imagenet_is_planned_without_its_images():
    """Steps from the recipe; its disk is named, since it is the larger part."""
    jobs = plan.jobs("imagenet", ["methods=directcopy", "epochs=100"], "results/imagenet")
    wanted = cost.trainings(jobs, jobs)
    assert {one.config.batch_size for one in wanted} == {4096} and len({one.alike for one in wanted}) == 1
    own = TAKEN | {"images": 1_281_167, "steps": 312}
    found = cost.training_lines(wanted, {one.alike: own for one in wanted}, 1)
    assert "images: 1,281,167 of imagenet" in found and "steps: 62,400 in 2 runs" in found
    assert any("22 to 40 GB of its images made smaller" in line for line in found)


def test_runs_of_more_epochs_start_anew_where_a_schedule_ends_with_them():
    for schedule, goes_on in (("constant", True), ("cosine", False)):
        options = ["methods=directcopy", "epochs=10,30", f"lr_schedule={schedule}"]
        assert any(job.after for job in plan.jobs("quick", options, "results/quick")) == goes_on
