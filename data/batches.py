"""Which images form training step t, and with which random draws: a function of (seed, step) and nothing else."""

import functools
import zlib

import numpy as np


def generator(seed, purpose, *position):
    """A numpy Generator for one draw: the same (seed, purpose, position) always gives the same numbers.

    ``purpose`` is a text such as "order of labelled images"; ``position`` are integers (epoch or pass, index).
    """
    return np.random.default_rng((seed, zlib.crc32(purpose.encode()), *position))


class Steps:
    """The batches of a whole training, for a DataLoader's ``batch_sampler``.

    ``streams`` are triples (kind, number of images, images a step): pass after pass over the images of a kind,
    reshuffled at each pass, incomplete last batches included. An epoch is one pass over the first stream; the others
    cycle beside it. A batch is cut into ``accumulate`` parts, and each part among ``size`` processes, of which this one
    is ``rank``: by dealing out, so that shares differ by one sample at most. Of its own samples each part's come
    together, and of them the first stream's first.
    """

    def __init__(self, streams, seed, epochs, accumulate=1, rank=0, size=1):
        self.streams, self.seed, self.start = streams, seed, 0
        self.accumulate, self.rank, self.size = accumulate, rank, size
        _, count, batch_size = streams[0]
        self.per_epoch = -(-count // batch_size)
        self.total = epochs * self.per_epoch
        self._order = functools.lru_cache(maxsize=2 * len(streams))(self._shuffled)

    def __len__(self):
        return self.total - self.start

    def __iter__(self):
        for step in range(self.start, self.total):
            yield [key for part in self._shares(step) for key in part]

    def parts(self, step):
        """Of every part of batch ``step`` that is not empty everywhere: (samples, pseudo-labelled ones) here."""
        return tuple((len(part), sum(kind == "pseudo" for kind, *_ in part)) for part in self._shares(step))

    def batch(self, step):
        """The samples of batch ``step``, of all processes: a list of keys (kind, pass, index)."""
        keys = []
        for kind, count, batch_size in self.streams:
            number, place = divmod(step, -(-count // batch_size))
            order = self._order(kind, count, number)
            keys += [(kind, number, int(index)) for index in order[place * batch_size : (place + 1) * batch_size]]
        return keys

    def _shuffled(self, kind, count, number):
        return generator(self.seed, f"order of {kind} images", number).permutation(count)

    def _shares(self, step):
        keys = self.batch(step)
        parts = (keys[number :: self.accumulate] for number in range(self.accumulate))
        return [part[self.rank :: self.size] for part in parts if part]
