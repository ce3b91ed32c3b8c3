"""COCO annotations (polygons and RLE) to palette masks, one class number a pixel.

    python -m tools.convert_coco instances.json masks
    python -m tools.new_dataset photos masks --classes masks/classes.txt

Every annotated image gets a mask OUT/NAME.png, NAME being its file_name without the suffix. Class 0 is the background,
the categories follow in the order of their ids. Where objects overlap, the smaller one lies on top. Crowds (iscrowd),
and the boxes of objects without an outline, become 255: ignored. Some tools (CVAT) mark every mask as a crowd: --crowds
says what they are then. Images without annotations get no mask, so they count as unlabelled; --empty says that nothing
is on them. OUT/classes.txt lists the classes for python -m tools.new_dataset --classes.
"""

import collections
import json
import os
from pathlib import Path

import numpy as np
from pycocotools import mask as coco

from data import lists
from data.masks import IGNORED, write_palette_png
from prepare.classes import color_of
from prepare.common import add_mask_options, check_number, finish_masks, refuse_existing
from utils.console import progress_bar
from utils.errors import OneLineParser, UserError, reports_user_errors


@reports_user_errors
def main(arguments=None):
    """Check all annotations, then paint mask by mask."""
    options = _parser().parse_args(arguments)
    coco, out = Annotations(options), Path(options.out)
    targets = {image: out / f"{name}.png" for image, name in coco.names.items() if options.empty or coco.objects[image]}
    refuse_existing([*targets.values(), out / "classes.txt"], options.force)
    if not targets:
        raise UserError(f"{options.annotations} has no annotation; nothing to convert")
    colors, pixels = [color_of(index) for index in range(len(coco.classes))], collections.Counter()
    for image in progress_bar(list(targets), "masks", "mask"):
        mask = coco.mask(image)
        pixels.update(dict(enumerate(np.bincount(mask.ravel()).tolist())))
        write_palette_png(targets[image], mask, colors)
    objects = collections.Counter(value for own in coco.objects.values() for value, _ in own)
    finish_masks(out, targets, coco.classes, pixels, objects)
    if left := len(coco.names) - len(targets):
        print(f"{left} images without annotations got no mask (--empty makes empty ones)")


def _parser():
    parser = OneLineParser(prog="python -m tools.convert_coco", description=__doc__)
    parser.add_argument("annotations", metavar="ANNOTATIONS.json", help="file with images, annotations and categories")
    parser.add_argument("out", metavar="OUT", help="folder for the masks")
    parser.add_argument("--background", default="background", metavar="NAME",
                        help="name of class 0, all pixels of no object (a category of that name is the same class); "
                             "none: those pixels are ignored, and the classes begin with the first category (default: "
                             "background)")
    parser.add_argument("--crowds", choices=("ignore", "objects"),
                        help="what annotations with iscrowd 1 become (default: ignored; refused where all are such)")
    parser.add_argument("--empty", action="store_true", help="make masks of background for images without annotations")
    add_mask_options(parser, "masks that are in OUT already")
    return parser


