"""One piece of work beside what the program goes on with."""

import concurrent.futures
import contextlib


class Background:
    """Runs one function at a time in a thread of its own.

    What it raises comes once, from the next ``check`` or ``wait``. Used as a context, it ends when the work has,
    whatever signals come; after an error within, an error of the work is left aside.
    """

    def __init__(self):
        self._thread, self._work = concurrent.futures.ThreadPoolExecutor(1), None

    def start(self, function, *arguments):
        """Run ``function(*arguments)``, when what was started before has ended."""
        self.wait()
        self._work = self._thread.submit(function, *arguments)

    @property
    def busy(self):
        """Whether what was started goes on."""
        return self._work is not None and not self._work.done()

    def check(self):
        """Raise what the work raised, if it has ended so."""
        if self._work is not None and self._work.done():
            work, self._work = self._work, None
            work.result()

    def wait(self):
        """Until what was started has ended; then ``check``."""
        if self._work is not None:
            concurrent.futures.wait([self._work])
        self.check()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        interrupted = None
        while self.busy:
            try:
                concurrent.futures.wait([self._work])
            except KeyboardInterrupt as again:
                interrupted = again
        self._thread.shutdown()
        with contextlib.nullcontext() if kind is None else contextlib.suppress(Exception):
            self.check()
        if interrupted is not None:
            raise interrupted
