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


def draw_window(rng, size, crop, scales=(0.5, 1.5)):
    """Draw the random scale, crop and flip for an image of ``size`` (height, width); ``rng`` is a numpy Generator.

    The scaled size is truncated: int(s * h), int(s * w). Images smaller than the crop are padded at bottom and right,
    so the crop then starts at 0.
    """
    scale = rng.uniform(*scales)
    height, width = (max(1, int(scale * side)) for side in size)
    top = int(rng.integers(max(height - crop[0], 0) + 1))
    left = int(rng.integers(max(width - crop[1], 0) + 1))
    return Window(height, width, top, left, bool(rng.random() < 0.5))


def crop_image(image, window, crop):
    """(h, w, 3) uint8 crop of the scaled ``image`` (H, W, 3) uint8, padded with 0."""
    # Faster than computing the crop's pixels alone: cv2.resize is several times quicker a pixel than cv2.warpAffine.
    scaled = resize_image(image, (window.height, window.width))
    rows, columns = _covered(window, crop)
    pixels = scaled[window.top : window.top + rows, window.left : window.left + columns]
    return _padded(cv2.flip(pixels, 1) if window.flip else pixels, window, crop, 0)


def crop_nearest(values, window, crop, fill):
    """(h, w) crop of the scaled map ``values`` (H, W), padded with ``fill``; uint8 or uint16."""
    rows, columns = _covered(window, crop)
    y = (np.arange(window.top, window.top + rows) * values.shape[0]) // window.height
    x = (np.arange(window.left, window.left + columns) * values.shape[1]) // window.width
    if window.flip:
        x = x[::-1]
    # Columns are picked as rows of the transposed map: faster than one by one.
    return _padded(cv2.transpose(cv2.transpose(values[y])[x]), window, crop, fill)


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


def _covered(window, crop):
    """Rows and columns of the crop that the scaled image covers; the rest is padding."""
    return min(crop[0], window.height - window.top), min(crop[1], window.width - window.left)


def _padded(pixels, window, crop, fill):
    rows, columns = pixels.shape[:2]
    if (rows, columns) == tuple(crop):
        return pixels
    padded = np.full((*crop, *pixels.shape[2:]), fill, pixels.dtype)
    start = crop[1] - columns if window.flip else 0  # the padding is mirrored along with the image
    padded[:rows, start : start + columns] = pixels
    return padded
