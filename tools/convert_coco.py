#!/usr/bin/env python3
"""COCO annotations (polygons and RLE) to palette masks, one class number a pixel.

    python tools/convert_coco.py instances.json masks
    python tools/new_dataset.py photos masks --classes masks/classes.txt

Every annotated image gets a mask OUT/NAME.png, NAME being its file_name without the suffix. Class 0 is the background,
the categories follow in the order of their ids. Where objects overlap, the smaller one lies on top. Crowds (iscrowd),
and the boxes of objects without an outline, become 255: ignored. Images without annotations get no mask, so they count
as unlabelled; --empty says that nothing is on them. OUT/classes.yaml is the block for a dataset spec
(docs/dataset_spec.md), OUT/classes.txt the same for tools/new_dataset.py --classes.
"""

import argparse
import collections
import json
import math
import os
import sys
from pathlib import Path

if not __package__:  # started by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402

from data import lists, png  # noqa: E402
from tools import class_table  # noqa: E402
from tools.class_table import Class, color_of  # noqa: E402
from utils.console import progress_bar  # noqa: E402
from utils.errors import OneLineParser, UserError, reports_user_errors  # noqa: E402
from utils.files import make_folder, sync, write_bytes, write_text  # noqa: E402

IGNORED = 255
MOST = 254  # categories, beside the background
_BLOCK, _NAMES = "classes.yaml", "classes.txt"
_FIRST, _SHIFT = 48, 5  # of COCO's compressed RLE: the first character, bits of a number in one


@reports_user_errors
def main(arguments=None):
    """Check all annotations, then paint mask by mask."""
    options = _parser().parse_args(arguments)
    dataset = Annotations(options.annotations, options)
    out = Path(options.out)
    targets = {image: out / f"{name}.png" for image, name in dataset.names.items()
               if options.empty or dataset.objects[image]}
    there = next((path for path in [*targets.values(), out / _BLOCK, out / _NAMES] if path.exists()), None)
    if there is not None and not options.force:
        raise UserError(f"{there} is there already; give --force to replace it, or another OUT")
    if not targets:
        raise UserError(f"{options.annotations} has no annotation; nothing to convert")
    palette = png.palette_of([entry.color for entry in dataset.classes])
    pixels = collections.Counter()
    for image in progress_bar("masks", "mask")(list(targets)):
        mask = dataset.mask(image)
        pixels.update(dict(zip(*(part.tolist() for part in np.unique(mask, return_counts=True)))))
        make_folder(targets[image].parent)
        write_bytes(targets[image], png.palette_png(mask, palette), durable=False)
    sync()
    block = "\n".join(class_table.lines(dataset.classes))
    background = "none" if options.background == "none" else class_table.quoted(options.background)
    write_text(out / _NAMES, "".join(f"{entry.name}: {index}\n" for index, entry in enumerate(dataset.classes)))
    write_text(out / _BLOCK, f"{block}\nbackground: {background}\nignore: {IGNORED}\n")
    dataset.print(pixels)
    left = len(dataset.names) - len(targets)
    if left:
        print(f"{left} images without annotations got no mask (--empty makes empty ones)")
    print(f"{len(targets)} masks in {options.out}, classes in {out / _BLOCK} and {out / _NAMES}")


def _parser():
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", metavar="ANNOTATIONS.json", help="file with images, annotations and categories")
    parser.add_argument("out", metavar="OUT", help="folder for the masks")
    parser.add_argument("--background", default="background", metavar="NAME",
                        help="name of class 0, all pixels of no object (a category of that name is the same class); "
                             "none: those pixels are ignored, and the classes begin with the first category (default: "
                             "background)")
    parser.add_argument("--empty", action="store_true", help="make masks of background for images without annotations")
    parser.add_argument("--max-pixels", metavar="N", type=int, default=100_000_000,
                        help="refuse images with more pixels than this (default: 100000000)")
    parser.add_argument("--force", action="store_true", help="replace masks that are in OUT already")
    return parser


