"""The sections of the report: which charts and tables it shows, and how to read each."""

import statistics
import time
from html import escape

from tools.reporting import figures, page
from tools.reporting.progress import chain_left, duration, state_of
from tools.run_summary import recipe
from tools.tables import method_of

_SHOWN_ROUNDS = 2  # rounds whose pictures stand open; those before are folded
_NOT_SHOWN = {"fingerprint", "output_dir", "data_root", "lists_dir", "pseudo_dir", "continue_from", "oldfilename",
              "exp_name", "redo", "check", "check_weights", "state",  # places, and what the stage's name says
              "labeling", "label_ratio", "increment", "background", "no_conflict_reduction",
              "previous_statistics",  # these are a labelling's
              "protocol", "window", "stride", "scales", "flip", "second_arm", "second_coco", "json"}  # and these a test's
_METHODS = {"CBST": "Self-training on class-balanced pseudo labels (CBST)",
            "DST": "Self-training with the dynamic loss (DST)", "online": "Self-training on labels made on the fly",
            "naive": "Mutual training, every pseudo label weighted (naive)",
            "flip": "Mutual training that learns its own label where it wins (flip)", "DMT": "Dynamic mutual training"}


def write_page(content, folder, refresh=60):
    """Write the report of a ``tools.reporting.content.Content`` into ``folder``; returns the page's path."""
    out = page.Page(folder)
    running = content.alive and not content.complete()
    for section in (_classes, _curves, _labels, _ple, _forgetting, _arms, _pictures, _costs, _configuration):
        section(content, out)
    title = _title(content)
    return out.write(title, _head(content, out, title, running), refresh if running else None)


# --- the beginning ------------------------------------------------------------------------------------------------


def _title(content):
    exp, folder = content.arms and content.stages[0].exp, content.run.resolve().name
    return f"{exp}: {folder}" if exp and folder not in exp else exp or folder


def _head(content, out, title, running):
    svg = figures.result(content)
    chart = ""
    if svg:
        place = page.Page(out.folder)
        place.chart("miou", svg, "mIoU on the validation images, each stage at its best validation. " + _dashed(content))
        out._drawn.update(place._drawn)
        chart = "".join(place._body)
    lead = f'<h1>{escape(title)}</h1>{page.paragraph(_lead(content), "lead")}{page.paragraph(_what(content), "soft")}'
    entries = _numbers(content)
    hero = f'<div class="hero"><div>{page.numbers(entries) if entries else ""}</div><div>{chart}</div></div>'
    return lead + _progress(content, running) + hero


def _dashed(content):
    """What the dashed line of the first chart is, or why there is none."""
    if content.supervised is None:
        if content.baseline or not content.last_round:
            return ""
        return "Nothing in this run saw all labels and no other images: --baseline RUN draws such a run beside."
    whose = f"arm {content.supervised.arm}" if content.supervised.arm else "the arms' round 0"
    return (f"Dashed: training on the labels alone ({whose}). Where the lines rise above it, the unlabelled images taught "
            "something that the labels alone did not.")


def _lead(content):
    """One or two sentences with the result."""
    last = content.last_round
    finals = [stage for arm in content.arms if (stage := content.stage(arm, last)) and stage.result]
    if not finals:
        return "No stage has finished yet."
    named = " and ".join(f"arm {stage.arm} {_percent(stage.miou)}" for stage in finals)
    if not last:
        return f"After the supervised round 0: mIoU {named}."
    text = f"After round {last}{f' of {content.planned}' if content.planned else ''}: mIoU {named}."
    if content.supervised:
        gain, one = _gain(content, finals), len(finals) == 1
        who = "the same network reaches" if content.supervised.arm or one else "the same networks reach a mean of"
        text += (f" Trained on the labels alone, {who} {_percent(content.supervised.miou)}: "
                 f"{f'arm {finals[0].arm}' if one else 'the mean of the arms'} is {abs(gain):.2f} points "
                 f"{'above' if gain >= 0 else 'below'} it.")
    return text


def _gain(content, finals):
    return 100 * (statistics.mean(stage.miou for stage in finals) - content.supervised.miou)


def _what(content):
    options = content.stages[0].options
    spec = content.stages[0].fingerprint.get("dataset") or {}
    first = content.stages[0]
    split = content.split or options.get("train_set")
    return (f"{_method(content)} on {spec.get('name') or first.config.get('dataset', 'unknown data')}, split {split}, split id "
            f"{options.get('sets_id')}, network {(first.fingerprint.get('network') or {}).get('backbone', '-')}. mIoU in "
            "percent over all classes of the validation images.")


