"""COCO annotations (polygons and RLE) to palette masks, one class number a pixel.

    python tools/convert_coco.py instances.json masks
    python tools/new_dataset.py photos masks --classes masks/classes.txt

Every annotated image gets a mask OUT/NAME.png, NAME being its file_name without the suffix. Class 0 is the background,
the categories follow in the order of their ids. Where objects overlap, the smaller one lies on top. Crowds (iscrowd),
and the boxes of objects without an outline, become 255: ignored. Some tools (CVAT) mark every mask as a crowd: --crowds
says what they are then. Images without annotations get no mask, so they count as unlabelled; --empty says that nothing
is on them. OUT/classes.yaml is the block for a dataset spec (docs/own_data.md), OUT/classes.txt the same for
tools/new_dataset.py --classes.
"""

import argparse
import collections
import json
import os
from pathlib import Path

import numpy as np

from data import lists, png
from prepare import classes as class_table
from prepare.classes import Class, color_of
from utils.console import progress_bar
from utils.errors import OneLineParser, UserError, reports_user_errors
from utils.files import make_folder, sync, write_bytes, write_text

IGNORED = 255
MOST = 254  # categories, beside the background
_BLOCK, _NAMES = "classes.yaml", "classes.txt"


@reports_user_errors
def main(arguments=None):
    """Check all annotations, then paint mask by mask."""
    options = _parser().parse_args(arguments)
    coco = Annotations(options)
    out = Path(options.out)
    targets = {image: out / f"{name}.png" for image, name in coco.names.items() if options.empty or coco.objects[image]}
    there = next((path for path in [*targets.values(), out / _BLOCK, out / _NAMES] if path.exists()), None)
    if there is not None and not options.force:
        raise UserError(f"{there} is there already; give --force to replace it, or another OUT")
    if not targets:
        raise UserError(f"{options.annotations} has no annotation; nothing to convert")
    palette, pixels = png.palette_of([entry.color for entry in coco.classes]), collections.Counter()
    for image in progress_bar("masks", "mask")(list(targets)):
        mask = coco.mask(image)
        pixels.update(dict(enumerate(np.bincount(mask.ravel(), minlength=256).tolist())))
        make_folder(targets[image].parent)
        write_bytes(targets[image], png.palette_png(mask, palette), durable=False)
    sync()
    background = "none" if options.background == "none" else class_table.quoted(options.background)
    write_text(out / _NAMES, "".join(f"{entry.name}: {index}\n" for index, entry in enumerate(coco.classes)))
    write_text(out / _BLOCK, "\n".join([*class_table.lines(coco.classes), f"background: {background}",
                                        f"ignore: {IGNORED}", ""]))
    coco.print(pixels)
    left = len(coco.names) - len(targets)
    if left:
        print(f"{left} images without annotations got no mask (--empty makes empty ones)")
    print(f"{len(targets)} masks in {options.out}, classes in {out / _BLOCK} and {out / _NAMES}")


