"""How many processors this process may use, which containers and batch systems make fewer than the machine has."""

import os


def usable():
    """Number of processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not everywhere
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