def _method(content):
    """What the run did, in words."""
    stages = [{"arm": stage.arm, "round": stage.round, "recipe": recipe(stage)} for stage in content.stages if stage.round]
    if not stages:
        return "Supervised training"
    name, _, further = method_of(stages).partition("+PLE")
    enhanced = [labelling for labelling in content.labellings if labelling.manifest and labelling.manifest["previous"]]
    return (_METHODS[name] + " with pseudo label enhancement" * bool(enhanced) + further * bool(enhanced))


def _numbers(content):
    last = content.last_round
    finals = [stage for arm in content.arms if (stage := content.stage(arm, last)) and stage.result]
    entries = [(f"mIoU of arm {stage.arm}, round {last}", _percent(stage.miou), "%", "") for stage in finals]
    if content.supervised and last and finals:
        gain = _gain(content, finals)
        entries.append(("supervised on the labels alone", _percent(content.supervised.miou), "%", ""))
        whose = "mean of the arms" if len(finals) > 1 else f"arm {finals[0].arm}"
        entries.append((f"{whose} against it", f"{gain:+.2f}".replace("-", "−"), "points",
                        "good" if gain >= 0 else "bad"))
    entries += [(stage.name.rpartition("__")[2], _percent(stage.miou), "%", "")
                for stage in content.others if stage.result]
    return entries


def _progress(content, running):
    """What runs now, how far it is, and how long the chain will take; nothing when everything has finished."""
    rows = [row for part in (*content.stages, *content.labellings) if (row := state_of(part, content))]
    complete = content.complete()
    if not running and (complete or complete is None and not rows):
        return ""
    parts = [f"<strong>{'This chain is running.' if running else 'This chain has stopped before its end.'}</strong>"]
    done, due, left = chain_left(content)
    if due:
        parts.append(f'<br><progress max="{due}" value="{done}"></progress> {done} of {due} stages finished'
                     + (f", about {duration(left)} left" if running and left is not None else "") + ".")
    for name, what, part, whole in rows:
        bar = f' <progress max="{whole}" value="{part}"></progress>' if whole else ""
        parts.append(f"<br>{escape(name)}: {escape(what)}{bar}")
    if not running:
        parts.append("<br>The same command goes on where it stopped.")
    made = time.strftime("%Y-%m-%d %H:%M:%S")
    parts.append(f'<br><span class="soft">As of {made}.{" The page loads itself again." if running else ""}</span>')
    return f'<div class="running">{"".join(parts)}</div>'


# --- results ------------------------------------------------------------------------------------------------------


def _classes(content, out):
    out.section("classes", "Classes")
    out.text("IoU of every class on the validation images after each round, in percent; brighter is better. A class that "
             "darkens to the right is being forgotten.")
    out.add('<div class="grid">')
    beside = " “sup.” is the baseline." if content.supervised and content.supervised.iou else ""
    drawn = [out.map(f"classes-{arm}", figures.classes_of(content, arm), f"Arm {arm}. Round 0 is supervised.{beside}")
             for arm in content.arms]
    out.add("</div>")
    if not any(drawn):
        out.text("No stage has recorded the IoU of its classes yet.", "note")


def _curves(content, out):
    out.section("training", "Training")
    curves = figures.curves(content)
    out.text("The steps of all rounds one after the other; dotted lines mark where a round begins.")
    out.add('<div class="grid">')
    for name, (svg, caption) in curves.items():
        out.chart(name, svg, caption)
    out.add("</div>")
    if not curves:
        out.text("Nothing has been logged yet.", "note")


# --- pseudo labels ------------------------------------------------------------------------------------------------


