"""What image and mask files hold: sizes, values or colours, and what is wrong with them."""

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from data import images, masks
from prepare.classes import nearest
from utils.errors import UserError
from utils.files import sha256

MOST_COLORS = 4096  # in one mask; more are painted by nobody
_COLORED = ("RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV")


@dataclass
class Facts:
    """One image or mask: its size (height, width), or the error.

    Of an image: the digest of its file, and whether a camera's tag turns it. Of a mask: how many pixels have each
    value, or each colour (as ``data.masks.colors`` packs them); which of these fill a square of 2 x 2 pixels; and the
    colours of values in a palette.
    """

    size: tuple | None = None
    digest: str = ""
    turned: bool = False
    counts: dict = field(default_factory=dict)
    areas: set = field(default_factory=set)
    palette: dict = field(default_factory=dict)
    error: str | None = None


def image_facts(path, max_pixels):
    """The ``Facts`` of an image, which is decoded to its end."""
    try:
        return Facts(images.read_image(path, max_pixels).shape[:2], sha256(path), images.is_turned(path))
    except UserError as error:
        return Facts(error=str(error))


def has_colors(path):
    """Whether a mask is saved in colours and has one that is no grey."""
    try:
        with Image.open(path) as file:
            if file.mode not in _COLORED:
                return False
        found = masks.colors(path, path.read_bytes())
    except (UserError, OSError):  # mask_facts says what is wrong
        return False
    return bool((found != (found & 255) * 0x10101).any())


def mask_facts(path, max_pixels, by_color):
    """The ``Facts`` of a mask, by its colours or by its values."""
    try:
        images.image_size(path, max_pixels)  # refuses what claims to be too large
        content = path.read_bytes()
        with Image.open(path) as file:
            palette = (file.getpalette("RGB") or []) if file.mode == "P" else []
            if file.format in ("JPEG", "MPO"):
                return Facts(error=f"the mask {path} is a JPEG, which changes values; {nearest(path.parent)}")
        found = masks.colors(path, content) if by_color else masks.values(path, content)
    except (UserError, OSError) as error:
        return Facts(error=str(error))
    numbers, counts = np.unique(found, return_counts=True)
    if len(numbers) > MOST_COLORS:
        return Facts(error=f"the mask {path} holds {len(numbers)} colours: it is blurred, or a photograph; "
                           f"{nearest(path.parent)}")
    corner = found[:-1, :-1]
    same = (corner == found[1:, :-1]) & (corner == found[:-1, 1:]) & (corner == found[1:, 1:])
    return Facts(found.shape, counts=dict(zip(numbers.tolist(), counts.tolist())),
                 areas=set(np.unique(corner[same]).tolist()),
                 palette={value: tuple(palette[3 * value : 3 * value + 3]) for value in numbers.tolist()
                          if palette[3 * value + 2:]})
