"""Several processes that work on one stage, as torchrun starts them. Alone, every call does nothing.

The first process (rank 0) speaks and writes; the others are silent. torchrun ends all of them when one fails.
"""

import atexit
import contextlib
import itertools
import os
import signal
import sys
import time
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from utils.errors import UserError, report

_WAIT = timedelta(minutes=30)  # for the slowest process: the first one may check files or write a checkpoint meanwhile
_ECHO = 3  # seconds in which torchrun ends the others, where one has failed


class Processes:
    """This process and its fellows, as a context around their work: ``size`` processes, of which this one is ``rank``.

    ``local_rank`` and ``local_size`` are the same on this machine alone. Whatever is exchanged has to be asked for by
    every process in the same order. Of several processes each ends with the context.
    """

    def __init__(self, environment=None):
        environment = os.environ if environment is None else environment
        if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= environment.keys():
            environment = {}
        self.rank, self.size = int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1))
        self.local_rank = int(environment.get("LOCAL_RANK", 0))
        self.local_size = int(environment.get("LOCAL_WORLD_SIZE", 1))
        self.is_first = self.rank == 0
        self._silence = contextlib.ExitStack()

    def share(self, items):
        """Those of ``items`` that are this process's, in their order: every ``size``-th one."""
        return itertools.islice(items, self.rank, None, self.size)

    def connect(self, device):
        """Meet the others. ``device`` is the ``torch.device`` that this process computes on."""
        if self.size > 1 and not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=_WAIT)

    def agree(self, value, what):
        """Raise ``UserError`` unless ``value`` (comparable, picklable) is the same everywhere; ``what`` names it."""
        first, *others = self.gather(value)
        ranks = [str(rank) for rank, other in enumerate(others, start=1) if other != first]
        if ranks:
            raise UserError(f"the processes differ in {what} (rank {', '.join(ranks)} from rank 0): start the same "
                            "command, with the same numbers and data, on every machine")

    def sum(self, tensor):
        """Add up ``tensor`` (of one shape and type everywhere) over the processes, in its place; returns it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag):
        """Whether ``flag`` is true on any process. Waits for no GPU."""
        return bool(flag) if self.size == 1 else bool(self.sum(torch.tensor([int(flag)]))[0] > 0)

    def gather(self, value):
        """The values (picklable) of all processes, as a list."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def first(self, function, *arguments):
        """Call ``function`` on the first process only; all get its result (picklable), or raise its ``UserError``."""
        if self.size == 1:
            return function(*arguments)
        outcome = [None, None]
        if self.is_first:
            try:
                outcome[0] = function(*arguments)
            except UserError as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def wait(self):
        """Go on when every process has come here."""
        self.any(False)

    def replicate(self, model):
        """``model`` such that a backward pass leaves the sum of all processes' gradients; alone the model itself.

        It gets the first one's parameters and buffers. Only parameters with ``requires_grad`` are taken care of.
        """
        if self.size == 1:
            return model
        with warnings.catch_warnings(action="ignore"):  # torch 2.14 has a new name for it, which 2.11 does not know
            replica = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)

        def add_up(_, bucket):  # by default they would be divided first, and in half precision that underflows
            work = dist.all_reduce(bucket.buffer(), async_op=True)
            return work.get_future().then(lambda done: done.value()[0])

        replica.register_comm_hook(None, add_up)
        return replica

    def __enter__(self):
        if not self.is_first:
            nowhere = self._silence.enter_context(open(os.devnull, "w", encoding="utf-8"))
            self._silence.enter_context(contextlib.redirect_stdout(nowhere))
            self._silence.enter_context(contextlib.redirect_stderr(nowhere))
        return self

    def __exit__(self, kind, error, trace):
        """One of several processes leaves at once: Python's clean-up would wait for threads that wait for others."""
        self._silence.close()
        if self.size == 1:
            return
        if error is None or isinstance(error, SystemExit):
            status = 0 if error is None or error.code is None else error.code
            if dist.is_initialized():
                dist.destroy_process_group()
            atexit._run_exitfuncs()
        else:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if not (self.is_first and isinstance(error, UserError)):
                time.sleep(_ECHO)  # in which torchrun ends this process if another one failed first, and has said why
            status = report(error)
            if status is None:
                sys.excepthook(kind, error, trace)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1 if status is None else status)


ALONE = Processes({})
