"""PASCAL VOC 2012 with the labels of SBD, ready for training: masks, lists and splits from the two official archives.

    python -m tools.prepare_voc --voc VOCtrainval_11-May-2012.tar --sbd benchmark.tgz --out data/VOC2012
    python -m tools.prepare_voc --download --out data/VOC2012
    python -m tools.prepare_voc --voc VOCdevkit/VOC2012 --sbd benchmark.tgz     (unpacked already: completed in place)
    python -m tools.prepare_voc --out data/VOC2012 --animals data/voc-animals   (afterwards: a small slice of it)

The folder --out becomes the root that VOC_ROOT names:

    JPEGImages/             the images of VOC
    SegmentationClass/      VOC's own masks, as they were
    SegmentationClassAug/   a mask for every training and validation image: VOC's own where it has one, else SBD's
    ImageSets/Segmentation/ VOC's own train.txt and val.txt as they were; trainaug.txt (VOC's train.txt and SBD's
                            train.txt and val.txt together, without VOC's val.txt, sorted); train_labeled_0.txt (VOC's
                            train.txt), train_unlabeled_0.txt (the other names); and the lists of all random splits

Both archives are listed to their ends before anything is written. Interrupted, the same command goes on: what is there
and whole is left as it is. Numbers of names and files are compared with the official ones.
"""

import argparse
import functools
import http.client
import io
import os
import shutil
import socket
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data import images, png
from data.lists import parse_list, read_list
from data.specs import load_spec
from data.splits import own_split, save_lists
from prepare.archives import Files
from prepare.common import add_count_options, check_room, count_fault, finish, in_parallel, print_counts
from prepare.voc_animals import write_animals
from utils.errors import OneLineParser, UserError, reports_user_errors
from utils.files import locked, make_folder, remove_left_overs, sync, write_bytes

COUNTS = (10582, 1449, 1464)  # names in trainaug.txt, val.txt and train.txt
LISTS = "ImageSets/Segmentation"
VOC_FILES = ("JPEGImages/*.jpg", "SegmentationClass/*.png", f"{LISTS}/*.txt")
VOC_PLACES = (".", "VOC2012", "VOCdevkit/VOC2012")
SBD_FILES = ("cls/*.mat", "train.txt", "val.txt")
SBD_PLACES = (".", "dataset", "benchmark_RELEASE/dataset")
OFFICIAL_LISTS = ("train.txt", "val.txt", "trainval.txt")
MASKS = "SegmentationClassAug"
DOWNLOADS = {"voc": 2_000_000_000, "sbd": 1_420_000_000}  # bytes of the archives, about
BYTES_PER_MASK = 12_000  # a high guess, for the room on the disk
_SECONDS_OF_SILENCE = 60  # before a server counts as gone


class Plan(NamedTuple):
    """Who is in which list: names in order. ``labeled`` are VOC's own training names."""

    trainaug: list
    val: list
    labeled: list

    @property
    def names(self):
        """All names that need an image and a mask."""
        return [*self.trainaug, *self.val]

    @property
    def from_sbd(self):
        """The names whose masks SBD has to give."""
        own = {*self.labeled, *self.val}
        return [name for name in self.trainaug if name not in own]


def make_plan(voc, sbd):
    """The ``Plan`` from the lists in both ``Files``. Raises ``UserError`` for contradictions and for lacking files."""
    labeled, val = (_names(voc, f"{LISTS}/{name}.txt") for name in ("train", "val"))
    both = set(labeled) & set(val)
    if both:
        raise UserError(f"{min(both)} stands in {voc.where(f'{LISTS}/train.txt')} and in val.txt; a validation image "
                        "cannot be a training image: get the official archive")
    sbd_names = {*_names(sbd, "train.txt"), *_names(sbd, "val.txt")}
    trainaug = sorted(({*labeled} | sbd_names) - {*val})
    if len(trainaug) == len(labeled):
        raise UserError(f"the lists of {sbd.where('train.txt')} add no image to VOC's; get the official archive")
    return Plan(trainaug, val, labeled)


def _check_files(plan, voc, sbd):
    voc.check_there([f"JPEGImages/{name}.jpg" for name in plan.names])
    voc.check_there([f"SegmentationClass/{name}.png" for name in [*plan.labeled, *plan.val]])
    sbd.check_there([_mat(name) for name in plan.from_sbd])


def _check_counts(rows):
    if fault := count_fault(rows):
        raise UserError(fault)


def _list_counts(plan, expected):
    trainaug, val, labeled = expected
    return [("train.txt, VOC's own training names", len(plan.labeled), labeled),
            ("val.txt, validation names", len(plan.val), val),
            ("trainaug.txt, training names with SBD", len(plan.trainaug), trainaug)]


def _file_counts(spec, plan, out, expected):
    """Rows (what, found, expected) of the lists, and of the files that lie in ``out`` now."""
    trainaug, val, _ = expected
    both = None if trainaug is None else trainaug + val
    return [*_list_counts(plan, expected),
            ("images of these names", sum(spec.image_path(out, name).is_file() for name in plan.names), both),
            (f"masks in {MASKS}", sum(spec.label_path(out, name).is_file() for name in plan.names), both)]