class Annotations:
    """The checked content of an annotation file: ``names`` of the images by id, ``objects`` of each, ``classes``."""

    def __init__(self, path, options):
        self._path, self._background = path, options.background
        content = _read(path)
        if not isinstance(content, dict):
            raise self._error("it holds no COCO annotations: the file must be an object with images, annotations and "
                              "categories")
        images, annotations, categories = (self._entries(content, key)
                                           for key in ("images", "annotations", "categories"))
        self._read_categories(categories)
        self._read_images(images, options.max_pixels)
        self._read_annotations(annotations)

    def _error(self, what):
        return UserError(f"{self._path}: {what}")

    def _entries(self, content, key):
        entries = content.get(key)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise self._error(f"the key {key!r} {'is missing' if key not in content else 'is no list of objects'}; "
                              "COCO annotations have images, annotations and categories")
        return entries

    def _value(self, entry, key, what, kinds=(int,)):
        value = entry.get(key)
        if key not in entry or isinstance(value, bool) or not isinstance(value, kinds):
            found = "has no" if key not in entry else f"has {value!r:.60} as its"
            raise self._error(f"{what} {found} {key!r}; correct the file, or export it again")
        return value

    def _read_categories(self, categories):
        names = {}
        for place, category in enumerate(categories):
            number = self._value(category, "id", f"categories[{place}]")
            name = self._value(category, "name", f"the category {number}", (str,)).strip()
            if number in names or name in names.values():
                raise self._error(f"the category {number} ({name!r:.60}) is there twice, by its id or its name")
            if not name or not name.isprintable():
                raise self._error(f"the category {number} has no name of one line")
            names[number] = name
        if not 1 <= len(names) <= MOST:
            raise self._error(f"it has {len(names)} categories; 1 to {MOST} are possible")
        self.classes, self._class_of, self._category_of = [], {}, {}
        if self._background != "none":
            self.classes.append(Class(self._background, color_of(0)))
        for number in sorted(names):
            if names[number] == self._background:
                self._class_of[number] = 0
            else:
                self._class_of[number] = len(self.classes)
                self.classes.append(Class(names[number], color_of(len(self.classes))))
            self._category_of[self._class_of[number]] = number
        if len(self.classes) < 2:
            raise self._error("one category without a background is one class only; leave --background none out")

    def _read_images(self, images, max_pixels):
        self.names, self._sizes, self.objects = {}, {}, {}
        seen = {}
        for place, image in enumerate(images):
            number = self._value(image, "id", f"images[{place}]", (int, str))
            what = f"the image {number!r:.60}"
            if number in self.names:
                raise self._error(f"{what} is there twice")
            file_name = self._value(image, "file_name", what, (str,))
            name = os.path.splitext(file_name)[0]
            wrong = lists.fault_of_written(name)
            if wrong:
                raise self._error(f"{what} has the file_name {file_name!r:.80}, which {wrong}; give a path below the "
                                  "folder of the images")
            if name in seen:
                raise self._error(f"the images {seen[name]!r:.60} and {number!r:.60} are both called {name!r:.80}; "
                                  "their masks would be one file: rename one")
            size = tuple(self._value(image, key, what) for key in ("height", "width"))
            if min(size) < 1:
                raise self._error(f"{what} ({file_name!r:.80}) is {size[1]} x {size[0]} pixels; correct its width and "
                                  "height")
            if size[0] * size[1] > max_pixels:
                raise self._error(f"{what} claims to have {size[1]} x {size[0]} pixels, more than the limit of "
                                  f"{max_pixels}; raise it with --max-pixels if that is right")
            seen[name] = number
            self.names[number], self._sizes[number], self.objects[number] = name, size, []

    def _read_annotations(self, annotations):
        for place, annotation in enumerate(annotations):
            what = f"the annotation {annotation.get('id', f'annotations[{place}]')!r:.60}"
            image = self._value(annotation, "image_id", what, (int, str))
            category = self._value(annotation, "category_id", what)
            if image not in self.names:
                raise self._error(f"{what} is of the image {image!r:.60}, which 'images' does not have")
            if category not in self._class_of:
                raise self._error(f"{what} is of the category {category}, which 'categories' does not have")
            crowd = annotation.get("iscrowd", 0)
            if crowd not in (0, 1):
                raise self._error(f"{what} has {crowd!r:.60} as its 'iscrowd'; it must be 0 or 1")
            outline = self._outline(annotation, what, self._sizes[image])
            boxed = "segmentation" in annotation and not annotation["segmentation"]
            self.objects[image].append((IGNORED if crowd or boxed else self._class_of[category], outline))

    def _outline(self, annotation, what, size):
        """What pycocotools decodes: a list of polygons, or an RLE. Everything that could harm it is refused here."""
        segmentation = self._value(annotation, "segmentation", what, (list, dict))
        if isinstance(segmentation, dict):
            return self._rle(segmentation, what, size)
        if not segmentation:  # nothing is known but where it is
            left, top, width, height = self._numbers(annotation.get("bbox"), f"{what} has no outline, and its "
                "'bbox'", size, 4)
            return [[left, top, left + width, top, left + width, top + height, left, top + height]]
        for polygon in segmentation:
            numbers = self._numbers(polygon, f"a polygon of {what}", size)
            if len(numbers) < 6 or len(numbers) % 2:
                raise self._error(f"a polygon of {what} has {len(numbers)} numbers; it needs pairs x, y of at least "
                                  "three corners")
        return segmentation

    def _numbers(self, values, what, size, count=None):
        far = 2 * max(size)  # beyond: a mistake, and millions of points for pycocotools
        if (not isinstance(values, list) or count and len(values) != count
                or any(isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value)
                       for value in values)):
            raise self._error(f"{what} is {values!r:.60}; it must be a list of {count or 'pairs of'} numbers")
        if any(not -far <= value <= far + max(size) for value in values):
            raise self._error(f"{what} lies far outside of the image of {size[1]} x {size[0]} pixels")
        return values

    def _rle(self, segmentation, what, size):
        counts, claimed = segmentation.get("counts"), segmentation.get("size")
        if claimed != list(size):
            raise self._error(f"the RLE of {what} is of the size {claimed!r:.60}, its image of {list(size)} (height, "
                              "width)")
        if isinstance(counts, str):
            counts = _uncompressed(counts)
        if (not isinstance(counts, list) or any(isinstance(count, bool) or not isinstance(count, int) or count < 0
                                                for count in counts) or sum(counts) != size[0] * size[1]):
            raise self._error(f"the RLE of {what} is damaged: its counts do not add up to the {size[0] * size[1]} "
                              "pixels of the image")
        return {"size": list(size), "counts": counts}

    def mask(self, image):
        """The mask of an image, (H, W) uint8 of classes, 255 where it is ignored."""
        from pycocotools import mask as coco

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
        total = sum(pixels.values())
        print(f"{'class':>5} {'category':>8} {'objects':>8} {'% of pixels':>12}  name")
        for index, entry in enumerate(self.classes):
            print(f"{index:>5} {self._category_of.get(index, '-'):>8} {objects[index]:>8} "
                  f"{100 * pixels[index] / total:>12.2f}  {entry.name}")
        print(f"{IGNORED:>5} {'-':>8} {objects[IGNORED]:>8} {100 * pixels[IGNORED] / total:>12.2f}  (ignored)")


def _read(path):
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}; give the annotation file") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error!s:.120}); give a COCO annotation file") from error


def _uncompressed(text):
    """The counts of a compressed RLE, or None when it is damaged: pycocotools would read beyond its end."""
    counts, place = [], 0
    while place < len(text):
        value = shift = 0
        while True:
            if place >= len(text) or not 0 <= ord(text[place]) - _FIRST < 64 or shift > 60:
                return None
            character = ord(text[place]) - _FIRST
            place += 1
            value |= (character & 31) << shift
            shift += _SHIFT
            if not character & 32:
                break
        if character & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
    return counts


if __name__ == "__main__":
    main()
