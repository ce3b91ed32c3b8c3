#!/usr/bin/env python3
"""The report of a run: one HTML page with everything that was learnt, repaired and forgotten, round by round.

    python -m tools.report runs/dmt_ple-voc-20-1

Writes RUN/report/index.html, which needs no other file and no server, and its charts and pictures into
RUN/report/figures. It shows mIoU and IoU of the classes against the supervised baseline, training curves, thresholds,
coverage and accuracy of the pseudo labels before and after PLE, what PLE mended and spoilt, forgetting, agreement of
the arms, pictures, time and memory, and the configuration. Where the unlabelled images have no masks, what needs the
truth is left out.

The figures of single pixels are counted on --images unlabelled images, once for each round while its labels are there,
and kept in RUN/report/round-N.json: the launchers call this after every round, before they remove labels that have
served. While a chain runs, the page shows how far it is, and a browser loads it again every minute; --watch makes
the page anew so often while a launcher works in RUN, and ends with it (the launchers start one).
"""

import argparse
import sys
import time
from pathlib import Path

if not __package__:  # started by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.reporting.content import gather  # noqa: E402
from tools.reporting.page import check_writable  # noqa: E402
from tools.reporting.sections import write_page  # noqa: E402
from tools.run_folder import RunData, find_stages, locked_by  # noqa: E402
from utils.console import progress_bar  # noqa: E402
from utils.errors import OneLineParser, UserError, reports_user_errors  # noqa: E402
from utils.files import locked  # noqa: E402


@reports_user_errors
def main(arguments=None):
    """Write the report of a run folder, once or again and again."""
    args = _parser().parse_args(arguments)
    if args.images < 0 or args.rounds is not None and args.rounds < 0 or args.watch is not None and args.watch <= 0:
        raise UserError("--images and --rounds are numbers of at least 0, --watch a number of seconds above 0")
    folder = Path(args.out or Path(args.run) / "report")
    if args.watch is not None:
        watch(args, folder)
    else:
        print(write(args, folder, pixels=not args.progress_only))


def write(args, folder, pixels):
    """Write the report once; without ``pixels`` only from what was kept of the images. Returns the page's path."""
    find_stages(args.run, unfinished=True)  # an error before anything is made
    check_writable(folder)

    def data(stage):
        return RunData(stage, args.dataset, args.data_root)

    def progress(number):
        return lambda items: progress_bar(f"labels of round {number}", "image", total=len(items))(items)

    with locked(folder / ".lock", f"the report {folder}", wait=True):
        content = gather(args.run, folder, data if pixels else None, args.images, args.rounds, args.arms, args.exp,
                         progress, args.baseline)
        return write_page(content, folder)


def watch(args, folder):
    """Write the page again and again until the launcher that works in the run folder has ended."""
    written = 0.0
    while locked_by(Path(args.run) / ".lock") is not None:
        if time.monotonic() - written >= args.watch and find_stages(args.run, unfinished=True, needed=False):
            write(args, folder, pixels=not args.progress_only)
            written = time.monotonic()
        time.sleep(min(1, args.watch))


def _parser():
    parser = OneLineParser(prog="python -m tools.report", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="output folder of a launcher, finished or running")
    parser.add_argument("--images", type=int, default=500, metavar="N",
                        help="unlabelled images to look at in each round, evenly spaced; 0: all (500)")
    parser.add_argument("--out", metavar="FOLDER", help="where the report goes (default: report in the run folder)")
    parser.add_argument("--dataset", metavar="NAME", help="dataset or YAML spec (default: the run's)")
    parser.add_argument("--data-root", metavar="DIR", help="the dataset's folder (default: the run's)")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds that the chain will have, for its progress "
                        "(remembered; the launchers give it)")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="arms that will take part in the rounds (as --rounds)")
    parser.add_argument("--baseline", metavar="RUN", help="run folder with the supervised baseline, where RUN has none of "
                        "its own (remembered)")
    parser.add_argument("--exp", metavar="NAME", help="experiment, where the folder holds several")
    parser.add_argument("--progress-only", action="store_true",
                        help="look at no images: only curves, results and what was counted before")
    parser.add_argument("--watch", type=float, metavar="SECONDS",
                        help="make the page anew so often while a launcher works in RUN, then end")
    return parser


if __name__ == "__main__":
    main()
