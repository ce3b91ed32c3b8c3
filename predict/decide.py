"""What networks say of an image of any size: the mean of their probabilities over tiles, scales, flips and networks.

Where one network sees every pixel once, its largest logit decides, as in the validation of training. Everything here
is a function of its arguments alone.
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import grid_sample

from dmt.memory import largest_map
from models.deeplab import upsample
from predict.protocol import PAPERS, SLIDING, canvas_of, grouped, tiles
from utils.errors import UserError

_STRIP = 1 << 24  # floats at image size that are held at once; larger images are decided strip by strip


class Decision(NamedTuple):
    """``classes`` (H, W) uint8, ``confidence`` (H, W) float32: the winner's probability."""

    classes: torch.Tensor
    confidence: torch.Tensor


def predict_all(pictures, members, protocol, choices=None, batch_size=8, failed=None, share=iter):
    """Predict ``pictures``, an iterable of pairs (anything, image); yields (anything, image, its ``Decision`` list).

    Arguments as for ``predict``, which gets the pictures in groups. The pictures of a group that does not fit into the
    memory, or that a network refuses, are predicted one by one.
    ``failed(anything, error)`` gets one that cannot be predicted even so; without it the ``UserError`` is raised.
    ``share`` picks some of the groups, where several processes divide them.
    """
    for group in share(grouped(pictures, protocol, batch_size)):
        try:
            decisions = _predict_group(group, members, protocol, choices, batch_size)
        except UserError as error:
            if len(group) > 1:
                for picture in group:
                    yield from predict_all([picture], members, protocol, choices, batch_size, failed)
            elif failed is None:
                raise
            else:
                failed(group[0][0], error)
        else:
            yield from ((*picture, made) for picture, made in zip(group, decisions))


def _predict_group(group, members, protocol, choices, batch_size):
    """``predict``, for which images that do not fit into the memory are a ``UserError``, too."""
    images = [image for _, image in group]
    canvases = [tile.canvas for image in images for tile in tiles(image.shape[:2], protocol)]
    height, width = max(canvases, key=lambda size: size[0] * size[1])
    at_once = min(batch_size, len(canvases) if protocol.kind == SLIDING else len(images))
    said = f"{at_once} x {height} x {width} pixels at once"
    advice = f"give {'a smaller --window or --batch-size' if protocol.kind == SLIDING else '--protocol sliding'}"
    if any(member.device.type == "cpu" for member in members):  # there the system kills a process, without a word
        networks, free = (member.description for member in members), _free_memory()
        a_pixel = max(5 * largest_map(one.backbone, one.output_stride) for one in networks)  # measured on a CPU
        needed = a_pixel * height * width * at_once
        if needed > free:
            raise UserError(f"{said} need about {needed / 1e9:.1f} GB of memory, but {free / 1e9:.1f} GB are free; "
                            f"{advice}")
    try:
        return predict(images, members, protocol, choices, batch_size)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "allocate memory" not in str(error):
            raise
    raise UserError(f"{said} do not fit into the memory; {advice}")  # here, where no frame holds what did not fit


def _free_memory():
    """Bytes of main memory that this process may still take, as the system and its container see it."""
    free = 1024 * int(re.search(r"MemAvailable: +(\d+)", Path("/proc/meminfo").read_text())[1])
    limit, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit.is_file() and limit.read_text().strip().isdigit():  # else there is no limit
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free


@torch.inference_mode()
def predict(images, members, protocol, choices=None, batch_size=8):
    """Predict ``images``, (H, W, 3) uint8 BGR arrays: for each a list with a ``Decision`` for each of ``choices``.

    ``members`` are ``predict.network.Member`` networks, ``choices`` tuples of their indices: those that decide
    together, by the mean of their probabilities (default: all of them). Unless windows slide, the images must have
    equal canvases, as the groups of ``grouped`` have. At most ``batch_size`` canvases go through a network at once.
    """
    choices = choices or [tuple(range(len(members)))]
    plans = [tiles(image.shape[:2], protocol) for image in images]
    maps = [{} for _ in images]  # of each image: tile -> logits of every member
    for tiles_alike in zip(*plans) if protocol.kind != SLIDING else ():  # windows are seen strip by strip
        canvases = [canvas_of(image, tile) for image, tile in zip(images, tiles_alike)]
        for known, tile, logits in zip(maps, tiles_alike, _logits(canvases, members, batch_size)):
            known[tile] = logits
    return [_decide(image, plan, known, members, choices, batch_size, whole=protocol.kind == PAPERS)
            for image, plan, known in zip(images, plans, maps)]


def _logits(canvases, members, batch_size):
    """For each of ``canvases``, (h, w, 3) uint8 arrays of one size, the logits (C, h', w') of every member."""
    result = []
    for start in range(0, len(canvases), batch_size):
        batch = torch.from_numpy(np.stack(canvases[start : start + batch_size]))
        result += zip(*(member.logits(batch).to(members[0].device) for member in members))
    return result


