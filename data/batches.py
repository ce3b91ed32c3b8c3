"""Which images form training step t, and with which random draws: a function of (seed, step) and nothing else."""

import functools
import zlib

import numpy as np


def generator(seed, purpose, *position):
    """A numpy Generator for one draw: the same (seed, purpose, position) always gives the same numbers.

    ``purpose`` is a text such as "order of labelled images"; ``position`` are integers (epoch or pass, index).
    """
    return np.random.default_rng((seed, zlib.crc32(purpose.encode()), *position))


class Stream:
    """Batches of one kind of image, without end: pass after pass over ``size`` images, reshuffled at each pass.

    Incomplete last batches are used, so a pass has ceil(size / batch_size) batches.
    """

    def __init__(self, kind, size, batch_size, seed):
        self.kind, self.size, self.batch_size, self.seed = kind, size, batch_size, seed
        self.batches_per_pass = -(-size // batch_size)
        self._order = functools.lru_cache(maxsize=2)(self._shuffled)

    def _shuffled(self, pass_number):
        return generator(self.seed, f"order of {self.kind} images", pass_number).permutation(self.size)

    def batch(self, number):
        """Batch ``number`` (from 0) as a list of keys (kind, pass, index)."""
        pass_number, place = divmod(number, self.batches_per_pass)
        chosen = self._order(pass_number)[place * self.batch_size : (place + 1) * self.batch_size]
        return [(self.kind, pass_number, int(index)) for index in chosen]


class Steps:
    """The batches of a whole training, for a DataLoader's ``batch_sampler``: step t takes batch t of every stream.

    An epoch is one pass over the first stream; the other streams cycle beside it.
    """

    def __init__(self, streams, epochs, start=0):
        self.streams, self.start = streams, start
        self.per_epoch = streams[0].batches_per_pass
        self.total = epochs * self.per_epoch

    def __len__(self):
        return self.total - self.start

    def __iter__(self):
        for step in range(self.start, self.total):
            yield [key for stream in self.streams for key in stream.batch(step)]

    def num_pseudo(self, step):
        """How many samples of batch ``step`` are pseudo-labelled; they come first."""
        return sum(len(stream.batch(step)) for stream in self.streams if stream.kind == "pseudo")
