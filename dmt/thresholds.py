"""Class-balanced thresholds (DMT paper): per class, the confidence that the best share r of its pixels reach.

A pixel won by class c with a confidence below the threshold of c is ignored (label 255). Confidences are counted by
their 16-bit code, so a histogram of fixed size holds them exactly as the pseudo-label store does: the thresholds are
exact order statistics of the stored values, whatever the number of images, and histograms of several processes add up.
"""

import numpy as np
import torch

from data.confidence import LEVELS, NUM_CODES, encode

SAMPLE_STRIDE = 16
"""Thresholds look at every 16th pixel of each flattened image."""

KEEP_ALL = np.float32(1e-5)
"""The threshold of a class too rare for its share to be one pixel; every prediction is above it."""


def sample(maps):
    """Every 16th pixel of each flattened image: (H, W) -> (ceil(H·W / 16),), (N, H, W) -> (N, ceil(H·W / 16)).

    ``maps``: numpy array or tensor of any dtype; the result is a view where possible. Raises ``ValueError`` for other
    numbers of dimensions.
    """
    if maps.ndim not in (2, 3):
        raise ValueError(f"maps must be (H, W) or (N, H, W), not {tuple(maps.shape)}")
    return maps.reshape(*maps.shape[:-2], -1)[..., ::SAMPLE_STRIDE]


class ConfidenceHistogram:
    """How often each class won with each confidence code, over the sampled pixels of the unlabelled set.

    ``counts`` is (num_classes, NUM_CODES) int64: 7 MB for 21 classes, 50 MB for 150. Adding the ``counts`` of two
    histograms (as an all-reduce does) is merging them.
    """

    def __init__(self, num_classes):
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, not {num_classes}")
        self.num_classes = int(num_classes)
        self._counts = np.zeros((self.num_classes, NUM_CODES), np.int64)
        self._pending = {}  # GPU -> int64 counts that have not been fetched yet

    @property
    def counts(self):
        """The (num_classes, NUM_CODES) int64 counts so far; fetches those of a GPU."""
        while self._pending:
            found = self._pending.popitem()[1].cpu().numpy()
            if found[-1]:
                raise ValueError(f"{found[-1]} pixels have a class or a confidence code that there is none of")
            self._counts += found[:-1].reshape(self._counts.shape)
        return self._counts

    def update(self, labels, confidences):
        """Count sampled pixels.

        ``labels``: integers in 0..num_classes - 1, the winning classes before any thresholding (so no 255);
        ``confidences``: floating point of the same shape in [0, 1]. Numpy arrays or tensors on any device.
        Raises ``ValueError`` for other labels or shapes; then nothing has been counted.
        """
        if not isinstance(confidences, torch.Tensor):
            confidences = np.asarray(confidences)
        self.update_codes(labels, encode(confidences))

    def update_codes(self, labels, codes):
        """As ``update``, with the confidences already encoded (integers in 0..NUM_CODES - 1).

        Tensors on a GPU are counted there, and their values are checked when the counts are read: the host does not
        wait.
        """
        if isinstance(labels, torch.Tensor) and labels.device.type == "cuda":
            self._count_there(labels, codes)
            return
        labels, codes = _on_host(labels), _on_host(codes)
        if labels.shape != codes.shape:
            raise ValueError(f"labels are {labels.shape} but confidences are {codes.shape}")
        _check_range("label", labels, self.num_classes)
        _check_range("confidence code", codes, NUM_CODES)
        cells = labels.astype(np.int64).ravel() * NUM_CODES + codes.astype(np.int64).ravel()
        np.add.at(self.counts.reshape(-1), cells, 1)

    def _count_there(self, labels, codes):
        if labels.shape != codes.shape:
            raise ValueError(f"labels are {tuple(labels.shape)} but confidences are {tuple(codes.shape)}")
        if labels.device not in self._pending:
            self._pending[labels.device] = torch.zeros(self._counts.size + 1, dtype=torch.int64, device=labels.device)
        labels, codes = labels.reshape(-1).long(), codes.reshape(-1).long()
        valid = (labels >= 0) & (labels < self.num_classes) & (codes >= 0) & (codes < NUM_CODES)
        cells = torch.where(valid, labels * NUM_CODES + codes, self._counts.size)
        self._pending[labels.device].scatter_add_(0, cells, torch.ones_like(cells))

    def merge(self, other):
        """Add the counts of ``other``. Raises ``ValueError`` when it is about another number of classes."""
        if other.num_classes != self.num_classes:
            raise ValueError(f"cannot merge histograms of {self.num_classes} and {other.num_classes} classes")
        self.counts[...] += other.counts

    def thresholds(self, ratio):
        """The smallest confidence that is kept, per class: (num_classes,) float32.

        With n sampled pixels won by the class, sorted ascending: the smallest confidence for ratio >= 1; 1e-5 where
        n·ratio < 1; else sorted[-int(n·ratio) - 1]. A class that nobody won gets 1e-5 (see ``empty_classes``).
        Raises ``ValueError`` for a ratio that is negative or not a number.
        """
        ratio = float(ratio)  # a float32 would do the products below in float32
        if not ratio >= 0:
            raise ValueError(f"the labelling ratio must be a number of at least 0, not {ratio}")
        return np.array([_threshold(counts, ratio) for counts in self.counts], np.float32)

    def threshold_codes(self, ratio):
        """The thresholds as codes, (num_classes,) uint16: code >= threshold code is confidence >= threshold."""
        return codes_of_thresholds(self.thresholds(ratio))

    def empty_classes(self):
        """The classes that won no sampled pixel, ascending, as a list of integers."""
        return np.flatnonzero(self.pixels() == 0).tolist()

    def pixels(self):
        """How many sampled pixels each class won: (num_classes,) int64."""
        return self.counts.sum(axis=1)

    def counts_above(self, thresholds):
        """How many sampled pixels of each class reach its threshold: (num_classes,) int64.

        ``thresholds``: (num_classes,) confidences, as ``thresholds`` returns them. Divided by ``pixels()`` this is the
        share that will be labelled. Raises ``ValueError`` for another shape.
        """
        if np.shape(thresholds) != (self.num_classes,):
            raise ValueError(f"expected {self.num_classes} thresholds, got an array of shape {np.shape(thresholds)}")
        return np.array([counts[code:].sum() for counts, code in zip(self.counts, codes_of_thresholds(thresholds))])

    def state(self):
        """What ``from_state`` needs, small enough for a checkpoint: a dict of integers and of int64 arrays.

        Only occupied cells are listed. It can go through ``np.savez`` or, with ``tolist()``, through JSON.
        """
        cells = np.flatnonzero(self.counts)
        return {"num_classes": self.num_classes, "num_codes": NUM_CODES,
                "cells": cells, "counts": self.counts.reshape(-1)[cells]}

    @classmethod
    def from_state(cls, state):
        """The histogram that gave ``state``. Raises ``ValueError`` when the state has another table of codes."""
        if int(state["num_codes"]) != NUM_CODES:
            raise ValueError(f"the histogram was made with {int(state['num_codes'])} confidence codes, not {NUM_CODES}")
        histogram = cls(int(state["num_classes"]))
        histogram.counts.reshape(-1)[np.asarray(state["cells"], np.int64)] = state["counts"]
        return histogram