def _names(files, key):
    return parse_list(files.text(key), files.where(key))


def _mat(name):
    return f"cls/{name}.mat"


def _unpack_voc(plan, spec, voc, out):
    """Write the images, masks and lists of VOC that ``out`` lacks; a list with other names is somebody's own."""
    lists = {}
    for key in (f"{LISTS}/{name}" for name in OFFICIAL_LISTS):
        if key in voc.sizes and not (out / key).exists():  # only trainval.txt may be missing, and nobody needs it
            lists[key] = voc.text(key)
        elif key in voc.sizes and read_list(out / key) != _names(voc, key):
            raise UserError(f"{out / key} holds other names than {voc.where(key)}; move it away, or give another --out")
    keys = [key for key in voc.sizes if not key.endswith(".txt")]
    masks = [name for name in plan.names if not spec.label_path(out, name).exists()]
    check_room(out, [voc.sizes[key] for key in voc.missing(keys, out)] + [BYTES_PER_MASK] * len(masks))
    unpacked = voc.unpack(keys, out)
    for key, content in lists.items():
        write_bytes(out / key, content)
    print(f"{len(keys)} images and masks of VOC: {unpacked} unpacked, {len(keys) - unpacked} were there")


def _make_masks(plan, spec, sbd, out, threads, redo):
    """Write SegmentationClassAug/NAME.png for all names of the plan; unless ``redo``, whole ones are left."""
    check = functools.partial(_is_finished, out, spec)
    finished = [False] * len(plan.names)
    if not redo:
        finished = in_parallel(check, plan.names, "checking masks", "mask", threads=threads)
    missing = [name for name, done in zip(plan.names, finished) if not done]
    from_sbd = {*plan.from_sbd}.intersection(missing)
    unpacked = out / ".sbd"  # until its masks are made
    folder = sbd.folder or unpacked

    def make(name):
        source = folder / _mat(name) if name in from_sbd else out / f"SegmentationClass/{name}.png"
        mask = (read_sbd_mask(source.read_bytes(), sbd.where(_mat(name)), spec.num_classes) if name in from_sbd
                else images.read_mask(source, spec))
        image = spec.image_path(out, name)
        if (size := images.image_size(image)) != mask.shape:
            where = sbd.where(_mat(name)) if name in from_sbd else source
            raise UserError(images.unequal(image, where, size, mask.shape))
        write_bytes(spec.label_path(out, name), png.palette_png(mask, png.palette_of(spec.palette)), durable=False)

    try:
        if sbd.folder is None:
            sbd.unpack([_mat(name) for name in sorted(from_sbd)], unpacked)
        for _ in in_parallel(make, missing, "making masks", "mask", threads=threads):
            pass
        sync()
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    print(f"{len(plan.names)} masks in {MASKS}: {len(missing) - len(from_sbd)} made from VOC, {len(from_sbd)} made "
          f"from SBD, {len(plan.names) - len(missing)} were there")


def read_sbd_mask(content, where, num_classes):
    """The classes (H, W) uint8 in the bytes of one of SBD's cls/NAME.mat, which have no ignored pixels.

    ``where`` names the file in errors. Raises ``UserError`` when it is damaged or holds other values than classes.
    """
    from scipy.io import loadmat  # slow to import, and --help has to be quick

    try:
        mask = np.asarray(loadmat(io.BytesIO(content), variable_names=["GTcls"])["GTcls"][0]["Segmentation"][0])
        if mask.ndim != 2 or not mask.size or mask.dtype.kind not in "biuf":
            raise ValueError("GTcls.Segmentation is no matrix of numbers")
    except Exception as error:  # scipy meets damaged bytes with nearly every kind of exception
        raise UserError(f"{where} is damaged or no file of SBD ({type(error).__name__}: {error}); download SBD "
                        "again") from error
    with np.errstate(invalid="ignore"):  # what is no number shows below, too
        classes = mask.astype(np.uint8)
    wrong = (classes != mask) | (classes >= num_classes)
    if wrong.any():
        raise UserError(f"{where} holds the value {mask[wrong][0]}, but VOC has the classes 0 to {num_classes - 1}; "
                        "get the official archive")
    return classes


def _is_finished(out, spec, name):
    path = spec.label_path(out, name)
    try:
        if not path.is_file() or not png.is_whole(path.read_bytes()):
            return False
        return images.read_mask(path, spec).shape == images.image_size(spec.image_path(out, name))
    except (UserError, OSError):  # whatever is wrong with it: it is made again
        return False


