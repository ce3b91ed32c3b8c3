"""Label the unlabelled images of a split with one checkpoint, and with PLE if there is an older one."""

from dmt import label_stage
from dmt.labeling import LabelingRules
from utils.errors import UserError


def run(job):
    """Label as the options of the ``jobs.job.Job`` say."""
    options, spec = job.options, job.spec
    background = {"spec": spec.background, "none": None}.get(options.background, options.background)
    if background is not None and background >= spec.num_classes:
        raise UserError(f"--background {background}: {spec.name} has the classes 0 to {spec.num_classes - 1}; give one "
                        "of them or none")
    rules = LabelingRules(options.label_ratio, options.increment, background, not options.no_conflict_reduction,
                          options.previous_statistics)
    job.check_sizes("--test-size")
    job.parts(0, job.network)
    label_stage.run(job.setting, job.pseudo_dir, job.checkpoint("continue_from"),
                    job.checkpoint("oldfilename") if options.oldfilename else None, rules, options.redo)
