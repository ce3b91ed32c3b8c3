"""From a folder of images and a folder of masks to a dataset spec with its lists.

    python -m tools.new_dataset photos masks
    python -m tools.new_dataset photos masks --unlabeled more_photos --classes soil,crop,weed
    python -m tools.new_dataset train/images train/masks --val-images val/images --val-masks val/masks

Looks at every file, prints what it found and what looks wrong, and writes OUT/dataset.yaml and OUT/lists. Images stay
where they are. A mask is called like its image, or has something behind that name, as X_mask.png for X.jpg. Images
without a mask are the unlabelled ones, and those of --unlabeled. Validation is what is given; else the folders called
train and val that IMAGES has (also where these hold images and masks in folders of their own); else a share of the
images with a mask, drawn so that every class stays in training where that can be. What is not certain is not guessed:
the error says which option says it. At the end stand the commands to go on with.
"""

import collections
import functools
import json
import os
import re
import shlex
import statistics
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from data.images import TURN_IT, rounded_up, unequal
from data.lists import read_list, split_list_names, write_list
from data.masks import unpack
from data.patterns import is_image, walk
from data.specs import UNLABELED, load_spec
from data.splits import hold_out
from prepare import classes
from prepare.common import add_mask_options, check_number, in_threads, refuse_existing
from prepare.pairs import image_files, pair, pattern
from prepare.survey import has_colors, image_facts, mask_facts
from utils.errors import OneLineParser, UserError, number, reports_user_errors
from utils.files import make_folder, write_text

SPLIT, SPLIT_ID = "all", 0
LABELED, UNLABELED_LIST = split_list_names(SPLIT, SPLIT_ID)
SPEC, LISTS = "dataset.yaml", "lists"
PADDED = 1025  # images with longer sides are resized
CROP = 321  # the papers' on VOC
STEPS0, STEPS = 4000, 1500  # of round 0 (the papers' with 100 labels) and of every further round
DIVISORS = (2, 4, 8, 20)
_ROWS, _WARNINGS, _NAMES = 40, 20, 5  # shown at most
_SUBSETS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
            "testing": "test"}  # what folders are called
_BY_FOLDERS = "as the folders train and val say"


class Split(NamedTuple):
    """``training`` and ``validation`` map names to (image, mask), ``unlabeled`` to images; ``how`` says who chose."""

    training: dict
    validation: dict
    unlabeled: dict
    how: str


@reports_user_errors
def main(arguments=None):
    """Look, print, write."""
    options = _parser().parse_args(arguments)
    warnings = []
    if options.images == options.masks and not (options.val_images or options.val_list):
        _take_subsets(options, warnings)
    given = [options.images, options.masks, options.unlabeled, options.val_images, options.val_masks]
    root = Path(os.path.commonpath([folder for folder in given if folder]))
    out = Path(options.out or Path("datasets", _plain(root.name))).expanduser()
    refuse_existing((out / SPEC, out / LISTS), options.force)
    pairings, pool = _find(options, warnings)
    facts, by_color = _look(pairings, pool, options.max_pixels)
    usable = [_usable(pairing, facts, warnings) for pairing in pairings]
    masks = [facts[mask] for labeled, _ in usable for _, mask in labeled.values()]
    choice, pixels = _choose_classes(masks, by_color, options, warnings)
    split = _add_pool(_split(options, usable, choice, facts, warnings), pool, facts, warnings)
    _note(warnings, [str(path) for path, fact in facts.items() if fact.turned],
          f"images carry an orientation tag: {TURN_IT}; masks are taken to lie as the files do")
    text = _spec(out, root, pairings, pool and options.unlabeled, pool, choice, len(split.training),
                 [fact.size for path, fact in facts.items() if fact.digest])
    _print(split, choice, pixels, collections.Counter(value for fact in masks for value in fact.counts))
    _write(out, root, text, split)
    for line in [*warnings[:_WARNINGS], *([f"and {len(warnings) - _WARNINGS} more"] if warnings[_WARNINGS:] else [])]:
        print(f"warning: {line}", file=sys.stderr)
    below = any("/" in name for part in split[:3] for name in part)
    _print_next(out, options.unlabeled or options.images, len(split.training), len(split.unlabeled), below)


