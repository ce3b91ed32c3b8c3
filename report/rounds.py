"""The table of a single run: every stage, and what it came to."""

import pandas as pd

from report.summary import percent, shares
from report.tables import markdown as as_markdown

_COLUMNS = ("round", "arm", "steps", "mIoU", "ratio", "labelled: before PLE", "after", "right: before PLE", "after")


def text(summary, markdown=False):
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
        rows.append(row + ["-"] * (len(_COLUMNS) - len(row)))
    frame = pd.DataFrame(rows, columns=_COLUMNS)
    return (f"{as_markdown(frame)}\n" if markdown else f"{frame.to_string(index=False)}\n") + _outcome(summary)


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
