"""The charts of the report, each from the content of a run to SVG text, or None where there is nothing to draw."""

import numpy as np

from dmt import analysis
from tools.reporting.charts import Columns, Series, bar_chart, heat_map, line_chart, thinned

BASELINE = 2  # number of its colour; the arms have 0 and 1
KEEP_ALL = 1.1e-5  # just above the threshold of a class with next to no pixels


def color_of(content, arm):
    """The number of the colour of an arm."""
    index = content.arms.index(arm)
    return index if index < BASELINE else index + 1


def result(content):
    """mIoU of every arm after each round, and the supervised baseline."""
    series = []
    for arm in content.arms:
        points = [(stage.round, 100 * stage.miou) for stage in content.of_arm(arm) if stage.result]
        series.append(Series(f"arm {arm}", points, color_of(content, arm)))
    last = max((content.planned or 0, content.last_round, 1))
    if content.supervised:
        value = 100 * content.supervised.miou
        series.append(Series("supervised", [(0, value), (last, value)], BASELINE, dashed=True, marks=False))
    title = "Validation mIoU of each arm after each round" + ", and of the supervised baseline" * bool(content.supervised)
    return line_chart(title, series, "round (0: supervised)", "mIoU in percent", range(last + 1), x_names="round",
                      x_range=(0, last), height=240)


def classes_of(content, arm):
    """IoU of every class after each round of an arm, with the baseline beside it."""
    stages = [stage for stage in content.of_arm(arm) if stage.result and stage.iou]
    groups = [Columns(f"arm {arm}, after round", [str(stage.round) for stage in stages],
                      _columns([stage.iou for stage in stages], 100), top=100)]
    beside = content.supervised
    if beside and beside.iou:
        groups.append(Columns("sup.", [beside.arm or ""], _columns([beside.iou], 100), top=100))
    return heat_map(f"IoU in percent of every class after each round, arm {arm}", content.classes,
                    [group for group in groups if group.labels])


def curves(content):
    """Training curves over all rounds: {name of the figure: (SVG, caption)}."""
    found = {}
    for name, kind, key, factor, label, caption in (
            ("validation", "validation", "miou", 100, "mIoU in percent", "Validation mIoU while training."),
            ("loss", "train", "loss", 1, "loss", "Training loss: in round 0 plain cross-entropy, then weighted by the "
             "agreement of student and teacher."),
            ("weight", "train", "mean_weight", 1, "mean weight", "Mean weight of a pixel in the loss (labelled pixels "
             "have 1): how much of the pseudo labels the student takes."),
            ("learning-rate", "train", "lr", 1, "learning rate", "Learning rate: every round has its own schedule."),
            ("throughput", "train", "images_per_second", 1, "images a second", "Speed of the training steps, without "
             "validation and saving.")):
        series, rules = [], []
        for arm in content.arms:
            points, ends = _over_rounds(content.of_arm(arm), kind, key, factor)
            series.append(Series(f"arm {arm}", points, color_of(content, arm), marks=False))
            rules = rules or ends
        if content.baseline:
            points, _ = _over_rounds([content.baseline], kind, key, factor)
            series.append(Series("supervised", points, BASELINE, dashed=True, marks=False))
        svg = line_chart(caption, [line for line in series if line.points], "training step, all rounds", label,
                         rules=rules, from_zero=kind == "train")
        if svg:
            found[name] = svg, caption
    return found


def student(content):
    """How often student and teacher disagree, and how often the student wins: two charts with captions."""
    found = {}
    for name, key, caption in (
            ("disagreement", "disagreeing_share", "Pixels with a label on which the student decides otherwise than its "
             "teacher, in percent."),
            ("student-wins", "student_wins_share", "Of these, pixels that the student won: it is surer than its teacher. In "
             "percent.")):
        series, rules = [], []
        for arm in content.arms:
            points, ends = _over_rounds(content.of_arm(arm), "train", key, 100, mutual=True)
            series.append(Series(f"arm {arm}", points, color_of(content, arm), marks=False))
            rules = rules or ends
        svg = line_chart(caption, [line for line in series if line.points], "training step, rounds 1 and later",
                         "percent", rules=rules, from_zero=True)
        if svg:
            found[name] = svg, caption
    return found


def _over_rounds(stages, kind, key, factor, mutual=False):
    """(points, [(first step, round)]) of a metric of consecutive stages, their steps counted on."""
    points, ends, offset = [], [], 0
    for stage in stages:
        if mutual and not stage.round:
            continue
        own = [(offset + line["step"], factor * line[key]) for line in stage.lines(kind)
               if isinstance(line.get(key), (int, float))]
        if own:
            ends.append((offset, str(stage.round)))
            points += thinned(own)
        offset += stage.steps or 0
    return points, ends if len(stages) > 1 else []


