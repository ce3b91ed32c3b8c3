"""A run folder, read once: every stage and labelling, finished or not, and what was counted of the pixels.

Everything here is quick and needs neither torch nor a dataset: the page is brought up to date after every stage.
"""

import fcntl
import itertools
import json
import os
import re
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from utils.errors import UserError
from utils.files import read_json, sha256

PIXELS_FORMAT = 2  # of the files round-N.json
_NAME = re.compile(r"(?P<exp>.+)__p(?P<round>\d{1,6})--(?P<arm>[^/]+)")


@dataclass
class _Part:
    """``exp``, ``round`` and ``arm`` are the parts of its name, or None where it has another form (the SBD oracle)."""

    name: str
    folder: Path
    exp: str | None
    round: int | None
    arm: str | None

    @property
    def running(self):
        """Whether a process works on it now; to be asked where it has not finished."""
        return in_use(self.folder / ".lock")


@dataclass
class Stage(_Part):
    """A training stage: what its folder holds. ``result`` is empty until it has finished.

    ``metrics`` are the lines of metrics.jsonl. Shares and mIoU are fractions.
    """

    result: dict
    config: dict
    environment: dict
    metrics: list

    @property
    def checkpoint_sha256(self):
        """SHA-256 of the checkpoint that the stage left, or None."""
        return self.result.get("checkpoint_sha256")

    @property
    def fingerprint(self):
        """Everything that the result depends on, as nested plain values; {} where nothing is recorded."""
        return self.result.get("fingerprint") or self.config.get("fingerprint") or {}

    @property
    def options(self):
        """The options that the result depends on."""
        return self.fingerprint.get("options") or self.config

    def lines(self, kind):
        """The lines of metrics.jsonl of one kind."""
        return [line for line in self.metrics if line["kind"] == kind]

    @property
    def end(self):
        """The last line of metrics.jsonl of kind end: time and memory; {} before."""
        return (self.lines("end") or [{}])[-1]

    @property
    def miou(self):
        """The stage's result, or its best validation so far; None before the first."""
        if self.result:
            return self.result["miou"]
        return max((line["miou"] for line in self.lines("validation")), default=None)

    @property
    def iou(self):
        """IoU of each class at the result, fractions or None; None where it is not recorded."""
        return next((line.get("iou") for line in self.lines("validation") if line["step"] == self.result.get("step")),
                    None)

    @property
    def steps(self):
        """Steps done, or None when nothing was logged yet."""
        return max((line["step"] for line in self.metrics), default=None)

    @property
    def seconds(self):
        """Time in the training loop, validations included, over all starts; None where it is not recorded.

        What a killed start did after its last saved state is not counted, since it is done again.
        """
        spans = [later["time"] - line["time"] for line, later in itertools.pairwise(self.metrics)
                 if later["kind"] != "start"]
        return sum(spans) if self.metrics else None


@dataclass
class Labelling(_Part):
    """Pseudo labels made by the checkpoint of ``round``. ``manifest`` is empty until they are whole."""

    manifest: dict
    timing: dict

    @property
    def enhanced(self):
        """Whether PLE took part."""
        return bool(self.manifest.get("previous"))


