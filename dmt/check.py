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
from utils.errors import UserError

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
    """A list of images: ``read()`` gives the ``data.lists.Sample``s or raises ``UserError``."""

    read: Callable
    kind: str


def subsets(data, trainings):
    """{name: Subset} of all images that the trainings (main.py's options) read."""
    several, ids = len({(one.train_set, one.sets_id) for one in trainings}) > 1, {one.sets_id for one in trainings}
    labelled, unlabelled = {}, {}
    for training in trainings:
        split = (training.train_set, training.sets_id)
        of_id = f" of id {training.sets_id}" if len(ids) > 1 else ""
        name = f"labelled {split[0]}{of_id}" if several else "labelled"
        labelled[name] = Subset(functools.partial(data.labeled, *split), LABELLED)
        if training.state == 1:
            unlabelled[f"unlabelled{of_id}"] = Subset(functools.partial(data.unlabeled, *split), UNLABELLED)
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
    digest: bytes | None  # of its file
    turned: bool  # by an orientation tag
    counts: np.ndarray | None  # (num_classes + 1,) pixels of each class and, last, ignored ones
    errors: list


def check(data, subsets, plan, *, functions=(), workers=None, progress=iter):
    """Check every image and mask of ``subsets`` (a dict of name -> ``Subset``), and whether ``plan`` fits this machine.

    ``data`` is the ``dmt.session.Data``. ``functions`` are further checks that take nothing and raise ``UserError``, as
    loading the first weights. ``workers`` threads decode (default: one for each processor, at most 16). ``progress``
    wraps a list. Returns a ``Report``.
    """
    report, spec = Report(), data.spec
    lists = {}
    for name, subset in subsets.items():
        samples = _attempt(report.errors, subset.read)
        if samples is not None:
            lists[name] = samples
    for function in functions:
        _attempt(report.errors, function)
    report.errors += _overlaps(subsets, lists)
    found = _examine_all(spec, set(itertools.chain(*lists.values())), workers, progress)
    _check_memory(spec, plan, report)
    _check_disk(spec, plan, subsets, lists, found, report)
    for name, items in lists.items():  # one line a file comes last, there may be many
        report.errors += [error for item in items for error in found[item].errors]
        if spec.test_by == "pad" and subsets[name].kind != LABELLED:
            report.errors += _too_large(spec, items, found)
    report.errors = list(dict.fromkeys(report.errors))  # an image may stand in several lists
    _check_validation(spec, subsets, lists, found, report)
    report.warnings += _copies(subsets, lists, found)
    turned = [item for items in lists.values() for item in items if found[item].turned]
    if turned:
        report.warnings.append(f"{len(turned)} images carry an orientation tag, {turned[0].image} for one: "
                               f"{images.TURN_IT}; masks are taken to lie as the files do")
    report.warnings += _lacking_classes(spec, subsets, lists, found)
    report.table += _table(spec, subsets, lists, found)
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


def _examine_all(spec, samples, workers, progress):
    """Dict of sample -> ``_Examined``."""
    samples = sorted(samples, key=lambda sample: str(sample.image))
    with ThreadPoolExecutor(workers or min(16, os.cpu_count() or 1)) as pool:  # decoding lets other threads run
        futures = [pool.submit(_examine, spec, sample) for sample in samples]
        try:
            return {sample: future.result() for future, sample in zip(progress(futures), samples)}
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _examine(spec, sample):
    """Decode an image and its mask, and compare them."""
    errors, counts, path = [], None, sample.image
    image = _attempt(errors, images.read_image, path)
    size = None if image is None else image.shape[:2]
    mask = None if sample.mask is None else _attempt(errors, images.read_mask, sample.mask, spec)
    if mask is not None:
        counts = np.bincount(mask.ravel(), minlength=256)[[*range(spec.num_classes), 255]]
        if size is not None and size != mask.shape:
            errors.append(images.unequal(path, sample.mask, size, mask.shape))
    turned = not errors and images.is_turned(path)
    return _Examined(size, None if image is None else images.digest(path), turned, counts, errors)


