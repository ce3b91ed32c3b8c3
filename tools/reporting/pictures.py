"""Small pictures of images and label maps, one file each, for the panels of the report."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from utils.files import write_bytes

SIDE = 240  # longest side in pixels
UNLABELLED = (224, 224, 192)  # VOC's cream


def write_panel(folder, stem, columns, spec):
    """Write every column as ``stem-N.png`` (photographs: .jpg) and return [[title, file name], ...].

    ``columns``: title -> (H, W, 3) uint8 RGB picture or (H, W) uint8 label map, drawn in the palette of ``spec``.
    """
    written = []
    for number, (title, pixels) in enumerate(columns.items(), start=1):
        photograph = pixels.ndim == 3 and (pixels[..., :1] != pixels).any()
        name = f"{stem}-{number}.{'jpg' if photograph else 'png'}"
        write_bytes(Path(folder) / name, _encoded(pixels, spec.palette, photograph), durable=False)
        written.append([title, name])
    return written


def _encoded(pixels, palette, photograph):
    height, width = pixels.shape[:2]
    scale = min(1, SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = Image.fromarray(pixels if photograph or pixels.ndim == 2 else np.ascontiguousarray(pixels[..., 0]))
    if pixels.ndim == 2:
        image.putpalette(palette_bytes(palette))
    image = image.resize(size, Image.Resampling.NEAREST if pixels.ndim == 2 else Image.Resampling.BOX)
    content = io.BytesIO()
    if photograph:
        image.save(content, "JPEG", quality=85)
    else:
        image.save(content, "PNG", optimize=True)
    return content.getvalue()


def palette_bytes(palette):
    """The 768 bytes of a PNG palette with the classes' colours (RGB), and 255 in cream."""
    channels = [channel for color in palette for channel in color]
    return channels + [0] * (3 * 255 - len(channels)) + list(UNLABELLED)
