"""The page of a run: what ``page.html.jinja`` shows of it and of the figures that are drawn. Nothing is drawn here."""

import base64
import re
import statistics
import time
from pathlib import Path

import jinja2
from markupsafe import Markup

from report.colors import ON_PAGE
from report.summary import method_of, recipe
from utils.errors import UserError
from utils.files import write_text

_HERE = Path(__file__).parent
_NOT_SHOWN = {"fingerprint", "output_dir", "data_root", "lists_dir", "pseudo_dir", "continue_from", "oldfilename",
              "exp_name", "redo", "check", "check_weights", "state",  # places, and what the stage's name says
              "labeling", "label_ratio", "increment", "background", "no_conflict_reduction",
              "previous_statistics",  # these are a labelling's
              "protocol", "window", "stride", "scales", "flip", "second_arm", "second_coco", "json"}  # and a test's
_METHODS = {"CBST": "Self-training on class-balanced pseudo labels (CBST)",
            "DST": "Self-training with the dynamic loss (DST)", "online": "Self-training on labels made on the fly",
            "naive": "Mutual training, every pseudo label weighted (naive)",
            "flip": "Mutual training that learns its own label where it wins (flip)", "DMT": "Dynamic mutual training"}
_SECTIONS = {"classes": "Classes", "training": "Training", "pseudo-labels": "Pseudo labels", "ple": "What PLE changed",
             "forgetting": "Forgetting", "arms": "The two arms", "pictures": "Pictures", "costs": "Time and memory",
             "configuration": "Configuration and versions"}
_PANELS = {"disagree": ("The arms disagree most", "the arms differ on {share:.1f} % of its pixels"),
           "mended": ("PLE mended most", "PLE mended or newly labelled rightly {share:.1f} % of the pixels, labels of "
                      "arm {arm}"),
           "spoilt": ("PLE spoilt most", "PLE spoilt or dropped right labels on {share:.1f} % of the pixels, labels of "
                      "arm {arm}"),
           "changed": ("PLE changed most", "PLE changed {share:.1f} % of the pixels, labels of arm {arm}")}


def check_writable(folder):
    """Raise ``UserError`` when the folder of the report cannot be made."""
    try:
        (Path(folder) / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be made: {error.strerror or error}; give another one with --out") \
            from error


def write_page(run, folder):
    """Write ``index.html`` of the ``report.run.Run`` with the figures in ``folder/figures``; returns its path."""
    figures = Path(folder) / "figures"
    drawn = {path.stem: _embedded(path.read_text(encoding="utf-8")) for path in figures.glob("*.svg")}
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(_HERE), autoescape=True, trim_blocks=True,
                                     undefined=jinja2.StrictUndefined)
    path = Path(folder) / "index.html"
    values = {**_head(run), **_progress(run), **_labels(run), **_configuration(run), "costs": _costs(run),
              "disagreements": _disagreements(run), "pictures": _pictures(run, figures), "arms": run.arms}
    write_text(path, environment.get_template("page.html.jinja").render(
        css=Markup((_HERE / "page.css").read_text(encoding="utf-8")), drawn={**dict.fromkeys(_names(run)), **drawn},
        sections=_sections(run, drawn, values), strangers=run.strangers(), folder=run.folder.resolve().name, **values))
    return path


def _names(run):
    """Every figure that the page may show."""
    alone = ("miou validation loss weight learning-rate throughput disagreement student-wins ple ple-changes "
             "forgetting forgotten agreement who-is-right time")
    of_arms = [f"{name}-{arm}" for name in ("classes", "labels", "ple", "forgetting") for arm in run.arms]
    return [*alone.split(), *of_arms]