def _too_large(spec, samples, found):
    """Labelling and validation pad images to the test size; one that is larger would not fit."""
    rows, columns = spec.test_size
    for sample in samples:
        height, width = found[sample].size or (0, 0)
        if height > rows or width > columns:
            yield (f"the image {sample.image} is {width} x {height} pixels, larger than the test size {columns} x "
                   f"{rows} it is padded to; raise test_size in the dataset's spec or give --test-size")


def _of_different_kinds(subsets, lists):
    """Pairs of (name, samples): the labelled halves of a split may share images, other lists may not."""
    for one, other in itertools.combinations(lists.items(), 2):
        if subsets[one[0]].kind != subsets[other[0]].kind:
            yield one, other


def _overlaps(subsets, lists):
    """Images that stand in two lists of different kinds."""
    for (one, first), (other, second) in _of_different_kinds(subsets, lists):
        shared = sorted({sample.image for sample in first} & {sample.image for sample in second})
        if shared:
            shown = ", ".join(str(path) for path in shared[:_NAMES_SHOWN])
            more = f" and {len(shared) - _NAMES_SHOWN} more" if len(shared) > _NAMES_SHOWN else ""
            yield (f"{shown}{more}: {'this image stands' if len(shared) == 1 else 'these images stand'} in both the "
                   f"list {one} and the list {other}; take each out of one of the two, or make the lists again with "
                   "generate_splits.py")


def _copies(subsets, lists, found):
    """Images of two lists of different kinds that are other files, but of the same content or name."""
    for (one, first), (other, second) in _of_different_kinds(subsets, lists):
        contents = {found[sample].digest: sample.image for sample in first if found[sample].digest}
        names = {sample.name: sample.image for sample in first if found[sample].digest}
        copies = [(sample.image, contents[found[sample].digest]) for sample in second if found[sample].digest in contents]
        namesakes = [(sample.image, names[sample.name]) for sample in second
                     if sample.name in names and found[sample].digest and found[sample].digest not in contents]
        judged = VALIDATION in (subsets[one].kind, subsets[other].kind)
        never = "; what is validated on must not be trained on" if judged else ""
        for what, pairs in (("copies of", copies), ("called like", namesakes)):
            pairs = [(path, twin) for path, twin in pairs if path != twin]
            if pairs:
                yield (f"{len(pairs)} of the {other} images are {what} {one} images ({pairs[0][0]} and {pairs[0][1]}, "
                       f"for one){never}")


def _check_validation(spec, subsets, lists, found, report):
    """A figure needs labelled pixels, and more than two images."""
    for name, items in lists.items():
        examined = [found[item].counts for item in items if found[item].counts is not None]
        if subsets[name].kind != UNLABELLED and examined and not _counts(spec, items, found)[:-1].any():
            report.errors.append(f"the list {name}: {images.NO_LABEL.format(items[0].name)}")
        if subsets[name].kind == VALIDATION and len(items) <= 2:
            report.warnings.append(f"{len(items)} image{'s' * (len(items) != 1)} for validation: the best checkpoint "
                                   "is chosen by chance; give more")


# --- classes --------------------------------------------------------------------------------------------------------


def _counts(spec, items, found):
    """(num_classes + 1,) pixels of each class and, last, of ignored ones, over the masks that decode."""
    return sum((found[item].counts for item in items if found[item].counts is not None),
               start=np.zeros(spec.num_classes + 1, np.int64))


def _lacking_classes(spec, subsets, lists, found):
    for name, items in lists.items():
        if subsets[name].kind == LABELLED:
            counts = _counts(spec, items, found)[:-1]
            lacking = [spec.class_names[index] for index in np.flatnonzero(counts == 0)]
            if lacking:
                yield (f"no mask of the list {name} has a pixel of {', '.join(lacking)}; a network trained on it "
                       "cannot learn that: choose another split, or go on knowing so")


