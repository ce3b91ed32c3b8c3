"""What a value that was read from a file must be."""

import math


def fits(value, kind):
    """Whether ``value``, as YAML or JSON gives it, is of ``kind``.

    A kind is ``str`` (a text of one line), ``float`` (a finite number), ``dict`` (any), a range (a whole number in it),
    a list (of one kind: a list of such values, not empty; else: a list of values of these kinds), a tuple (one of these
    kinds), or the value itself.
    """
    if isinstance(kind, tuple):
        return any(fits(value, one) for one in kind)
    if isinstance(kind, list):
        return isinstance(value, (list, tuple)) and bool(value) == bool(kind) and (
            len(kind) in (1, len(value)) and all(map(fits, value, kind * len(value) if len(kind) == 1 else kind)))
    if isinstance(kind, range):
        return type(value) is int and value in kind
    if kind is str:
        return isinstance(value, str) and value.isprintable() and bool(value.strip())
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    if kind is dict:
        return isinstance(value, dict)
    return type(value) is type(kind) and value == kind
