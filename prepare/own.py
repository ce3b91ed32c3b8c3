"""From a folder of images and a folder of masks to a dataset spec with its lists.

    python tools/new_dataset.py photos masks
    python tools/new_dataset.py photos masks --unlabeled more_photos --classes soil,crop,weed --background soil
    python tools/new_dataset.py train/images train/masks --val-images val/images --val-masks val/masks

Looks at every file, prints what it found and what looks wrong, and writes OUT/dataset.yaml and OUT/lists. Images stay
where they are. A mask belongs to the image of its name; masks may be called otherwise in the same way, as X_mask.png or
X_gtFine_labelIds.png for X.jpg. Images without a mask are the unlabelled ones, and those of --unlabeled. Validation is
what is given; else the folders called train and val that IMAGES has; else a share of the images with a mask, drawn by a
seed, so that every class stays in training where that can be. What is not certain is not guessed: the error says which
option says it. Nothing is written before all of it has been checked. At the end stand the commands to go on with.
"""

import argparse
import collections
import json
import os
import re
import shlex
import statistics
import sys
import tempfile
from pathlib import Path

from data.images import TURN_IT, limit_pixels, unequal
from data.lists import read_list, split_list_names, write_list
from data.masks import unpack
from data.sizes import rounded_up
from data.specs import UNLABELED, load_spec
from data.splits import hold_out
from prepare import classes, pairs
from prepare.survey import alike, image_facts, mask_facts, survey
from utils.errors import OneLineParser, UserError, reports_user_errors
from utils.files import make_folder, write_text

SPLIT, SPLIT_ID = "all", 0
LABELED, UNLABELED_LIST = split_list_names(SPLIT, SPLIT_ID)
SPEC, LISTS = "dataset.yaml", "lists"
PADDED = 1025  # images with longer sides are resized, unless the user says otherwise
CROP = 321  # the papers' on VOC
STEPS0, STEPS = 4000, 1500  # of round 0 (the papers' with 100 labels) and of every further round
DIVISORS = (2, 4, 8, 20)
_FEW = 2  # validation images
_ROWS, _WARNINGS, _NAMES = 40, 20, 5  # shown at most
_SUBSETS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
            "testing": "test"}  # what folders are called


@reports_user_errors
def main(arguments=None):
    """Look, print, write."""
    options = _parser().parse_args(arguments)
    limit_pixels(options.max_pixels)
    out = Path(options.out or Path("datasets", _name_of(options))).expanduser()
    there = next((path for path in (out / SPEC, out / LISTS) if path.exists()), None)
    if there is not None and not options.force:
        raise UserError(f"{there} is there already; give --force to replace the spec and its lists, or another --out")
    found = Found(options)
    found.print_files()
    choice = _choose_classes(found, options)
    _print_classes(found, choice)
    plan = Plan(found, choice, options)
    plan.print()
    _write(out, plan)
    warnings = [*plan.warnings, *choice.warnings, *found.warnings]
    for line in warnings[:_WARNINGS]:
        print(f"warning: {line}", file=sys.stderr)
    if warnings[_WARNINGS:]:
        print(f"warning: and {len(warnings) - _WARNINGS} more", file=sys.stderr)
    _print_next(out, plan)


