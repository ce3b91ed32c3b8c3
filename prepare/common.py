"""What the preparations share: archives, numbers that are expected, masks and class names on the disk, splits."""

import contextlib
import functools
import os
import shlex
import tarfile
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dms_sample
import generate_splits
from data import patterns
from data.masks import IGNORED
from data.lists import find_list, read_list
from utils.console import progress_bar
from utils.errors import UserError
from utils.files import write_bytes, write_text

MOST_CLASSES = 254


def files_of(path, wanted):
    """Yield (key, size in bytes, function that reads its bytes) of the files in ``path``: a tar, a zip or a folder.

    ``wanted`` is a compiled regular expression of whole paths, whose group is the key. A packed archive is read to its
    end, where its checksum stands. Raises ``UserError`` when ``path`` is missing, damaged or has no such file.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; give the archive or the folder that it was unpacked to")
    found = False
    with _whole(path):
        for name, size, read in _members(path):
            if match := wanted.fullmatch(name):
                found = True
                yield match[1], size, _whole(path)(read)
    if not found:
        raise UserError(f"{path} is another archive or folder: it holds nothing like {wanted.pattern}; give the "
                        "official archive, or the folder it was unpacked to")


@contextlib.contextmanager
def _whole(path):
    """What reading the archive ``path`` meets where it is damaged becomes a ``UserError``."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise UserError(f"{path} is damaged or not whole ({error}); download it again") from error


def _members(path):
    if path.is_dir():
        for folder, names in patterns.walk(path):  # links are followed
            for file in (Path(folder, name) for name in names):
                yield file.relative_to(path).as_posix(), file.stat().st_size, file.read_bytes
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                yield info.filename, info.file_size, functools.partial(archive.read, info)
    else:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isreg():
                    yield member.name, member.size, archive.extractfile(member).read
            while archive.fileobj.read(1 << 20):
                pass


def unpack(path, wanted, folder):
    """Write the files that ``files_of`` gives below ``folder``. Those of that size stay, and so do all lists."""
    print(f"unpacking {path}", flush=True)
    unpacked = there = 0
    for key, size, read in files_of(path, wanted):
        target = folder / key
        if target.exists() and (target.suffix == ".txt" or target.stat().st_size == size):
            there += 1
            continue
        write_bytes(target, read(), durable=False)
        unpacked += 1
    os.sync()
    print(f"{unpacked} files unpacked, {there} were there")


def compare_counts(rows, free):
    """Print ``rows`` (what, found, expected or None); unless ``free``, ``UserError`` where the numbers differ."""
    width = max(len(what) for what, _, _ in rows)
    print(f"{'':<{width}} {'found':>7} {'expected':>9}")
    for what, found, expected in rows:
        print(f"{what:<{width}} {found:>7} {expected or '-':>9}", flush=True)
    wrong = [f"{what}: {found} instead of {expected}" for what, found, expected in rows
             if expected is not None and found != expected]
    if wrong and not free:
        raise UserError(f"the numbers differ, {'; '.join(wrong)}. Get the official files, or, if yours are meant to "
                        "differ, add --no-counts")


def add_no_counts(parser):
    """Give ``parser`` the option --no-counts."""
    parser.add_argument("--no-counts", action="store_true",
                        help="do not compare the numbers of names and files with the official ones")


def finish(spec, root):
    """Make the lists of the random splits that a dataset of this size can have, and print what the user does now."""
    names = read_list(find_list(spec, root, "training"))
    possible = [(split, divisor) for split, divisor in spec.divisors if len(names) > max(divisor, 3)]
    if len(possible) < len(spec.divisors):
        left_out = " ".join(split for split, _ in spec.divisors[len(possible):])
        print(f"note: {len(names)} training images are too few for the splits {left_out}; they are left out")
    dataset = ["--dataset", spec.name, "--data-root", str(root)]
    if possible:
        generate_splits.main([*dataset, "--divisors", *(f"{split}:{divisor}" for split, divisor in possible)])
        dms_sample.main([*dataset, "--splits", *(split for split in spec.dms_splits if split in dict(possible))])
    print("every command and launcher finds the dataset after")
    print(f"export {spec.root_variable}={shlex.quote(str(root))}")


def in_threads(function, items, unit):
    """Dict from every one of ``items`` to its ``function(item)``, by threads; progress is shown."""
    items = list(items)
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        return dict(zip(items, progress_bar(pool.map(function, items), f"{unit}s", unit, len(items))))


def add_mask_options(parser, replaced):
    """Give ``parser`` the options --max-pixels and --force; ``replaced`` says what the latter replaces."""
    parser.add_argument("--max-pixels", metavar="N", type=int, default=100_000_000,
                        help="refuse images with more pixels than this (default: 100000000)")
    parser.add_argument("--force", action="store_true", help=f"replace {replaced}")


def check_number(classes, source):
    """Raise ``UserError`` where ``source`` has other numbers of ``classes`` than a palette mask can hold."""
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise UserError(f"{source} has {len(classes)} classes; 2 to {MOST_CLASSES} are possible: correct the "
                        "classes, or give other masks")


def refuse_existing(paths, force):
    """Raise ``UserError`` for the first of ``paths`` that is there, unless ``force``."""
    there = next((path for path in paths if path.exists()), None)
    if there is not None and not force:
        raise UserError(f"{there} is there already; give --force to replace it, or another folder")


def finish_masks(out, masks, classes, pixels, objects=None):
    """Write OUT/classes.txt, for new_dataset --classes, behind the ``masks``, and print what the masks hold.

    ``classes`` are the names; ``pixels``, and ``objects`` if there are such, map each class and 255 to their number.
    """
    os.sync()
    write_text(out / "classes.txt", "".join(f"{name}: {index}\n" for index, name in enumerate(classes)))
    print(f"{'class':>5} {' objects ' if objects else ''}{'% of pixels':>12}  name")
    whole = sum(pixels.values())
    for index, name in [*enumerate(classes), (IGNORED, "(ignored)")]:
        count = f"{objects[index]:>8} " if objects else ""
        print(f"{index:>5} {count}{100 * pixels[index] / whole:>12.2f}  {name}")
    print(f"{len(masks)} masks in {out}, classes in {out / 'classes.txt'}")
