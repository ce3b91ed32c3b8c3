"""What a mask says: from the bytes of an image file to a class for every pixel.

Masks are read by value: greyscale of 1 to 16 bits, or the numbers of a palette, never scaled. Where the spec says
``masks: color``, the colours say the class.
"""

import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image

from data import png
from utils.errors import UserError

IGNORED = 255
_LARGEST = 65535
_UNKNOWN = 254  # in the table of colours: no class (there are at most 254 classes, 0 to 253)
_DAMAGED = (OSError, SyntaxError, ValueError, TypeError, OverflowError, EOFError, LookupError, struct.error, zlib.error)
_SCALES = {"L;2": 85, "L;4": 17, "L;2I": 85, "L;4I": 17}  # Pillow's modes of few bits, which it scales up to 255


def classes(path, content, spec):
    """The mask in ``content`` (bytes of the file ``path``) as (H, W) uint8 of classes of ``spec``, 255 = ignored.

    Raises ``UserError`` naming the file, the value or colour and its place when that is no class.
    """
    if spec.mask_colors is not None:
        return _classes_of_colors(path, colors(path, content), spec)
    found = values(path, content)
    table, wrong = _value_tables(spec)
    if found.dtype == np.uint8:
        table, wrong = None if table is None else table[:256], wrong[:256]
        if cv2.LUT(found, wrong).any():
            raise _no_class(path, found, wrong, spec)
        return found if table is None else cv2.LUT(found, table)
    if wrong[found].any():
        raise _no_class(path, found, wrong, spec)
    return found.astype(np.uint8) if table is None else table[found]


def values(path, content):
    """The values of a mask, (H, W) uint8 or uint16. Raises ``UserError`` when it does not decode or has colours."""
    found = png.unfiltered(content)
    if found is not None:
        return found
    try:
        with Image.open(io.BytesIO(content)) as file:
            scale = _SCALES.get(_raw_mode(file), 1)
            array, mode = np.array(file), file.mode
    except _DAMAGED as error:
        raise _does_not_decode(path, error) from error
    if mode in ("RGB", "RGBA", "LA", "PA"):
        array = _one_channel(path, array, mode)
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.ndim != 2:
        raise _has_colors(path, mode)
    if array.dtype not in (np.uint8, np.uint16):  # TIFFs of 32 bits
        if (array < 0).any() or (array > _LARGEST).any() or (array != array.astype(np.int64)).any():
            raise UserError(f"the mask {path} holds values that are no whole numbers from 0 to {_LARGEST}; save it as "
                            "a greyscale PNG of 8 or 16 bits")
        array = array.astype(np.uint16)
    return array // scale if scale > 1 else array


def colors(path, content):
    """The colours of a mask, (H, W) uint32: red + 256 green + 65536 blue. A palette's colours count, not its numbers.

    An alpha channel must be the same everywhere. Raises ``UserError`` when the mask does not decode.
    """
    try:
        with Image.open(io.BytesIO(content)) as file:
            if file.mode not in ("RGB", "RGBA", "P", "L", "LA", "1"):
                raise UserError(f"the mask {path} has no colours of 8 bits (mode {file.mode}), but the spec says "
                                "'masks: color'; save it as an RGB PNG, or correct the spec")
            alpha = np.array(file.getchannel("A")) if file.mode in ("RGBA", "LA") else None
            array = np.array(file.convert("RGB").convert("RGBA"))
    except _DAMAGED as error:
        raise _does_not_decode(path, error) from error
    if alpha is not None:
        _refuse_transparency(path, alpha)
    return array.view("<u4")[..., 0] & 0xFFFFFF


def pack(color):
    """The number that ``colors`` gives for a colour (red, green, blue)."""
    red, green, blue = color
    return red | green << 8 | blue << 16


def unpack(number):
    """The colour [red, green, blue] of such a number."""
    return [int(number) >> shift & 255 for shift in (0, 8, 16)]


# --- tables -----------------------------------------------------------------------------------------------------------


_last = {"tables": (None, None)}  # of the last spec: hashing one for every mask would cost more than the look-up


