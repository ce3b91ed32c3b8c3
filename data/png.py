"""PNGs of one byte a pixel, as masks are: whole or damaged, read by zlib alone, and written in the colours of classes.

Where no row is filtered, as in palette PNGs, the inflated rows are the pixels, and an image library would only add to
the time of that.
"""

import io
import struct
import zlib

import numpy as np
from PIL import Image

_START = b"\x89PNG\r\n\x1a\n"
_ONE_BYTE = ((8, 0), (8, 3))  # (bits, kind of colour): greyscale, palette
_CREAM = (224, 224, 192)  # VOC's colour of ignored pixels


def is_whole(content):
    """Whether ``content`` (bytes) is a PNG with all its chunks, to the last one, and the CRCs they were written with."""
    return _chunks(content) is not None


def unfiltered(content):
    """(H, W) uint8, read-only, of a whole PNG with one byte a pixel and no filtered row; None for others."""
    chunks = _chunks(content)
    if chunks is None or len(chunks[0][1]) != 13:
        return None
    width, height, bits, color, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[0][1])
    if (bits, color) not in _ONE_BYTE or interlaced or not width or not height:
        return None
    size = height * (width + 1)  # each row begins with the number of its filter
    try:
        # At most one byte more than the header promises: what says little may inflate to very much.
        inflated = zlib.decompressobj().decompress(b"".join(data for kind, data in chunks if kind == b"IDAT"), size + 1)
    except zlib.error:
        return None
    if len(inflated) != size:
        return None
    rows = np.frombuffer(inflated, np.uint8).reshape(height, width + 1)
    return None if rows[:, 0].any() else rows[:, 1:]


def _chunks(content):
    """List of (kind, data) of the chunks of a whole PNG, else None."""
    if content[:8] != _START:
        return None
    chunks, place, view = [], 8, memoryview(content)
    while place + 12 <= len(content):
        end = place + 8 + int.from_bytes(view[place : place + 4], "big")
        if zlib.crc32(view[place + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            return None
        kind = bytes(view[place + 4 : place + 8])
        chunks.append((kind, view[place + 8 : end]))
        if kind == b"IEND":
            return chunks if end + 4 == len(content) else None
        place = end + 4
    return None


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