def labels_of(content, arm):
    """Thresholds, coverage and accuracy of an arm's pseudo labels, class by class and round by round."""
    made = content.labels_of(arm)
    rounds = list(made)
    values = [[value if value > KEEP_ALL else None for value in made[number].manifest["thresholds"]] for number in rounds]
    thresholds = Columns("threshold", [str(number) for number in rounds], _columns(values), digits=2, top=1)
    groups = [thresholds]
    looked = [(number, content.looks[number]["arms"][arm]) for number in rounds if _has(content, number, arm)]
    for heading, values_of in (("labelled, %", _coverage), ("right, %", _right)):
        labels, columns = [], []
        for number, figures in looked:
            for when in ("before", "after") if made[number].manifest["previous"] else ("before",):
                labels.append(f"{number}{'′' if when == 'after' else ''}")
                columns.append([100 * value for value in values_of(figures, when)])
        if any(not np.isnan(value) for column in columns for value in column):
            groups.append(Columns(heading, labels, _columns(columns), top=100))
    after = ", before and after PLE" if any(labelling.manifest["previous"] for labelling in made.values()) else ""
    return heat_map(f"Thresholds, labelled share and right share of the pseudo labels of arm {arm}, for each class and "
                    f"round{after}", content.classes, groups)


def _coverage(figures, when):
    return analysis.share(figures[when]["labelled"], figures["predicted"])


def _right(figures, when):
    return analysis.share(figures[when]["right"], figures[when]["compared"])


def ple(content):
    """What PLE changed in each round: for the better to the right, for the worse to the left."""
    parts = (("mended", 0, "", 1), ("newly right", 3, "", 1), ("error removed", 0, "pale", 1),
             ("spoilt", 1, "", -1), ("newly wrong", 5, "", -1), ("dropped", 1, "pale", -1))
    rows = []
    for number, arm, figures in _enhanced(content):
        if figures["changes"] is not None:
            counts, pixels = analysis.outcomes(figures["changes"]), int(np.sum(figures["changes"]))
            rows.append((f"round {number}, {arm}", [(color, side * 100 * counts[name] / pixels, pattern)
                                                    for name, color, pattern, side in parts]))
    return bar_chart("Pixels that PLE changed for the better (right) and for the worse (left), in percent of all pixels "
                     "of known truth", rows, "%", [(color, pattern, name) for name, color, pattern, _ in parts])


def ple_unjudged(content):
    """What PLE changed, where there is no truth: labels added, replaced and dropped."""
    parts = (("newly labelled", 0, "", 1), ("other label", 3, "", 1), ("dropped", 1, "", -1))
    rows = [(f"round {number}, {arm}", [(color, side * 100 * figures["merge"][name] / figures["pixels"], pattern)
                                        for name, color, pattern, side in parts])
            for number, arm, figures in _enhanced(content)]
    return bar_chart("Pixels that PLE labelled, relabelled and dropped, in percent of all pixels", rows, "%",
                     [(color, pattern, name) for name, color, pattern, _ in parts])


def ple_of_classes(content, arm):
    """What PLE did to the pixels of each true class, in percent of them."""
    rounds = [(number, figures) for number, of, figures in _enhanced(content) if of == arm and figures["changes"]]
    groups = []
    for name in ("kept", "mended", "newly right", "spoilt", "dropped", "newly wrong"):
        before, after = analysis.OUTCOMES[name]
        columns = []
        for _, figures in rounds:
            counts = np.array(figures["changes"])
            columns.append(100 * analysis.share(counts[:, before, after], counts.sum(axis=(1, 2))))
        groups.append(Columns(name, [str(number) for number, _ in rounds], _columns(columns),
                              digits=0 if name == "kept" else 1, top=100 if name == "kept" else None))
    return heat_map(f"What PLE did to the pixels of each class, arm {arm}, in percent of the class's pixels",
                    content.classes, groups)


def forgetting(content):
    """Mean forgetting over the classes after each round, of every arm, in points of IoU."""
    series = []
    for arm in content.arms:
        rounds, values = _forgetting(content, arm)
        points = [(number, float(np.nanmean(row))) for number, row in zip(rounds, values) if not np.isnan(row).all()]
        series.append(Series(f"arm {arm}", points, color_of(content, arm)))
    return line_chart("Forgetting: best earlier IoU minus present IoU, mean over the classes, after each round",
                      [line for line in series if line.points], "round", "points of IoU", _whole(series), x_names="round")