# --- from maps to pixels ----------------------------------------------------------------------------------------------


class _Axis:
    """Where the pixels of an image lie in a tile, along one axis: those from ``first`` to before ``last`` are in it.

    ``places`` are their positions in the tile, from -1 at its first pixel to 1 at the last of its canvas. ``plain``
    says that they are the tile's own pixels in their order or ``backwards``: it shows the image at its own size, whole.
    """

    def __init__(self, length, scaled, start, part, canvas, backwards=False):
        places = np.clip((np.arange(length) + 0.5) * (scaled / length) - 0.5, 0, scaled - 1)  # of half-pixel centres
        places = (scaled - 1 - places if backwards else places) - start
        inside = np.flatnonzero((places >= -0.5) & (places < part - 0.5))
        # A pixel between two parts belongs to the nearer; the outermost tiles hold all that is left.
        self.first, self.last = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)
        self.places = np.clip(places[self.first : self.last], 0, part - 1) * (2 / max(canvas - 1, 1)) - 1
        self.canvas, self.backwards, self.plain = canvas, backwards, scaled == length == part


def _decide(image, plan, maps, members, choices, batch_size, whole):
    """A ``Decision`` for each of ``choices``, from the logits ``maps[tile][member]`` of the tiles in ``plan``.

    Strip by strip, unless the image is decided ``whole``, as validation does it. Logits that ``maps`` lacks are made
    when a strip needs them, a batch at a time, and dropped behind it: no more than a strip is held of a large image.
    """
    (height, width), resized = image.shape[:2], {}
    placed = [(tile, _Axis(height, tile.scaled[0], tile.top, tile.size[0], tile.canvas[0]),
               _Axis(width, tile.scaled[1], tile.left, tile.size[1], tile.canvas[1], tile.flip)) for tile in plan]
    waiting = {tile: rows.first for tile, rows, _ in placed if tile not in maps}
    waiting = sorted(waiting.items(), key=lambda item: item[1])
    strip = height if whole else max(8, _STRIP // (members[0].description.num_classes * len(members) * width))
    parts = []
    for first in range(0, height, strip):
        last = min(first + strip, height)
        while waiting and waiting[0][1] < last:
            batch, waiting = [tile for tile, _ in waiting[:batch_size]], waiting[batch_size:]
            canvases = [canvas_of(image, tile, resized) for tile in batch]
            maps.update(zip(batch, _logits(canvases, members, batch_size)))
        parts.append(list(_strip(first, last, width, placed, maps, choices)))
        for tile, rows, _ in placed:
            if rows.last <= last:
                maps.pop(tile, None)
    return [Decision(*map(torch.cat, zip(*strips))) for strips in zip(*parts)]


def _strip(first, last, width, placed, maps, choices):
    """For each of ``choices``: (classes uint8, confidences float32) of the image's rows from ``first`` to ``last``.

    The mean of probabilities over tiles and members decides; where there is one of each, its logits do.
    """
    alone, shares, count = len(placed) == 1, [], 1  # of every member, over all tiles: (C, last - first, width) float32
    for tile, rows, columns in placed:
        top, bottom = max(first, rows.first), min(last, rows.last)
        if top >= bottom or columns.first == columns.last:
            continue
        parts = [_at(logits, rows, columns, top, bottom) for logits in maps[tile]]
        if alone:
            shares = parts
            break
        where = slice(top - first, bottom - first), slice(columns.first, columns.last)
        if not shares:
            shares = [part.new_zeros((len(part), last - first, width)) for part in parts]
            count = parts[0].new_zeros((last - first, width))
        for total, part in zip(shares, parts):
            total[:, *where] += part.softmax(dim=0)
        count[where] += 1
    for choice in choices:
        if alone and len(choice) == 1:
            pixels = shares[choice[0]]
            largest, classes = pixels.max(dim=0)
            yield classes.to(torch.uint8), (pixels - largest).exp_().sum(dim=0).reciprocal_()
        else:
            parts = [shares[member].softmax(dim=0) if alone else shares[member] for member in choice]
            largest, classes = sum(parts[1:], start=parts[0]).max(dim=0)
            yield classes.to(torch.uint8), largest / (len(choice) * count)


def _at(logits, rows, columns, first, last):
    """Logits (C, last - first, columns) float32 of the pixels of a tile in image rows first to last, bilinear."""
    # A map in channels_last order would be upsampled in that order, and reductions over the classes are slower there.
    logits = logits[None].contiguous()
    if rows.plain and columns.plain and (first, last) == (rows.first, rows.last):  # as validation does, bit for bit
        pixels = upsample(logits, (rows.canvas, columns.canvas))[0, :, :last, : columns.last]
        return pixels.flip(-1) if columns.backwards else pixels
    y, x = (torch.from_numpy(places).to(logits.device, torch.float32)
            for places in (rows.places[first - rows.first : last - rows.first], columns.places))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    return grid_sample(logits.float(), grid[None], padding_mode="border", align_corners=True)[0]
