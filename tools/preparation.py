"""What the tools that prepare a dataset share: counts against those expected, room on the disk, the lists of splits."""

import collections
import contextlib
import shlex
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dms_sample
import generate_splits
from data.lists import find_training_list, read_list
from data.splits import make_splits
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


def count_faults(rows):
    """Texts about those of ``rows`` (what, found, expected) whose numbers differ: one for all of them, or none."""
    wrong = [f"{what}: {found} instead of {expected}" for what, found, expected in rows
             if expected is not None and found != expected]
    return [f"the numbers differ, {'; '.join(wrong)}. Get the official files, or, if yours are meant to differ, give "
            "their numbers with --counts or add --no-counts"] if wrong else []


def check_counts(rows):
    """Raise ``UserError`` when some of ``rows`` have ``count_faults``."""
    for fault in count_faults(rows):
        raise UserError(fault)


def check_room(folder, sizes):
    """Raise ``UserError`` when files of ``sizes`` (bytes each) do not fit on the disk of ``folder``."""
    folder = Path(folder).absolute()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    needed, free = sum(size + BLOCK for size in sizes), shutil.disk_usage(there).free
    if needed > free:
        raise UserError(f"{folder} needs {needed / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB left; make room or "
                        "choose another folder")


def make_split_lists(spec, root):
    """Run generate_splits.py and dms_sample.py, without the splits that a dataset this small cannot have."""
    names = read_list(find_training_list(spec, root))
    possible = [(split, divisor) for split, divisor in spec.divisors if _possible(names, split, divisor)]
    if len(possible) < len(spec.divisors):
        left_out = [split for split, divisor in spec.divisors if (split, divisor) not in possible]
        print(f"note: {len(names)} training images are too few for the splits {' '.join(left_out)}; they are left out")
    if not possible:
        return
    dataset = ["--dataset", spec.name, "--data-root", str(root)]
    generate_splits.main([*dataset, "--divisors", *(f"{split}:{divisor}" for split, divisor in possible)])
    halves = [split for split in spec.dms_splits if split in dict(possible)]
    if halves:
        dms_sample.main([*dataset, "--splits", *halves])


def print_next(spec, root, splits_made):
    """Print what the user does now: the commands for the splits unless they were made, and the environment variable."""
    if not splits_made:
        print("now make the splits:")
        for script in ("generate_splits.py", "dms_sample.py"):
            print(f"python {script} --dataset={spec.name} --data-root={shlex.quote(str(root))}")
    print("every command and launcher finds the dataset after")
    print(f"export {spec.root_variable}={shlex.quote(str(root))}")


def in_parallel(function, jobs, threads):
    """Yield ``function(job)`` for every one of ``jobs`` in order; few of them are waiting at any time."""
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


def _possible(names, split, divisor):
    with contextlib.suppress(UserError):
        return bool(make_splits(names, [(split, divisor)], ids=1))
    return False
