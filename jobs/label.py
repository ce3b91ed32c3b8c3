"""Label the unlabelled images of a split with one checkpoint, and with PLE if there is an older one."""

from pathlib import Path

from dmt import label_stage
from dmt.labeling import LabelingRules


def run(job):
    """Label as the options of the ``jobs.job.Job`` say."""
    options, spec = job.options, job.spec
    rules = LabelingRules(options.label_ratio, options.increment, spec.background_class(options.background),
                          not options.no_conflict_reduction, options.previous_statistics)
    job.check_sizes("--test-size")
    job.parts(0, job.network)
    label_stage.run(job.setting, Path(options.pseudo_dir).expanduser(), job.checkpoint("continue_from"),
                    job.checkpoint("oldfilename") if options.oldfilename else None, rules, options.redo)
