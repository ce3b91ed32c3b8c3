"""Name lists: text files with one image name a line that say which images are labelled, unlabelled, or for validation.

A name is an image's path without its pattern's folder and suffix: ``2007_000032``, ``aachen/aachen_000000_000019``.
"""

import hashlib
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

from data import patterns
from data.specs import UNLABELED
from utils.errors import UserError
from utils.files import write_text

_COLUMNS = re.compile(rf"(.+?(?:{'|'.join(map(re.escape, patterns.SUFFIXES))}))[ \t]+(\S.*)", re.IGNORECASE)
_SPLIT = re.compile(r"[A-Za-z0-9._-]+")
_SPLIT_LIST = re.compile(r"(?P<split>.+)_(un)?labeled_[^_]+\.txt")
_FAULTS = {  # what a name may not have -> what is said of it
    r"\\": "has a backslash",
    "[\ud800-\udfff]": "is not UTF-8" if sys.getfilesystemencoding() == "utf-8" else  # bytes that it cannot say
    f"has letters that this locale ({sys.getfilesystemencoding()}) does not know: set LC_ALL=C.UTF-8",
    "[\x00-\x1f\x7f-\x9f\u2028\u2029]": "has a control character",
    "^/": "is an absolute path",
    r"(^|/)\.\.(/|$)": "has a component '..'",
    r"(^|/)\.?(/|$)": "has an empty component or '.'"}


class Sample(NamedTuple):
    """An image of a list: its name there, its file, and the file of its mask (None: nobody reads one)."""

    name: str
    image: Path
    mask: Path | None


WHOLE = "1"  # the split that labels everything: its list is the whole training list, and nothing is unlabelled