def _sections(run, drawn, values):
    """Name -> title of the sections that have something to show."""
    missing = set() if run.labellings else {"pseudo-labels"}
    missing |= set() if values["enhanced"] else {"ple"}
    missing |= set() if {"forgetting", "forgotten"} & drawn.keys() else {"forgetting"}
    missing |= set() if {"agreement", "who-is-right", "disagreement", "student-wins"} & drawn.keys() else {"arms"}
    missing |= set() if values["pictures"] else {"pictures"}
    alone = {"arms": "Student and teacher"} if len(run.arms) < 2 else {}
    return {name: title for name, title in {**_SECTIONS, **alone}.items() if name not in missing}


def _embedded(svg):
    """A file of matplotlib's as part of a page: its colours follow light and dark."""
    svg = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>", "", svg[svg.index("<svg "):], flags=re.S)
    title = re.search(r"<title>(.*?)</title>", svg)[1].replace('"', "&quot;")
    for color, variable in ON_PAGE.items():
        svg = svg.replace(color, variable)
    return Markup(f'<svg role="img" aria-label="{title}" ' + svg.removeprefix("<svg "))


# --- the beginning ------------------------------------------------------------------------------------------------


def _head(run):
    exp, folder = run.arms and run.stages[0].exp, run.folder.resolve().name
    first = run.stages[0]
    network = first.fingerprint.get("network") or first.options
    return {
        "title": f"{exp}: {folder}" if exp and folder not in exp else exp or folder, "lead": _lead(run),
        "what": f"{_method(run)} on {run.dataset.get('name') or first.config.get('dataset', 'unknown data')}, split "
                f"{run.split or first.options.get('train_set')}, split id {first.options.get('sets_id')}, network "
                f"{network.get('backbone', '-')}. mIoU in percent over all classes of the validation images.",
        "dashed": _dashed(run), "numbers": _numbers(run), "now": time.strftime("%Y-%m-%d %H:%M:%S")}


def _lead(run):
    """One or two sentences with the result."""
    if not run.finals:
        return "No stage has finished yet."
    named = " and ".join(f"arm {stage.arm} {_percent(stage.miou)}" for stage in run.finals)
    if not run.last_round:
        return f"After the supervised round 0: mIoU {named}."
    planned = run.plan.get("rounds")
    text = f"After round {run.last_round}{f' of {planned}' if planned else ''}: mIoU {named}."
    if run.supervised:
        gain, one = _gain(run), len(run.finals) == 1
        who = "the same network reaches" if run.supervised[2] or one else "the same networks reach a mean of"
        text += (f" Trained on the labels alone, {who} {_percent(run.supervised[0])}: "
                 f"{f'arm {run.finals[0].arm}' if one else 'the mean of the arms'} is {abs(gain):.2f} points "
                 f"{'above' if gain >= 0 else 'below'} it.")
    return text


def _gain(run):
    return 100 * (statistics.mean(stage.miou for stage in run.finals) - run.supervised[0])


def _method(run):
    """What the run did, in words."""
    stages = [{"arm": stage.arm, "round": stage.round, "recipe": recipe(stage)} for stage in run.stages if stage.round]
    if not stages:
        return "Supervised training"
    name, _, further = method_of(stages).partition("+PLE")
    enhanced = any(made.enhanced for made in run.labellings)
    return _METHODS[name] + (f" with pseudo label enhancement{further}" if enhanced else "")


def _dashed(run):
    """What the dashed line of the first chart is, or why there is none."""
    if run.supervised is None:
        if run.baseline or not run.last_round:
            return ""
        return "Nothing in this run saw all labels and no other images: --baseline RUN draws such a run beside."
    whose = f"arm {run.supervised[2]}" if run.supervised[2] else "the arms' round 0"
    return (f"Dashed: training on the labels alone ({whose}). Where the lines rise above it, the unlabelled images "
            "taught something that the labels alone did not.")


