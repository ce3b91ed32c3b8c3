#!/usr/bin/env python3
"""Tables over runs: mean and deviation over the split ids, beside the published numbers.

    python -m tools.tables runs/dmt_ple-voc-20-*                        Markdown, on standard output
    python -m tools.tables runs/dmt_ple-voc-20-* --format latex --out table.tex
    python -m tools.tables runs/ablations-shapes/seed-*/* --by beta --against DMT --measures miou forgetting
    python -m tools.tables runs/demo runs/demo-1 --table rounds         every stage of every run
    python -m tools.tables runs/demo runs/demo-1 --summary benchmarks/results/runs
    python -m tools.tables --update docs/results.md

A RUN is the output folder of a launcher, or a file that --summary wrote: a few kilobytes with everything that the tables
need. Runs of one dataset, split, method and arms are averaged: mean ± sample standard deviation (n - 1) and the number
of runs; a single run shows no deviation. They must agree in the whole recipe but for split id, seeds, names and places;
where they do not, nothing is printed but the two runs and what they differ in, and the exit status is 2. --by KEY makes
a row for each value of KEY instead (beta, lr, epochs, ...).

The number of a run is the mean over both arms in the last round, each with its best validation mIoU; --arm best takes
the better one, --arm NAME that one. "supervised" is the arm that has a round 0 alone (the launchers' arm b), or where
there is none, the round 0 of the arms that saw all labels of the split. Published numbers are of DeepLab-v2 with
ResNet-101; the difference is ours minus theirs. DMT+PLE is set beside DMT's number.
"""

import argparse
import csv
import glob
import io
import re
import shlex
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # started by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import yaml  # noqa: E402

from utils.errors import OneLineParser, UserError, reports_user_errors  # noqa: E402
from utils.files import write_text  # noqa: E402

_BEGIN, _END = re.compile(r"<!-- tables: begin (.*) -->"), "<!-- tables: end -->"
_ORACLE, _SUPERVISED = "oracle", "supervised"
_METHODS = (_SUPERVISED, "CBST", "DST", "online", "naive", "flip", "DMT", "DMT+PLE")  # the order of the rows
MEASURES = {
    "miou": "mIoU", "ensemble": "both together", "forgetting": "forgetting", "forgotten": "pixels forgotten",
    "accuracy": "labels right", "coverage": "labelled", "agreement": "arms agree"}


@dataclass
class Entry:
    """One number of a run for a row: the result of one method in one run, arm by arm.

    ``recipe``: stage -> its recipe (see ``tools.run_summary.recipe``). ``values``: measure -> number in percent or None.
    """

    run: str
    summary: dict
    dataset: str
    split: str
    method: str
    arms: dict
    recipe: dict
    identity: tuple
    values: dict

    @property
    def split_id(self):
        return self.summary["stages"][0]["split_id"]


# --- from runs to entries -----------------------------------------------------------------------------------------


def entries_of(summary, run, arm="mean"):
    """What a run adds to the table: its method, its supervised baseline, its oracle. A list of ``Entry``."""
    rounds = [row for row in summary["stages"] if row["round"] is not None]
    last = max((row["round"] for row in rounds), default=0)
    found = []
    if last:
        found.append(_method_entry(summary, run, rounds, last, arm))
    arms = {row["arm"] for row in rounds if row["round"]}
    zero = [row for row in rounds if row["round"] == 0]
    alone = [row for row in zero if row["arm"] not in arms]
    whole = [row for row in zero if last and row["split"] == _split(rounds)]
    if last and not alone and len(whole) == len(zero):
        found.append(_entry(summary, run, _SUPERVISED, whole, whole, arm))
    several = not last and len(alone) > 1
    found += [_entry(summary, run, _SUPERVISED + (f" ({row['arm']})" if several else ""), [row], [row], "mean")
              for row in alone]
    for row in summary["stages"]:
        if row["round"] is None and row["recipe"].get("state") == 2:
            method = _ORACLE if row["split"] == "1" else _SUPERVISED
            found.append(_entry(summary, run, method, [row], [row], "mean"))
    return found


def _method_entry(summary, run, rounds, last, arm):
    final = [row for row in rounds if row["round"] == last]
    arms = {row["arm"] for row in final}
    stages = [row for row in rounds if row["arm"] in arms]
    return _entry(summary, run, method_of(stages), final, stages, arm)


