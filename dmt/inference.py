"""What networks say of an image of any size: the mean of their probabilities over tiles, scales, flips and arms.

Where one network sees every pixel once, its largest logit decides, as in the validation of training. Everything here
is a function of its arguments alone.
"""

from typing import NamedTuple

import numpy as np
import torch

from dmt.prediction import covering, pixel_logits
from dmt.protocol import SLIDING, canvas_of, grouped, tiles
from utils.errors import UserError
from utils.memory import available_memory

_STRIP = 1 << 24  # floats at image size that are held at once; larger images are decided strip by strip


class Decision(NamedTuple):
    """``classes`` (H, W) uint8; ``confidence`` (H, W) uint8 or None: the winner's probability times 255, rounded."""

    classes: torch.Tensor
    confidence: torch.Tensor | None


class TooLarge(UserError):
    """An image does not fit into the memory."""


def predict_all(pictures, arms, protocol, *, choices=None, confidence=False, batch_size=8, failed=None, share=iter):
    """Predict ``pictures``, an iterable of anything with an ``image``; yields (picture, its ``Decision`` list).

    Arguments as for ``predict``, which gets the pictures in groups; they come back in nearly their order. The pictures
    of a group that does not fit into the memory, or that a network refuses, are predicted one by one.
    ``failed(picture, error)`` gets one that cannot be predicted even so; without it the ``UserError`` is raised.
    ``share`` picks some of the groups, where several processes divide them.
    """
    def fitting(group):
        images = [picture.image for picture in group]
        try:
            decided = _predict_or_too_large(images, arms, protocol, choices, confidence, batch_size)
        except UserError as error:
            if len(group) > 1:
                for picture in group:
                    yield from fitting([picture])
            elif failed is None:
                raise
            else:
                failed(group[0], error)
        else:
            yield from zip(group, decided)

    for group in share(grouped(pictures, protocol, batch_size, lambda picture: picture.image.shape[:2])):
        yield from fitting(group)


def _predict_or_too_large(images, arms, protocol, choices, confidence, batch_size):
    canvases = [tile.canvas for image in images for tile in tiles(image.shape[:2], protocol)]
    height, width = max(canvases, key=lambda size: size[0] * size[1])
    at_once = min(batch_size, len(canvases) if protocol.kind == SLIDING else len(images))
    needed = max(arm.bytes_a_pixel for arm in arms) * height * width * at_once
    free = available_memory() if any(arm.device.type == "cpu" for arm in arms) else None
    advice = "a smaller --window or --batch-size" if protocol.kind == SLIDING else "--protocol sliding"
    if free is not None and needed > free:  # the system would kill the process, without a word
        raise TooLarge(f"{at_once} x {height} x {width} pixels at once need about {needed / 1e9:.1f} GB of memory, but "
                       f"{free / 1e9:.1f} GB are free; give {advice}")
    try:
        return predict(images, arms, protocol, choices, confidence, batch_size)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "allocate memory" not in str(error):
            raise
    raise TooLarge(f"{at_once} x {height} x {width} pixels at once do not fit into the memory; give {advice}")


@torch.inference_mode()
def predict(images, arms, protocol, choices=None, confidence=False, batch_size=8):
    """Predict ``images``, (H, W, 3) uint8 BGR arrays: for each a list with a ``Decision`` for each of ``choices``.

    ``arms`` are ``dmt.arms.Arm`` networks, ``choices`` tuples of their indices: those that decide together, by the mean
    of their probabilities (default: all of them). Unless windows slide, the images must have equal canvases, as the
    groups of ``dmt.protocol.grouped`` have. At most ``batch_size`` canvases go through a network at once.
    Raises ``UserError`` as ``dmt.protocol.tiles`` does.
    """
    choices = choices or [tuple(range(len(arms)))]
    plans = [tiles(image.shape[:2], protocol) for image in images]
    if protocol.kind == SLIDING:
        maps = [_Windows(image, plan, arms, batch_size) for image, plan in zip(images, plans)]
    else:
        maps = [{} for _ in images]
        for tiles_alike in zip(*plans):
            canvases = [canvas_of(image, tile) for image, tile in zip(images, tiles_alike)]
            for known, tile, logits in zip(maps, tiles_alike, _logits(canvases, arms, batch_size)):
                known[tile] = logits
    return [_decide(image.shape[:2], plan, known, arms, choices, confidence)
            for image, plan, known in zip(images, plans, maps)]


