"""What a run has come to, as plain values of a few kilobytes: stages with their recipes, labellings, the last round.

Kept beside tables (benchmarks/results/runs), it makes them again without the run.
"""

import statistics

import numpy as np

from report import analysis
from utils.errors import UserError
from utils.files import read_json

FORMAT = 1
_OPTIONS = ("state", "train_set", "epochs", "batch_size_labeled", "batch_size_pseudo", "lr", "weight_decay", "gamma1",
            "gamma2", "on_student_win", "online", "accumulate", "val_num_steps", "batch_size_labeling", "no_aug")
_NETWORK = ("backbone", "output_stride", "aspp_branches", "input_format")
_SPEC = ("crop", "test_size", "test_by", "background", "ignore")
RECIPE_KEYS = (*_OPTIONS, *_NETWORK, *_SPEC, "dataset", "precision", "classes", "validation_list", "first_weights",
               "label_ratio", "ple", "beta", "ple_background", "no_conflict_reduction",
               "previous_statistics")  # all that ``recipe`` may say
VERSIONS = ("python", "torch", "torchvision", "numpy", "opencv", "gpu", "processors", "threads", "commit")


def summarize(run):
    """The summary of the finished stages of a ``report.run.Run``: a dict of plain values that JSON keeps."""
    rows = [_stage_row(stage) for stage in run.finished]
    names, environment = {row["name"] for row in rows}, run.finished[-1].environment
    place = run.folder.resolve()
    return {"format": FORMAT, "run": place.name, "parent": place.parent.name,
            "dataset": rows[0]["recipe"].get("dataset"), "classes": run.classes,
            "environment": {name: environment[name] for name in VERSIONS if environment.get(name) is not None},
            "stages": rows, "strangers": run.strangers(),
            "labellings": [row for row in labelling_rows(run) if row["name"] in names],
            "agreement": {str(number): look["agreement"] for number, look in run.looks.items()
                          if look["agreement"] is not None},
            "ensemble": _ensemble(run), **outcome(rows)}


def read_summary(path):
    """The summary in a file that ``tools.tables --summary`` wrote. Raises ``UserError`` for any other file."""
    try:
        summary = read_json(path)
        if summary["format"] == FORMAT:
            return summary
    except (UserError, KeyError, TypeError):
        pass
    raise UserError(f"{path} is no summary of a run; give a run folder, or a file that --summary wrote")


def recipe(stage):
    """Every choice that a training's result depends on but the split id, the seeds and where files lie: a flat dict.

    What is off (None, False) is left out, so that recordings of older versions can be compared.
    """
    fingerprint, options = stage.fingerprint, stage.options
    spec, network = fingerprint.get("dataset") or {}, fingerprint.get("network") or options
    values = {name: source.get(name) for names, source in ((_OPTIONS, options), (_NETWORK, network), (_SPEC, spec))
              for name in names}
    values.update(dataset=spec.get("name", stage.config.get("dataset")), precision=fingerprint.get("precision"),
                  classes=len(spec.get("class_names", ())) or None,
                  validation_list=((fingerprint.get("lists") or {}).get("validation_names") or "")[:12] or None)
    if not stage.round:
        values["first_weights"] = fingerprint.get("start") or "ImageNet's"
    labels = fingerprint.get("pseudo_labels")
    if labels:
        rules = labels.get("rules") or {}
        values.update(label_ratio=rules.get("ratio"), ple=bool(labels.get("previous")))
        if values["ple"]:
            values.update(beta=rules.get("beta"), ple_background=rules.get("background"),
                          no_conflict_reduction=rules.get("conflict_reduction") is False,
                          previous_statistics=rules.get("previous_statistics"))
    return {name: value for name, value in values.items() if value is not None and value is not False}