def _parser():
    parser = OneLineParser(prog="python -m tools.new_dataset", description=__doc__)
    parser.add_argument("images", metavar="IMAGES", type=_folder, help="folder of the images (folders below it, too)")
    parser.add_argument("masks", metavar="MASKS", type=_folder,
                        help="folder of the masks: PNG, TIFF, WebP or BMP, palette, greyscale of up to 16 bits, or "
                             "RGB; where it is IMAGES, masks are what --mask-suffix says, or all that is no JPEG")
    parser.add_argument("--unlabeled", metavar="DIR", type=_folder, help="one more folder of images, without masks")
    parser.add_argument("--out", metavar="DIR", help="folder for dataset.yaml and lists, which gives the dataset its "
                        "name (default: datasets/NAME, by the folder that holds all of them)")
    validation = parser.add_mutually_exclusive_group()
    validation.add_argument("--val-images", metavar="DIR", type=_folder, help="folder of the validation images")
    parser.add_argument("--val-masks", metavar="DIR", type=_folder, help="and of their masks")
    validation.add_argument("--val-list", metavar="FILE", help="file with the names of those of IMAGES, one a line")
    parser.add_argument("--val-share", metavar="X", default=0.2,
                        type=number(float, 1e-9, "a number between 0 and 1, as in 0.2", high=1 - 1e-9),
                        help="share of the images with masks that is held out for validation (default: 0.2)")
    parser.add_argument("--classes", metavar="NAMES", type=classes.read_classes, default=(),
                        help="names of the classes in order, as in soil,crop,weed; or a file with one a line, and "
                             "behind the name its mask values or its colour where needed: 'weed 17 18', 'weed 200 0 0' "
                             "(or CVAT's labelmap.txt)")
    parser.add_argument("--ignore", metavar="V", nargs="+", default=[],
                        help="mask value of pixels without a label, or none; for RGB masks colours, as in 255,255,255 "
                             "(default: 255 where that is certain)")
    parser.add_argument("--image-suffix", metavar="TEXT", default="",
                        help="what the images' names end in before the file suffix, as _leftImg8bit (default: nothing)")
    parser.add_argument("--mask-suffix", metavar="TEXT",
                        help="what the masks' names end in before the file suffix, as _mask (default: found out)")
    parser.set_defaults(how="the folder --val-images")
    add_mask_options(parser, "an earlier spec and lists in --out")
    return parser


def _folder(text):
    if not os.path.isdir(text):
        raise UserError(f"{text} is not a folder; give the folder of the images, and then that of the masks")
    return Path(os.path.abspath(text))


def _plain(name):
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "own"


# --- what lies in the folders -----------------------------------------------------------------------------------------


def _take_subsets(options, warnings):
    """Take the split of a folder that holds train/images, train/masks, val/images and val/masks, or such names."""
    top = options.images
    places = {Path(folder).relative_to(top).parts[:2] for folder, files in walk(top) if any(map(is_image, files))
              and not (options.unlabeled and Path(folder).is_relative_to(options.unlabeled))}
    subsets = {_SUBSETS.get(place[0].lower()): place[0] for place in places if place}
    kinds = {place[1] for place in places if len(place) == 2}
    images = {kind for kind in kinds if kind.lower().startswith("im")}
    wanted = {(subsets.get(subset), kind) for subset in ("train", "val") for kind in kinds}
    if len(images) == 1 and len(kinds) == 2 and wanted <= places and all(
            place[:1] == (subsets.get("test"),) for place in places - wanted):
        options.images, options.val_images = (top / subsets[subset] / min(images) for subset in ("train", "val"))
        options.masks, options.val_masks = (top / subsets[subset] / min(kinds - images) for subset in ("train", "val"))
        options.how = _BY_FOLDERS
        if "test" in subsets:
            warnings.append(f"{top / subsets['test']}, a folder for testing, is left out")


