"""Training: which images form step t, and with which random draws: a function of (seed, step) and nothing else."""

import functools
import zlib

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from data import images, transforms
from data.datasets import matched

LABELED, PSEUDO = "labeled", "pseudo"
CERTAIN = 255  # grey confidence of a human label: 1


def generator(seed, purpose, *position):
    """A numpy Generator for one draw: the same (seed, purpose, position) always gives the same numbers.

    ``purpose`` is a text such as "order of labelled images"; ``position`` are integers (epoch or pass, index).
    """
    return np.random.default_rng((seed, zlib.crc32(purpose.encode()), *position))


@functools.lru_cache(maxsize=4)
def _order(seed, kind, count, number):
    """In which order pass ``number`` goes over the ``count`` images of a kind: (count,) int64."""
    return generator(seed, f"order of {kind} images", number).permutation(count)


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

    def __len__(self):
        return self.total - self.start

    def __iter__(self):
        for step in range(self.start, self.total):
            yield [key for part in self._shares(step) for key in part]

    def parts(self, step):
        """Of every part of batch ``step`` that is not empty everywhere: (samples, pseudo-labelled ones) here."""
        return tuple((len(part), sum(kind == PSEUDO for kind, *_ in part)) for part in self._shares(step))

    def batch(self, step):
        """The samples of batch ``step``, of all processes: a list of keys (kind, pass, index)."""
        keys = []
        for kind, count, batch_size in self.streams:
            number, place = divmod(step, -(-count // batch_size))
            order = _order(self.seed, kind, count, number)
            keys += [(kind, number, int(index)) for index in order[place * batch_size : (place + 1) * batch_size]]
        return keys

    def _shares(self, step):
        """This process's keys of every part of batch ``step`` that is not empty everywhere."""
        keys = self.batch(step)
        return [keys[number :: self.accumulate][self.rank :: self.size]
                for number in range(min(self.accumulate, len(keys)))]


class TrainingImages(Dataset):
    """Training samples by key (kind, pass, index), as ``Steps`` gives them.

    ``labeled`` and ``pseudo`` are lists of ``data.lists.Sample``; ``store`` is the ``PseudoLabelStore`` of the latter,
    or None where their labels are made on the fly: then they come with label 0, and 255 in the padding. With
    ``augment_pseudo`` false, pseudo-labelled images are only resized to the spec's crop.
    Every random draw is a function of (seed, kind, pass, index).
    """

    def __init__(self, spec, seed, labeled, pseudo=(), store=None, augment_pseudo=True):
        self.spec, self.crop, self.size, self.seed = spec, spec.crop, spec.resized, seed
        self.samples = {LABELED: labeled, PSEUDO: pseudo}
        self.store, self.augment_pseudo = store, augment_pseudo

    def __getitem__(self, key):
        """(image (h, w, 3) uint8 BGR, label (h, w) uint8 with 255 = ignored, grey confidence (h, w) uint8)."""
        kind, pass_number, index = key
        sample = self.samples[kind][index]
        image, confidence = images.read_image(sample.image, self.spec.max_pixels), None
        if kind == LABELED:
            label = images.read_mask(sample.mask, self.spec)
        elif self.store is None:
            label = confidence = np.zeros(image.shape[:2], np.uint8)
        else:
            label, confidence = self.store.read_label(sample.name)
        image, label = matched(sample.name, image, label, self.size)
        if kind == LABELED or self.augment_pseudo:
            rng = generator(self.seed, f"augmentation of {kind} images", pass_number, index)
            window = transforms.draw_window(rng, image.shape[:2], self.crop)
        else:
            window = transforms.Window(*self.crop)
        image = transforms.crop_image(image, window, self.crop)
        label = transforms.crop_nearest(label, window, self.crop, 255)
        if confidence is None:
            return image, label, np.full(label.shape, CERTAIN, np.uint8)
        return image, label, transforms.crop_nearest(confidence, window, self.crop, 0)

    def collate(self, samples):
        """Stack samples: (images (N, h, w, 3), labels (N, h, w), grey confidences (N, h, w)), all uint8; N may be 0."""
        if samples:
            return tuple(default_collate(samples))  # in a worker it stacks into the memory that the main process reads
        return tuple(torch.empty((0, *self.crop, *channels), dtype=torch.uint8) for channels in ((3,), (), ()))
