"""Numbers on a command line: those that make no sense end in one line."""

import argparse
import math


def number(kind, low, what, strict=False, high=math.inf):
    """A parser for ``argparse``: text -> ``kind`` (int or float), from ``low`` (above it if ``strict``) to ``high``.

    ``what`` says in words what is wanted, for the error.
    """
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (value > low if strict else value >= low) or not value <= high or math.isinf(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value
    return parse
