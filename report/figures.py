"""The figures of a run, drawn by matplotlib as SVG files: name.svg in the folder of figures, where there is something.

Each fits a phone at its own size, has text as text, and is the same bytes again. Colours of lines and text are those of
a light page; ``report.page`` puts the page's own in their place.
"""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from report import analysis
from report.colors import BAD, GOOD, INK, LINE, NEW, NEW_WRONG, SERIES, SUPERVISED
from utils.files import replacing

_WIDTH = 344  # points, which are pixels on the page
_CELL = 30, 20  # width and height of a cell of a heat map
_KEEP_ALL = 1.1e-5  # just above the threshold of a class with next to no pixels
_MARKERS = "osD"
_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "figures", "text.parse_math": False, "font.size": 10,
          "font.sans-serif": ["DejaVu Sans"], "xtick.major.size": 0, "ytick.major.size": 0, "axes.titlesize": 10.5,
          "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.edgecolor": INK,
          "axes.titlecolor": INK, "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
          "axes.grid": True, "axes.axisbelow": True, "grid.color": LINE, "legend.frameon": False,
          "lines.linewidth": 1.8, "lines.markersize": 5, "lines.solid_joinstyle": "round",
          "figure.constrained_layout.use": True}


def draw(run, folder):
    """Draw every figure of the ``report.run.Run`` into ``folder``; those of an earlier report are removed."""
    folder = Path(folder)
    for path in folder.glob("*.svg"):
        path.unlink()
    with matplotlib.rc_context(_STYLE):
        for name, figure in _figures(run):
            if figure is not None:
                with replacing(folder / f"{name}.svg", durable=False) as path:
                    figure.savefig(path, format="svg", transparent=True, metadata={
                        "Date": None, "Creator": None, "Title": figure.get_label()})


def _figures(run):
    yield "miou", _miou(run)
    for name, kind, key, factor, title in (
            ("validation", "validation", "miou", 100, "Validation mIoU in percent"),
            ("loss", "train", "loss", 1, "Loss"), ("weight", "train", "mean_weight", 1, "Mean weight of a pixel"),
            ("learning-rate", "train", "lr", 1, "Learning rate"),
            ("throughput", "train", "images_per_second", 1, "Images a second")):
        yield name, _curve(run, title, kind, key, factor)
    yield "disagreement", _curve(run, "Pixels on which the student disagrees, in percent", "train", "disagreeing_share",
                                 100, mutual=True)
    yield "student-wins", _curve(run, "Of these, pixels that the student wins, in percent", "train",
                                 "student_wins_share", 100, mutual=True)
    yield "ple", _ple(run)
    yield "ple-changes", _ple_unjudged(run)
    yield "forgetting", _rounds("Forgetting: points of IoU below the best before", [
        (arm, [(number, np.nanmean(values)) for number, values in _forgetting(run, arm) if not np.isnan(values).all()])
        for arm in run.arms], run)
    yield "forgotten", _rounds("Pixels forgotten, in percent of those that were right", [
        (arm, [(number - 1, 100 * analysis.forgotten(np.sum(look["memory"], axis=0)))
               for number, look in _looks(run, arm) if look["memory"]]) for arm in run.arms], run)
    yield "agreement", _agreement(run)
    yield "who-is-right", _who_is_right(run)
    yield "time", _times(run)
    for arm in run.arms:
        yield f"classes-{arm}", _classes(run, arm)
        yield f"labels-{arm}", _labels(run, arm)
        yield f"ple-{arm}", _ple_of_classes(run, arm)
        yield f"forgetting-{arm}", _forgetting_of_classes(run, arm)


def color_of(run, arm):
    """The colour of an arm's lines and bars."""
    return SERIES[run.arms.index(arm) % len(SERIES)]


# --- lines ------------------------------------------------------------------------------------------------------------


def _lines(title, series, x_label, starts=(), from_zero=False, rounds=None):
    """Lines: (name, points (x, y), colour, whether dashed); ``starts`` are (x, text) of vertical lines.

    ``rounds``: the numbers of rounds on the axis, where x is not a step.
    """
    series = [line for line in series if line[1]]
    if not series:
        return None
    figure, axes = _axes(title, 215)
    for x, text in starts:
        axes.axvline(x, color=LINE, linestyle=":", zorder=0)
        axes.text(x, 1, f" {text}", transform=axes.get_xaxis_transform(), va="top", fontsize=8)
    for place, (name, points, color, dashed) in enumerate(series):
        few = len(points) <= 12 and not dashed  # a single one would not be seen without its mark
        axes.plot(*zip(*points), color=color, label=name, linestyle="--" if dashed else "-",
                  marker=_MARKERS[place % len(_MARKERS)] if few else None)
    axes.set_xlabel(x_label)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if rounds:
        axes.set_xticks(rounds)
    if from_zero:
        axes.set_ylim(bottom=min(0, *(y for line in series for _, y in line[1])))
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def _axes(title, height):
    figure = Figure((_WIDTH / 72, height / 72), label=title)
    return figure, figure.subplots(subplot_kw={"title": title})


