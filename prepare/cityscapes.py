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
import collections
import os
import sys
from pathlib import Path

import cityscapes_data_list
from cityscapes_data_list import IMAGE_SUFFIX as IMAGE, SUBSETS, names_in
from data import images, png
from data.specs import load_spec
from prepare.archives import Files
from prepare.common import add_count_options, check_room, count_fault, finish, in_parallel, print_counts
from utils.errors import OneLineParser, UserError, reports_user_errors
from utils.files import locked, make_folder

COUNTS = (2975, 500, 1525)  # images of train, val and test
MASK = "_gtFine_labelIds.png"
OFFICIAL_SIZE = (1024, 2048)
SHOWN = 5  # names in one finding
_GET = ("get leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip at www.cityscapes-dataset.com (Downloads, after "
        "registration) and give them with --zips")


def unpack_zips(paths, root):
    """Unpack the images and masks in the zip files ``paths`` below ``root``, as far as they are missing there."""
    sources = []
    for path in paths:
        print(f"reading {path}", flush=True)
        try:
            sources.append(Files(path, (f"leftImg8bit/*/*/*{IMAGE}",)))
        except UserError:
            sources.append(Files(path, (f"gtFine/*/*/*{MASK}",)))
    wanted = [[key for key in files.sizes if key.split("/")[1] in SUBSETS] for files in sources]
    check_room(root, [files.sizes[key] for files, keys in zip(sources, wanted) for key in files.missing(keys, root)])
    make_folder(root)
    lock = root / ".prepare_cityscapes.lock"
    with locked(lock, str(root), instead="choose another ROOT"):
        for files, keys in zip(sources, wanted):
            unpacked = files.unpack(keys, root)
            print(f"{files.path.name}: {unpacked} files unpacked, {len(keys) - unpacked} were there")
        lock.unlink()


def find_faults(spec, root, expected):
    """(findings, notes, rows): texts about what is wrong, texts worth knowing, and the table of numbers."""
    findings = []
    for folder, suffix in (("leftImg8bit", IMAGE), ("gtFine", MASK)):
        if not (root / folder).is_dir():
            nested = next(iter(sorted(root.glob(f"*/{folder}"))), None) if root.is_dir() else None
            findings.append(f"{root} has no folder {folder} with the files *{suffix}; "
                            + (f"move {nested} to {root}" if nested else _GET))
    notes, rows = [], []
    if findings:
        return findings, notes, rows
    for subset, count in zip(SUBSETS, expected):
        names = names_in(root / "leftImg8bit" / subset, IMAGE)
        rows.append((f"images of {subset}", len(names), count))
        masks = []
        if subset != "test":  # the benchmark keeps its masks
            masks = names_in(root / "gtFine" / subset, MASK)
            rows.append((f"masks of {subset}", len(masks), count))
            findings += _unpaired(root, subset, names, masks)
        faults, others = _examined(spec, root, subset, names, masks)
        findings, notes = findings + faults, notes + others
    fault = count_fault(rows)
    return ([fault] if fault else []) + findings, notes, rows


def _unpaired(root, subset, names, masks):
    """Findings about images without mask and masks without image."""
    if names and not masks:
        folder = root / "gtFine" / subset
        others = min((path.name for path in folder.glob("*/*") if path.is_file()), default=None)
        seen = f"; other files are there, such as {others}" if others else ""
        return [f"{folder} has no mask CITY/*{MASK}{seen}: unpack gtFine_trainvaltest.zip again, or make the masks "
                "from the polygons with the cityscapesScripts (createLabels)"]
    findings = []
    for what, folder, suffix, lacking, others in (("mask", "gtFine", MASK, {*names} - {*masks}, f"{len(names)} images"),
                                                  ("image", "leftImg8bit", IMAGE, {*masks} - {*names},
                                                   f"{len(masks)} masks")):
        if lacking:
            findings.append(f"no {what} {root}/{folder}/{subset}/NAME{suffix} for {len(lacking)} of {others}: "
                            f"{_few(sorted(lacking))}; unpack {folder}_trainvaltest.zip again")
    return findings


def _examined(spec, root, subset, names, masks):
    """(findings, notes) about the files themselves."""
    paths = {name: spec.image_path(root, name, subset) for name in names}
    mask_paths = {name: spec.label_path(root, name, subset) for name in masks}
    every = [*paths.values(), *mask_paths.values()]
    sizes, broken = {}, collections.defaultdict(list)
    for path, (size, fault) in zip(every, in_parallel(_size_or_fault, every, f"checking {subset}", "file")):
        sizes[path] = size
        if fault:
            broken[fault].append(path)
    findings = [f"{fault}: {_few(found)}; delete and unpack again" for fault, found in broken.items()]
    pairs = [(paths[name], mask_paths[name]) for name in names if name in mask_paths]
    unequal = [f"{image} ({_text(sizes[image])}, its mask {_text(sizes[mask])})" for image, mask in pairs
               if sizes[image] and sizes[mask] and sizes[image] != sizes[mask]]
    if unequal:
        findings.append(f"not of one size with its mask: {_few(unequal)}; delete both and unpack again")
    other = [f"{path} ({_text(size)})" for path, size in sizes.items() if size and size != OFFICIAL_SIZE]
    notes = [f"{len(other)} of {len(every)} files of {subset} are not of the official size, {_text(OFFICIAL_SIZE)} "
             f"pixels: {_few(other)}; training resizes all to 1024 x 512"] if other else []
    return findings, notes


def _size_or_fault(path):
    """((height, width), None) of a PNG, or (None, what is wrong with it)."""
    try:
        content = path.read_bytes()
        size = images.image_size(path) if content else None
    except OSError as error:
        return None, f"a file that cannot be read ({error.strerror or error})"
    except UserError:
        return None, "no PNG that decodes"
    if size and png.is_whole(content):
        return size, None
    return None, "a file that is cut off or damaged" if size else "an empty file"


def _few(items):
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(map(str, items[:SHOWN])) + more


def _text(size):
    return f"{size[1]} x {size[0]}"


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
    finish(spec, root, not args.no_splits)


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
