"""Everything that a report shows of a run, gathered: stages, labellings, and the figures of every round's pixels."""

import os
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from tools.reporting.rounds import Gone, figures
from tools.run_folder import Stage, class_names, find_labellings, find_stages, locked_by
from tools.run_summary import choose_experiment
from utils.files import read_json, write_json


@dataclass
class Supervised:
    """Training on the labels alone, to compare with: mIoU and IoU of the classes (fractions), and whose they are.

    ``arm`` is None for the mean over the round 0 of the arms themselves, whose classes (``iou``) are shown with them.
    """

    miou: float
    iou: list | None
    arm: str | None


@dataclass
class Content:
    """A run as the report sees it.

    ``looks``: round that learns from the labels -> figures of its pixels (``tools.reporting.rounds``); ``gone``: round
    -> why there are none. ``planned``: rounds of the whole chain, ``planned_arms`` the arms that take part in them, where
    they are known. ``alive``: whether the launcher or a stage runs now. ``beside``: the supervised baseline of another
    run folder, or None.
    """

    run: Path
    stages: list
    labellings: list
    classes: list
    colors: list
    looks: dict = field(default_factory=dict)
    gone: dict = field(default_factory=dict)
    planned: int | None = None
    planned_arms: list = field(default_factory=list)
    alive: bool = False
    beside: Stage | None = None

    @property
    def finished(self):
        """The stages that have finished."""
        return [stage for stage in self.stages if stage.result]

    @property
    def arms(self):
        """The arms of the rounds, sorted; before the first round those planned, or all."""
        arms = set(self.planned_arms) | {stage.arm for stage in self.stages if stage.round}
        arms |= {labelling.arm for labelling in self.labellings}
        return sorted(arms or {stage.arm for stage in self.stages if stage.arm})

    @property
    def baseline(self):
        """The stage of the supervised baseline: an arm with a round 0 alone beside arms with rounds, or None."""
        return next((stage for stage in self.stages if stage.arm and stage.arm not in self.arms), None)

    @property
    def split(self):
        """What the rounds take as labelled images, or None before the first round."""
        return next((stage.options.get("train_set") for stage in self.stages if stage.round), None)

    @property
    def supervised(self):
        """What training on all labels of the split reaches: the baseline of this run or of the one beside it, else the
        round 0 of the arms if they saw all labels. ``Supervised``, or None.
        """
        stage = self.baseline or self.beside
        if stage:
            return Supervised(stage.miou, stage.iou, stage.arm) if stage.result else None
        zero = [stage for stage in self.finished if stage.round == 0]
        if not zero or {stage.options.get("train_set") for stage in zero} != {self.split}:
            return None
        return Supervised(statistics.mean(stage.miou for stage in zero), None, None)

    @property
    def others(self):
        """Stages with names of another form, such as the SBD oracle."""
        return [stage for stage in self.stages if stage.round is None]

    @property
    def last_round(self):
        """The last round that any arm has finished."""
        return max((stage.round for stage in self.finished if stage.arm in self.arms), default=0)

    def stage(self, arm, number):
        """The stage of an arm in a round, or None."""
        return next((stage for stage in self.stages if (stage.arm, stage.round) == (arm, number)), None)

    def of_arm(self, arm):
        """The stages of an arm by round."""
        return sorted((stage for stage in self.stages if stage.arm == arm), key=lambda stage: stage.round)

    def labels_of(self, arm):
        """The finished labellings of an arm by the round that learns from them: {round: ``Labelling``}."""
        return {labelling.round + 1: labelling for labelling in self.labellings
                if labelling.arm == arm and labelling.manifest}

    def complete(self):
        """Whether every stage that the chain plans has finished; None where the plan is not known."""
        if self.planned is None:
            return None
        due = [self.stage(arm, number) for arm in self.arms for number in range(self.planned + 1)] + self.others
        due += [self.baseline] if self.baseline else []
        return bool(self.arms) and all(stage is not None and stage.result for stage in due) and all(
            labelling.manifest for labelling in self.labellings)


def gather(run, folder, data=None, images=500, rounds=None, arms=None, exp=None, progress=lambda number: iter,
           baseline=None):
    """The ``Content`` of the run folder ``run``; what is to be kept lies in ``folder``.

    ``data``: function stage -> ``tools.run_folder.RunData``; None: no pixels are looked at, only what was kept is used.
    ``rounds`` and ``arms`` are what the chain plans, ``baseline`` is a run folder with its supervised baseline; they are
    remembered. ``progress(round)`` wraps the images of a round.
    """
    stages = choose_experiment(find_stages(run, unfinished=True), run, exp)
    if all(stage.round is None for stage in stages):  # trainings outside a chain: each is an arm of its own
        for stage in stages:
            stage.arm, stage.round = stage.name, 0
    known = {stage.exp for stage in stages}
    labellings = [labelling for labelling in find_labellings(run) if labelling.exp in known]
    names, colors = class_names(stages)
    alive = locked_by(Path(run) / ".lock") is not None or any(part.running for part in (*stages, *labellings))
    if baseline is not None:
        find_stages(baseline)  # an error for what is no run
        baseline = os.path.relpath(baseline, run)  # both may be moved together
    plan = _plan(Path(folder), {"rounds": rounds, "arms": arms, "baseline": baseline})
    content = Content(Path(run), stages, labellings, names, colors, planned=plan.get("rounds"),
                      planned_arms=plan.get("arms") or [], alive=alive)
    if plan.get("baseline") and (Path(run) / plan["baseline"]).is_dir():
        content.beside = _baseline_of(content, Path(run) / plan["baseline"])
    whole = [labelling for labelling in labellings if labelling.manifest]
    dataset = data(stages[0]) if data and whole else None
    for number in sorted({labelling.round for labelling in whole}):
        of_round = [labelling for labelling in whole if labelling.round == number]
        before = [labelling for labelling in labellings if labelling.round == number - 1]
        try:
            content.looks[number + 1] = figures(folder, of_round, before, dataset, images, progress(number + 1))
        except Gone as gone:
            content.gone[number + 1] = str(gone)
    return content


def _baseline_of(content, run):
    """The finished supervised stage of another run folder that saw what the rounds take as labelled, or None."""
    found = [stage for stage in find_stages(run, needed=False)
             if not stage.round and stage.options.get("train_set") == content.split and stage.options.get("state") == 2
             and (stage.fingerprint.get("dataset") or {}).get("class_names") == content.classes]
    return min(found, key=lambda stage: (stage.arm in content.arms, stage.name), default=None)


def _plan(folder, given):
    """What the chain plans: what is given, and what was given before."""
    path = folder / "plan.json"
    known = read_json(path) if path.is_file() else {}
    plan = {**known, **{name: value for name, value in given.items() if value is not None}}
    if plan != known:
        write_json(path, plan)
    return plan
