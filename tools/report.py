#!/usr/bin/env python3
"""The report of a run: one HTML page with everything that was learnt, repaired and forgotten, round by round.

    python -m tools.report runs/dmt_ple-voc-20-1

Writes RUN/report/index.html, which needs no other file and no server, and its figures and pictures into
RUN/report/figures. It shows mIoU and IoU of the classes against the supervised baseline, training curves, thresholds,
coverage and accuracy of the pseudo labels before and after PLE, what PLE mended and spoilt, forgetting, agreement of
the arms, pictures, time and memory, and the configuration. Where the unlabelled images have no masks, what needs the
truth is left out.

The figures of single pixels are counted on --images unlabelled images, once for each round while its predictions are
there, and kept in RUN/report/round-N.json: the launchers call this after every round, before they remove what has
served. After every stage they call it with --progress, which within a second brings the numbers and tables of the page
up to date and prints how far the chain is; the figures stay as they were drawn.
"""

import sys
from pathlib import Path

if not __package__:  # started by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from report.page import progress, write_page  # noqa: E402
from report.run import read_run  # noqa: E402
from utils.errors import OneLineParser, number, reports_user_errors  # noqa: E402
from utils.files import locked, make_folder, write_json  # noqa: E402


@reports_user_errors
def main(arguments=None):
    """Write the report of a run folder."""
    args = _parser().parse_args(arguments)
    folder = Path(args.out or Path(args.run) / "report")
    run = read_run(args.run, args.exp, folder, unfinished=True,
                   plan={"rounds": args.rounds, "arms": args.arms, "baseline": args.baseline})
    make_folder(folder, "--out")
    with locked(folder / ".lock", f"the report {folder}", wait=True):
        write_json(folder / "plan.json", run.plan)
        if not args.progress:
            from report import figures, pixels  # they take seconds to import

            if run.labels():
                pixels.look(run, folder, *pixels.data_of(run, args.dataset, args.data_root), args.images)
            figures.draw(run, folder / "figures")
        page = write_page(run, folder)
    print(progress(run) if args.progress else page)


def _parser():
    parser = OneLineParser(prog="python -m tools.report", description=__doc__)
    add, count = parser.add_argument, number(int, 0, "a whole number of at least 0")
    add("run", metavar="RUN", help="output folder of a launcher, finished or running")
    add("--images", type=count, default=400, metavar="N",
        help="unlabelled images to look at in each round, evenly spaced; 0: all (400)")
    add("--out", metavar="FOLDER", help="where the report goes (default: report in the run folder)")
    add("--dataset", metavar="NAME", help="dataset or YAML spec (default: the run's)")
    add("--data-root", metavar="DIR", help="the dataset's folder (default: the run's)")
    add("--rounds", type=count, metavar="N", help="rounds that the chain will have, for its progress (remembered; the "
        "launchers give it)")
    add("--arms", nargs="+", metavar="ARM", help="arms that will take part in the rounds (as --rounds)")
    add("--baseline", metavar="RUN", help="run folder with the supervised baseline, where RUN has none of its own "
        "(remembered)")
    add("--exp", metavar="NAME", help="experiment, where the folder holds several")
    add("--progress", action="store_true", help="within a second: draw nothing and look at no images")
    return parser


if __name__ == "__main__":
    main()
