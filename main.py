#!/usr/bin/env python3
"""One stage of DMT+PLE: train (supervised or on pseudo labels), label the unlabelled images, or test."""

import importlib
import sys

from dmt.plan import read_plan
from utils.errors import reports_user_errors
from utils.options import parse_options


@reports_user_errors
def main(arguments=None):
    """Parse the command line and run the stage it asks for, alone or as one of the processes of torchrun."""
    options = parse_options(arguments)
    stages = [options]
    if options.plan:
        stages = read_plan(sys.stdin, parse_options, options.redo)
        if not options.check or not stages:
            return
    task = "check" if options.check else "label" if options.labeling else "test" if options.state == 3 else "train"
    # The only late imports: they load torch, for which --help, wrong options and a plan need not wait.
    run = importlib.import_module(f"jobs.{task}").run
    from jobs.job import Job
    from utils.distributed import Processes

    with Processes() as processes:
        run(Job(stages, processes))


if __name__ == "__main__":
    main()
