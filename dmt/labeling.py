"""Labelling: what one arm teaches the other (DMT paper, class-balanced pseudo labels; PLE paper, enhancement).

Two passes. The first runs the network once over every unlabelled image, keeps its quantized logits and counts the
confidences of every 16th pixel. Then the thresholds are known, and the second pass decides every pixel from what is
stored: thresholds, and from the second round on the merge with the previous model's predictions. The previous model's
logits are still there from the round before, so PLE costs no forward pass.
"""

import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np
import torch

from data.confidence import decode
from data.store import Prediction, PseudoLabelStore, find_predictions, names_digest
from dmt.enhancement import takes_previous
from dmt.prediction import classify_with_confidence, covering, dequantize, quantize
from dmt.thresholds import ConfidenceHistogram, apply_thresholds, codes_of_thresholds, sample
from utils.errors import UserError
from utils.files import remove_left_overs, sha256, write_json
from utils.runs import difference, peak_memory

_WRITERS = 4
_PENDING = 64  # images that may wait to be written, so that a slow disk does not fill the memory


@dataclass(frozen=True)
class LabelingRules:
    """How predictions become pseudo labels: ratio r, and for PLE beta, the background class and conflict reduction."""

    ratio: float
    beta: float = 0.15
    background: int | None = 0
    conflict_reduction: bool = True


class Writers:
    """A few threads that encode and write files while the network runs on. Errors surface at the next ``add``."""

    def __init__(self):
        self._pool, self._pending = ThreadPoolExecutor(_WRITERS), deque()

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
        if len(self._pending) >= _PENDING:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(function, *arguments))


@torch.inference_mode()
def predict(model, loader, names, store, input_format, precision, device, progress=iter):
    """First pass: run ``model`` (set to eval mode) over ``loader`` and write its logits to ``store``.

    ``loader`` gives batches of ``data.datasets.collate_whole``, whose indices count in ``names``. Returns the
    ``ConfidenceHistogram`` of every 16th pixel of these images.
    """
    model.eval()
    histogram = ConfidenceHistogram(model.num_classes)
    with Writers() as writers:
        for images, _, indices, sizes in progress(loader):
            test_size = images.shape[1:3]
            with precision.autocast():
                maps = model(input_format.normalize(images.to(device, non_blocking=True)))
            for logits, index, size in zip(maps, indices, sizes):
                map_size = tuple(logits.shape[1:])
                (rows, columns), _ = covering(size, test_size, map_size)
                steps = quantize(logits[:, :rows, :columns])
                classes, codes = classify_with_confidence(dequantize(steps), size, test_size, map_size)
                histogram.update_codes(sample(classes), sample(codes))
                prediction = Prediction(steps.cpu().numpy().astype(np.uint16), tuple(size), map_size)
                writers.add(store.write_logits, names[index], prediction)
    return histogram


@torch.inference_mode()
def stored_prediction(store, name, test_size, device="cpu"):
    """(classes (H, W) uint8, confidence codes (H, W) uint16) of an image whose logits are in ``store``."""
    steps, size, map_size = store.read_logits(name)
    steps = torch.from_numpy(steps.astype(np.int32)).to(device)
    classes, codes = classify_with_confidence(dequantize(steps), size, test_size, map_size)
    return classes.cpu().numpy(), codes.cpu().numpy().astype(np.uint16)


def missing_batches(names, store, batch_size, read, take=lambda parts: None):
    """Which batches (lists of indices in ``names``) have to be predicted, since ``store`` does not hold them whole.

    ``read(name)`` looks at what is there and raises when it is damaged; ``take`` gets what it returned, as a list, for
    every whole batch. A batch of which one image is missing or damaged is predicted anew, so that every image is
    computed in the same company as in a labelling that nothing interrupted.
    """
    batches = [list(range(start, min(start + batch_size, len(names)))) for start in range(0, len(names), batch_size)]

    def parts_of(batch):
        try:
            if all(store.logits_path(names[index]).is_file() for index in batch):
                return [read(names[index]) for index in batch]
        except (UserError, ValueError, RuntimeError):  # damaged
            pass
        return None

    missing = []
    with ThreadPoolExecutor(_WRITERS) as pool:
        for batch, parts in zip(batches, pool.map(parts_of, batches)):
            if parts is None:
                missing.append(batch)
            else:
                take(parts)
    return missing


