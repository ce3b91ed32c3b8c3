"""Tables over runs: mean and deviation over the split ids, beside the published numbers; and that of a single run.

An entry is the number of one method in one run; entries of one dataset, split, method and arms make a row.
"""

import re
from pathlib import Path
from statistics import mean

import numpy as np
import pandas as pd
import yaml

from report import analysis
from report.summary import RECIPE_KEYS, method_of, percent, shares
from utils.errors import UserError

MEASURES = {  # name -> title, and what a note under the table says of it
    "miou": ("mIoU", ""),
    "ensemble": ("both together", "mIoU of the ensemble of both arms, as main.py --state=3 --second-arm tested it "
                 "under the papers' protocol."),
    "forgetting": ("forgetting", "best earlier IoU minus final IoU, mean over classes and arms, in points; below zero: "
                   "better than ever."),
    "forgotten": ("pixels forgotten", "of the unlabelled pixels right after a round, those wrong after the next, in "
                  "percent; mean over rounds and arms."),
    "accuracy": ("labels right", "of the pseudo-labelled pixels of the last round, in percent."),
    "coverage": ("labelled", "share of the pixels with a pseudo label in the last round, in percent."),
    "agreement": ("arms agree", "pixels that both arms predict alike before the last round, in percent."),
    "mended": ("PLE mended", "pixels that it mended, labelled rightly or rid of an error, in percent of those of known "
               "truth; mean over the rounds with PLE and the arms."),
    "spoilt": ("PLE spoilt", "pixels that it spoilt, labelled wrongly or dropped though right, otherwise likewise.")}
_WORDS = ("data", "method", "arms")  # columns that are no numbers
_CLASS = "iou_"  # how the measure of a class begins
_ORACLE, _SUPERVISED = "oracle", "supervised"
_METHODS = (_SUPERVISED, "CBST", "DST", "online", "naive", "flip", "DMT", "DMT+PLE")  # the order of the rows
_ROW = ["dataset", "split", "method", "arms"]
_ROUNDS = ("round", "arm", "steps", "mIoU", "ratio", "labelled: before PLE", "after", "right: before PLE", "after")
_PAIR = ["parent", "dataset", "split_id"]  # what runs have in common that are compared with each other


def table(runs, style="md", arm="mean", measures=None, by=(), against=None, classes=False):
    """The table of ``runs``, pairs (name for messages, summary), as text in the style md, latex or csv, with its notes.

    ``arm``: what counts for a run: mean, best, or the name of an arm. ``by``: keys of the recipe whose values make rows
    of their own. ``against``: the method that a column of differences refers to. ``classes``: a column for the IoU of
    each class. Raises ``UserError``.
    """
    rows = rows_of(runs, arm, by)
    names = sorted(set(rows.method))
    if against and against not in names:
        raise UserError(f"--against {against}: there is no such row; the rows are {', '.join(names)}")
    measures = measures or ["miou"] + ["ensemble"] * int(rows.ensemble.notna().any() and not classes)
    measures = list(dict.fromkeys([*measures, *(name for name in rows if classes and name.startswith(_CLASS))]))
    numbers = _numbers(rows, measures, against)
    if style == "csv":
        return numbers.drop(columns="backbones").to_csv(index=False, float_format="%.4f", lineterminator="\n")
    shown = _shown(numbers, measures, arm, against, style)
    notes = "".join(f"\n{'% ' if style == 'latex' else ''}{note}\n" for note in _notes(numbers, measures, arm, against))
    if style == "latex":
        columns = "".join("l" if title in _WORDS else "r" for title in shown)
        return shown.to_latex(index=False, column_format=columns, escape=False) + notes
    return markdown(shown) + notes


def rows_of(runs, arm="mean", by=()):
    """The entries of ``runs`` in the order of the table's rows, a frame; arguments and errors as ``table`` has them."""
    found = pd.DataFrame([entry for name, summary in runs for entry in entries_of(summary, name, arm)])
    if found.empty:
        raise UserError(f"{runs[0][0]} holds no result for a table: neither rounds nor supervised stages")
    return group(found, by)


