"""PASCAL VOC 2012 with the labels of SBD, ready for training: masks, lists and splits from the two official archives.

    python -m tools.prepare_voc --voc VOCtrainval_11-May-2012.tar --sbd benchmark.tgz --out datasets/VOC2012
    python -m tools.prepare_voc --download --out datasets/VOC2012
    python -m tools.prepare_voc --voc VOCdevkit/VOC2012 --sbd benchmark.tgz     (unpacked already: completed in place)
    python -m tools.prepare_voc --out datasets/VOC2012 --animals datasets/voc-animals   (afterwards: a small part)

The folder --out becomes the root that VOC_ROOT names:

    JPEGImages/             the images of VOC
    SegmentationClass/      VOC's own masks, as they were
    SegmentationClassAug/   a mask for every training and validation image: VOC's own where it has one, else SBD's
    ImageSets/Segmentation/ VOC's own train.txt and val.txt as they were; trainaug.txt (VOC's train.txt and SBD's
                            train.txt and val.txt together, without VOC's val.txt, sorted); train_labeled_0.txt (VOC's
                            train.txt), train_unlabeled_0.txt (the other names); and the lists of all random splits

Interrupted, the same command goes on: files that are there are left as they are (delete masks of another origin), lists
are written last. Numbers of names and files are compared with the official ones.
"""

import http.client
import io
import os
import re
import socket
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from data import images
from data.masks import write_palette_png
from data.lists import read_list
from data.specs import load_spec
from data.splits import own_split, save_lists
from prepare.common import add_no_counts, compare_counts, files_of, finish, unpack
from prepare.voc_animals import write_animals
from utils.console import progress_bar
from utils.errors import OneLineParser, UserError, reports_user_errors
from utils.files import make_folder, remove_left_overs

TRAINAUG, VAL, TRAIN = 10582, 1449, 1464  # names in trainaug.txt, val.txt and train.txt
LISTS = "ImageSets/Segmentation"
VOC_FILES = re.compile(rf"(?:.*/)?(JPEGImages/[^/]+\.jpg|SegmentationClass/[^/]+\.png|"
                       rf"{LISTS}/(?:train|val|trainval)\.txt)")
SBD_FILES = re.compile(r"(?:(?:.*/)?dataset/)?(cls/[^/.][^/]*\.mat|train\.txt|val\.txt)")
_SECONDS_OF_SILENCE = 60  # before a server counts as gone


@reports_user_errors
def main(arguments=None):
    """Prepare the dataset and print what was found."""
    args = _parser().parse_args(arguments)
    spec = load_spec("voc")
    if args.animals:
        return _animals(args, spec)
    voc, sbd, out = _sources(args)
    make_folder(out, "--out")
    remove_left_overs(out, "**/*")
    if voc != out:
        unpack(voc, VOC_FILES, out)
    train, val = (read_list(out / LISTS / f"{name}.txt") for name in ("train", "val"))
    if both := {*train} & {*val}:
        raise UserError(f"{min(both)} stands in train.txt and in val.txt of {out / LISTS}; a validation image cannot "
                        "be a training image: get the official archive")
    for name in progress_bar([*train, *val], "masks of VOC", "mask"):
        source = out / f"SegmentationClass/{name}.png"
        if not spec.label_path(out, name).exists():
            _write_mask(spec, out, name, images.read_mask(source, spec), source)
    names = {*train} | _masks_of_sbd(sbd, spec, out, {*train, *val})
    os.sync()
    trainaug = sorted(names - {*val})
    for name in trainaug:
        if not spec.label_path(out, name).exists():
            raise UserError(f"{sbd} lists {name}, but holds no cls/{name}.mat; get the official archive")
    compare_counts([("train.txt, VOC's own training names", len(train), TRAIN),
                    ("val.txt, validation names", len(val), VAL),
                    ("trainaug.txt, training names with SBD", len(trainaug), TRAINAUG)], args.no_counts)
    save_lists(out / LISTS, {"trainaug.txt": trainaug, **own_split(trainaug, train)})
    finish(spec, out)


def _masks_of_sbd(sbd, spec, out, own):
    """Write the masks that only SBD has: of no name in ``own``. Returns the set of names in SBD's two lists."""
    print(f"reading {sbd}", flush=True)
    listed = {}
    for key, _, read in files_of(sbd, SBD_FILES):
        where, name = f"{key} in {sbd}", Path(key).stem
        if key.endswith(".txt"):
            listed[key] = read_list(where, content=read())
        elif name not in own and not spec.label_path(out, name).exists():
            _write_mask(spec, out, name, read_sbd_mask(read(), where, spec.num_classes), where)
    if len(listed) < 2:
        raise UserError(f"{sbd} lacks train.txt or val.txt; get the official archive")
    return {name for names in listed.values() for name in names}