def decide(current, previous, threshold_codes, rules):
    """One image's pseudo label: thresholds, then PLE where there is a previous prediction.

    ``current`` and ``previous`` are pairs (classes (H, W) uint8, codes (H, W) uint16), ``previous`` may be None. Both
    are thresholded with the current model's thresholds. Returns (labels with 255 = ignored, codes, labels before the
    merge).
    """
    classes, codes = current
    before = apply_thresholds(classes, codes, threshold_codes)
    if previous is None:
        return before, codes, before
    old_classes, old_codes = previous
    old = apply_thresholds(old_classes, old_codes, threshold_codes)
    mask = takes_previous((before, decode(codes)), (old, decode(old_codes)), rules.beta, rules.background,
                          rules.conflict_reduction)
    return np.where(mask, old, before), np.where(mask, old_codes, codes), before


def write_pseudo_labels(names, test_size, store, previous, thresholds, rules, device="cpu", progress=iter):
    """Second pass: decide and write the pseudo label of every image.

    ``previous`` is the store that holds the previous model's logits, or None. Returns the shares of labelled pixels:
    {"before": thresholds alone, "after": with PLE, "changed": pixels whose label the merge changed}.
    """
    threshold_codes = codes_of_thresholds(thresholds)
    counts = np.zeros(4, np.int64)

    def one(name):
        current = stored_prediction(store, name, test_size, device)
        old = None if previous is None else stored_prediction(previous, name, test_size, device)
        labels, codes, before = decide(current, old, threshold_codes, rules)
        store.write_pseudo_label(name, labels, codes)
        return labels.size, (before != 255).sum(), (labels != 255).sum(), (labels != before).sum()

    with ThreadPoolExecutor(_WRITERS) as pool:
        for result in progress(pool.map(one, names)):
            counts += result
    pixels, before, after, changed = (int(count) for count in counts)
    return {"before": before / pixels, "after": after / pixels, "changed": changed / pixels}


def label(predict_with, checkpoint, old, names, store, source, rules, batch_size, device="cpu", progress=iter,
          check=lambda histogram: None):
    """The whole of a labelling stage: both passes, and the manifest that makes the store valid.

    ``predict_with(file, store, batches)`` runs the first pass with a checkpoint file. ``old`` is the previous
    checkpoint of the same arm (PLE) or None; its predictions are taken from the neighbouring stores, or made where none
    has them. ``source`` (dataset, split, network, test size) goes into the manifest. ``check`` sees the histogram
    before anything is decided. What an earlier start has left is used: a finished labelling is only verified, an
    interrupted one goes on. Returns (shares of labelled pixels, whether there was anything to do).
    """
    origin = {**source, "names_sha256": names_digest(names), "batch_size": batch_size}
    origins = {file: {**origin, "checkpoint_sha256": sha256(file)} for file in (checkpoint, old) if file}
    expected = {**origins[checkpoint], "rules": asdict(rules), "previous": None if old is None else old.name,
                "previous_sha256": None if old is None else origins[old]["checkpoint_sha256"]}
    shares, began = finished_shares(store, expected, names), time.monotonic()
    if shares is not None:
        return shares, False
    store.remove_manifest()
    remove_left_overs(store.folder, "**/*")

    def read(name):
        classes, codes = stored_prediction(store, name, source["test_size"], device)
        return sample(classes).copy(), sample(codes).copy()  # views would keep the whole maps

    def count(parts):
        for part in parts:
            histogram.update_codes(*part)

    histogram = ConfidenceHistogram(source["network"]["num_classes"])
    store.begin_predictions(origins[checkpoint])
    missing = missing_batches(names, store, batch_size, read, count)
    if missing:
        histogram.merge(predict_with(checkpoint, store, missing))
    check(histogram)
    previous = None
    if old is not None:
        previous = (find_predictions(store.folder.parent, origins[old]) or PseudoLabelStore(store.folder / "previous"))
        previous.begin_predictions(origins[old])
        missing = missing_batches(names, previous, batch_size, lambda name: bool(previous.read_logits(name)))
        if missing:
            predict_with(old, previous, missing)
    thresholds = histogram.thresholds(rules.ratio)
    shares = write_pseudo_labels(names, source["test_size"], store, previous, thresholds, rules, device, progress)
    write_json(store.folder / "timing.json",  # of this start; beside the manifest, which has to stay the same bytes
               {"seconds": round(time.monotonic() - began, 2), "images": len(names), **peak_memory(device)})
    store.write_manifest({**expected, "checkpoint": checkpoint.name, "images": len(names), "labeled_share": shares,
                          "thresholds": [float(value) for value in thresholds]})
    return shares, True


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
