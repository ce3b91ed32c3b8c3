"""Draws one generated image: 1 to 4 shapes, partly hiding each other, on a textured background with distractors.

Colour hints at the class and does not quite give it away: each of seven hues is the usual one of a class, the rare one
of another, and that of some distractors, which belong to the background; light and paleness blur it. So a small network
learns the classes within a minute of training, but not from a handful of images. Textures say nothing. All lengths are
relative to ``_unit``, 1/112 of the image's shorter side.
"""

import math

import cv2
import numpy as np

DISC, SQUARE, TRIANGLE, RING, CROSS, BAR, STAR = range(1, 8)
IGNORE = 255
SUBSETS = ("train", "val", "test")
_OVERSAMPLING = 4
_SHIFT = 4  # fractional bits of polygon corners
_HUES = ((51, 51, 204), (51, 182, 204), (51, 204, 95), (138, 204, 51),  # BGR: red, ochre, green, sea green,
         (204, 138, 51), (204, 51, 95), (182, 51, 204))  # blue, violet, pink: evenly around the colour wheel
_HUES_OF = {kind: (kind - 1, kind % 7) for kind in range(DISC, STAR + 1)}
_FIRST_HUE = 0.95  # share of a class's shapes that have the first of its two hues
_HUED_DISTRACTORS = 0.2  # share of the distractors that have one of the hues; the others are greyish
_LEAST_INSIDE = 0.75  # share of a shape that lies inside the image
_LEAST_VISIBLE = 0.75  # share of a shape that later ones leave uncovered


def render(seed, subset, index, height, width):
    """Image and label number ``index`` of ``subset`` ("train", "val" or "test"); a function of the arguments alone.

    Returns the image, (height, width, 3) uint8 BGR, and the label, (height, width) uint8: 0 background, 1 to 7 the
    shapes, 255 on the pixels that touch a shape from outside (as the border in VOC's masks, one pixel wide).
    """
    rng = np.random.default_rng((seed, SUBSETS.index(subset), index))
    image = _background(rng, height, width)
    label = np.zeros((height, width), np.uint8)
    owner = np.zeros((height, width), np.uint8)  # number of the shape that each pixel shows
    areas = [0]  # pixels of each shape, hidden ones included
    count = int(rng.integers(1, 5)) * max(1, round(max(height, width) / min(height, width)))
    for _ in range(count):
        for _ in range(6):
            kind = int(rng.integers(DISC, STAR + 1))
            contours, left, top, side = _placed(rng, kind, height, width)
            coverage, window, inside = _coverage(contours, left, top, side, height, width)
            mask = coverage >= 128
            if inside >= _LEAST_INSIDE and mask.any() and _leaves_visible(owner, window, mask, areas):
                break
        else:
            continue
        first, second = _HUES_OF[kind]
        color = _color(rng, first if rng.random() < _FIRST_HUE else second)
        _paint(rng, image, color, coverage, window, _unit(height, width))
        ring = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        label[window][ring] = IGNORE
        label[window][mask] = kind
        owner[window][mask] = len(areas)
        areas.append(int(mask.sum()))
    return _photographed(rng, image), label


def _unit(height, width):
    return min(height, width) / 112


def _color(rng, hue):
    """A colour (3,) BGR near ``_HUES[hue]``; paler and darker ones too."""
    color = np.array(_HUES[hue], float)
    color += (color.mean() - color) * rng.uniform(0, 0.4)
    return color * rng.uniform(0.7, 1.15) + rng.normal(0, 10, 3)


def _gray(rng):
    """A background colour (3,) BGR of little saturation."""
    return rng.uniform(50, 190) + rng.normal(0, 14, 3)


def _noise(rng, height, width, cells, amplitude):
    """Smooth colour noise (height, width, 3) float32 with about ``cells`` bumps along the longer side."""
    longer = max(height, width)
    grid = rng.standard_normal((max(2, round(cells * height / longer)), max(2, round(cells * width / longer)), 3),
                               dtype=np.float32)
    grid = grid.mean(2, keepdims=True) * 1.2 + grid * 0.4  # mostly brightness, some hue
    return cv2.resize(grid * np.float32(amplitude), (width, height), interpolation=cv2.INTER_LINEAR)