def method_of(stages):
    """The name of the method whose stages (rows of a summary) these are."""
    recipes = [row["recipe"] for row in stages if row["round"]]
    if any("online" in recipe for recipe in recipes):
        return "online"
    arms = {row["arm"] for row in stages}
    if len(arms) == 1:
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


def _split(rounds):
    return next(row["split"] for row in rounds if row["round"])


def _entry(summary, run, method, final, stages, arm):
    arms = {row["arm"] or row["name"]: 100 * row["miou"] for row in final}
    if arm not in ("mean", "best") and arm not in arms:
        raise UserError(f"{run} has no arm {arm} in its last round; it has {', '.join(sorted(arms))}")
    miou = {"mean": statistics.mean(arms.values()), "best": max(arms.values())}.get(arm, arms.get(arm))
    recipe = {_place(row): row["recipe"] for row in stages}
    rounds = any(row["round"] for row in stages)  # what a baseline labels for others' rounds is no result of its own
    labels = [row for row in summary["labellings"] if rounds and row["name"] in {stage["name"] for stage in stages}]
    return Entry(run, summary, str(summary["dataset"]), final[0]["split"] or "-", method, arms, recipe,
                 tuple(tuple(row[key] for key in ("name", "checkpoint_sha256", "miou", "split_id", "seed"))
                       for row in final),
                 {"miou": miou, **_further(summary, stages, labels)})


def _place(row):
    """Where a stage stands in a run, in words for a message."""
    return f"the stage {row['name']}" if row["round"] is None else f"round {row['round']} of arm {row['arm']}"


def _further(summary, stages, labels):
    """The measures beside the mIoU, in percent; None where the run does not have them."""
    last = max((row["round"] for row in labels), default=None)
    used = [row for row in labels if row["round"] == last]
    agreement = summary.get("agreement", {}).get(str(last + 1)) if last is not None else None
    both = summary.get("ensemble") if any(row["round"] for row in stages) else None
    return {"ensemble": None if both is None else 100 * both, "forgetting": _forgetting(stages),
            "forgotten": _mean([row.get("forgotten") for row in labels if "forgotten" in row]),
            "accuracy": _mean([row["right_after"] for row in used]),
            "coverage": _mean([row["labeled_after"] for row in used]),
            "agreement": _mean([agreement])}


def _forgetting(stages):
    """Mean over arms and classes of best earlier IoU minus final IoU, in points."""
    from dmt import analysis
    import numpy as np

    finals = []
    for arm in {row["arm"] for row in stages}:
        rows = sorted((row for row in stages if row["arm"] == arm), key=lambda row: row["round"] or 0)
        if len(rows) < 2 or any(row["iou"] is None for row in rows):
            return None
        last = analysis.forgetting(np.array([row["iou"] for row in rows], np.float64))[-1]
        finals.append(float(np.nanmean(last)))
    return _mean(finals)


def _mean(values):
    return None if not values or None in values else 100 * statistics.mean(values)


# --- from entries to rows -----------------------------------------------------------------------------------------


def group(entries, by=()):
    """Entries to be averaged: {(dataset, split, method, arms): entries}, in the order of the table's rows.

    ``by`` are keys of the recipe each value of which makes a row. The same training met twice (rows of an ablation share
    their baseline) counts once, and a baseline that has a run of its own is not repeated together with other arms.
    Raises ``UserError`` for entries of one row whose recipes differ.
    """
    entries = [entry for entry in entries if not _is_round_0_of_another_recipe(entry, entries)]
    alone = [set(entry.identity) for entry in entries if entry.method.startswith(_SUPERVISED)]
    named = {entry.identity for entry in entries if entry.method.startswith(f"{_SUPERVISED} (")}
    rows = {}
    for entry in entries:
        if entry.method == _SUPERVISED and (entry.identity in named or
                                            any(identity < set(entry.identity) for identity in alone)):
            continue
        method = entry.method + "".join(_by(entry, key, entries) for key in by)
        row = rows.setdefault((entry.dataset, entry.split, method, tuple(sorted(entry.arms))), [])
        if all(entry.identity != other.identity for other in row):
            row.append(entry)
    for row in rows.values():
        for other in row[1:]:
            _check_same_recipe(row[0], other)
    return dict(sorted(rows.items(), key=lambda item: _order(item[0])))


