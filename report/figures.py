"""The figures of a run, drawn by matplotlib as SVG files: name.svg in the folder of figures, where there is something.

Each fits a phone at its own size, has text as text, and is the same bytes again. Colours of lines and text are those of
a light page; ``report.page`` puts the page's own in their place.
"""

import itertools
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from report import analysis
from report.colors import BAD, GOOD, INK, LINE, NEW, NEW_WRONG, SERIES, SUPERVISED
from report.summary import labelling_rows
from utils.errors import UserError
from utils.files import replacing

_WIDTH = 344  # points, which are pixels on the page
_CELL = 30, 20  # width and height of a cell of a heat map
_KEEP_ALL = 1.1e-5  # just above the threshold of a class with next to no pixels
_MARKERS = "osD^v"
_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "figures", "text.parse_math": False, "font.size": 10,
          "font.sans-serif": ["DejaVu Sans"], "xtick.major.size": 0, "ytick.major.size": 0, "axes.titlesize": 10.5,
          "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.edgecolor": INK,
          "axes.titlecolor": INK, "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
          "axes.grid": True, "axes.axisbelow": True, "grid.color": LINE, "legend.frameon": False,
          "lines.linewidth": 1.8, "lines.markersize": 5, "lines.solid_joinstyle": "round",
          "figure.constrained_layout.use": True}


def draw(run, folder):
    """Draw every figure of the ``report.run.Run`` into ``folder``; those of an earlier report are removed."""
    for path in Path(folder).glob("*.svg"):
        path.unlink()
    with matplotlib.rc_context(_STYLE):
        for name, figure in _figures(run):
            if figure is not None:
                _save(figure, Path(folder) / f"{name}.svg")


def draw_methods(rows, path):
    """Draw the mIoU over the rounds into the SVG file ``path``: a line for each method, a level one for the baseline.

    ``rows`` are those of ``report.tables.rows_of``; runs are averaged. The baseline of a split is its first supervised
    row. The background is white, for the file is shown as it is. Raises ``UserError`` where no run has rounds.
    """
    lines, baselines, splits = [], {}, set()
    for (dataset, split, method, _), row in rows.groupby(["dataset", "split", "method", "arms"], sort=False):
        points = list(pd.DataFrame(list(row.rounds)).mean().items())
        if points:
            lines.append((dataset, split, method, points))
            splits.add((dataset, split))
        elif method.startswith("supervised"):
            baselines.setdefault((dataset, split), (method, row.miou.mean()))
    if not lines:
        raise UserError("--figure: none of these runs has rounds")
    last = max(points[-1][0] for *_, points in lines)
    lines += [(*split, method, [(0, value), (last, value)]) for split, (method, value) in baselines.items()
              if split in splits]
    colors = itertools.cycle((*SERIES, NEW, INK))
    with matplotlib.rc_context(_STYLE):
        figure = _lines("mIoU after each round, in percent", "round (0: supervised)", [
            (method if len(splits) == 1 else f"{dataset} {split}: {method}", points,
             SUPERVISED if method.startswith("supervised") else next(colors), method.startswith("supervised"))
            for dataset, split, method, points in lines], rounds=())
        figure.set_size_inches(1.5 * _WIDTH / 72, (215 + 10 * len(lines)) / 72)
        _save(figure, Path(path), transparent=False)


def _save(figure, path, transparent=True):
    with replacing(path, durable=False) as temporary:
        figure.savefig(temporary, format="svg", transparent=transparent, metadata={
            "Date": None, "Creator": None, "Title": figure.get_label()})


def _figures(run):
    yield "miou", _miou(run)
    yield "validation", _curve(run, "Validation mIoU in percent", "validation", "miou", 100)
    yield "loss", _curve(run, "Loss", "train", "loss", 1)
    yield "weight", _curve(run, "Mean weight of a pixel", "train", "mean_weight", 1)
    yield "disagreement", _curve(run, "Pixels on which the student disagrees, in percent", "train",
                                 "disagreeing_share", 100, first=1)
    yield "student-wins", _curve(run, "Of these, pixels that the student wins, in percent", "train",
                                 "student_wins_share", 100, first=1)
    rows = labelling_rows(run)
    yield "ple", _ple([row for row in rows if row["enhanced"] and "outcomes" in row])
    yield "forgetting", _rounds("Forgetting: points of IoU below the best before", run, {
        arm: [(number, np.nanmean(values)) for number, values in _forgetting(run, arm) if not np.isnan(values).all()]
        for arm in run.arms})
    yield "forgotten", _rounds("Pixels forgotten, in percent of those that were right", run, {
        arm: [(row["round"], 100 * row["forgotten"]) for row in rows
              if row["arm"] == arm and row.get("forgotten") is not None] for arm in run.arms})
    yield "agreement", _lines("Pixels that both arms predict alike, in percent", "after round", [("agree", [
        (number - 1, 100 * look["agreement"]) for number, look in sorted(run.looks.items())
        if look["agreement"] is not None], NEW, False)], rounds=())
    for arm in run.arms:
        yield f"classes-{arm}", _classes(run, arm)
        yield f"labels-{arm}", _labels(run, arm)
        yield f"ple-{arm}", _ple_of_classes(run, arm)
        yield f"forgetting-{arm}", _forgetting_of_classes(run, arm)