def _parser():
    parser = OneLineParser(prog="python tools/convert_coco.py", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", metavar="ANNOTATIONS.json", help="file with images, annotations and categories")
    parser.add_argument("out", metavar="OUT", help="folder for the masks")
    parser.add_argument("--background", default="background", metavar="NAME",
                        help="name of class 0, all pixels of no object (a category of that name is the same class); "
                             "none: those pixels are ignored, and the classes begin with the first category (default: "
                             "background)")
    parser.add_argument("--crowds", choices=("ignore", "objects"),
                        help="what annotations with iscrowd 1 become (default: ignored; refused where all are such)")
    parser.add_argument("--empty", action="store_true", help="make masks of background for images without annotations")
    parser.add_argument("--max-pixels", metavar="N", type=int, default=100_000_000,
                        help="refuse images with more pixels than this (default: 100000000)")
    parser.add_argument("--force", action="store_true", help="replace masks that are in OUT already")
    return parser


class Annotations:
    """The checked content of an annotation file: ``names`` of the images by id, ``objects`` of each, ``classes``."""

    def __init__(self, options):
        self._path, self._background, self._crowds = options.annotations, options.background, options.crowds
        try:
            content = json.loads(Path(self._path).read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise self._error(f"it cannot be read: {error.strerror or error}; give the annotation file") from error
        except (ValueError, RecursionError) as error:
            raise self._error(f"it is not valid JSON ({error!s:.120}); give a COCO annotation file") from error
        for key in ("images", "annotations", "categories"):
            entries = content.get(key) if isinstance(content, dict) else None
            if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
                raise self._error(f"the key {key!r} is missing, or no list of objects: it holds no COCO annotations, "
                                  "which have images, annotations and categories")
        self._read_categories(content["categories"])
        self._read_images(content["images"], options.max_pixels)
        self._read_annotations(content["annotations"])

    def _error(self, what):
        return UserError(f"{self._path}: {what}")

    def _value(self, entry, key, what, kinds=(int,)):
        value = entry.get(key)
        if isinstance(value, bool) or not isinstance(value, kinds):
            found = "has no" if key not in entry else f"has {value!r:.60} as its"
            raise self._error(f"{what} {found} {key!r}; correct the file, or export it again")
        return value

    def _read_categories(self, categories):
        names = {}
        for place, category in enumerate(categories):
            number = self._value(category, "id", f"categories[{place}]")
            name = self._value(category, "name", f"the category {number}", (str,)).strip()
            if number in names or name in names.values() or not name or not name.isprintable():
                raise self._error(f"the category {number} ({name!r:.60}) is there twice, by its id or its name, or has "
                                  "no name of one line")
            names[number] = name
        if not 1 <= len(names) <= MOST:
            raise self._error(f"it has {len(names)} categories; 1 to {MOST} are possible")
        own = [] if self._background == "none" else [self._background]
        own += [names[number] for number in sorted(names) if names[number] != self._background]
        if len(own) < 2:
            raise self._error("one category without a background is one class only; leave --background none out")
        self.classes = [Class(name, color_of(index)) for index, name in enumerate(own)]
        self._class_of = {number: own.index(name) for number, name in names.items()}

    def _read_images(self, images, max_pixels):
        self.names, self._sizes, self.objects = {}, {}, {}
        for place, image in enumerate(images):
            number = self._value(image, "id", f"images[{place}]", (int, str))
            what = f"the image {number!r:.60}"
            file_name = self._value(image, "file_name", what, (str,))
            name = os.path.splitext(file_name)[0]
            if number in self.names or name in self.names.values():
                raise self._error(f"{what} is there twice, by its id or its name {name!r:.80}; rename one")
            if wrong := lists.fault_of_written(name):
                raise self._error(f"{what} has the file_name {file_name!r:.80}, which {wrong}; give a path below the "
                                  "folder of the images")
            height, width = (self._value(image, key, what) for key in ("height", "width"))
            if min(height, width) < 1 or height * width > max_pixels:
                raise self._error(f"{what} ({file_name!r:.80}) is {width} x {height} pixels, of which 1 to {max_pixels} "
                                  "are possible; correct width and height, or give --max-pixels")
            self.names[number], self._sizes[number], self.objects[number] = name, (height, width), []

    def _read_annotations(self, annotations):
        crowds = 0
        for place, annotation in enumerate(annotations):
            what = f"the annotation {annotation.get('id', f'annotations[{place}]')!r:.60}"
            image = self._value(annotation, "image_id", what, (int, str))
            category = self._value(annotation, "category_id", what)
            for number, known, key in ((image, self.names, "images"), (category, self._class_of, "categories")):
                if number not in known:
                    raise self._error(f"{what} is of {number!r:.60}, which {key!r} does not have")
            crowd = annotation.get("iscrowd", 0)
            if crowd not in (0, 1):
                raise self._error(f"{what} has {crowd!r:.60} as its 'iscrowd'; it must be 0 or 1")
            crowds += crowd
            outline = self._outline(annotation, what, self._sizes[image])
            ignored = crowd and self._crowds != "objects" or not annotation["segmentation"]
            self.objects[image].append((IGNORED if ignored else self._class_of[category], outline))
        if crowds and crowds == len(annotations) and self._crowds is None:
            raise self._error(f"all {crowds} annotations are crowds (iscrowd 1), as CVAT marks every mask; give "
                              "--crowds objects if they are objects, or --crowds ignore")

    def _outline(self, annotation, what, size):
        """What pycocotools decodes: a list of polygons, or an RLE. It trusts its input, so that is checked here."""
        outline = self._value(annotation, "segmentation", what, (list, dict))
        if isinstance(outline, dict):
            counts = outline.get("counts")
            counts = _runs(counts) if isinstance(counts, str) else counts
            whole = isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts)
            if outline.get("size") != list(size) or not whole or sum(counts) != size[0] * size[1]:
                raise self._error(f"the RLE of {what} is damaged: its size must be {list(size)} (height, width), that "
                                  f"of the image, and its counts add up to the {size[0] * size[1]} pixels")
            return {"size": list(size), "counts": counts}
        if not outline:  # nothing is known but where it is
            left, top, width, height = self._numbers(
                annotation.get("bbox"), f"the 'bbox' of {what}, which has no outline,", size, 4)
            return [[left, top, left + width, top, left + width, top + height, left, top + height]]
        return [self._numbers(polygon, f"a polygon of {what}", size) for polygon in outline]

    def _numbers(self, values, what, size, count=None):
        """A list of pairs x, y, not far outside of the image: there pycocotools would need millions of points."""
        if (not isinstance(values, list) or not all(type(value) in (int, float) for value in values)
                or (len(values) != count if count else len(values) < 6 or len(values) % 2)
                or not np.abs(np.array(values, float)).max() <= 3 * max(size)):
            raise self._error(f"{what} is {values!r:.60}; it must be a list of {count or 'at least 6, in pairs x, y,'} "
                              f"numbers in or near the image of {size[1]} x {size[0]} pixels")
        return values

    def mask(self, image):
        """The mask of an image, (H, W) uint8 of classes, 255 where it is ignored."""
        from pycocotools import mask as coco  # compiled, and not needed for --help

        height, width = self._sizes[image]
        mask = np.full((height, width), IGNORED if self._background == "none" else 0, np.uint8)
        painted = []
        for place, (value, outline) in enumerate(self.objects[image]):
            encoded = coco.frPyObjects(outline, height, width)
            encoded = coco.merge(encoded) if isinstance(encoded, list) else encoded
            painted.append((value != IGNORED, -int(coco.area(encoded)), place, value, encoded))
        for *_, value, encoded in sorted(painted, key=lambda item: item[:3]):  # crowds first, then from large to small
            mask[coco.decode(encoded).astype(bool)] = value
        return mask

    def print(self, pixels):
        """The table of classes; ``pixels`` counts the pixels of each."""
        objects = collections.Counter(value for own in self.objects.values() for value, _ in own)
        category_of = {index: number for number, index in self._class_of.items()}
        print(f"{'class':>5} {'category':>8} {'objects':>8} {'% of pixels':>12}  name")
        for index, name in [*enumerate(entry.name for entry in self.classes), (IGNORED, "(ignored)")]:
            print(f"{index:>5} {category_of.get(index, '-'):>8} {objects[index]:>8} "
                  f"{100 * pixels[index] / pixels.total():>12.2f}  {name}")


def _runs(text):
    """The lengths in a compressed RLE, six bits a character, of which five count. pycocotools does not check them."""
    counts, number, shift = [], 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return None
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            number -= (bits & 16) << (shift - 4)
            counts.append(number + counts[-2] if len(counts) > 2 else number)
            number = shift = 0
    return None if shift else counts
