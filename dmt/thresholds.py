"""Class-balanced thresholds (DMT paper): per class, the confidence that the best share r of its pixels reach.

Confidences are counted by their 16-bit code, so a histogram of fixed size holds them exactly as every decision sees
them: the thresholds are exact order statistics, whatever the number of images, and the histograms of several processes
add up.
"""

import numpy as np
import torch

from data.confidence import LEVELS, NUM_CODES, encode
from data.masks import IGNORED
from utils.tensors import tensor_of

SAMPLE_STRIDE = 16
"""Thresholds look at every 16th pixel of each flattened image."""

KEEP_ALL = np.float32(1e-5)
"""The threshold of a class too rare for its share to be one pixel; every prediction is above it."""


def threshold(confidences, ratio, counts=None):
    """The smallest confidence that is kept of a class, a float32.

    ``confidences``: (n,) floating point, those of the sampled pixels that the class won, in any order; ``ratio``: r,
    the share to keep. Sorted ascending: the smallest for r >= 1; 1e-5 where n·r < 1 (or nothing was won); else
    sorted[-int(n·r) - 1]. With ``counts`` each confidence stands there so many times. Raises ``ValueError`` for a ratio
    that is negative or not a number.
    """
    ratio = float(ratio)  # a float32 would do the products below in float32
    if not ratio >= 0:
        raise ValueError(f"the labelling ratio must be a number of at least 0, not {ratio}")
    confidences = np.asarray(confidences, np.float32)
    counts = np.ones(len(confidences), np.int64) if counts is None else np.asarray(counts)
    order, n = np.argsort(confidences), int(counts.sum())
    if n * min(ratio, 1) < 1:
        return KEEP_ALL
    # The product may be rounded up to n, and there is no sorted[-n - 1].
    place = 0 if ratio >= 1 else n - min(int(n * ratio) + 1, n)
    return confidences[order[np.searchsorted(counts[order].cumsum(), place, side="right")]]


def apply_thresholds(labels, confidences, thresholds):
    """The ``labels`` (...) uint8 classes, with 255 where the confidence is below the threshold of the label's class.

    ``confidences`` (...) float32, ``thresholds`` (C,) float32, on one device. The confidences stay with the pixels.
    """
    return torch.where(confidences < thresholds[labels.int()], IGNORED, labels)


def sample(pixels):
    """Every 16th pixel of a flattened image: (H, W) -> (ceil(H·W / 16),)."""
    return pixels.reshape(-1)[::SAMPLE_STRIDE]


class ConfidenceHistogram:
    """How often each class won with each confidence code, over the sampled pixels of the unlabelled set.

    ``counts`` is (num_classes, NUM_CODES) int64 on ``device``: 7 MB for 21 classes, 50 MB for 150. Adding the
    ``counts`` of two histograms (as an all-reduce does) is merging them.
    """

    def __init__(self, num_classes, device="cpu"):
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, not {num_classes}")
        self.num_classes = int(num_classes)
        self.counts = torch.zeros((self.num_classes, NUM_CODES), dtype=torch.int64, device=device)

    def update(self, labels, confidences):
        """Count sampled pixels.

        ``labels``: integers in 0..num_classes - 1, the winning classes before any thresholding (so no 255);
        ``confidences``: floating point of the same shape in [0, 1]. Numpy arrays, lists or tensors.
        Raises ``ValueError`` for other labels or shapes, ``TypeError`` for other confidences; then nothing has been
        counted. (On a GPU, which the host does not wait for, labels are not looked at.)
        """
        labels, confidences = tensor_of(labels), tensor_of(confidences)
        if labels.shape != confidences.shape:
            raise ValueError(f"labels are {tuple(labels.shape)} but confidences are {tuple(confidences.shape)}")
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise ValueError(f"labels must be integers, not {labels.dtype}")
        labels = labels.long()
        if labels.numel() and not labels.is_cuda and not (0 <= labels.min() and labels.max() < self.num_classes):
            raise ValueError(f"labels lie in {labels.min()}..{labels.max()}, outside 0..{self.num_classes - 1}")
        cells = (labels * NUM_CODES + encode(confidences)).reshape(-1).to(self.counts.device)
        self.counts.view(-1).scatter_add_(0, cells, torch.ones_like(cells))

    def merge(self, other):
        """Add the counts of ``other``. Raises ``ValueError`` when it is about another number of classes."""
        if other.num_classes != self.num_classes:
            raise ValueError(f"cannot merge histograms of {self.num_classes} and {other.num_classes} classes")
        self.counts += other.counts.to(self.counts.device)

    def thresholds(self, ratio):
        """The ``threshold`` of every class: (num_classes,) float32 array."""
        return np.array([threshold(LEVELS, ratio, counts) for counts in self.counts.cpu()], np.float32)
