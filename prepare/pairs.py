"""Which mask belongs to which image: by the names of the files in two folders.

A mask may be called like its image, or with something before or behind the name that all masks have (and all images):
``field_07.jpg`` and ``field_07_mask.png``; ``img_07.jpg`` and ``label_07.png``;
``aachen_000000_leftImg8bit.png`` and ``aachen_000000_gtFine_labelIds.png``. Folders below count as part of the name.
"""

import collections
import itertools
import os
import unicodedata
from pathlib import Path
from typing import NamedTuple

from data import lists, patterns
from utils.errors import UserError

_DELIMITERS = "_-. ~+@#"


class Files(NamedTuple):
    """Image files below a folder: dict stem -> file names with it, both relative, and the other files."""

    folder: Path
    stems: dict
    others: list


class Frame(NamedTuple):
    """What stands around the name in the names of files."""

    head: str = ""
    tail: str = ""


class Pairing(NamedTuple):
    """``pairs`` maps a name to (image file, mask file or None), as paths.

    ``images`` and ``masks`` are the ``Frame``s, ``lost`` the masks that belong to no image.
    """

    pairs: dict
    images: Frame
    masks: Frame
    lost: list


def files_in(folder, without=()):
    """The ``Files`` of ``folder``, but for the folders ``without``. ``UserError`` for a name that no list can hold."""
    folder, stems, others = Path(folder), collections.defaultdict(list), []
    without = [os.path.realpath(path) for path in without]
    for place, names in patterns.walk(folder):
        if any(os.path.commonpath([path, os.path.realpath(place)]) == path for path in without):
            continue
        for path in (Path(place, name) for name in names):
            relative = path.relative_to(folder).as_posix()
            if not patterns.is_image(relative):
                others.append(relative)
                continue
            stem = relative.rpartition(".")[0]
            if wrong := lists.fault_of_written(stem):
                raise UserError(f"the name of {folder}/{relative} {wrong}; rename the file")
            stems[stem].append(relative)
    return Files(folder, dict(stems), others)


def pair(images, masks, mask_tail=None):
    """The ``Pairing`` of two ``Files``; ``mask_tail`` says what the masks' names end in, for the suffix.

    Raises ``UserError`` when no mask belongs to any image, or two files want to be the same one.
    """
    image_stems = {_split(stem): files for stem, files in images.stems.items()}
    mask_stems = {_split(stem): files for stem, files in masks.stems.items()}
    best = 0, None
    for head, tail, mask_head in itertools.product(_heads(image_stems), _common_tails(image_stems), _heads(mask_stems)):
        names = {(folder, base[len(head):len(base) - len(tail)]): (folder, base) for folder, base in image_stems
                 if base.startswith(head) and base.endswith(tail) and len(base) > len(head) + len(tail)}
        tails = _tails(names, mask_stems, mask_head)
        chosen = mask_tail
        if chosen is None:
            chosen = max(tails, key=lambda tail: (tails[tail], tail == ""), default="")
        if tails.get(chosen, 0) > best[0]:
            best = tails[chosen], (Frame(head, tail), Frame(mask_head, chosen), names, tails)
    if not best[0]:
        raise _unpaired(images, masks)
    image_frame, mask_frame, names, tails = best[1]
    rivals = [tail for tail, count in tails.items() if count > 0.5 * best[0]]
    if len(rivals) > 1 and mask_tail is None and mask_frame.tail:
        raise UserError(f"the images have several masks each, which end in {', '.join(sorted(rivals))}; say which hold "
                        f"the classes, as in --mask-suffix {max(rivals)}")
    pairs = {}
    for (folder, core), image in sorted(names.items()):
        mask = folder, f"{mask_frame.head}{core}{mask_frame.tail}"
        pairs["/".join(filter(None, (folder, core)))] = (
            _single(images.folder, image_stems[image]),
            _single(masks.folder, mask_stems[mask]) if mask in mask_stems else None)
    used = {mask for _, mask in pairs.values()}
    kinds = {tail for tail in tails if tail != mask_frame.tail}
    lost = [file for files in masks.stems.values() for file in files if masks.folder / file not in used
            and not any(file.rpartition(".")[0].endswith(tail) for tail in kinds if tail)]
    _refuse_other_unicode(images, lost)
    return Pairing(pairs, image_frame, mask_frame, lost)