def _is_round_0_of_another_recipe(entry, entries):
    """Whether a baseline is that of DMT+PLE alone, and another one lies beside it: on Cityscapes the published one."""
    def differs(other):
        places = entry.recipe.keys() & other.recipe.keys()
        return any(entry.recipe[place] != other.recipe[place] for place in places)

    if entry.method != _SUPERVISED or not any("ple" in row.get("recipe", {}) for row in entry.summary["stages"]):
        return False
    return any(differs(other) for other in entries if other.method == _SUPERVISED and other.split == entry.split
               and _pair(other) == _pair(entry) and all("ple" not in row["recipe"] for row in other.summary["stages"]))


def _by(entry, key, entries):
    def values(one):  # of the rounds, where there are any: round 0 has numbers of its own
        recipes = [recipe for place, recipe in one.recipe.items() if not place.startswith("round 0")]
        found = {recipe[key] if isinstance(recipe[key], float) else str(recipe[key])
                 for recipe in recipes or one.recipe.values() if key in recipe}
        return sorted(f"{value:g}" if isinstance(value, float) else value for value in found)

    if len({tuple(values(other)) for other in entries if other.method == entry.method}) < 2:
        return ""  # it does not vary
    return f", {key.replace('_', ' ')} {'/'.join(values(entry)) or 'none'}"


def _check_same_recipe(first, second):
    for place in [*first.recipe, *(place for place in second.recipe if place not in first.recipe)]:
        one, other = first.recipe.get(place), second.recipe.get(place)
        if one is None or other is None:
            without = second if other is None else first
            raise UserError(f"{first.run} and {second.run} are not of one recipe: {without.run} has no {place}; average "
                            "only runs of one recipe")
        for key in [*one, *(key for key in other if key not in one)]:
            if one.get(key) != other.get(key):
                raise UserError(
                    f"{first.run} and {second.run} are not of one recipe: in {place}, {key.replace('_', ' ')} is "
                    f"{_shown(one.get(key))} in the first and {_shown(other.get(key))} in the second; average only runs "
                    f"of one recipe, or give --by {key} for a row each")


def _shown(value):
    return "off" if value is None else value


def _order(key):
    dataset, split, method, arms = key
    number = float(split.partition("-")[0]) if re.fullmatch(r"\d+(-[lr])?", split) else 0
    base = re.split(r"[ ,]", method)[0]
    place = _METHODS.index(base) if base in _METHODS else len(_METHODS)
    return dataset, -number, split, place, [(0, float(part), "") if re.fullmatch(r"[\d.]+", part) else (1, 0.0, part)
                                             for part in re.split(r"[ ,/]+", method)], arms


@dataclass
class Row:
    """One row of the table: numbers as (mean, deviation or None), or None."""

    key: tuple
    entries: list
    arms: dict
    measures: dict
    against: tuple | None
    published: tuple | None  # (value, method it is of)


def published():
    """The published numbers, as ``published.yaml`` has them."""
    return yaml.safe_load((Path(__file__).parent / "published.yaml").read_text(encoding="utf-8"))


def rows_of(grouped, measures, against=None):
    """The ``Row`` of each group. ``against`` is the method that a column of paired differences refers to."""
    results = published()["results"]
    reference = {}
    if against:
        names = sorted({key[2] for key in grouped})
        if against not in names:
            raise UserError(f"--against {against}: there is no such row; the rows are {', '.join(names)}")
        for entry in (entry for key, row in grouped.items() if key[2] == against for entry in row):
            reference.setdefault(_pair(entry), []).append(entry.values["miou"])
    rows = []
    for key, entries in grouped.items():
        arms = {arm: spread([entry.arms[arm] for entry in entries]) for arm in key[3]}
        numbers = {name: spread([entry.values[name] for entry in entries]) for name in measures}
        pairs = [(entry.values["miou"], reference.get(_pair(entry), [])) for entry in entries]
        differences = [value - others[0] for value, others in pairs if len(others) == 1]
        paired = spread(differences) if key[2] != against and len(differences) == len(pairs) else None
        rows.append(Row(key, entries, arms, numbers, paired, _published_beside(results, key)))
    return rows


def spread(values):
    """(mean, sample standard deviation) of the values; no deviation of one, None where one is missing."""
    if not values or None in values:
        return None
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def _pair(entry):
    """Runs are compared in pairs: of one split id, in one folder of runs (as ablations of one seed are)."""
    return entry.summary["parent"], entry.dataset, entry.split_id