# --- lines and bars -------------------------------------------------------------------------------------------------


def _lines(title, x_label, series, starts=(), rounds=None):
    """Lines: (name, points (x, y), colour, whether dashed); ``starts`` are (x, text) of vertical lines.

    ``rounds``: numbers on the axis beside those of the points, where x is not a step.
    """
    series = [line for line in series if line[1]]
    if not series:
        return None
    figure = Figure((_WIDTH / 72, 215 / 72), label=title)
    axes = figure.subplots(subplot_kw={"title": title})
    for x, text in starts:
        axes.axvline(x, color=LINE, linestyle=":", zorder=0)
        axes.text(x, 1, f" {text}", transform=axes.get_xaxis_transform(), va="top", fontsize=8)
    for place, (name, points, color, dashed) in enumerate(series):
        few = len(points) <= 12 and not dashed  # a single one would not be seen without its mark
        axes.plot(*zip(*points), color=color, label=name, linestyle="--" if dashed else "-",
                  marker=_MARKERS[place % len(_MARKERS)] if few else None)
    axes.set_xlabel(x_label)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if rounds is not None:
        axes.set_xticks(sorted({*rounds, *(x for _, points, *_ in series for x, _ in points)}))
    figure.legend(loc="outside lower center", ncols=3 if len(series) < 5 else 2)
    return figure


def _color(run, arm):
    return SERIES[run.arms.index(arm) % len(SERIES)] if arm in run.arms else SUPERVISED


def _miou(run):
    last, alone = max(run.plan.get("rounds") or 0, run.last_round, 1), run.supervised and 100 * run.supervised[0]
    return _rounds("Validation mIoU after each round, in percent", run, {
        arm: [(stage.round, 100 * stage.miou) for stage in run.of_arm(arm) if stage.result] for arm in run.arms},
        "round (0: supervised)", [("supervised alone", [(0, alone), (last, alone)], SUPERVISED, True)] if alone else [],
        range(last + 1))


def _rounds(title, run, arms, x_label="round", more=(), rounds=()):
    """Lines over the rounds: arm -> points, and ``more`` series."""
    return _lines(title, x_label, [(f"arm {arm}", points, _color(run, arm), False) for arm, points in arms.items()]
                  + [*more], rounds=rounds)


def _curve(run, title, kind, key, factor, first=0):
    """A metric over the steps of all rounds from the ``first`` on, one after the other."""
    series, starts = [], {}
    for arm in dict.fromkeys([*run.arms, *(stage.arm for stage in run.stages if stage.arm)]):
        points, offset = [], 0
        for stage in (stage for stage in run.of_arm(arm) if stage.round >= first):
            own = [(offset + line["step"], factor * line[key]) for line in stage.lines(kind)
                   if line.get(key) is not None]
            if own and arm == run.arms[0]:
                starts[offset] = stage.round
            points, offset = points + own, offset + (stage.steps or 0)
        alone = arm not in run.arms
        series.append(("supervised alone" if alone else f"arm {arm}", points, _color(run, arm),
                       alone and len(points) > 1))
    return _lines(title, "training step, " + ("rounds 1 and later" if first else "all rounds"), series,
                  starts.items() if len(starts) > 1 else ())


def _ple(rows):
    """What PLE changed in each round, in percent of all pixels of known truth: to the right what helps."""
    parts = {"mended": to_rgba(GOOD), "newly right": to_rgba(NEW), "error removed": to_rgba(GOOD, 0.5),
             "spoilt": to_rgba(BAD), "newly wrong": to_rgba(NEW_WRONG), "dropped": to_rgba(BAD, 0.5)}
    if not rows:
        return None
    shares = 100 * pd.DataFrame([row["outcomes"] for row in rows], [
        f"round {row['round'] + 1}, {row['arm']}" for row in rows])[list(parts)]
    shares[list(analysis.WORSE)] *= -1
    title = "PLE: for the worse (left), for the better (right), %"
    figure = Figure((_WIDTH / 72, (94 + 19 * len(rows)) / 72), label=title)
    axes = figure.subplots(subplot_kw={"title": title})
    shares.plot.barh(stacked=True, color=parts, width=0.7, legend=False, ax=axes)
    for names, align in ((analysis.BETTER, "left"), (analysis.WORSE, "right")):
        for place, end in enumerate(shares[list(names)].sum(axis=1)):
            axes.text(end, place, f" {abs(end):.1f} ", ha=align, va="center", fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.14)
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside lower left", ncols=3, fontsize=9)
    return figure


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
    widths = [max(len(labels), 7 * len(heading) / _CELL[0]) for heading, labels, *_ in groups]
    width = 20 + 6.5 * max(map(len, shown)) + (sum(widths) + 0.35 * len(groups)) * _CELL[0]
    figure = Figure((width / 72, (46 + len(names) * _CELL[1]) / 72), label=title)
    subplots = figure.subplots(1, len(groups), squeeze=False, sharey=True, width_ratios=widths)[0]
    for axes, span, (heading, labels, columns, digits, top) in zip(subplots, widths, groups):
        _cells(axes, np.array(columns, np.float64).T, digits, top)
        axes.set_title(heading, fontsize=10, fontweight="bold")
        axes.set_xticks(np.arange(len(labels)) + 0.5, labels)
        axes.xaxis.tick_top()
        axes.set(xlim=(0, span), ylim=(len(names), 0))
        axes.set_yticks(np.arange(len(names)) + 0.5, shown)
        axes.grid(False)
        axes.spines[:].set_visible(False)
    return figure


