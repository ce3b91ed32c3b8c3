"""A generated dataset: 7 shapes on textured backgrounds, for the demo, the tests and benchmarks without any download.

    python -m data.synthetic --out demo_data --train 320 --val 80 --seed 0

Every image is a function of (seed, subset, index) and the size alone: more images or more processes leave the others as
they are. The layout is that of PASCAL VOC with the classes of ``data/specs/shapes.yaml``, or that of Cityscapes.
"""

import functools
import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from data.lists import write_list
from data.masks import write_palette_png
from data.shapes import STAR, SUBSETS, render
from data.specs import load_spec
from utils.errors import OneLineParser, UserError, not_written, reports_user_errors
from utils.files import locked, make_folder, read_json, write_json

VERSION = 2  # raise it when the images change, so that existing folders are made again
MANIFEST = "synthetic.json"
LAYOUTS = {"voc": "shapes", "cityscapes": "city"}  # layout -> the dataset spec that reads it
_LOCK = ".lock"
_FOLDERS = ("JPEGImages", "SegmentationClassAug", "ImageSets", "leftImg8bit", "gtFine", "data_lists")
_FIRST_VALIDATION = 900001  # validation images keep their names when the number of training images changes
_CITIES = {"train": ("aachen", "bochum"), "val": ("frankfurt", "munster"), "test": ("berlin",)}
_VOC_TRAIN_SHARE = 1464 / 10582  # train.txt is a part of trainaug.txt, as in VOC