def _published_beside(results, key):
    dataset, split, method = *key[:2], _method(key)
    of = {_ORACLE: _SUPERVISED, "DMT+PLE": "DMT"}.get(method, method)
    value = results.get(dataset, {}).get(split, {}).get(of)
    return None if value is None else (value, of)


# --- from rows to text --------------------------------------------------------------------------------------------


def cells(row, measures, arm):
    """The cells of a row: texts, or (mean, deviation) for numbers."""
    _, split, method, arms = row.key
    ids = sorted({str(entry.split_id) for entry in row.entries})
    found = [row.key[0], split, method, *[row.measures[name] for name in measures]]
    found += [[(name, row.arms[name]) for name in arms]] if _shows_arms(measures, arm) else []
    found += [str(len(row.entries)), ", ".join(ids)]
    return found


def _shows_arms(measures, arm):
    """Whether each arm's mIoU is shown: where the table is not about something else."""
    return arm == "mean" and set(measures) <= {"miou", "ensemble"}


def formatted(rows, measures, arm, against, style):
    """The whole table in the style md, latex or csv, with its notes."""
    if style == "csv":
        return _csv(rows, measures, against)
    head = ["data", "split", "method", *[MEASURES[name] for name in measures]]
    head += ["arms"] if _shows_arms(measures, arm) else []
    head += ["runs", "split ids"] + ([f"over {against}"] if against else [])
    with_published = "miou" in measures and any(row.published for row in rows)
    head += ["published", "difference"] if with_published else []
    lines = []
    for row in rows:
        line = cells(row, measures, arm)
        line += [row.against and ("signed", row.against)] if against else []
        if with_published:
            value = row.published and row.published[0]
            note = " (DMT)" if row.key[2].startswith("DMT+PLE") else ""
            line += ["-" if value is None else f"{value:.2f}{note}",
                     value and ("signed", (row.measures["miou"][0] - value, None))]
        lines.append(line)
    table = _latex(head, lines) if style == "latex" else _markdown(head, lines)
    return table + "".join(f"\n{'% ' if style == 'latex' else ''}{note}\n" for note in _notes(rows, measures, arm, against))


def _notes(rows, measures, arm, against):
    of = {"mean": "the mean over both arms", "best": "the better arm"}.get(arm, f"arm {arm}")
    notes = [f"mIoU: percent, best validation of the last round, {of}; mean ± sample standard deviation (n - 1) over the "
             "runs."]
    if against:
        notes.append(f"over {against}: mean ± deviation of the differences within pairs of runs of one split id and "
                     "folder.")
    if any(row.published for row in rows):
        notes.append("published: Feng et al. 2022, means over three split ids, DeepLab-v2 with ResNet-101. The PLE paper "
                     f"states up to {published()['ple_gain']} points above DMT; DMT+PLE stands beside DMT's number.")
        others = sorted({recipe["backbone"] for row in rows if row.published for entry in row.entries
                         for recipe in entry.recipe.values() if recipe.get("backbone", "resnet101") != "resnet101"})
        if others:
            notes.append(f"These runs have another network ({', '.join(others)}); the published numbers do not compare.")
    further = {"ensemble": "both together: mIoU of the ensemble of both arms, as main.py --state=3 --second-arm tested it "
                           "under the papers' protocol.",
               "forgetting": "forgetting: best earlier IoU minus final IoU, mean over classes and arms, in points; below zero: "
                             "better than ever.",
               "forgotten": "pixels forgotten: of the unlabelled pixels right after a round, those wrong after the next, "
                            "in percent; mean over rounds and arms.",
               "accuracy": "labels right: of the pseudo-labelled pixels of the last round, in percent.",
               "coverage": "labelled: share of the pixels with a pseudo label in the last round, in percent.",
               "agreement": "arms agree: pixels that both arms predict alike before the last round, in percent."}
    return notes + [further[name] for name in measures if name in further]


