"""Coloured masks that are not exact to palette masks, one class number a pixel.

    python -m tools.convert_rgb colored masks --colors colors.txt --tolerance 60

Every mask below the first folder becomes a PNG of the same name below the second one, with the classes' colours as its
palette and 255 for pixels without a label. The file of colours has one class a line, as in weed 200 0 0, or is CVAT's
labelmap.txt. Colours of no class are an error, which lists them with their shares; --ignore says which of them mean "no
label", and --tolerance takes the nearest class instead, for masks that were saved as JPEG or with soft edges. OUT gets
classes.txt, for python -m tools.new_dataset --classes. Masks whose colours are exact need no conversion.
"""

import collections
import os
from pathlib import Path

import numpy as np
from scipy.spatial import KDTree

from data import images, masks
from data.masks import IGNORED, write_palette_png
from prepare.classes import colors_of, read_classes, read_color
from prepare.common import add_mask_options, check_number, finish_masks, in_threads, refuse_existing
from prepare.pairs import image_files
from utils.errors import OneLineParser, UserError, number, reports_user_errors

_LISTED = 8  # unknown colours in the error


@reports_user_errors
def main(arguments=None):
    """Look at the colours of all masks, decide, and only then write."""
    options = _parser().parse_args(arguments)
    source, out = Path(os.path.abspath(options.masks)), Path(os.path.abspath(options.out))
    if source == out or out in source.parents:
        raise UserError(f"OUT is {out}, which holds the masks to be converted; give another folder")
    if not source.is_dir():
        raise UserError(f"{source} is not a folder; give the folder of the coloured masks")
    targets = {path: out / f"{name}.png" for name, path in image_files(source, [out]).items()}
    refuse_existing([*targets.values(), out / "classes.txt"], options.force)
    classes = colors_of(read_classes(options.colors), options.colors)
    check_number(classes, options.colors)
    pixels, first = collections.Counter(), {}

    def look(path):
        images.image_size(path, options.max_pixels)  # refuses what claims to be too large
        return np.unique(masks.colors(path, path.read_bytes()), return_counts=True)

    for path, (numbers, counts) in in_threads(look, targets, "mask").items():
        for color, count in zip(numbers.tolist(), counts.tolist()):
            pixels[color] += count
            first.setdefault(color, path)
    table = _table(pixels, first, classes, options)

    def convert(path):
        numbers, places = np.unique(masks.colors(path, path.read_bytes()), return_inverse=True)
        values = np.array([table[color] for color in numbers.tolist()], np.uint8)
        write_palette_png(targets[path], values[places].reshape(places.shape), [entry.color for entry in classes])

    in_threads(convert, targets, "mask")
    counts = collections.Counter()
    for color, count in pixels.items():
        counts[table[color]] += count
    finish_masks(Path(options.out), targets, [entry.name for entry in classes], counts)


def _parser():
    parser = OneLineParser(prog="python -m tools.convert_rgb", description=__doc__)
    parser.add_argument("masks", metavar="MASKS", help="folder of the coloured masks (folders below it, too)")
    parser.add_argument("out", metavar="OUT", help="folder for the palette masks")
    parser.add_argument("--colors", metavar="FILE", required=True,
                        help="file with the classes in order, in lines 'name r g b'")
    parser.add_argument("--ignore", metavar="R,G,B", nargs="+", default=[],
                        help="colours of pixels without a label, as 255,255,255; 'others' for all colours of no class")
    parser.add_argument("--tolerance", metavar="N", default=0.0,
                        type=number(float, 0, "a distance between colours, from 0 to 441", high=442),
                        help="take the nearest class up to this distance between colours (root of the squared "
                             "differences; default: 0, only exact colours); 60 suits JPEG of strong colours")
    add_mask_options(parser, "masks that are in OUT already")
    return parser


def _table(pixels, first, classes, options):
    """Dict from every packed colour in ``pixels`` to its class, 255 where it is ignored; ``first`` has a mask of each.

    Raises ``UserError`` for colours that are neither.
    """
    values = {entry.color: index for index, entry in enumerate(classes)}
    values.update({read_color(text, "--ignore"): IGNORED for text in options.ignore if text != "others"})
    distances, places = KDTree(list(values)).query([masks.unpack(color) for color in pixels])
    known = list(values.values())
    table = {color: known[place] for color, place, distance in zip(pixels, places, distances)
             if distance <= options.tolerance}
    unknown = sorted(pixels.keys() - table.keys(), key=lambda color: (-pixels[color], color))
    if unknown and "others" not in options.ignore:
        parts = [f"{masks.unpack(color)}, {pixels[color]} pixels (first in {first[color]})"
                 for color in unknown[:_LISTED]]
        share = 100 * sum(pixels[color] for color in unknown) / pixels.total()
        raise UserError(f"{len(unknown)} colour{'s' * (len(unknown) != 1)} of no class, {share:.2f} % of the pixels: "
                        f"{'; '.join(parts)}{f'; and {len(unknown) - _LISTED} more' if unknown[_LISTED:] else ''}. Add "
                        "them to the classes, to --ignore (or --ignore others), or take the nearest class with "
                        "--tolerance; nothing was written")
    return {**table, **dict.fromkeys(unknown, IGNORED)}
