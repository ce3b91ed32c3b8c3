#!/usr/bin/env python3
"""From a folder of images and a folder of masks to a dataset spec with its lists.

    python tools/new_dataset.py photos masks
    python tools/new_dataset.py photos masks --unlabeled more_photos --classes soil,crop,weed --background soil

Looks at every file, prints what it found and what looks wrong, and writes OUT/dataset.yaml and OUT/lists. Images stay
where they are. A mask belongs to the image of its name; masks may be called otherwise in the same way, as X_mask.png or
X_gtFine_labelIds.png for X.jpg. Images without a mask are the unlabelled ones, and those of --unlabeled. Of the images
with a mask a share is held out for validation, by a seed, so that every class stays in training where that can be. The
same files and options give the same lists. At the end stand the commands to go on with.
"""

import argparse
import os
import re
import shlex
import statistics
import sys
from pathlib import Path

if not __package__:  # started by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.images import limit_pixels  # noqa: E402
from data.lists import split_list_names, write_list  # noqa: E402
from data.sizes import rounded_up  # noqa: E402
from data.specs import load_spec  # noqa: E402
from data.splits import hold_out  # noqa: E402
from tools import class_table, pairing  # noqa: E402
from tools.findings import Found, row, shown_path  # noqa: E402
from utils.errors import OneLineParser, UserError, reports_user_errors  # noqa: E402
from utils.files import make_folder, write_text  # noqa: E402

SPLIT, SPLIT_ID = "all", 0
SPEC, LISTS = "dataset.yaml", "lists"
PADDED = 1025  # images with longer sides are resized, unless the user says otherwise
CROP = 321  # the papers' on VOC
STEPS0, STEPS = 4000, 1500  # of round 0 (the papers' with 100 labels) and of every further round
DIVISORS = (2, 4, 8, 20)
_WARNINGS = 20


@reports_user_errors
def main(arguments=None):
    """Look, print, write."""
    options = _parser().parse_args(arguments)
    limit_pixels(options.max_pixels)
    out = Path(options.out or Path("datasets", _name_of(options))).expanduser()
    _refuse_to_overwrite(out, options.force)
    found = Found(_root(options), options)
    found.print_files()
    choice = found.choose_classes(options)
    found.print_classes(choice)
    plan = Plan(found, choice, options)
    plan.print()
    write(out, plan, options)
    warnings = [*plan.warnings, *choice.warnings, *found.warnings]
    for line in warnings[:_WARNINGS]:
        print(f"warning: {line}", file=sys.stderr)
    if warnings[_WARNINGS:]:
        print(f"warning: and {len(warnings) - _WARNINGS} more", file=sys.stderr)
    print_next(out, plan)


def _parser():
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", metavar="IMAGES", type=_folder, help="folder of the images (folders below it, too)")
    parser.add_argument("masks", metavar="MASKS", type=_folder,
                        help="folder of the masks, which may be the same: PNG, TIFF, WebP or BMP, palette, greyscale "
                             "of up to 16 bits, or RGB")
    parser.add_argument("--unlabeled", metavar="DIR", type=_folder, nargs="+", default=[],
                        help="more folders of images, without masks")
    parser.add_argument("--out", metavar="DIR", help="folder for dataset.yaml and lists (default: datasets/NAME)")
    parser.add_argument("--name", type=_plain_name,
                        help="name of the dataset (default: the folder that holds all of them)")
    parser.add_argument("--val-share", metavar="X", type=_share, default=0.2,
                        help="share of the images with masks that is held out for validation (default: 0.2)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="seed of that draw (default: 0)")
    parser.add_argument("--classes", metavar="NAMES",
                        help="names of the classes in order, as in soil,crop,weed; or a file with one a line, and "
                             "behind the name its mask values or its colour where needed: 'weed 17 18', 'weed 200 0 0'")
    parser.add_argument("--background", metavar="CLASS",
                        help="the class that PLE treats as background, by name or number, or none (default: a class "
                             "with such a name, else none)")
    parser.add_argument("--ignore", metavar="V", nargs="+", default=[],
                        help="mask value of pixels without a label, or none; for RGB masks colours, as in 255,255,255 "
                             "(default: 255 where masks have it)")
    parser.add_argument("--mask-suffix", metavar="TEXT",
                        help="what the masks' names end in before the file suffix, as _mask (default: found out)")
    parser.add_argument("--crop", metavar=("H", "W"), nargs=2, type=_side, help="training crop (default: by the sizes)")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--pad", metavar=("H", "W"), nargs=2, type=_side,
                       help="zero-pad images to this size (default: to the largest image, if that has sides up to "
                            f"{PADDED})")
    sizes.add_argument("--resize", metavar=("H", "W"), nargs=2, type=_side, help="resize images and masks to this size")
    parser.add_argument("--max-pixels", metavar="N", type=int, default=100_000_000,
                        help="refuse images with more pixels than this (default: 100000000)")
    parser.add_argument("--force", action="store_true", help="replace an earlier spec and lists in --out")
    return parser


