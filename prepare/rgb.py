"""RGB-coloured masks to palette masks, one class number a pixel.

    python tools/convert_rgb.py colored masks --colors colors.txt     (lines such as weed 200 0 0; CVAT's labelmap.txt)
    python tools/convert_rgb.py colored masks --spec weeds.yaml       (the colours of its classes)
    python tools/convert_rgb.py colored masks --discover              (a class for every colour that is there)

Every mask below the first folder becomes a PNG of the same name below the second one, with the classes' colours as its
palette and 255 for pixels without a label. Colours of no class are an error, which lists them with their numbers of
pixels; --ignore says which of them mean "no label", and --tolerance takes the nearest class instead, for masks that
were saved as JPEG or with soft edges. OUT/classes.yaml is the block for a dataset spec (docs/own_data.md). Masks
whose colours are exact need no conversion: 'masks: color' in the spec reads them as they are.
"""

import argparse
import collections
import os
from pathlib import Path

import numpy as np

from data import images, masks, png
from data.specs import load_spec
from prepare.classes import Class, lines, read_colors
from prepare.common import in_parallel
from prepare.pairs import files_in
from utils.errors import OneLineParser, UserError, reports_user_errors
from utils.files import make_folder, sync, write_bytes, write_text

IGNORED = 255
MOST = 254
_LISTED = 8  # unknown colours in the error
_BLOCK = "classes.yaml"


@reports_user_errors
def main(arguments=None):
    """Look at the colours of all masks, decide, and only then write."""
    options = _parser().parse_args(arguments)
    images.limit_pixels(options.max_pixels)
    source, out = Path(os.path.abspath(options.masks)), Path(os.path.abspath(options.out))
    if source == out or out in source.parents:
        raise UserError(f"OUT is {out}, which holds the masks to be converted; give another folder")
    if not source.is_dir():
        raise UserError(f"{source} is not a folder; give the folder of the coloured masks")
    targets = _targets(files_in(source, [out]), out, options.force)
    pixels, files, first = _all_colors(targets)
    classes, ignored, others = _classes(options, pixels)
    table = _table(pixels, classes, ignored, options.tolerance)
    unknown = [color for color in pixels if color not in table]
    if unknown and not others:
        raise _unknown(unknown, pixels, files, first)
    palette = png.palette_of([entry.color for entry in classes])
    for folder in {target.parent for target in targets.values()}:
        make_folder(folder)

    def convert(path):
        numbers, places = np.unique(_packed(path), return_inverse=True)
        values = np.array([table.get(color, IGNORED) for color in numbers.tolist()], np.uint8)
        write_bytes(targets[path], png.palette_png(values[places].reshape(places.shape), palette), durable=False)

    for _ in in_parallel(convert, list(targets), "masks", "mask"):
        pass
    sync()
    write_text(out / _BLOCK, "\n".join(lines(classes)) + f"\nignore: {IGNORED}\n")
    _print_table(classes, table, pixels, others and unknown)
    print(f"{len(targets)} masks in {options.out}, classes in {Path(options.out, _BLOCK)}")