def _cells(axes, values, digits, top):
    diverging, known = top == "diverging", values[~np.isnan(values)]
    strongest = top if isinstance(top, (int, float)) else np.abs(known).max(initial=0) or 1
    mesh = axes.pcolormesh(np.ma.masked_invalid(values), cmap="RdBu_r" if diverging else "viridis",
                           vmin=-strongest if diverging else 0, vmax=strongest, edgecolor="none", clip_on=False)
    for (row, column), value in np.ndenumerate(values):
        if np.isnan(value):
            axes.text(column + 0.5, row + 0.52, "–", ha="center", va="center")
            continue
        light = np.dot(mesh.to_rgba(value)[:3], (0.299, 0.587, 0.114)) > 0.55
        text = f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−") if value < 1000 else ">999"  # no −0
        axes.text(column + 0.5, row + 0.52, text, ha="center", va="center", color="black" if light else "white",
                  fontsize=9)


def _classes(run, arm):
    stages = [stage for stage in run.of_arm(arm) if stage.result and stage.iou]
    groups = [(f"arm {arm}, after round", [str(stage.round) for stage in stages],
               100 * np.array([stage.iou for stage in stages], np.float64), 0, 100)]
    if run.supervised and run.supervised[1]:
        groups.append(("alone", [""], 100 * np.array([run.supervised[1]], np.float64), 0, 100))
    return _heat_map(f"IoU in percent of every class after each round, arm {arm}", run.classes, groups)


def _labels(run, arm):
    """Thresholds, coverage and accuracy of an arm's pseudo labels, class by class and round by round."""
    made = [one for one in run.made if one.arm == arm]
    thresholds = [[value if value > _KEEP_ALL else None for value in one.manifest["thresholds"]] for one in made]
    labels, labelled, right = [], [], []
    for one, counted in ((one, run.counted(one)) for one in made if run.counted(one)):
        for when, mark in (("before", ""), ("after", "′"))[: 1 + one.enhanced]:
            labels.append(f"{one.round + 1}{mark}")
            labelled.append(100 * analysis.share(counted[when]["labelled"], counted["predicted"]))
            right.append(100 * analysis.share(counted[when]["right"], counted[when]["compared"]))
    groups = [("threshold", [str(one.round + 1) for one in made], thresholds, 2, 1),
              ("labelled, %", labels, labelled, 0, 100)]
    if not np.isnan(right).all():
        groups.append(("right, %", labels, right, 0, 100))
    return _heat_map(f"Thresholds, labelled and right shares of the labels of arm {arm}", run.classes, groups)


def _ple_of_classes(run, arm):
    rounds = {str(one.round + 1): np.array(run.counted(one)["changes"]) for one in run.made
              if one.arm == arm and one.enhanced and run.counted(one).get("changes")}
    return _heat_map(f"What PLE did to the pixels of each class, arm {arm}, in percent", run.classes, [
        (name, list(rounds), [100 * analysis.share(counts[:, *analysis.OUTCOMES[name]], counts.sum(axis=(1, 2)))
                              for counts in rounds.values()], 1, None)
        for name in (*analysis.BETTER, *analysis.WORSE)])


def _forgetting_of_classes(run, arm):
    forgetting = dict(_forgetting(run, arm))
    memory = {str(one.round): 100 * analysis.forgotten(run.counted(one)["memory"]) for one in run.made
              if one.arm == arm and run.counted(one).get("memory")}
    return _heat_map(f"Forgetting of every class after each round, arm {arm}", run.classes, [
        ("IoU: best before − now", [*map(str, forgetting)], [*forgetting.values()], 1, "diverging"),
        ("pixels forgotten, %", [*memory], [*memory.values()], 1, None)])


def _forgetting(run, arm):
    """(round, forgetting of the classes in points of IoU) from the second finished stage on."""
    stages = [stage for stage in run.of_arm(arm) if stage.result and stage.iou]
    if len(stages) > 1:
        values = 100 * analysis.forgetting([stage.iou for stage in stages])
        yield from ((stage.round, row) for stage, row in zip(stages[1:], values[1:]))