def read_list(path, spec=None, root=None, content=None):
    """The names in the list at ``path``, in file order: a non-empty list of distinct str.

    UTF-8, one name a line; surrounding blanks, blank lines and a byte-order mark are ignored. With the dataset's
    ``spec`` and ``root``, lines may also be paths as other projects write them (see ``_name_of_paths``).
    ``content`` may be the bytes of the list, where it lies in an archive and ``path`` only describes it.
    Raises ``UserError`` (with the line number) for a file that is missing, not text or empty, for a name that is not
    a plain relative path, and for a name that stands there twice.
    """
    try:
        content = Path(path).read_bytes() if content is None else content
    except FileNotFoundError as error:
        raise UserError(f"the list {path} does not exist; {_origin(Path(path))}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"the list {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"the list {path} is not UTF-8 text (byte {error.start}); save it as UTF-8, "
                        "one image name a line") from error
    lines = {}  # name -> line number
    for number, line in enumerate(text.split("\n"), start=1):
        name = line.strip(" \t\r")
        if not name:
            continue
        if patterns.is_image(name):
            name = _name_of_paths(name, f"{path}, line {number}", spec, root)
        wrong = fault(name)
        if wrong:
            raise UserError(f"{path}, line {number}: the name {_shown(name)} {wrong}; a name looks like 2007_000032 "
                            "or aachen/aachen_000000_000019, without the image folder and the suffix")
        if name in lines:
            raise UserError(f"{path}, line {number}: the name {_shown(name)} already stands in line {lines[name]}; "
                            "delete one of the two lines")
        lines[name] = number
    if not lines:
        raise UserError(f"the list {path} is empty; it needs at least one image name, one a line")
    return list(lines)


def _name_of_paths(line, where, spec, root):
    """The name that ``line`` means, which ends like an image file: it may be that name, or an image's path, alone or
    followed by its mask's, as in "/JPEGImages/x.jpg SegmentationClass/x.png" (DeepLab, ST++, UniMatch).

    Raises ``UserError`` where the spec's patterns give other files.
    """
    columns = _COLUMNS.fullmatch(line)
    image, mask = columns.groups() if columns else (line, None)
    if mask is None and (root is None or spec.image_path(root, line).is_file()):
        return line  # an image called x.png.jpg
    if root is None:
        raise UserError(f"{where}: a second column, {_shown(mask)}; keep one image name a line")
    names = [patterns.name_of(spec.patterns(key), path.removeprefix(f"{root}/").lstrip("/"))
             for key, path in (("images", image), ("labels", mask)) if path]
    if names[0] is None and "/" not in image:  # x.jpg
        names[0] = image.rpartition(".")[0]
    if names[0] is None:
        raise UserError(f"{where}: {_shown(image)} is no path that the spec's pattern images, {spec.images}, gives; "
                        "correct the pattern, or write names without folder and suffix")
    if mask is not None and names[1] != names[0]:
        raise UserError(f"{where}: the second column, {_shown(mask)}, is not the mask that the spec's pattern labels, "
                        f"{spec.labels}, gives; correct the pattern, or keep the names alone")
    return names[0]


def write_list(path, names):
    """Write ``names`` (a sequence of str) to ``path`` atomically, one a line, so that ``read_list`` gives them back.

    Raises ``UserError`` for a name that ``read_list`` would refuse and when the file cannot be written.
    """
    names = list(names)
    for name in names:
        wrong = fault_of_written(name)
        if wrong:
            raise UserError(f"{path} is not written: the name {_shown(name)} {wrong}; rename that image")
    write_text(path, "".join(name + "\n" for name in names))


def evenly_spaced(items, count):
    """``count`` of the items (a sequence) at even distances; all of them when there are no more or ``count`` is 0."""
    count = min(count or len(items), len(items))
    return [items[(2 * index + 1) * len(items) // (2 * count)] for index in range(count)]


def names_digest(names):
    """SHA-256 of the names of a list, or of its ``Sample``s, in order: how results recognize the images they are of."""
    names = [one.name if isinstance(one, Sample) else one for one in names]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def split_list_names(split, split_id):
    """File names of the labelled and the unlabelled list of a split: ("20_labeled_1.txt", "20_unlabeled_1.txt").

    ``split`` is text or a number such as 20. The two halves of difference-maximized sampling, "106-l" and "106-r",
    have labelled lists of their own and share the unlabelled list of "106".
    Raises ``UserError`` for a split or id with other characters than letters, digits, dot, dash and underscore.
    """
    split = str(split)
    for value, what in ((split, "split (--train-set)"), (str(split_id), "split id (--sets-id)")):
        if not _SPLIT.fullmatch(value):
            raise UserError(f"the {what} is {_shown(value)}; use letters, digits, dots, dashes and underscores, as in "
                            "20, 106 or 106-l")
    whole = re.sub("(?<=.)-[lr]$", "", split)
    return f"{split}_labeled_{split_id}.txt", f"{whole}_unlabeled_{split_id}.txt"


def labeled_names(spec, root, split, split_id):
    """Names of the labelled images of a split of the dataset ``spec`` (a ``DatasetSpec``) in the folder ``root``."""
    return read_list(spec.list_path(root, split_list_names(split, split_id)[0]), spec, root)


def unlabeled_names(spec, root, split, split_id):
    """Names of the unlabelled images of a split; an empty list for the split "1", which labels every image.

    Without a list they are all images of ``spec.unlabeled_images``, where it has such, but for those that are labelled
    in this split or validated on.
    """
    path = spec.list_path(root, split_list_names(split, split_id)[1])
    if str(split) == WHOLE:
        return []
    if not spec.unlabeled_images or path.is_file():
        return read_list(path, spec, root)
    names = _apart(spec, root, path.with_name(path.name.replace("_unlabeled_", "_labeled_")))
    if not names:
        raise UserError(f"no image for the pattern {spec.unlabeled_images} in {root} is unlabelled; put some there, "
                        "correct the pattern in the dataset's spec, or use --state=2 for supervised training")
    return names


def without_masks(spec, root, training):
    """Names of the images that have no mask: those in all_unlabeled_0.txt, which tools.new_dataset writes, or else all
    of ``spec.unlabeled_images`` but for those in the list ``training`` or validated on. Empty where there is neither."""
    path = spec.list_path(root, split_list_names("all", 0)[1])
    if path.is_file():
        return read_list(path, spec, root)
    return _apart(spec, root, training) if spec.unlabeled_images else []


def _apart(spec, root, labeled):
    """The images of the folder of unlabelled ones that are not in the list ``labeled``, nor in the validation list."""
    names = sorted({name for pattern in spec.patterns("unlabeled_images") for name in patterns.names_in(root, pattern)})
    for name in names:
        wrong = fault(name)
        if wrong:
            raise UserError(f"the name {_shown(name)} of an image for {spec.unlabeled_images} {wrong}; rename that "
                            "image")
    used = set()
    for path, subset in ((labeled, "train"), (find_list(spec, root, "validation"), "val")):
        used |= {_file(spec, root, name, subset) for name in read_list(path, spec, root)}
    return [name for name in names if _file(spec, root, name, UNLABELED) not in used]


def _file(spec, root, name, subset):
    """What tells whether two images are one file; the name where there is none, or two, which is reported elsewhere."""
    try:
        status = os.stat(spec.image_path(root, name, subset))
    except (OSError, UserError):
        return name, subset
    return status.st_dev, status.st_ino


def find_list(spec, root, subset):
    """Path of the list of all ``subset`` images, training or validation: the first of the spec's that is there.

    Raises ``UserError`` when there is none.
    """
    paths = [spec.list_path(root, name) for name in (spec.train_lists if subset == "training" else spec.val_lists)]
    for path in paths:
        if path.is_file():
            return path
    raise UserError(f"no {subset} list of the dataset {spec.name}: looked for {' and '.join(map(str, paths))}; "
                    f"{_origin(paths[0])}")


def _origin(path):
    """How to get a list that is missing."""
    split_list = _SPLIT_LIST.fullmatch(path.name)
    if split_list:
        split, unlabeled = split_list["split"], "_unlabeled_" in path.name
        if split == "all" and unlabeled:
            return ("there are no unlabelled images: give tools.new_dataset a folder of them with --unlabeled, or "
                    "train with --state=2")
        if split.endswith(("-l", "-r")):
            return "make it with dms_sample.py (after generate_splits.py)"
        return (f"make it with generate_splits.py (--divisors {split}:NUMBER and --ids N, for other splits and ids "
                "than the usual ones)" + ", or name their folder in the spec: unlabeled_images" * unlabeled)
    if path.parent.name == "data_lists":
        return "make it with cityscapes_data_list.py"
    return "put it there, one image name a line, or correct the path"


def fault_of_written(name):
    """What is wrong with the name of an image that is to be written to a list, or ``None``."""
    return fault(name) if name.strip() == name and name else "is blank or has blanks at its ends"


def fault(name):
    """What is wrong with the name of an image, or ``None``."""
    return next((words for pattern, words in _FAULTS.items() if re.search(pattern, name)), None)


def _shown(name):
    return repr(name if len(name) <= 80 else name[:77] + "...")