def _parser():
    parser = OneLineParser(prog="python tools/convert_rgb.py", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("masks", metavar="MASKS", help="folder of the coloured masks (folders below it, too)")
    parser.add_argument("out", metavar="OUT", help="folder for the palette masks")
    colors = parser.add_mutually_exclusive_group(required=True)
    colors.add_argument("--spec", metavar="SPEC",
                        help="take the classes of this dataset: a YAML file, or voc, city, camvid, voc-animals")
    colors.add_argument("--colors", metavar="FILE", help="take the classes of this file, in order: lines 'name r g b'")
    colors.add_argument("--discover", action="store_true",
                        help=f"make a class of every colour, black first, then by pixels; at most {MOST}")
    parser.add_argument("--ignore", metavar="R,G,B", nargs="+", default=[],
                        help="colours of pixels without a label, as 255,255,255; 'others' for all colours of no class")
    parser.add_argument("--tolerance", metavar="N", type=float, default=0.0,
                        help="take the nearest class up to this distance between colours (root of the squared "
                             "differences; default: 0, only exact colours); 60 suits JPEG of strong colours")
    parser.add_argument("--max-pixels", metavar="N", type=int, default=100_000_000,
                        help="refuse masks with more pixels than this (default: 100000000)")
    parser.add_argument("--force", action="store_true", help="replace masks that are in OUT already")
    return parser


def _targets(files, out, force):
    """Dict from mask to the PNG that it becomes."""
    targets = {}
    for stem, paths in files.stems.items():
        if len(paths) > 1:
            raise UserError(f"{files.folder / paths[0]} and {files.folder / paths[1]} would be one mask; remove one")
        targets[files.folder / paths[0]] = out / f"{stem}.png"
    if not targets:
        raise UserError(f"{files.folder} holds no masks (PNG, TIFF, WebP, BMP or JPEG); give the folder of the "
                        "coloured masks")
    there = next((target for target in [*targets.values(), out / _BLOCK] if target.exists()), None)
    if there is not None and not force:
        raise UserError(f"{there} is there already; give --force to replace it, or another OUT")
    return targets


def _packed(path):
    images.image_size(path)  # refuses what claims to be too large
    try:
        return masks.colors(path, path.read_bytes())
    except OSError as error:
        raise UserError(f"the mask {path} cannot be read: {error.strerror or error}") from error


def _all_colors(targets):
    """(Counter of pixels, Counter of masks, first mask) of each colour, packed, that the masks have."""
    pixels, files, first = collections.Counter(), collections.Counter(), {}
    looked = in_parallel(lambda path: np.unique(_packed(path), return_counts=True), list(targets), "masks", "mask")
    for path, (numbers, counts) in zip(targets, looked):
        for color, count in zip(numbers.tolist(), counts.tolist()):
            pixels[color] += count
            files[color] += 1
            first.setdefault(color, path)
    return pixels, files, first


def _classes(options, pixels):
    """(list of ``Class`` with its mask colours in ``colors``, packed colours that are ignored, whether others are)."""
    ignored, others = set(), "others" in options.ignore
    for text in options.ignore:
        parts = text.split(",")
        if len(parts) == 3 and all(part.strip().isdecimal() and int(part) <= 255 for part in parts):
            ignored.add(masks.pack([int(part) for part in parts]))
        elif text != "others":
            raise UserError(f"--ignore {text}: give a colour as in 255,255,255, or others")
    if not 0 <= options.tolerance < 442:
        raise UserError(f"--tolerance {options.tolerance}: distances between colours go from 0 to 441")
    if options.discover:
        return _discovered(pixels, ignored, options.tolerance), ignored, others
    if options.colors:
        if not Path(options.colors).is_file():
            raise UserError(f"--colors {options.colors}: there is no such file; it has one class a line, as in "
                            "'weed 200 0 0'")
        classes = read_colors(options.colors)
        if not 2 <= len(classes) <= MOST:
            raise UserError(f"{options.colors} lists {len(classes)} classes; 2 to {MOST} are possible")
        return classes, ignored, others
    spec = load_spec(options.spec)
    colors = collections.defaultdict(list)
    for color, index in spec.mask_colors or ((color, index) for index, color in enumerate(spec.palette)):
        if index == IGNORED:
            ignored.add(masks.pack(color))
        else:
            colors[index].append(color)
    classes = [Class(name, spec.palette[index], colors=tuple(colors[index]))
               for index, name in enumerate(spec.class_names)]
    return classes, ignored, others or bool(spec.ignore_other_colors)


def _discovered(pixels, ignored, tolerance):
    """A class for each colour; one that is near to a more frequent one belongs to that."""
    kept = []
    for color in sorted((color for color in pixels if color not in ignored), key=lambda color: (-pixels[color], color)):
        if not kept or _distances([color], kept).min() > tolerance:
            kept.append(color)
            if len(kept) > MOST:
                raise UserError(f"the masks hold more than {MOST} "
                                f"colours{' that differ by more than --tolerance' * (tolerance > 0)}; they are blurred "
                                "or JPEG: give --tolerance 60, say, or list the classes with --colors")
    kept.sort(key=lambda color: (color != 0, -pixels[color], color))
    colors = [tuple(masks.unpack(color)) for color in kept]
    return [Class(f"class_{index}", color, colors=(color,)) for index, color in enumerate(colors)]


def _distances(colors, others):
    """(len(colors), len(others)) float32: how far packed colours are from one another."""
    one, other = (np.array([masks.unpack(color) for color in some], np.float32) for some in (colors, others))
    return np.sqrt(((one[:, None] - other[None]) ** 2).sum(-1))


def _table(pixels, classes, ignored, tolerance):
    """Dict from every packed colour of the masks that is known to its class, 255 where it is ignored."""
    known = {masks.pack(color): index for index, entry in enumerate(classes) for color in entry.colors}
    known.update(dict.fromkeys(ignored, IGNORED))
    table = {color: known[color] for color in pixels if color in known}
    choices, far = sorted(known), [color for color in pixels if color not in known]
    for start in range(0, len(far) if tolerance > 0 else 0, 4096):
        part = far[start : start + 4096]
        distances = _distances(part, choices)
        nearest = distances.argmin(1)
        table.update({color: known[choices[place]] for color, place, row in zip(part, nearest, distances)
                      if row[place] <= tolerance})
    return table


def _unknown(unknown, pixels, files, first):
    unknown = sorted(unknown, key=lambda color: (-pixels[color], color))
    parts = [f"{masks.unpack(color)} in {files[color]} mask{'s' * (files[color] != 1)}, {pixels[color]} pixels (first "
             f"in {first[color]})" for color in unknown[:_LISTED]]
    more = f"; and {len(unknown) - _LISTED} more" if unknown[_LISTED:] else ""
    share = 100 * sum(pixels[color] for color in unknown) / pixels.total()
    return UserError(f"{len(unknown)} colour{'s' * (len(unknown) != 1)} of no class, {share:.2f} % of the pixels: "
                     f"{'; '.join(parts)}{more}. Add them to the classes, to --ignore (or --ignore others), or take "
                     "the nearest class with --tolerance; nothing was written")


def _print_table(classes, table, pixels, lost):
    counts = collections.Counter()
    for color, count in pixels.items():
        counts[table.get(color, IGNORED)] += count
    print(f"{'class':>5} {'colour':>12} {'% of pixels':>12}  name")
    rows = [(index, ",".join(map(str, entry.color)), entry.name) for index, entry in enumerate(classes)]
    for index, color, name in [*rows, (IGNORED, "", "(ignored)")]:
        print(f"{index:>5} {color:>12} {100 * counts[index] / pixels.total():>12.2f}  {name}")
    if lost:
        print(f"{len(lost)} colours of no class were ignored")