# --- from runs to entries -----------------------------------------------------------------------------------------


def entries_of(summary, run, arm="mean"):
    """What a run adds to the table: its method, its supervised baseline, its oracle. A list of dicts.

    Raises ``UserError`` for a run whose stages do not belong together, and for an ``arm`` that it has not.
    """
    if summary.get("strangers"):
        raise UserError(f"the stages of {run} do not belong together: {summary['strangers'][0]}; start its launcher "
                        "again, which does anew what no longer fits")
    named = [row for row in summary["stages"] if row["round"] is not None]
    last = max((row["round"] for row in named), default=0)
    of_rounds = {row["arm"] for row in named if row["round"]}
    zero = [row for row in named if row["round"] == 0]
    alone = [row for row in zero if row["arm"] not in of_rounds]
    found = []
    if last:
        final = {row["arm"] for row in named if row["round"] == last}
        stages = [row for row in named if row["arm"] in final]
        found.append((method_of(stages), stages, arm))
        if zero and not alone and {row["split"] for row in zero} == {
                next(row["split"] for row in named if row["round"])}:
            found.append((_SUPERVISED, zero, arm))
    several = not last and len(alone) > 1
    found += [(_SUPERVISED + (f" ({row['arm']})" if several else ""), [row], "mean") for row in alone]
    found += [(_ORACLE if row["split"] == "1" else _SUPERVISED, [row], "mean") for row in summary["stages"]
              if row["round"] is None and row["recipe"].get("state") == 2]
    return [_entry(summary, run, *entry) for entry in found]


def _entry(summary, run, method, stages, arm):
    last = max(row["round"] or 0 for row in stages)
    final = [row for row in stages if (row["round"] or 0) == last]
    of_arms = {row["arm"] or row["name"]: row for row in final}
    arms = sorted(of_arms)
    if arm not in ("mean", "best", *arms):
        raise UserError(f"{run} has no arm {arm} in its last round; it has {', '.join(arms)}")

    def counted(rows):
        return {"mean": rows, "best": [max(rows, key=lambda row: row["miou"])]}.get(arm) or [
            row for row in rows if arm in (row["arm"], row["name"])]

    # What a baseline labels for others' rounds is no result of its own.
    labels = [row for row in summary["labellings"] if last and row["name"] in {stage["name"] for stage in stages}]
    labelled = max((row["round"] for row in labels), default=None)
    used = [row for row in labels if row["round"] == labelled]
    ple = [row.get("outcomes") for row in labels if row["enhanced"]]
    known = ple if all(ple) else []
    return {
        "dataset": str(summary["dataset"]), "split": final[0]["split"] or "-", "method": method, "arms": tuple(arms),
        "run": run, "parent": summary["parent"], "split_id": str(summary["stages"][0]["split_id"]),
        "enhanced": any("ple" in row["recipe"] for row in summary["stages"]),
        "identity": frozenset(tuple(row[key] for key in ("name", "checkpoint_sha256", "miou", "split_id", "seed"))
                              for row in final),
        "recipe": {f"the stage {row['name']}" if row["round"] is None else f"round {row['round']} of arm {row['arm']}":
                   row["recipe"] for row in stages},
        "rounds": {number: _mean([row["miou"] for row in counted([row for row in stages if row["round"] == number])])
                   for number in sorted({row["round"] for row in stages if last})},
        "miou": _mean([row["miou"] for row in counted(final)]),
        "ensemble": _mean([summary.get("ensemble")]) if last else np.nan, "forgetting": _forgetting(stages),
        "forgotten": _mean([row["forgotten"] for row in labels if "forgotten" in row]),
        "accuracy": _mean([row["right_after"] for row in used]),
        "coverage": _mean([row["labeled_after"] for row in used]),
        "agreement": _mean([summary.get("agreement", {}).get(str(labelled + 1))]) if labels else np.nan,
        "mended": _mean([sum(one[name] for name in analysis.BETTER) for one in known]),
        "spoilt": _mean([sum(one[name] for name in analysis.WORSE) for one in known]),
        **{f"arm{place}": 100 * of_arms[name]["miou"] for place, name in enumerate(arms, start=1)},
        **{f"{_CLASS}{name}": _mean([row["iou"] and row["iou"][place] for row in counted(final)])
           for place, name in enumerate(summary["classes"])}}


