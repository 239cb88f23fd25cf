"""Which notebook makes which result: one rule per notebook, one job per set of parameters.

`bash run_all.sh PRESET` calls this; by hand it is
    snakemake --cores 2 --config preset=quick results_dir=results/quick

A job is finished when its marker exists. It runs again when its notebook's content, its parameters
or a job before it changed.
"""

import shlex
import sys

from dcopy.workflow import plan

PRESET = config.get("preset", "quick")
RESULTS = config.get("results_dir", f"results/{PRESET}")
JOBS = {job.name: job for job in plan.jobs(PRESET, config.get("options", []), RESULTS)}
THREADS = config.get("threads", 1)
DONE = RESULTS + "/.done/"
PYTHON = shlex.quote(sys.executable)
RUN = PYTHON + " -m dcopy.workflow.notebook {input.notebook} {params.arguments}"


def done(*notebooks):
    """The markers of all jobs of these notebooks."""
    return [job.marker for job in JOBS.values() if job.notebook in notebooks]


def arguments(name):
    return shlex.join(JOBS[name].arguments())


rule all:
    input:
        [job.marker for job in JOBS.values()],


rule linear_theory:
    input:
        notebook="notebooks/01_linear_theory.ipynb",
    output:
        DONE + "01_linear_theory.json",
    params:
        arguments=lambda wildcards: arguments("01_linear_theory"),
    threads: THREADS
    shell:
        RUN


rule sample_complexity:  # its last part reads the label efficiency that the probes measured
    input:
        done("04_linear_probe"),
        notebook="notebooks/02_sample_complexity.ipynb",
    output:
        DONE + "02_sample_complexity.json",
    params:
        arguments=lambda wildcards: arguments("02_sample_complexity"),
    threads: THREADS
    shell:
        RUN


rule pretrain:  # all seeds of a variant; it goes on from the same with fewer epochs
    input:
        lambda wildcards: JOBS["03_pretrain-" + wildcards.variant].after or [],
        notebook="notebooks/03_pretrain.ipynb",
    output:
        DONE + "03_pretrain-{variant}.json",
    params:
        arguments=lambda wildcards: arguments("03_pretrain-" + wildcards.variant),
    threads: THREADS
    shell:
        RUN


rule linear_probe:
    input:
        DONE + "03_pretrain-{variant}.json",
        notebook="notebooks/04_linear_probe.ipynb",
    output:
        DONE + "04_linear_probe-{variant}.json",
    params:
        arguments=lambda wildcards: arguments("04_linear_probe-" + wildcards.variant),
    threads: THREADS
    shell:
        RUN


rule paper_tables:
    input:
        done("01_linear_theory", "02_sample_complexity", "03_pretrain", "04_linear_probe"),
        notebook="notebooks/05_paper_tables.ipynb",
    output:
        DONE + "05_paper_tables.json",
    params:
        arguments=lambda wildcards: arguments("05_paper_tables"),
    threads: THREADS
    shell:
        RUN


rule ablations:
    input:
        done("03_pretrain", "04_linear_probe"),
        notebook="notebooks/06_ablations.ipynb",
    output:
        DONE + "06_ablations.json",
    params:
        arguments=lambda wildcards: arguments("06_ablations"),
    threads: THREADS
    shell:
        RUN
