"""One piece of work beside what the program goes on with."""

import contextlib
import threading


class Background:
    """Runs one function at a time in a thread of its own. What it raises comes from the next ``start`` or ``wait``.

    Used as a context, it ends when the work has; after an error within, an error of the work is left aside.
    """

    def __init__(self):
        self._thread, self._error = None, None

    def start(self, function, *arguments):
        """Run ``function(*arguments)``, when what was started before has ended."""
        self.wait()

        def run():
            try:
                function(*arguments)
            except BaseException as error:  # told to whoever waits
                self._error = error

        self._thread = threading.Thread(target=run)
        self._thread.start()

    @property
    def busy(self):
        """Whether what was started goes on."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self):
        """Until what was started has ended; raises what it raised."""
        if self._thread is not None:
            self._thread.join()
        self._thread, error, self._error = None, self._error, None
        if error is not None:
            raise error

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        with contextlib.nullcontext() if kind is None else contextlib.suppress(Exception):
            self.wait()
