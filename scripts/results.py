#!/usr/bin/env python3
"""What a launcher prints at its end: the mIoU of every stage, and commands for its last two checkpoints.

    python scripts/results.py PYTHON REPORT < PLAN

PLAN is the command that tests both checkpoints, as ``main.py --plan`` reads it, PYTHON the interpreter of the other
command. REPORT is 0 where the run has none.
"""

import re
import shlex
import sys
from pathlib import Path

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root))

from data import patterns, specs  # noqa: E402
from dmt.plan import split_command  # noqa: E402
from utils.errors import UserError  # noqa: E402
from utils.options import parse_options  # noqa: E402


def main(python, report):
    """Print it all; the commands only where both checkpoints are there."""
    program, words = split_command(sys.stdin.read())
    options = parse_options(words)
    print(f"\n{'stage':<44} best validation mIoU (%)")
    log = Path(options.output_dir, "log.txt").read_text(encoding="utf-8", errors="replace")
    for name, miou in re.findall(r"^(.+): (\d+\.\d+)$", log, re.MULTILINE):  # what else stands there is no stage's
        print(f"{name:<44} {float(miou):.2f}")
    if report != "0":
        print(f"\nreport: {options.output_dir}/report/index.html")
    one, other = options.continue_from, options.second_arm
    if Path(one).is_file() and Path(other).is_file():
        predict = [python, str(Path(program[-1]).with_name("tools") / "predict.py"), "--checkpoint", one,
                   "--checkpoint", other, "--out", "predictions", an_image(options)]
        print("\ntest both arms, and label an image, or as many files and folders as you like:",
              shlex.join([*program, *words]), shlex.join(predict), sep="\n")


def an_image(options):
    """One of the dataset's, with which the command runs."""
    try:
        spec = specs.load_spec(options.dataset)
        return next(patterns.files_in(specs.resolve_root(spec, options.data_root), spec.patterns("images")[0]))[1]
    except (UserError, StopIteration):
        return "IMAGES"


if __name__ == "__main__":
    main(*sys.argv[1:])
