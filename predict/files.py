"""What a person names to be predicted, files, folders, globs and videos: found, named and read."""

import collections
import glob
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what does not decode is reported in one line
os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "protocol_whitelist;file")  # a video may not name web addresses

import cv2  # noqa: E402

from data.images import is_turned, read_image  # noqa: E402
from data.patterns import SUFFIXES, is_image, walk  # noqa: E402
from utils.errors import UserError  # noqa: E402

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".ogv", ".3gp")
_LOST = 0.02  # share of a video's frames that may be missing: some files only estimate their number


class Source(NamedTuple):
    """An image or a video, and the name, a relative path without suffix, of what is made of it."""

    path: Path
    name: str

    @property
    def video(self):
        """Whether it is a video."""
        return self.path.suffix.lower() in VIDEOS


class Problems(dict):
    """What could not be predicted: path -> why. ``turned`` are predicted images that viewers show turned."""

    def __init__(self):
        super().__init__()
        self.turned = []

    def add(self, source, error):
        """Keep the first ``error`` of a ``Source``."""
        path, said = str(source.path), reason(error)
        self.setdefault(path, said if path in said else f"{path}: {said}")


def reason(error):
    """What an ``error`` in reading an image says, without its advice for those who train."""
    return str(error).partition("; replace the file")[0].partition("; correct --data-root")[0]


def find_sources(inputs, recursive=False, leave_out=()):
    """The ``Source`` list of ``inputs``, texts: paths of images, videos and folders, and globs, in their order.

    In a folder every image counts, with ``recursive`` those of the folders in it, too; what lies beneath the folders
    ``leave_out`` does not, unless it is named itself. Names are relative to the folder, or to the fixed part of the
    glob; of two that would be equal both get longer. A file that is named twice counts once. Files that are named are
    taken to be images whatever their suffix, and whether they are there or not.
    Raises ``UserError`` for a folder or a glob without images.
    """
    leave_out = tuple(os.path.join(os.path.realpath(folder), "") for folder in leave_out)
    found = {}  # real path -> (path, base folder)
    for text in inputs:
        path = Path(text).expanduser()
        if path.is_dir():
            base, folders = path, itertools.islice(walk(path), None if recursive else 1)
            members = sorted(Path(place, name) for place, files in folders for name in files if is_image(name))
        elif glob.has_magic(text) and not path.exists():
            base = next(parent for parent in path.parents if not glob.has_magic(str(parent)))
            members = [one for one in map(Path, sorted(glob.glob(str(path), recursive=True)))
                       if one.name.lower().endswith((*SUFFIXES, *VIDEOS))]
        else:
            found.setdefault(os.path.realpath(path), (path, path.parent))
            continue
        kept = [one for one in members if one.is_file() and not os.path.realpath(one).startswith(leave_out)]
        if not kept:
            raise UserError(f"{text}: no image ({' '.join(SUFFIXES)}) is there; correct the path or the pattern (in "
                            "quotes, ** stands for any folders), or look into the folders in it with --recursive")
        for one in kept:
            found.setdefault(os.path.realpath(one), (one, base))
    pairs = list(found.values())
    return [Source(path, name) for (path, _), name in zip(pairs, _names(pairs))]


def _names(found):
    """A name for each (path, base folder), the shortest that is not also that of another.

    Of a.jpg in the folder b: a, a_jpg, b/a, b/a_jpg, and a_jpg below the folder that all have in common.
    """
    common = os.path.commonpath([os.path.abspath(path.parent) for path, _ in found])
    ways = []
    for path, base in found:
        longer = path.with_name(f"{path.stem}_{path.suffix[1:].lower()}")
        below = [os.path.relpath(one, base) for one in (path.with_suffix(""), longer)]
        inside = [base.absolute().name / Path(name) for name in below]
        ways.append([Path(name).as_posix() for name in (*below, *inside, os.path.relpath(longer, common))])
    names = [way[0] for way in ways]
    for rank in range(1, 5):
        uses = collections.Counter(names)
        names = [way[rank] if uses[name] > 1 else name for name, way in zip(names, ways)]
    return names


# --- reading ----------------------------------------------------------------------------------------------------------


def ahead(work, items, count):
    """``work(item)`` of each of ``items``, in their order, from threads; no more than ``count`` are waiting."""
    with ThreadPoolExecutor(4) as pool:
        waiting = collections.deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def read_images(sources, problems, max_pixels):
    """(source, image (H, W, 3) uint8 BGR) of every image that can be read; the others become ``problems``."""
    def read(source):
        try:
            return source, read_image(source.path, max_pixels), is_turned(source.path)
        except UserError as error:
            return source, error, False

    for source, image, turned in ahead(read, sources, 4):
        if isinstance(image, UserError):
            problems.add(source, image)
        else:
            problems.turned += [source.path] * turned
            yield source, image


def open_video(source, largest):
    """(number of frames that it claims or 0, frames a second, the first frame, the ``cv2.VideoCapture``) of a video.

    Raises ``UserError`` when it is missing, no video, or has more than ``largest`` pixels a frame.
    """
    path = source.path
    if not path.is_file():
        raise UserError(f"the video {path} is missing")
    capture = cv2.VideoCapture(str(path))
    width, height, count, rate = (capture.get(key) for key in (
        cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS))
    if width * height > largest:
        raise UserError(f"the video {path} has {width:.0f} x {height:.0f} pixels a frame, more than the limit of "
                        f"{largest}; raise it with --max-pixels if the file is what it should be")
    there, first = capture.read()
    if not there:
        raise UserError(f"the video {path} does not decode: it is no video, or OpenCV lacks its codec")
    return int(count) if 0 < count < 1e9 else 0, rate if 0 < rate <= 1000 else 25.0, first, capture


def read_frames(source, claimed, frame, capture, problems):
    """(source of the frame, image) of every frame; the video becomes one of ``problems`` if it claims to have more."""
    number, there = 0, True
    while there:
        number += 1
        yield Source(source.path, f"{source.name}/{number:06}"), frame
        there, frame = capture.read()
    if claimed - number > max(2, _LOST * claimed):
        problems.add(source, UserError(f"the video {source.path} is damaged: {number} of its {claimed} frames decode"))