def _texture(rng, mean, height, width, unit):
    """A textured patch (height, width, 3) float32 around the colour ``mean``: noise, and often stripes or checks."""
    longer = max(height, width) / unit
    patch = _noise(rng, height, width, max(2, longer / 28), rng.uniform(4, 13))
    patch += _noise(rng, height, width, max(2, longer / 5), rng.uniform(2, 10))
    pattern = rng.integers(0, 4)
    if pattern:
        angle, period = rng.uniform(0, math.pi), rng.uniform(5, 16) * unit
        x = np.arange(width, dtype=np.float32)[None] * np.float32(2 * math.pi / period)
        y = np.arange(height, dtype=np.float32)[:, None] * np.float32(2 * math.pi / period)
        wave = np.sin(x * np.float32(math.cos(angle)) + y * np.float32(math.sin(angle)))
        if pattern == 2:
            wave *= np.sin(y * np.float32(math.cos(angle)) - x * np.float32(math.sin(angle)))
        elif pattern == 3:
            wave = np.sign(wave)
        patch += wave[..., None] * (rng.uniform(-16, 16) + rng.uniform(-8, 8, 3)).astype(np.float32)
    patch += np.asarray(mean, np.float32)
    return patch


def _background(rng, height, width):
    """Texture with distractors that belong to no class: lines, curves and ragged blobs. (height, width, 3) float32."""
    unit = _unit(height, width)
    image = _texture(rng, _gray(rng), height, width, unit)
    for _ in range(rng.integers(0, 3)):
        _blob(rng, image, unit)
    for _ in range(rng.integers(0, 4)):
        color = _color(rng, rng.integers(len(_HUES))) if rng.random() < _HUED_DISTRACTORS else _gray(rng)
        start, middle, end = rng.uniform(-0.2, 1.2, (3, 2)) * (width, height)
        steps = np.linspace(0, 1, 16)[:, None]
        curve = (1 - steps) ** 2 * start + 2 * steps * (1 - steps) * middle + steps ** 2 * end
        thickness = max(1, round(rng.uniform(0.8, 3.5) * unit))
        cv2.polylines(image, [np.round(curve).astype(np.int32)], False, color.tolist(), thickness)
    return image


def _blob(rng, image, unit):
    height, width = image.shape[:2]
    angles = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    radius = np.ones_like(angles)
    for order in range(2, 7):
        radius += rng.uniform(0.08, 0.3) * np.cos(order * angles + rng.uniform(0, 2 * math.pi))
    radius = np.maximum(radius, 0.15) * rng.uniform(8, 26) * unit
    points = np.stack([np.cos(angles), np.sin(angles)], 1) * radius[:, None] * rng.uniform(0.6, 1.4, 2)
    points = np.round(points + rng.uniform(0, 1, 2) * (width, height)).astype(np.int32)
    left, top = np.clip(points.min(0), 0, (width - 1, height - 1))
    right, bottom = np.clip(points.max(0) + 1, (left + 1, top + 1), (width, height))
    mask = np.zeros((bottom - top, right - left), np.uint8)
    cv2.fillPoly(mask, [points - (left, top)], 1)
    color = _color(rng, rng.integers(len(_HUES))) if rng.random() < _HUED_DISTRACTORS else _gray(rng)
    patch = _texture(rng, color, bottom - top, right - left, unit)
    np.copyto(image[top:bottom, left:right], patch, where=mask[..., None] > 0)


def _contours(rng, kind):
    """Outlines of a shape within the unit circle, (corners, 2) each; a second outline is a hole."""
    def polygon(corners, start=0.0):
        angles = start + np.arange(corners) * 2 * math.pi / corners
        return np.stack([np.cos(angles), np.sin(angles)], 1)

    if kind == DISC:
        return [polygon(64)]
    if kind == RING:
        return [polygon(64), polygon(64) * rng.uniform(0.45, 0.65)]
    if kind == SQUARE:
        return [polygon(4, math.pi / 4)]
    if kind == TRIANGLE:
        return [polygon(3)]
    if kind == STAR:
        star = polygon(10)
        star[1::2] *= rng.uniform(0.36, 0.48)
        return [star]
    if kind == BAR:
        half = rng.uniform(0.2, 0.28)
        return [np.array([(-0.97, -half), (0.97, -half), (0.97, half), (-0.97, half)])]
    arm = rng.uniform(0.22, 0.32)
    quarter = np.array([(0.95, -arm), (0.95, arm), (arm, arm)])
    return [np.concatenate([quarter @ _turn(angle).T for angle in np.arange(4) * math.pi / 2])]


def _turn(angle):
    """The rotation matrix (2, 2)."""
    return np.array([(math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle))])


