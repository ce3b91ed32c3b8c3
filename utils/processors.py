"""How many processors this process may use, which containers and batch systems make fewer than the machine has."""

import multiprocessing
import os

from utils.errors import NO_SHARED_MEMORY, UserError


def usable():
    """Number of processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not everywhere
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def loaders(shares=1):
    """How many loader processes feed a GPU of a machine with ``shares`` of them; the rest is for what else is done.

    On 16 processors of an H200's machine 8 loaders gave validation fewer images a second than the network takes.
    """
    own = usable() // shares
    return max(1, min(own, 8), min(own * 3 // 4, 12))


def check_shared_memory():
    """Raise ``UserError`` where the system has no memory that loader processes could share."""
    try:
        multiprocessing.Lock()
    except OSError as error:
        raise UserError(NO_SHARED_MEMORY) from error