def _download(kind, folder):
    """Download the archive ``kind`` ("voc" or "sbd") into ``folder`` unless it is there whole. Returns its path."""
    check_room(folder, [DOWNLOADS[kind]])
    print(f"downloading {kind.upper()} to {folder}", flush=True)
    from torchvision.datasets import SBDataset  # slow to import, and --help has to be quick
    from torchvision.datasets.utils import download_url
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    if kind == "voc":
        url, file_name, md5 = (DATASET_YEAR_DICT["2012"][key] for key in ("url", "filename", "md5"))
    else:
        url, file_name, md5 = SBDataset.url, SBDataset.filename, SBDataset.md5
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS_OF_SILENCE)
    try:
        download_url(url, str(folder), file_name, md5)
    except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
        raise UserError(f"{url} could not be downloaded ({error}); start the same command again, or get the file by "
                        f"other means and give it with --{kind}") from error
    finally:
        socket.setdefaulttimeout(before)
    return folder / file_name


@reports_user_errors
def main(arguments=None):
    """Prepare the dataset and print what was found."""
    args = _parser().parse_args(arguments)
    if args.threads < 1:
        raise UserError(f"--threads is {args.threads}; it must be at least 1")
    spec = load_spec("voc")
    if args.animals:
        return _animals(args, spec)
    voc, sbd, out = _sources(args)
    plan = make_plan(voc, sbd)
    expected = (None,) * len(COUNTS) if args.no_counts else args.counts
    _check_counts(_list_counts(plan, expected))
    _check_files(plan, voc, sbd)
    make_folder(out)
    lock = out / ".prepare_voc.lock"
    with locked(lock, str(out), instead="choose another --out"):
        remove_left_overs(out, "**/*")
        _unpack_voc(plan, spec, voc, out)
        _make_masks(plan, spec, sbd, out, args.threads, args.redo)
        save_lists(out / LISTS, {"trainaug.txt": plan.trainaug, **own_split(plan.trainaug, plan.labeled)})
        rows = _file_counts(spec, plan, out, expected)
        print_counts(rows)
        _check_counts(rows)
        finish(spec, out, not args.no_splits)
        lock.unlink()


def _parser():
    parser = OneLineParser(prog="python -m tools.prepare_voc", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voc", metavar="FILE", help="VOCtrainval_11-May-2012.tar, or the folder it was unpacked to "
                        "(default: the folder --out, if the images lie there)")
    parser.add_argument("--sbd", metavar="FILE",
                        help="benchmark.tgz of the Semantic Boundaries Dataset, or the folder it was unpacked to")
    parser.add_argument("--download", nargs="?", const="", metavar="FOLDER",
                        help="download what --voc and --sbd do not give (2.0 and 1.4 GB) into FOLDER, by torchvision "
                             "(default: the folder archives in --out)")
    parser.add_argument("--out", metavar="FOLDER", help="root of the prepared dataset (default: the folder given with "
                        "--voc, else the environment variable VOC_ROOT)")
    add_count_options(parser, ("TRAINAUG", "VAL", "TRAIN"), COUNTS)
    parser.add_argument("--animals", metavar="FOLDER",
                        help="write the images of the prepared VOC in --out that show an animal, at half the "
                             "resolution, to this folder, for --dataset=voc-animals")
    parser.add_argument("--no-splits", action="store_true",
                        help="make only the SBD split, not the random ones of generate_splits.py and dms_sample.py")
    parser.add_argument("--redo", action="store_true", help="make every mask again, even if it is there and whole")
    parser.add_argument("--threads", type=int, default=min(8, os.cpu_count() or 1), metavar="N",
                        help="threads that make masks (default here: %(default)s)")
    return parser


def _animals(args, spec):
    root, out = args.out or os.environ.get("VOC_ROOT"), Path(args.animals).expanduser()
    if args.voc or args.sbd or args.download is not None or not root:
        raise UserError("--animals reads a VOC that is prepared already; give its folder with --out, and neither "
                        "--voc, --sbd nor --download")
    animals = load_spec("voc-animals")
    write_animals(spec, Path(root).expanduser(), animals, out, args.threads)
    finish(animals, out.absolute(), splits=None)


def _sources(args):
    """The files of VOC, those of SBD, and the folder of the prepared dataset."""
    in_place = bool(args.voc) and Path(args.voc).expanduser().is_dir()
    out = args.out or (None if in_place else os.environ.get("VOC_ROOT"))
    if not (out or in_place):
        raise UserError("where shall the dataset go? Give a folder with --out")
    out = Path(out).expanduser().absolute() if out else None
    paths = {"voc": args.voc, "sbd": args.sbd}
    if args.download is None and not args.voc and (out / "JPEGImages").is_dir():
        paths["voc"] = out
    for kind, what in (("voc", "VOCtrainval_11-May-2012.tar"), ("sbd", "SBD's benchmark.tgz")):
        if not paths[kind] and args.download is None:
            raise UserError(f"where is {what}? Give it, or the folder it was unpacked to, with --{kind}, or add "
                            "--download")
    files = []
    for kind, *what in (("voc", VOC_FILES, VOC_PLACES, ""), ("sbd", SBD_FILES, SBD_PLACES, "dataset")):
        if not paths[kind]:
            folder = Path(args.download).expanduser() if args.download else (out or Path(args.voc)) / "archives"
            paths[kind] = _download(kind, folder)
        print(f"reading {paths[kind]}", flush=True)
        files.append(Files(paths[kind], *what))
    return *files, out or files[0].folder.absolute()
