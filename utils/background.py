"""One piece of work beside what the program goes on with."""

import contextlib
import threading


class Background:
    """Runs one function at a time in a thread of its own. What it raises comes from the next ``check`` or ``wait``.

    Used as a context, it ends when the work has, whatever signals come; after an error within, an error of the work is
    left aside.
    """

    def __init__(self):
        # An interrupted Thread.join leaves a thread that looks as if it had ended.
        self._ended, self._error = threading.Event(), None
        self._ended.set()

    def start(self, function, *arguments):
        """Run ``function(*arguments)``, when what was started before has ended."""
        self.wait()
        self._ended.clear()

        def run():
            try:
                function(*arguments)
            except BaseException as error:  # told to whoever asks
                self._error = error
            finally:
                self._ended.set()

        try:
            threading.Thread(target=run).start()
        except BaseException:  # no thread to be had: nothing is at work
            self._ended.set()
            raise

    @property
    def busy(self):
        """Whether what was started goes on."""
        return not self._ended.is_set()

    def check(self):
        """Raise what the work raised, if it has ended so; once."""
        if not self.busy and self._error is not None:
            error, self._error = self._error, None
            try:
                raise error
            finally:
                del error  # which holds this frame

    def wait(self):
        """Until what was started has ended; then ``check``."""
        self._ended.wait()
        self.check()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        interrupted = None
        while self.busy:
            try:
                self._ended.wait()
            except KeyboardInterrupt as again:
                interrupted = again
        with contextlib.nullcontext() if kind is None else contextlib.suppress(Exception):
            self.check()
        if interrupted is not None:
            raise interrupted
