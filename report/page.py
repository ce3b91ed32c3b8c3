"""The page of a run: what ``page.html.jinja`` shows of it and of the figures that are drawn. Nothing is drawn here."""

import base64
import re
import statistics
import time
from pathlib import Path

import jinja2
from markupsafe import Markup

from report.colors import ON_PAGE
from report.summary import VERSIONS, labelling_rows, method_of, percent, recipe, shares
from utils.files import write_text

_HERE = Path(__file__).parent
_SECTIONS = {  # name -> title, and how the names of its figures begin
    "classes": ("Classes", "classes-"), "training": ("Training", "loss"), "pseudo-labels": ("Pseudo labels", "labels-"),
    "ple": ("What PLE changed", "ple"), "forgetting": ("Forgetting", "forg"),
    "arms": ("Student and teacher", "student-wins")}


def write_page(run, folder):
    """Write ``index.html`` of the ``report.run.Run`` with the figures in ``folder/figures``; returns its path."""
    figures, path = Path(folder) / "figures", Path(folder) / "index.html"
    drawn = {path.stem: _embedded(path.read_text(encoding="utf-8")) for path in sorted(figures.glob("*.svg"))}
    sections = {name: title for name, (title, start) in _SECTIONS.items()
                if any(figure.startswith(start) for figure in drawn)}
    if any(look["panels"] for look in run.looks.values()):
        sections["pictures"] = "Pictures"
    sections.update(stages="Stages", configuration="Configuration")
    rounds = [{"arm": stage.arm, "round": stage.round, "recipe": recipe(stage)} for stage in run.stages if stage.round]
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(_HERE), autoescape=True, trim_blocks=True,
                                     undefined=jinja2.StrictUndefined)
    environment.filters.update(percent=percent, duration=duration, data_url=lambda name: _data_url(figures / name))
    write_text(path, environment.get_template("page.html.jinja").render(
        css=Markup((_HERE / "page.css").read_text(encoding="utf-8")), run=run, drawn=drawn, sections=sections,
        method=rounds and method_of(rounds).partition("+PLE"), progress=progress(run), stages=_stages(run),
        labels=[(row["round"] + 1, row["arm"], f"{row['ratio']:g}", *shares(
            row, ("labeled_before", "labeled_after", "changed", "right_before", "right_after")))
            for row in labelling_rows(run)],
        now=time.strftime("%Y-%m-%d %H:%M:%S"),
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


def _data_url(path):
    kind = "image/jpeg" if path.suffix == ".jpg" else "image/png"
    return path.is_file() and Markup(f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}")


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


# --- rows of tables -----------------------------------------------------------------------------------------------


def _stages(run):
    """A row for each training and labelling: name, mIoU, steps, time, images a second, memory, GPU memory."""
    rows = []
    for stage in run.stages:
        speed = [line["images_per_second"] for line in stage.lines("train") if line.get("images_per_second")]
        rows.append((stage.name, percent(stage.miou), stage.steps or "-", duration(stage.seconds),
                     statistics.median(speed) if speed else None, stage.end))
    for made in (made for made in run.labellings if made.timing):
        seconds = made.timing["seconds"]
        rows.append((f"labels by {made.name}", "-", "-", duration(seconds), made.timing["images"] / seconds,
                     made.timing))
    return [(*row, "-" if speed is None else f"{speed:.1f}", *(
        "-" if end.get(name) is None else f"{end[name]:,.0f} MB" for name in ("peak_memory_mb", "gpu_peak_memory_mb")))
        for *row, speed, end in rows]


def _configuration(run):
    """Every choice that results depend on, by arm, in round 0 and in the rounds; versions, and the last command."""
    groups = {}
    for stage in run.stages:
        name = f"{'rounds' if stage.round else 'round 0'}, {stage.arm or stage.name}"
        for key, value in {**recipe(stage), "seed": stage.options.get("seed")}.items():
            text = " x ".join(map(str, value)) if isinstance(value, list) else str(value)
            groups.setdefault(name, {}).setdefault(key, {})[text] = None  # in their order, each once
    rows = [(key.replace("_", " "), *(", ".join(group.get(key, "-")) for group in groups.values()))
            for key in dict.fromkeys(key for group in groups.values() for key in group)]
    last = next((stage.environment for stage in reversed(run.stages) if stage.environment), {})
    return {"configuration": (("option", *groups), rows), "command": " ".join(last.get("command") or ()),
            "versions": [(key, last[key]) for key in VERSIONS if last.get(key) is not None]}
