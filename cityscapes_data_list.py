#!/usr/bin/env python3
"""Write the Cityscapes name lists train.txt, val.txt and test.txt under ROOT/data_lists.

ROOT is the folder with leftImg8bit and gtFine as Cityscapes is unpacked. Cities and files come sorted; a name looks
like aachen/aachen_000000_000019. Run this once, then generate_splits.py --dataset city.
"""

import sys

from data.lists import write_list
from data.patterns import names_in
from data.specs import load_spec, resolve_root
from utils.errors import OneLineParser, UserError, reports_user_errors

SUBSETS = ("train", "val", "test")
IMAGE_SUFFIX = "_leftImg8bit.png"


@reports_user_errors
def main(arguments=None):
    """List the images of every subset, write the lists, and print what was written."""
    parser = OneLineParser(description=__doc__)
    parser.add_argument("--data-root", metavar="FOLDER",
                        help="folder with leftImg8bit and gtFine (default: the environment variable CITYSCAPES_ROOT)")
    args = parser.parse_args(arguments)
    spec = load_spec("city")
    root = resolve_root(spec, args.data_root)
    images = root / "leftImg8bit"
    if not images.is_dir():
        raise UserError(f"{root} has no folder leftImg8bit; unpack leftImg8bit_trainvaltest.zip there or correct "
                        "--data-root")
    lists = {subset: names_in(root, spec.images, subset) for subset in SUBSETS}
    if not any(lists.values()):
        raise UserError(f"no image CITY/*{IMAGE_SUFFIX} in the folders train, val and test of {images}; unpack "
                        "leftImg8bit_trainvaltest.zip there or correct --data-root")
    for subset, names in lists.items():
        if not names:
            _warn(f"no images in {images / subset}; {subset}.txt is not written")
            continue
        path = spec.list_path(root, f"{subset}.txt")
        write_list(path, names)
        print(f"{len(names):>6} names in {path}")
        without = [name for name in names if not spec.label_path(root, name, subset).is_file()]
        if without and subset != "test":  # the benchmark keeps the labels of its test images
            _warn(f"{len(without)} of the {len(names)} images of {subset} have no label file, the first is "
                  f"{spec.label_path(root, without[0], subset)}; unpack gtFine_trainvaltest.zip in {root}")


def _warn(text):
    print(f"warning: {text}", file=sys.stderr)


if __name__ == "__main__":
    main()