def _labels(content, out):
    if not content.labellings:
        return
    out.section("pseudo-labels", "Pseudo labels")
    out.text("The labels that the networks give to the unlabelled images, by the round that learns from them: the labels "
             "of round 1 come from the networks of round 0. " + _looked_at(content))
    _say_what_is_gone(content, out)
    enhanced = any(labelling.manifest and labelling.manifest["previous"] for labelling in content.labellings)
    head = ("round", "arm", "ratio", "labelled, %", "after PLE", "changed", "right, %", "after PLE")
    shown = range(8) if enhanced else (0, 1, 2, 3, 6)
    rows = [[row[index] for index in shown] for row in (head, *_label_rows(content))]
    out.add(page.table(rows[0], rows[1:], numbers=range(2, 8)))
    near, mark = (("before PLE this is near the ratio; the previous network's labels can raise it above 100",
                   " A number with ′ is after PLE.") if enhanced else ("near the ratio", ""))
    for arm in content.arms:
        out.map(f"labels-{arm}", figures.labels_of(content, arm),
                f"Labels by arm {arm}, by class and round. Threshold: the confidence from which a pixel gets its label, a "
                "dash where the class won next to no pixel. Labelled: pixels with this label for every 100 that the "
                f"network predicts as the class ({near}). Right: of the pixels with this label.{mark}")


def _looked_at(content):
    looks = list(content.looks.values())
    if not looks:
        return ""
    images, of = looks[-1]["images"], looks[-1]["of"]
    text = "all" if images == of else f"{images} evenly spaced ones of"
    text = f"The figures below are counted on {text} {of} unlabelled images"
    return text + ("." if looks[-1]["truth"] else ", which have no masks: nothing can be said about what is right.")


def _say_what_is_gone(content, out):
    if content.gone:
        rounds = ", ".join(map(str, sorted(content.gone)))
        out.text(f"For round {rounds} there are no figures of single pixels: {content.gone[min(content.gone)]}.", "note")


def _label_rows(content):
    rows = []
    for arm in content.arms:
        for number, labelling in content.labels_of(arm).items():
            share, enhanced = labelling.manifest["labeled_share"], labelling.manifest["previous"]
            look = content.looks.get(number, {}).get("arms", {}).get(arm)
            right = [_percent(sum(look[when]["right"]) / sum(look[when]["compared"]))
                     if look and sum(look[when]["compared"]) else "-" for when in ("before", "after")]
            rows.append((number, arm, f"{labelling.manifest['rules']['ratio']:g}", _percent(share["before"]),
                         _percent(share["after"]) if enhanced else "-", _percent(share["changed"]) if enhanced else "-",
                         right[0], right[1] if enhanced else "-"))
    return sorted(rows)


def _ple(content, out):
    made = [labelling for labelling in content.labellings if labelling.manifest and labelling.manifest["previous"]]
    if not made:
        return
    out.section("ple", "What PLE changed")
    out.text("Pseudo label enhancement merges the labels with what the arm's network of the round before predicts. A "
             "pixel that was right stays (kept) or becomes wrong (spoilt) or unlabelled (dropped); one that was wrong "
             "becomes right (mended) or unlabelled (error removed); one without a label may get one (newly right, newly "
             "wrong).")
    out.add('<div class="grid">')
    drawn = out.chart("ple", figures.ple(content), "In percent of all pixels of known truth. To the right what helps, to "
                      "the left what harms; PLE pays where the right side is longer.")
    if not drawn:
        drawn = out.chart("ple-changes", figures.ple_unjudged(content), "In percent of all pixels. The images have no "
                          "masks, so it is unknown which changes helped.")
    out.add("</div>")
    if not drawn:
        out.text("The labels are no longer there, and nothing was kept of them.", "note")
    for arm in content.arms:
        out.map(f"ple-{arm}", figures.ple_of_classes(content, arm),
                f"Arm {arm}: what happened to the pixels of each true class, in percent of the class's pixels, for each "
                "round with PLE. Colours are scaled within a group.")


# --- memory -------------------------------------------------------------------------------------------------------


def _forgetting(content, out):
    mean, pixels = figures.forgetting(content), figures.forgotten(content)
    if mean is None and pixels is None:
        return
    out.section("forgetting", "Forgetting")
    out.text("The measure of continual learning: the best IoU that a class ever had in an earlier round minus its IoU now "
             "(Chaudhry et al., ECCV 2018). Below zero the class is better than ever. Beside it the same for single "
             "pixels of the unlabelled images: right after the round before, wrong after this one. The last round is "
             "missing there, since its networks label nothing.")
    out.add('<div class="grid">')
    out.chart("forgetting", mean, "Forgetting in points of IoU on the validation images, mean over the classes.")
    out.chart("forgotten", pixels, "Forgotten pixels in percent of those that were right.")
    out.add("</div>")
    for arm in content.arms:
        out.map(f"forgetting-{arm}", figures.forgetting_of_classes(content, arm),
                f"Arm {arm}, by class: points of IoU forgotten (red) or gained beyond the best before (blue); pixels "
                "forgotten in percent of those that were right; pixels learnt in percent of those that were wrong.")