def _find(options, warnings):
    """(list of the ``Pairing`` of IMAGES and, where it is given, that for validation; dict of --unlabeled)."""
    if (options.val_images is None) != (options.val_masks is None):
        raise UserError("--val-images and --val-masks belong together; give both")
    given = [folder for folder in (options.unlabeled, options.val_images, options.val_masks) if folder]
    pairings = [pair(options.images, options.masks, options.image_suffix, options.mask_suffix, given)]
    if options.val_images:
        pairings.append(pair(options.val_images, options.val_masks, options.image_suffix, options.mask_suffix))
    for pairing in pairings:
        count = sum(mask is not None for _, mask in pairing.pairs.values())
        called = f", called NAME{pairing.suffixes[1]}" if pairing.suffixes[1] else ""
        images, masks = map(_shown, pairing.folders)
        print(f"images       {len(pairing.pairs)} in {images}\n"
              f"masks        {count} in {masks}{called}; {len(pairing.pairs) - count} images have none")
        _note(warnings, pairing.lost, "masks belong to no image")
    pool = image_files(options.unlabeled, [options.images, options.masks, *given]) if options.unlabeled else {}
    if pool:
        print(f"unlabelled   {len(pool)} in {_shown(options.unlabeled)}")
    return pairings, pool


def _look(pairings, pool, max_pixels):
    """(dict from every file to its ``Facts``, whether the masks are read by colour)."""
    pairs = [each for pairing in pairings for each in pairing.pairs.values()]
    images = dict.fromkeys([*(image for image, _ in pairs), *pool.values()])
    masks = dict.fromkeys(mask for _, mask in pairs if mask)
    by_color = any(map(has_colors, masks))
    facts = {**in_threads(lambda path: image_facts(path, max_pixels), images, "image"),
             **in_threads(lambda path: mask_facts(path, max_pixels, by_color), masks, "mask")}
    for what, sides in zip(("heights", "widths"), zip(*(facts[path].size for path in images if facts[path].size))):
        print(f"{what:<12} {min(sides)} to {max(sides)} pixels")
    return facts, by_color


def _usable(pairing, facts, warnings):
    """(name -> (image, mask), name -> image of those without a mask); what cannot be used becomes a warning."""
    labeled, unlabeled, errors = {}, {}, []
    for name, (image, mask) in pairing.pairs.items():
        wrong = [facts[file].error for file in (image, mask) if file and facts[file].error]
        if not wrong and mask and facts[image].size != facts[mask].size:
            wrong = [unequal(image, mask, facts[image].size, facts[mask].size)]
        errors += wrong
        if not wrong:
            (labeled if mask else unlabeled)[name] = (image, mask) if mask else image
    if not labeled:
        raise UserError(f"no mask of {pairing.folders[1]} can be used; {errors[0]}")
    warnings += [f"left out: {error}" for error in errors]
    return labeled, unlabeled


def _note(warnings, items, what):
    """Warn of ``items``, texts: their number, what they are, and the first."""
    if items:
        warnings.append(f"{len(items)} {what} ({min(items)}{', ...' if len(items) > 1 else ''})")


def _shown(path):
    """The path as short as it can be, from here."""
    return min(str(path), os.path.relpath(path), key=len)


def _choose_classes(facts, by_color, options, warnings):
    """(the ``classes.Choice`` for the masks with these ``Facts``, their Counter of values or colours)."""
    pixels, areas, palette = collections.Counter(), set(), {}
    for fact in facts:
        pixels.update(fact.counts)
        areas |= fact.areas
        for value, color in fact.palette.items():
            if palette.setdefault(value, color) != color and not (by_color or options.ignore or options.classes):
                raise UserError(f"the palettes of the masks differ: the value {value} is {list(palette[value])} in one "
                                f"and {list(color)} in another. If the colours say the class, convert them: "
                                f"python -m tools.convert_rgb {options.masks} NEW --colors FILE; if the values do, "
                                "give --ignore 255 (or another value, or none)")
    texts, value = options.ignore, "unsaid"
    if by_color:
        ignored = [] if texts == ["none"] else [classes.read_color(text, "--ignore") for text in texts]
        choice = classes.by_color(pixels, areas, options.classes, ignored, options.masks)
    else:
        if texts:
            if len(texts) > 1 or not (texts[0].isdecimal() and int(texts[0]) <= 65535 or texts[0] == "none"):
                raise UserError(f"--ignore {' '.join(texts)}: the masks hold values; give one from 0 to 65535, or none")
            value = None if texts[0] == "none" else int(texts[0])
        choice = classes.by_value(pixels, areas, palette, options.classes, value, options.masks, warnings)
    check_number(choice.classes, f"{options.masks}")
    return choice, pixels