def _parser():
    parser = OneLineParser(prog="python tools/new_dataset.py", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", metavar="IMAGES", type=_folder, help="folder of the images (folders below it, too)")
    parser.add_argument("masks", metavar="MASKS", type=_folder,
                        help="folder of the masks, which may be the same: PNG, TIFF, WebP or BMP, palette, greyscale "
                             "of up to 16 bits, or RGB")
    parser.add_argument("--unlabeled", metavar="DIR", type=_folder, nargs="+", default=[],
                        help="more folders of images, without masks")
    parser.add_argument("--out", metavar="DIR", help="folder for dataset.yaml and lists (default: datasets/NAME)")
    parser.add_argument("--name", type=_plain_name,
                        help="name of the dataset (default: the folder that holds all of them)")
    parser.add_argument("--val-images", metavar="DIR", type=_folder, help="folder of the validation images")
    parser.add_argument("--val-masks", metavar="DIR", type=_folder, help="and of their masks")
    parser.add_argument("--val-list", metavar="FILE", help="file with the names of the validation images, one a line")
    parser.add_argument("--val-share", metavar="X", type=_share, default=0.2,
                        help="share of the images with masks that is held out for validation (default: 0.2)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="seed of that draw (default: 0)")
    parser.add_argument("--classes", metavar="NAMES",
                        help="names of the classes in order, as in soil,crop,weed; or a file with one a line, and "
                             "behind the name its mask values or its colour where needed: 'weed 17 18', 'weed 200 0 0' "
                             "(or CVAT's labelmap.txt)")
    parser.add_argument("--background", metavar="CLASS",
                        help="the class that PLE treats as background, by name or number, or none (default: a class "
                             "with such a name, else none)")
    parser.add_argument("--ignore", metavar="V", nargs="+", default=[],
                        help="mask value of pixels without a label, or none; for RGB masks colours, as in 255,255,255 "
                             "(default: 255 where that is certain)")
    parser.add_argument("--mask-suffix", metavar="TEXT",
                        help="what the masks' names end in before the file suffix, as _mask (default: found out)")
    parser.add_argument("--resize", metavar=("H", "W"), nargs=2, type=_side,
                        help="resize images and masks to this size (default: zero-pad to the largest image, if that "
                             f"has sides up to {PADDED})")
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
        raise UserError(f"{text!r} is no height or width; give whole numbers of pixels, as in --resize 513 1025")
    return int(text)


def _root(options):
    given = [options.images, options.masks, *options.unlabeled, options.val_images, options.val_masks]
    return Path(os.path.commonpath([folder for folder in given if folder is not None]))


def _name_of(options):
    return options.name or re.sub(r"[^A-Za-z0-9._-]+", "-", _root(options).name).strip("-.") or "own"


# --- what lies in the folders -----------------------------------------------------------------------------------------


class Found:
    """The files of the folders and what they hold. ``labeled``, ``validation`` and ``unlabeled`` map names to images;
    ``validation`` is None where none is given; ``masks`` maps the names of the first two to masks."""

    def __init__(self, options):
        self.options, self.root, self.warnings, self.others = options, _root(options), [], set()
        if (options.val_images is None) != (options.val_masks is None):
            raise UserError("--val-images and --val-masks belong together; give both")
        if options.val_images and options.val_list:
            raise UserError("--val-list names images of IMAGES, --val-images is a folder of others; give one of them")
        self.training = self._paired(options.images, options.masks)
        self.given = self._paired(options.val_images, options.val_masks) if options.val_images else None
        pairings = [self.training, *([self.given] if self.given else [])]
        both = [*self.training.pairs.values(), *(self.given.pairs.values() if self.given else [])]
        self.pools = self._pools({image for image, _ in both})
        images = [*(image for image, _ in both), *self.pools.values()]
        self.image_facts = survey(image_facts, dict.fromkeys(images), "image")
        paths = list(dict.fromkeys(mask for _, mask in both if mask is not None))
        facts = survey(mask_facts, paths, "mask")
        self.by_color, facts = alike(list(facts.values()))
        self.mask_facts = dict(zip(paths, facts))
        self.masks, self.bad = {}, 0
        usable = [{name: image for name, (image, mask) in pairing.pairs.items() if self._usable(name, image, mask)}
                  for pairing in pairings]
        self.labeled = {name: image for name, image in usable[0].items() if name in self.masks}
        if not self.labeled:
            raise UserError(f"no mask of {options.masks} can be used; {self.warnings[0]}")
        self.unlabeled = {name: image for name, image in usable[0].items() if name not in self.masks}
        self.validation = None
        if self.given:
            self.validation = {name: image for name, image in usable[1].items() if name in self.masks}
            self.note(usable[1].keys() - self.validation.keys(),
                      "validation images have no mask of use and are left out")
        self._take_given_split()
        self.unlabeled |= {name: image for name, image in self.pools.items() if not self.image_facts[image].error}
        self.note([str(path) for path, fact in self.image_facts.items() if fact.turned],
                  f"images carry an orientation tag: {TURN_IT}; masks are taken to lie as the files do")

    def _paired(self, images_folder, masks_folder):
        options = self.options
        given = {options.images, options.masks, *options.unlabeled, options.val_images, options.val_masks} - {None}
        if images_folder == masks_folder:
            images, masks = pairs.apart(pairs.files_in(images_folder, given - {images_folder}), options.mask_suffix)
        else:
            images, masks = (
                pairs.files_in(folder, {other for other in given if other.is_relative_to(folder)} - {folder})
                for folder in (images_folder, masks_folder))
        for files, what in ((images, "images"), (masks, "masks")):
            if not files.stems:
                raise UserError(f"{files.folder} holds no {what} (JPEG, PNG, TIFF, WebP or BMP)"
                                + (f", but {files.others[0]}" if files.others else "") + "; give the right folder")
        self.others |= {*images.others, *masks.others}
        pairing = pairs.pair(images, masks, options.mask_suffix)
        self.note(pairing.lost, "masks belong to no image")
        return pairing

    def _pools(self, taken):
        """Dict from name to image of the folders --unlabeled; ``self.base`` is where the names begin."""
        options, images = self.options, []
        taken = {_identity(path) for path in taken}
        for folder in options.unlabeled:
            files = pairs.files_in(folder, {options.masks, options.val_masks} - {None, folder})
            if not files.stems:
                raise UserError(f"{folder} holds no images; correct --unlabeled")
            for path in (folder / name for names in files.stems.values() for name in names):
                if _identity(path) not in taken:  # the folder given twice, or IMAGES itself
                    taken.add(_identity(path))
                    images.append(path)
        self.base = options.unlabeled[0] if len(options.unlabeled) == 1 else self.root
        others = {name for name, (_, mask) in self.training.pairs.items() if mask is None}
        if any(self._pool_name(path) in others for path in images):  # one list cannot tell the two apart
            self.base = self.root
        result = {}
        for path in images:
            if (other := result.setdefault(self._pool_name(path), path)) != path:
                raise UserError(f"{other} and {path} have one name; remove or rename one of them")
        return result

    def _pool_name(self, path):
        return path.relative_to(self.base).as_posix().rpartition(".")[0]

    def _usable(self, name, image, mask):
        """Whether an image can be used, with or without its mask; what is wrong becomes a warning."""
        fact, other = self.image_facts[image], self.mask_facts.get(mask)
        errors = [file.error for file in (fact, other) if file is not None and file.error]
        if not errors and other is not None and fact.size != other.size:
            errors = [unequal(image, mask, fact.size, other.size)]
        self.warnings += [f"left out: {error}" for error in errors]
        self.bad += bool(errors)
        if not errors and mask is not None:
            if name in self.masks:
                raise UserError(f"the images {self.training.pairs[name][0]} and {image} have one name; rename one, or "
                                "link both folders into one as train and val, and their masks likewise")
            self.masks[name] = mask
        return not errors

    def _take_given_split(self):
        """Validation by --val-list, or by folders that say it."""
        if self.options.val_list:
            listed = read_list(self.options.val_list)
            lacking = [name for name in listed if name not in self.labeled]
            if lacking:
                raise UserError(f"{self.options.val_list} names {lacking[0]}, which is no image with a usable mask "
                                f"(such as {next(iter(self.labeled))}); correct the name")
            self.validation = {name: self.labeled.pop(name) for name in listed}
            return
        subset_of = {name: next((_SUBSETS[part] for part in name.lower().split("/")[:-1] if part in _SUBSETS), "train")
                     for name in [*self.labeled, *self.unlabeled]}
        held, tested, labeled, unlabeled = (
            {name: path for name, path in files.items() if subset_of[name] == subset}
            for files, subset in ((self.labeled, "val"), ({**self.labeled, **self.unlabeled}, "test"),
                                  (self.labeled, "train"), (self.unlabeled, "train")))
        if not labeled:  # the names of the folders mean something else
            return
        self.note(tested, "images in a folder for testing are left out")
        self.note([name for name in self.unlabeled if subset_of[name] == "val"],
                  "images in a folder for validation have no mask and are left out")
        self.labeled, self.unlabeled, self.validation = labeled, unlabeled, self.validation or held or None

    def note(self, items, what):
        """Warn of ``items``, texts: their number, what they are, and the first."""
        items = sorted(items)
        if items:
            self.warnings.append(f"{len(items)} {what} ({items[0]}{', ...' if items[1:] else ''})")

    @property
    def sizes(self):
        """Sizes of all images of use."""
        return [fact.size for fact in self.image_facts.values() if fact.size]

    def print_files(self):
        """The first part of the summary."""
        def row(name, text):
            print(f"{name:<12} {text}")

        options = self.options
        for pairing, images, masks in ((self.training, options.images, options.masks),
                                       (self.given, options.val_images, options.val_masks)):
            if pairing is None:
                continue
            count = sum(mask is not None for _, mask in pairing.pairs.values())
            frame = pairing.masks
            row("images", f"{len(pairing.pairs)} in {_shown(images)}")
            called = f", called {frame.head}NAME{frame.tail}" if any(frame) else ""
            row("masks", f"{count} in {_shown(masks)}{called}; {len(pairing.pairs) - count} images have none")
        if options.unlabeled:
            row("unlabelled", f"{len(self.pools)} more in --unlabeled, "
                              f"{sum(name in self.unlabeled for name in self.pools)} of use")
        for name, sides in zip(("widths", "heights"), [*zip(*self.sizes)][::-1]):
            row(name, f"{min(sides)} to {max(sides)} pixels, median {statistics.median_low(sides)}")
        for name, facts in (("image files", self.image_facts), ("mask files", self.mask_facts)):
            kinds = collections.Counter(fact.kind for fact in facts.values() if not fact.error)
            row(name, ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))
        if self.others:
            row("left aside", f"{len(self.others)} files that are no images, as {min(self.others)}")
        if self.bad:
            row("left out", f"{self.bad} files, named at the end")

    def contents(self, name):
        """Dict of the pixels of each value or colour in the mask of ``name``."""
        return self.mask_facts[self.masks[name]].counts


def _identity(path):
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _shown(path):
    """The path as short as it can be, from here."""
    return min(str(path), os.path.relpath(path), key=len)


# --- classes ----------------------------------------------------------------------------------------------------------


def _choose_classes(found, options):
    """The ``classes.Choice``, with the user's names, background and ignored values."""
    given = classes.read_classes(options.classes) if options.classes else ()
    facts = [found.mask_facts[found.masks[name]] for name in [*found.labeled, *(found.validation or ())]]
    pixels, areas, palette = collections.Counter(), set(), {}
    for fact in facts:
        pixels.update(fact.counts)
        areas |= fact.areas
        for value, color in fact.palette.items():
            if palette.setdefault(value, color) != color and not (options.ignore or options.classes):
                raise UserError(f"the palettes of the masks differ: the value {value} is {list(palette[value])} in one "
                                f"and {list(color)} in another. If the colours say the class, convert them: python "
                                f"tools/convert_rgb.py {options.masks} NEW --discover; if the values do, give --ignore "
                                "255 (or another value, or none)")
    if found.by_color:
        choice = classes.by_color(pixels, areas, given, _ignored_colors(options.ignore), options.masks)
    else:
        choice = classes.by_value(pixels, areas, palette, given, _ignored_value(options.ignore), options.masks)
    if options.background:
        names = [entry.name for entry in choice.classes]
        choice.background = _background(options.background, names)
    return choice


def _print_classes(found, choice):
    """The table of values or colours."""
    files = collections.Counter(value for name in [*found.labeled, *(found.validation or ())]
                                for value in found.contents(name))
    print(f"\n{'colour' if choice.by_color else 'value':>15} {'masks':>7} {'% of pixels':>12}  class")
    total = sum(choice.pixels.values())
    ranked = sorted(choice.pixels, key=lambda value: (choice.class_of[value], value))
    for value in ranked[:_ROWS]:
        index = choice.class_of[value]
        what = "ignored" if index == 255 else f"{index} {choice.classes[index].name}"
        shown = ",".join(map(str, unpack(value))) if choice.by_color else value
        print(f"{shown:>15} {files[value]:>7} {100 * choice.pixels[value] / total:>12.2f}  {what}")
    if ranked[_ROWS:]:
        print(f"{'...':>15} and {len(ranked) - _ROWS} more")
    print()


def _ignored_value(texts):
    if not texts:
        return "unsaid"
    text = texts[0]
    if len(texts) > 1 or not (text.isdecimal() and int(text) <= 65535 or text == "none"):
        raise UserError(f"--ignore {' '.join(texts)}: the masks hold values, so give one from 0 to 65535, or none")
    return None if text == "none" else int(text)


def _ignored_colors(texts):
    colors = []
    for text in texts:
        parts = text.split(",")
        if text == "none" and len(texts) == 1:
            return []
        if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) <= 255 for part in parts):
            raise UserError(f"--ignore {text}: the masks are RGB, so give colours, as in 255,255,255, or none")
        colors.append(tuple(int(part) for part in parts))
    return colors


