"""Train: supervised, or on the pseudo labels of another arm and the labelled images."""

import sys
from pathlib import Path

from dmt import train_stage
from dmt.training import Interrupted, Recipe
from utils.errors import UserError
from utils.runs import known_parts


def run(job):
    """Train as the options of the ``jobs.job.Job`` say."""
    if job.machine.processes.size > 1 and job.machine.device.type == "cpu":
        raise UserError("training by several processes takes a GPU for each, for torch normalizes batches over "
                        "processes on GPUs alone; train with one process (labelling and tests take several)")
    train(job)


def train(job):
    """``run`` on any device."""
    options, mutual = job.options, job.options.state == 1
    recipe = Recipe(options.lr, options.weight_decay, options.gamma1, options.gamma2, options.on_student_win,
                    options.online, val_num_steps=options.val_num_steps, log_num_steps=options.log_num_steps,
                    save_num_steps=options.save_num_steps)
    start, weights = job.start()
    name = options.exp_name or "-".join((job.spec.name, options.train_set, options.sets_id))
    job.check_sizes("--crop-size", "--test-size")
    known = known_parts(options.output_dir, name) if options.max_memory is not None and not options.redo else None
    parts = job.parts(job.batch_size, job.network, known)
    plan = train_stage.Training(
        name, Path(options.output_dir), recipe, options.epochs, options.batch_size_labeled,
        options.batch_size_pseudo if mutual else None, options.seed,
        pseudo_dir=Path(options.pseudo_dir).expanduser(), augment_pseudo=not options.no_aug,
        tiny_validation=options.valtiny, accumulate=parts, start=start, weights=weights,
        save=not options.do_not_save, redo=options.redo,
        config={**vars(options), "accumulate": parts})
    try:
        train_stage.run(job.setting, plan)
    except Interrupted as interrupted:
        sys.exit(128 + interrupted.signal)
