"""The page of a run: what ``page.html.jinja`` shows of it and of the figures that are drawn. Nothing is drawn here."""

import base64
import re
import statistics
import time
from pathlib import Path

import jinja2
from markupsafe import Markup

from report.colors import ON_PAGE
from report.summary import VERSIONS, method_of, recipe
from utils.files import write_text

_HERE = Path(__file__).parent
_METHODS = {"CBST": "Self-training on class-balanced pseudo labels (CBST)",
            "DST": "Self-training with the dynamic loss (DST)", "online": "Self-training on labels made on the fly",
            "naive": "Mutual training, every pseudo label weighted (naive)",
            "flip": "Mutual training that learns its own label where it wins (flip)", "DMT": "Dynamic mutual training"}
_SECTIONS = {  # name -> title, and how the names of its figures begin
    "classes": ("Classes", "classes-"), "training": ("Training", "loss"), "pseudo-labels": ("Pseudo labels", "labels-"),
    "ple": ("What PLE changed", "ple"), "forgetting": ("Forgetting", "forg"),
    "arms": ("Student and teacher", "student-wins")}
_PANELS = {"disagree": ("The arms disagree most", "the arms differ on {share:.1f} % of its pixels"),
           "mended": ("PLE mended most", "PLE mended or newly labelled rightly {share:.1f} % of the pixels, labels of "
                      "arm {arm}"),
           "spoilt": ("PLE spoilt most", "PLE spoilt or dropped right labels on {share:.1f} % of the pixels, labels of "
                      "arm {arm}"),
           "changed": ("PLE changed most", "PLE changed {share:.1f} % of the pixels, labels of arm {arm}")}


def write_page(run, folder):
    """Write ``index.html`` of the ``report.run.Run`` with the figures in ``folder/figures``; returns its path."""
    figures, path = Path(folder) / "figures", Path(folder) / "index.html"
    drawn = {path.stem: _embedded(path.read_text(encoding="utf-8")) for path in sorted(figures.glob("*.svg"))}
    pictures = _pictures(run, figures)
    sections = {name: title for name, (title, start) in _SECTIONS.items()
                if any(figure.startswith(start) for figure in drawn)}
    sections.update({"pictures": "Pictures"} if pictures else {}, stages="Stages", configuration="Configuration")
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(_HERE), autoescape=True, trim_blocks=True,
                                     undefined=jinja2.StrictUndefined)
    write_text(path, environment.get_template("page.html.jinja").render(
        css=Markup((_HERE / "page.css").read_text(encoding="utf-8")), run=run, drawn=drawn, sections=sections,
        lead=_lead(run), method=_method(run), progress=progress(run), unfinished=_unfinished(run), labels=_labels(run),
        looked_at=_looked_at(run), pictures=pictures, stages=_stages(run), now=time.strftime("%Y-%m-%d %H:%M:%S"),
        legend=[*zip(run.classes, run.dataset.get("palette", ())), ("no label", (224, 224, 192))],
        **_configuration(run)))
    return path


def _embedded(svg):
    """A file of matplotlib's as part of a page: its colours follow light and dark."""
    svg = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>", "", svg[svg.index("<svg "):], flags=re.S)
    title = re.search(r"<title>(.*?)</title>", svg)[1].replace('"', "&quot;")
    for color, variable in ON_PAGE.items():
        svg = svg.replace(color, variable)
    return Markup(f'<svg role="img" aria-label="{title}" ' + svg.removeprefix("<svg "))


def progress(run):
    """How far the chain is, such as "10 of 22 stages, about 3 h 20 min left"."""
    done, due, left = run.progress()
    return f"{done}{f' of {due}' if due else ''} stages" + (f", about {duration(left)} left" if left else "")


def duration(seconds):
    """Seconds in words: 43 s, 12 min, 3 h 20 min; a dash for None."""
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


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
        gain = 100 * (statistics.mean(stage.miou for stage in run.finals) - run.supervised[0])
        text += (f" Trained on the labels alone: {_percent(run.supervised[0])} ({run.supervised[2]}); the mean of the "
                 f"arms is {abs(gain):.2f} points {'above' if gain >= 0 else 'below'} it.")
    return text


