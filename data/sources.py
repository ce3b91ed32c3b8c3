"""What images a person names: files, folders, globs and videos; and what the files made of each are to be called."""

import glob
import itertools
import os
from dataclasses import dataclass
from pathlib import Path

from data.patterns import SUFFIXES, is_image
from utils.errors import UserError

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".ogv", ".3gp")


@dataclass(frozen=True)
class Source:
    """An image or a video: its path, the name (a relative path without suffix) of what is made of it, which it is."""

    path: Path
    name: str
    video: bool = False


def find_sources(inputs, recursive=False, leave_out=()):
    """The ``Source`` list of ``inputs``, texts: paths of images, videos and folders, and globs, in their order.

    In a folder every image counts, with ``recursive`` those of the folders in it, too; what lies beneath the folders
    ``leave_out`` does not, unless it is named itself. Names are relative to the folder, or to the fixed part of the
    glob; of two that would be equal both get longer. A file that is named twice counts once. Files that are named are
    taken to be images whatever their suffix, and whether they are there or not.
    Raises ``UserError`` for a folder or a glob without images.
    """
    leave_out = [os.path.join(os.path.realpath(folder), "") for folder in leave_out]
    found = {}  # real path -> (path, base folder)
    for text in inputs:
        path = Path(text).expanduser()
        if path.is_dir():
            members = _members(path, recursive)
            kept = [(member, path) for member in members if _is_image(member) and not _beneath(member, leave_out)]
            if not kept:
                deeper = "" if recursive else "; --recursive looks into the folders in it, too"
                raise UserError(f"the folder {text} holds no image ({' '.join(SUFFIXES)}){deeper}")
        elif glob.has_magic(text) and not path.exists():
            kept = _matches(os.path.expanduser(text), leave_out)
            if not kept:
                raise UserError(f"no file matches {text}; correct the pattern (in quotes, ** stands for any folders)")
        else:
            kept = [(path, path.parent)]
        for member, base in kept:
            found.setdefault(os.path.realpath(member), (member, base))
    return _named([*found.values()])


def _members(folder, recursive):
    try:
        return sorted(folder.rglob("*") if recursive else folder.iterdir())
    except OSError as error:
        raise UserError(f"the folder {error.filename or folder} cannot be read: {error.strerror}") from error


def _is_image(path):
    return is_image(path.name) and not path.name.startswith(".") and path.is_file()


def _beneath(path, folders):
    return any(os.path.realpath(path).startswith(folder) for folder in folders)


def _matches(pattern, leave_out):
    """(path, base folder) of the files that ``pattern`` matches, in order."""
    parts = Path(pattern).parts
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    base = Path(*parts[:fixed])
    paths = map(Path, sorted(glob.glob(pattern, recursive=True)))
    return [(path, base) for path in paths if path.name.lower().endswith((*SUFFIXES, *VIDEOS)) and path.is_file()
            and not _beneath(path, leave_out)]


def _named(found):
    """The sources of (path, base folder) pairs, each with a name of its own."""
    level = [0] * len(found)
    while True:
        names = [_name(path, base, min(rank, 3)) for (path, base), rank in zip(found, level)]
        users = {}
        for index, name in enumerate(names):
            users.setdefault(name.casefold(), []).append(index)  # some disks do not tell a.png from A.png
        shared = [index for group in users.values() if len(group) > 1 for index in group]
        if all(level[index] >= 3 for index in shared):
            break
        for index in shared:
            level[index] += 1
    taken = {name.casefold() for name in names}
    for index in shared:  # of folders far apart with equal names
        names[index] = next(name for number in itertools.count(1)
                            if (name := f"{names[index]}-{number}").casefold() not in taken)
        taken.add(names[index].casefold())
    return [Source(path, name, path.suffix.lower() in VIDEOS) for (path, _), name in zip(found, names)]


def _name(path, base, rank):
    """Of a.jpg in the folder b: a, then a_jpg, then b/a, then b/a_jpg."""
    relative = Path(os.path.relpath(path, base))
    stem = relative.with_suffix("")
    if rank % 2:
        stem = relative.with_name(f"{relative.stem}_{path.suffix[1:].lower()}")
    return stem.as_posix() if rank < 2 else f"{Path(os.path.abspath(base)).name or 'root'}/{stem.as_posix()}"
