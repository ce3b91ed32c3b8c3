"""Which images form training step t, and with which random draws: a function of (seed, step) and nothing else."""

import functools
import zlib

import numpy as np


def generator(seed, purpose, *position):
    """A numpy Generator for one draw: the same (seed, purpose, position) always gives the same numbers.

    ``purpose`` is a text such as "order of labelled images"; ``position`` are integers (epoch or pass, index).
    """
    return np.random.default_rng((seed, zlib.crc32(purpose.encode()), *position))


def whole_batches(count, size):
    """The positions 0 to ``count`` - 1 in batches of ``size``, as lists; the last one may be smaller."""
    return [list(range(start, min(start + size, count))) for start in range(0, count, size)]


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

    An epoch is one pass over the first stream; the other streams cycle beside it. A batch is cut into ``accumulate``
    parts, and each part among ``size`` processes, of which this one is ``rank``: by dealing out, so that shares differ
    by one sample at most. Of its own samples each part's come together, and of them the first stream's first.
    """

    def __init__(self, streams, epochs, accumulate=1, rank=0, size=1):
        self.streams, self.start = streams, 0
        self.accumulate, self.rank, self.size = accumulate, rank, size
        self.per_epoch = streams[0].batches_per_pass
        self.total = epochs * self.per_epoch

    def __len__(self):
        return self.total - self.start

    def __iter__(self):
        for step in range(self.start, self.total):
            yield [key for part in self._shares(step) for key in part]

    def parts(self, step):
        """Of every part of batch ``step`` that is not empty everywhere, (samples, pseudo-labelled ones) here: a tuple."""
        return tuple((len(part), sum(kind == "pseudo" for kind, *_ in part)) for part in self._shares(step))

    def samples(self, step):
        """The number of samples of batch ``step``, of all processes."""
        return sum(len(stream.batch(step)) for stream in self.streams)

    def _shares(self, step):
        keys = [key for stream in self.streams for key in stream.batch(step)]
        parts = (keys[number :: self.accumulate] for number in range(self.accumulate))
        return [part[self.rank :: self.size] for part in parts if part]
