"""The pseudo-label store under threads."""

import gc
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from data.store import PseudoLabelStore


@pytest.fixture
def hurried():
    """Threads give way at every moment, in the middle of Python's parser, too."""
    def give_way(*_):
        time.sleep(0)

    thresholds, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.callbacks.append(give_way)
    gc.set_threshold(20, 1, 1)
    sys.setswitchinterval(1e-6)
    yield
    gc.set_threshold(*thresholds)
    sys.setswitchinterval(interval)
    gc.callbacks.remove(give_way)


def test_predictions_are_read_in_threads(tmp_path, hurried):
    """Before Python 3.11.8 headers of .npy files that are parsed at the same time fail at random."""
    store, steps = PseudoLabelStore(tmp_path), np.arange(32, dtype=np.uint16).reshape(2, 4, 4)
    store.write_logits("a", steps, (30, 30), (4, 4))

    def read(depth):
        return store.read_logits("a") if depth == 0 else read(depth - 1)

    with ThreadPoolExecutor(8) as pool:
        for found, size in pool.map(read, [number % 7 for number in range(600)]):
            assert (found == steps).all() and size == (30, 30)