@dataclass
class Run:
    """One experiment of a run folder.

    ``looks``: round that learns from the labels -> what was counted of their pixels (see ``report.pixels``); ``gone``:
    round -> why nothing can be counted. ``plan``: what the chain is to have (rounds, arms, the run folder of the
    baseline). ``beside``: the supervised stage of that folder, or None.
    """

    folder: Path
    stages: list
    labellings: list
    looks: dict = field(default_factory=dict)
    gone: dict = field(default_factory=dict)
    plan: dict = field(default_factory=dict)
    beside: Stage | None = None

    @property
    def running(self):
        """Whether a launcher or a stage works in the folder now."""
        return in_use(self.folder / ".lock") or any(part.running for parts in self.unfinished for part in parts)

    @property
    def unfinished(self):
        """What has begun and not ended: (stages, labellings)."""
        return ([stage for stage in self.stages if not stage.result],
                [made for made in self.labellings if not made.manifest])

    @property
    def dataset(self):
        """What is recorded of the dataset spec: name, class_names, palette and more; {} by an old version."""
        return next((found for stage in self.stages if (found := stage.fingerprint.get("dataset"))), {})

    @property
    def classes(self):
        """Names of the classes; numbers where they are not recorded."""
        count = max((len(stage.iou or ()) for stage in self.stages), default=0)
        return list(self.dataset.get("class_names") or map(str, range(count)))

    @property
    def finished(self):
        """The stages that have finished."""
        return [stage for stage in self.stages if stage.result]

    @property
    def made(self):
        """The labellings that have finished, by round."""
        return [made for made in self.labellings if made.manifest]

    @property
    def arms(self):
        """The arms of the rounds, sorted; before the first round those planned, or all."""
        of_rounds = {stage.arm for stage in self.stages if stage.round} | {made.arm for made in self.labellings}
        return sorted(of_rounds | set(self.plan.get("arms") or ()) or {stage.arm for stage in self.stages if stage.arm})

    @property
    def last_round(self):
        """The last round that any arm has finished."""
        return max((stage.round for stage in self.finished if stage.arm in self.arms), default=0)

    @property
    def finals(self):
        """The finished stages of the last round, by arm."""
        return [stage for stage in self.finished if stage.arm in self.arms and stage.round == self.last_round]

    @property
    def split(self):
        """What the rounds take as labelled images, or None before the first round."""
        return next((stage.options.get("train_set") for stage in self.stages if stage.round), None)

    @property
    def supervised(self):
        """Training on all labels of the split alone: (mIoU, IoU of the classes or None, whose it is), or None.

        That of an arm with a round 0 alone, or of the run beside this one; else the mean of the arms' round 0, if that
        saw all labels.
        """
        baseline = next((stage for stage in self.stages if stage.arm and stage.arm not in self.arms), self.beside)
        if baseline:
            return (baseline.miou, baseline.iou, f"arm {baseline.arm}") if baseline.result else None
        zero = [stage for stage in self.finished if stage.round == 0]
        if not zero or {stage.options.get("train_set") for stage in zero} != {self.split}:
            return None
        return statistics.mean(stage.miou for stage in zero), None, "round 0, mean of the arms"

    def of_arm(self, arm):
        """The stages of an arm by round."""
        return [stage for stage in self.stages if stage.arm == arm]

    def labels(self):
        """{round that learns from them: finished labellings}, by round."""
        return {number: list(made) for number, made in itertools.groupby(self.made, lambda made: made.round + 1)}

    def counted(self, made):
        """What was counted of the pixels of a finished labelling, a dict (see ``report.pixels``); {} for nothing."""
        return self.looks.get(made.round + 1, {}).get("arms", {}).get(made.arm, {})

    def strangers(self):
        """Finished stages that do not descend from the checkpoints beside them: a sentence each."""
        found = []
        for stage in (stage for stage in self.finished if stage.round):
            before = {other.arm: other for other in self.finished
                      if other.round == stage.round - 1 and other.checkpoint_sha256}
            start, own = stage.fingerprint.get("start"), before.get(stage.arm)
            teacher = (stage.fingerprint.get("pseudo_labels") or {}).get("checkpoint_sha256")
            if own and start and start != own.checkpoint_sha256:
                found.append(f"{stage.name} did not start from the present {own.name}.pt")
            elif before and teacher and teacher not in {other.checkpoint_sha256 for other in before.values()}:
                found.append(f"{stage.name} learnt from labels of a checkpoint that is no longer in the run")
        return found

    def progress(self):
        """(stages finished, stages planned or 0, seconds left or None): trainings and labellings of the whole chain.

        Seconds are known after the first training of a round. Arms that ran side by side are taken to go on so.
        """
        done, arms = len(self.finished) + len(self.made), len(self.arms)
        if self.plan.get("rounds") is None or not arms:
            return done, 0, None
        rounds = self.plan["rounds"]  # of which the folder may hold more, from an earlier chain
        done -= sum(stage.round > rounds for stage in self.finished if stage.round)
        done -= sum(made.round >= rounds for made in self.made)
        of_rounds = arms * rounds
        others = sum(1 for stage in self.stages if stage.arm not in self.arms)
        due = arms + 2 * of_rounds + others
        trained = [stage.seconds for stage in self.finished if stage.round and stage.seconds]
        labelled = [labelling.timing["seconds"] for labelling in self.made if labelling.timing]
        if not trained or not labelled:
            return done, due, None
        left = (of_rounds - len(trained)) * statistics.mean(trained)
        left += (of_rounds - len(self.made)) * statistics.mean(labelled)
        times = [line["time"] for stage in self.finished if stage.round for line in stage.metrics]
        side_by_side = min(arms, max(1, (sum(trained) + sum(labelled)) / max(max(times) - min(times), 1e-9)))
        return done, due, max(left, 0) / side_by_side


