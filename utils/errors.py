"""What a user can cause ends in one line on standard error and exit status 2, never in a traceback."""

import functools
import sys


class UserError(Exception):
    """Something the user can mend. The message says what is wrong, where, and how to mend it, in one line."""


def reports_user_errors(main):
    """Wrap a command's ``main``: a ``UserError`` becomes one line on standard error and exit status 2."""

    @functools.wraps(main)
    def run(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print("error: " + " ".join(str(error).split()), file=sys.stderr)
            sys.exit(2)
        except BrokenPipeError:  # `main.py --help | head`: the reader has gone, there is no one to tell
            sys.stderr.close()
            sys.exit(141)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return run
