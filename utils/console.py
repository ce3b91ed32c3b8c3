"""Progress of long work: a bar with rate and time left on a terminal, plain lines in a log file."""

import os
import sys
import time

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 8


def progress_bar(what, unit, total=None):
    """A function that wraps an iterable and shows how far it is; ``total`` where that does not know its length."""
    def wrap(items):
        length = total if total is not None else len(items)
        if sys.stderr.isatty() and all(os.get_terminal_size(sys.stderr.fileno())):  # of no size tqdm shows nothing
            return tqdm(items, desc=what, unit=unit, total=length, leave=False, dynamic_ncols=True)
        return _lines(items, what, unit, length)
    return wrap


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
