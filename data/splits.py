"""Which images are labelled: random nested splits, and the two subsets of difference-maximized sampling (DMS).

Source: DMT (Feng et al., Pattern Recognition 130, 2022), its published lists and their recipe. With the defaults the
published VOC and Cityscapes lists come out byte for byte.
"""

import collections
import contextlib
import math
import random
from fractions import Fraction
from pathlib import Path

from data.lists import WHOLE, read_list, split_list_names, write_list
from utils.errors import OneLineParser, UserError, number

SEED = 7777
IDS = 3
PORTION = "0.6"


def list_parser(description):
    """What the options of generate_splits.py and dms_sample.py have in common."""
    found = OneLineParser(description=description)
    found.add_argument("--dataset", default="voc", metavar="NAME",
                       help="voc, city, camvid, voc-animals, shapes, or the path of your own YAML spec (default: voc)")
    found.add_argument("--data-root", metavar="FOLDER",
                       help="root folder of the dataset (default: the environment variable of the dataset, VOC_ROOT "
                            "or CITYSCAPES_ROOT)")
    found.add_argument("--seed", type=int, default=SEED, help="seed of the shuffles (default: %(default)s)")
    found.add_argument("--ids", type=number(int, 1, "a whole number of at least 1"), default=IDS, metavar="N",
                       help="how many split ids, counted from 0 (default: %(default)s)")
    return found


def make_splits(names, divisors, seed=SEED, ids=IDS):
    """Random nested splits of ``names`` (list of N str, in the order of the training list).

    ``divisors`` are pairs (split, divisor), such as ("106", 105.82). For each id the list is shuffled once more;
    a split labels its first int(N / divisor) names, one more if that number % 8 == 1, and leaves the rest unlabelled.
    The extra one keeps batch normalization from meeting a last batch of one image at batch size 8.
    Returns a dict from file name to names, in the order of writing; besides the splits it has ``1_labeled_S`` and
    ``0_unlabeled_S`` with the whole shuffled list. Raises ``UserError`` when a split leaves one side empty.
    """
    names = list(names)
    generator = random.Random(seed)
    lists = {}
    for split_id in range(ids):
        generator.shuffle(names)
        for split, divisor in divisors:
            count = int(len(names) / divisor)
            if count < 1:
                raise UserError(f"split {split}: {len(names)} names divided by {divisor} leave no labelled image; "
                                "use a smaller divisor (--divisors)")
            count += count % 8 == 1
            if count >= len(names):
                raise UserError(f"split {split}: of {len(names)} names {count} would be labelled and none unlabelled; "
                                "use a larger divisor (--divisors)")
            labeled, unlabeled = split_list_names(split, split_id)
            lists[labeled], lists[unlabeled] = names[:count], names[count:]
        lists[split_list_names(WHOLE, split_id)[0]] = list(names)
        lists[split_list_names("0", split_id)[1]] = list(names)
    return lists


def sample_dms(labeled, seed=SEED, portion=PORTION):
    """Two subsets of every labelled list that overlap only in a common portion (difference-maximized sampling).

    ``labeled`` maps (split, id) to the n labelled names in file order. One generator shuffles them all, in the order of
    the dict. m = ceil((1 - portion) / 2 · n) names are exclusive to each side: "D-l" gets the first n - m of the
    shuffled names and "D-r" the last n - m. ``portion`` is a decimal text or number in [0, 1).
    Returns a dict from file name to names. Raises ``UserError`` when a side would be empty.
    """
    exclusive = (1 - Fraction(str(portion))) / 2  # exact: in floats 0.2 · n may land just above a whole number
    generator = random.Random(seed)
    lists = {}
    for (split, split_id), names in labeled.items():
        names = list(names)
        generator.shuffle(names)
        kept = len(names) - math.ceil(exclusive * len(names))
        if kept < 1:
            raise UserError(f"split {split} has only {len(names)} labelled name(s) with id {split_id}, "
                            "too few for two subsets; leave it out of --splits")
        lists[split_list_names(f"{split}-l", split_id)[0]] = names[:kept]
        lists[split_list_names(f"{split}-r", split_id)[0]] = names[-kept:]
    return lists


def own_split(names, labeled):
    """The split "train", id 0, of a dataset that comes with its own labelled part, as VOC does beside SBD.

    Labelled are the names in ``labeled``, unlabelled those of ``names`` that are not among them, both in their order.
    Returns a dict from file name to names; empty where ``labeled`` is no true part of ``names``.
    """
    own = set(labeled)
    if not own < set(names):
        return {}
    return dict(zip(split_list_names("train", 0), (list(labeled), [name for name in names if name not in own])))


def save_lists(folder, lists, doubt=None):
    """Write ``lists`` (dict from file name to names) to ``folder``; each file is whole or as it was.

    Returns a dict from file name to "new", "unchanged" (not touched, the folder may be read-only) or "replaced". Where
    there is a ``doubt`` about the names, in words, none is replaced: then that is a ``UserError``.
    """
    states = {}
    for file_name, names in lists.items():
        path = Path(folder, file_name)
        states[file_name] = "replaced" if path.exists() else "new"
        with contextlib.suppress(UserError):  # what is no list is replaced, too
            if path.exists() and read_list(path) == list(names):
                states[file_name] = "unchanged"
        if doubt and states[file_name] == "replaced":
            raise UserError(f"{doubt}, and {path} has others; correct the list or the root, or move the old lists away")
    for file_name, state in states.items():
        if state != "unchanged":
            write_list(Path(folder, file_name), lists[file_name])
    return states


def check_split_names(divisors):
    """Raise ``UserError`` when two splits share their files or a split takes a name that means something else."""
    seen = set()
    for split, _ in divisors:
        split_list_names(split, 0)
        if split in ("0", WHOLE) or split.endswith(("-l", "-r")):
            raise UserError(f"a split cannot be named {split}: 0 and 1 are the whole list, and endings -l and -r "
                            "belong to the subsets of dms_sample.py; rename it")
        if split in seen:
            raise UserError(f"the split {split} is given twice; keep one")
        seen.add(split)


def hold_out(classes, share, seed=0):
    """The names to validate on: about ``share`` of the images that have masks, drawn by ``seed``.

    ``classes`` is a dict from name to the set of classes in its mask. A class of few masks stays in training: the last
    image with it is not held out. Images with classes that validation lacks go first. At least one name is held out,
    and one is left. Returns a sorted list. Raises ``UserError`` for fewer than two names.
    """
    if len(classes) < 2:
        raise UserError(f"{len(classes)} image with a usable mask is too few: one is needed for training and another "
                        "one for validation; label more images")
    wanted = min(max(round(share * len(classes)), 1), len(classes) - 1)
    names = sorted(classes)
    random.Random(seed).shuffle(names)
    left = collections.Counter(index for own in classes.values() for index in own)
    lacking, chosen = set(left), []
    while len(chosen) < wanted:
        free = (name for name in names if all(left[index] > 1 for index in classes[name]))
        name = max(free, key=lambda name: len(classes[name] & lacking), default=None) if lacking else next(free, None)
        if name is None:
            break
        if not classes[name] & lacking:  # nor has any other: all names are searched as often as there are classes
            lacking = set()
        lacking -= classes[name]
        left.subtract(classes[name])
        names.remove(name)
        chosen.append(name)
    return sorted(chosen or names[:1])  # none is free where every image has a class that no other has
