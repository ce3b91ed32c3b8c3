"""What a run has come to, as plain values: its stages with their recipes, its labellings, its end against the baseline.

Small enough to be kept beside tables, so that anyone can make them again without the run.
"""

import statistics
from pathlib import Path

import numpy as np

from dmt import analysis
from tools.reporting.rounds import Gone, figures
from tools.run_folder import class_names, find_labellings, find_stages
from utils.errors import UserError
from utils.files import read_json, write_json

FORMAT = 1
_OPTIONS = ("state", "train_set", "epochs", "batch_size_labeled", "batch_size_pseudo", "lr", "weight_decay", "gamma1",
            "gamma2", "on_student_win", "online", "accumulate", "val_num_steps", "batch_size_labeling", "no_aug")
RECIPE_KEYS = _OPTIONS + (
    "backbone", "output_stride", "aspp_branches", "input_format", "crop", "test_size", "test_by", "background", "ignore", "dataset",
    "precision", "classes", "validation_list", "first_weights", "label_ratio", "ple", "beta", "ple_background",
    "no_conflict_reduction", "previous_statistics")  # everything that ``recipe`` may say
_STAGE_KEYS = {"name", "round", "arm", "miou", "iou", "step", "steps", "checkpoint_sha256", "split", "split_id", "seed",
               "recipe"}
_VERSIONS = ("python", "torch", "torchvision", "numpy", "opencv", "gpu", "processors", "threads", "commit")


def summarize(run, exp=None):
    """The summary of the finished stages of a run folder: a dict of plain values that JSON keeps.

    ``exp`` chooses an experiment where the folder holds several. Raises ``UserError`` when it holds no finished stage.
    """
    run = Path(run)
    stages = choose_experiment(find_stages(run), run, exp)
    rows = [_stage_row(stage) for stage in stages]
    names = {row["name"] for row in rows}
    labellings = [labelling for labelling in find_labellings(run) if labelling.manifest and labelling.name in names]
    rounds = {labelling.round: looked_at(run, [one for one in labellings if one.round == labelling.round])
              for labelling in labellings}
    environment = stages[-1].environment
    return {"format": FORMAT, "run": run.resolve().name, "parent": run.resolve().parent.name,
            "dataset": rows[0]["recipe"].get("dataset"), "classes": class_names(stages)[0],
            "environment": {name: environment[name] for name in _VERSIONS if environment.get(name) is not None},
            "stages": rows, "labellings": [_labelling_row(labelling, rounds[labelling.round])
                                           for labelling in labellings],
            "agreement": {str(number + 1): round_agreement(figures_) for number, figures_ in sorted(rounds.items())
                          if figures_ and figures_["between"]},
            "ensemble": ensemble(run, rows), **outcome(rows)}


def ensemble(run, rows):
    """mIoU of both arms of the last round together (a fraction), where ``main.py --state=3`` has tested them, or None.

    It counts where the test was of just these checkpoints, under the papers' protocol: one scale, no flip.
    """
    last = max((row["round"] for row in rows if row["round"] is not None), default=0)
    wanted = {row["checkpoint_sha256"] for row in rows if row["round"] == last}
    for path in sorted(Path(run).glob("*-test.json")):
        test = read_json(path)
        try:
            protocol, results = test["protocol"], test["results"]
            tested = {network["sha256"] for network in test["networks"].values()}
            if (tested == wanted and len(results) == 3
                    and (protocol["kind"], protocol["scales"], protocol["flip"]) == ("papers", [1.0], False)):
                return next(result["miou"] for name, result in results.items() if "+" in name)
        except (KeyError, TypeError, AttributeError):  # some other file of that name
            continue
    return None


