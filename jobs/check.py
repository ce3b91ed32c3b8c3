"""Check everything that a stage, or all stages of a launcher's plan, need."""

import dataclasses
import functools
import math
import sys
from pathlib import Path

from dmt.check import check, print_report, subsets
from utils.errors import UserError


def run(job):
    """Check what the stages of the ``jobs.job.Job`` need; exit status 2 where something is wrong."""
    if not job.machine.processes.first(_is_fine, job):
        sys.exit(2)


def _is_fine(job):
    """Print what is found, and return whether nothing is wrong.

    Of several stages those that start from first weights need them; the others start from what is not there yet.
    """
    stages = job.stages
    trainings = [stage for stage in stages if not stage.labeling] or stages
    first = stages if len(stages) == 1 else [
        stage for stage in trainings
        if stage.state == 2 and not Path(stage.output_dir, f"{stage.exp_name}.pt").is_file()]
    largest = max(map(job.of, trainings), key=lambda one: one.batch_size)
    try:
        network = largest.network
    except UserError:  # not there yet; where it has to be, the functions say it
        network = job.of((first or trainings)[0]).network_of(None)
    work = largest.workload(largest.batch_size, network)
    if len(stages) > 1:  # a plan says how many rounds it has
        work = dataclasses.replace(work, rounds=math.ceil(sum(stage.labeling for stage in stages) / work.arms))
    report = check(job.data, subsets(job.data, trainings), work,
                   [functools.partial(_check_start, job.of(stage)) for stage in first])
    print_report(report)
    return not report.errors


def _check_start(job):
    """Raise ``UserError`` where the network that a stage starts with cannot be had."""
    job.network.build("cpu", *job.start())
    if job.options.check_weights and job.options.continue_from:
        job.network_of(None).build("cpu", None, job.options.weights)
    job.check_sizes("--crop-size", "--test-size")
