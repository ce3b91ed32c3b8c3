"""Sizes of images: the largest of a dataset, and the size that networks like."""

import contextlib
from concurrent.futures import ThreadPoolExecutor

from data import patterns
from data.images import image_size
from utils.errors import UserError

_STRIDE = 8  # a side of 8 k + 1 pixels has k + 1 logits, the outermost ones right on its border
_THREADS = 4


def largest_size(spec, root):
    """(height, width) into which every image of the dataset fits, each side rounded up to 8 k + 1.

    All image files that the spec's patterns match count, listed or not; only their headers are read, and those that are
    damaged are left out. Raises ``UserError`` when there is none.
    """
    paths = set()
    for pattern, subset in _patterns(spec):
        paths.update(path for _, path in patterns.files_in(root, pattern, subset))
    with ThreadPoolExecutor(_THREADS) as pool:
        sizes = [size for size in pool.map(_size, sorted(paths)) if size is not None]
    if not sizes:
        raise UserError(f"test_size of the dataset {spec.name} is that of its largest image, but {root} has none; "
                        "correct 'images' in the spec, or --data-root")
    return tuple(rounded_up(max(side)) for side in zip(*sizes))


def rounded_up(side):
    """The smallest number of the form 8 k + 1 that is not below ``side``."""
    return -(-(side - 1) // _STRIDE) * _STRIDE + 1


def _patterns(spec):
    """Pairs (pattern, subset) of all images."""
    for pattern in spec.patterns("images"):
        for subset in ("train", "val") if "{subset}" in pattern else ("train",):
            yield pattern, subset
    for pattern in spec.patterns("unlabeled_images"):
        yield pattern, "train"


def _size(path):
    with contextlib.suppress(UserError):
        return image_size(path)
    return None
