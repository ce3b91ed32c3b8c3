#!/usr/bin/env python3
"""Difference-maximized sampling (DMS): cut every labelled list into two subsets for the two arms l and r.

Reads D_labeled_S.txt (made by generate_splits.py) and writes D-l_labeled_S.txt and D-r_labeled_S.txt, which overlap
only in the common portion. One random generator runs through all lists in order, so that with the default options the
published subsets come out; choosing other --splits or --ids changes the subsets.
"""

from pathlib import Path

from data.lists import read_list, split_list_names
from data.specs import load_spec, resolve_root
from data.splits import PORTION, check_split_names, list_parser, sample_dms, save_lists
from utils.errors import number, reports_user_errors


@reports_user_errors
def main(arguments=None):
    """Read the labelled lists, sample two subsets of each, write them, and print a table."""
    args = _options(arguments)
    spec = load_spec(args.dataset)
    splits = args.splits or spec.dms_splits
    check_split_names([(split, None) for split in splits])
    root = None if args.lists else resolve_root(spec, args.data_root)
    folder = Path(args.lists) if args.lists else spec.list_path(root, "")
    out = Path(args.out) if args.out else folder
    labeled = {(split, split_id): read_list(folder / split_list_names(split, split_id)[0], spec, root)
               for split_id in range(args.ids) for split in splits}
    lists = sample_dms(labeled, args.seed, args.portion)
    states = save_lists(out, lists)

    print(f"labelled lists from {folder}, subsets in {out}")
    print(f"{'split':>8} {'id':>3} {'labelled':>9} {'each side':>10} {'common':>7}  files")
    for (split, split_id), names in labeled.items():
        left, right = (split_list_names(f"{split}-{side}", split_id)[0] for side in "lr")
        common = len(set(lists[left]) & set(lists[right]))
        found = ", ".join(sorted({states[left], states[right]}))
        print(f"{split:>8} {split_id:>3} {len(names):>9} {len(lists[left]):>10} {common:>7}  {found}")


def _options(arguments):
    parser = list_parser(__doc__)
    parser.add_argument("--splits", nargs="+", metavar="D",
                        help="splits to sample from, in order (default: those of the dataset, for VOC 8 20 50 106)")
    parser.add_argument("--portion", default=PORTION, metavar="P",
                        type=number(float, 0, "a number from 0 to below 1, as in 0.6", high=1 - 1e-9),
                        help="portion of the names that both subsets share, 0 <= P < 1 (default: %(default)s)")
    parser.add_argument("--lists", metavar="FOLDER",
                        help="folder of the labelled lists (default: the dataset's list folder)")
    parser.add_argument("--out", metavar="FOLDER", help="where the subsets go (default: beside the labelled lists)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
