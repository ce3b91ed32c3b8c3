"""Unpack the official zip files of Cityscapes if they are given, compare images and masks, and write the lists.

    python -m tools.prepare_cityscapes datasets/cityscapes --zips leftImg8bit_trainvaltest.zip gtFine_trainvaltest.zip
    python -m tools.prepare_cityscapes datasets/cityscapes                          (unpacked already)

ROOT is the folder that CITYSCAPES_ROOT names. It holds, or gets from the zip files,

    leftImg8bit/{train,val,test}/CITY/X_leftImg8bit.png     the images, 2975, 500 and 1525
    gtFine/{train,val}/CITY/X_gtFine_labelIds.png           a mask for every image of train and val

Both zip files are at www.cityscapes-dataset.com (Downloads, after registration): leftImg8bit_trainvaltest.zip (11 GB)
and gtFine_trainvaltest.zip (241 MB). Of the second only the masks *_labelIds.png are needed and unpacked.

Images without mask, masks without image and wrong numbers are errors, and no list is written then. If all is well, it
writes what cityscapes_data_list.py, generate_splits.py and dms_sample.py write. Interrupted, the same command goes on.
The files themselves are opened by main.py --check.
"""

import os
import re
from pathlib import Path

import cityscapes_data_list
from cityscapes_data_list import IMAGE_SUFFIX as IMAGE
from data.patterns import names_in
from data.specs import load_spec
from prepare.common import add_no_counts, compare_counts, finish, unpack
from utils.errors import OneLineParser, UserError, reports_user_errors

COUNTS = {"train": 2975, "val": 500}
MASK = "_gtFine_labelIds.png"
KINDS = {"image": ("leftImg8bit", IMAGE), "mask": ("gtFine", MASK)}
WANTED = re.compile(rf"(?:.*/)?(leftImg8bit/(?:train|val|test)/[^/]+/[^/]+{IMAGE}|"
                    rf"gtFine/(?:train|val)/[^/]+/[^/]+{MASK})")
_GET = ("get leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip at www.cityscapes-dataset.com (Downloads, after "
        "registration) and give them with --zips")


@reports_user_errors
def main(arguments=None):
    """Unpack, compare, and write the lists."""
    args = _parser().parse_args(arguments)
    spec = load_spec("city")
    given = args.root or os.environ.get(spec.root_variable)
    if not given:
        raise UserError(f"where is Cityscapes? Give its folder, or set {spec.root_variable}; to begin with, {_GET}")
    root = Path(given).expanduser().absolute()
    if not root.is_dir() and not args.zips:
        raise UserError(f"{root} is not a folder; correct it, or {_GET}")
    for path in args.zips:
        unpack(Path(path).expanduser(), WANTED, root)
    _compare(spec, root, args.no_counts)
    cityscapes_data_list.main(["--data-root", str(root)])
    finish(spec, root)


def _compare(spec, root, free):
    """Raise ``UserError`` where a folder, an image or a mask is missing; unless ``free``, where numbers differ."""
    for folder, suffix in KINDS.values():
        if not (root / folder).is_dir():
            nested = next(iter(sorted(root.glob(f"*/{folder}"))), None)
            raise UserError(f"{root} has no folder {folder} with the files *{suffix}; "
                            + (f"move {nested} to {root}" if nested else _GET))
    rows, faults = [], []
    for subset, count in COUNTS.items():
        found = {"image": names_in(root, spec.images, subset), "mask": names_in(root, spec.labels, subset)}
        rows += [(f"{kind}s of {subset}", len(names), count) for kind, names in found.items()]
        for what, other in (("mask", "image"), ("image", "mask")):
            folder, suffix = KINDS[what]
            if lacking := {*found[other]} - {*found[what]}:
                faults.append(f"{len(lacking)} files have no {what}, the first is {root / folder / subset}/"
                              f"{min(lacking)}{suffix}: unpack {folder}_trainvaltest.zip again")
    rows.append(("images of test", len(names_in(root, spec.images, "test")), None))
    if faults:
        raise UserError("; ".join(faults) + " (masks of another form than labelIds: make them from the polygons with "
                        "the cityscapesScripts, createLabels)")
    compare_counts(rows, free)


def _parser():
    parser = OneLineParser(prog="python -m tools.prepare_cityscapes", description=__doc__)
    parser.add_argument("root", nargs="?", metavar="ROOT",
                        help="folder with leftImg8bit and gtFine (default: the environment variable CITYSCAPES_ROOT)")
    parser.add_argument("--zips", nargs="+", default=[], metavar="FILE",
                        help="official zip files to unpack into ROOT first")
    add_no_counts(parser)
    return parser
