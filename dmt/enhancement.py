"""Pseudo label enhancement (PLE paper): the previous model's predictions repair what the current model forgot."""

import math

import torch

from utils.tensors import tensor_of


def enhance(current, previous, beta=0.15, background=0, conflict_reduction=True):
    """Merge the pseudo labels of the current model with those of the previous model of the same arm (PLE paper).

    ``current``, ``previous``: pairs (labels, confidences), four tensors or four numpy arrays of one shape; labels are
    integers with 255 = ignored, both thresholded with the *current* model's thresholds; confidences are floating point
    in [0, 1]. With "foreground" meaning any label but ``background``, 255 included:

    ==================  ==================  ==========================================================
    current             previous            result
    ==================  ==================  ==========================================================
    foreground          background          current   (conflict reduction)
    background          foreground          previous  (conflict reduction)
    both background or both foreground      previous if conf_previous - conf_current >= beta else current
    ==================  ==================  ==========================================================

    ``background=None``: there is no background class, everything is foreground. ``conflict_reduction=False``: the
    third row for every pixel. Label and confidence travel together. Returns a new pair of the same kind; the
    arguments are left as they are. Confidences are compared in float32 at least.

    Raises ``ValueError`` for shapes that differ, a mixture of arrays and tensors, confidences that are not floating
    point, and a beta that is not finite.
    """
    maps = (*current, *previous)
    tensors = [isinstance(part, torch.Tensor) for part in maps]
    if any(tensors) and not all(tensors):
        raise ValueError("labels and confidences must be all numpy arrays or all tensors")
    if not any(tensors):
        maps = [tensor_of(part) for part in maps]
    labels, confidences, old_labels, old_confidences = maps
    if not math.isfinite(beta):
        raise ValueError(f"beta must be finite, not {beta}")
    if not labels.shape == confidences.shape == old_labels.shape == old_confidences.shape:
        raise ValueError("labels and confidences of the current and of the previous model must have one shape, "
                         f"not {', '.join(str(tuple(part.shape)) for part in maps)}")
    if not (confidences.is_floating_point() and old_confidences.is_floating_point()):
        raise ValueError(f"confidences must be floating point, not {confidences.dtype} and {old_confidences.dtype}")

    precision = torch.promote_types(confidences.dtype, torch.float32)
    surer = old_confidences.to(precision) - confidences.to(precision) >= float(beta)
    if background is None or not conflict_reduction:
        take_previous = surer
    else:
        is_background, was_background = labels == background, old_labels == background
        take_previous = torch.where(is_background == was_background, surer, is_background)
    merged = (torch.where(take_previous, old_labels, labels), torch.where(take_previous, old_confidences, confidences))
    return merged if any(tensors) else tuple(part.numpy() for part in merged)