def _table(spec, subsets, lists, found):
    """Lines: a list's images and sizes each, then the share of every class in percent of the labelled pixels."""
    shares = {}
    for name, items in lists.items():
        sizes = np.array([found[item].size for item in items if found[item].size is not None])
        line = f"{name}: {len(items)} image{'s' * (len(items) != 1)}"
        if len(sizes):
            (low_height, low_width), (height, width) = sizes.min(axis=0), sizes.max(axis=0)
            line += f", {_range(low_width, width)} pixels wide and {_range(low_height, height)} high"
        if subsets[name].kind != UNLABELLED:
            counts = _counts(spec, items, found)
            shares[name] = 100 * counts[:-1] / max(counts[:-1].sum(), 1)
            line += f", {100 * counts[:-1].sum() / max(counts.sum(), 1):.2f} % of the pixels labelled"
        yield line
    if shares:
        widths = [max(8, len(name)) for name in shares]
        first = max(len(name) for name in (*spec.class_names, "class (% of pixels)"))
        yield "  ".join(["class (% of pixels)".ljust(first), *(f"{name:>{w}}" for name, w in zip(shares, widths))])
        for index, class_name in enumerate(spec.class_names):
            yield "  ".join([class_name.ljust(first),
                             *(f"{share[index]:{w}.2f}" for share, w in zip(shares.values(), widths))])


def _range(low, high):
    return f"{low}" if low == high else f"{low} to {high}"


# --- disk -----------------------------------------------------------------------------------------------------------


def disk_bytes(spec, plan, sizes):
    """(bytes of pseudo labels, bytes of checkpoints and training states) at the fullest moment of a run.

    ``sizes`` are the (height, width) of the unlabelled images. Labels stay; of predictions the launchers leave two rounds.
    """
    labels = sum(_LABEL_BYTES * height * width + _IMAGE_BYTES for height, width in sizes)
    stride = traits(plan.backbone, plan.output_stride).output_stride
    points = sum((-(-height // stride) + 1) * (-(-width // stride) + 1) for height, width in sizes)
    logits = points * spec.num_classes * 2  # 16 bits each
    labelings = plan.arms * (plan.rounds * labels + min(plan.rounds, 2) * logits)
    network = memory.meta_network(spec.num_classes, plan.backbone, plan.aspp_branches, plan.output_stride)
    checkpoint = 4 * sum(tensor.numel() for tensor in network.state_dict().values())
    stages = plan.arms * (plan.rounds + 1) + _TRAINING_FILES if plan.batch_size else 0
    return int(labelings), checkpoint * stages


def _check_disk(spec, plan, subsets, lists, found, report):
    """Compare ``disk_bytes`` with the free room; what an interrupted run has written already counts as there."""
    sizes = [found[item].size for name, items in lists.items() if subsets[name].kind == UNLABELLED
             for item in items if found[item].size is not None]
    if spec.test_by == "resize":
        sizes = [spec.test_size] * len(sizes)
    labelings, checkpoints = disk_bytes(spec, plan, sizes)
    folder = Path(plan.output_dir).expanduser().absolute()
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


def _check_memory(spec, plan, report):
    """Compare the estimate with ``plan.max_memory``, and with what is free on a GPU; on a CPU only report it."""
    fitted = _attempt(report.errors, memory.fit, spec, plan)
    plan = fitted or dataclasses.replace(plan, max_memory=None)
    training, labeling = memory.memory_bytes(spec, plan)
    device = torch.device(plan.device)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    report.estimates.append(f"{'GPU ' if free is not None else ''}memory: {memory.estimate(spec, plan)}; "
                            + (f"{gb(free)} free on {device}" if free is not None else f"not judged on {device}"))
    if free is None:
        return
    mixed = "" if plan.mixed_precision else " or --mixed-precision"
    if training is not None and training > free:
        report.errors.append(f"training {in_pixels(memory.images_at_once(plan), spec.crop)} needs about {gb(training)} "
                             f"of GPU memory, but {device} has {gb(free)} free; give --max-memory or a larger "
                             f"--accumulate (batches in parts), a smaller --crop-size{mixed}, or end what else runs "
                             "there")
    if labeling > free:
        report.errors.append(f"labelling {in_pixels(plan.batch_size_labeling, spec.test_size)} needs about "
                             f"{gb(labeling)} of GPU memory, but {device} has {gb(free)} free; give a smaller "
                             f"--batch-size-labeling{mixed}, or end what else runs there")