def _placed(rng, kind, height, width):
    """A shape at a random place, scale, aspect and rotation: its outlines in pixels, and the window around it."""
    unit = _unit(height, width)
    low, high = (50, 86) if kind == BAR else (36, 76)
    radius = rng.uniform(low, high) / 2 * unit
    turn = _turn(rng.uniform(0, 2 * math.pi))
    stretch = np.array([radius, radius * (1 if kind == BAR else rng.uniform(0.75, 1))])
    pre = _turn(rng.uniform(0, 2 * math.pi) if kind in (DISC, RING, TRIANGLE, STAR) else 0.0)
    center = rng.uniform(0.1, 0.9, 2) * (width, height)
    contours = [(contour @ pre.T * stretch) @ turn.T + center for contour in _contours(rng, kind)]
    side = math.ceil(2 * radius) + 4
    left, top = (math.floor(value - side / 2) for value in center)
    return contours, left, top, side


def _coverage(contours, left, top, side, height, width):
    """Coverage 0 to 255 of the pixels in the part of the window inside the image; that part; the share inside it."""
    large = np.zeros((side * _OVERSAMPLING, side * _OVERSAMPLING), np.uint8)
    scaled = [np.round((contour - (left, top)) * _OVERSAMPLING * (1 << _SHIFT)).astype(np.int32)
              for contour in contours]
    cv2.fillPoly(large, scaled, 255, shift=_SHIFT)
    coverage = cv2.resize(large, (side, side), interpolation=cv2.INTER_AREA)
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + side, width), min(top + side, height)
    part = coverage[y0 - top:y1 - top, x0 - left:x1 - left]
    return part, (slice(y0, y1), slice(x0, x1)), part.sum(dtype=np.int64) / max(coverage.sum(dtype=np.int64), 1)


def _leaves_visible(owner, window, mask, areas):
    """Whether a new shape with this mask leaves enough to see of every shape already there."""
    visible = np.bincount(owner.ravel(), minlength=len(areas)) - np.bincount(owner[window][mask], minlength=len(areas))
    return all(visible[number] >= _LEAST_VISIBLE * areas[number] for number in range(1, len(areas)))


def _paint(rng, image, color, coverage, window, unit):
    """Blend a textured, shaded shape, often with a cast shadow, into ``image`` (changed in place)."""
    view = image[window]
    height, width = coverage.shape
    alpha = coverage.astype(np.float32)[..., None] / 255
    if rng.random() < 0.5:
        offset = rng.uniform(-4, 4, 2) * unit
        shift = np.array([(1, 0, offset[0]), (0, 1, offset[1])])
        shadow = cv2.GaussianBlur(cv2.warpAffine(coverage, shift, (width, height)), (0, 0), 1.5 * unit)
        view *= 1 - shadow.astype(np.float32)[..., None] * np.float32(rng.uniform(0.2, 0.5) / 255)
    patch = _texture(rng, color, height, width, unit)
    slope = rng.uniform(-0.25, 0.25, 2)
    patch *= (1 + np.linspace(-slope[0], slope[0], height)[:, None, None]
              + np.linspace(-slope[1], slope[1], width)[None, :, None]).astype(np.float32)
    view += alpha * (patch - view)


def _photographed(rng, image):
    """Light, shadow, blur and sensor noise: (H, W, 3) float32 to uint8."""
    height, width = image.shape[:2]
    grid = rng.normal(0, 0.12, (3, 3)).astype(np.float32)
    grid += rng.uniform(-0.25, 0.25) * np.linspace(-1, 1, 3, dtype=np.float32)[:, None]
    grid += rng.uniform(-0.25, 0.25) * np.linspace(-1, 1, 3, dtype=np.float32)[None]
    light = cv2.resize(np.exp(grid), (width, height), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.4:  # the edge of a large shadow
        angle, place = rng.uniform(0, 2 * math.pi), rng.uniform(-0.3, 0.3)
        x = np.linspace(-0.5, 0.5, width, dtype=np.float32)[None] * np.float32(math.cos(angle))
        y = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None] * np.float32(math.sin(angle))
        light *= 1 - np.float32(rng.uniform(0.25, 0.5)) * np.clip((x + y - np.float32(place)) * 25 + 0.5, 0, 1)
    image = image * light[..., None]
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.0) * math.sqrt(_unit(height, width)))
    image += rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(2, 8))
    return cv2.convertScaleAbs(np.maximum(image, 0))
