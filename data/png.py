"""PNGs, as masks are: whole or damaged, and written in the colours of classes."""

import io
import zlib

from PIL import Image

_CREAM = (224, 224, 192)  # VOC's colour of ignored pixels


def is_whole(content):
    """Whether ``content`` (bytes) is a PNG with all its chunks, to the last one, and the CRCs they were written with."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.verify()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def palette_of(colors, values=None):
    """256 RGB triples: ``colors[i]`` at ``values[i]`` (default: at i), VOC's cream at 255 unless taken, else black."""
    palette = dict(zip(range(len(colors)) if values is None else values, colors))
    return [tuple(palette.get(value, _CREAM if value == 255 else (0, 0, 0))) for value in range(256)]


def palette_png(values, palette):
    """``values`` (H, W) uint8 as the bytes of a PNG with 8 bits a pixel and the 256 colours of ``palette_of``.

    Labels are runs of one value: a search for longer matches would take four times the time for no fewer bytes.
    """
    image, content = Image.fromarray(values), io.BytesIO()
    image.putpalette([channel for color in palette for channel in color])
    image.save(content, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return content.getvalue()
