"""The training transform, in uint8: scale, pad, crop and flip.

Scaling is bilinear with half-pixel centres and no antialiasing for images, nearest (source index floor(i * in / out))
for labels and confidences, of which only the crop's own pixels are computed.
"""

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Window:
    """Where a crop lies: in an image scaled to ``height`` x ``width``, from (``top``, ``left``), perhaps mirrored."""

    height: int
    width: int
    top: int = 0
    left: int = 0
    flip: bool = False


def draw_window(rng, size, crop):
    """Draw scale (0.5 to 1.5), crop and flip for an image of ``size`` (height, width); ``rng`` is a numpy Generator.

    The scaled size is truncated: int(s * h), int(s * w). Images smaller than the crop are padded at bottom and right,
    so the crop then starts at 0.
    """
    scale = rng.uniform(0.5, 1.5)
    height, width = (max(1, int(scale * side)) for side in size)
    top = int(rng.integers(max(height - crop[0], 0) + 1))
    left = int(rng.integers(max(width - crop[1], 0) + 1))
    return Window(height, width, top, left, bool(rng.random() < 0.5))


def crop_image(image, window, crop):
    """(h, w, 3) uint8 crop of the scaled ``image`` (H, W, 3) uint8, padded with 0."""
    # Faster than computing the crop's pixels alone: cv2.resize is several times quicker a pixel than cv2.warpAffine.
    scaled = resize_image(image, (window.height, window.width))
    cropped = pad(scaled[window.top : window.top + crop[0], window.left : window.left + crop[1]], crop, 0)
    return cv2.flip(cropped, 1) if window.flip else cropped


def crop_nearest(values, window, crop, fill):
    """(h, w) crop of the scaled map ``values`` (H, W), padded with ``fill``; uint8 or uint16."""
    y = np.arange(window.top, min(window.top + crop[0], window.height)) * values.shape[0] // window.height
    x = np.arange(window.left, min(window.left + crop[1], window.width)) * values.shape[1] // window.width
    # Columns are picked as rows of the transposed map: faster than one by one.
    cropped = pad(cv2.transpose(cv2.transpose(values[y])[x]), crop, fill)
    return cv2.flip(cropped, 1) if window.flip else cropped


def resize_image(image, size):
    """``image`` (H, W, 3) uint8 resized bilinearly to ``size`` (height, width)."""
    if image.shape[:2] == tuple(size):
        return image
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def resize_nearest(values, size):
    """Map ``values`` (H, W) resized to ``size``, source index floor(i * in / out)."""
    if values.shape == tuple(size):
        return values
    return crop_nearest(values, Window(*size), size, 0)


def pad(array, size, fill):
    """``array`` (H, W, ...) padded with ``fill`` at bottom and right to ``size`` (height, width)."""
    if array.shape[:2] == tuple(size):
        return array
    padded = np.full((*size, *array.shape[2:]), fill, array.dtype)
    padded[: array.shape[0], : array.shape[1]] = array
    return padded
