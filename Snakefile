"""Which notebook makes which result: one rule per notebook, one job per set of parameters.

`bash run_all.sh PRESET` calls this; by hand it is
    snakemake --cores 2 --directory results/quick --config preset=quick

Snakemake works in the folder of results and sees only plain names in it, so that the folder and the
checkout may have any name. A job is finished when its marker exists. It runs again when its notebook's
content, its parameters or a job before it changed.
"""

import shlex
import sys
from pathlib import Path

from dcopy.workflow import plan

PRESET = config.get("preset", "quick")
RESULTS = (plan.unpack(config.get("results_dir")) or [plan.shortest(Path.cwd())])[0]
JOBS = {job.name: job for job in plan.jobs(PRESET, plan.unpack(config.get("options")), RESULTS)}
THREADS = config.get("threads", 1)
PROCESSES = config.get("processes", 1)
DONE = ".done/"


def run(*words):
    """A shell command in the checkout; Snakemake fills in braces, so those of the words are doubled."""
    return shlex.join(words).replace("{", "{{").replace("}", "}}")


RUN = run("cd", str(plan.ROOT)) + " && exec "
RUN += run(sys.executable, "-m", "dcopy.workflow.notebook", "--results-dir", RESULTS) + " {params.arguments}"


def done(*notebooks):
    """The markers of all jobs of these notebooks."""
    return [job.done for job in JOBS.values() if job.notebook in notebooks]


def params(name):
    """What the job with this name is called with, and a digest of its notebook."""
    job = lambda wildcards: JOBS[name.format(**wildcards)]
    return {"arguments": lambda w: shlex.join(job(w).arguments()), "content": lambda w: job(w).content()}


rule all:
    input:
        [job.done for job in JOBS.values()],


rule linear_theory:
    output:
        DONE + "01_linear_theory.json",
    params:
        **params("01_linear_theory"),
    threads: THREADS
    shell:
        RUN


rule sample_complexity:  # its last part reads the label efficiency that the probes measured
    input:
        done("04_linear_probe"),
    output:
        DONE + "02_sample_complexity.json",
    params:
        **params("02_sample_complexity"),
    threads: THREADS
    shell:
        RUN


rule pretrain:  # all seeds of a variant; it goes on from the same with fewer epochs
    input:
        lambda wildcards: JOBS["03_pretrain-" + wildcards.variant].after or [],
    output:
        DONE + "03_pretrain-{variant}.json",
    params:
        **params("03_pretrain-{variant}"),
    threads: THREADS
    shell:
        RUN + (f" -p processes={PROCESSES}" if PROCESSES > 1 else "")


rule linear_probe:
    input:
        DONE + "03_pretrain-{variant}.json",
    output:
        DONE + "04_linear_probe-{variant}.json",
    params:
        **params("04_linear_probe-{variant}"),
    threads: THREADS
    shell:
        RUN


rule paper_tables:
    input:
        done("01_linear_theory", "02_sample_complexity", "03_pretrain", "04_linear_probe"),
    output:
        DONE + "05_paper_tables.json",
    params:
        **params("05_paper_tables"),
    threads: THREADS
    shell:
        RUN


rule ablations:
    input:
        done("03_pretrain", "04_linear_probe"),
    output:
        DONE + "06_ablations.json",
    params:
        **params("06_ablations"),
    threads: THREADS
    shell:
        RUN


rule your_own_trainer:  # it reads what the verdict on health was worth in the preset
    input:
        done("04_linear_probe"),
    output:
        DONE + "07_your_own_trainer.json",
    params:
        **params("07_your_own_trainer"),
    threads: THREADS
    shell:
        RUN


rule theory_and_network:
    output:
        DONE + "08_theory_and_network.json",
    params:
        **params("08_theory_and_network"),
    threads: THREADS
    shell:
        RUN
