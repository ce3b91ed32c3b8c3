"""Labelling: what one arm teaches the other (DMT paper, class-balanced pseudo labels; PLE paper, enhancement).

Two passes. The first runs the network once over every unlabelled image, keeps its quantized logits and counts the
confidences of every 16th pixel. Then the thresholds are known, and the second pass decides every pixel from what is
stored: thresholds, and from the second round on the merge with the previous model's predictions. The previous model's
logits are still there from the round before, so PLE costs no forward pass.
"""

import math
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
from dmt.prediction import classify_with_confidence, covering, dequantize, quantize
from dmt.thresholds import ConfidenceHistogram, apply_thresholds, codes_of_thresholds, sample
from utils.distributed import ALONE
from utils.errors import UserError
from utils.files import remove_left_overs, sha256, sync, write_json
from utils.processors import usable
from utils.runs import difference, peak_memory
from utils.transfer import Upload, download

_THREADS = max(4, min(16, usable()))  # for reading and writing; zlib and the disk let others work meanwhile
_PENDING = 64  # images that may wait to be written, so that a slow disk does not fill the memory


@dataclass(frozen=True)
class LabelingRules:
    """How predictions become pseudo labels: ratio r, and for PLE beta, the background class and conflict reduction."""

    ratio: float
    beta: float = 0.15
    background: int | None = 0
    conflict_reduction: bool = True


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
def predict(model, loader, names, store, forward, device, progress=iter):
    """First pass: run ``model`` (set to eval mode) over ``loader`` and write its logits to ``store``.

    ``loader`` gives batches of ``data.datasets.collate_whole``, whose indices count in ``names``; ``forward`` runs the
    model on one (see ``dmt.prediction.network_maps``). Returns the ``ConfidenceHistogram`` of every 16th pixel of these
    images. A GPU is never waited for: what it finds is fetched by the threads that write.
    """
    model.eval()
    histogram, upload = ConfidenceHistogram(model.num_classes), Upload(device)

    def write(name, steps, *sizes):
        store.write_logits(name, Prediction(steps(), *sizes))

    with Writers() as writers:
        for images, _, indices, sizes in progress(loader):
            test_size = images.shape[1:3]
            maps = forward(*upload(images))
            for logits, index, size in zip(maps, indices, sizes):
                map_size = tuple(logits.shape[1:])
                (rows, columns), _ = covering(size, test_size, map_size)
                steps = quantize(logits[:, :rows, :columns])
                classes, codes = classify_with_confidence(dequantize(steps), size, test_size, map_size)
                histogram.update_codes(sample(classes), sample(codes))
                writers.add(write, names[index], download(steps.to(torch.uint16)), tuple(size), map_size)
    return histogram


def stored_prediction(store, name, test_size, device="cpu"):
    """(classes (H, W) uint8, confidence codes (H, W) uint16) of an image whose logits are in ``store``, as arrays."""
    classes, codes = _pixels(_steps(store.read_logits(name)), test_size, device)
    return classes.cpu().numpy(), codes.cpu().numpy().astype(np.uint16)


def _steps(prediction, pinned=False):
    """A ``data.store.Prediction`` with its steps as an int32 tensor, which a GPU can fetch by itself if ``pinned``."""
    steps = torch.from_numpy(prediction.steps.astype(np.int32))
    return prediction._replace(steps=steps.pin_memory() if pinned else steps)


