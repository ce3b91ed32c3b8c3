"""How an image of any size is shown to a network: the papers' protocol, original resolution, or sliding windows; scales
and flips. Every one of them becomes a list of tiles. Nothing here imports torch.
"""

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

from data import transforms
from utils.errors import UserError

PAPERS, ORIGINAL, SLIDING = "papers", "original", "sliding"
STRIDE = 2 / 3
_BATCH_PIXELS = 1 << 20  # a group of N images has N times as many pixels at most, unless one image alone has more


@dataclass(frozen=True)
class Protocol:
    """How images are shown to networks. All sizes are (height, width).

    ``kind``: "papers" (at ``test_size``), "original" (undivided, at its own size), or "sliding" (windows of ``window``
    that move by at most the share ``stride`` of it). ``test_by`` is what training did with images: "pad" left them as
    they are; "resize" resized them to ``test_size``, so every protocol does that first.
    ``scales`` are factors of the size that is shown, ``flip`` adds mirror images; what all of them say is averaged.
    Networks are shown sides of k · ``every`` + ``plus`` pixels (see ``models.deeplab.Traits``).
    """

    kind: str = ORIGINAL
    test_size: tuple | None = None
    test_by: str = "pad"
    window: tuple | None = None
    stride: float = STRIDE
    scales: tuple = (1.0,)
    flip: bool = False
    every: int = 8
    plus: int = 1

    def __str__(self):
        shown = [f"resized to {_text(self.test_size)}"] if self.test_by == "resize" else []
        if self.kind == ORIGINAL:
            shown.append("undivided" if shown else "undivided, at original resolution")
        elif self.kind == SLIDING:
            shown.append(f"sliding windows of {_text(self.grid(self.window))}, {self.stride:.3g} of it apart")
        elif not shown:
            shown.append(f"zero-padded to {_text(self.test_size)}")
        scales = "one scale" if self.scales == (1.0,) else f"scales {', '.join(f'{scale:g}' for scale in self.scales)}"
        papers = " (the papers')" if self.kind == PAPERS and self.scales == (1.0,) and not self.flip else ""
        return f"{', '.join(shown)}, {scales}, {'flip' if self.flip else 'no flip'}{papers}"

    def grid(self, size):
        """The next larger size that the networks like: points of the map lie evenly, from border to border.

        Two points at least: exported networks take no less.
        """
        return tuple(max(-(-(side - self.plus) // self.every), 2 - self.plus) * self.every + self.plus for side in size)

    def values(self):
        """The protocol as plain values, for JSON."""
        return {"kind": self.kind, "test_size": self.test_size and list(self.test_size), "test_by": self.test_by,
                "window": list(self.grid(self.window)) if self.kind == SLIDING else None,
                "stride": self.stride if self.kind == SLIDING else None, "scales": list(self.scales),
                "flip": self.flip, "text": str(self)}


def _text(size):
    return f"{size[0]} x {size[1]}"


class Tile(NamedTuple):
    """A part of an image: ``size`` rows and columns, from (``top``, ``left``) on, of the image resized to ``scaled``
    and then mirrored if ``flip``; padded at the bottom and right with black to ``canvas``."""

    scaled: tuple
    flip: bool
    top: int
    left: int
    size: tuple
    canvas: tuple


def tiles(size, protocol):
    """The ``Tile`` list of an image of ``size`` (height, width). Each scale and flip holds every pixel at least once.

    Raises ``UserError`` when the image is larger than the size it has to be padded to.
    """
    base, result = size, []
    if protocol.test_by == "resize":
        base = protocol.test_size
    elif protocol.kind == PAPERS and any(side > most for side, most in zip(size, protocol.test_size)):
        raise UserError(f"{size[1]} x {size[0]} pixels are larger than the test size {protocol.test_size[1]} x "
                        f"{protocol.test_size[0]} that images are padded to; give a larger --test-size, or --protocol "
                        "original or sliding")
    for scale, flip in itertools.product(protocol.scales, (False, True) if protocol.flip else (False,)):
        scaled = _scaled(base, scale)
        if protocol.kind == SLIDING:
            window = protocol.grid(protocol.window)
            part = tuple(map(min, window, scaled))
            tops, lefts = (_starts(*sides, protocol.stride) for sides in zip(scaled, window))
            result += [Tile(scaled, flip, top, left, part, window) for top in tops for left in lefts]
        elif protocol.kind == ORIGINAL:
            result.append(Tile(scaled, flip, 0, 0, scaled, protocol.grid(scaled)))
        else:
            canvas = protocol.test_size if scale == 1 else protocol.grid(_scaled(protocol.test_size, scale))
            result.append(Tile(scaled, flip, 0, 0, scaled, canvas))
    return result


def _scaled(size, scale):
    return tuple(max(1, round(scale * side)) for side in size)


def _starts(length, window, stride):
    """Where windows begin along an axis: evenly spaced, at most ``stride`` of a window apart, the last at the end."""
    if length <= window:
        return [0]
    last = math.ceil((length - window) / max(1, int(stride * window)))
    return [round(index * (length - window) / last) for index in range(last + 1)]


def canvas_of(image, tile, resized=None):
    """What the network sees of ``image`` (H, W, 3) uint8: (*tile.canvas, 3) uint8.

    Scaled bilinearly in uint8, as in training, and padded with black before normalization. ``resized``, a dict, keeps
    the image of each scale for the next tile.
    """
    resized = {} if resized is None else resized
    if tile.scaled not in resized:
        resized[tile.scaled] = transforms.resize_image(image, tile.scaled)
    rows, columns = tile.size
    left = tile.scaled[1] - tile.left - columns if tile.flip else tile.left
    part = resized[tile.scaled][tile.top : tile.top + rows, left : left + columns]
    return transforms.pad(part[:, ::-1] if tile.flip else part, tile.canvas, 0)


def grouped(pictures, protocol, batch_size):
    """Lists of at most ``batch_size`` consecutive ``pictures``, pairs of anything and an image, of equal canvases.

    Images of sliding windows stay alone, since their windows fill batches; large images come in smaller groups. What is
    too large for the protocol stays alone.
    """
    def shown(picture):
        try:
            return [tile.canvas for tile in tiles(picture[1].shape[:2], protocol)]
        except UserError:
            return None

    for canvases, alike in itertools.groupby(pictures, shown):
        limit = batch_size  # at test size always, as in validation
        if canvases is None or protocol.kind == SLIDING:
            limit = 1
        elif protocol.kind == ORIGINAL:
            area = max(height * width for height, width in canvases)
            limit = max(1, min(batch_size, batch_size * _BATCH_PIXELS // area))
        while group := list(itertools.islice(alike, limit)):
            yield group
