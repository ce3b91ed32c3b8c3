"""Several processes that work on one stage, as torchrun starts them. Alone, every call does nothing.

The first process (rank 0) speaks and writes; the others are silent. Where they end in an error, one of them says so.
"""

import atexit
import contextlib
import itertools
import os
import signal
import socket
import sys
import threading
import time
import warnings
from datetime import timedelta
from pathlib import Path

from utils.errors import UserError, report

STATUS_FILE = "STATUS_FILE"
"""Name of an environment variable. torchrun answers whatever goes wrong with a long report and exit status 1; where the
variable names a file, the exit status is written there, and processes that all came to an orderly end leave with 0."""

_WAIT = timedelta(minutes=30)  # for the slowest process: the first one may check files or write a checkpoint meanwhile
_REACHED = timedelta(seconds=30)  # for the store of torchrun, which may have died meanwhile
_SOON = 3  # seconds in which the others come to their end, too, or say what went wrong
_STUCK = 5  # seconds after which a process that waits for a dead one is ended


_STAGES = itertools.count()  # in one process one after the other: what they leave with torchrun has to differ


class Processes:
    """This process and its fellows, as a context around their work: ``size`` processes, of which this one is ``rank``.

    ``local_rank`` and ``local_size`` are the same on this machine alone. Whatever is exchanged has to be asked for by
    every process in the same order. In the context the others than the first print nothing; an error of any ends all.
    """

    def __init__(self, environment=None):
        environment = os.environ if environment is None else environment
        names = {"rank": ("RANK", 0), "size": ("WORLD_SIZE", 1), "local_rank": ("LOCAL_RANK", 0),
                 "local_size": ("LOCAL_WORLD_SIZE", 1)}
        started = "RANK" in environment and "WORLD_SIZE" in environment
        if started and environment["WORLD_SIZE"] != "1" and "MASTER_ADDR" not in environment:
            raise UserError("the environment variables RANK and WORLD_SIZE are set, but MASTER_ADDR is not; start several "
                            "processes with torchrun, or unset them for one")
        for name, (variable, alone) in names.items():
            try:
                setattr(self, name, int(environment.get(variable, alone)) if started else alone)
            except ValueError:
                raise UserError(f"the environment variable {variable} is {environment[variable]!r}, not a number; "
                                "start several processes with torchrun") from None
        self.is_first = self.rank == 0
        if self.size > 1:
            _undo_thread_limit()
        self._connected, self._leaving, self._store_kept, self._fellows = False, False, None, []
        self._store_gone = False
        self._number = next(_STAGES)
        self._silence = contextlib.ExitStack()

    def share(self, items):
        """Those of ``items`` that are this process's, in their order: every ``size``-th one."""
        return itertools.islice(items, self.rank, None, self.size)

    # --- exchange -------------------------------------------------------------------------------------------------

    def connect(self, device):
        """Meet the others. ``device`` is the ``torch.device`` that this process computes on."""
        if self.size == 1:
            return
        import torch.distributed as dist
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        self._meet()
        dist.init_process_group(backend, store=self._store(), rank=self.rank, world_size=self.size, timeout=_WAIT)
        self._connected = True
        everybody = [None] * self.size
        dist.all_gather_object(everybody, (socket.gethostname(), os.getpid()))
        self._fellows = everybody

    def _meet(self):
        """Wait until all are there, or until one has said that it will not come: on another machine, say."""
        store, end = self._store(), time.monotonic() + _WAIT.total_seconds()
        store.set(f"here {self.rank}", "")
        while not store.check([f"here {rank}" for rank in range(self.size)]):
            if store.check(["status"]):
                raise SystemExit(int(store.get("status")))
            if time.monotonic() > end:
                raise UserError("the other processes have not come; look at what they print, and start the command again")
            time.sleep(0.05)

    def agree(self, value, what):
        """Raise ``UserError`` unless ``value`` (comparable, picklable) is the same on all processes; ``what`` names it."""
        values = self.gather(value)
        if any(other != values[0] for other in values):
            ranks = ", ".join(str(rank) for rank, other in enumerate(values) if other != values[0])
            raise UserError(f"the processes differ in {what} (rank {ranks} from rank 0): start the same command, with the "
                            "same numbers and data, on every machine")

    def sum(self, tensor):
        """Add up ``tensor`` (of one shape and type everywhere) over the processes, in its place; returns it."""
        return self._reduce(tensor, "SUM")

    def min(self, tensor):
        """As ``sum``, but take the smallest."""
        return self._reduce(tensor, "MIN")

    def sum_array(self, array):
        """The sum of the numpy array over the processes, exact for integers."""
        import torch
        return array if self.size == 1 else self.sum(torch.from_numpy(array.copy())).numpy()

    def any(self, flag):
        """Whether ``flag`` is true on any process. Waits for no GPU."""
        import torch
        return bool(flag) if self.size == 1 else bool(self.sum(torch.tensor([int(flag)]))[0] > 0)

    def gather(self, value):
        """The values (picklable) of all processes, as a list."""
        import torch.distributed as dist
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def first(self, function, *arguments):
        """Call ``function`` on the first process only; all get its result (picklable), or raise its ``UserError``."""
        import torch.distributed as dist
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

    def after_first(self, function):
        """What ``function`` returns on each process, called on the first one before the others (a download, say)."""
        made = []
        self.first(lambda: made.append(function()))
        return made[0] if made else function()

    def each_machine(self, function):
        """Call ``function`` on one process of every machine; all go on when all calls have ended. Alone: nothing."""
        if self.size > 1 and self.local_rank == 0:
            function()
        self.any(False)

    @contextlib.contextmanager
    def held_by_first(self, make):
        """Enter the context that ``make()`` gives on the first process, which gets its value; the others get None."""
        with contextlib.ExitStack() as stack:
            entered = []
            self.first(lambda: entered.append(stack.enter_context(make())))
            yield entered[0] if entered else None

    def replicate(self, model):
        """``model`` such that a backward pass leaves the sum of all processes' gradients; alone the model itself.

        It gets the first one's parameters and buffers. Only parameters with ``requires_grad`` are taken care of.
        """
        if self.size == 1:
            return model
        import torch.distributed as dist
        from torch.nn.parallel import DistributedDataParallel
        with warnings.catch_warnings(action="ignore"):  # torch 2.14 has a new name for it, which 2.11 does not know
            replica = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)

        def add_up(_, bucket):  # by default they would be averaged: divided first, and in half precision that underflows
            work = dist.all_reduce(bucket.buffer(), async_op=True)
            return work.get_future().then(lambda done: done.value()[0])

        replica.register_comm_hook(None, add_up)
        return replica

    def _reduce(self, tensor, operation):
        if self.size > 1:
            import torch.distributed as dist
            dist.all_reduce(tensor, getattr(dist.ReduceOp, operation))
        return tensor

    # --- the end --------------------------------------------------------------------------------------------------

    def __enter__(self):
        if self.size > 1:
            if not self.is_first:
                nowhere = self._silence.enter_context(open(os.devnull, "w", encoding="utf-8"))
                self._silence.enter_context(contextlib.redirect_stdout(nowhere))
                self._silence.enter_context(contextlib.redirect_stderr(nowhere))
            self._handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
            signal.signal(signal.SIGTERM, self._end_by_signal)
            self._watch()
            if os.environ.get(STATUS_FILE) and self.local_rank == 0:
                with contextlib.suppress(OSError):  # that it cannot be written shows at the end
                    Path(os.environ[STATUS_FILE]).write_bytes(b"")  # not that of an earlier start
        return self

    def __exit__(self, kind, error, trace):
        if self.size == 1:
            return
        self._leaving = True
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it, and torchrun again
        self._silence.close()
        if error is None or isinstance(error, SystemExit):
            status = 0 if error is None or error.code is None else error.code
            if status == 128 + signal.SIGTERM and self._mourn():  # from torchrun, after the death of another one
                status = 1
            status = self._leave(status)
            if self._connected:
                import torch.distributed as dist
                dist.destroy_process_group()
            self._stop_watching()
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            if error is not None or status:
                raise SystemExit(status)
            return
        status = self._leave(self._tell(kind, error, trace))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # threads that wait for the others would keep Python from ending

    def _tell(self, kind, error, trace):
        """Say what went wrong, unless another process does; returns the exit status."""
        if _is_contact_lost(error):
            if not self._mourn(_SOON) and self._may_speak():
                _say("the connection to another process was lost; start the same command again, it goes on from what "
                     f"is saved ({' '.join(str(error).split()):.200})")
            return 1
        status = None
        if self._may_speak():
            status = report(error)
            if status is None:
                sys.excepthook(kind, error, trace)  # a fault of ours
        else:
            self._await_status()
        return status or 1

    def _end_by_signal(self, number, _):
        if not self._leaving:
            raise SystemExit(128 + number)

    def _may_speak(self):
        """Whether nobody else has said yet what went wrong. Only one process is ever told so."""
        try:
            return self._store().add("spoken", 1) == 1
        except RuntimeError:  # torch's; the store has gone with its machine
            return self.local_rank == 0

    def _await_status(self):
        """The one that speaks knows the status of all; it has to be there before the others leave theirs."""
        try:
            self._store().wait(["status"], timedelta(seconds=_SOON))
        except RuntimeError:
            pass  # it takes longer, or its machine has gone

    def _leave(self, status):
        """Come to an orderly end with ``status``, and return the exit status (see ``STATUS_FILE``)."""
        path = os.environ.get(STATUS_FILE)
        if not path and self._store_kept is None:  # ended before it began
            return status
        try:
            store = self._store()
            if status:
                store.compare_set("status", "", str(status))
            store.set(f"left {self.rank}", "")
            if not path:
                return status
            everybody, end = [f"left {rank}" for rank in range(self.size)], time.monotonic() + _SOON
            while not store.check(everybody) and time.monotonic() < end:
                time.sleep(0.05)
            if self.local_rank == 0:
                Path(path).write_bytes(store.get("status") if store.check(["status"]) else b"0")
            return 0 if store.check(everybody) else status
        except (RuntimeError, OSError):
            return status

    def _store(self):
        """What torchrun keeps for all processes: a dict that outlives every one of them, and is there before the first."""
        if self._store_kept is None:
            import torch.distributed as dist
            if self._store_gone:
                raise RuntimeError("torchrun's store cannot be reached")
            self._store_gone = True
            store, _, _ = next(dist.rendezvous("env://", timeout=_REACHED))
            self._store_gone = False
            store.set_timeout(_WAIT)
            self._store_kept = dist.PrefixStore(f"stage {self._number}", store)
        return self._store_kept

    def _mourn(self, wait=0):
        """Whether another process failed first: one that has said so, or one that died without a word; then say that.

        It may take some seconds (``wait``) to show.
        """
        end = time.monotonic() + wait
        while True:
            try:
                if self._store().check(["spoken"]) or self._store().check(["status"]):
                    return True
                dead = [rank for rank, (host, pid) in enumerate(self._fellows) if host == socket.gethostname()
                        and _is_dead(pid) and not self._store().check([f"left {rank}"])]
            except RuntimeError:
                dead = []
            if dead:
                if self._may_speak():
                    host, pid = self._fellows[dead[0]]
                    _say(f"rank {dead[0]} of {self.size} processes (process {pid} on {host}) has died, and the others "
                         "end with it; start the same command again, it goes on from what is saved, also with another "
                         "number of processes")
                return True
            if time.monotonic() >= end:
                return False
            time.sleep(0.05)

    def _watch(self):
        """After a death torchrun sends SIGTERM, but a process that waits for the dead one on a GPU cannot look at it.

        Where torchrun itself has died, nobody sends anything: then the process asks itself to stop.
        """
        self._wakeup = reader, writer = socket.socketpair()
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        reader.settimeout(1)
        parent = os.getppid()

        def watch():
            while number := receive():
                if number[0] == signal.SIGTERM and self._mourn():
                    time.sleep(_STUCK)
                    self._leave(1)
                    os._exit(1)

        def receive():
            while os.getppid() == parent:
                with contextlib.suppress(TimeoutError):
                    return reader.recv(1)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(_STUCK)
            if not self._connected:  # it looks for what torchrun kept for all, in vain
                os._exit(1)
            return b""

        threading.Thread(target=watch, daemon=True).start()

    def _stop_watching(self):
        signal.set_wakeup_fd(-1)
        self._wakeup[1].close()