def apart(files, mask_tail=None):
    """Two ``Files``, images and masks, of one in which both lie together.

    Masks are the files whose name continues an image's name, else those that are no JPEG beside a JPEG of their name.
    Raises ``UserError`` when that is not certain.
    """
    stems = {_split(stem): names for stem, names in files.stems.items()}
    tails = _tails(stems, stems, "", whole=False)
    tail = mask_tail or (next(iter(tails)) if len(tails) == 1 else None)
    kinds = [sorted(_is_jpeg(name) for name in names) for names in files.stems.values() if len(names) > 1]
    if tail is None and (not kinds or any(kind != [False, True] for kind in kinds)):
        raise UserError(f"{files.folder} is given for images and masks, but their names do not tell which is which; "
                        "give two folders (and those for validation with --val-images and --val-masks), or say with "
                        "--mask-suffix what the masks' names end in")
    parts = {False: {}, True: {}}
    for stem, names in files.stems.items():
        for name in names:
            is_mask = stem.endswith(tail) if tail else not _is_jpeg(name)
            parts[is_mask].setdefault(stem, []).append(name)
    return Files(files.folder, parts[False], files.others), Files(files.folder, parts[True], [])


def pattern(folder, root, frame, files):
    """The spec's pattern of ``files`` in ``folder`` with ``frame`` around their names: ``.*`` for several suffixes."""
    below = os.path.relpath(folder, root)
    suffixes = {Path(file).suffix for file in files}
    ending = suffixes.pop() if len(suffixes) == 1 else patterns.ANY_SUFFIX
    around = [text.replace("{", "{{").replace("}", "}}") for text in ("" if below == "." else below + "/", *frame)]
    return f"{around[0]}{around[1]}{{name}}{around[2]}{ending}"


def _unpaired(images, masks):
    """The error where no mask belongs to an image: perhaps the masks lie one folder deeper."""
    deeper = {stem.partition("/")[0] for stem in masks.stems if stem.partition("/")[2] in images.stems}
    example = [next(iter(files.stems.values()))[0] for files in (images, masks)]
    mend = (f"give one of the folders {', '.join(str(masks.folder / name) for name in sorted(deeper))}" if deeper else
            "rename them, or say with --mask-suffix what the masks' names end in")
    return UserError(f"no file of {masks.folder} is called like an image of {images.folder} (images such as "
                     f"{example[0]}, masks such as {example[1]}); {mend}")


def _refuse_other_unicode(images, lost):
    """macOS writes an umlaut as two letters: such names look equal, but are not."""
    plain = {unicodedata.normalize("NFC", stem): stem for stem in images.stems}
    for file in lost:
        stem = file.rpartition(".")[0]
        twin = plain.get(unicodedata.normalize("NFC", stem))
        if twin is not None and twin != stem:
            raise UserError(f"the mask {file} and the image {twin} have one name in two Unicode forms; rename the "
                            "files (convmv -f utf8 -t utf8 --nfc -r --notest FOLDER)")


def _is_jpeg(name):
    return name.lower().endswith((".jpg", ".jpeg"))


def _split(stem):
    folder, _, base = stem.rpartition("/")
    return folder, base


def _heads(stems):
    """What may stand before all names: nothing, or what they begin with, up to a delimiter or a number."""
    text = os.path.commonprefix([base for _, base in stems])
    return list(dict.fromkeys(("", _to_delimiter(text), text.rstrip("0123456789"))))


def _common_tails(stems):
    """What may stand behind all names: nothing, or what they end in, from a delimiter on."""
    text = os.path.commonprefix([base[::-1] for _, base in stems])
    return list(dict.fromkeys(("", _to_delimiter(text)[::-1])))


def _to_delimiter(text):
    return text[: 1 + max(text.rfind(delimiter) for delimiter in _DELIMITERS)]


def _tails(names, mask_stems, head, whole=True):
    """Counter of what stands behind an image's name in the names of the masks; the longest fitting name counts.

    Not ``whole`` leaves out masks that are called like an image.
    """
    tails = collections.Counter()
    for folder, base in mask_stems:
        if not base.startswith(head):
            continue
        base = base[len(head):]
        ends = [place for place in range(len(base) - 1, 0, -1) if base[place] in _DELIMITERS]
        for end in [len(base), *ends] if whole else ends:
            if (folder, base[:end]) in names:
                tails[base[end:]] += 1
                break
    return tails


def _single(folder, files):
    if len(files) > 1:
        raise UserError(f"{folder / files[0]} and {folder / files[1]} have one name; remove or rename one of them")
    return folder / files[0]
