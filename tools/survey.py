"""What image and mask files hold: sizes, bits, values or colours, and what is wrong with them."""

import collections
import contextlib
import os
from dataclasses import dataclass, field

import cv2
import numpy as np
from PIL import Image

from data import images, masks
from tools.preparation import in_parallel
from utils.console import progress_bar
from utils.errors import UserError

MOST_COLORS = 4096  # in one mask; more are painted by nobody
_ORIENTATION, _BITS = 0x0112, 258  # tags of EXIF and TIFF
_DARK = 4095  # an image of 16 bits that holds no more than 12 would be nearly black


@dataclass
class ImageFacts:
    """One image: its size (height, width), channels and bits as text, whether a camera's tag turns it; or the error."""

    size: tuple | None = None
    kind: str = ""
    turned: bool = False
    dark: bool = False
    error: str | None = None


@dataclass
class MaskFacts:
    """One mask: its size, its kind ("palette", "grey 8 bits", "grey 16 bits" or "RGB"), and how many pixels have each
    value or, in an RGB mask, each colour (as ``data.masks.colors`` packs them); ``palette`` maps values to colours."""

    size: tuple | None = None
    kind: str = ""
    values: dict = field(default_factory=dict)
    colors: dict = field(default_factory=dict)
    palette: dict = field(default_factory=dict)
    error: str | None = None


def examine(function, paths, unit):
    """Yield ``function`` of each of ``paths``, in order, by a few threads that run only a little ahead.

    ``unit`` is what a path stands for, in the progress that is shown.
    """
    paths = list(paths)
    return progress_bar(f"{unit}s", unit, len(paths))(in_parallel(function, paths, min(16, os.cpu_count() or 1)))


def image_facts(path):
    """The ``ImageFacts`` of a file, which is decoded to its end."""
    try:
        size = images.read_image(path).shape[:2]
    except UserError as error:
        return ImageFacts(error=str(error))
    with Image.open(path) as file:
        wide = _has_16_bits(file)
        turned = False
        if file.format in ("JPEG", "TIFF", "WEBP"):
            with contextlib.suppress(Exception):  # a damaged tag turns nothing
                turned = file.getexif().get(_ORIENTATION, 1) not in (0, 1)
        mode = "L" if file.mode.startswith("I;") else file.mode
        kind = f"{file.format} {mode} {16 if wide else 8} bits"
    dark = wide and cv2.imread(str(path), cv2.IMREAD_UNCHANGED).max() <= _DARK
    return ImageFacts(size, kind, turned, dark)


def mask_facts(path):
    """The ``MaskFacts`` of a file."""
    try:
        images.image_size(path)  # refuses what claims to be too large
        with open(path, "rb") as file:
            content = file.read()
        with Image.open(path) as file:
            mode = file.mode
        if mode in ("RGB", "RGBA"):
            found = masks.colors(path, content)
            numbers, counts = np.unique(found, return_counts=True)
            if len(numbers) > MOST_COLORS:
                return MaskFacts(found.shape, "RGB", error=(
                    f"the mask {path} holds {len(numbers)} colours: it is blurred, JPEG, or a photograph; "
                    "tools/convert_rgb.py --tolerance takes the nearest colour of a class"))
            return MaskFacts(found.shape, "RGB", colors=dict(zip(numbers.tolist(), counts.tolist())))
        found = masks.values(path, content)
    except UserError as error:
        return MaskFacts(error=str(error))
    counts = np.bincount(found.ravel())
    values = {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    kind = "palette" if mode == "P" else f"grey {16 if found.dtype == np.uint16 else 8} bits"
    palette = palette_of(path)
    return MaskFacts(found.shape, kind, values, palette={value: palette[value] for value in values if value in palette})


def palette_of(path):
    """Dict from value to colour (red, green, blue) of a readable palette image, empty for others."""
    with Image.open(path) as file:
        numbers = (file.getpalette("RGB") or []) if file.mode == "P" else []
    return {value: tuple(numbers[3 * value : 3 * value + 3]) for value in range(len(numbers) // 3)}


def grey_as_values(facts):
    """``facts`` (list of ``MaskFacts``) with RGB masks turned to grey ones where no mask has a colour but grey."""
    colors = {color for fact in facts for color in fact.colors}
    if not colors or any(len(set(masks.unpack(color))) > 1 for color in colors):
        return facts
    return [MaskFacts(fact.size, "grey 8 bits, saved as RGB"
                                 "", {color & 255: count for color, count in fact.colors.items()})
            if fact.kind == "RGB" and not fact.error else fact for fact in facts]


def by_color(facts):
    """``facts`` as if all were RGB: palette masks by their palette, grey ones as greys."""
    def one(fact):
        colors = collections.Counter(fact.colors)
        for value, count in fact.values.items():
            colors[masks.pack(fact.palette.get(value, (value & 255,) * 3))] += count
        return MaskFacts(fact.size, fact.kind, colors=dict(colors), error=fact.error)
    return [one(fact) for fact in facts]


def total(dicts):
    """(Counter of pixels, Counter of files) of each value or colour in ``dicts``, as ``MaskFacts`` holds them."""
    pixels, files = collections.Counter(), collections.Counter()
    for counts in dicts:
        pixels.update(counts)
        files.update(counts.keys())
    return pixels, files


def _has_16_bits(file):
    """Whether an open image has 16 bits a channel; Pillow's mode says so for greyscale only."""
    if file.mode.startswith("I"):
        return True
    if file.format == "TIFF":
        return max(file.tag_v2.get(_BITS, (8,))) > 8
    with contextlib.suppress(OSError, AttributeError, ValueError):
        file.fp.seek(24)  # in a PNG, the depth
        return file.format == "PNG" and file.fp.read(1) == b"\x10"
    return False
