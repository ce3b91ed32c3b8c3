"""How confidences are kept: as 16-bit codes for every decision, and as 8-bit grey levels for the student.

The thresholds of the first rounds (the best 20 % of a class) lie among confidences like 0.9997, where uniform 16-bit
steps would tie large parts of the pixels at one value. So the steps of the codes shrink towards 1:

- below 15/16 the levels are k / 32768, and the code is k;
- from 15/16 on the level is 1 - x, where x takes every value a half-precision float can hold: 1024 levels in each
  halving of x down to x = 2^-14, then steps of 2^-24, which is all that float32 itself can tell apart below 1.

The bits of a non-negative half-precision float, read as an integer, count its values in ascending order; that makes
encoding plain arithmetic, without a search. Both parts have steps of 2^-15 where they meet.
"""

import numpy as np
import torch

_STEPS = 32768  # levels per unit below 15/16
_UNIFORM = 30720  # uniform steps up to there
_FINE = 11264  # half-precision floats from 1/16 down to 0

NUM_CODES = _UNIFORM + _FINE + 1
"""Number of codes (41985); every code is in 0..NUM_CODES - 1."""

# Grey value of a stored confidence: steps of 0.085 in log(p / (1 - p)), from 1/150 to 1 - 2^-24; 0 where ignored.
_ODDS = np.linspace(-5.0, np.log(2.0**24 - 1), 255)

GREY_LEVELS = torch.from_numpy(np.concatenate([[0.0], 1 / (1 + np.exp(-_ODDS))]).astype(np.float32))
"""(256,) float32: the confidence that each grey value of the store stands for."""


def encode(confidences):
    """The code of the nearest level of every confidence: (...) floating point in [0, 1] -> int32 of that shape.

    Values outside are clamped, other precisions go through float32. The error is at most 1/65536; where 1 - p is below
    1/16 it is at most 2^-11 of 1 - p (or half the float32 step). Code 0 stands for "no confidence": the winning class
    of a softmax never falls below 1 / classes, so no prediction takes it, and NaN is turned into it.
    Raises ``TypeError`` for integers (which are probably codes already).
    """
    if not confidences.is_floating_point():
        raise TypeError(f"confidences must be floating point, not {confidences.dtype}")
    p = torch.nan_to_num(confidences.detach().float(), nan=0.0).clamp(0, 1)
    # The steps climbed on either side of 15/16.
    uniform = torch.round(p * _STEPS).to(torch.int32).clamp_(max=_UNIFORM)
    left = (1 - p).half().view(torch.int16).to(torch.int32).clamp_(max=_FINE)
    return uniform + (_FINE - left)


def decode(codes):
    """The confidence of every code: (...) integers in 0..NUM_CODES - 1 -> float32 of that shape.

    ``encode(decode(codes))`` gives ``codes`` back. Raises ``TypeError`` for other dtypes.
    """
    if codes.is_floating_point() or codes.dtype == torch.bool:
        raise TypeError(f"confidence codes must be integers, not {codes.dtype}")
    left = (NUM_CODES - 1 - codes.int()).clamp(max=_FINE).to(torch.int16).view(torch.half)
    return torch.where(codes < _UNIFORM, codes.float() / _STEPS, 1 - left.float())


LEVELS = decode(torch.arange(NUM_CODES))
"""(NUM_CODES,) float32, ascending: the confidence that each code stands for."""

_P = np.clip(LEVELS.numpy().astype(np.float64), 1e-9, 1 - 2.0**-25)
_PLACES = np.rint((np.log(_P / (1 - _P)) - _ODDS[0]) / (_ODDS[1] - _ODDS[0])) + 1
_GREY_OF_CODE = torch.from_numpy(np.clip(_PLACES, 1, 255).astype(np.uint8))


def grey_values(labels, confidences):
    """What the store keeps of ``confidences`` (H, W) float: grey (H, W) uint8, 0 where ``labels`` are 255; on a CPU."""
    return torch.where(labels == 255, 0, _GREY_OF_CODE[encode(confidences)])
