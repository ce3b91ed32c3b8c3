"""File patterns: from the name of an image to its file, and from a folder to the names that are there.

A pattern is a path below the dataset's root with {name} and, where there is one folder per subset, {subset}. It may end
in ``.*``, which stands for any suffix of an image, in small or capital letters. One look at a folder serves all of its
names, so that no suffix is tried on the disk.
"""

import functools
import os
import re
import string
import time
from pathlib import Path

from utils.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")
ANY_SUFFIX = ".*"
_SETTLED = 2e9  # nanoseconds: a folder that changed more recently may change again without a new time of change


def find(root, patterns, name, subset="train"):
    """Path of the file that ``patterns`` (tuple of str) mean by ``name``.

    The first pattern with a file wins; where none has one, the path is what the first pattern says. Raises
    ``UserError`` when two files match one pattern.
    """
    usual = Path(root, patterns[0].format(name=name, subset=subset))
    if len(patterns) == 1 and not patterns[0].endswith(ANY_SUFFIX):
        return usual  # nothing to look for
    for pattern in patterns:
        folder, _, file_name = pattern.format(name=name, subset=subset).rpartition("/")
        folder = os.path.join(root, folder)
        matching = _files(folder).get(file_name, ())
        if len(matching) > 1:
            raise UserError(f"two files in {folder} match {file_name}: {matching[0]} and {matching[1]}; remove one, or "
                            f"write the suffix in the dataset's spec, as in {pattern.removesuffix(ANY_SUFFIX)}.jpg")
        if matching:
            return Path(folder, matching[0])
    return usual


def names_in(root, pattern, subset="train"):
    """Sorted names of the image files below ``root`` that ``pattern`` matches; a name may contain folders.

    Raises ``UserError`` when the folder is missing or two files have one name.
    """
    found = {}
    for name, path in files_in(root, pattern, subset):
        if name in found:
            raise UserError(f"two files have the name {name}: {found[name]} and {path}; remove or rename one of them")
        found[name] = path
    return sorted(found)


def walk(top):
    """Yield (folder, names of its files) for ``top`` and all folders below it, in order, hidden ones left out.

    Links are followed, each folder once on a way down. Raises ``UserError`` for a folder that cannot be read.
    """
    def refuse(error):
        raise UserError(f"the folder {error.filename} cannot be read: {error.strerror}; check its permissions")

    ways = {os.fspath(top): {os.path.realpath(top)}}  # folder -> where the way down to it has been
    for folder, inner, files in os.walk(top, onerror=refuse, followlinks=True):
        way = ways.pop(os.fspath(folder))
        below = {name: os.path.realpath(os.path.join(folder, name)) for name in sorted(inner)
                 if not name.startswith(".")}
        inner[:] = [name for name, real in below.items() if real not in way]
        ways.update((os.path.join(folder, name), way | {below[name]}) for name in inner)
        yield folder, sorted(name for name in files if not name.startswith("."))


def files_in(root, pattern, subset="train"):
    """Yield (name, path) of the image files below ``root`` that ``pattern`` matches, folder by folder.

    Hidden files and folders are left out. Raises ``UserError`` when the folder is missing.
    """
    top = os.path.join(root, pattern.partition("{")[0].rpartition("/")[0])
    if not os.path.isdir(top):
        raise UserError(f"the folder {top} of the pattern {pattern} does not exist; correct the pattern in the "
                        "dataset's spec, or --data-root")
    matches = _expression(pattern, subset)
    for folder, files in walk(top):
        below = os.path.relpath(folder, root)
        for file_name in files:
            match = matches.fullmatch(file_name if below == "." else f"{below}/{file_name}")
            if match is not None and is_image(file_name):
                yield match["name"], os.path.join(folder, file_name)


def name_of(patterns, path):
    """The name for which one of ``patterns`` (tuple of str) means ``path``, relative to the root; None for no such."""
    for pattern in patterns:
        for subset in ("train", "val", "test") if "{subset}" in pattern else ("train",):
            match = _expression(pattern, subset).fullmatch(path)
            if match is not None:
                return match["name"]
    return None


def is_image(file_name):
    """Whether the file name ends like an image's: JPEG, PNG, TIFF, WebP or BMP."""
    return file_name.lower().endswith(SUFFIXES)


def leaves_root(path):
    """Whether a path that should be relative to the dataset's root may lie outside it."""
    return Path(path).is_absolute() or ".." in Path(path).parts


def fault(pattern):
    """What is wrong with a pattern, or ``None``."""
    if leaves_root(pattern):
        return ("must stay inside the dataset root, without '..' and without '/' at its beginning: let the root be the "
                "folder that holds all of the dataset's folders")
    try:
        fields = {field for _, field, _, _ in string.Formatter().parse(pattern) if field is not None}
        named = pattern.format(name="\0", subset="train")
    except (KeyError, IndexError, ValueError, AttributeError):
        return "may have no other fields than {name} and {subset}, as in 'JPEGImages/{name}.jpg'"
    if fields - {"name", "subset"} or "\0" not in named:
        example = "JPEGImages/{name}.jpg" if "." in pattern or "{" in pattern else f"{pattern.rstrip('/')}/{{name}}.*"
        return f"needs {{name}}, as in '{example}'"
    if "*" in pattern.removesuffix(ANY_SUFFIX):
        return "may have a '*' only as its suffix, as in 'JPEGImages/{name}.*'"
    return None


def _files(folder):
    """Dict of the files in ``folder``, kept until it changes: by name, and images by "stem.*", too -> list of names."""
    try:
        changed = os.stat(folder).st_mtime_ns
    except OSError:
        return {}
    kept = abs(time.time_ns() - changed) > _SETTLED
    return (_listing if kept else _listing.__wrapped__)(folder, changed)


@functools.cache
def _listing(folder, changed):
    found = {}
    try:
        with os.scandir(folder) as entries:
            files = sorted(entry.name for entry in entries if not entry.is_dir())
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be read: {error.strerror}; check its permissions") from error
    for file_name in files:
        found[file_name] = [file_name]
        if is_image(file_name):
            found.setdefault(file_name.rpartition(".")[0] + ANY_SUFFIX, []).append(file_name)
    return found


def _expression(pattern, subset):
    """The regular expression of the paths that a pattern matches, with the group ``name``."""
    text = re.escape(pattern.removesuffix(ANY_SUFFIX).format(name="\0", subset=subset))
    text = text.replace("\0", "(?P<name>.+)", 1).replace("\0", "(?P=name)")
    return re.compile(text + (r"\.[^./]+" if pattern.endswith(ANY_SUFFIX) else ""), re.DOTALL)