def _forgetting(stages):
    """Mean over arms and classes of best earlier IoU minus final IoU, in points."""
    finals = []
    for arm in {row["arm"] for row in stages}:
        iou = [row["iou"] for row in sorted(stages, key=lambda row: row["round"] or 0) if row["arm"] == arm]
        if len(iou) < 2 or None in iou:
            return np.nan
        finals.append(float(np.nanmean(analysis.forgetting(iou)[-1])))
    return _mean(finals)


def _mean(shares):
    """Mean in percent; NaN where there are none or one is missing."""
    return np.nan if not shares or None in shares else 100 * mean(shares)


# --- from entries to rows -----------------------------------------------------------------------------------------


def group(found, by=()):
    """The entries (a frame) in the order of the table's rows, without those that would count twice.

    ``by`` are keys of the recipe each value of which makes a row. The same training met twice (rows of an ablation
    share their baseline) counts once, and a baseline that has a run of its own is not repeated with other arms.
    Raises ``UserError`` for entries of one row whose recipes differ.
    """
    for key in (by := [key.replace("-", "_") for key in by]):
        if key not in RECIPE_KEYS:
            raise UserError(f"--by {key}: recipes have no such key; they have {', '.join(RECIPE_KEYS)}")
    found = found[[not _of_another_recipe(entry, found) for _, entry in found.iterrows()]]
    alone = list(found.identity[found.method.str.startswith(_SUPERVISED)])
    named = set(found.identity[found.method.str.startswith(f"{_SUPERVISED} (")])
    again = [method == _SUPERVISED and (identity in named or any(other < identity for other in alone))
             for method, identity in zip(found.method, found.identity)]
    found = found[~np.array(again, bool)].copy()
    for key in by:
        values = found.recipe.map(lambda recipe, key=key: _values(recipe, key))
        varies = values.groupby(found.method.str.split(", ").str[0]).transform("nunique") > 1
        found.loc[varies, "method"] += f", {key.replace('_', ' ')} " + values
    found = found.drop_duplicates([*_ROW, "identity"])
    for _, row in found.groupby(_ROW, sort=False):
        for _, other in row.iloc[1:].iterrows():
            _check_same_recipe(row.iloc[0], other)
    return found.iloc[sorted(range(len(found)), key=lambda place: _order(*found.iloc[place][_ROW]))]


def _of_another_recipe(entry, found):
    """Whether a baseline is that of DMT+PLE alone, and another one lies beside it: on Cityscapes the published one."""
    if entry.method != _SUPERVISED or not entry.enhanced:
        return False
    pair = [*_PAIR, "split", "method"]
    others = found[(found[pair] == entry[pair]).all(axis=1) & ~found.enhanced]
    return any(other[place] != entry.recipe[place] for other in others.recipe
               for place in other.keys() & entry.recipe.keys())


def _values(recipe, key):
    """The values of a key in the rounds, where there are any: round 0 has numbers of its own."""
    recipes = [one for place, one in recipe.items() if not place.startswith("round 0")] or recipe.values()
    found = {f"{one[key]:g}" if isinstance(one[key], float) else str(one[key]) for one in recipes if key in one}
    return "/".join(sorted(found)) or "none"


def _check_same_recipe(first, second):
    start = f"{first.run} and {second.run} are not of one recipe"
    for place in {**first.recipe, **second.recipe}:
        for run in (first, second):
            if place not in run.recipe:
                raise UserError(f"{start}: {run.run} has no {place}; average only runs of one recipe")
        one, other = first.recipe[place], second.recipe[place]
        for key in {**one, **other}:
            if one.get(key) != other.get(key):
                raise UserError(
                    f"{start}: in {place}, {key.replace('_', ' ')} is {one.get(key, 'off')} in the first and "
                    f"{other.get(key, 'off')} in the second; average only runs of one recipe, or give --by {key} for "
                    "a row each")