def method_of(stages):
    """The name of the method whose stages (rows of a summary) these are."""
    recipes = [row["recipe"] for row in stages if row["round"]]
    if any("online" in recipe for recipe in recipes):
        return "online"
    if len({row["arm"] for row in stages}) == 1:
        name = "DST" if any(recipe.get("gamma1") or recipe.get("gamma2") for recipe in recipes) else "CBST"
    else:
        name = next((recipe["on_student_win"] for recipe in recipes if "on_student_win" in recipe), "DMT")
    if any("ple" in recipe for recipe in recipes):
        name += "+PLE"
        if any("no_conflict_reduction" in recipe for recipe in recipes):
            name += " without conflict reduction"
        if any(recipe.get("previous_statistics") == "batch" for recipe in recipes):
            name += " with batch statistics"
    return name


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
    mean, best = statistics.mean(row["miou"] for row in final), max(final, key=lambda row: row["miou"])
    steps = {arm: sum(row["steps"] or 0 for row in named if row["arm"] == arm) for arm in sorted(arms)}
    return {"rounds": last,
            "final": {"mean": mean, "best": best["miou"], "best_stage": best["name"], "steps": steps},
            "baseline": baseline and {"miou": baseline["miou"], "stage": baseline["name"], "steps": baseline["steps"]},
            "gain": mean - baseline["miou"] if baseline else None}


def _ensemble(run):
    """mIoU of both arms of the last round together (a fraction), where ``main.py --state=3`` has tested them, or None.

    It counts where the test was of just these checkpoints, under the papers' protocol: one scale, no flip.
    """
    wanted = {stage.checkpoint_sha256 for stage in run.finals}
    for path in sorted(run.folder.glob("*-test.json")):
        try:
            test = read_json(path)
            protocol, results = test["protocol"], test["results"]
            tested = {network["sha256"] for network in test["networks"].values()}
            if (tested == wanted and len(results) == 3
                    and (protocol["kind"], protocol["scales"], protocol["flip"]) == ("papers", [1.0], False)):
                return next(result["miou"] for name, result in results.items() if "+" in name)
        except (KeyError, TypeError, AttributeError):  # some other file of that name
            continue
    return None


def _stage_row(stage):
    split, split_id = (stage.options.get(name) for name in ("train_set", "sets_id"))
    return {"name": stage.name, "round": stage.round, "arm": stage.arm, "miou": stage.miou, "iou": stage.iou,
            "step": stage.result.get("step"), "steps": stage.steps,
            "seconds": None if stage.seconds is None else round(stage.seconds, 1),
            **{name: stage.end.get(name) for name in ("peak_memory_mb", "gpu_peak_memory_mb")},
            "checkpoint_sha256": stage.checkpoint_sha256, "split": None if split is None else str(split),
            "split_id": None if split_id is None else str(split_id), "seed": stage.options.get("seed"),
            "recipe": recipe(stage)}


def labelling_rows(run):
    """What there is to say of every finished labelling of the ``report.run.Run``, by round: a list of dicts."""
    rows = []
    for made in run.made:
        shares, arm = made.manifest["labeled_share"], run.counted(made)
        row = {"name": made.name, "round": made.round, "arm": made.arm, "ratio": made.manifest["rules"]["ratio"],
               "enhanced": made.enhanced, "images": made.manifest["images"], "labeled_before": shares["before"],
               "labeled_after": shares["after"], "changed": shares["changed"], "seconds": made.timing.get("seconds"),
               "right_before": None, "right_after": None}
        if arm:
            row.update({f"right_{when}": _number(analysis.share(sum(arm[when]["right"]), sum(arm[when]["compared"])))
                        for when in ("before", "after")}, looked_at=run.looks[made.round + 1]["images"])
            if arm["changes"] is not None:
                outcomes = analysis.outcomes(arm["changes"])
                row["outcomes"] = {name: count / sum(outcomes.values()) for name, count in outcomes.items()}
            if arm["memory"] is not None:
                row["forgotten"] = _number(analysis.forgotten(np.sum(arm["memory"], axis=0)))
        rows.append(row)
    return rows


def shares(row, names):
    """The ``names`` of one of ``labelling_rows`` in percent as texts; a dash for what PLE did where there was none."""
    return [percent(row[name] if row["enhanced"] or name.endswith("before") else None) for name in names]


def percent(share):
    """A share in percent as text; a dash for None."""
    return "-" if share is None else f"{100 * share:.2f}"


def _number(value):
    """A float for JSON: None instead of NaN."""
    return None if np.isnan(value) else float(value)