# --- which images are for what ----------------------------------------------------------------------------------------


def _split(options, usable, choice, facts, warnings):
    """The ``Split`` of the files in IMAGES and MASKS, and in the folders for validation."""
    labeled, unlabeled = (dict(part) for part in usable[0])
    if options.val_images:
        validation = usable[1][0]
        if both := validation.keys() & {*labeled, *unlabeled}:
            raise UserError(f"an image of {options.images} and one of {options.val_images} have one name, {min(both)}; "
                            "rename one, or link both folders into one as train and val, and their masks likewise")
        _note(warnings, [*usable[1][1]], "validation images have no mask and are left out")
        return Split(labeled, validation, unlabeled, options.how)
    names, how = [], _BY_FOLDERS
    subset_of = {name: next((_SUBSETS[part] for part in name.lower().split("/")[:-1] if part in _SUBSETS), "train")
                 for name in [*labeled, *unlabeled]}
    if options.val_list:
        names, how = read_list(options.val_list), options.val_list
        names = [name.rpartition(".")[0] if is_image(name) and name not in labeled else name for name in names]
        if lacking := [name for name in names if name not in labeled]:
            raise UserError(f"{options.val_list} names {lacking[0]}, which is no image with a usable mask (such as "
                            f"{next(iter(labeled))}); correct the name")
    elif "train" in (subset_of[name] for name in labeled):  # else the folders' names mean something else
        _note(warnings, [name for name, subset in subset_of.items() if subset == "test"],
              "images in a folder for testing are left out")
        _note(warnings, [name for name in unlabeled if subset_of[name] == "val"],
              "images in a folder for validation have no mask and are left out")
        names = [name for name in labeled if subset_of[name] == "val"]
        labeled = {name: files for name, files in labeled.items() if subset_of[name] != "test"}
        unlabeled = {name: path for name, path in unlabeled.items() if subset_of[name] == "train"}
    if not names:
        own = {name: {choice.class_of[value] for value in facts[mask].counts} - {255}
               for name, (_, mask) in labeled.items()}
        names, how = hold_out(own, options.val_share), f"share {options.val_share}"
    return Split(labeled, {name: labeled.pop(name) for name in names}, unlabeled, how)


def _add_pool(split, pool, facts, warnings):
    """The ``Split`` with the images of --unlabeled that open, without copies of validation images. Copies are said."""
    warnings += [f"left out: {facts[path].error}" for path in pool.values() if facts[path].error]
    pool = {name: path for name, path in pool.items() if not facts[path].error}
    for name in pool.keys() & split.unlabeled.keys():
        if facts[pool[name]].digest != facts[split.unlabeled[name]].digest:
            raise UserError(f"{split.unlabeled[name]} and {pool[name]} have one name; rename one of them")
    unlabeled = {**split.unlabeled, **pool}
    masked = {**split.training, **split.validation}
    training, validation, others = ({facts[path].digest: path for path in paths} for paths in (
        (image for image, _ in split.training.values()), (image for image, _ in split.validation.values()),
        unlabeled.values()))
    for one, other, what in (
            (validation, training, "validation images are copies of training images: the figures will be too good"),
            (others, training, "unlabelled images are copies of training images"),
            (others, validation, "unlabelled images are copies of validation images and are left out")):
        _note(warnings, [f"{path} of {other[digest]}" for digest, path in one.items() if digest in other], what)
    _note(warnings, [str(path) for name, path in unlabeled.items()
                     if name in masked and facts[path].digest != facts[masked[name][0]].digest],
          "unlabelled images are called like images with masks, but differ")
    unlabeled = {name: path for name, path in unlabeled.items() if facts[path].digest not in validation}
    return split._replace(unlabeled=unlabeled)


