"""Pseudo label enhancement (PLE paper): the previous model's predictions repair what the current model forgot."""

import math

import numpy as np
import torch


def enhance(current, previous, beta=0.15, background=0, conflict_reduction=True):
    """Merge the pseudo labels of the current model with those of the previous model of the same arm (PLE paper).

    ``current``, ``previous``: pairs (labels, confidences), four numpy arrays or four tensors of one shape; labels are
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
    third row for every pixel. Label and confidence travel together. Returns a new pair of the same kind and dtypes;
    the arguments are left as they are. Raises as ``takes_previous``.
    """
    previous_wins = takes_previous(current, previous, beta, background, conflict_reduction)
    where = torch.where if isinstance(previous_wins, torch.Tensor) else np.where
    (labels, confidences), (previous_labels, previous_confidences) = _pair(current), _pair(previous)
    return where(previous_wins, previous_labels, labels), where(previous_wins, previous_confidences, confidences)


def takes_previous(current, previous, beta=0.15, background=0, conflict_reduction=True):
    """Where ``enhance`` takes the previous model's label and confidence: a boolean array or tensor of the maps' shape.

    The difference of the confidences and its comparison with beta are made in the confidences' own precision, float32
    at least: for float32 maps this is literally ``previous - current >= beta`` in float32, with beta rounded to
    float32. Raises ``ValueError`` for shapes that differ, a mixture of arrays and tensors, confidences that are not
    floating point (confidence codes have to be decoded first), and a beta that is not finite.
    """
    beta = float(beta)
    if not math.isfinite(beta):
        raise ValueError(f"beta must be finite, not {beta}")
    (labels, confidences), (previous_labels, previous_confidences) = _pair(current), _pair(previous)
    _check_same_kind(labels, confidences, previous_labels, previous_confidences)
    more_confident = _at_least_float32(previous_confidences) - _at_least_float32(confidences) >= beta
    if background is None or not conflict_reduction:
        return more_confident
    is_background = labels == background
    was_background = previous_labels == background
    only_now_background = is_background & ~was_background
    no_conflict = is_background == was_background
    return only_now_background | (no_conflict & more_confident)


def _pair(maps):
    labels, confidences = maps
    if isinstance(labels, torch.Tensor) or isinstance(confidences, torch.Tensor):
        return labels, confidences
    return np.asarray(labels), np.asarray(confidences)


def _check_same_kind(*maps):
    if len({isinstance(a, torch.Tensor) for a in maps}) > 1:
        raise ValueError("labels and confidences must be all numpy arrays or all tensors")
    if len({tuple(a.shape) for a in maps}) > 1:
        shapes = ", ".join(str(tuple(a.shape)) for a in maps)
        raise ValueError("labels and confidences of the current and of the previous model must have one shape, "
                         f"not {shapes}")


def _at_least_float32(confidences):
    if isinstance(confidences, torch.Tensor):
        floating, dtype = confidences.is_floating_point(), torch.promote_types(confidences.dtype, torch.float32)
    else:
        floating, dtype = np.issubdtype(confidences.dtype, np.floating), np.result_type(confidences, np.float32)
    if not floating:
        raise ValueError(f"confidences must be floating point, not {confidences.dtype}")
    return confidences.to(dtype) if isinstance(confidences, torch.Tensor) else confidences.astype(dtype, copy=False)