def digests(labellings):
    """Name -> SHA-256 of the manifest: what was counted of other labels is not taken for these."""
    return {made.name: sha256(made.folder / "manifest.json") for made in labellings}


def read_run(folder, exp=None, report=None, unfinished=False, plan=None):
    """The ``Run`` in ``folder``: one experiment and the stages without a round.

    An experiment is what stands in front of ``__pROUND--ARM``; ``exp`` chooses one where there are several.
    ``report``: folder with what was counted of the pixels (default: report in the run folder). ``unfinished``: stages
    that have begun count, too. ``plan``: values of ``Run.plan`` that are given now; the others are those that were
    given before. Raises ``UserError`` when there is no stage, and for files that are damaged.
    """
    folder = Path(folder)
    report = Path(report or folder / "report")
    stages = _chosen(_stages(folder, unfinished), folder, exp)
    if all(stage.round is None for stage in stages) and unfinished:  # outside a chain: each is an arm of its own
        for stage in stages:
            stage.arm, stage.round = stage.name, 0
    experiments = {stage.exp for stage in stages}
    run = Run(folder, stages, [made for made in _labellings(folder) if made.exp in experiments])
    for number, labellings in run.labels().items():
        known = _object(report / f"round-{number}.json")
        if known.get("format") == PIXELS_FORMAT and known["labellings"] == digests(labellings):
            run.looks[number] = known
    given = {name: value for name, value in (plan or {}).items() if value is not None}
    if "baseline" in given:
        _stages(Path(given["baseline"]), False)  # an error for what is no run
        given["baseline"] = os.path.relpath(given["baseline"], folder)  # both may be moved together
    run.plan = {**_object(report / "plan.json"), **given}
    if run.plan.get("baseline") and (folder / run.plan["baseline"]).is_dir():
        run.beside = min((stage for stage in _stages(folder / run.plan["baseline"], False)
                          if not stage.round and stage.options.get("train_set") == run.split
                          and stage.options.get("state") == 2),
                         key=lambda stage: (stage.arm in run.arms, stage.name), default=None)
    return run


def in_use(lock):
    """Whether a process holds the lock file; one that was killed does not."""
    try:
        with open(lock, encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def _stages(folder, unfinished):
    if not folder.is_dir():
        raise UserError(f"the run folder {folder} is missing; give the output folder of a launcher, such as runs/NAME")
    found = [Stage(path.name, path, **_parts(path.name), result=_object(path / "result.json"),
                   config=_object(path / "config.json"), environment=_object(path / "environment.json"),
                   metrics=_lines(path / "metrics.jsonl"))
             for path in sorted(folder.iterdir())
             if (path / "result.json").is_file() or unfinished and (path / "config.json").is_file()]
    if not found:
        what = "stage" if unfinished else "finished stage"
        raise UserError(f"{folder} holds no {what}; give the output folder of a launcher, such as runs/NAME")
    return sorted(found, key=lambda stage: (stage.round is None, stage.round or 0, stage.name))


def _labellings(folder):
    found = [Labelling(path.name, path, **_parts(path.name), manifest=_object(path / "manifest.json"),
                       timing=_object(path / "timing.json"))
             for path in folder.glob("pseudo/*") if _NAME.fullmatch(path.name)
             and any((path / name).is_file() for name in ("manifest.json", "logits.json"))]
    return sorted(found, key=lambda made: (made.round, made.name))


def _chosen(stages, folder, exp):
    known = sorted({stage.exp for stage in stages if stage.exp})
    several = sorted({stage.exp for stage in stages if stage.round}) or known
    if exp is None and len(several) > 1:
        raise UserError(f"{folder} holds several experiments ({', '.join(several)}); choose one with --exp")
    if exp is not None and exp not in known:
        raise UserError(f"{folder} holds no experiment {exp}; it holds {', '.join(known) or 'none'}")
    return [stage for stage in stages if stage.exp in (exp, None, *several[: exp is None])]


def _object(path):
    """The JSON object in the file, {} without a file."""
    value = read_json(path) if path.is_file() else {}
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object; it is damaged: delete it and run its stage again")
    return value


def _lines(path):
    """The JSON lines of the file; one that was cut off is left out."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def _parts(name):
    match = _NAME.fullmatch(name)
    return {"exp": match and match["exp"], "round": match and int(match["round"]), "arm": match and match["arm"]}
