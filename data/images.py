"""Decoding: images to uint8 BGR, masks to uint8 classes, and the check of both before anything is trained."""

import contextlib
import io
import os
import warnings
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from data import masks
from data.patterns import files_in
from data.specs import MAX_PIXELS
from utils.errors import UserError

_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xda", b"\xff\xd9"
_ORIENTATION = 0x0112  # tag of EXIF
NO_LABEL = ("no pixel of these masks has a label, all are ignored (the first is {}); correct the masks, or the spec's "
            "'ignore'")
TURN_IT = "viewers turn it, training and prediction do not: turn the file for good (mogrify -auto-orient)"
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_COLOR = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION  # masks carry no orientation tag, so images may not be turned
_STRIDE = 8  # a side of 8 k + 1 pixels has k + 1 logits, the outermost ones right on its border

warnings.filterwarnings("ignore", module="PIL")
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what does not decode is reported here, in one line
Image.MAX_IMAGE_PIXELS = None  # the limit below is ours, and an error, not a warning


def read_image(path, max_pixels=MAX_PIXELS):
    """The image at ``path`` as (H, W, 3) uint8 in BGR order, as OpenCV decodes it.

    Of 16 bits the upper 8 are taken, grey becomes three equal channels, transparency and orientation tags are ignored.
    Raises ``UserError`` when it is missing, truncated, no image, or claims more than ``max_pixels`` pixels.
    """
    (content, _), image = _read(path, "image", max_pixels), None
    # libjpeg fills a truncated image with grey and carries on; a file without its end marker is refused instead.
    truncated = content[:2] == _JPEG_START and not _has_end(content)
    if not truncated:
        with contextlib.suppress(cv2.error, OSError, SyntaxError):
            image = _tiff(path, content) if content[:4] in _TIFF_STARTS else None
            if image is None:
                image = cv2.imdecode(np.frombuffer(content, np.uint8), _COLOR)
    if image is None:
        raise UserError(f"the image {path} does not decode: it is "
                        f"{'truncated' if truncated else 'no image, or damaged'}; replace the file or take its name "
                        "out of the list")
    return image


def read_mask(path, spec):
    """The mask at ``path`` as (H, W) uint8 of classes, 255 where it is ignored (see ``data.masks``).

    Raises ``UserError`` naming the file, the value or colour and its place when that is no class.
    """
    found = (masks.values if spec.mask_colors is None else masks.colors)(path, _read(path, "mask", spec.max_pixels)[0])
    table = masks.table(spec)
    classes = cv2.LUT(found, table[:256]) if found.dtype == np.uint8 else table[found]
    wrong = classes == masks.NO_CLASS
    if wrong.any():
        raise UserError(masks.no_class(path, found, wrong, spec))
    return classes.astype(np.uint8)


def _has_end(jpeg):
    """Whether a JPEG file's end marker comes behind its pixels: phones put videos, depth maps and zeros behind it."""
    place = 2
    while jpeg[place : place + 1] == b"\xff" and jpeg[place + 1 : place + 2] != _JPEG_SCAN:
        filled = jpeg[place + 1 : place + 2] == b"\xff"
        # Headers have their size; a preview in them has an end of its own.
        place += 1 if filled else 2 + int.from_bytes(jpeg[place + 2 : place + 4])
    return _JPEG_END in jpeg[place:]


def _tiff(path, content):
    """A TIFF of 16 bits or with a fourth channel as (H, W, 3) uint8 BGR; None for others, which OpenCV decodes rightly.

    It would multiply the colours by the fourth channel, which may be infrared, and round 16 bits as in no PNG.
    """
    with Image.open(io.BytesIO(content)) as file:
        mode = file.mode
        if mode in ("RGBA", "RGBX", "RGBa"):
            return np.ascontiguousarray(np.array(file)[..., 2::-1])
    if mode in ("F", "I"):
        raise UserError(f"the image {path} has 32 bits a channel, of which nobody can say what is white; save it with "
                        "8 or 16 bits")
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype != np.uint16:
        return None
    image = (image >> 8).astype(np.uint8)
    return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else np.ascontiguousarray(image[..., :3])


def image_size(path, max_pixels=MAX_PIXELS):
    """(height, width) of the image at ``path``, as its header claims. Raises ``UserError`` as ``read_image`` does."""
    return _read(path, "image", max_pixels, whole=False)[1]