def generate(root, num_train=320, num_val=80, seed=0, size=(112, 112), workers=1, layout="voc"):
    """Generate a dataset in the folder ``root``, or reuse the one that is there if it has the same parameters.

    ``size`` is (height, width) in pixels: the largest in the layout "voc", where sizes vary a little; the size of every
    image in the layout "cityscapes", which also gets max(1, num_val // 4) test images. Shapes grow with the image.
    An unfinished dataset or one with other parameters is cleared, its split lists included, and made again.
    Returns ``root`` as a ``Path``. Raises ``UserError`` for impossible parameters, for a folder that holds something
    else, and when it cannot be written. With ``workers`` above 1 the caller's script needs the usual
    ``if __name__ == "__main__"``.
    """
    root = Path(root)
    for value, least, what in ((num_train, 1, "number of training images"), (num_val, 1, "number of validation images"),
                               (seed, 0, "seed"), (workers, 1, "number of workers")):
        if value < least:
            raise UserError(f"the {what} is {value}; it must be at least {least}")
    if not all(32 <= side <= 4096 for side in size):
        raise UserError(f"the size is {' x '.join(map(str, size))}; give height and width, each from 32 to 4096 pixels")
    if layout == "voc":
        names = {"train": [f"shapes_{index:06d}" for index in range(1, num_train + 1)],
                 "val": [f"shapes_{index:06d}" for index in range(_FIRST_VALIDATION, _FIRST_VALIDATION + num_val)]}
        part = max(1, round(num_train * _VOC_TRAIN_SHARE))
        lists = {"trainaug": names["train"], "train": names["train"][:part], "val": names["val"]}
    else:
        lists = names = {subset: _city_names(subset, count) for subset, count in (
            ("train", num_train), ("val", num_val), ("test", max(1, num_val // 4)))}
    parameters = {"version": VERSION, "seed": seed, "size": list(size), "layout": layout,
                  "counts": {subset: len(subset_names) for subset, subset_names in names.items()}}
    spec = load_spec(LAYOUTS[layout])
    make_folder(root, "--out")
    with locked(root / _LOCK, root, wait=True):  # the next process then finds the dataset complete
        if _is_complete(root, spec, parameters, names):
            return root
        try:
            for folder in _FOLDERS:  # what another or an unfinished generation left, lists of splits included
                if (root / folder).exists():
                    shutil.rmtree(root / folder)
            write_json(root / MANIFEST, {**parameters, "complete": False})
            _write_images(root, spec, names, seed, tuple(size), workers)
        except OSError as error:
            raise UserError(not_written(error.filename or root, error)) from error
        for name, listed in lists.items():
            write_list(spec.list_path(root, f"{name}.txt"), listed)
        write_json(root / MANIFEST, {**parameters, "complete": True})
    return root


def _city_names(subset, count):
    cities = _CITIES[subset]
    return sorted(f"{cities[index % len(cities)]}/{cities[index % len(cities)]}_{index // len(cities):06d}_000019"
                  for index in range(count))


def _is_complete(root, spec, parameters, names):
    """Whether ``root`` holds the finished dataset with these parameters. ``UserError`` when it holds something else."""
    if not (root / MANIFEST).exists():
        foreign = sorted(path.name for path in root.iterdir() if path.name != _LOCK)
        if foreign:
            raise UserError(f"{root} holds {foreign[0]} and no generated dataset; choose an empty folder")
        return False
    try:
        manifest = read_json(root / MANIFEST)
    except UserError:
        return False
    return manifest == {**parameters, "complete": True} and all(
        path(root, name, subset).is_file() for subset, its_names in names.items() for name in its_names
        for path in (spec.image_path, spec.label_path))


def _write_images(root, spec, names, seed, size, workers):
    write = functools.partial(_write_image, root, spec, seed, size)
    images = [(subset, index, name) for subset, its_names in names.items() for index, name in enumerate(its_names)]
    if workers == 1:
        list(map(write, images))
        return
    # Forked copies of a process that has threads (PyTorch starts some) may hang, hence spawned ones.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=cv2.setNumThreads,
                             initargs=(1,)) as pool:  # the pieces are small: threads only cost time
        list(pool.map(write, images, chunksize=64))


def _write_image(root, spec, seed, size, image):
    """Draw and write one image, a triple (subset, index there, name), and its label."""
    subset, index, name = image
    as_voc = spec.label_ids is None
    if as_voc:  # each side is up to an eighth below
        rng = np.random.default_rng((seed, SUBSETS.index(subset), index, 1))
        size = [int(side - rng.integers(0, side // 8 + 1)) for side in size]
    pixels, label = render(seed, subset, index, *size)
    image_path, label_path = spec.image_path(root, name, subset), spec.label_path(root, name, subset)
    for path in (image_path, label_path):
        path.parent.mkdir(parents=True, exist_ok=True)
    quality = [cv2.IMWRITE_JPEG_QUALITY, 90] if as_voc else [cv2.IMWRITE_PNG_COMPRESSION, 1]
    image_path.write_bytes(cv2.imencode(image_path.suffix, pixels, quality)[1].tobytes())
    if as_voc:
        write_palette_png(label_path, label, spec.palette)
    else:
        ids = np.zeros(256, np.uint8)  # Cityscapes' label id of each class of the shapes; 0, unlabelled, where ignored
        ids[: STAR + 1] = [spec.label_ids.index(shape) for shape in range(STAR + 1)]
        label_path.write_bytes(cv2.imencode(".png", ids[label])[1].tobytes())


@reports_user_errors
def main(arguments=None):
    """Generate a dataset from the command line."""
    parser = OneLineParser(prog="python -m data.synthetic", description=(
        "Generate a dataset: discs, squares, triangles, rings, crosses, bars and stars on textured backgrounds.\n"
        "A finished dataset with the same parameters is reused. Use it with --dataset shapes --data-root FOLDER."))
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the dataset goes (new or empty)")
    parser.add_argument("--train", type=int, default=320, metavar="N", help="number of training images (default: 320)")
    parser.add_argument("--val", type=int, default=80, metavar="N", help="number of validation images (default: 80)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all images (default: 0)")
    parser.add_argument("--size", type=int, nargs=2, default=(112, 112), metavar=("H", "W"),
                        help="largest height and width in pixels (default: 112 112)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default: 1)")
    parser.add_argument("--layout", default="voc", choices=sorted(LAYOUTS),
                        help="folders and file formats of VOC or of Cityscapes (default: voc)")
    args = parser.parse_args(arguments)
    root = generate(args.out, args.train, args.val, args.seed, args.size, args.workers, args.layout)
    counts = read_json(root / MANIFEST)["counts"]
    print(f"{root}: " + ", ".join(f"{count} {subset}" for subset, count in counts.items())
          + f" images; use it with --dataset {LAYOUTS[args.layout]} --data-root {root}")


if __name__ == "__main__":
    main()
