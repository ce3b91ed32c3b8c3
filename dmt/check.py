"""The check before the night: everything that a run will read is read once, and what it will need is estimated.

All findings come at once. Nothing is written.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from data import images
from dmt import memory
from dmt.memory import gb, in_pixels
from models.deeplab import traits
from utils.console import progress_bar
from utils.errors import UserError
from utils.files import sha256

# Bytes of a labelling on the disk (see data/store.py), from above: generated images took up to 0.68 a pixel with what
# comes with every file, and logits hardly shrink when compressed.
_LABEL_BYTES = 0.6  # a pixel: label 0.1, confidence 0.5
_IMAGE_BYTES = 8192  # an image: three files with headers and palette, in whole blocks of the disk
# Beside the checkpoints a training keeps its state (model, momentum) and its best snapshot; while either is replaced,
# the old one and the new one are there.
_TRAINING_FILES = 2 * (2 + 1)  # in checkpoints
_NAMES_SHOWN = 3

LABELLED, VALIDATION, UNLABELLED = ("labelled", "validation", "unlabelled")


class Subset(NamedTuple):
    """A list of images: ``read()`` gives the ``data.lists.Sample``s or raises ``UserError``.

    ``split_id`` is None for images that all splits share: what is labelled in one split is unlabelled in another.
    """

    read: Callable
    kind: str
    split_id: str | None = None


def subsets(data, trainings):
    """{name: Subset} of all images that the trainings (main.py's options) read."""
    several, ids = len({(one.train_set, one.sets_id) for one in trainings}) > 1, {one.sets_id for one in trainings}
    labelled, unlabelled = {}, {}
    for training in trainings:
        split = (training.train_set, training.sets_id)
        of_id = f" of id {training.sets_id}" if len(ids) > 1 else ""
        name = f"labelled {split[0]}{of_id}" if several else "labelled"
        labelled[name] = Subset(functools.partial(data.labeled, *split), LABELLED, training.sets_id)
        if training.state == 1:
            unlabelled[f"unlabelled{of_id}"] = Subset(functools.partial(data.unlabeled, *split), UNLABELLED,
                                                      training.sets_id)
    return {**labelled, "validation": Subset(lambda: data.validation(trainings[0].valtiny), VALIDATION), **unlabelled}


@dataclass
class Report:
    """What a check found, each entry one line: ``errors`` stop a run, ``warnings`` do not."""

    errors: list = field(default_factory=list)
    warnings: list = field(default_factory=list)
    table: list = field(default_factory=list)
    estimates: list = field(default_factory=list)


class _Examined(NamedTuple):
    size: tuple | None  # (height, width), where the image decodes
    digest: str | None  # of its file
    turned: bool  # by an orientation tag
    counts: np.ndarray | None  # (num_classes + 1,) pixels of each class and, last, ignored ones
    errors: list


class _List(NamedTuple):
    """A subset that could be read, with what was found of each of its samples."""

    name: str
    subset: Subset
    samples: list
    examined: list
    counts: np.ndarray  # as of an image, over the masks that decode
    sizes: list  # of the images that decode

    @property
    def kind(self):
        return self.subset.kind


def check(data, subsets, work, functions=()):
    """Check every image and mask of ``subsets`` (a dict of name -> ``Subset``), and whether ``work`` fits this machine.

    ``data`` is the ``dmt.session.Data``, ``work`` the ``dmt.memory.Workload``. ``functions`` are further checks that
    take nothing and raise ``UserError``, as loading the first weights. Returns a ``Report``.
    """
    report, spec = Report(), data.spec
    read = {name: _attempt(report.errors, subset.read) for name, subset in subsets.items()}
    for function in functions:
        _attempt(report.errors, function)
    samples = sorted(set(itertools.chain(*filter(None, read.values()))), key=lambda sample: str(sample.image))
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:  # decoding lets other threads run
        found = dict(zip(progress_bar(samples, "check", "image"), pool.map(functools.partial(_examine, spec), samples)))
    lists = [_list(spec, name, subsets[name], items, [found[item] for item in items])
             for name, items in read.items() if items is not None]
    # Images may be shared by the labelled halves of a split, not by lists of different kinds.
    pairs = [(one, other) for one, other in itertools.combinations(lists, 2) if one.kind != other.kind
             and (VALIDATION in (one.kind, other.kind) or one.subset.split_id == other.subset.split_id)]
    report.errors += itertools.starmap(_overlap, pairs)
    _check_memory(spec, work, report)
    _check_disk(spec, work, lists, report)
    for one in lists:  # one line a file comes last, there may be many
        report.errors += itertools.chain(*(examined.errors for examined in one.examined))
        if spec.test_by == "pad" and one.kind != LABELLED:
            report.errors += [images.too_large(sample.image, examined.size, spec.test_size)
                              for sample, examined in zip(one.samples, one.examined)
                              if examined.size and np.greater(examined.size, spec.test_size).any()]
    report.errors = list(dict.fromkeys(filter(None, report.errors)))  # an image may stand in several lists
    for one in lists:
        if one.kind != UNLABELLED and one.counts.any() and not one.counts[:-1].any():
            report.errors.append(f"the list {one.name}: {images.NO_LABEL.format(one.samples[0].name)}")
        if one.kind == VALIDATION and len(one.samples) <= 2:
            report.warnings.append(f"{_images(one)} for validation: the best checkpoint is chosen by chance; give more")
    report.warnings += itertools.chain(*itertools.starmap(_copies, pairs))
    turned = [sample for one in lists for sample, examined in zip(one.samples, one.examined) if examined.turned]
    if turned:
        report.warnings.append(f"{len(turned)} images carry an orientation tag, {turned[0].image} for one: "
                               f"{images.TURN_IT}; masks are taken to lie as the files do")
    for one in lists:
        lacking = [spec.class_names[index] for index in np.flatnonzero(one.counts[:-1] == 0)]
        if one.kind == LABELLED and lacking:
            report.warnings.append(f"no mask of the list {one.name} has a pixel of {', '.join(lacking)}; a network "
                                   "trained on it cannot learn that: choose another split, or go on knowing so")
    report.table += _table(spec, lists)
    return report


def print_report(report, limit=50):
    """Table and estimates to standard output; errors and warnings to standard error, at most ``limit`` of each."""
    for line in (*report.table, *report.estimates):
        print(line)
    sys.stdout.flush()
    for kind, lines in (("error", report.errors), ("warning", report.warnings)):
        for line in lines[:limit]:
            print(f"{kind}: {' '.join(line.split())}", file=sys.stderr)
        if len(lines) > limit:
            print(f"{kind}: and {len(lines) - limit} more", file=sys.stderr)


# --- files ----------------------------------------------------------------------------------------------------------


def _attempt(errors, function, *arguments):
    """What ``function`` returns, or None when it raised ``UserError``, whose message then is in ``errors``."""
    try:
        return function(*arguments)
    except UserError as error:
        errors.append(str(error))
        return None


def _examine(spec, sample):
    """Decode an image and its mask, and compare them."""
    errors, counts, path = [], None, sample.image
    image = _attempt(errors, images.read_image, path, spec.max_pixels)
    size = None if image is None else image.shape[:2]
    mask = None if sample.mask is None else _attempt(errors, images.read_mask, sample.mask, spec)
    if mask is not None:
        counts = np.bincount(mask.ravel(), minlength=256)[[*range(spec.num_classes), 255]]
        if size is not None and size != mask.shape:
            errors.append(images.unequal(path, sample.mask, size, mask.shape))
    turned = not errors and images.is_turned(path)
    return _Examined(size, None if image is None else sha256(path), turned, counts, errors)


def _list(spec, name, subset, samples, examined):
    counts = np.zeros(spec.num_classes + 1, np.int64)
    for one in examined:
        counts += 0 if one.counts is None else one.counts
    return _List(name, subset, samples, examined, counts, [one.size for one in examined if one.size is not None])


def _overlap(one, other):
    """What to say of images that stand in two lists of different kinds, or None."""
    shared = sorted({sample.image for sample in one.samples} & {sample.image for sample in other.samples})
    if not shared:
        return None
    shown = ", ".join(str(path) for path in shared[:_NAMES_SHOWN])
    more = f" and {len(shared) - _NAMES_SHOWN} more" if len(shared) > _NAMES_SHOWN else ""
    return (f"{shown}{more}: {'this image stands' if len(shared) == 1 else 'these images stand'} in both the list "
            f"{one.name} and the list {other.name}; take each out of one of the two, or make the lists again with "
            "generate_splits.py")


def _copies(one, other):
    """What to say of images of two lists of different kinds that are other files, but of the same content or name."""
    first, second = ([(sample.image, sample.name, examined.digest) for sample, examined
                      in zip(listed.samples, listed.examined) if examined.digest] for listed in (one, other))
    contents = {digest: path for path, _, digest in first}
    names = {name: path for path, name, _ in first}
    copies = [(path, contents[digest]) for path, _, digest in second if digest in contents]
    namesakes = [(path, names[name]) for path, name, digest in second if digest not in contents and name in names]
    never = "; what is validated on must not be trained on" if VALIDATION in (one.kind, other.kind) else ""
    for what, pairs in (("copies of", copies), ("called like", namesakes)):
        pairs = [(path, twin) for path, twin in pairs if path != twin]
        if pairs:
            yield (f"{len(pairs)} of the {other.name} images are {what} {one.name} images ({pairs[0][0]} and "
                   f"{pairs[0][1]}, for one){never}")


# --- the table ------------------------------------------------------------------------------------------------------


def _images(one):
    return f"{len(one.samples)} image{'s' * (len(one.samples) != 1)}"


def _table(spec, lists):
    """Lines: a list's images and sizes each, then the share of every class in percent of the labelled pixels."""
    shares = {}
    for one in lists:
        line = f"{one.name}: {_images(one)}"
        if one.sizes:
            high, wide = (str(low) if low == most else f"{low} to {most}"
                          for low, most in zip(np.min(one.sizes, axis=0), np.max(one.sizes, axis=0)))
            line += f", {wide} pixels wide and {high} high"
        if one.kind != UNLABELLED:
            labelled = one.counts[:-1].sum()
            shares[one.name] = 100 * one.counts[:-1] / max(labelled, 1)
            line += f", {100 * labelled / max(one.counts.sum(), 1):.2f} % of the pixels labelled"
        yield line
    if shares:
        widths = [max(8, len(name)) for name in shares]
        first = max(len(name) for name in (*spec.class_names, "class (% of pixels)"))
        yield "  ".join(["class (% of pixels)".ljust(first), *(f"{name:>{w}}" for name, w in zip(shares, widths))])
        for class_name, row in zip(spec.class_names, zip(*shares.values())):
            yield "  ".join([class_name.ljust(first), *(f"{share:{w}.2f}" for share, w in zip(row, widths))])


# --- disk -----------------------------------------------------------------------------------------------------------


def disk_bytes(spec, work, sizes):
    """(bytes of pseudo labels, bytes of checkpoints and training states) at the fullest moment of a run.

    ``sizes`` are the (height, width) of the unlabelled images. Labels stay; of predictions the launchers leave two
    rounds.
    """
    labels = sum(_LABEL_BYTES * height * width + _IMAGE_BYTES for height, width in sizes)
    stride = traits(work.backbone, work.output_stride).output_stride
    points = sum((-(-height // stride) + 1) * (-(-width // stride) + 1) for height, width in sizes)
    logits = points * spec.num_classes * 2  # 16 bits each
    labelings = work.arms * (work.rounds * labels + min(work.rounds, 2) * logits)
    network = memory.meta_network(spec.num_classes, work.backbone, work.aspp_branches, work.output_stride)
    checkpoint = 4 * sum(tensor.numel() for tensor in network.state_dict().values())
    stages = work.arms * (work.rounds + 1) + _TRAINING_FILES if work.batch_size else 0
    return int(labelings), checkpoint * stages


def _check_disk(spec, work, lists, report):
    """Compare ``disk_bytes`` with the free room; what an interrupted run has written already counts as there."""
    sizes = [size for one in lists if one.kind == UNLABELLED for size in one.sizes]
    if spec.test_by == "resize":
        sizes = [spec.test_size] * len(sizes)
    labelings, checkpoints = disk_bytes(spec, work, sizes)
    folder = Path(work.output_dir).expanduser().absolute()
    written = _written(folder)
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        report.errors.append(f"the folder {place} cannot be written; check its permissions or give another "
                             "--output-dir")
    free = shutil.disk_usage(place).free
    needed = max(labelings + checkpoints - written, 0)
    there = f", of which {gb(written)} are there" if written else ""
    report.estimates.append(f"disk: at most {gb(labelings)} for pseudo labels and {gb(checkpoints)} for checkpoints"
                            f"{there}; {gb(free)} free in {place}")
    if needed > free:
        report.errors.append(f"the disk of {place} has {gb(free)} free, but the run may need {gb(needed)}"
                             f"{' more' if written else ''}; make room or give an --output-dir on another disk")


def _written(folder):
    """Bytes of all files beneath ``folder``."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # another process may tidy up
            total += path.stat().st_size if path.is_file() else 0
    return total


# --- GPU memory -----------------------------------------------------------------------------------------------------


def _check_memory(spec, work, report):
    """Compare the estimate with ``work.max_memory``, and with what is free on a GPU; on a CPU only report it.

    Sizes that the network does not take are errors, and there is no estimate then.
    """
    found, network = len(report.errors), traits(work.backbone, work.output_stride)
    for size, option in ((spec.crop, "--crop-size"), (spec.test_size, "--test-size")):
        _attempt(report.errors, network.check_size, size, work.backbone, option)
    if len(report.errors) > found:
        return
    fitted = _attempt(report.errors, memory.fit, spec, work)
    work = fitted or dataclasses.replace(work, max_memory=None)
    training, labeling = memory.memory_bytes(spec, work)
    device = torch.device(work.device)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    report.estimates.append(f"{'GPU ' if free is not None else ''}memory: {memory.estimate(spec, work)}; "
                            + (f"{gb(free)} free on {device}" if free is not None else f"not judged on {device}"))
    if free is None:
        return
    mixed = "" if work.mixed_precision else " or --mixed-precision"
    if training is not None and training > free:
        report.errors.append(f"training {in_pixels(memory.images_at_once(work), spec.crop)} needs about {gb(training)} "
                             f"of GPU memory, but {device} has {gb(free)} free; give --max-memory or a larger "
                             f"--accumulate (batches in parts), a smaller --crop-size{mixed}, or end what else runs "
                             "there")
    if labeling > free:
        report.errors.append(f"labelling {in_pixels(work.batch_size_labeling, spec.test_size)} needs about "
                             f"{gb(labeling)} of GPU memory, but {device} has {gb(free)} free; give a smaller "
                             f"--batch-size-labeling{mixed}, or end what else runs there")