ALONE = Processes({})


def as_script(main):
    """Call ``main()`` as the last thing that a script does.

    One of several processes then leaves at once: in Python's own clean-up torch's threads now and then abort, and torchrun
    would report a failure where there was none.
    """
    status = 0
    try:
        main()
    except SystemExit as stop:
        if os.environ.get("WORLD_SIZE", "1") == "1" or not isinstance(stop.code, int | None):
            raise
        status = stop.code or 0
    if os.environ.get("WORLD_SIZE", "1") != "1":
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _undo_thread_limit():
    """torchrun gives each process one thread unless the user says otherwise: then a CPU adds up in another order than in
    one process, and some logits differ by rounding. Has to come before torch is loaded.
    """
    try:
        of_torchrun = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
    except OSError:
        return
    if not any(entry.startswith(b"OMP_NUM_THREADS=") for entry in of_torchrun):
        os.environ.pop("OMP_NUM_THREADS", None)


def _say(text):
    print(f"error: {text}", file=sys.__stderr__, flush=True)


def _is_contact_lost(error):
    """Whether ``error`` is torch's about an exchange that failed; gloo's have no class of their own."""
    if not isinstance(error, RuntimeError):
        return False
    text = str(error)
    return type(error).__name__.startswith("Dist") or any(
        name in text for name in ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer"))


def _is_dead(pid):
    """Whether no process of this machine has that number, or only what is left until its parent looks (a zombie)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return state.rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True
