"""Progress of long work: a bar with rate and time left on a terminal, plain lines in a log file."""

import os
import sys
import time

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 8


def progress_bar(items, what, unit, total=None):
    """``items``, while it is shown how far they are; ``total`` where they do not know their number."""
    total = len(items) if total is None else total
    if sys.stderr.isatty() and all(os.get_terminal_size(sys.stderr.fileno())):  # of no size tqdm shows nothing
        return tqdm(items, desc=what, unit=unit, total=total, leave=False, dynamic_ncols=True)
    return _lines(items, what, unit, total)


def _lines(items, what, unit, total):
    start = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES and done < total:
            last = now
            rate = done / (now - start)
            left = tqdm.format_interval((total - done) / rate)
            units = f"{unit}es" if unit.endswith("ch") else f"{unit}s"
            print(f"{what}: {done} of {total} {units} ({rate:.2f} a second, {left} left)", file=sys.stderr, flush=True)
