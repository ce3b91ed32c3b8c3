#!/usr/bin/env python3
"""One stage of DMT+PLE: train (supervised or on pseudo labels), label the unlabelled images, or test."""

import sys

from utils.errors import UserError, reports_user_errors
from utils.options import parse_options


@reports_user_errors
def main(arguments=None):
    """Parse the command line and run the stage it asks for, alone or as one of the processes of torchrun."""
    options = parse_options(arguments)
    stages = [options]
    if options.plan:
        from dmt.plan import read_plan
        stages = read_plan(sys.stdin, parse_options, options.redo)
        if not options.check or not stages:
            return
    from job import Job  # now torch is loaded, for which --help and wrong options need not wait
    from utils.distributed import Processes
    with Processes() as processes:
        job = Job(stages[0], processes)
        if options.check:
            if not processes.first(job.check, stages):
                sys.exit(2)
        elif options.labeling:
            job.label()
        elif options.state == 3:
            job.test()
        else:
            if processes.size > 1 and job.machine.device.type == "cpu":
                raise UserError("training by several processes takes a GPU for each, for torch normalizes batches over "
                                "processes on GPUs alone; train with one process (labelling and tests take several)")
            job.train(mutual=options.state == 1)


if __name__ == "__main__":
    main()
