"""What image and mask files hold: sizes, bits, values or colours, and what is wrong with them."""

import collections
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from data import images, masks
from prepare.classes import nearest
from prepare.common import in_parallel
from utils.errors import UserError

MOST_COLORS = 4096  # in one mask; more are painted by nobody


@dataclass
class Facts:
    """One image or mask: its size (height, width), format and bits as text; or the error.

    Of an image: the digest of its file, and whether a camera's tag turns it. Of a mask: how many pixels have each
    value, or each colour (as ``data.masks.colors`` packs them) where it is RGB; which of these fill a square of 2 x 2
    pixels; and the colours of values that have one.
    """

    size: tuple | None = None
    kind: str = ""
    digest: bytes = b""
    turned: bool = False
    counts: dict = field(default_factory=dict)
    areas: set = field(default_factory=set)
    palette: dict = field(default_factory=dict)
    error: str | None = None


def survey(function, paths, unit):
    """Dict from path to ``function`` (``image_facts`` or ``mask_facts``) of each of ``paths``."""
    paths = list(paths)
    return dict(zip(paths, in_parallel(function, paths, f"{unit}s", unit)))


def image_facts(path):
    """The ``Facts`` of an image, which is decoded to its end."""
    try:
        size = images.read_image(path).shape[:2]
        with Image.open(path) as file:
            kind, mode = file.format, file.mode.partition(";")[0]
        return Facts(size, f"{kind} {mode}", images.digest(path), images.is_turned(path))
    except UserError as error:
        return Facts(error=str(error))


def mask_facts(path):
    """The ``Facts`` of a mask, by its colours where it has such, else by its values."""
    try:
        images.image_size(path)  # refuses what claims to be too large
        content = path.read_bytes()
        with Image.open(path) as file:
            mode, palette = file.mode, (file.getpalette("RGB") or []) if file.mode == "P" else []
            if file.format in ("JPEG", "MPO"):
                return Facts(error=f"the mask {path} is a JPEG, which changes values; {nearest(path.parent)}")
        colored = mode in ("RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV")
        found = masks.colors(path, content) if colored else masks.values(path, content)
    except (UserError, OSError) as error:
        return Facts(error=str(error))
    numbers, counts = np.unique(found, return_counts=True)
    if len(numbers) > MOST_COLORS:
        return Facts(error=f"the mask {path} holds {len(numbers)} colours: it is blurred, or a photograph; "
                           f"{nearest(path.parent)}")
    corner = found[:-1, :-1]
    same = (corner == found[1:, :-1]) & (corner == found[:-1, 1:]) & (corner == found[1:, 1:])
    kind = "RGB" if colored else "palette" if palette else f"grey {8 * found.itemsize} bits"
    return Facts(found.shape, kind, counts=dict(zip(numbers.tolist(), counts.tolist())),
                 areas=set(np.unique(corner[same]).tolist()),
                 palette={value: tuple(palette[3 * value : 3 * value + 3]) for value in numbers.tolist()
                          if palette[3 * value + 2:]})


def alike(facts):
    """(whether the masks are read by colour, their ``Facts`` as if all were of one kind).

    RGB masks without a colour but grey are masks of values; where one has colours, palettes and greys say them, too.
    """
    colors = {color for fact in facts for color in fact.counts if fact.kind == "RGB"}
    if all(len(set(masks.unpack(color))) == 1 for color in colors):
        return False, [_renumbered(fact, lambda color: color & 255, "grey 8 bits, saved as RGB")
                       if fact.kind == "RGB" else fact for fact in facts]
    def color(fact):
        return lambda value: masks.pack(fact.palette.get(value, (value & 255,) * 3))

    return True, [fact if fact.kind == "RGB" else _renumbered(fact, color(fact), fact.kind) for fact in facts]


def _renumbered(fact, number, kind):
    counts = collections.Counter()
    for value, count in fact.counts.items():
        counts[number(value)] += count
    return Facts(fact.size, kind, counts=dict(counts), areas=set(map(number, fact.areas)), error=fact.error)