def _arms(content, out):
    agree, right, wins = figures.agreement(content), figures.who_is_right(content), figures.student(content)
    if not (agree or right or wins):
        return
    if len(content.arms) > 1:
        out.section("arms", "The two arms")
        out.text("Mutual training lives on disagreement: where the arms agree on everything, they have nothing left to "
                 "teach each other. In dynamic mutual training a pixel that the student wins teaches it nothing.")
    else:
        out.section("arms", "Student and teacher")
        out.text("The student goes on from the network that made its labels, and grows away from it.")
    out.add('<div class="grid">')
    out.chart("agreement", agree, "Pixels of the unlabelled images that both arms predict alike, without thresholds.")
    out.chart("who-is-right", right, "On how many pixels both are right, only one, or none.")
    for name, (svg, caption) in wins.items():
        out.chart(name, svg, caption)
    out.add("</div>")
    look = next((look for _, look in sorted(content.looks.items(), reverse=True) if look["between"]), None)
    if look and look["between"]["pairs"]:
        first, second = look["between"]["arms"]
        total = sum(look["between"]["first"])
        rows = [(content.classes[a], content.classes[b], f"{100 * count / total:.2f}")
                for a, b, count in look["between"]["pairs"]]
        out.heading("disagreements", f"Most frequent disagreements after round {look['round'] - 1}")
        out.add(page.table((f"arm {first} sees", f"arm {second} sees", "% of all pixels"), rows, numbers=(2,)))


_PANELS = {"disagree": ("The arms disagree most", "the arms differ on {share:.1f} % of its pixels"),
           "mended": ("PLE mended most", "PLE mended or newly labelled rightly {share:.1f} % of the pixels, labels of "
                      "arm {arm}"),
           "spoilt": ("PLE spoilt most", "PLE spoilt or dropped right labels on {share:.1f} % of the pixels, labels of "
                      "arm {arm}"),
           "changed": ("PLE changed most", "PLE changed {share:.1f} % of the pixels, labels of arm {arm}")}


def _pictures(content, out):
    looks = [(number, look) for number, look in sorted(content.looks.items(), reverse=True) if look["panels"]]
    if not looks:
        return
    out.section("pictures", "Pictures")
    after = " before and after PLE" if any("after PLE" in column for _, look in looks for panel in look["panels"]
                                           for column, _ in panel["files"]) else ""
    out.text(f"Unlabelled images: truth, what both arms predict, the pseudo label{after}, and its confidence (brighter is "
             "surer, black has no label). They are chosen for being extreme, not typical.")
    out.add(page.legend([*content.classes, "no label"], [*content.colors, (224, 224, 192)]))
    for place, (number, look) in enumerate(looks):
        if place == _SHOWN_ROUNDS:
            out.add("<details><summary>Earlier rounds</summary>")
        out.heading(f"pictures-{number}", f"Labels of round {number}")
        for panel in look["panels"]:
            title, text = _PANELS[panel["kind"]]
            text = text.format(share=100 * panel["share"], arm=panel["arm"])
            pictures = "".join(out.picture(name, column, f"{column} of the image {panel['image']}")
                               for column, name in panel["files"])
            out.add(f'<div class="example"><strong>{title}</strong>: {escape(panel["image"])}, {escape(text)}'
                    f'<div class="panel">{pictures}</div></div>')
    if len(looks) > _SHOWN_ROUNDS:
        out.add("</details>")


# --- the rest -----------------------------------------------------------------------------------------------------


def _costs(content, out):
    out.section("costs", "Time and memory")
    out.add('<div class="pair"><div>')
    rows = []
    for stage in content.stages:
        end = next(iter(reversed(stage.lines("end"))), {})
        speed = [line["images_per_second"] for line in stage.lines("train") if line.get("images_per_second")]
        rows.append((stage.name, stage.steps or "-", duration(stage.seconds), f"{statistics.median(speed):.1f}" if speed
                     else "-", _megabytes(end.get("peak_memory_mb")), _megabytes(end.get("gpu_peak_memory_mb"))))
    for labelling in content.labellings:
        timing = labelling.timing
        speed = f"{timing['images'] / timing['seconds']:.1f}" if timing.get("seconds") else "-"
        rows.append((f"labels by {labelling.name}", "-", duration(timing.get("seconds")), speed,
                     _megabytes(timing.get("peak_memory_mb")), _megabytes(timing.get("gpu_peak_memory_mb"))))
    out.add(page.table(("stage", "steps", "time", "images/s", "memory", "GPU memory"), rows, numbers=range(1, 6)))
    out.add("</div><div>")
    out.chart("time", figures.times(content), "Minutes of each stage, without starting the process. Training counts "
              "validations, too; paler bars are labellings.")
    out.add("</div></div>")
    out.text("Memory: the most that the process had (loader processes not counted), and the most that tensors took on the "
             "GPU. A dash stands for what an older version did not record.", "soft")