def _method(run):
    """What the run did, in words."""
    stages = [{"arm": stage.arm, "round": stage.round, "recipe": recipe(stage)} for stage in run.stages if stage.round]
    if not stages:
        return "Supervised training"
    name, _, further = method_of(stages).partition("+PLE")
    enhanced = any(made.enhanced for made in run.labellings)
    return _METHODS[name] + (f" with pseudo label enhancement{further}" if enhanced else "")


def _unfinished(run):
    """(name, how far it is) of every stage that has begun."""
    states = []
    for stage in (stage for stage in run.stages if not stage.result):
        total = next((line["total_steps"] for line in stage.lines("start")), None)
        text = f"step {stage.steps or 0} of {total}" if total else "has begun"
        text += f", best mIoU so far {_percent(stage.miou)} %" if stage.miou is not None else ""
        states.append((stage.name, text + ("" if stage.running else " (stopped)")))
    return states + [(f"arm {made.arm}", "labels the unlabelled images" + ("" if made.running else " (stopped)"))
                     for made in run.labellings if not made.manifest]


# --- pseudo labels and pictures -----------------------------------------------------------------------------------


def _looked_at(run):
    if not run.looks:
        return ""
    look = list(run.looks.values())[-1]
    images = "all" if look["images"] == look["of"] else f"{look['images']} evenly spaced ones of"
    return f"The figures below are counted on {images} {look['of']} unlabelled images" + (
        "." if look["truth"] else ", which have no masks: nothing can be said about what is right.")


def _labels(run):
    """A row for each labelling: round, arm, ratio, labelled, after PLE, changed, right, after PLE."""
    rows = []
    for number, labellings in run.labels().items():
        for made in labellings:
            share, look = made.manifest["labeled_share"], run.looks.get(number)
            right = [sum(look["arms"][made.arm][when]["right"]) / max(sum(look["arms"][made.arm][when]["compared"]), 1)
                     if look and look["truth"] else None for when in ("before", "after")]
            after = (share["after"], share["changed"], right[0], right[1]) if made.enhanced else (
                None, None, right[0], None)
            rows.append((number, made.arm, f"{made.manifest['rules']['ratio']:g}",
                         *map(_percent, (share["before"], *after))))
    return rows


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


# --- stages and configuration -------------------------------------------------------------------------------------


def _stages(run):
    """A row for each training and labelling: name, mIoU, steps, time, images a second, memory, GPU memory."""
    rows = []
    for stage in run.stages:
        speed = [line["images_per_second"] for line in stage.lines("train") if line.get("images_per_second")]
        rows.append((stage.name, _percent(stage.miou), stage.steps or "-", duration(stage.seconds),
                     f"{statistics.median(speed):.1f}" if speed else "-", *_memory((stage.lines("end") or [{}])[-1])))
    for made in (made for made in run.labellings if made.timing):
        seconds = made.timing["seconds"]
        rows.append((f"labels by {made.name}", "-", "-", duration(seconds), f"{made.timing['images'] / seconds:.1f}",
                     *_memory(made.timing)))
    return rows


def _memory(values):
    found = [values.get(name) for name in ("peak_memory_mb", "gpu_peak_memory_mb")]
    return ["-" if value is None else f"{value:,.0f} MB" for value in found]


def _configuration(run):
    """Every choice that results depend on, by arm, in round 0 and in the rounds; versions, and the last command."""
    groups = {}
    for stage in run.stages:
        name = f"{'rounds' if stage.round else 'round 0'}, {stage.arm or stage.name}"
        values = {**recipe(stage), "seed": stage.options.get("seed")}
        for key, value in values.items():
            text = " x ".join(map(str, value)) if isinstance(value, list) else str(value)
            groups.setdefault(name, {}).setdefault(key, {})[text] = None  # in their order, each once
    keys = dict.fromkeys(key for group in groups.values() for key in group)
    rows = [(key.replace("_", " "), *(", ".join(group.get(key, "-")) for group in groups.values())) for key in keys]
    last = next((stage.environment for stage in reversed(run.stages) if stage.environment), {})
    return {"configuration": (("option", *groups), rows), "command": " ".join(last.get("command") or ()),
            "versions": [(key, last[key]) for key in VERSIONS if last.get(key) is not None]}


def _percent(share):
    return "-" if share is None else f"{100 * share:.2f}"