def _numbers(run):
    """Large numbers with their names: (name, number, unit, "", good or bad)."""
    entries = [(f"mIoU of arm {stage.arm}, round {stage.round}", _percent(stage.miou), "%", "") for stage in run.finals]
    if run.supervised and run.last_round and run.finals:
        gain, whose = _gain(run), "mean of the arms" if len(run.finals) > 1 else f"arm {run.finals[0].arm}"
        entries.append(("supervised on the labels alone", _percent(run.supervised[0]), "%", ""))
        entries.append((f"{whose} against it", f"{gain:+.2f}".replace("-", "−"), "points",
                        "good" if gain >= 0 else "bad"))
    return entries + [(stage.name.rpartition("__")[2], _percent(stage.miou), "%", "") for stage in run.finished
                      if stage.round is None]


def _progress(run):
    """How far a chain is that runs or has stopped."""
    done, due, left = run.progress()
    states = []
    for stage in (stage for stage in run.stages if not stage.result):
        text = f"step {stage.steps or 0} of {stage.total_steps}" if stage.total_steps else "has begun"
        text += f", best mIoU so far {_percent(stage.miou)} %" if stage.miou is not None else ""
        states.append((stage.name, text + ("" if stage.running else " (stopped)")))
    for made in (made for made in run.labellings if not made.manifest):
        states.append((f"arm {made.arm}", "labels the unlabelled images" + ("" if made.running else " (stopped)")))
    unfinished = bool(states) or done < due
    return {"running": run.alive and (unfinished or not due), "unfinished": unfinished, "done": done, "due": due,
            "left": left and duration(left), "states": states}


def duration(seconds):
    """Seconds in words: 43 s, 12 min, 3 h 20 min; a dash for None."""
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


# --- pseudo labels, arms and pictures -----------------------------------------------------------------------------


def _labels(run):
    enhanced, looks, text = any(made.enhanced for made in run.labellings), list(run.looks.values()), ""
    head = ["round", "arm", "ratio", "labelled, %", "after PLE", "changed", "right, %", "after PLE"]
    rows = [[number, arm, *_label_row(made, run.looks.get(number, {}).get("arms", {}).get(arm))]
            for arm in run.arms for number, made in run.labels_of(arm).items()]
    if looks:
        images, of = looks[-1]["images"], looks[-1]["of"]
        text = (f"The figures below are counted on {'all' if images == of else f'{images} evenly spaced ones of'} {of} "
                "unlabelled images" + ("." if looks[-1]["truth"] else
                                       ", which have no masks: nothing can be said about what is right."))
    shown = range(8) if enhanced else (0, 1, 2, 3, 6)
    return {"enhanced": enhanced, "looked_at": text, "gone": run.gone, "labels": {
        "head": [head[index] for index in shown], "rows": [[row[index] for index in shown] for row in sorted(rows)]}}


def _label_row(made, look):
    share = made.manifest["labeled_share"]
    right = [_percent(sum(look[when]["right"]) / sum(look[when]["compared"])) if look and sum(look[when]["compared"])
             else "-" for when in ("before", "after")]
    return (f"{made.manifest['rules']['ratio']:g}", _percent(share["before"]),
            *((_percent(share["after"]), _percent(share["changed"])) if made.enhanced else "--"), right[0],
            right[1] if made.enhanced else "-")


def _disagreements(run):
    look = next((look for _, look in sorted(run.looks.items(), reverse=True) if look["between"]), None)
    if not look or not look["between"]["pairs"]:
        return None
    total = sum(look["between"]["first"])
    return {"round": look["round"] - 1,
            "head": [*(f"arm {arm} sees" for arm in look["between"]["arms"]), "% of all pixels"],
            "rows": [(run.classes[a], run.classes[b], f"{100 * count / total:.2f}")
                     for a, b, count in look["between"]["pairs"]]}