# --- what is printed and written --------------------------------------------------------------------------------------


def _print(split, choice, pixels, files):
    """The table of values or colours, with their ``pixels`` and the ``files`` that hold each; sizes of the lists."""
    by_color = choice.ignore_colors is not None
    print(f"\n{'colour' if by_color else 'value':>15} {'masks':>7} {'% of pixels':>12}  class")
    ranked = sorted(pixels, key=lambda value: (choice.class_of[value], value))
    for value in ranked[:_ROWS]:
        index = choice.class_of[value]
        what = "ignored" if index == 255 else f"{index} {choice.classes[index].name}"
        shown = ",".join(map(str, unpack(value))) if by_color else value
        print(f"{shown:>15} {files[value]:>7} {100 * pixels[value] / pixels.total():>12.2f}  {what}")
    if ranked[_ROWS:]:
        print(f"{'...':>15} and {len(ranked) - _ROWS} more")
    names = sorted(split.validation)
    print(f"\ntraining     {len(split.training)} images with masks\n"
          f"validation   {len(names)} images with masks ({split.how}): {', '.join(names[:_NAMES])}"
          + (", ..." if names[_NAMES:] else "")
          + f"\nunlabelled   {len(split.unlabeled)} images"
          + ("" if split.unlabeled else ", which the rounds learn from: give a folder of them with --unlabeled")
          + f"\nbackground   {choice.background}", flush=True)