def _folder(text):
    if not os.path.isdir(text):
        raise UserError(f"{text} is not a folder; give the folder of the images, and then that of the masks")
    return Path(os.path.abspath(text))


def _share(text):
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise UserError(f"--val-share {text}: give a number between 0 and 1, as in 0.2")
    return share


def _plain_name(text):
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", text):
        raise UserError(f"--name {text!r}: use letters, digits, dots, dashes and underscores, as in weeds-2")
    return text


def _side(text):
    if not text.isdecimal() or not 1 <= int(text) <= 1 << 16:
        raise UserError(f"{text!r} is no height or width; give whole numbers of pixels, as in --crop 321 321")
    return int(text)


def _root(options):
    return Path(os.path.commonpath([options.images, options.masks, *options.unlabeled]))


def _name_of(options):
    return options.name or re.sub(r"[^A-Za-z0-9._-]+", "-", _root(options).name).strip("-.") or "own"


def _refuse_to_overwrite(out, force):
    there = next((path for path in (out / SPEC, out / LISTS) if path.exists()), None)
    if there is not None and not force:
        raise UserError(f"{there} is there already; give --force to replace the spec and its lists, or another --out")


# --- what is made of it -----------------------------------------------------------------------------------------------


class Plan:
    """The lists, patterns and sizes of the new dataset."""

    def __init__(self, found, choice, options):
        self.found, self.choice, self.options, self.warnings = found, choice, options, []
        self.name = _name_of(options)
        classes = {name: {choice.class_of[value] for value in found.contents(name)} - {255} for name in found.labeled}
        self.validation = hold_out(classes, options.val_share, options.seed)
        held = set(self.validation)
        self.training = [name for name in found.labeled if name not in held]
        self.unlabeled = sorted([*found.without, *found.pool])
        self._warn_of_lacking_classes(classes)
        pairs, (images, masks) = found.pairing.pairs, (options.images, options.masks)
        self.images = pairing.pattern(images, found.root, found.pairing.images, [image for image, _ in pairs.values()],
                                      found.together)
        self.labels = pairing.pattern(masks, found.root, found.pairing.masks,
                                      [mask for _, mask in pairs.values() if mask is not None], found.together)
        self.pools = [pairing.pattern(base, found.root, pairing.Frame(), self._pool_files(base))
                      for base in dict.fromkeys(found.pools.values())]
        self._choose_sizes()

    def _pool_files(self, base):
        return [path.name for path in self.found.pool.values() if path.is_relative_to(base)]

    def _warn_of_lacking_classes(self, classes):
        for names, what in ((self.training, "training"), (self.validation, "validation")):
            there = set().union(*(classes[name] for name in names))
            lacking = [self.choice.classes[index].name for index in sorted(set().union(*classes.values()) - there)]
            if lacking:
                self.warnings.append(f"no mask for {what} has {', '.join(lacking)}; too few masks have it")
        if not self.unlabeled:
            self.warnings.append("there are no unlabelled images, which the rounds learn from; give a folder of them "
                                 "with --unlabeled, or train with labels only (main.py --state=2)")

    def _choose_sizes(self):
        sizes = self.found.sizes
        largest = [rounded_up(max(side)) for side in zip(*sizes)]
        median = [statistics.median_low(side) for side in zip(*sizes)]
        options = self.options
        self.test_by = "resize" if options.resize or not options.pad and max(largest) > PADDED else "pad"
        scale = min(1, (PADDED - 1) / max(median))
        self.test_size = options.pad or options.resize or (
            largest if self.test_by == "pad" else [rounded_up(int(side * scale)) for side in median])
        base = self.test_size if self.test_by == "resize" else median
        self.crop = options.crop or [min(CROP, max(33, int(0.85 * side) // 8 * 8 + 1)) for side in base]
        if options.pad and any(side < max(sides) for side, sides in zip(options.pad, zip(*sizes))):
            self.warnings.append(f"the largest image has {max(s[0] for s in sizes)} x {max(s[1] for s in sizes)} "
                                 "pixels (height x width), more than --pad: validation and labelling would refuse it")

    def print(self):
        """The last part of the summary."""
        row("training", f"{len(self.training)} images with masks")
        row("validation", f"{len(self.validation)} images with masks (share {self.options.val_share}, seed "
                           f"{self.options.seed})")
        row("unlabelled", f"{len(self.unlabeled)} images")
        background = self.choice.background
        row("background", "none" if background is None else self.choice.classes[background].name)

    def lists(self):
        """Dict from file name to names."""
        labeled, unlabeled = split_list_names(SPLIT, SPLIT_ID)
        result = {"train.txt": self.training, labeled: self.training, "val.txt": self.validation,
                  unlabeled: self.unlabeled}
        return {name: names for name, names in result.items() if names}

    def divisors(self):
        """The splits that ``generate_splits.py`` can make of the training images; at least the half."""
        possible = [divisor for divisor in DIVISORS if divisor == DIVISORS[0] or len(self.training) >= 2 * divisor]
        return "{" + ", ".join(f"{divisor}: {divisor}" for divisor in possible) + "}"

    def yaml(self, out):
        """The text of the spec."""
        choice, quoted = self.choice, class_table.quoted
        root = str(self.found.root)
        if Path(os.path.commonpath([os.path.abspath(out), root])) != Path("/"):
            root = os.path.relpath(root, os.path.abspath(out))
        background = "none" if choice.background is None else choice.classes[choice.background].name
        lines = [
            "# Written by tools/new_dataset.py, to be edited; docs/dataset_spec.md explains every key.",
            f"name: {quoted(self.name)}",
            "# Names and colours are yours to change; a colour is used in pictures" + (
                ", and says which pixels of a mask are of the class" if choice.by_color else "") + ".",
            *class_table.lines(choice.classes),
            "# The class that PLE treats as background, or none:", f"background: {quoted(background)}"]
        if choice.by_color:
            lines += ["masks: color  # the colours in the masks say the class",
                      f"ignore_colors: {[list(color) for color in choice.ignore_colors]}"]
        else:
            ignore = "none" if choice.ignore is None else choice.ignore
            lines += [f"ignore: {ignore}  # mask value of pixels without a label"]
        lines += ["# Below the root; .* is any suffix:", f"images: {quoted(self.images)}",
                  f"labels: {quoted(self.labels)}"]
        if self.pools:
            several = [quoted(pattern) for pattern in self.pools]
            lines += ["unlabeled_images: " + (several[0] if len(several) == 1 else f"[{', '.join(several)}]")]
        if self.pools and self.found.root not in self.found.pools.values():
            lines += [f"# {LISTS}/{split_list_names(SPLIT, SPLIT_ID)[1]} lists the unlabelled images; without that "
                      "file they are all of these folders."]
        sizes = f"{self.test_size}  # " + (
            "every image and mask is resized to it" if self.test_by == "resize" else
            "images are zero-padded to it; 'largest' looks for the largest image each time")
        lines += [f"crop: {self.crop}  # height and width of training crops", f"test_size: {sizes}",
                  f"test_by: {self.test_by}", f"root: {quoted(root)}  # relative to this file",
                  "lists_root: .  # this file's folder", f"lists: {LISTS}",
                  "train_list: [train.txt]", "val_list: [val.txt]",
                  f"dms_splits: [{SPLIT}]", f"divisors: {self.divisors()}  # splits that generate_splits.py makes"]
        return "\n".join(lines) + "\n"


def write(out, plan, options):
    """Write the lists, and last the spec, which is then read back."""
    make_folder(out / LISTS)
    lists = plan.lists()
    if options.force:  # halves of the old lists, and lists that are empty now
        for path in (out / LISTS).glob(f"{SPLIT}*_{SPLIT_ID}.txt"):
            if path.name not in lists:
                path.unlink()
    for name, names in lists.items():
        write_list(out / LISTS / name, names)
        print(f"wrote      {out / LISTS / name}: {len(names)} names")
    write_text(out / SPEC, plan.yaml(out))
    load_spec(out / SPEC)
    print(f"wrote      {out / SPEC}")
    sys.stdout.flush()


def print_next(out, plan):
    """Print the commands to go on with."""
    def here(path):
        return shlex.quote(shown_path(path))

    spec, repository = shlex.quote(str(out / SPEC)), Path(__file__).resolve().parents[1]
    steps0, steps = -(-len(plan.training) // 8), max(1, -(-len(plan.unlabeled) // 7))
    ep0, ep = max(20, min(600, -(-STEPS0 // steps0))), max(4, min(100, -(-STEPS // steps)))
    last = repository / "runs" / plan.name / f"{plan.name}__p5--l.pt"
    some = plan.found.root / plan.images.partition("{")[0].rpartition("/")[0]
    print("\nNow edit the spec (names, background), and then:")
    print("  # check every file, and what the run needs")
    print(f"  python {here(repository / 'main.py')} --check --dataset={spec} --train-set={SPLIT} --sets-id={SPLIT_ID}"
          + ("" if plan.unlabeled else " --state=2"))
    print("  # train on a GPU; on a CPU put backbone=small in front")
    print(f"  ep0={ep0} ep={ep} exp={plan.name} {here(repository / 'scripts' / 'dmt_ple-own.sh')} {spec}")
    print("  # predict")
    print(f"  python {here(repository / 'tools' / 'predict.py')} --checkpoint {here(last)} --out predictions "
          f"{here(some)}")


if __name__ == "__main__":
    main()