def _order(dataset, split, method, arms):
    number = float(split.partition("-")[0]) if re.fullmatch(r"\d+(-[lr])?", split) else 0
    base = re.split(r"[ ,]", method)[0]
    place = _METHODS.index(base) if base in _METHODS else len(_METHODS)
    return dataset, -number, split, place, [(0, float(part), "") if re.fullmatch(r"[\d.]+", part) else (1, 0.0, part)
                                            for part in re.split(r"[ ,/]+", method)], arms


def published():
    """The published numbers, as ``published.yaml`` has them."""
    return yaml.safe_load((Path(__file__).parent / "published.yaml").read_text(encoding="utf-8"))


def _numbers(rows, measures, against):
    """One line a row, every number in a column of its own: mean and sample deviation; NaN where one is missing."""
    columns = [*measures, *(name for name in rows if re.fullmatch(r"arm\d+", name) and rows[name].notna().any())]
    if against:  # mIoU minus that of the run of ``against`` of the same split id and folder (ablations of one seed)
        of = rows[rows.method == against].drop_duplicates(_PAIR, keep=False).set_index(_PAIR).miou
        over = rows.miou - of.reindex(pd.MultiIndex.from_frame(rows[_PAIR])).to_numpy()
        rows, columns = rows.assign(over=over.where(rows.method != against)), [*columns, "over"]
    grouped = rows.groupby(_ROW, sort=False)
    numbers = grouped.agg(runs=("run", "size"), split_ids=("split_id", lambda ids: " ".join(sorted(set(ids)))),
                          backbones=("recipe", lambda recipes: {stage.get("backbone", "resnet101") for recipe in recipes
                                                                for stage in recipe.values()}))
    numbers = pd.concat([numbers, *(values.rename(f"{name}_{end}") for name in columns for end, values in (
        ("mean", grouped[name].mean(skipna=False)), ("sd", grouped[name].std(skipna=False))))], axis=1)
    numbers = numbers.copy().reset_index()  # the copy lies in one piece
    numbers["arms"] = numbers.arms.map(" ".join)
    results = published()["results"] if "miou" in measures else {}
    of = numbers.method.str.split(r" \(|, | with batch", regex=True).str[0]  # the published PLE had batch statistics
    of = of.replace({_ORACLE: _SUPERVISED, "DMT+PLE": "DMT"})
    numbers["published"] = [results.get(dataset, {}).get(split, {}).get(method, np.nan)
                            for dataset, split, method in zip(numbers.dataset, numbers.split, of)]
    numbers["published_of"] = of.where(numbers.published.notna())
    numbers["difference"] = numbers.miou_mean - numbers.published if "miou" in measures else np.nan
    return numbers


# --- from rows to text --------------------------------------------------------------------------------------------


def _shown(numbers, measures, arm, against, style):
    """The frame of texts that a table shows."""
    latex = style == "latex"
    escaped, plus_minus = (_escaped, r" \pm ") if latex else (str, " ± ")

    def number(value, deviation=np.nan, sign=""):
        text = f"{value:{sign}.2f}" + ("" if pd.isna(deviation) else f"{plus_minus}{deviation:.2f}")
        return "-" if pd.isna(value) else f"${text}$" if latex else text

    def spread(name, sign=""):
        return [number(*pair, sign) for pair in zip(numbers[f"{name}_mean"], numbers[f"{name}_sd"])]

    shown = [("data", numbers.dataset.map(escaped)), ("split", numbers.split.map(escaped)),
             ("method", numbers.method.map(escaped))]
    shown += [(MEASURES[name][0] if name in MEASURES else escaped(name.removeprefix(_CLASS)), spread(name))
              for name in measures]
    if arm == "mean" and set(measures) <= {"miou", "ensemble"}:  # not where the table is about something else
        places = range(1, 1 + numbers.arms.str.split().map(len).max())
        texts = zip(*(spread(f"arm{place}") for place in places))
        shown.append(("arms", [", ".join(f"{escaped(name)} {text}" for name, text in zip(names.split(), values))
                               for names, values in zip(numbers.arms, texts)]))
    shown += [("runs", numbers.runs.astype(str)), ("split ids", numbers.split_ids.str.replace(" ", ", "))]
    if against:
        shown.append((f"over {escaped(against)}", spread("over", "+")))
    if numbers.published.notna().any():
        beside = np.where(numbers.method.str.startswith("DMT+PLE"), " (DMT)", "")
        shown.append(("published", ["-" if pd.isna(value) else f"{value:.2f}{note}"
                                    for value, note in zip(numbers.published, beside)]))
        shown.append(("difference", [number(value, sign="+") for value in numbers.difference]))
    return pd.DataFrame(list(zip(*(values for _, values in shown))), columns=[title for title, _ in shown])


