#!/usr/bin/env python3
"""Make the lists that say which training images are labelled: D_labeled_S.txt and D_unlabeled_S.txt.

D names the split (one image in D is labelled; 106 are the paper's 100 images), S is the split id (0, 1, 2).
The whole training list is also written as 1_labeled_S.txt and 0_unlabeled_S.txt. Images without masks (those in
all_unlabeled_0.txt, or of the spec's unlabeled_images) are unlabelled in every split. Where the list folder has a
train.txt with a part of the training list (as VOC has beside trainaug.txt), the split "train" labels exactly those
images.
With the default options the lists published for DMT come out, byte for byte.
"""

import math
from pathlib import Path

from data.lists import find_list, read_list, split_list_names, without_masks
from data.specs import load_spec, resolve_root
from data.splits import check_split_names, list_parser, make_splits, own_split, save_lists
from utils.errors import UserError, reports_user_errors

OWN_TRAINING_LIST = "train.txt"


@reports_user_errors
def main(arguments=None):
    """Read the training list, split it, write the lists, and print a table of them."""
    args = _options(arguments)
    spec = load_spec(args.dataset)
    divisors = [_divisor(text) for text in args.divisors] if args.divisors else list(spec.divisors)
    check_split_names(divisors)
    root = None if args.list and args.out else resolve_root(spec, args.data_root)
    source = Path(args.list) if args.list else find_list(spec, root, "training")
    folder = Path(args.out) if args.out else spec.list_path(root, "")
    names = read_list(source, spec, root)
    lists = make_splits(names, divisors, args.seed, args.ids)
    own = source.parent / OWN_TRAINING_LIST
    taken = any(split == "train" for split, _ in divisors)
    own_lists = _own_split(names, own, spec, root) if own.is_file() and own != source and not taken else {}
    apart = without_masks(spec, root, source) if root is not None else []
    lists = {file: list(dict.fromkeys([*listed, *apart])) if "_unlabeled_" in file else listed
             for file, listed in {**lists, **own_lists}.items()}
    doubt = None
    if root is not None and not any(spec.image_path(root, name).is_file() for name in names):
        doubt = f"no image of the {len(names)} names in {source} is in {root}"
    states = save_lists(folder, lists, doubt)

    print(f"{len(names)} names in {source}, lists in {folder}")
    if names != sorted(names):
        print("note: the training list is not sorted; the published splits come from the sorted one")
    if apart:
        print(f"{len(apart)} images without masks are in every list of unlabelled ones")
    _print_table([split for split, _ in divisors] + ["train"] * bool(own_lists) + ["1", "0"], lists, states, args.ids)


def _options(arguments):
    parser = list_parser(__doc__)
    parser.add_argument("--divisors", nargs="+", metavar="D",
                        help="splits to make: 8 labels one image in eight, 106:105.82 divides by 105.82 and names the "
                             "split 106 (default: those of the dataset, for VOC 2 4 8 20 50 106:105.82)")
    parser.add_argument("--list", metavar="FILE", help="training list to split (default: that of the dataset)")
    parser.add_argument("--out", metavar="FOLDER", help="where the lists go (default: the dataset's list folder)")
    return parser.parse_args(arguments)


def _divisor(text):
    """("106", 105.82) from "106:105.82", ("8", 8.0) from "8"."""
    split, _, number = text.rpartition(":")
    try:
        divisor = float(number)
    except ValueError:
        divisor = math.nan
    if not 1 < divisor < math.inf:
        raise UserError(f"--divisors {text}: give a number above 1, as in 8, or a name and a number, as in 106:105.82")
    return split or number, divisor


def _own_split(names, path, spec, root):
    """The split "train": labelled are the names in ``path``, unlabelled the others; nothing if it is no true part."""
    try:
        labeled = read_list(path, spec, root)
    except UserError as error:
        print(f"note: no split 'train', {error}")
        return {}
    return own_split(names, labeled)


def _print_table(splits, lists, states, ids):
    print(f"{'split':>8} {'labelled':>9} {'unlabelled':>11}  ids    files")
    for split in splits:
        present = [split_id for split_id in range(ids)
                   if any(name in lists for name in split_list_names(split, split_id))]
        counts = [str(len(lists[name])) if name in lists else "-" for name in split_list_names(split, present[0])]
        found = {states[name] for split_id in present for name in split_list_names(split, split_id) if name in states}
        shown = f"0-{present[-1]}" if len(present) > 1 else "0"
        print(f"{split:>8} {counts[0]:>9} {counts[1]:>11}  {shown:<5}  {', '.join(sorted(found))}")


if __name__ == "__main__":
    main()