def read_summary(path):
    """The summary in a file that ``write_summary`` wrote. Raises ``UserError`` for any other file."""
    try:
        summary = read_json(path)
        whole = (summary["format"] == FORMAT and isinstance(summary["run"] + summary["parent"], str)
                 and all(_STAGE_KEYS <= stage.keys() and isinstance(stage["recipe"], dict)
                         and isinstance(stage["miou"], (int, float)) for stage in summary["stages"])
                 and all({"name", "round", "labeled_after", "right_after"} <= row.keys() for row in summary["labellings"])
                 and "dataset" in summary)
    except (UserError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise UserError(f"{path} is no summary of a run; give a run folder, or a file that --summary wrote")
    return summary


def write_summary(path, summary):
    """Write the summary to ``path``."""
    write_json(path, summary)


def choose_experiment(stages, run, exp=None):
    """The stages of one experiment and those without a round.

    An experiment is what stands in front of ``__pROUND--ARM``. Raises ``UserError`` when the folder holds several with
    rounds and none is chosen.
    """
    known = sorted({stage.exp for stage in stages if stage.exp})
    with_rounds = sorted({stage.exp for stage in stages if stage.round})
    if exp is not None and exp not in known:
        raise UserError(f"{run} holds no experiment {exp}; it holds {', '.join(known) or 'none'}")
    if exp is None and len(with_rounds or known) > 1:
        raise UserError(f"{run} holds several experiments ({', '.join(with_rounds or known)}); choose one with --exp")
    chosen = exp or (with_rounds or known or [None])[0]
    return [stage for stage in stages if stage.exp in (chosen, None)]


def looked_at(run, labellings):
    """The figures of a round that the report has kept (see ``tools.reporting.rounds``), or None."""
    try:
        return figures(Path(run) / "report", labellings, [], None, 0)
    except Gone:
        return None


def _stage_row(stage):
    end = next(iter(reversed(stage.lines("end"))), {})
    options = stage.options
    return {"name": stage.name, "round": stage.round, "arm": stage.arm, "miou": stage.miou, "iou": stage.iou,
            "step": stage.result.get("step"), "steps": stage.steps,
            "seconds": None if stage.seconds is None else round(stage.seconds, 1),
            "peak_memory_mb": end.get("peak_memory_mb"), "gpu_peak_memory_mb": end.get("gpu_peak_memory_mb"),
            "checkpoint_sha256": stage.result.get("checkpoint_sha256"), "split": _text(options.get("train_set")),
            "split_id": _text(options.get("sets_id")), "seed": options.get("seed"), "recipe": recipe(stage)}


def recipe(stage):
    """Every choice that a training's result depends on but the split id, the seeds and where files lie: a flat dict.

    What is off (None, False) is left out, so that recordings of older versions can be compared.
    """
    fingerprint, options = stage.fingerprint, stage.options
    spec, network = fingerprint.get("dataset") or {}, fingerprint.get("network") or options
    values = {name: options.get(name) for name in _OPTIONS}
    values.update({name: network.get(name) for name in ("backbone", "output_stride", "aspp_branches", "input_format")})
    values.update({name: spec.get(name) for name in ("crop", "test_size", "test_by", "background", "ignore")})
    values.update(dataset=spec.get("name", stage.config.get("dataset")), precision=fingerprint.get("precision"),
                  classes=len(spec.get("class_names", ())) or None)
    lists = fingerprint.get("lists") or {}
    if lists.get("validation_names"):
        values["validation_list"] = lists["validation_names"][:12]
    if not stage.round:
        values["first_weights"] = fingerprint.get("start") or "ImageNet's"
    values.update(_rules(fingerprint.get("pseudo_labels")))
    return {name: value for name, value in values.items() if value is not None and value is not False}


def _rules(manifest):
    """The rules by which the labels of a training were made; those of PLE only where it took part."""
    if not manifest:
        return {}
    rules = manifest.get("rules") or {}
    values = {"label_ratio": rules.get("ratio"), "ple": bool(manifest.get("previous"))}
    if values["ple"]:
        values.update(beta=rules.get("beta"), ple_background=rules.get("background"),
                      no_conflict_reduction=rules.get("conflict_reduction") is False,
                      previous_statistics=rules.get("previous_statistics"))
    return values


def _labelling_row(labelling, round_figures):
    manifest = labelling.manifest
    shares = manifest["labeled_share"]
    row = {"name": labelling.name, "round": labelling.round, "arm": labelling.arm, "ratio": manifest["rules"]["ratio"],
           "enhanced": bool(manifest["previous"]), "images": manifest["images"], "pruned": labelling.pruned,
           "labeled_before": shares["before"], "labeled_after": shares["after"], "changed": shares["changed"],
           "seconds": labelling.timing.get("seconds"), "right_before": None, "right_after": None}
    if round_figures and labelling.arm in round_figures["arms"]:
        row.update(arm_figures(round_figures["arms"][labelling.arm]), looked_at=round_figures["images"])
    return row


def arm_figures(arm):
    """A few numbers of one arm from a round's figures: right shares, outcomes of PLE, what was forgotten and learnt."""
    values = {f"right_{when}": number(analysis.share(sum(arm[when]["right"]), sum(arm[when]["compared"])))
              for when in ("before", "after")}
    if arm["changes"] is not None:
        pixels = int(np.sum(arm["changes"]))
        values["outcomes"] = {name: count / pixels for name, count in analysis.outcomes(arm["changes"]).items()}
    if arm["memory"] is not None:
        memory = np.sum(arm["memory"], axis=0)
        values.update(forgotten=number(analysis.forgotten(memory)), learnt=number(analysis.learnt(memory)))
    return values


def round_agreement(round_figures):
    """Share of the pixels on which the two arms of a round agree."""
    between = round_figures["between"]
    return number(analysis.share(sum(between["same"]), sum(between["first"])))


def outcome(rows):
    """The last round's arms, and the supervised baseline: an arm with a round 0 alone, in a run that has rounds.

    ``rows`` are the stages of a summary. Keys: rounds, final, baseline, gain.
    """
    named = [row for row in rows if row["round"] is not None]
    last = max((row["round"] for row in named), default=0)
    if not last:
        return {"rounds": 0, "final": None, "baseline": None, "gain": None}
    final = [row for row in named if row["round"] == last]
    arms = {row["arm"] for row in named if row["round"]}
    baseline = next((row for row in named if row["arm"] not in arms), None)
    mean = statistics.mean(row["miou"] for row in final)
    best = max(final, key=lambda row: row["miou"])
    steps = {arm: sum(row["steps"] or 0 for row in named if row["arm"] == arm) for arm in sorted(arms)}
    return {"rounds": last,
            "final": {"mean": mean, "best": best["miou"], "best_stage": best["name"], "steps": steps},
            "baseline": baseline and {"miou": baseline["miou"], "stage": baseline["name"], "steps": baseline["steps"]},
            "gain": mean - baseline["miou"] if baseline else None}


def number(value):
    """A float for JSON: None instead of NaN."""
    return None if np.isnan(value) else float(value)


def _text(value):
    return None if value is None else str(value)