def _miou(run):
    last = max(run.plan.get("rounds") or 0, run.last_round, 1)
    series = [(f"arm {arm}", [(stage.round, 100 * stage.miou) for stage in run.of_arm(arm) if stage.result],
               color_of(run, arm), False) for arm in run.arms]
    if run.supervised:
        alone = 100 * run.supervised[0]
        series.append(("supervised alone", [(0, alone), (last, alone)], SUPERVISED, True))
    return _lines("Validation mIoU after each round, in percent", series, "round (0: supervised)",
                  rounds=range(last + 1))


def _rounds(title, arms, run):
    rounds = sorted({number for _, points in arms for number, _ in points})
    return _lines(title, [(f"arm {arm}", points, color_of(run, arm), False) for arm, points in arms], "round",
                  rounds=rounds)


def _curve(run, title, kind, key, factor, mutual=False):
    """A metric over the steps of all rounds; ``mutual``: of those after round 0."""
    series, starts = [], []
    for arm in run.arms:
        points, own = _over_rounds([stage for stage in run.of_arm(arm) if stage.round or not mutual], kind, key, factor)
        series.append((f"arm {arm}", points, color_of(run, arm), False))
        starts = starts or own
    if run.baseline and not mutual:
        points, _ = _over_rounds([run.baseline], kind, key, factor)
        series.append(("supervised alone", points, SUPERVISED, len(points) > 1))
    return _lines(title, series, "training step, " + ("rounds 1 and later" if mutual else "all rounds"), starts,
                  from_zero=kind == "train")


def _over_rounds(stages, kind, key, factor):
    points, starts, offset = [], [], 0
    for stage in stages:
        own = [(offset + line["step"], factor * line[key]) for line in stage.lines(kind)
               if isinstance(line.get(key), (int, float))]
        starts += [(offset, stage.round)] if own else []
        points += own
        offset += stage.steps or 0
    return points, starts if len(stages) > 1 else []


def _agreement(run):
    points = [(number - 1, 100 * sum(look["between"]["same"]) / max(1, sum(look["between"]["first"])))
              for number, look in run.looks.items() if look["between"]]
    return _lines("Pixels that both arms predict alike, in percent", [("agree", points, NEW, False)], "after round",
                  rounds=[number for number, _ in points])


# --- bars -------------------------------------------------------------------------------------------------------------


