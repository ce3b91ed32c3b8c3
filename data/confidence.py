"""Confidences as 16-bit codes: an index into an ascending table of levels, fine where the decisions are made.

The thresholds of the first rounds (the best 20 % of a class) lie among confidences like 0.9997, where uniform 16-bit
steps would tie large parts of the pixels at one value. So the steps shrink towards 1:

- below 15/16 the levels are k / 32768, and the code is k;
- from 15/16 on the level is 1 - x, where x takes every value a half-precision float can hold: 1024 levels in each
  halving of x down to x = 2^-14, then steps of 2^-24, which is all that float32 itself can tell apart below 1.

The bits of a non-negative half-precision float, read as an integer, count its values in ascending order; that makes
encoding plain arithmetic, without a search. Both parts have steps of 2^-15 where they meet.
"""

import functools

import numpy as np
import torch

_STEPS = 32768  # levels per unit below _FINE_FROM
_FINE_FROM = 15 / 16
_UNIFORM = int(_FINE_FROM * _STEPS)  # 30720 uniform steps up to there
_FINE = int(np.float16(1 - _FINE_FROM).view(np.uint16))  # 11264 half-precision steps from there to 1

NUM_CODES = _UNIFORM + _FINE + 1
"""Number of codes (41985); every code is in 0..NUM_CODES - 1 and fits into uint16."""


def _table():
    uniform = np.arange(_UNIFORM, dtype=np.float32) / np.float32(_STEPS)
    x = np.arange(_FINE, -1, -1, dtype=np.uint16).view(np.float16).astype(np.float32)
    levels = np.concatenate([uniform, np.float32(1) - x])
    levels.flags.writeable = False
    return levels


LEVELS = _table()
"""(NUM_CODES,) float32, strictly ascending from 0.0 to 1.0: the confidence that each code stands for."""


def encode(confidences):
    """Nearest level of every confidence: numpy array -> uint16 array, torch tensor -> int32 tensor on its device.

    ``confidences``: floating point, any shape, nominally in [0, 1]; values outside are clamped, other precisions go
    through float32. Numpy and torch give the same codes. The error is at most 1/65536; where 1 - p is below 1/16 it
    is at most 2^-11 of 1 - p (or half the float32 step). Code 0 stands for "no confidence": the winning class of a
    softmax never falls below 1 / classes, so no prediction takes it, and NaN is turned into it.
    Raises ``TypeError`` for integers (which are probably codes already).
    """
    if isinstance(confidences, torch.Tensor):
        return _encode_tensor(confidences)
    confidences = np.asarray(confidences)
    if not np.issubdtype(confidences.dtype, np.floating):
        raise TypeError(f"confidences must be floating point, not {confidences.dtype}")
    # fmax and fmin prefer the number to the NaN.
    p = np.fmin(np.fmax(confidences.astype(np.float32, copy=False), np.float32(0)), np.float32(1))
    # The steps climbed on either side of 15/16; a choice by `where` would be slower than the two minima.
    uniform = np.minimum(np.rint(p * np.float32(_STEPS)).astype(np.uint16), np.uint16(_UNIFORM))
    left = np.minimum((np.float32(1) - p).astype(np.float16).view(np.uint16), np.uint16(_FINE))
    return uniform + (np.uint16(_FINE) - left)


def _encode_tensor(confidences):
    if not confidences.is_floating_point():
        raise TypeError(f"confidences must be floating point, not {confidences.dtype}")
    p = torch.nan_to_num(confidences.detach().float(), nan=0.0).clamp(0, 1)
    uniform = torch.round(p * _STEPS).to(torch.int32).clamp_(max=_UNIFORM)
    left = (1 - p).half().view(torch.int16).to(torch.int32).clamp_(max=_FINE)
    return uniform + (_FINE - left)


def decode(codes):
    """The confidence of every code: numpy integers -> float32 array, torch integers -> float32 tensor on its device.

    ``codes``: integers in 0..NUM_CODES - 1, any shape. ``encode(decode(codes))`` gives ``codes`` back.
    Raises ``TypeError`` for other dtypes and ``IndexError`` for codes outside the range (on a GPU: a device assertion).
    """
    if isinstance(codes, torch.Tensor):
        if codes.is_floating_point() or codes.dtype == torch.bool:
            raise TypeError(f"confidence codes must be integers, not {codes.dtype}")
        index = codes.to(torch.int32)
        return _levels_on(index.device).index_select(0, index.reshape(-1)).reshape(codes.shape)
    codes = np.asarray(codes)
    if not np.issubdtype(codes.dtype, np.integer):
        raise TypeError(f"confidence codes must be integers, not {codes.dtype}")
    # Numpy would count negative indices from the end.
    if np.issubdtype(codes.dtype, np.signedinteger) and codes.size and codes.min() < 0:
        raise IndexError(f"confidence code {codes.min()} is negative")
    return LEVELS[codes]


@functools.lru_cache(maxsize=None)
def _levels_on(device):
    # A tensor born in inference mode could not be used in training code later.
    with torch.inference_mode(False):
        return torch.tensor(LEVELS, device=device)