def _text(value, plus_minus=" ± "):
    """A cell as text: a text, (mean, deviation), ("signed", (mean, deviation)), or a list of (arm, numbers)."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ", ".join(f"{name} {_text(numbers, plus_minus)}" for name, numbers in value)
    sign = ""
    if value[0] == "signed":
        sign, value = "+", value[1]
    mean, deviation = value
    return f"{mean:{sign}.2f}" + ("" if deviation is None else f"{plus_minus}{deviation:.2f}")


def _markdown(head, lines):
    rows = [[_text(cell).replace("|", "\\|") for cell in line] for line in [head, *lines]]
    rule = "|" + "|".join("---" if name in ("data", "method", "arms") else "--:" for name in head) + "|"
    texts = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([texts[0], rule, *texts[1:]]) + "\n"


def _latex(head, lines):
    def escaped(cell):
        text = _text(cell, r" \pm ")
        text = re.sub(r"[&%#_{}$]", lambda found: "\\" + found[0], text)
        return re.sub(r"[+-]?\d+\.\d\d(?: \\pm \d+\.\d\d)?", lambda found: f"${found[0]}$", text)

    columns = "".join("l" if name in ("data", "method", "arms") else "r" for name in head)
    body = [" & ".join(escaped(cell) for cell in line) + r" \\" for line in [head, *lines]]
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\hline", body[0], r"\hline", *body[1:], r"\hline",
                      r"\end{tabular}"]) + "\n"


def _csv(rows, measures, against):
    """Every number in a column of its own; arms in order, their names in the column arms."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    arms = max((len(row.arms) for row in rows), default=0)
    numbers = [*measures, *(f"arm{index + 1}" for index in range(arms)), *(["over"] if against else [])]
    writer.writerow(["dataset", "split", "method", "arms", "runs", "split_ids",
                     *(f"{name}_{part}" for name in numbers for part in ("mean", "sd")),
                     "published", "published_of", "difference"])
    for row in rows:
        values = [*(row.measures[name] for name in measures), *row.arms.values(), *[None] * (arms - len(row.arms)),
                  *([row.against] if against else [])]
        value, of = row.published if row.published and "miou" in measures else (None, None)
        writer.writerow([
            *row.key[:3], " ".join(row.key[3]), len(row.entries),
            " ".join(sorted({str(entry.split_id) for entry in row.entries})),
            *("" if part is None else f"{part:.4f}" for number in values for part in (number or (None, None))),
            "" if value is None else value, of or "",
            "" if value is None else f"{row.measures['miou'][0] - value:.4f}"])
    return content.getvalue()


# --- command line -------------------------------------------------------------------------------------------------


def read_runs(paths, exp=None):
    """[(name for messages, summary)] of run folders and summary files."""
    from tools.run_summary import read_summary, summarize

    runs = []
    for path in paths:
        if Path(path).is_file():
            runs.append((str(path), read_summary(path)))
        else:
            runs.append((str(path), summarize(path, exp)))
    return runs


def table(args):
    """The text that the parsed arguments ask for."""
    if args.table == "rounds" and args.format != "md":
        raise UserError(f"--table rounds is in Markdown only; leave out --format {args.format}")
    runs = read_runs(args.run, args.exp)
    if args.table == "rounds":
        from tools.summarize import formatted as aligned, outcome_text, table_of
        parts = [f"**{summary['run']}**\n\n{aligned(table_of(summary), markdown=True)}\n\n{outcome_text(summary)}\n"
                 for _, summary in runs]
        return "\n".join(parts)
    entries = [entry for name, summary in runs for entry in entries_of(summary, name, args.arm)]
    if not entries:
        raise UserError(f"{args.run[0]} holds no result for a table: neither rounds nor supervised stages")
    if args.measures is None:
        args.measures = ["miou"] + ["ensemble"] * any(entry.values["ensemble"] is not None for entry in entries)
    grouped = group(entries, _known_keys(args.by))
    _note_twins(grouped)
    if args.methods:
        _check_methods(args.methods, grouped)
        grouped = {key: row for key, row in grouped.items() if _method(key) in args.methods}
    return formatted(rows_of(grouped, args.measures, args.against), args.measures, args.arm, args.against, args.format)


def _known_keys(keys):
    """The keys of --by as recipes have them. Raises ``UserError`` for one that no recipe could have."""
    from tools.run_summary import RECIPE_KEYS

    for key in (keys := [key.replace("-", "_") for key in keys]):
        if key not in RECIPE_KEYS:
            raise UserError(f"--by {key}: recipes have no such key; they have {', '.join(RECIPE_KEYS)}")
    return keys


def _check_methods(methods, grouped):
    known = sorted({_method(key) for key in grouped})
    for name in methods:
        if name not in known:
            raise UserError(f"--methods {name}: there is no such row; the rows are {', '.join(known)}")


def _method(key):
    """The method of a row, without its arm and the values of --by."""
    return re.split(r" \(|, ", key[2])[0]


