#!/usr/bin/env python3
"""Check a Cityscapes folder, unpack the official zip files into it if they are given, and write the lists.

    python -m tools.prepare_cityscapes data/cityscapes
    python -m tools.prepare_cityscapes data/cityscapes --zips leftImg8bit_trainvaltest.zip gtFine_trainvaltest.zip

ROOT is the folder that CITYSCAPES_ROOT names. It holds, or gets from the zip files,

    leftImg8bit/{train,val,test}/CITY/X_leftImg8bit.png     the images, 2975, 500 and 1525
    gtFine/{train,val}/CITY/X_gtFine_labelIds.png           a mask for every image of train and val

Both zip files are at www.cityscapes-dataset.com (Downloads, after registration): leftImg8bit_trainvaltest.zip (11 GB)
and gtFine_trainvaltest.zip (241 MB). Of the second only the masks *_labelIds.png are needed and unpacked.

The check looks for images without mask and masks without image, files that are empty, cut off or no images, masks of
another size than their image, and wrong numbers. It reports all that it finds, one line each, with exit status 2, and
writes nothing then. If all is well, it writes what cityscapes_data_list.py, generate_splits.py and dms_sample.py write.
Interrupted, the same command goes on.
"""

import argparse
import os
import sys
from pathlib import Path

if not __package__:  # started by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cityscapes_data_list  # noqa: E402
from cityscapes_data_list import IMAGE_SUFFIX as IMAGE, SUBSETS, names_in  # noqa: E402
from data import images  # noqa: E402
from data.specs import load_spec  # noqa: E402
from tools.archives import missing_files, open_files, unpack  # noqa: E402
from tools.preparation import (  # noqa: E402
    add_count_options, check_room, count_faults, in_parallel, make_split_lists, print_counts, print_next)
from utils.console import progress_bar  # noqa: E402
from utils.errors import OneLineParser, UserError, reports_user_errors  # noqa: E402
from utils.files import locked, remove_left_overs  # noqa: E402

COUNTS = (2975, 500, 1525)  # images of train, val and test
MASK = "_gtFine_labelIds.png"
ZIP_FILES = (f"leftImg8bit/*/*/*{IMAGE}", f"gtFine/*/*/*{MASK}")
OFFICIAL_SIZE = (1024, 2048)
SHOWN = 5  # names in one finding
_THREADS = 8
_PNG_END = b"IEND\xaeB`\x82"
_GET = ("get leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip at www.cityscapes-dataset.com (Downloads, after "
        "registration) and give them with --zips")


# --- unpacking --------------------------------------------------------------------------------------------------------


def unpack_zips(paths, root):
    """Unpack the images and masks in the zip files ``paths`` below ``root``, as far as they are missing there."""
    sources = []
    for path in paths:
        print(f"reading {path}", flush=True)
        files = open_files(path, ZIP_FILES)
        sources.append((files, [key for key in files.sizes if key.split("/")[1] in SUBSETS]))
    check_room(root, [files.sizes[key] for files, keys in sources for key in missing_files(files, keys, root)])
    lock = root / ".prepare_cityscapes.lock"
    with locked(lock, str(root), instead="choose another ROOT"):
        for folder in ("leftImg8bit", "gtFine"):
            remove_left_overs(root / folder, "**/*")
        for files, keys in sources:
            unpacked = unpack(files, keys, root, files.path.name)
            print(f"{files.path.name}: {unpacked} files unpacked, {len(keys) - unpacked} were there")
        lock.unlink()


# --- findings ---------------------------------------------------------------------------------------------------------


def find_faults(spec, root, expected):
    """(findings, notes, rows): texts about what is wrong, texts worth knowing, and the table of numbers."""
    lacking = _lacking_folders(root)
    if lacking:
        return lacking, [], []
    findings, notes, rows = [], [], []
    for subset, count in zip(SUBSETS, expected):
        names = names_in(root / "leftImg8bit" / subset, IMAGE)
        rows.append((f"images of {subset}", len(names), count))
        if subset == "test":  # the benchmark keeps its masks
            findings += _examined(subset, [spec.image_path(root, name, subset) for name in names], [])[0]
            continue
        masks = names_in(root / "gtFine" / subset, MASK)
        rows.append((f"masks of {subset}", len(masks), count))
        findings += _unpaired(root, subset, names, masks)
        both = sorted({*names} & {*masks})
        faults, others = _examined(subset, [spec.image_path(root, name, subset) for name in names],
                                   [(spec.image_path(root, name, subset), spec.label_path(root, name, subset))
                                    for name in both])
        findings, notes = findings + faults, notes + others
    return count_faults(rows) + findings, notes, rows


def _lacking_folders(root):
    """Findings when one of the two trees is missing as a whole, with what to do about it."""
    lacking = []
    for folder, suffix in (("leftImg8bit", IMAGE), ("gtFine", MASK)):
        if (root / folder).is_dir():
            continue
        nested = next(iter(sorted(root.glob(f"*/{folder}"))), None) if root.is_dir() else None
        mend = f"move {nested} to {root}" if nested else _GET
        lacking.append(f"{root} has no folder {folder} with the files *{suffix}; {mend}")
    return lacking


