"""What a mask says: from the bytes of an image file to a class for every pixel.

Masks are read by value: greyscale of 1 to 16 bits, or the numbers of a palette, never scaled. Where the spec says
``masks: color``, the colours say the class.
"""

import functools
import io

import cv2
import numpy as np
from PIL import Image

from utils.errors import UserError
from utils.files import write_bytes

IGNORED = 255
_LARGEST = 65535
NO_CLASS = 256  # in the table
_SCALES = {"L;2": 85, "L;4": 17, "L;2I": 85, "L;4I": 17}  # Pillow's modes of few bits, which it scales up to 255
CREAM = (224, 224, 192)
"""VOC's colour of ignored pixels, and of what is no class."""



@functools.lru_cache(maxsize=2)  # the colours' takes 32 MB, but one look a pixel, and few places are used
def table(spec):
    """uint16: the class of every mask value (65536,) or colour (2 ** 24,), 255 = ignored, or ``NO_CLASS``."""
    if spec.mask_colors is not None:
        table = np.full(1 << 24, IGNORED if spec.ignore_other_colors else NO_CLASS, np.uint16)
        for color, index in spec.mask_colors:
            table[pack(color)] = index
    elif spec.label_ids is not None:
        table, ids = np.full(_LARGEST + 1, IGNORED, np.uint16), np.array(spec.label_ids)
        table[: len(ids)] = np.where(ids < spec.num_classes, ids, IGNORED)
    else:
        table = np.full(_LARGEST + 1, NO_CLASS, np.uint16)
        table[: spec.num_classes] = np.arange(spec.num_classes)
        if spec.ignore is not None:
            table[spec.ignore] = IGNORED
    return table


def values(path, content):
    """The values of a mask, (H, W) uint8 or uint16. Raises ``UserError`` when it does not decode or has colours."""
    try:
        with Image.open(io.BytesIO(content)) as file:
            layout = file.tile[0][3] if file.tile else None  # how the values lie in the file: "L;4" for grey of 4 bits
            scale = _SCALES.get(layout[0] if isinstance(layout, tuple) and layout else layout, 1)
            array, mode = np.array(file), file.mode
    except Exception as error:  # damaged bytes meet nearly every kind of exception
        raise _does_not_decode(path, error) from error
    if mode in ("RGBA", "LA", "PA"):
        _refuse_transparency(path, array[..., -1])
        array = array[..., :-1]
    if mode in ("RGB", "RGBA", "LA", "PA") and (array == array[..., :1]).all():  # as WebP and some BMP save greyscale
        array = array[..., 0]
    if array.ndim != 2:
        raise UserError(f"the mask {path} has colours (mode {mode}) instead of one class number a pixel; if its "
                        "colours say the class, add 'masks: color' to the spec, or convert it with "
                        "python -m tools.convert_rgb")
    if array.dtype == bool:
        return array.astype(np.uint8)
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
            mode = file.mode
            alpha = np.array(file.getchannel("A")) if mode in ("RGBA", "LA") else None
            array = np.array(file.convert("RGB").convert("RGBA"))
    except Exception as error:  # damaged bytes meet nearly every kind of exception
        raise _does_not_decode(path, error) from error
    if mode not in ("RGB", "RGBA", "P", "L", "LA", "1"):
        raise UserError(f"the mask {path} has no colours of 8 bits (mode {mode}), but the spec says 'masks: color'; "
                        "save it as an RGB PNG, or correct the spec")
    if alpha is not None:
        _refuse_transparency(path, alpha)
    return array.view("<u4")[..., 0] & 0xFFFFFF


def pack(color):
    """The number that ``colors`` gives for a colour (red, green, blue)."""
    return int.from_bytes(color, "little")


def unpack(number):
    """The colour [red, green, blue] of such a number."""
    return list(int(number).to_bytes(3, "little"))


def color_table(palette):
    """(256, 3) uint8: the colours (RGB) of the classes, cream for every other number."""
    return np.array([*palette, *[CREAM] * (256 - len(palette))], np.uint8)


def write_palette_png(path, values, palette):
    """Write ``values`` (H, W) uint8 as a PNG of 8 bits with their colours; ``os.sync`` flushes it.

    ``palette`` holds an RGB triple a value, or is a dict from values to them; 255 is VOC's cream unless taken.
    Labels are runs of one value: a search for longer matches would take four times the time for no fewer bytes.
    """
    colors = {IGNORED: CREAM, **(palette if isinstance(palette, dict) else dict(enumerate(palette)))}
    image, content = Image.fromarray(values), io.BytesIO()
    image.putpalette([channel for value in range(256) for channel in colors.get(value, (0, 0, 0))])
    image.save(content, "PNG", compress_level=1, compress_type=3)  # zlib's Z_RLE
    write_bytes(path, content.getvalue(), durable=False)


# --- faults -----------------------------------------------------------------------------------------------------------


def no_class(path, found, wrong, spec):
    """What to say of a mask that holds ``found`` values or colours, of which the ``wrong`` ones are no class."""
    y, x = np.argwhere(wrong)[0]
    is_jpeg = str(path).lower().endswith((".jpg", ".jpeg"))
    if spec.mask_colors is None:
        value = int(found[y, x])
        ignored = "" if spec.ignore is None else f" and {spec.ignore} for ignored pixels"
        hint = " (JPEG changes values: save masks as PNG)" if is_jpeg else ""
        return (f"the mask {path} holds the value {value} (at x {x}, y {y}), but {spec.name} has the classes 0 to "
                f"{spec.num_classes - 1}{ignored}; correct the mask{hint}, or the spec: every class can have its own "
                f"values, as in 'ids: [{value}]'")
    color, others = unpack(found[y, x]), len(np.unique(found[wrong])) - 1
    which = f" and {others} more colours that belong" if others else ", that belongs"
    hint = " (JPEG changes colours: python -m tools.convert_rgb --tolerance takes the nearest one)" if is_jpeg else ""
    return (f"the mask {path} holds the colour {color} at x {x}, y {y}{which} to no class of {spec.name}; give a class "
            f"of the spec 'colors: [{color}]', or add it to 'ignore_colors', or correct the mask{hint}")


def _does_not_decode(path, error):
    return UserError(f"the mask {path} does not decode ({error}); replace the file")


def _refuse_transparency(path, alpha):
    if alpha.min() != alpha.max():
        raise UserError(f"the mask {path} is transparent in part; say by a value or colour of its own what the "
                        "transparent pixels are, and save it without transparency")