def _note_twins(grouped):
    """Say where a mean over split ids counts one twice: a repeated run, not a further one."""
    for key, row in grouped.items():
        seen = {}
        for entry in row:
            twin = (entry.summary["parent"], entry.split_id,
                    tuple(stage["seed"] for stage in entry.summary["stages"] if stage["arm"] in entry.arms))
            if twin in seen:
                print(f"note: {seen[twin]} and {entry.run} have the same split id and seeds, and both count in "
                      f"{key[2]} on {key[0]} {key[1]}", file=sys.stderr)
            seen[twin] = entry.run


def update(path):
    """Make every table in a Markdown file anew; its arguments stand in the mark before it. Returns the new text.

    Names of runs in a mark count from the file's repository: the folder above ``docs``.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    root = path.resolve().parent.parent
    out, rest = [], text
    while (begin := _BEGIN.search(rest)) is not None:
        end = rest.find(_END, begin.end())
        if end < 0:
            raise UserError(f"{path}: the mark '{begin[0]}' has no '{_END}' after it")
        args = _parser().parse_args(shlex.split(begin[1]))
        args.run = [name for pattern in args.run for name in sorted(glob.glob(str(root / pattern)), key=_natural)]
        if not args.run:
            raise UserError(f"{path}: no run matches the mark '{begin[0]}'")
        out += [rest[: begin.end()], "\n\n", table(args), "\n"]
        rest = rest[end:]
    if not out:
        raise UserError(f"{path} has no mark '<!-- tables: begin RUN... -->' with '{_END}' after it")
    return "".join([*out, rest])


def _natural(path):
    """demo.json before demo-1.json, and run-2 before run-10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.removesuffix(".json"))]


def write_summaries(paths, folder, exp=None):
    """Write the summary of every run into ``folder``.

    Runs of one name, here or in a summary that is there already, get the folder above into theirs.
    """
    from tools.run_summary import read_summary, write_summary

    runs = read_runs(paths, exp)
    names = [summary["run"] for _, summary in runs]
    for (_, summary), name in zip(runs, names):
        path = Path(folder) / f"{name}.json"
        if names.count(name) > 1 or path.is_file() and read_summary(path)["parent"] != summary["parent"]:
            path = Path(folder) / f"{summary['parent']}-{name}.json"
        write_summary(path, summary)
        print(path)


@reports_user_errors
def main(arguments=None):
    """Print or write the tables of the given runs."""
    args = _parser().parse_args(arguments)
    if args.update:
        write_text(args.update, update(args.update))
        print(f"{args.update} is up to date")
        return
    if not args.run:
        raise UserError("which runs? Give run folders, such as runs/dmt_ple-voc-20-*, or --update FILE.md")
    if args.summary:
        write_summaries(args.run, args.summary, args.exp)
        return
    text = table(args)
    if args.out:
        write_text(args.out, text)
    else:
        print(text, end="")


def _parser():
    parser = OneLineParser(prog="python -m tools.tables", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="*", metavar="RUN", help="run folder, or summary file (.json)")
    parser.add_argument("--format", choices=("md", "latex", "csv"), default="md", help="(md)")
    parser.add_argument("--out", metavar="FILE", help="write the table there instead of printing it")
    parser.add_argument("--arm", default="mean", metavar="{mean,best,NAME}",
                        help="what counts for a run: the mean over its arms (default), the better one, or that one")
    parser.add_argument("--measures", nargs="+", choices=MEASURES,
                        help="columns: miou, ensemble (of both arms, where main.py --state=3 tested it; default: these), "
                             "forgetting (points), forgotten, accuracy, coverage, agreement (the last four from what "
                             "the report looked at)")
    parser.add_argument("--by", nargs="+", default=[], metavar="KEY",
                        help="keys of the recipe whose values make rows of their own, such as beta")
    parser.add_argument("--against", metavar="METHOD", help="a column of differences to this row, within pairs of runs")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="only these rows")
    parser.add_argument("--table", choices=("methods", "rounds"), default="methods",
                        help="methods: a row for each (default); rounds: every stage of every run, in Markdown")
    parser.add_argument("--exp", metavar="NAME", help="experiment, where a folder holds several")
    parser.add_argument("--summary", metavar="FOLDER", help="write the summary of every run there, and no table")
    parser.add_argument("--update", metavar="FILE.md", help="make the tables between the marks of this file anew")
    return parser


if __name__ == "__main__":
    main()