def forgotten(content):
    """Share of the unlabelled pixels right after a round that are wrong after the next one."""
    series = []
    for arm in content.arms:
        points = [(number - 1, 100 * float(analysis.forgotten(np.sum(figures["memory"], axis=0))))
                  for number, figures in _remembered(content, arm)]
        series.append(Series(f"arm {arm}", points, color_of(content, arm)))
    return line_chart("Pixels of the unlabelled images that were right after the round before and are wrong after this "
                      "one, in percent of those that were right", [line for line in series if line.points], "round",
                      "percent", _whole(series), from_zero=True, x_names="round")


def forgetting_of_classes(content, arm):
    """Forgetting of every class after each round, of IoU and of single pixels."""
    rounds, values = _forgetting(content, arm)
    groups = [Columns("IoU: best before − now", [str(number) for number in rounds], _columns(values), digits=1,
                      diverging=True)]
    memory = [(number, np.array(figures["memory"])) for number, figures in _remembered(content, arm)]
    for heading, function in (("pixels forgotten, %", analysis.forgotten), ("learnt, %", analysis.learnt)):
        groups.append(Columns(heading, [str(number - 1) for number, _ in memory],
                              _columns([100 * function(counts) for _, counts in memory]), digits=1))
    return heat_map(f"Forgetting of every class after each round, arm {arm}", content.classes, groups)


def agreement(content):
    """Share of the pixels that both arms predict alike after each round."""
    points = []
    for number, figures in content.looks.items():
        between = figures["between"]
        if between:
            points.append((number - 1, 100 * sum(between["same"]) / max(1, sum(between["first"]))))
    series = [Series("agree", points, 3)] if points else []
    return line_chart("Pixels of the unlabelled images that both arms predict alike, in percent", series, "round",
                      "percent", _whole(series), x_names="round")


def who_is_right(content):
    """Who is right where the arms differ: after each round, in percent of the pixels of known truth."""
    rows, names = [], ()
    for number, figures in content.looks.items():
        between = figures["between"]
        if between and between["changes"]:
            counts = np.sum(between["changes"], axis=0)
            first, second = between["arms"]
            right, wrong = analysis.RIGHT, analysis.WRONG
            rows.append((f"after round {number - 1}", [
                (color, 100 * float(analysis.share(counts[cell], counts.sum())), "")
                for color, cell in ((3, (right, right)), (0, (right, wrong)), (1, (wrong, right)), (2, (wrong, wrong)))]))
            names = ((3, "", "both right"), (0, "", f"only {first}"), (1, "", f"only {second}"), (2, "", "none"))
    return bar_chart("Pixels on which both arms are right, one of them, or none, after each round, in percent", rows,
                     "%", names, digits=0)


def times(content):
    """Minutes in each stage's training loop and in each labelling."""
    rows = []
    for stage in content.stages:
        if stage.seconds:
            color = BASELINE if stage is content.baseline or stage.arm is None else color_of(content, stage.arm)
            label = f"train {stage.round}, {stage.arm}" if stage.arm else stage.name[-14:]
            rows.append((stage.round or 0, 1, (label, [(color, stage.seconds / 60, "")])))
    for labelling in content.labellings:
        if labelling.timing.get("seconds"):
            rows.append((labelling.round + 1, 0, (f"label {labelling.round + 1}, {labelling.arm}", [
                (color_of(content, labelling.arm), labelling.timing["seconds"] / 60, "pale")])))
    return bar_chart("Time of each stage in minutes", [row for _, _, row in sorted(rows, key=lambda row: row[:2])],
                     "min")


# --- picking out --------------------------------------------------------------------------------------------------


def _columns(columns, factor=1):
    """Columns of numbers (NaN or None where there is none) as rows of plain values."""
    rows = zip(*columns)
    return [[None if value is None or np.isnan(value) else factor * float(value) for value in row] for row in rows]


def _has(content, number, arm):
    return number in content.looks and arm in content.looks[number]["arms"]


def _enhanced(content):
    """(round, arm, its figures) wherever PLE took part."""
    return [(number, arm, content.looks[number]["arms"][arm]) for number in content.looks for arm in content.arms
            if _has(content, number, arm) and content.labels_of(arm)[number].manifest["previous"]]


def _remembered(content, arm):
    """(round, figures) of an arm wherever predictions of two rounds could be compared with the truth."""
    return [(number, look["arms"][arm]) for number, look in content.looks.items()
            if _has(content, number, arm) and look["arms"][arm]["memory"]]


def _forgetting(content, arm):
    """(rounds, rows of forgetting in points) of an arm from round 1 on."""
    stages = [stage for stage in content.of_arm(arm) if stage.result and stage.iou]
    if len(stages) < 2:
        return [], []
    values = 100 * analysis.forgetting(np.array([stage.iou for stage in stages], np.float64))
    return [stage.round for stage in stages[1:]], values[1:]


def _whole(series):
    """The rounds at which any of the lines has a point."""
    return sorted({x for line in series for x, _ in line.points})