def _spec(out, root, pairings, pool_folder, pool, choice, labeled, sizes):
    """The text of the spec, for ``labeled`` training images; ``sizes`` (height, width) are those of all images."""
    quoted = functools.partial(json.dumps, ensure_ascii=False)  # YAML reads it
    place = str(root)
    if Path(os.path.commonpath([os.path.abspath(out), root])) != Path("/"):
        place = os.path.relpath(root, os.path.abspath(out))
    files = []
    for which, key in enumerate(("images", "labels")):
        found = [pattern(pairing.folders[which], root, pairing.suffixes[which],
                         [each[which] for each in pairing.pairs.values() if each[which]]) for pairing in pairings]
        files.append(f"{key}: {quoted(found if len({*found}) > 1 else found[0])}")
    if pool:
        files += [f"unlabeled_images: {quoted(pattern(pool_folder, root, '', pool.values()))}",
                  f"# {LISTS}/{UNLABELED_LIST} lists the unlabelled images; without that file all of the folder are."]
    entries = [f"  - {{name: {quoted(entry.name)}, color: {list(entry.color)}"
               + (f", ids: {list(entry.ids)}}}" if entry.ids else "}") for entry in choice.classes]
    if choice.ignore_colors is not None:
        ignore = ["masks: color  # the colours in the masks say the class",
                  f"ignore_colors: {[list(color) for color in choice.ignore_colors]}"]
    else:
        value = "none" if choice.ignore is None else choice.ignore
        ignore = [f"ignore: {value}  # mask value of pixels without a label"]
    median = [statistics.median_low(side) for side in zip(*sizes)]
    test_by, test_size = "pad", [rounded_up(max(side)) for side in zip(*sizes)]
    if max(test_size) > PADDED:
        scale = min(1, (PADDED - 1) / max(median))
        test_by, median = "resize", [rounded_up(int(side * scale)) for side in median]
        test_size = median
    crop = [min(CROP, max(33, int(0.85 * side) // 8 * 8 + 1)) for side in median]
    divisors = [f"{divisor}: {divisor}" for divisor in DIVISORS if divisor == DIVISORS[0] or labeled >= 2 * divisor]
    return "\n".join([
        "# Written by tools.new_dataset, to be edited; docs/own_data.md explains every key.",
        f"name: {quoted(_plain(Path(os.path.abspath(out)).name))}",
        "# Names are yours to change, colours where masks hold values: they are used in pictures.",
        "classes:", *entries,
        "# The class that PLE treats as background, or none:", f"background: {quoted(choice.background)}", *ignore,
        "# Below the root; .* is any suffix:", *files,
        f"crop: {crop}  # height and width of training crops",
        f"test_size: {test_size}  # images are padded or resized to it, as test_by says", f"test_by: {test_by}",
        f"root: {quoted(place)}  # relative to this file", "lists_root: .  # this file's folder", f"lists: {LISTS}",
        "train_list: [train.txt]", "val_list: [val.txt]", f"dms_splits: [{SPLIT}]",
        f"divisors: {{{', '.join(divisors)}}}  # splits of generate_splits.py"]) + "\n"


def _write(out, root, text, split):
    """Write the lists and the spec, if it means the very files that were looked at."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, SPEC).write_text(text, encoding="utf-8")
        spec = load_spec(Path(folder, SPEC))
    files = [(spec.image_path(root, name, UNLABELED), path) for name, path in split.unlabeled.items()]
    for subset, part in (("train", split.training), ("val", split.validation)):
        for name, (image, mask) in part.items():
            files += [(spec.image_path(root, name, subset), image), (spec.label_path(root, name, subset), mask)]
    for path, expected in files:
        if path != expected:
            raise UserError(f"the patterns {spec.images} and {spec.labels} mean {path}, not {expected}; rename one of "
                            "the two, or put images and masks into folders of their own")
    make_folder(out / LISTS, "--out")
    for path in (out / LISTS).glob(f"{SPLIT}*_{SPLIT_ID}.txt"):  # halves of the old lists, and what is empty now
        path.unlink()
    training = sorted(split.training)
    for name, names in (("train.txt", training), (LABELED, training), ("val.txt", sorted(split.validation)),
                        (UNLABELED_LIST, sorted(split.unlabeled))):
        if names:
            write_list(out / LISTS / name, names)
            print(f"wrote        {out / LISTS / name}: {len(names)} names")
    write_text(out / SPEC, text)
    print(f"wrote        {out / SPEC}", flush=True)


def _print_next(out, images, labeled, unlabeled, below):
    """Print the commands to go on with, for these numbers of images; ``below``: some lie in folders below."""
    def here(path):
        return shlex.quote(_shown(path))

    name, repository = _plain(Path(os.path.abspath(out)).name), Path(__file__).resolve().parents[1]
    python = here(sys.executable)
    spec, program, last = shlex.quote(str(out / SPEC)), here(repository / "main.py"), f"{name}__p5--l"
    steps0, steps = -(-labeled // 8), max(1, -(-unlabeled // 7))
    ep0, ep = max(20, min(600, -(-STEPS0 // steps0))), max(4, min(100, -(-STEPS // steps)))
    what = f"--dataset={spec} --train-set={SPLIT} --sets-id={SPLIT_ID}"
    print("\nNow edit the spec (names, background), and then:\n  # check every file, and what the run needs")
    print(f"  {python} {program} --check {what}" + ("" if unlabeled else " --state=2"))
    if unlabeled:
        halves = "halves=0 " if labeled < 2 else ""  # one image cannot be divided
        print("  # train on a GPU; on a CPU add backbone=small\n"
              f"  {here(repository / 'scripts' / 'dmt_ple-own.sh')} {spec} {halves}ep0={ep0} ep={ep} exp={name}")
    else:
        last = f"{name}__p0--b"
        print("  # train with labels only; on a CPU add --backbone=small --weights=none --lr=0.02\n"
              f"  {python} {program} --state=2 {what} --epochs={ep0} --batch-size-labeled=8 --val-num-steps=200 "
              f"--exp-name={last} --output-dir={here(repository / 'runs' / name)}")
    print("  # predict\n"
          f"  {python} {here(repository / 'tools' / 'predict.py')} --checkpoint "
          f"{here(repository / 'runs' / name / f'{last}.pt')} --out predictions {'--recursive ' if below else ''}"
          f"{here(images)}")
