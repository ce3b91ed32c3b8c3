"""Noticing a collapse in time: a model that has lost what it knew must not teach the other arm all night.

The limits are far from what a healthy run does: a round moves the mIoU by a few points.
"""

import math
import sys

from utils.errors import UserError

ONE_CLASS = 0.99  # share of the pixels that one class wins
KNOWN = 0.1  # IoU from which a class counts as one that the model had learnt
FALL, FALL_SHARE, FALL_FROM = 0.10, 0.25, 0.2  # of the mIoU: points, share of the former value, and lowest former value

_CAUSES = ("Usual causes: weights given with the wrong input format (--coco), overflow in mixed precision (try "
           "--amp-dtype bf16 or leave out --mixed-precision), too high a learning rate (--lr). To go on all the same: "
           "--on-collapse warn")


def notice(message, on_collapse):
    """End with a ``UserError`` when there is a ``message`` of a collapse, or where ``on_collapse`` is "warn", go on."""
    if message and on_collapse == "stop":
        raise UserError(message)
    if message:
        print(f"warning: {message}", file=sys.stderr, flush=True)


def one_class(pixels, class_names, known=None):
    """What is wrong when a labelling model predicts almost nothing but one class, or None.

    ``pixels`` (C,) counts the pixels won per class. A model that never knew more than one class, as the IoU (C,) of its
    validation says, if it is ``known``, has not collapsed.
    """
    share, winner = float(pixels.max() / max(pixels.sum(), 1)), int(pixels.argmax())
    if share < ONE_CLASS:
        return None
    if known is not None and sum(value is not None and value > KNOWN for value in known) < 2:
        return None
    return (f"the labelling model predicts {class_names[winner]} on {100 * share:.1f} % of the pixels: it has "
            f"collapsed. {_CAUSES}")


def fall(name, before, after):
    """What is wrong when the validation mIoU (fractions; ``before`` may be None) fell far, or None."""
    if before is None or not math.isfinite(before) or before < FALL_FROM:
        return None
    if before - after < FALL or after > (1 - FALL_SHARE) * before:
        return None
    return (f"the validation mIoU of {name} fell from {100 * before:.2f} to {100 * after:.2f} %: it has collapsed. "
            f"{_CAUSES}")


def not_finite(name, step, total, kept):
    """What to say of a loss that is NaN or infinite."""
    return f"the loss of {name} is not finite at step {step} of {total}{kept}. {_CAUSES}"