def _write_mask(spec, out, name, mask, where):
    image = spec.image_path(out, name)
    if (size := images.image_size(image)) != mask.shape:
        raise UserError(images.unequal(image, where, size, mask.shape))
    write_palette_png(spec.label_path(out, name), mask, spec.palette)


def read_sbd_mask(content, where, num_classes):
    """The classes (H, W) uint8 in the bytes of one of SBD's cls/NAME.mat, which have no ignored pixels.

    ``where`` names the file in errors. Raises ``UserError`` when it is damaged or holds other values than classes.
    """
    try:
        mask = np.asarray(loadmat(io.BytesIO(content), variable_names=["GTcls"])["GTcls"][0]["Segmentation"][0])
        classes = mask.astype(np.uint8)
    except Exception as error:  # scipy meets damaged bytes with nearly every kind of exception
        raise UserError(f"{where} is damaged or no file of SBD ({type(error).__name__}: {error}); download SBD "
                        "again") from error
    wrong = (classes != mask) | (classes >= num_classes)
    if wrong.any():
        raise UserError(f"{where} holds the value {mask[wrong][0]}, but VOC has the classes 0 to {num_classes - 1}; "
                        "get the official archive")
    return classes


def _animals(args, spec):
    root, out = args.out or os.environ.get(spec.root_variable), Path(args.animals).expanduser().absolute()
    if args.voc or args.sbd or args.download or not root:
        raise UserError("--animals reads a VOC that is prepared already; give its folder with --out, and neither "
                        "--voc, --sbd nor --download")
    animals = load_spec("voc-animals")
    write_animals(spec, Path(root).expanduser(), animals, out)
    finish(animals, out)


def _sources(args):
    """(VOC: an archive, a folder, or ``out``, where it is unpacked already; SBD; the folder of the dataset)."""
    voc = args.voc and Path(args.voc).expanduser()
    in_place = next((voc / folder for folder in ("", "VOC2012", "VOCdevkit/VOC2012")
                     if (voc / folder / "JPEGImages").is_dir()), None) if voc else None
    out = args.out or in_place or os.environ.get("VOC_ROOT")
    if not out:
        raise UserError("where shall the dataset go? Give a folder with --out")
    out = Path(out).expanduser().absolute()
    if in_place and in_place.absolute() == out or not (voc or args.download) and (out / "JPEGImages").is_dir():
        voc = out
    sources = []
    for kind, path, what in (("voc", voc, "VOCtrainval_11-May-2012.tar"), ("sbd", args.sbd, "SBD's benchmark.tgz")):
        if not path and not args.download:
            raise UserError(f"where is {what}? Give it, or the folder it was unpacked to, with --{kind}, or add "
                            "--download")
        sources.append(Path(path).expanduser() if path else _download(kind, out / "archives"))
    return *sources, out


def _download(kind, folder):
    """Download the archive ``kind`` ("voc" or "sbd") into ``folder`` unless it is there whole. Returns its path."""
    print(f"downloading {kind.upper()} to {folder}", flush=True)
    from torchvision.datasets import SBDataset  # slow to import, and --help has to be quick
    from torchvision.datasets.utils import download_url
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    if kind == "voc":
        url, file_name, md5 = (DATASET_YEAR_DICT["2012"][key] for key in ("url", "filename", "md5"))
    else:
        url, file_name, md5 = SBDataset.url, SBDataset.filename, SBDataset.md5
    socket.setdefaulttimeout(_SECONDS_OF_SILENCE)
    try:
        download_url(url, str(folder), file_name, md5)
    except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
        raise UserError(f"{url} could not be downloaded ({error}); start the same command again, or get the file by "
                        f"other means and give it with --{kind}") from error
    return folder / file_name


def _parser():
    parser = OneLineParser(prog="python -m tools.prepare_voc", description=__doc__)
    parser.add_argument("--voc", metavar="FILE", help="VOCtrainval_11-May-2012.tar, or the folder it was unpacked to "
                        "(default: the folder --out, if the images lie there)")
    parser.add_argument("--sbd", metavar="FILE",
                        help="benchmark.tgz of the Semantic Boundaries Dataset, or the folder it was unpacked to")
    parser.add_argument("--download", action="store_true",
                        help="download what --voc and --sbd do not give (2.0 and 1.4 GB) into the folder archives in "
                             "--out, by torchvision")
    parser.add_argument("--out", metavar="FOLDER", help="root of the prepared dataset (default: the folder given with "
                        "--voc, else the environment variable VOC_ROOT)")
    add_no_counts(parser)
    parser.add_argument("--animals", metavar="FOLDER",
                        help="write the images of the prepared VOC in --out that show an animal, at half the "
                             "resolution, to this folder, for --dataset=voc-animals")
    return parser
