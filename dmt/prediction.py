"""From logits at 1/8 to a class and a confidence for every pixel (DMT paper, pseudo labels; test protocol of both)."""

import torch

from data.confidence import encode
from data.store import LOGIT_STEP
from models.deeplab import upsample
from models.folded import FoldedDeepLab
from utils.precision import search_algorithms
from utils.replay import Replay

_AT_ONCE = 2**26  # floats at image size that a GPU holds at once: 12 maps of 21 classes at 505 x 505


def network_maps(model, input_format, precision):
    """A function that runs ``model`` on a batch: images (N, H, W, 3) uint8 BGR -> logits (N, C, h, w)."""
    def maps(images):
        with precision.autocast():
            return model(input_format.normalize(images))
    return maps


def for_inference(model, precision, device):
    """What computes the ``model`` in evaluation mode on ``device``: itself, or on a GPU the ``FoldedDeepLab`` of it.

    Apex patches torch's functions to choose the precision: there the model stays as it is.
    """
    folds = torch.device(device).type == "cuda" and precision.kind != "apex" and model.foldable
    return FoldedDeepLab(model, precision.dtype) if folds else model


class Forward:
    """Runs ``model`` in evaluation mode on batches: images (N, H, W, 3) uint8 BGR -> logits (N, C, h, w).

    ``device`` is the model's; batches of ``batch_size`` images are the usual ones, for which algorithms are looked for
    and, with ``graphs``, a CUDA graph is recorded. A model that has learnt meanwhile is followed after ``refresh``.
    """

    def __init__(self, model, input_format, precision, device, batch_size, graphs=False):
        self._network, self._batch_size = for_inference(model, precision, device), batch_size
        self._maps = network_maps(self._network, input_format, precision)
        self._replayed = Replay(self._run, device, graphs)

    def refresh(self):
        """Take over the model's present weights."""
        if isinstance(self._network, FoldedDeepLab):
            self._network.refresh()

    def __call__(self, images):
        return self._replayed(images)

    def _run(self, images):
        search_algorithms(len(images) == self._batch_size)
        return self._maps(images)


def covering(size, test_size, map_size):
    """The part of a logit map that decides the pixels of an image of ``size`` within ``test_size``.

    Returns (rows, columns) of the map and the size to which that part is upsampled, which holds ``size``. All are
    (height, width) pairs; aligned corners put map point k exactly on pixel k * (test - 1) / (map - 1), so where that
    ratio is whole (505 -> 64: 8) the map can be cut behind the last point needed.
    """
    part, grown = [], []
    for side, test_side, points in zip(size, test_size, map_size):
        ratio, rest = divmod(test_side - 1, max(points - 1, 1))
        needed = points if rest or points == 1 else min(points, -(-(side - 1) // ratio) + 1)
        part.append(needed)
        grown.append(test_side if needed == points else (needed - 1) * ratio + 1)
    return tuple(part), tuple(grown)


def quantize(logits):
    """``logits`` (..., C, h, w) float -> int32 of that shape: steps of ``LOGIT_STEP`` below each point's largest logit.

    Softmax and upsampling do not see a shift common to all classes, so the largest is free to be 0, and the 16 bits
    go to the differences that decide.
    """
    logits = logits.float()  # half precision would lose the difference
    below = logits.amax(dim=-3, keepdim=True) - logits
    return torch.round(below / LOGIT_STEP).clamp_(max=65535).to(torch.int32)


def dequantize(steps):
    """The float32 logits (..., C, h, w) that ``quantize`` stored, up to the common shift."""
    return steps.float().mul_(-LOGIT_STEP)


def pixel_logits(logits, size, test_size, map_size):
    """Logits (C, *size) float32 of the pixels of an image, from the part of its map that covers it."""
    _, grown = covering(size, test_size, map_size)
    # A map in channels_last order would be upsampled in that order, and reductions over the classes are slower there.
    return upsample(logits[None].contiguous(), grown)[0, :, : size[0], : size[1]]


def classify(logits, size, test_size, map_size):
    """Winning class of every pixel: part of a logit map (C, h, w) -> (H, W) int64 for an image of ``size``."""
    return _winners(pixel_logits(logits, size, test_size, map_size))


def classify_with_confidence(logits, size, test_size, map_size):
    """(classes (H, W) uint8, confidence codes (H, W) int32): the winner of the softmax and its probability."""
    return _winners_and_codes(pixel_logits(logits, size, test_size, map_size))


def classify_whole(logits, test_size):
    """As ``classify`` for a batch of whole maps (N, C, h, w): (N, *test_size) uint8. A GPU is faster with few calls.

    An image's pixels come first in each, the same as it would have alone.
    """
    return _in_parts(lambda pixels: [_winners(pixels).to(torch.uint8)], logits, test_size)[0]


def classify_whole_with_confidence(logits, test_size):
    """As ``classify_with_confidence`` for a batch of whole maps: classes and codes, both (N, *test_size)."""
    return _in_parts(_winners_and_codes, logits, test_size)


def _in_parts(decide, logits, test_size):
    at_once = max(1, _AT_ONCE // (logits.shape[1] * test_size[0] * test_size[1]))
    decided = [decide(upsample(part.contiguous(), test_size)) for part in logits.split(at_once)]
    return tuple(torch.cat(parts) for parts in zip(*decided))


def _winners(pixels):
    """Classes (..., H, W) int64 of logits (..., C, H, W)."""
    return pixels.max(dim=-3).indices  # on a CPU argmax takes 5 times as long


def _winners_and_codes(pixels):
    """(classes uint8, confidence codes int32) of logits (..., C, H, W), which are overwritten."""
    largest, classes = pixels.max(dim=-3, keepdim=True)
    confidence = pixels.sub_(largest).exp_().sum(dim=-3).reciprocal_()  # softmax of the winner: 1 / sum exp(l - max l)
    return classes.squeeze(-3).to(torch.uint8), encode(confidence)