@torch.inference_mode()
def _pixels(prediction, test_size, device):
    """(classes uint8, confidence codes int32), (H, W) tensors on ``device``, of a prediction as ``_steps`` gives it."""
    steps = dequantize(prediction.steps.to(device, non_blocking=True))
    return classify_with_confidence(steps, prediction.size, test_size, prediction.map_size)


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
    on_gpu = torch.device(device).type != "cpu"
    stores, limits = [store] if previous is None else [store, previous], codes_of_thresholds(thresholds)
    if on_gpu:
        limits = torch.from_numpy(limits.astype(np.int32)).to(device)

    def read(name):
        return [_steps(source.read_logits(name), on_gpu) for source in stores]

    def decided(predictions):
        maps = [_pixels(prediction, test_size, device) for prediction in predictions]
        if not on_gpu:  # numpy is the faster of the two there
            maps = [(classes.numpy(), codes.numpy().astype(np.uint16)) for classes, codes in maps]
        labels, codes, before = decide(maps[0], maps[1] if maps[1:] else None, limits, rules)
        counts = [(before != 255).sum(), (labels != 255).sum(), (labels != before).sum()]
        return labels, grey_confidence(labels, codes), (torch if on_gpu else np).stack(counts)

    def one(name):
        labels, grey, counts = decided(read(name))
        store.write_maps(name, labels, grey)
        return math.prod(labels.shape), counts

    def one_after_another():
        """One thread speaks to the GPU; others read for it, and fetch and write what it found."""
        with Writers() as writers:
            for name, predictions in zip(names, read_ahead(read, names)):
                labels, grey, counts = decided(predictions)
                writers.add(lambda name, *maps: store.write_maps(name, *(part() for part in maps)),
                            name, download(labels), download(grey))
                yield math.prod(labels.shape), counts

    pixels, sums = 0, torch.zeros(3, dtype=torch.int64, device=device) if on_gpu else np.zeros(3, np.int64)
    with ThreadPoolExecutor(_THREADS) as pool:
        for size, counts in progress(one_after_another() if on_gpu else pool.map(one, names)):
            pixels += size
            sums += counts  # a GPU is asked for them once, at the end
    pixels, *others = processes.sum_array(np.array([pixels, *sums.tolist()])).tolist()
    return dict(zip(("before", "after", "changed"), (count / pixels for count in others)))


def label(predict_with, checkpoint, old, names, store, source, rules, machine, progress=iter,
          check=lambda histogram: None):
    """The whole of a labelling stage: both passes, and the manifest that makes the store valid.

    ``predict_with(file, store, batches)`` runs the first pass with a checkpoint file. ``old`` is the previous
    checkpoint of the same arm (PLE) or None; its predictions are taken from the neighbouring stores, or made where none
    has them. ``source`` (dataset, split, network, test size) goes into the manifest. ``machine`` is the
    ``dmt.session.Machine``, whose processes share the batches; the first one writes what is about all images. ``check``
    sees the histogram before anything is decided, on the first process. What an earlier start has left is used: a
    finished labelling is only verified, an interrupted one goes on. Returns (shares of labelled pixels, whether there
    was anything to do).
    """
    device, processes = machine.device, machine.processes
    origin = {**source, "names_sha256": names_digest(names), "batch_size": machine.batch_size}
    origins = {file: {**origin, "checkpoint_sha256": sha256(file)} for file in (checkpoint, old) if file}
    expected = {**origins[checkpoint], "rules": asdict(rules), "previous": None if old is None else old.name,
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
        previous = _previous(lambda *where: predict_with(old, *where), names, batches, store, origins[old], processes)
    thresholds = histogram.thresholds(rules.ratio)
    own = [names[index] for batch in batches for index in batch]  # a machine reads what it has written itself
    shares = write_pseudo_labels(own, source["test_size"], store, previous, thresholds, rules, device, progress,
                                 processes)

    def finish():
        write_json(store.folder / "timing.json",  # of this start; beside the manifest, which has to stay the same bytes
                   {"seconds": round(time.monotonic() - began, 2), "images": len(names), **peak_memory(device)})
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


def _previous(predict, names, batches, store, origin, processes):
    """The store of the previous model's predictions, found beside ``store`` or made in it."""
    def begin():
        previous = find_predictions(store.folder.parent, origin) or PseudoLabelStore(store.folder / "previous")
        previous.begin_predictions(origin)
        return previous

    previous = processes.first(begin)
    missing = missing_batches(names, batches, previous, lambda name: bool(previous.read_logits(name)))
    if missing:
        predict(previous, missing)
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