def _bars(title, rows, names, digits=1):
    """Rows of bars (label, [values]), one after the other from the axis: those above 0 to the right, others to the
    left. ``names``: (name, colour, opacity) of the values.
    """
    if not rows:
        return None
    figure, axes = _axes(title, 62 + 19 * len(rows) + 16 * -(-len(names) // 3))
    values = np.array([values for _, values in rows], np.float64).reshape(len(rows), -1)
    places = np.arange(len(rows))
    ends = {1: np.zeros(len(rows)), -1: np.zeros(len(rows))}
    for column, (name, color, opacity) in zip(values.T, names):
        side = -1 if (column < 0).any() else 1
        axes.barh(places, column, left=ends[side], color=color, alpha=opacity, label=name, height=0.7)
        ends[side] = ends[side] + column
    for side, align in ((1, "left"), (-1, "right")):
        for place, end in enumerate(ends[side]):
            if side > 0 or end:
                axes.text(end, place, f" {abs(end):.{digits}f} ", ha=align, va="center", fontsize=9)
    axes.set_yticks(places, [label for label, _ in rows])
    axes.invert_yaxis()
    axes.margins(x=0.14)
    axes.axvline(0, color=INK, linewidth=1)
    axes.grid(axis="y", visible=False)
    if names[0][0]:
        figure.legend(loc="outside lower left", ncols=3, fontsize=9)
    return figure


def _ple(run):
    """What PLE changed in each round, in percent of all pixels of known truth."""
    parts = (("mended", GOOD, 1, 1), ("newly right", NEW, 1, 1), ("error removed", GOOD, 0.5, 1),
             ("spoilt", BAD, 1, -1), ("newly wrong", NEW_WRONG, 1, -1), ("dropped", BAD, 0.5, -1))
    rows = []
    for number, arm, look in _enhanced(run):
        if look["changes"]:
            counts, pixels = analysis.outcomes(look["changes"]), int(np.sum(look["changes"]))
            rows.append((f"round {number}, {arm}", [side * 100 * counts[name] / pixels for name, _, _, side in parts]))
    return _bars("PLE: for the worse (left), for the better (right), %", rows, [part[:3] for part in parts])


def _ple_unjudged(run):
    """The same where there is no truth: labels added, replaced and dropped, in percent of all pixels."""
    parts = (("newly labelled", GOOD, 1, 1), ("other label", NEW, 1, 1), ("dropped", BAD, 1, -1))
    rows = [(f"round {number}, {arm}",
             [side * 100 * look["merge"][name] / look["pixels"] for name, _, _, side in parts])
            for number, arm, look in _enhanced(run) if not look["changes"]]
    return _bars("Labels that PLE added, replaced and dropped, %", rows, [part[:3] for part in parts])


def _who_is_right(run):
    rows, names = [], ()
    for number, look in run.looks.items():
        if look["between"] and look["between"]["changes"]:
            counts, (first, second) = np.sum(look["between"]["changes"], axis=0), look["between"]["arms"]
            cells = [counts[cell] for cell in ((0, 0), (0, 1), (1, 0), (1, 1))]
            rows.append((f"after round {number - 1}", 100 * analysis.share(cells, counts.sum())))
            names = (("both right", NEW, 1), (f"only {first}", color_of(run, first), 1),
                     (f"only {second}", color_of(run, second), 1), ("none", SUPERVISED, 1))
    return _bars("Who is right, in percent of the pixels", rows, names, digits=0)


def _times(run):
    """Minutes of each training and, paler, of each labelling."""
    rows = []
    for stage in run.stages:
        if stage.seconds:
            color = color_of(run, stage.arm) if stage.arm in run.arms else SUPERVISED
            label = f"train {stage.round}, {stage.arm}" if stage.arm else stage.name[-14:]
            rows.append((stage.round or 0, 1, label, stage.seconds / 60, color, 1))
    for made in run.labellings:
        if made.timing.get("seconds"):
            rows.append((made.round + 1, 0, f"label {made.round + 1}, {made.arm}", made.timing["seconds"] / 60,
                         color_of(run, made.arm), 0.5))
    rows.sort(key=lambda row: row[:2])
    values = np.diag([row[3] for row in rows]) if rows else []
    return _bars("Minutes of each stage", [(row[2], own) for row, own in zip(rows, values)],
                 [("", *row[4:]) for row in rows])


# --- heat maps --------------------------------------------------------------------------------------------------------


def _heat_map(title, names, groups):
    """Cells with their numbers in them: rows are ``names``, groups stand side by side.

    A group is (heading, labels, columns, digits, top): ``columns`` are (columns, rows) values, NaN or None where there
    is none; ``top`` is the value of the strongest colour (None: the largest; "diverging": that, with 0 in the middle).
    """
    groups = [group for group in groups if group[1]]
    if not groups or not names:
        return None
    shown = [name if len(name) <= 16 else name[:15] + "…" for name in names]
    starts, x = [], 0.0
    for heading, labels, *_ in groups:
        starts.append(x)
        x += max(len(labels), 7 * len(heading) / _CELL[0]) + 0.35
    left, above = 8 + 6.3 * max(map(len, shown)), 36
    width, height = left + x * _CELL[0], above + len(names) * _CELL[1]
    figure = Figure((width / 72, height / 72), layout="none", label=title)
    axes = figure.add_axes((left / width, 0, x * _CELL[0] / width, 1 - above / height))
    for row, name in enumerate(shown):
        axes.text(-0.15, row + 0.5, name, ha="right", va="center")
    for start, (heading, labels, columns, digits, top) in zip(starts, groups):
        values = np.array(columns, np.float64).T
        axes.text(start, -1.1, heading, va="bottom", fontweight="bold")
        for column, label in enumerate(labels):
            axes.text(start + column + 0.5, -0.2, label, ha="center", va="bottom")
        _cells(axes, start, values, digits, top)
    axes.set(xlim=(0, x), ylim=(len(names), 0))
    axes.axis("off")
    return figure


def _cells(axes, start, values, digits, top):
    diverging, known = top == "diverging", values[~np.isnan(values)]
    strongest = top if isinstance(top, (int, float)) else np.abs(known).max(initial=0) or 1
    mesh = axes.pcolormesh(start + np.arange(values.shape[1] + 1), np.arange(len(values) + 1),
                           np.ma.masked_invalid(values), cmap="RdBu_r" if diverging else "viridis",
                           vmin=-strongest if diverging else 0, vmax=strongest, edgecolor="none")
    for (row, column), value in np.ndenumerate(values):
        place = start + column + 0.5, row + 0.52
        if np.isnan(value):
            axes.text(*place, "–", ha="center", va="center")
            continue
        red, green, blue, _ = mesh.to_rgba(value)
        color = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.55 else "white"
        text = f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−") if value < 1000 else ">999"  # no −0
        axes.text(*place, text, ha="center", va="center", color=color, fontsize=9)


def _classes(run, arm):
    stages = [stage for stage in run.of_arm(arm) if stage.result and stage.iou]
    groups = [(f"arm {arm}, after round", [str(stage.round) for stage in stages],
               _percent(stage.iou for stage in stages), 0, 100)]
    if run.supervised and run.supervised[1]:
        groups.append(("alone", [run.supervised[2] or ""], _percent([run.supervised[1]]), 0, 100))
    return _heat_map(f"IoU in percent of every class after each round, arm {arm}", run.classes, groups)


def _percent(rows):
    return 100 * np.array(list(rows), np.float64)


def _labels(run, arm):
    """Thresholds, coverage and accuracy of an arm's pseudo labels, class by class and round by round."""
    made = run.labels_of(arm)
    thresholds = [[value if value > _KEEP_ALL else None for value in labelling.manifest["thresholds"]]
                  for labelling in made.values()]
    groups = [("threshold", list(map(str, made)), thresholds, 2, 1)]
    for heading, part, whole in (("labelled, %", "labelled", None), ("right, %", "right", "compared")):
        labels, columns = [], []
        for number, look in _looks(run, arm):
            for when in ("before", "after") if made[number].enhanced else ("before",):
                labels.append(f"{number}′" if when == "after" else str(number))
                of = look[when][whole] if whole else look["predicted"]
                columns.append(100 * analysis.share(look[when][part], of))
        if not np.isnan(columns).all():
            groups.append((heading, labels, columns, 0, 100))
    return _heat_map(f"Thresholds, labelled and right shares of the labels of arm {arm}", run.classes, groups)


def _ple_of_classes(run, arm):
    looks = [(str(number), np.array(look["changes"])) for number, of, look in _enhanced(run)
             if of == arm and look["changes"]]
    groups = []
    for name in ("kept", "mended", "newly right", "spoilt", "dropped", "newly wrong"):
        columns = [100 * analysis.share(counts[:, *analysis.OUTCOMES[name]], counts.sum(axis=(1, 2)))
                   for _, counts in looks]
        groups.append((name, [number for number, _ in looks], columns, *((0, 100) if name == "kept" else (1, None))))
    return _heat_map(f"What PLE did to the pixels of each class, arm {arm}, in percent", run.classes, groups)


def _forgetting_of_classes(run, arm):
    forgetting = list(_forgetting(run, arm))
    groups = [("IoU: best before − now", [str(number) for number, _ in forgetting],
               [values for _, values in forgetting], 1, "diverging")]
    memory = [(str(number - 1), np.array(look["memory"])) for number, look in _looks(run, arm) if look["memory"]]
    for heading, function in (("pixels forgotten, %", analysis.forgotten), ("learnt, %", analysis.learnt)):
        groups.append((heading, [number for number, _ in memory], [100 * function(counts) for _, counts in memory], 1,
                       None))
    return _heat_map(f"Forgetting of every class after each round, arm {arm}", run.classes, groups)


# --- picking out ------------------------------------------------------------------------------------------------------


def _looks(run, arm):
    """[(round, what was counted of the arm's labels)]."""
    return [(number, look["arms"][arm]) for number, look in sorted(run.looks.items()) if arm in look["arms"]]


def _enhanced(run):
    """[(round, arm, what was counted)] wherever PLE took part."""
    return [(number, arm, look) for number in sorted(run.looks) for arm in run.arms for of, look in _looks(run, arm)
            if of == number and run.labels_of(arm)[number].enhanced]


def _forgetting(run, arm):
    """(round, forgetting of the classes in points of IoU) from the second finished stage on."""
    stages = [stage for stage in run.of_arm(arm) if stage.result and stage.iou]
    if len(stages) > 1:
        values = 100 * analysis.forgetting([stage.iou for stage in stages])
        yield from ((stage.round, row) for stage, row in zip(stages[1:], values[1:]))