def _unpaired(root, subset, names, masks):
    """Findings about images without mask and masks without image."""
    if names and not masks:
        folder = root / "gtFine" / subset
        others = min((path.name for path in folder.glob("*/*") if path.is_file()), default=None)
        seen = f"; other files are there, such as {others}" if others else ""
        return [f"{folder} has no mask CITY/*{MASK}{seen}: unpack gtFine_trainvaltest.zip again, or make the masks "
                "from the polygons with the cityscapesScripts (createLabels)"]
    without, extra = sorted({*names} - {*masks}), sorted({*masks} - {*names})
    findings = []
    if without:
        findings.append(f"no mask {root}/gtFine/{subset}/NAME{MASK} for {len(without)} of {len(names)} images: "
                        f"{_few(without)}; unpack gtFine_trainvaltest.zip again")
    if extra:
        findings.append(f"no image {root}/leftImg8bit/{subset}/NAME{IMAGE} for {len(extra)} of {len(masks)} masks: "
                        f"{_few(extra)}; unpack leftImg8bit_trainvaltest.zip again")
    return findings


def _examined(subset, paths, pairs):
    """(findings, notes) about the files themselves; ``pairs`` are the paths of images with their masks."""
    broken, sizes = {}, {}
    paths = [*paths, *(mask for _, mask in pairs)]
    show = progress_bar(f"checking {subset}", "file", len(paths))
    for path, (size, fault) in zip(paths, show(in_parallel(_size_or_fault, paths, _THREADS))):
        sizes[path] = size
        if fault:
            broken.setdefault(fault, []).append(str(path))
    findings = [f"{fault}: {_few(found)}; delete and unpack again" for fault, found in broken.items()]
    unequal = [f"{image} ({_text(sizes[image])}, its mask {_text(sizes[mask])})" for image, mask in pairs
               if sizes[image] and sizes[mask] and sizes[image] != sizes[mask]]
    if unequal:
        findings.append(f"not of one size with its mask: {_few(unequal)}; delete both and unpack again")
    other = [f"{path} ({_text(size)})" for path, size in sizes.items() if size and size != OFFICIAL_SIZE]
    notes = [f"{len(other)} of {len(paths)} files of {subset} are not of the official size, {_text(OFFICIAL_SIZE)} "
             f"pixels: {_few(other)}; training resizes all to 1024 x 512"] if other else []
    return findings, notes


def _size_or_fault(path):
    """((height, width), None) of a PNG, or (None, what is wrong with it)."""
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            if not file.tell():
                return None, "an empty file"
            file.seek(-min(file.tell(), len(_PNG_END)), os.SEEK_END)
            whole = file.read() == _PNG_END
        size = images.image_size(path)
    except OSError as error:
        return None, f"a file that cannot be read ({error.strerror or error})"
    except UserError:
        return None, "no PNG that decodes"
    return (size, None) if whole else (None, "a file that is cut off")


def _few(items):
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(map(str, items[:SHOWN])) + more


def _text(size):
    return f"{size[1]} x {size[0]}"


# --- command line -----------------------------------------------------------------------------------------------------


@reports_user_errors
def main(arguments=None):
    """Unpack, check, write the lists, and print what was found."""
    args = _parser().parse_args(arguments)
    spec = load_spec("city")
    given = args.root or os.environ.get(spec.root_variable)
    if not given:
        raise UserError(f"where is Cityscapes? Give its folder, or set {spec.root_variable}; to begin with, {_GET}")
    root = Path(given).expanduser().absolute()
    if not root.is_dir() and not args.zips:
        raise UserError(f"{root} is not a folder; correct it, or {_GET}")
    if args.zips:
        unpack_zips(args.zips, root)
    findings, notes, rows = find_faults(spec, root, (None,) * 3 if args.no_counts else args.counts)
    if rows:
        print_counts(rows)
    for kind, lines in (("note", notes), ("error", findings)):
        for line in lines:
            print(f"{kind}: {' '.join(line.split())}", file=sys.stderr)
    if findings:
        sys.exit(UserError.status)
    cityscapes_data_list.main(["--data-root", str(root)])
    if not args.no_splits:
        make_split_lists(spec, root)
    print_next(spec, root, not args.no_splits)


def _parser():
    parser = OneLineParser(prog="python -m tools.prepare_cityscapes", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", nargs="?", metavar="ROOT",
                        help="folder with leftImg8bit and gtFine (default: the environment variable CITYSCAPES_ROOT)")
    parser.add_argument("--zips", nargs="+", metavar="FILE", help="official zip files to unpack into ROOT first")
    add_count_options(parser, ("TRAIN", "VAL", "TEST"), COUNTS)
    parser.add_argument("--no-splits", action="store_true",
                        help="do not run generate_splits.py and dms_sample.py at the end")
    return parser


if __name__ == "__main__":
    main()
