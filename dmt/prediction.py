"""From logits at 1/8 to a class and a confidence for every pixel (DMT paper, pseudo labels; test protocol of both)."""

import functools

import torch

from data.confidence import decode, encode
from models.deeplab import upsample
from models.folded import FoldedDeepLab
from utils.tensors import Replay

LOGIT_STEP = 1 / 2048  # logits below the pixel's largest are kept in steps of this; 16 bits reach down to -32
_AT_ONCE = 2**26  # floats at image size that are held at once: 12 maps of 21 classes at 505 x 505


def network_maps(model, input_format, precision, images):
    """What ``model`` gives for a batch: images (N, H, W, 3) uint8 BGR -> logits (N, C, h, w)."""
    with precision.autocast():
        return model(input_format.normalize(images))


class Forward(Replay):
    """Runs ``model`` in evaluation mode on batches: images (N, H, W, 3) uint8 BGR -> logits (N, C, h, w).

    ``machine`` is the ``dmt.session.Machine`` that the model is on: on a GPU the ``FoldedDeepLab`` of the model
    computes them, and with its ``graphs`` a CUDA graph of full batches is recorded. A model that has learnt meanwhile
    is followed after ``refresh``.
    """

    def __init__(self, model, input_format, machine):
        self._network, precision = model, machine.precision
        if machine.device.type != "cpu" and precision.is_torchs and model.foldable:
            self._network = FoldedDeepLab(model, precision.dtype)
        maps = functools.partial(network_maps, self._network, input_format, precision)
        super().__init__(maps, machine.device, machine.graphs)

    def refresh(self):
        """Take over the model's present weights."""
        if not isinstance(self._network, torch.nn.Module):
            self._network.refresh()


def covering(size, test_size, map_size):
    """(rows, columns) of a logit map, from its top left, that decide the pixels of an image of ``size`` within
    ``test_size``; all are (height, width).

    Aligned corners put map point k exactly on pixel k * (test - 1) / (map - 1), so where that ratio is whole (505 ->
    64: 8) the map can be cut behind the last point needed.
    """
    part = []
    for side, test_side, points in zip(size, test_size, map_size):
        ratio, rest = divmod(test_side - 1, max(points - 1, 1))
        part.append(points if rest or points == 1 else min(points, -(-(side - 1) // ratio) + 1))
    return tuple(part)


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


def classify(logits, sizes, test_size):
    """What the logits (N, C, h, w) of a batch say of its images: a list of pairs for the images of ``sizes``.

    Each is (winning classes (H, W) uint8, their probabilities (H, W) float32, rounded as their codes hold them): the
    winner of the softmax over the logits, upsampled to ``test_size`` and cropped to the image.
    """
    images = []
    for pixels in _upsampled(logits, test_size):
        largest, classes = pixels.max(dim=1, keepdim=True)
        confidence = pixels.sub_(largest).exp_().sum(dim=1).reciprocal_()  # of the winner: 1 / sum exp(l - max l)
        images += zip(classes.squeeze(1).to(torch.uint8), decode(encode(confidence)))
    return [(classes[:height, :width], confidence[:height, :width])
            for (classes, confidence), (height, width) in zip(images, sizes)]


def winners(logits, test_size):
    """Winning classes (N, *test_size) uint8 of the logits (N, C, h, w) of a batch."""
    return torch.cat([pixels.max(dim=1).indices.to(torch.uint8)  # on a CPU argmax takes 5 times as long
                      for pixels in _upsampled(logits, test_size)])


def _upsampled(logits, test_size):
    """Yield the logits at ``test_size``, in parts of the batch that the memory holds."""
    at_once = max(1, _AT_ONCE // (logits.shape[1] * test_size[0] * test_size[1]))
    # Maps in channels_last order would be upsampled in that order, and reductions over the classes are slower there.
    for part in logits.split(at_once):
        yield upsample(part.contiguous(), test_size)