class Annotations:
    """The checked content of an annotation file: ``names`` of the images by id, ``objects`` of each (class, outline for
    pycocotools), and the names of the ``classes``."""

    def __init__(self, options):
        self._background, self._crowds, self._max_pixels = options.background, options.crowds, options.max_pixels
        self._where = "the file"
        try:
            content = json.loads(Path(options.annotations).read_text(encoding="utf-8-sig"))
            self._read_categories(content["categories"])
            self._read_images(content["images"])
            self._read_annotations(content["annotations"])
        except OSError as error:
            raise UserError(f"{options.annotations} cannot be read: {error.strerror}; give a file") from error
        except UserError as error:
            raise UserError(f"{options.annotations}: {self._where} {error}") from error
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise UserError(f"{options.annotations}: {self._where} is damaged, or no COCO annotation "
                            f"({type(error).__name__}: {error!s:.120}); export it again") from error

    def _read_categories(self, categories):
        self._where = "the list of categories"
        names = {int(category["id"]): category["name"].strip() for category in categories}
        if len({*names.values()}) < len(categories) or not all(name.isprintable() for name in names.values()):
            raise UserError("has an id or a name twice, or a name of several lines; rename one")
        own = [] if self._background == "none" else [self._background]
        self.classes = own + [names[number] for number in sorted(names) if names[number] != self._background]
        check_number(self.classes, "with --background")
        self._class_of = {number: self.classes.index(name) for number, name in names.items()}

    def _read_images(self, images):
        self.names, self._sizes, self.objects, taken = {}, {}, {}, set()
        for image in images:
            number, name = image["id"], os.path.splitext(image["file_name"])[0]
            self._where = f"the image {number!r:.60} ({image['file_name']!r:.80})"
            if number in self.names or name in taken:
                raise UserError("is there twice, by its id or its name; rename one")
            if wrong := lists.fault_of_written(name):
                raise UserError(f"has a file_name which {wrong}; give a path below the folder of the images")
            height, width = int(image["height"]), int(image["width"])
            if min(height, width) < 1 or height * width > self._max_pixels:
                raise UserError(f"is {width} x {height} pixels, of which 1 to {self._max_pixels} are possible; correct "
                                "width and height, or give --max-pixels")
            self.names[number], self._sizes[number], self.objects[number] = name, (height, width), []
            taken.add(name)

    def _read_annotations(self, annotations):
        crowds = 0
        for place, annotation in enumerate(annotations):
            self._where = f"the annotation {annotation.get('id', place)!r:.60}"
            image, category, crowd = annotation["image_id"], annotation["category_id"], bool(annotation.get("iscrowd"))
            if image not in self.names or category not in self._class_of:
                raise UserError(f"is of the image {image!r:.60} and the category {category!r:.60}, of which one is not "
                                "there; export it again")
            crowds += crowd
            ignored = crowd and self._crowds != "objects" or not annotation["segmentation"]
            self.objects[image].append((IGNORED if ignored else self._class_of[category],
                                        self._outline(annotation, *self._sizes[image])))
        if crowds and crowds == len(annotations) and self._crowds is None:
            self._where = f"all {crowds} annotations"
            raise UserError("are crowds (iscrowd 1), as CVAT marks every mask; give --crowds objects if they are "
                            "objects, or --crowds ignore")

    def _outline(self, annotation, height, width):
        """The RLE that pycocotools makes of a segmentation. It trusts its input, so that is checked here."""
        outline = annotation["segmentation"]
        if isinstance(outline, dict):
            counts = outline["counts"]
            if isinstance(counts, list) and min(counts) >= 0 and sum(counts) == height * width:
                outline = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)
            # Counts that do not fill the image show another number of pixels when they are packed again.
            if outline["size"] != [height, width] or isinstance(outline["counts"], list) or (
                    coco.encode(coco.decode(outline))["counts"] != (
                        outline["counts"].encode() if isinstance(counts, str) else outline["counts"])):
                raise UserError(f"has a damaged RLE: its size must be {[height, width]} (height, width), that of the "
                                f"image, and its counts add up to the {height * width} pixels")
            return outline
        if not outline:  # nothing is known but where it is
            left, top, w, h = annotation["bbox"]
            outline = [[left, top, left + w, top, left + w, top + h, left, top + h]]
        farthest = 3 * max(height, width)  # beyond it pycocotools would need millions of points
        for polygon in outline:
            if len(polygon) < 6 or len(polygon) % 2 or not np.abs(np.array(polygon, float)).max() <= farthest:
                raise UserError(f"has the polygon {polygon!r:.60}; it must be at least 6 numbers, in pairs x, y, in or "
                                f"near the image of {width} x {height} pixels")
        return coco.merge(coco.frPyObjects(outline, height, width))

    def mask(self, image):
        """The mask of an image, (H, W) uint8 of classes, 255 where it is ignored."""
        mask = np.full(self._sizes[image], IGNORED if self._background == "none" else 0, np.uint8)
        # Crowds first, then from large to small.
        for value, outline in sorted(self.objects[image],
                                     key=lambda item: (item[0] != IGNORED, -int(coco.area(item[1])))):
            mask[coco.decode(outline).astype(bool)] = value
        return mask