def _logits(canvases, arms, batch_size):
    """For each of ``canvases``, (h, w, 3) uint8 arrays of one size, the logits (C, h', w') of every arm."""
    result = []
    for start in range(0, len(canvases), batch_size):
        batch = torch.from_numpy(np.stack(canvases[start : start + batch_size]))
        result += zip(*(arm.logits(batch).to(arms[0].device) for arm in arms))
    return result


class _Windows:
    """The logits of the windows of one image by ``Tile``, made when they are asked for, a batch at a time.

    They are asked for from the top to the bottom; ``forget`` drops one that is done with. So no more than a strip of
    logits is held, however large the image.
    """

    def __init__(self, image, plan, arms, batch_size):
        self._image, self._arms, self._batch_size = image, arms, batch_size
        self._waiting = sorted(plan, key=lambda tile: tile.top / tile.scaled[0])
        self._known, self._resized = {}, {}

    def __getitem__(self, tile):
        if tile not in self._known:
            others = [other for other in self._waiting if other != tile]
            batch, self._waiting = [tile, *others[: self._batch_size - 1]], others[self._batch_size - 1 :]
            canvases = [canvas_of(self._image, one, self._resized) for one in batch]
            self._known.update(zip(batch, _logits(canvases, self._arms, self._batch_size)))
        return self._known[tile]

    def forget(self, tile):
        self._known.pop(tile, None)


# --- from maps to pixels ----------------------------------------------------------------------------------------------


class _Axis:
    """Where the pixels of an image lie in a tile, along one axis: those from ``first`` to before ``last`` are in it.

    ``places`` are their positions in the tile, in pixels: half-pixel centres where the tile shows another size; then
    ``plain`` is false. ``backwards`` says whether they run from the last pixel of the tile to the first.
    """

    def __init__(self, length, scaled, start, part, canvas, backwards=False):
        places = np.clip((np.arange(length) + 0.5) * (scaled / length) - 0.5, 0, scaled - 1)
        places = (scaled - 1 - places if backwards else places) - start
        inside = np.flatnonzero((places >= -0.5) & (places < part - 0.5))
        # A pixel between two parts belongs to the nearer; the outermost tiles hold all that is left.
        self.first, self.last = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)
        self.places = np.clip(places[self.first : self.last], 0, part - 1)
        self.canvas, self.backwards, self.plain = canvas, backwards, scaled == length

    def taps(self, points, first, last):
        """(lower neighbour, upper neighbour, weight of the upper) in a map with ``points`` of pixels first to last."""
        at = self.places[first - self.first : last - self.first] * ((points - 1) / max(self.canvas - 1, 1))
        low = np.clip(np.floor(at), 0, max(points - 2, 0)).astype(np.int64)
        return low, np.minimum(low + 1, points - 1), (at - low).astype(np.float32)


