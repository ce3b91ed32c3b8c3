#!/usr/bin/env python3
"""Tables over runs: mean and deviation over the split ids, beside the published numbers.

    python -m tools.tables runs/dmt_ple-voc-20-*                        Markdown, on standard output
    python -m tools.tables runs/dmt_ple-voc-20-* --format latex --out table.tex
    python -m tools.tables runs/ablations-shapes/seed-*/* --by beta --against DMT --measures miou forgetting
    python -m tools.tables runs/ablations-shapes/seed-*/* --by beta --figure miou.svg
    python -m tools.tables runs/demo runs/demo-1 --table rounds         every stage of every run
    python -m tools.tables runs/demo runs/demo-1 --summary benchmarks/results/runs
    python -m tools.tables --update docs/results.md

A RUN is the output folder of a launcher, or a file that --summary wrote: a few kilobytes with everything that the
tables need. Runs of one dataset, split, method and arms are averaged: mean ± sample standard deviation (n - 1) and
the number of runs; a single run shows no deviation. They must agree in the whole recipe but for split id, seeds,
names and places; where they do not, nothing is printed but the two runs and what they differ in, and the exit status
is 2. --by KEY makes a row for each value of KEY instead (beta, lr, epochs, ...).

The number of a run is the mean over both arms in the last round, each with its best validation mIoU; --arm best takes
the better one, --arm NAME that one. "supervised" is the arm that has a round 0 alone (the launchers' arm b), or where
there is none, the round 0 of the arms that saw all labels of the split. Published numbers are of DeepLab-v2 with
ResNet-101; the difference is ours minus theirs. DMT+PLE is set beside DMT's number. --figure draws the mean mIoU after
each round: a line for each method, and a level one for the first supervised row of its split.
"""

import glob
import re
import shlex
import sys
from pathlib import Path

if not __package__:  # started by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from report import figures, tables  # noqa: E402
from report.run import read_run  # noqa: E402
from report.summary import read_summary, summarize  # noqa: E402
from utils.errors import OneLineParser, UserError, reports_user_errors  # noqa: E402
from utils.files import write_json, write_text  # noqa: E402

_MARKS = re.compile(r"<!-- tables: begin (.*?) -->.*?<!-- tables: end -->", re.S)


def read_runs(paths, exp=None):
    """[(name for messages, summary)] of run folders and summary files; a chain that goes on is warned of."""
    found = []
    for path in paths:
        if Path(path).is_file():
            found.append((str(path), read_summary(path)))
            continue
        run = read_run(path, exp)
        if run.last_round < (run.plan.get("rounds") or 0):
            print(f"warning: {path} has finished {run.last_round} of {run.plan['rounds']} rounds", file=sys.stderr)
        found.append((str(path), summarize(run)))
    return found


def table(args):
    """The text that the parsed arguments ask for."""
    if args.table == "rounds" and args.format != "md":
        raise UserError(f"--table rounds is in Markdown only; leave out --format {args.format}")
    runs = read_runs(args.run, args.exp)
    if args.table == "rounds":
        return "\n".join(f"**{summary['run']}**\n\n{tables.rounds(summary, as_markdown=True)}\n" for _, summary in runs)
    return tables.table(runs, args.format, args.arm, args.measures, args.by, args.against, args.classes)


def update(path):
    """Make every table in a Markdown file anew; its arguments stand in the mark before it. Returns the new text.

    Names of runs in a mark count from the file's repository: the folder above ``docs``. What explains a table is not
    repeated under the next.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    root, said = path.resolve().parent.parent, set()

    def made(mark):
        args = _parser().parse_args(shlex.split(mark[1]))
        args.run = [name for pattern in args.run for name in sorted(glob.glob(str(root / pattern)))]
        if not args.run:
            raise UserError(f"{path}: no run matches the mark '{mark[1]}'")
        parts = [part for part in table(args).strip().split("\n\n") if part not in said]  # a note stands once
        said.update(parts)
        return "\n\n".join([f"<!-- tables: begin {mark[1]} -->", *parts, "<!-- tables: end -->"])

    text, count = _MARKS.subn(made, text)
    if not count:
        raise UserError(f"{path} has no mark '<!-- tables: begin RUN... -->' with '<!-- tables: end -->' after it")
    return text


def write_summaries(paths, folder, exp=None):
    """Write the summary of every run into ``folder``.

    Runs of one name, here or in a summary that is there already, get the folder above into theirs.
    """
    runs = read_runs(paths, exp)
    names = [summary["run"] for _, summary in runs]
    for (_, summary), name in zip(runs, names):
        path = Path(folder) / f"{name}.json"
        if names.count(name) > 1 or path.is_file() and read_summary(path)["parent"] != summary["parent"]:
            path = Path(folder) / f"{summary['parent']}-{name}.json"
        write_json(path, summary)
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
    if args.figure:
        if not args.figure.endswith(".svg"):
            raise UserError(f"--figure {args.figure}: the figure is an SVG; give it a name that ends in .svg")
        figures.draw_methods(tables.rows_of(read_runs(args.run, args.exp), args.arm, args.by), args.figure)
        print(args.figure)
        return
    text = table(args)
    if args.out:
        write_text(args.out, text)
    else:
        print(text, end="")


def _parser():
    parser = OneLineParser(prog="python -m tools.tables", description=__doc__)
    add = parser.add_argument
    add("run", nargs="*", metavar="RUN", help="run folder, or summary file (.json)")
    add("--format", choices=("md", "latex", "csv"), default="md", help="(md)")
    add("--out", metavar="FILE", help="write the table there instead of printing it")
    add("--arm", default="mean", metavar="{mean,best,NAME}",
        help="what counts for a run: the mean over its arms (default), the better one, or that one")
    add("--measures", nargs="+", choices=tables.MEASURES,
        help="columns: miou, ensemble (of both arms, where main.py --state=3 tested it; default: these), forgetting "
             "(points), forgotten, accuracy, coverage, agreement, mended, spoilt (the last six from what the report "
             "looked at)")
    add("--classes", action="store_true", help="a column for the IoU of each class, too")
    add("--by", nargs="+", default=[], metavar="KEY",
        help="keys of the recipe whose values make rows of their own, such as beta")
    add("--against", metavar="METHOD", help="a column of differences to this row, within pairs of runs")
    add("--table", choices=("methods", "rounds"), default="methods",
        help="methods: a row for each (default); rounds: every stage of every run, in Markdown")
    add("--exp", metavar="NAME", help="experiment, where a folder holds several")
    add("--figure", metavar="FILE.svg", help="draw the mIoU over the rounds there, and make no table")
    add("--summary", metavar="FOLDER", help="write the summary of every run there, and no table")
    add("--update", metavar="FILE.md", help="make the tables between the marks of this file anew")
    return parser


if __name__ == "__main__":
    main()
