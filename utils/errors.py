"""What a user can cause ends in one line on standard error and exit status 2, never in a traceback."""

import argparse
import contextlib
import difflib
import errno
import functools
import math
import os
import re
import signal
import sys

NO_SHARED_MEMORY = ("the loader processes have too little shared memory (/dev/shm); give --workers=0, or start the "
                    "container with more (docker run --shm-size=8g, or --ipc=host)")
_HOME = re.compile(r"^(-[^=]*=)?~(?=/|$)")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """Something the user can mend. The message says what is wrong, where, and how to mend it, in one line."""


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, too. Its description keeps its lines.

    A ~ that the shell has left as it is, as bash does in --out=~/runs, is the home folder.
    """

    def __init__(self, **options):
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **options})

    def parse_known_args(self, args=None, namespace=None):
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([_HOME.sub(lambda found: (found[1] or "") + os.path.expanduser("~"), str(word))
                                         for word in words], namespace)

    def error(self, message):
        """Print ``message`` and exit with status 2. Of options that do not exist the nearest name is told."""
        nearest = ""
        if message.startswith("unrecognized arguments: -"):
            wrong = message.split()[2].split("=")[0]
            nearest = "".join(f"; did you mean {name}?" for name in
                              difflib.get_close_matches(wrong, self._option_string_actions, 1))
        print(f"error: {message}{nearest} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(2)


def number(kind, low, what, strict=False, high=math.inf):
    """A type for ``argparse``: text -> ``kind`` (int or float), from ``low`` (above it if ``strict``) to ``high``.

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


def report(error):
    """Print what a user can mend as one line on standard error and return the exit status; None for any other error."""
    if isinstance(error, BrokenPipeError):  # `main.py --help | head`: the reader has gone, there is no one to tell
        sys.stderr.close()
        return 141
    if isinstance(error, KeyboardInterrupt):
        for number in (signal.SIGINT, signal.SIGTERM):  # Python's own clean-up would show where it was interrupted
            with contextlib.suppress(ValueError):  # not in the main thread
                signal.signal(number, signal.SIG_IGN)
        print("interrupted", file=sys.stderr)
        return 130
    line = _line(error)
    if line is None:
        return None
    print(f"error: {line}", file=sys.stderr)
    return 2


def _line(error):
    """What a user can mend, in one line, or None."""
    if isinstance(error, UserError):
        # A loader worker's error comes with its traceback; the line itself stands at the end.
        return " ".join(str(error).rsplit("UserError: ", 1)[-1].split())
    if isinstance(error, UnicodeEncodeError):  # a file name from a list, in a locale that has no such letters
        mend = "rename what is not UTF-8" if error.encoding.startswith("utf") else "set LC_ALL=C.UTF-8"
        return f"{ascii(error.object[:200])} cannot be written in the encoding {error.encoding}; {mend}"
    if any(words in str(error) for words in ("shared memory", "Bus error")):  # torch's words
        return NO_SHARED_MEMORY
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return not_written(error.filename or "a file", error)
    if type(error).__name__ == "OutOfMemoryError":  # torch's; it is not imported for this
        return ("the GPU's memory is full; train in parts of a batch (--accumulate N, or --max-memory GB, which picks "
                "N), add --mixed-precision or --no-cuda-graphs, or lower --batch-size-labeling (main.py --check "
                "estimates the need)")
    return None


def not_written(path, error):
    """What to say where writing ``path`` ended in ``error``, an ``OSError``."""
    mend = ("make room and start the same command again" if error.errno in _NO_ROOM
            else "check the folder and its permissions")
    return f"{path} cannot be written: {error.strerror or error}; {mend}"


def reports_user_errors(main):
    """Wrap a command's ``main``: a ``UserError`` becomes one line on standard error and exit status 2."""

    @functools.wraps(main)
    def run(*args, **kwargs):
        for stream in (sys.stdout, sys.stderr):  # a locale without umlauts, or a file name that is no text
            with contextlib.suppress(AttributeError):
                stream.reconfigure(errors="backslashreplace")
        try:
            return main(*args, **kwargs)
        except (Exception, KeyboardInterrupt) as error:
            status = report(error)
            if status is None:
                raise
            sys.exit(status)

    return run
