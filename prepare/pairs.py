"""Which mask belongs to which image: by the names of the files in two folders.

A mask is called like its image, or has something behind that name, the same for all: ``field_07.jpg`` and
``field_07_mask.png``. Folders below count as part of the name.
"""

import collections
import os
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

from data import lists, patterns
from utils.errors import UserError

_DELIMITERS = "_-. ~+@#"


class Pairing(NamedTuple):
    """``pairs`` maps a name to (image file, mask file or None). Their folders and what stands behind the name in the
    files' names are in ``folders`` and ``suffixes``; ``lost`` are the masks that belong to no image."""

    pairs: dict
    folders: tuple
    suffixes: tuple
    lost: list


def image_files(folder, without=(), wanted=None):
    """Dict from name (path below ``folder`` without its suffix) to image file, but for the folders ``without``.

    Raises ``UserError`` when there is none, for a name that no list can hold, and for one that is there twice.
    """
    files = {}
    without = [os.path.realpath(path) for path in without if not folder.is_relative_to(path)]
    for place, names in patterns.walk(folder):
        real = os.path.realpath(place)
        if any(os.path.commonpath([path, real]) == path for path in without):
            continue
        for path in (Path(place, name) for name in names if patterns.is_image(name)):
            name = path.relative_to(folder).as_posix().rpartition(".")[0]
            if wanted and not wanted(path):
                continue
            if wrong := lists.fault_of_written(name):
                raise UserError(f"the name of {path} {wrong}; rename the file")
            if name in files:
                raise UserError(f"{files[name]} and {path} have one name; remove or rename one of them")
            files[name] = path
    if not files:
        raise UserError(f"{folder} holds no images or masks of use (JPEG, PNG, TIFF, WebP, BMP); give the right folder"
                        + (", or two (in one, masks are what --mask-suffix says, or all that is no JPEG; those for "
                           "validation go to --val-images and --val-masks)" if wanted else ""))
    return files


def pair(images_folder, masks_folder, image_suffix, mask_suffix, without=()):
    """The ``Pairing`` of two folders, which may be one: then masks end in ``mask_suffix``, or are no JPEGs.

    ``image_suffix`` is what all images' names end in, ``mask_suffix`` what those of the masks do (None: find it out).
    ``without`` are folders to leave out. Raises ``UserError`` when no mask belongs to any image, or it is not certain.
    """
    def is_mask(path):
        return path.stem.endswith(mask_suffix) if mask_suffix else path.suffix.lower() not in (".jpg", ".jpeg")

    if images_folder == masks_folder:
        files, masks = (image_files(images_folder, without, lambda path, kind=kind: is_mask(path) == kind)
                        for kind in (False, True))
    else:
        files, masks = (image_files(*folders) for folders in (
            (images_folder, [*without, masks_folder]), (masks_folder, [*without, images_folder])))
    images = {name.removesuffix(image_suffix): path for name, path in files.items() if name.endswith(image_suffix)}
    tails = {name: _tail(name, images) for name in masks}
    counts = collections.Counter(tail for tail in tails.values() if tail is not None)
    if mask_suffix is None:
        mask_suffix = max(counts, key=lambda tail: (counts[tail], tail == ""), default="")
        rivals = [tail for tail in counts if counts[tail] > 0.5 * counts[mask_suffix]]
        if len(rivals) > 1 and mask_suffix:
            raise UserError(f"the images have several masks each, which end in {', '.join(sorted(rivals))}; say which "
                            f"hold the classes, as in --mask-suffix {mask_suffix}")
    pairs = {name: (path, masks.get(name + mask_suffix)) for name, path in sorted(images.items())}
    if not any(mask for _, mask in pairs.values()):
        raise _unpaired(images_folder, files, masks_folder, masks)
    lost = [str(masks[name]) for name, tail in tails.items() if tail is None]
    return Pairing(pairs, (images_folder, masks_folder), (image_suffix, mask_suffix), lost)


def pattern(folder, root, suffix, files):
    """The spec's pattern of ``files`` in ``folder`` whose names end in ``suffix``: ``.*`` for several file suffixes."""
    endings = {file.suffix for file in files}
    place = Path(os.path.relpath(folder, root), "x").as_posix().removesuffix("x")
    around = [text.replace("{", "{{").replace("}", "}}") for text in (place, suffix)]
    return f"{around[0]}{{name}}{around[1]}{endings.pop() if len(endings) == 1 else patterns.ANY_SUFFIX}"


def _tail(name, images):
    """What stands behind an image's name in that of a mask; the longest name that fits counts. None for no such."""
    for end in range(len(name), name.rfind("/") + 1, -1):
        if (end == len(name) or name[end] in _DELIMITERS) and name[:end] in images:
            return name[end:]
    return None


def _unpaired(images_folder, images, masks_folder, masks):
    """The error where no mask belongs to an image: perhaps the masks lie one folder deeper."""
    deeper = {name.partition("/")[0] for name in masks if name.partition("/")[2] in images}
    mend = ("rename them, or say what stands behind the names, as in --image-suffix _leftImg8bit --mask-suffix "
            "_gtFine_labelIds")
    if deeper:
        mend = f"give one of the folders {', '.join(str(masks_folder / name) for name in sorted(deeper))}"
    elif images.keys().isdisjoint(masks) and (
            {normalize("NFC", name) for name in images} & {normalize("NFC", name) for name in masks}):
        mend = ("their letters are in different Unicode forms, as macOS and Linux write an umlaut: give both one form, "
                f"as in convmv -f utf8 -t utf8 --nfc -r --notest {images_folder} {masks_folder}")
    elif images_folder == masks_folder:
        mend += ", or give two folders (and those for validation with --val-images and --val-masks)"
    return UserError(f"no file of {masks_folder} is called like an image of {images_folder} (images such as "
                     f"{next(iter(images.values())).name}, masks such as {next(iter(masks.values())).name}); {mend}")