def _decide(size, plan, maps, arms, choices, confidence):
    """A ``Decision`` for each of ``choices``, from the logits ``maps[tile][arm]`` of the tiles in ``plan``."""
    placed = [(tile, _Axis(size[0], tile.scaled[0], tile.top, tile.size[0], tile.canvas[0]),
               _Axis(size[1], tile.scaled[1], tile.left, tile.size[1], tile.canvas[1], tile.flip)) for tile in plan]
    device = arms[0].device
    result = [Decision(*(torch.empty(size, dtype=torch.uint8, device=device) if wanted else None
                         for wanted in (True, confidence))) for _ in choices]
    strip = max(8, _STRIP // (arms[0].num_classes * len(arms) * size[1]) // 8 * 8)
    for first in range(0, size[0], strip):
        last = min(first + strip, size[0])
        values, count = _values(first, last, size[1], placed, maps, len(arms))
        for choice, decision in zip(choices, result):
            _write(values, count, choice, first, last, decision)
        for tile, rows, _ in placed:
            if isinstance(maps, _Windows) and first < rows.last <= last:
                maps.forget(tile)
    return result


def _values(first, last, width, placed, maps, arms):
    """(for each arm (C, last - first, width) float32, how many tiles each pixel is in or None) of rows first to last.

    The values are logits where there is one tile in all (then the count is None), else sums of probabilities.
    """
    if len(placed) == 1:
        tile, rows, columns = placed[0]
        return [_at(logits, rows, columns, first, last) for logits in maps[tile]], None
    sums, count = [None] * arms, None
    for tile, rows, columns in placed:
        top, bottom = max(first, rows.first), min(last, rows.last)
        if top >= bottom or columns.first == columns.last:
            continue
        where = slice(top - first, bottom - first), slice(columns.first, columns.last)
        for arm, logits in enumerate(maps[tile]):
            pixels = _at(logits, rows, columns, top, bottom).softmax(dim=0)
            if sums[arm] is None:
                sums[arm] = pixels.new_zeros((len(pixels), last - first, width))
            sums[arm][:, *where] += pixels
        count = pixels.new_zeros((last - first, width)) if count is None else count
        count[where] += 1
    return sums, count


def _at(logits, rows, columns, first, last):
    """Logits (C, last - first, columns) float32 of the pixels of a tile in image rows first to last, bilinear."""
    if rows.plain and columns.plain:
        pixels = _upsampled(logits, (rows.canvas, columns.canvas), first - rows.first, last - rows.first,
                            columns.last - columns.first)
        return pixels.flip(-1) if columns.backwards else pixels
    low, high, weight = (torch.from_numpy(part).to(logits.device) for part in rows.taps(logits.shape[1], first, last))
    start = int(low[0])
    part = logits[:, start : int(high[-1]) + 1].float()
    left, right, share = (torch.from_numpy(values).to(logits.device)
                          for values in columns.taps(logits.shape[2], columns.first, columns.last))
    part = torch.lerp(part.index_select(2, left), part.index_select(2, right), share)
    return torch.lerp(part.index_select(1, low - start), part.index_select(1, high - start), weight[:, None])


def _upsampled(logits, canvas, first, last, width):
    """Logits (C, last - first, width) float32 of the rows first to last of a canvas, from its whole map.

    As validation computes them, bit for bit; where map points lie on pixels, from the part of the map that is needed.
    """
    points = logits.shape[1]
    ratio, rest = divmod(canvas[0] - 1, max(points - 1, 1))
    skipped = 0 if rest or points == 1 else first // ratio
    logits, above = logits[:, skipped:], skipped * ratio
    size, canvas, map_size = (last - above, width), (canvas[0] - above, canvas[1]), logits.shape[1:]
    (rows, columns), _ = covering(size, canvas, map_size)
    return pixel_logits(logits[:, :rows, :columns], size, canvas, map_size)[:, first - above :]


def _write(values, count, choice, first, last, decision):
    """Decide the rows first to last from what ``_values`` gives, by the arms of ``choice``."""
    if count is None and len(choice) == 1:
        pixels = values[choice[0]]
        largest, classes = pixels.max(dim=0)
        sure = None if decision.confidence is None else (pixels - largest).exp_().sum(dim=0).reciprocal_()
    else:
        parts = [values[arm] if count is not None else values[arm].softmax(dim=0) for arm in choice]
        largest, classes = (sum(parts[1:], start=parts[0]) if parts[1:] else parts[0]).max(dim=0)
        sure = largest / (len(choice) * (1 if count is None else count))
    decision.classes[first:last] = classes
    if decision.confidence is not None:
        decision.confidence[first:last] = torch.round(255 * sure).clamp_(max=255)