def _background(text, names):
    if text == "none":
        return None
    if text in names:
        return names.index(text)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    raise UserError(f"--background {text}: give the name of a class ({', '.join(names[:12])}), its number from 0 to "
                    f"{len(names) - 1}, or none")


# --- what is made of it -----------------------------------------------------------------------------------------------


class Plan:
    """The lists, patterns and sizes of the new dataset."""

    def __init__(self, found, choice, options):
        self.found, self.choice, self.options, self.warnings = found, choice, options, []
        self.name = _name_of(options)
        own = {name: {choice.class_of[value] for value in found.contents(name)} - {255} for name in found.masks}
        self.training, self.validation = sorted(found.labeled), sorted(found.validation or ())
        if found.validation is None:
            self.validation = hold_out({name: own[name] for name in found.labeled}, options.val_share, options.seed)
            self.training = sorted(found.labeled.keys() - set(self.validation))
        self.unlabeled = self._compared()
        self._judge(own)
        self.images, self.labels = (self._patterns(which) for which in (0, 1))
        self.pool = self._pattern(found.base, pairs.Frame(), found.pools.values()) if found.pools else None
        self._choose_sizes()

    def _compared(self):
        """The names of the unlabelled images but for copies of validation images; what is there twice is said."""
        found = self.found
        images = {**found.labeled, **(found.validation or {})}

        def digests(files):
            return {found.image_facts[path].digest: path for path in files}

        training, held = (digests(images[name] for name in names) for names in (self.training, self.validation))
        unlabeled = digests(found.unlabeled.values())
        for one, others, what in (
                (held, training, "validation images are copies of training images: the figures will be too good"),
                (unlabeled, training, "unlabelled images are copies of training images"),
                (unlabeled, held, "unlabelled images are copies of validation images and are left out")):
            found.note([f"{path} of {others[digest]}" for digest, path in one.items() if digest in others], what)
        found.note([str(path) for name, path in found.unlabeled.items() if name in images
                    and found.image_facts[path].digest != found.image_facts[images[name]].digest],
                   "unlabelled images are called like images with masks, but differ")
        return sorted(name for name, path in found.unlabeled.items() if found.image_facts[path].digest not in held)

    def _judge(self, own):
        for names, what in ((self.training, "training"), (self.validation, "validation")):
            there = set().union(*(own[name] for name in names))
            if not there:
                raise UserError(f"no mask for {what} has a labelled pixel ({', '.join(names[:_NAMES])}); give others, "
                                "or correct --ignore")
            lacking = [self.choice.classes[index].name for index in sorted(set().union(*own.values()) - there)]
            if lacking:
                self.warnings.append(f"no mask for {what} has {', '.join(lacking)}; too few masks have it")
        if len(self.validation) <= _FEW:
            self.warnings.append(f"{len(self.validation)} image{'s' * (len(self.validation) != 1)} for validation: the "
                                 "best checkpoint is chosen by chance; label more, or give a larger --val-share")
        if not self.unlabeled:
            self.warnings.append("there are no unlabelled images, which the rounds learn from; give a folder of them "
                                 "with --unlabeled, or train with labels only (main.py --state=2)")

    def _pattern(self, folder, frame, files):
        return pairs.pattern(folder, self.found.root, frame, files)

    def _patterns(self, which):
        """The spec's patterns of the images (0) or the masks (1): that of training, and that of validation."""
        found, options, result = self.found, self.options, []
        for pairing, folders in ((found.training, (options.images, options.masks)),
                                 (found.given, (options.val_images, options.val_masks))):
            if pairing is not None:
                files = [pair[which] for pair in pairing.pairs.values() if pair[which] is not None]
                result.append(self._pattern(folders[which], (pairing.images, pairing.masks)[which], files))
        return list(dict.fromkeys(result))

    def _choose_sizes(self):
        sizes, given = self.found.sizes, self.options.resize
        largest = [rounded_up(max(side)) for side in zip(*sizes)]
        median = [statistics.median_low(side) for side in zip(*sizes)]
        self.test_by = "resize" if given or max(largest) > PADDED else "pad"
        scale = min(1, (PADDED - 1) / max(median))
        scaled = [rounded_up(int(side * scale)) for side in median]
        self.test_size = given or (largest if self.test_by == "pad" else scaled)
        base = self.test_size if self.test_by == "resize" else median
        self.crop = [min(CROP, max(33, int(0.85 * side) // 8 * 8 + 1)) for side in base]

    def print(self):
        """The last part of the summary."""
        options = self.options
        how = f"share {options.val_share}, seed {options.seed}" if self.found.validation is None else (
            "the folder --val-images" if options.val_images else options.val_list or "as the folders train and val say")
        names = ", ".join(self.validation[:_NAMES]) + (", ..." if self.validation[_NAMES:] else "")
        print(f"training     {len(self.training)} images with masks")
        print(f"validation   {len(self.validation)} images with masks ({how}): {names}")
        print(f"unlabelled   {len(self.unlabeled)} images")
        background = self.choice.background
        print(f"background   {'none' if background is None else self.choice.classes[background].name}", flush=True)

    def lists(self):
        """Dict from file name to names."""
        result = {"train.txt": self.training, LABELED: self.training, "val.txt": self.validation,
                  UNLABELED_LIST: self.unlabeled}
        return {name: names for name, names in result.items() if names}

    def yaml(self, out):
        """The text of the spec."""
        choice, quoted, root = self.choice, classes.quoted, str(self.found.root)
        if Path(os.path.commonpath([os.path.abspath(out), root])) != Path("/"):
            root = os.path.relpath(root, os.path.abspath(out))
        background = "none" if choice.background is None else choice.classes[choice.background].name
        images, labels = (quoted(*each) if len(each) == 1 else json.dumps(each, ensure_ascii=False)
                          for each in (self.images, self.labels))
        divisors = [divisor for divisor in DIVISORS if divisor == DIVISORS[0] or len(self.training) >= 2 * divisor]
        ignore = (f"masks: color  # the colours in the masks say the class\n"
                  f"ignore_colors: {[list(color) for color in choice.ignore_colors]}" if choice.by_color else
                  f"ignore: {'none' if choice.ignore is None else choice.ignore}  # mask value of pixels without a label")
        colors = ", and says which pixels of a mask are of the class" if choice.by_color else ""
        pool = f"unlabeled_images: {quoted(self.pool)}\n" if self.pool else ""
        if pool and self.found.base != self.found.root:
            pool += (f"# {LISTS}/{UNLABELED_LIST} lists the unlabelled images; without that file they are all of that "
                     "folder.\n")
        size = ("every image and mask is resized to it" if self.test_by == "resize" else
                "images are zero-padded to it; 'largest' looks for the largest image each time")
        return "\n".join([
            "# Written by tools/new_dataset.py, to be edited; docs/own_data.md explains every key.",
            f"name: {quoted(self.name)}",
            f"# Names and colours are yours to change; a colour is used in pictures{colors}.",
            *classes.lines(choice.classes),
            "# The class that PLE treats as background, or none:", f"background: {quoted(background)}", ignore,
            "# Below the root; .* is any suffix:", f"images: {images}", f"labels: {labels}",
            f"{pool}crop: {self.crop}  # height and width of training crops", f"test_size: {self.test_size}  # {size}",
            f"test_by: {self.test_by}", f"root: {quoted(root)}  # relative to this file",
            "lists_root: .  # this file's folder", f"lists: {LISTS}", "train_list: [train.txt]", "val_list: [val.txt]",
            f"dms_splits: [{SPLIT}]", f"divisors: {{{', '.join(f'{divisor}: {divisor}' for divisor in divisors)}}}"
            "  # splits that generate_splits.py makes"]) + "\n"


def _write(out, plan):
    """Write lists and spec beside ``out``, check that they mean the very files that were looked at, and move them."""
    make_folder(out.absolute().parent)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as folder:
        new = Path(folder)
        lists = plan.lists()
        for name, names in lists.items():
            write_list(new / LISTS / name, names)
        write_text(new / SPEC, plan.yaml(out))
        _check(load_spec(new / SPEC), plan)
        make_folder(out / LISTS)
        for path in (out / LISTS).glob(f"{SPLIT}*_{SPLIT_ID}.txt"):  # halves of the old lists, and what is empty now
            path.unlink()
        for name in [f"{LISTS}/{name}" for name in lists] + [SPEC]:
            os.replace(new / name, out / name)
    for name, names in lists.items():
        print(f"wrote      {out / LISTS / name}: {len(names)} names")
    print(f"wrote      {out / SPEC}", flush=True)


def _check(spec, plan):
    found = plan.found
    labeled = {**found.labeled, **(found.validation or {})}
    for names, subset, images in ((plan.training, "train", labeled), (plan.validation, "val", labeled),
                                  (plan.unlabeled, UNLABELED, found.unlabeled)):
        for name in names:
            files = [(spec.image_path(found.root, name, subset), images[name])]
            if images is labeled:
                files.append((spec.label_path(found.root, name, subset), found.masks[name]))
            for path, expected in files:
                if path != expected:
                    patterns = ", ".join([*plan.images, *plan.labels])
                    raise UserError(f"the patterns {patterns} mean {path} by the name {name}, "
                                    f"not {expected}; rename one of the two, or put images and masks into folders of "
                                    "their own")


def _print_next(out, plan):
    """Print the commands to go on with."""
    def here(path):
        return shlex.quote(_shown(path))

    spec, repository = shlex.quote(str(out / SPEC)), Path(__file__).resolve().parents[1]
    steps0, steps = -(-len(plan.training) // 8), max(1, -(-len(plan.unlabeled) // 7))
    ep0, ep = max(20, min(600, -(-STEPS0 // steps0))), max(4, min(100, -(-STEPS // steps)))
    program, last = here(repository / "main.py"), f"{plan.name}__p5--l"
    what = f"--dataset={spec} --train-set={SPLIT} --sets-id={SPLIT_ID}"
    print("\nNow edit the spec (names, background), and then:\n  # check every file, and what the run needs")
    print(f"  python {program} --check {what}" + ("" if plan.unlabeled else " --state=2"))
    if plan.unlabeled:
        halves = "halves=0 " if len(plan.training) < 2 else ""  # one image cannot be divided
        print("  # train on a GPU; on a CPU put backbone=small in front\n"
              f"  {halves}ep0={ep0} ep={ep} exp={plan.name} {here(repository / 'scripts' / 'dmt_ple-own.sh')} {spec}")
    else:
        last = f"{plan.name}__p0--b"
        print("  # train with labels only; on a CPU add --backbone=small --weights=none --lr=0.02\n"
              f"  python {program} --state=2 {what} --epochs={ep0} --batch-size-labeled=8 --val-num-steps=200 "
              f"--exp-name={last} --output-dir=runs/{plan.name}")
    print("  # predict\n"
          f"  python {here(repository / 'tools' / 'predict.py')} --checkpoint "
          f"{here(repository / 'runs' / plan.name / f'{last}.pt')} --out predictions {here(plan.options.images)}")