def _threshold(counts, ratio):
    """The threshold of one class from its (NUM_CODES,) counts; ``ratio`` is a Python float."""
    n = int(counts.sum())
    if n == 0:
        return KEEP_ALL
    if ratio >= 1:
        return LEVELS[np.flatnonzero(counts)[0]]
    if n * ratio < 1:
        return KEEP_ALL
    # sorted[-k] is the k-th largest. The product could be rounded up to n, and there is no sorted[-n - 1].
    k = min(int(n * ratio) + 1, n)
    largest_first = np.cumsum(counts[::-1])
    return LEVELS[NUM_CODES - 1 - np.searchsorted(largest_first, k)]


def codes_of_thresholds(thresholds):
    """Per threshold the smallest code whose confidence reaches it: any shape -> uint16 (NUM_CODES: none does)."""
    return np.searchsorted(LEVELS, np.asarray(thresholds), side="left").astype(np.uint16)


def apply_thresholds(labels, codes, threshold_codes, ignore=255):
    """The labels, with ``ignore`` where the confidence is below the threshold of the label's class.

    ``labels``: numpy integers, any shape, classes or already ``ignore``; ``codes``: confidence codes of that shape;
    ``threshold_codes``: (C,) as ``ConfidenceHistogram.threshold_codes`` returns them. Returns a new array of the
    labels' dtype; the confidences stay with the pixels. Raises ``ValueError`` for shapes that differ and for labels
    that are no class. All three may be tensors of one device instead; then the labels are not looked at, which would
    make the host wait for a GPU.
    """
    if isinstance(labels, torch.Tensor):
        needed = torch.nn.functional.pad(threshold_codes.int(), (0, ignore + 1 - len(threshold_codes)))
        return torch.where(codes < needed[labels.int()], ignore, labels)
    labels, codes = np.asarray(labels), np.asarray(codes)
    if labels.shape != codes.shape:
        raise ValueError(f"labels are {labels.shape} but confidence codes are {codes.shape}")
    num_classes = len(threshold_codes)
    if num_classes > ignore:
        raise ValueError(f"the ignored label {ignore} is one of the {num_classes} classes")
    no_class = np.uint16(65535)
    needed = np.full(ignore + 1, no_class)
    needed[:num_classes] = threshold_codes
    needed[ignore] = 0
    _check_range("label", labels, ignore + 1)
    needed = np.take(needed, labels)
    if (needed == no_class).any():
        raise ValueError(f"some labels are neither one of the {num_classes} classes nor {ignore}")
    return np.where(codes < needed, labels.dtype.type(ignore), labels)


def _on_host(array):
    return array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)


def _check_range(name, values, limit):
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{name}s must be integers, not {values.dtype}")
    if values.size and not (values.min() >= 0 and values.max() < limit):
        raise ValueError(f"{name}s lie in {values.min()}..{values.max()}, outside 0..{limit - 1}")
