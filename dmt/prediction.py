"""From logits at 1/8 to a class and a confidence for every pixel (DMT paper, pseudo labels; test protocol of both)."""

import torch

from data.confidence import encode
from data.store import LOGIT_STEP
from models.deeplab import upsample


def network_maps(model, input_format, precision):
    """A function that runs ``model`` on a batch: images (N, H, W, 3) uint8 BGR -> logits (N, C, h, w)."""
    def maps(images):
        with precision.autocast():
            return model(input_format.normalize(images))
    return maps


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
    """``logits`` (C, h, w) float -> (C, h, w) int32: steps of ``LOGIT_STEP`` below each point's largest logit.

    Softmax and upsampling do not see a shift common to all classes, so the largest is free to be 0, and the 16 bits
    go to the differences that decide.
    """
    logits = logits.float()  # half precision would lose the difference
    below = logits.amax(dim=0, keepdim=True) - logits
    return torch.round(below / LOGIT_STEP).clamp_(max=65535).to(torch.int32)


def dequantize(steps):
    """The float32 logits (C, h, w) that ``quantize`` stored, up to the common shift."""
    return steps.float().mul_(-LOGIT_STEP)


def pixel_logits(logits, size, test_size, map_size):
    """Logits (C, *size) float32 of the pixels of an image, from the part of its map that covers it."""
    _, grown = covering(size, test_size, map_size)
    # A map in channels_last order would be upsampled in that order, and reductions over the classes are slower there.
    return upsample(logits[None].contiguous(), grown)[0, :, : size[0], : size[1]]


def classify(logits, size, test_size, map_size):
    """Winning class of every pixel: part of a logit map (C, h, w) -> (H, W) int64 for an image of ``size``."""
    return pixel_logits(logits, size, test_size, map_size).max(dim=0).indices  # on a CPU argmax takes 5 times as long


def classify_with_confidence(logits, size, test_size, map_size):
    """(classes (H, W) uint8, confidence codes (H, W) int32): the winner of the softmax and its probability."""
    pixels = pixel_logits(logits, size, test_size, map_size)
    largest, classes = pixels.max(dim=0)
    confidence = pixels.sub_(largest).exp_().sum(dim=0).reciprocal_()  # softmax of the winner: 1 / sum exp(l - max l)
    return classes.to(torch.uint8), encode(confidence)
