"""What the preparations share: counts against those expected, room on the disk, the lists of splits, threads."""

import collections
import contextlib
import os
import shlex
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dms_sample
import generate_splits
from data.lists import find_training_list, read_list
from data.splits import make_splits
from utils.console import progress_bar
from utils.errors import UserError

BLOCK = 4096  # bytes: what the last part of a file takes on a disk at most


def add_count_options(parser, names, official):
    """Give ``parser`` --counts with one number for each of ``names`` (default ``official``), and --no-counts."""
    parser.add_argument("--counts", nargs=len(official), type=int, default=official, metavar=names,
                        help="the numbers that must be found (default: the official ones, "
                             f"{' '.join(map(str, official))})")
    parser.add_argument("--no-counts", action="store_true", help="do not compare the numbers of names and files")


def print_counts(rows):
    """Print a table of ``rows`` (what, found, expected); ``expected`` is None where nothing is compared."""
    width = max(len(what) for what, _, _ in rows)
    print(f"{'':<{width}} {'found':>7} {'expected':>9}")
    for what, found, expected in rows:
        print(f"{what:<{width}} {found:>7} {'-' if expected is None else expected:>9}")


def count_fault(rows):
    """What to say about those of ``rows`` (what, found, expected) whose numbers differ; None where all agree."""
    wrong = [f"{what}: {found} instead of {expected}" for what, found, expected in rows
             if expected is not None and found != expected]
    return (f"the numbers differ, {'; '.join(wrong)}. Get the official files, or, if yours are meant to differ, give "
            "their numbers with --counts or add --no-counts") if wrong else None


def check_room(folder, sizes):
    """Raise ``UserError`` when files of ``sizes`` (bytes each) do not fit on the disk of ``folder``."""
    folder = Path(folder).absolute()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    needed, free = sum(size + BLOCK for size in sizes), shutil.disk_usage(there).free
    if needed > free:
        raise UserError(f"{folder} needs {needed / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB left; make room or "
                        "choose another folder")


def finish(spec, root, splits):
    """Print what the user does now, and make the lists of the random splits that a dataset of this size can have.

    ``splits`` is True, False (their commands are printed) or None (there is nothing to say of them).
    """
    names = read_list(find_training_list(spec, root))
    possible = []
    for split, divisor in spec.divisors:
        with contextlib.suppress(UserError):
            make_splits(names, [(split, divisor)], ids=1)
            possible.append((split, divisor))
    dataset = ["--dataset", spec.name, "--data-root", str(root)]
    if splits and len(possible) < len(spec.divisors):
        left_out = [split for split, divisor in spec.divisors if (split, divisor) not in possible]
        print(f"note: {len(names)} training images are too few for the splits {' '.join(left_out)}; they are left out")
    if splits and possible:
        generate_splits.main([*dataset, "--divisors", *(f"{split}:{divisor}" for split, divisor in possible)])
        halves = [split for split in spec.dms_splits if split in dict(possible)]
        if halves:
            dms_sample.main([*dataset, "--splits", *halves])
    elif splits is False:
        print("now make the splits:")
        for script in ("generate_splits.py", "dms_sample.py"):
            print(f"python {script} --dataset={spec.name} --data-root={shlex.quote(str(root))}")
    print("every command and launcher finds the dataset after")
    print(f"export {spec.root_variable}={shlex.quote(str(root))}")


def in_parallel(function, jobs, what, unit, total=None, threads=None):
    """Yield ``function(job)`` of all ``jobs`` in order, by threads that run only a little ahead; progress is shown."""
    threads = threads or min(16, os.cpu_count() or 1)

    def results():
        waiting = collections.deque()
        with ThreadPoolExecutor(threads) as pool:
            try:
                for job in jobs:
                    waiting.append(pool.submit(function, job))
                    if len(waiting) > 4 * threads:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    return progress_bar(what, unit, len(jobs) if total is None else total)(results())