def largest_size(spec, root):
    """(height, width) into which every image of the dataset fits, each side rounded up to 8 k + 1.

    All image files that the spec's patterns match count, listed or not; only their headers are read, and those that are
    damaged are left out. Raises ``UserError`` when there is none.
    """
    def size(path):
        with contextlib.suppress(UserError):
            return image_size(path, spec.max_pixels)

    paths = {path for key in ("images", "unlabeled_images") for pattern in spec.patterns(key)
             for subset in ("train", "val") for _, path in files_in(root, pattern, subset)}
    with ThreadPoolExecutor(4) as pool:
        sizes = list(filter(None, pool.map(size, paths)))
    if not sizes:
        raise UserError(f"test_size of the dataset {spec.name} is that of its largest image, but {root} has none; "
                        "correct 'images' in the spec, or --data-root")
    return tuple(rounded_up(max(side)) for side in zip(*sizes))


def rounded_up(side):
    """The smallest number of the form 8 k + 1 that is not below ``side``."""
    return -(-(side - 1) // _STRIDE) * _STRIDE + 1


def is_turned(path):
    """Whether the image at ``path``, which decodes, carries an orientation tag by which viewers turn it."""
    try:
        with Image.open(path) as file:
            return file.getexif().get(_ORIENTATION, 1) not in (0, 1)
    except Exception:  # damaged tags raise many kinds of errors, and the image itself is none of them
        return False


def check_pairs(spec, samples):
    """Check every ``data.lists.Sample``: image and mask open, sizes agree, values are classes, and some pixel has one.

    Raises the ``UserError`` of the first in order that is wrong.
    """
    def check(sample):
        size, classes = image_size(sample.image, spec.max_pixels), read_mask(sample.mask, spec)
        if size != classes.shape:
            raise UserError(unequal(sample.image, sample.mask, size, classes.shape))
        return classes.min() != masks.IGNORED

    with ThreadPoolExecutor(4) as pool:
        if not sum(pool.map(check, samples)) and samples:
            raise UserError(NO_LABEL.format(samples[0].mask))


def unequal(image, mask, size, mask_size):
    """What to say of an image and a mask, given by their paths, whose (height, width) differ."""
    mend = (f"the image carries an orientation tag: {TURN_IT}, or store the mask as the image lies in the file"
            if is_turned(image) else "they must be of one size")
    return (f"the image {image} is {size[1]} x {size[0]} but its mask {mask} is {mask_size[1]} x {mask_size[0]} "
            f"pixels; {mend}")


def too_large(image, size, test_size):
    """What to say of an image whose ``size`` is above the ``test_size`` that it is padded to."""
    return (f"the image {image} is {size[1]} x {size[0]} pixels, larger than the test size {test_size[1]} x "
            f"{test_size[0]} it is padded to; raise test_size in the dataset's spec or give --test-size")


def check_present(samples):
    """Raise ``UserError`` for the first of the ``data.lists.Sample``s whose image is not a file."""
    for sample in samples:
        if not os.path.isfile(sample.image):  # several times faster than Path.is_file, for thousands of names
            raise UserError(_missing(sample.image, "image"))


def _read(path, what, max_pixels, whole=True):
    """(the bytes of an image file, (height, width) as its header claims); not ``whole``: without reading all bytes.

    What claims to be too large is refused: a few bytes can claim to be terabytes.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
        raise UserError(f"the {what} {path} is no file; replace it or take its name out of the list")
    try:
        with open(path, "rb") as file:
            try:
                with Image.open(file) as image:
                    size = image.height, image.width
            except Exception as error:  # damaged bytes meet nearly every kind of exception
                why = "it is no image" if isinstance(error, UnidentifiedImageError) else error
                raise UserError(f"the {what} {path} does not decode ({why}); replace the file or take its name out of "
                                "the list") from error
            file.seek(0)
            content = file.read() if whole else b""
    except FileNotFoundError as error:
        raise UserError(_missing(path, what)) from error
    except OSError as error:
        raise UserError(f"the {what} {path} cannot be read: {error.strerror or error}") from error
    if size[0] * size[1] > max_pixels:
        raise UserError(f"the {what} {path} claims to have {size[1]} x {size[0]} pixels, more than the limit of "
                        f"{max_pixels}; raise it with --max-pixels if the file is what it should be")
    return content, size


def _missing(path, what):
    return f"the {what} {path} is missing; correct --data-root or take its name out of the list"
