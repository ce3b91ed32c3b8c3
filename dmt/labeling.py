"""Labelling: what one arm teaches the other (DMT paper, class-balanced pseudo labels; PLE paper, enhancement).

Two passes. The first runs the network once over every unlabelled image, keeps its quantized logits and counts the
confidences of every 16th pixel. Then the thresholds are known, and the second pass decides every pixel from what is
stored: thresholds, and from the second round on the merge with the previous model's predictions. The previous model's
logits are still there from the round before, so PLE costs no forward pass.
"""

import math
import shutil
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np
import torch

from data.confidence import decode
from data.store import Prediction, PseudoLabelStore, find_predictions, grey_confidence, names_digest
from dmt.enhancement import takes_previous
from dmt.prediction import (
    classify_whole_with_confidence, classify_with_confidence, covering, dequantize, quantize)
from dmt.thresholds import ConfidenceHistogram, apply_thresholds, codes_of_thresholds, sample
from utils.distributed import ALONE
from utils.errors import UserError
from utils.files import remove_left_overs, sha256, sync, write_json
from utils.processors import usable
from utils.runs import difference, peak_memory
from utils.transfer import Upload, download

_THREADS = max(4, min(16, usable()))  # for reading and writing; zlib and the disk let others work meanwhile
_PENDING = 64  # images that may wait to be written, so that a slow disk does not fill the memory
_GROUP = 8  # images that a GPU decides at once: with one after the other it would wait for the processor
_BY_BATCH = "previous-by-batch"  # folder in that of a labelling, while it is made

RUNNING, BATCH = ("running", "batch")


@dataclass(frozen=True)
class LabelingRules:
    """How predictions become pseudo labels: ratio r, and for PLE beta, the background class and conflict reduction.

    ``previous_statistics`` says with which statistics PLE's previous network normalizes: ``RUNNING``, in eval mode, or
    ``BATCH``, those of each labelling batch. The released code forgot to switch that network to eval mode, so the
    published PLE numbers were obtained with ``BATCH``.
    """

    ratio: float
    beta: float = 0.15
    background: int | None = 0
    conflict_reduction: bool = True
    previous_statistics: str = RUNNING

    def values(self):
        """The rules as plain values; the default statistics are left out, for earlier versions knew no others."""
        values = asdict(self)
        if self.previous_statistics == RUNNING:
            del values["previous_statistics"]
        return values


class Writers:
    """A few threads that encode and write files while the network runs on. Errors surface at the next ``add``.

    At most ``limit`` files wait to be written.
    """

    def __init__(self, limit=_PENDING):
        self._pool, self._pending, self._limit = ThreadPoolExecutor(_THREADS), deque(), limit

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is not None:
            self._pool.shutdown(cancel_futures=True)
            return
        while self._pending:
            self._pending.popleft().result()
        self._pool.shutdown()

    def add(self, function, *arguments):
        """Run ``function`` in a thread; wait when too many are pending."""
        if len(self._pending) >= self._limit:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(function, *arguments))


def read_ahead(read, items, limit=_PENDING):
    """``read(item)`` for each of ``items`` in order; a few threads are ahead of whoever takes the results, by ``limit``."""
    with ThreadPoolExecutor(_THREADS) as pool:
        pending = deque()
        for item in items:
            pending.append(pool.submit(read, item))
            if len(pending) >= limit:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


@torch.inference_mode()
def predict(model, loader, names, store, forward, device, progress=iter, batch_statistics=False):
    """First pass: run ``model`` over ``loader`` and write its logits to ``store``.

    The model is set to eval mode, or with ``batch_statistics`` to train mode, in which it normalizes by each batch.

    ``loader`` gives batches of ``data.datasets.collate_whole``, whose indices count in ``names``; ``forward`` runs the
    model on one (see ``dmt.prediction.network_maps``). Returns the ``ConfidenceHistogram`` of every 16th pixel of these
    images. A GPU is never waited for: what it finds is fetched by the threads that write.
    """
    model.train(batch_statistics)
    histogram, upload = ConfidenceHistogram(model.num_classes), Upload(device)

    def write(name, steps, number, part, *sizes):
        store.write_logits(name, Prediction(steps()[number, :, : part[0], : part[1]], *sizes))

    with Writers() as writers:
        for images, _, indices, sizes in progress(loader):
            test_size, maps = images.shape[1:3], forward(*upload(images))
            steps, map_size = quantize(maps), tuple(maps.shape[2:])
            parts = [covering(size, test_size, map_size)[0] for size in sizes]
            _count(histogram, steps, parts, sizes, test_size)
            fetched = download(steps.to(torch.uint16))
            for number, (index, part, size) in enumerate(zip(indices, parts, sizes)):
                writers.add(write, names[index], fetched, number, part, tuple(size), map_size)
    return histogram