def _pictures(run, folder):
    """What the page shows of the panels of every round, the last one first."""
    rounds = []
    for number, look in sorted(run.looks.items(), reverse=True):
        panels = [{"title": _PANELS[panel["kind"]][0], "image": panel["image"],
                   "text": _PANELS[panel["kind"]][1].format(share=100 * panel["share"], arm=panel["arm"]),
                   "pictures": [(title, _data_url(folder / name)) for title, name in panel["files"]]}
                  for panel in look["panels"]]
        rounds += [{"round": number, "panels": panels}] if panels else []
    return rounds


def _data_url(path):
    kind = "image/jpeg" if path.suffix == ".jpg" else "image/png"
    return path.is_file() and Markup(f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}")


# --- time, memory and configuration -------------------------------------------------------------------------------


def _costs(run):
    rows = []
    for stage in run.stages:
        end = next(iter(reversed(stage.lines("end"))), {})
        speed = [line["images_per_second"] for line in stage.lines("train") if line.get("images_per_second")]
        rows.append((stage.name, stage.steps or "-", duration(stage.seconds),
                     f"{statistics.median(speed):.1f}" if speed else "-", *_memory(end)))
    for made in run.labellings:
        seconds = made.timing.get("seconds")
        rows.append((f"labels by {made.name}", "-", duration(seconds),
                     f"{made.timing['images'] / seconds:.1f}" if seconds else "-", *_memory(made.timing)))
    return rows


def _memory(values):
    found = [values.get(name) for name in ("peak_memory_mb", "gpu_peak_memory_mb")]
    return ["-" if value is None else f"{value:,.0f} MB" for value in found]


def _configuration(run):
    stages = [stage for stage in run.stages if stage.config]
    groups = {}
    for stage in stages:
        groups.setdefault("rounds" if stage.round else "round 0", []).append(stage)
    mixed = any(stage.config.get("mixed_precision") for stage in stages)
    rows = []
    for key in sorted({key for stage in stages for key in stage.config} - _NOT_SHOWN):
        cells = [_values(members, lambda stage, key=key: stage.config.get(key)) for members in groups.values()]
        if (mixed or not key.startswith("amp_")) and any(cell not in ("-", "False") for cell in cells):
            rows.append((key.replace("_", " "), *cells))
    for name, key in (("label ratio", "ratio"), ("PLE: beta", "beta"), ("PLE: background class", "background"),
                      ("PLE: conflict reduction", "conflict_reduction"),
                      ("PLE: statistics of the previous network", "previous_statistics")):
        rules = [made.manifest["rules"] for made in run.labellings if made.enhanced or made.manifest and key == "ratio"]
        values = dict.fromkeys(str(of_one[key]) for of_one in rules if key in of_one)  # a default may not be said
        rows += [(name, *["-"] * ("round 0" in groups), ", ".join(values))] if values else []
    versions = [(key, _values(run.stages, lambda stage, key=key: stage.environment.get(key))) for key in (
        "commit", "python", "torch", "torchvision", "numpy", "opencv", "gpu", "processors", "threads", "platform")]
    command = next((found for stage in reversed(run.stages) if (found := stage.environment.get("command"))), ())
    colors = [tuple(map(int, color)) for color in run.dataset.get("palette") or ()]
    return {"configuration": {"head": ("option", *groups), "rows": rows}, "command": " ".join(map(str, command)),
            "versions": [row for row in versions if row[1] != "-"],
            "legend": [*zip(run.classes, colors), ("no label", (224, 224, 192))]}


def _values(stages, value_of):
    """The value that all these stages have, or every value with its arms."""
    found = {}
    for stage in stages:
        value = value_of(stage)
        text = "-" if value is None else " x ".join(map(str, value)) if isinstance(value, list) else str(value)
        found.setdefault(text, set()).add(stage.arm or stage.name)
    if len(found) == 1:
        return next(iter(found))
    if sum(map(len, found.values())) == len(set.union(*found.values())):
        return ", ".join(f"{text} ({' '.join(sorted(arms))})" for text, arms in found.items())
    return ", ".join(found)


def _percent(share):
    return f"{100 * share:.2f}"
