#!/usr/bin/env python3
"""The table of a finished run: mIoU per arm and round, and how much and how right the pseudo labels are.

    python -m tools.summarize runs/demo

Reads what a launcher left in its run folder and writes summary.json and panel.png into it. The panel shows, side by
side for evenly spaced unlabelled images: the image, the truth, a pseudo label before and after PLE, and predictions.
"Right" is the share of pseudo-labelled pixels whose label is the truth, where the truth is known and not ignored, as
tools.report counts it on 400 images; a column "before PLE" holds thresholds alone. Where the truth, or what the
labels were made of, is gone, a dash stands. Means over several runs are what tools.tables is for.
"""

import sys
from pathlib import Path

if not __package__:  # started by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from report.run import read_run  # noqa: E402
from report.summary import summarize  # noqa: E402
from utils.errors import OneLineParser, UserError, number, reports_user_errors  # noqa: E402
from utils.files import write_json  # noqa: E402


@reports_user_errors
def main(arguments=None):
    """Print the tables of the given runs and write summary.json and the panel of each."""
    args = _parser().parse_args(arguments)
    if args.out and len(args.run) > 1:
        raise UserError("--out names one file, but several runs were given; leave it out")
    runs = [read_run(folder, args.exp) for folder in args.run]
    from report import panel, pixels, tables  # they take seconds to import

    for run in runs:
        data, missing = pixels.data_of(run, args.dataset, args.data_root)
        if missing:
            print(f"note: {missing}; without it there is neither accuracy nor panel", file=sys.stderr)
        pixels.look(run, run.folder / "report", data, missing)
        summary = summarize(run)
        for stranger in summary["strangers"]:
            print(f"warning: these stages do not belong together: {stranger}", file=sys.stderr)
        print(run.folder, tables.rounds(summary, args.markdown), sep="\n\n" if args.markdown else "\n")
        write_json(run.folder / "summary.json", summary)
        if args.images and data:
            panel.draw(run, data, args.images, Path(args.out or run.folder / "panel.png"))
        print()


def _parser():
    parser = OneLineParser(prog="python -m tools.summarize", description=__doc__)
    add = parser.add_argument
    add("run", nargs="+", metavar="RUN", help="output folder of a launcher, such as runs/demo")
    add("--exp", metavar="NAME", help="experiment, where the folder holds several")
    add("--dataset", metavar="NAME", help="dataset or YAML spec (default: the run's)")
    add("--data-root", metavar="DIR", help="the dataset's folder (default: the run's)")
    add("--out", metavar="FILE.png", help="where the panel goes (default: panel.png in the run)")
    add("--images", type=number(int, 0, "a whole number of at least 0"), default=6, metavar="N",
        help="rows of the panel; 0: no panel (6)")
    add("--markdown", action="store_true", help="print Markdown tables")
    return parser


if __name__ == "__main__":
    main()