def _tables_of(spec, make):
    known, tables = _last["tables"]
    if known is not spec:
        tables = make(spec)
        _last["tables"] = spec, tables
    return tables


def _value_tables(spec):
    """(class of each of the 65536 values, or None where 8-bit values are classes already; which of them are wrong)."""
    return _tables_of(spec, _make_value_tables)


def _make_value_tables(spec):
    table, wrong = np.full(_LARGEST + 1, IGNORED, np.uint8), np.zeros(_LARGEST + 1, np.uint8)
    if spec.label_ids is not None:
        ids = np.array(spec.label_ids)
        table[: len(ids)] = np.where(ids < spec.num_classes, ids, IGNORED)
        return table, wrong
    table[: spec.num_classes] = np.arange(spec.num_classes)
    wrong[spec.num_classes :] = 1
    if spec.ignore is not None:
        wrong[spec.ignore] = 0
    return None if spec.ignore in (None, IGNORED) else table, wrong


def _color_table(spec):
    """(2 ** 24,) uint8: the class of every colour. It is 16 MB, but one look a pixel, and few places are used."""
    table = np.full(1 << 24, IGNORED if spec.ignore_other_colors else _UNKNOWN, np.uint8)
    for color, index in spec.mask_colors:
        table[pack(color)] = index
    return table


def _classes_of_colors(path, found, spec):
    result = _tables_of(spec, _color_table)[found]
    unknown = result == _UNKNOWN
    if unknown.any():
        y, x = np.argwhere(unknown)[0]
        color = unpack(found[y, x])
        others = len(np.unique(found[unknown])) - 1
        which = f" and {others} more colours that belong" if others else ", that belongs"
        jpeg = ""
        if _is_jpeg(path):
            jpeg = " (JPEG changes colours: tools/convert_rgb.py --tolerance takes the nearest one)"
        raise UserError(f"the mask {path} holds the colour {color} at x {x}, y {y}"
                        + f"{which} to no class of {spec.name}; give a class of the spec 'colors: [{color}]', or add "
                          f"it to 'ignore_colors', or correct the mask{jpeg}")
    return result


# --- faults -----------------------------------------------------------------------------------------------------------


def _no_class(path, found, wrong, spec):
    y, x = np.argwhere(wrong[found] > 0)[0]
    value = int(found[y, x])
    ignored = "" if spec.ignore is None else f" and {spec.ignore} for ignored pixels"
    hint = " (JPEG changes values: save masks as PNG)" if _is_jpeg(path) else ""
    return UserError(f"the mask {path} holds the value {value} (at x {x}, y {y}), but {spec.name} has the classes 0 to "
                     f"{spec.num_classes - 1}{ignored}; correct the mask{hint}, or the spec: every class can have its "
                     f"own values, as in 'ids: [{value}]'")


def _has_colors(path, mode):
    return UserError(f"the mask {path} has colours (mode {mode}) instead of one class number a pixel; if its colours "
                     "say the class, add 'masks: color' to the spec, or convert it with tools/convert_rgb.py")


def _does_not_decode(path, error):
    return UserError(f"the mask {path} does not decode ({error}); replace the file")


def _one_channel(path, array, mode):
    """The values of a mask that was saved with equal colour channels, as WebP and some BMP do for greyscale."""
    if mode in ("RGBA", "LA", "PA"):
        _refuse_transparency(path, array[..., -1])
        array = array[..., :-1]
    if any((array[..., 0] != array[..., channel]).any() for channel in range(1, array.shape[2])):
        raise _has_colors(path, mode)
    return array[..., 0]


def _refuse_transparency(path, alpha):
    if alpha.min() != alpha.max():
        raise UserError(f"the mask {path} is transparent in part; say by a value or colour of its own what the "
                        "transparent pixels are, and save it without transparency")


def _raw_mode(file):
    """How the values lie in the file: "L;4" for greyscale of 4 bits."""
    arguments = file.tile[0][3] if file.tile else None
    return arguments[0] if isinstance(arguments, tuple) and arguments else arguments


def _is_jpeg(path):
    return str(path).lower().endswith((".jpg", ".jpeg"))