def _count(histogram, steps, parts, sizes, test_size):
    """Add every 16th pixel of the images of a batch, whose quantized maps are ``steps``, to ``histogram``."""
    if steps.is_cuda:
        classes, codes = classify_whole_with_confidence(dequantize(steps), test_size)
        sampled = [[sample(maps[number, : size[0], : size[1]]) for number, size in enumerate(sizes)]
                   for maps in (classes, codes)]
        histogram.update_codes(*map(torch.cat, sampled))
        return
    for own, (rows, columns), size in zip(steps, parts, sizes):
        classes, codes = classify_with_confidence(dequantize(own[:, :rows, :columns]), size, test_size, own.shape[1:])
        histogram.update_codes(sample(classes), sample(codes))


@torch.inference_mode()
def stored_prediction(store, name, test_size, device="cpu"):
    """(classes (H, W) uint8, confidence codes (H, W) uint16) of an image whose logits are in ``store``, as arrays."""
    prediction = store.read_logits(name)
    steps = dequantize(torch.from_numpy(prediction.steps.astype(np.int32)).to(device))
    classes, codes = classify_with_confidence(steps, prediction.size, test_size, prediction.map_size)
    return classes.cpu().numpy(), codes.cpu().numpy().astype(np.uint16)


def missing_batches(names, batches, store, read, take=lambda parts: None):
    """Which ``batches`` (lists of indices in ``names``) have to be predicted, since ``store`` does not hold them whole.

    ``read(name)`` looks at what is there and raises when it is damaged; ``take`` gets what it returned, as a list, for
    every whole batch. A batch of which one image is missing or damaged is predicted anew, so that every image is
    computed in the same company as in a labelling that nothing interrupted.
    """
    def parts_of(batch):
        try:
            if all(store.logits_path(names[index]).is_file() for index in batch):
                return [read(names[index]) for index in batch]
        except (UserError, ValueError, RuntimeError):  # damaged
            pass
        return None

    missing = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for batch, parts in zip(batches, pool.map(parts_of, batches)):
            if parts is None:
                missing.append(batch)
            else:
                take(parts)
    return missing


def decide(current, previous, threshold_codes, rules):
    """One image's pseudo label: thresholds, then PLE where there is a previous prediction.

    ``current`` and ``previous`` are pairs (classes (H, W) uint8, codes (H, W) integers), ``previous`` may be None. Both
    are thresholded with the current model's thresholds. All are arrays, or all are tensors on one device. Returns
    (labels with 255 = ignored, codes, labels before the merge).
    """
    classes, codes = current
    before = apply_thresholds(classes, codes, threshold_codes)
    if previous is None:
        return before, codes, before
    old_classes, old_codes = previous
    old = apply_thresholds(old_classes, old_codes, threshold_codes)
    mask = takes_previous((before, decode(codes)), (old, decode(old_codes)), rules.beta, rules.background,
                          rules.conflict_reduction)
    where = torch.where if isinstance(mask, torch.Tensor) else np.where
    return where(mask, old, before), where(mask, old_codes, codes), before


def write_pseudo_labels(names, test_size, store, previous, thresholds, rules, device="cpu", progress=iter,
                        processes=ALONE):
    """Second pass: decide and write the pseudo label of every image; ``names`` are this one of the ``processes``'.

    ``previous`` is the store that holds the previous model's logits, or None. Returns the shares of labelled pixels, of
    all processes: {"before": thresholds alone, "after": with PLE, "changed": pixels whose label the merge changed}.
    """
    stores, limits = [store] if previous is None else [store, previous], codes_of_thresholds(thresholds)
    # A GPU counts for itself and is asked for the sums once, at the end.
    pixels, sums = 0, torch.zeros(3, dtype=torch.int64, device=device)
    decide_all = _decide_in_groups if sums.is_cuda else _decide_one_by_one
    for size in progress(decide_all(names, test_size, stores, limits, rules, sums)):
        pixels += size
    pixels, *others = processes.sum_array(np.array([pixels, *sums.tolist()])).tolist()
    return dict(zip(("before", "after", "changed"), (count / pixels for count in others)))