def _configuration(content, out):
    out.section("configuration", "Configuration and versions")
    stages = [stage for stage in content.stages if stage.config]
    groups = {"round 0": [stage for stage in stages if not stage.round], "rounds": [stage for stage in stages if stage.round]}
    groups = {name: members for name, members in groups.items() if members}
    keys = sorted({key for stage in stages for key in stage.config} - _NOT_SHOWN)
    rows = [(key.replace("_", " "), *(_values(members, lambda stage, key=key: stage.config.get(key))
                                      for members in groups.values())) for key in keys]
    rows = [row for row in rows if any(cell not in ("-", "False") for cell in row[1:])]
    if not any(stage.config.get("mixed_precision") for stage in stages):
        rows = [row for row in rows if not row[0].startswith("amp ")]
    rows += [(name, *["-"] * ("round 0" in groups), value) for name, value in _rules(content)]
    out.add('<div class="pair"><div>', page.table(("option", *groups), rows), "</div><div>")
    out.add(page.table(("", "value"), _versions(content)))
    out.add("</div></div>")
    command = next((stage.environment["command"] for stage in reversed(content.stages)
                    if stage.environment.get("command")), None)
    if command:
        out.add(f"<details><summary>Command of the last stage</summary><p><code>{escape(' '.join(map(str, command)))}"
                "</code></p></details>")
    out.add(f"<footer>Made by tools/report.py from the run folder {escape(content.run.resolve().name)} on "
            f"{time.strftime('%Y-%m-%d %H:%M')}. Charts and pictures lie beside this page in figures/.</footer>")


def _rules(content):
    """The rules of the labellings, (name, value), round by round where they differ."""
    made = [labelling for labelling in content.labellings if labelling.manifest]
    enhanced = [labelling for labelling in made if labelling.manifest["previous"]]
    found = []
    for name, key, of in (("label ratio", "ratio", made), ("PLE: beta", "beta", enhanced),
                          ("PLE: background class", "background", enhanced),
                          ("PLE: conflict reduction", "conflict_reduction", enhanced),
                          ("PLE: statistics of the previous network", "previous_statistics", enhanced)):
        rules = [labelling.manifest["rules"] for labelling in of]
        values = dict.fromkeys(f"{of_one[key]}" for of_one in rules if key in of_one)  # the default is not said
        found += [(name, ", ".join(values))] if values else []
    return found


def _versions(content):
    rows = []
    for key in ("commit", "python", "torch", "torchvision", "numpy", "opencv", "gpu", "processors", "threads",
                "platform"):
        value = _values(content.stages, lambda stage, key=key: stage.environment.get(key))
        if value != "-":
            rows.append((key, value))
    return rows


def _values(stages, value_of):
    """The value that all these stages have, or every value with its stages."""
    found = {}
    for stage in stages:
        value = value_of(stage)
        text = "-" if value is None else " x ".join(map(str, value)) if isinstance(value, list) else str(value)
        found.setdefault(text, []).append(stage)
    if len(found) == 1:
        return next(iter(found))
    by_arm = {text: sorted({stage.arm or stage.name for stage in members}) for text, members in found.items()}
    if len({arm for arms in by_arm.values() for arm in arms}) == sum(map(len, by_arm.values())):
        return ", ".join(f"{text} ({' '.join(arms)})" for text, arms in by_arm.items())
    return ", ".join(f"{text} ({' '.join(stage.name.rpartition('__')[2] for stage in members)})"
                     for text, members in found.items()) if sum(map(len, found.values())) <= 6 else \
        ", ".join(dict.fromkeys(found))


def _percent(share):
    return f"{100 * share:.2f}"


def _megabytes(value):
    return "-" if value is None else f"{value:,.0f} MB"