def markdown(shown):
    """A frame of texts as a Markdown table."""
    rule = "|" + "|".join("---" if title in _WORDS else "--:" for title in shown) + "|"
    head, *lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
                    for row in [list(shown), *shown.itertuples(index=False)]]
    return "\n".join([head, rule, *lines]) + "\n"


def _escaped(text):
    return re.sub(r"[&%#_{}$]", lambda found: "\\" + found[0], text)


def _notes(numbers, measures, arm, against):
    of = {"mean": "the mean over both arms", "best": "the better arm"}.get(arm, f"arm {arm}")
    notes = [f"mIoU: percent, best validation of the last round, {of}; mean ± sample standard deviation (n - 1) over "
             "the runs."]
    if against:
        notes.append(f"over {against}: mean ± deviation of the differences within pairs of runs of one split id and "
                     "folder.")
    beside = numbers[numbers.published.notna()]
    if len(beside):
        notes.append("published: Feng et al. 2022, means over three split ids, DeepLab-v2 with ResNet-101. The PLE "
                     f"paper states up to {published()['ple_gain']} points above DMT; DMT+PLE stands beside "
                     "DMT's number.")
        others = sorted(set().union(*beside.backbones) - {"resnet101"})
        if others:
            notes.append(f"These runs have another network ({', '.join(others)}); the published numbers do not "
                         "compare.")
    return notes + [": ".join(MEASURES[name]) for name in measures if name in MEASURES and name != "miou"]


# --- a single run -------------------------------------------------------------------------------------------------


def rounds(summary, as_markdown=False):
    """The stages of a summary as an aligned table, or one in Markdown, and two sentences about the end of the run.

    The pseudo labels in a row are those that its checkpoint made.
    """
    rows, made = [], {row["name"]: row for row in summary["labellings"]}
    for stage in summary["stages"]:
        row = ["-" if stage["round"] is None else str(stage["round"]), stage["arm"] or stage["name"],
               str(stage["steps"] or "-"), percent(stage["miou"])]
        labels = made.get(stage["name"])
        if labels:
            row += [f"{labels['ratio']:g}", *shares(labels, ("labeled_before", "labeled_after", "right_before",
                                                              "right_after"))]
        rows.append(row + ["-"] * (len(_ROUNDS) - len(row)))
    frame = pd.DataFrame(rows, columns=_ROUNDS)
    return (markdown(frame) if as_markdown else frame.to_string(index=False)) + "\n" + _outcome(summary)


def _outcome(summary):
    """Final arms, baseline and what each had."""
    final, baseline = summary["final"], summary["baseline"]
    if final is None:
        return "No rounds in this run."
    steps = ", ".join(f"{arm} {count}" for arm, count in final["steps"].items())
    found = (f"After round {summary['rounds']}: mIoU {percent(final['mean'])} (mean of the arms), "
             f"{percent(final['best'])} (better arm). Training steps in all rounds: {steps}")
    if baseline:
        found += (f"; supervised alone {baseline['steps']}, mIoU {percent(baseline['miou'])}. "
                  f"Gain of the mean: {100 * summary['gain']:+.2f} points")
    return found + "."