def _decide_one_by_one(names, test_size, stores, limits, rules, sums):
    """Decide and write every image, in a few threads; yields their numbers of pixels. ``sums`` are added to."""
    def one(name):
        maps = [stored_prediction(store, name, test_size) for store in stores]
        labels, codes, before = decide(maps[0], maps[1] if maps[1:] else None, limits, rules)
        stores[0].write_maps(name, labels, grey_confidence(labels, codes))
        return labels.size, [int(changed.sum()) for changed in (before != 255, labels != 255, labels != before)]

    with ThreadPoolExecutor(_THREADS) as pool:
        for size, counts in pool.map(one, names):
            sums += torch.tensor(counts)
            yield size


def _decide_in_groups(names, test_size, stores, limits, rules, sums):
    """As ``_decide_one_by_one``, on the device of ``sums``: a group of images at a time.

    One thread speaks to the GPU; others read for it, and fetch and write what it found.
    """
    device = sums.device
    limits = torch.from_numpy(limits.astype(np.int32)).to(device)
    rows, columns = (torch.arange(length, device=device) for length in test_size)

    def read(group):
        """(steps of all stores and images (S, N, C, h, w), 16 bits; sizes (N, 2)), where a GPU can fetch them."""
        predictions = [[store.read_logits(name) for name in group] for store in stores]
        first = predictions[0][0]
        if any(other.map_size != first.map_size for of_store in predictions for other in of_store):
            raise ValueError(f"predictions of {', '.join(group)} have logit maps of different sizes")
        steps = np.zeros((len(stores), len(group), len(first.steps), *first.map_size), np.uint16)
        for own, of_store in zip(steps, predictions):
            for whole, prediction in zip(own, of_store):
                whole[:, : prediction.steps.shape[1], : prediction.steps.shape[2]] = prediction.steps
        sizes = torch.tensor([prediction.size for prediction in predictions[0]])
        found = [torch.from_numpy(steps.view(np.int16)), sizes]
        return [tensor.pin_memory() for tensor in found] if sums.is_cuda else found

    @torch.inference_mode()
    def decided(steps, sizes):
        steps, sizes = (tensor.to(device, non_blocking=True) for tensor in (steps, sizes))
        logits = dequantize(steps.int() & 0xFFFF)  # the 16 bits are without a sign
        maps = [classify_whole_with_confidence(own, test_size) for own in logits]
        labels, codes, before = decide(maps[0], maps[1] if maps[1:] else None, limits, rules)
        inside = (rows[:, None] < sizes[:, :1, None]) & (columns < sizes[:, 1:, None])
        sums.add_(torch.stack([(found & inside).sum()
                               for found in (before != 255, labels != 255, labels != before)]))
        return download(labels), download(grey_confidence(labels, codes))

    def write(name, number, size, *fetched):
        stores[0].write_maps(name, *(maps()[number, : size[0], : size[1]] for maps in fetched))

    groups = [names[start : start + _GROUP] for start in range(0, len(names), _GROUP)]
    with Writers() as writers:
        for group, (steps, sizes) in zip(groups, read_ahead(read, groups, 2 * _PENDING // _GROUP)):
            fetched = decided(steps, sizes)
            for number, (name, size) in enumerate(zip(group, sizes.tolist())):
                writers.add(write, name, number, size, *fetched)
                yield math.prod(size)


def label(predict_with, checkpoint, old, names, store, source, rules, machine, progress=iter,
          check=lambda histogram: None):
    """The whole of a labelling stage: both passes, and the manifest that makes the store valid.

    ``predict_with(file, store, batches, batch_statistics=False)`` runs the first pass with a checkpoint file. ``old``
    is the previous checkpoint of the same arm (PLE) or None; its predictions are taken from the neighbouring stores, or
    made where none has them; with the statistics of each batch they are made and removed again. ``source`` (dataset,
    split, network, test size) goes into the manifest. ``machine`` is the ``dmt.session.Machine``, whose processes share the
    batches; the first one writes what is about all images. ``check`` sees the histogram before anything is decided, on
    the first process. What an earlier start has left is used: a finished labelling is only verified, an interrupted one
    goes on. Returns (shares of labelled pixels, whether there was anything to do).
    """
    device, processes = machine.device, machine.processes
    origin = {**source, "names_sha256": names_digest(names), "batch_size": machine.batch_size}
    origins = {file: {**origin, "checkpoint_sha256": sha256(file)} for file in (checkpoint, old) if file}
    expected = {**origins[checkpoint], "rules": rules.values(), "previous": None if old is None else old.name,
                "previous_sha256": None if old is None else origins[old]["checkpoint_sha256"]}
    processes.agree(expected, f"the numbers, lists or files of the labelling in {store.folder}")
    began = time.monotonic()

    def begin():
        shares = finished_shares(store, expected, names)
        if shares is None:
            store.remove_manifest()
            remove_left_overs(store.folder, "**/*")
            store.begin_predictions(origins[checkpoint])
        return shares

    shares = processes.first(begin)
    if shares is not None:
        return shares, False

    batches = machine.whole_batches(len(names))
    histogram = _confidences(lambda missing: predict_with(checkpoint, store, missing), names, batches, store, source,
                             machine)
    processes.first(check, histogram)
    previous = None
    if old is not None:
        previous = _previous(predict_with, old, names, batches, store, origins[old], rules, processes)
    thresholds = histogram.thresholds(rules.ratio)
    own = [names[index] for batch in batches for index in batch]  # a machine reads what it has written itself
    shares = write_pseudo_labels(own, source["test_size"], store, previous, thresholds, rules, device, progress,
                                 processes)

    def finish():
        write_json(store.folder / "timing.json",  # of this start; beside the manifest, which has to stay the same bytes
                   {"seconds": round(time.monotonic() - began, 2), "images": len(names), **peak_memory(device)})
        shutil.rmtree(store.folder / _BY_BATCH, ignore_errors=True)
        store.write_manifest({**expected, "checkpoint": checkpoint.name, "images": len(names), "labeled_share": shares,
                              "thresholds": [float(value) for value in thresholds]})

    processes.each_machine(sync)  # all is on the disks when the manifest says so
    processes.first(finish)
    return shares, True


def _confidences(predict, names, batches, store, source, machine):
    """The first pass: predict the ``batches`` that ``store`` lacks. Returns the histogram over all processes' images."""
    histogram = ConfidenceHistogram(source["network"]["num_classes"])

    def read(name):
        classes, codes = stored_prediction(store, name, source["test_size"], machine.device)
        return sample(classes).copy(), sample(codes).copy()  # views would keep the whole maps

    def count(parts):
        for part in parts:
            histogram.update_codes(*part)

    missing = missing_batches(names, batches, store, read, count)
    if missing:
        histogram.merge(predict(missing))
    histogram.counts[...] = machine.processes.sum_array(histogram.counts)
    return histogram


def _previous(predict_with, old, names, batches, store, origin, rules, processes):
    """The store of the previous model's predictions, found beside ``store`` or made in it.

    Predictions with the statistics of each batch have a place of their own: the others are those of a "current" model,
    and the report measures forgetting by them.
    """
    by_batch = rules.previous_statistics == BATCH
    if by_batch:
        origin = {**origin, "statistics": BATCH}

    def begin():
        previous = PseudoLabelStore(store.folder / _BY_BATCH) if by_batch else (
            find_predictions(store.folder.parent, origin) or PseudoLabelStore(store.folder / "previous"))
        previous.begin_predictions(origin)
        return previous

    previous = processes.first(begin)
    missing = missing_batches(names, batches, previous, lambda name: bool(previous.read_logits(name)))
    if missing:
        predict_with(old, previous, missing, by_batch)
    return previous


def finished_shares(store, expected, names):
    """The shares of labelled pixels when ``store`` holds the finished labelling ``expected``, else None.

    Says on standard output why a labelling that had finished is made anew, or which of its files are damaged.
    """
    if not (store.folder / "manifest.json").is_file():
        return None
    try:
        manifest = store.read_manifest()
        reason = difference({key: manifest.get(key) for key in expected}, expected)
    except UserError as error:
        reason = str(error)
    if reason is None and not store.pruned():
        damaged = store.damaged(names)
        if damaged:
            reason = f"{damaged[0]} is missing or damaged" + (f" and {len(damaged) - 1} more" if damaged[1:] else "")
    if reason is None:
        return manifest["labeled_share"]
    print(f"{store.folder}: labelled anew, since {reason}", flush=True)
    return None


def warn_of_empty_classes(histogram, class_names):
    """Name the classes that won no sampled pixel: nothing of them will be taught in this round."""
    empty = [class_names[index] for index in histogram.empty_classes()]
    if empty:
        print(f"warning: no pixel was predicted as {', '.join(empty)}; their threshold is 1e-5", file=sys.stderr)
