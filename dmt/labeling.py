"""Labelling: what one arm teaches the other (DMT paper, class-balanced pseudo labels; PLE paper, enhancement).

Two passes. The first runs the network once over every unlabelled image, keeps its quantized logits and counts the
confidences of every 16th pixel. Then the thresholds are known, and the second pass decides every pixel from what is
stored: thresholds, and from the second round on the merge with the previous model's predictions. The previous model's
logits are still there from the round before, so PLE costs no forward pass.
"""

import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np
import torch

from data.confidence import decode
from data.store import PseudoLabelStore, find_predictions, names_digest
from dmt.enhancement import takes_previous
from dmt.prediction import classify_with_confidence, covering, dequantize, quantize
from dmt.thresholds import ConfidenceHistogram, apply_thresholds, codes_of_thresholds, sample
from utils.files import sha256

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
    """First pass: run ``model`` (set to eval mode) over ``loader`` and write the logits of ``names`` to ``store``.

    ``loader`` gives batches of ``data.datasets.collate_whole``. Returns the ``ConfidenceHistogram`` of every 16th
    pixel and the list of (size, map size) of the images, in the order of ``names``.
    """
    model.eval()
    histogram = ConfidenceHistogram(model.num_classes)
    shapes = [None] * len(names)
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
                writers.add(store.write_logits, names[index], steps.cpu().numpy().astype(np.uint16))
                shapes[index] = (tuple(size), map_size)
    return histogram, shapes


@torch.inference_mode()
def stored_prediction(store, name, shape, test_size, device="cpu"):
    """(classes (H, W) uint8, confidence codes (H, W) uint16) of an image whose logits are in ``store``.

    ``shape`` is the pair (size, map size) that ``predict`` returned for it.
    """
    steps = torch.from_numpy(store.read_logits(name).astype(np.int32)).to(device)
    size, map_size = shape
    classes, codes = classify_with_confidence(dequantize(steps), size, test_size, map_size)
    return classes.cpu().numpy(), codes.cpu().numpy().astype(np.uint16)


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


def write_pseudo_labels(names, shapes, test_size, store, previous, thresholds, rules, device="cpu", progress=iter):
    """Second pass: decide and write the pseudo label of every image.

    ``previous`` is the store that holds the previous model's logits, or None. Returns the shares of labelled pixels:
    {"before": thresholds alone, "after": with PLE, "changed": pixels whose label the merge changed}.
    """
    threshold_codes = codes_of_thresholds(thresholds)
    counts = np.zeros(4, np.int64)

    def one(name, shape):
        current = stored_prediction(store, name, shape, test_size, device)
        old = None if previous is None else stored_prediction(previous, name, shape, test_size, device)
        labels, codes, before = decide(current, old, threshold_codes, rules)
        store.write_pseudo_label(name, labels, codes)
        return labels.size, (before != 255).sum(), (labels != 255).sum(), (labels != before).sum()

    with ThreadPoolExecutor(_WRITERS) as pool:
        for result in progress(pool.map(one, names, shapes)):
            counts += result
    pixels, before, after, changed = (int(count) for count in counts)
    return {"before": before / pixels, "after": after / pixels, "changed": changed / pixels}


def label(predict_with, checkpoint, old, names, store, source, rules, class_names, device="cpu", progress=iter):
    """The whole of a labelling stage: both passes, and the manifest that makes the store valid.

    ``predict_with(file, store)`` runs the first pass with a checkpoint file. ``old`` is the previous checkpoint of the
    same arm (PLE) or None; its predictions are taken from the neighbouring stores, or made where none has them.
    ``source`` (dataset, split, network, test size) goes into the manifest. Returns the shares of labelled pixels.
    """
    origin = {**source, "names_sha256": names_digest(names)}
    store.remove_manifest()
    histogram, shapes = predict_with(checkpoint, store)
    previous = None
    if old is not None:
        previous = find_predictions(store.folder.parent, {**origin, "checkpoint_sha256": sha256(old)})
        if previous is None:
            previous = PseudoLabelStore(store.folder / "previous")
            predict_with(old, previous)
    warn_of_empty_classes(histogram, class_names)
    thresholds = histogram.thresholds(rules.ratio)
    shares = write_pseudo_labels(names, shapes, source["test_size"], store, previous, thresholds, rules, device,
                                 progress)
    store.write_manifest({
        **origin, "checkpoint_sha256": sha256(checkpoint), "checkpoint": checkpoint.name, "images": len(names),
        "previous": old.name if old else None, "rules": asdict(rules), "labeled_share": shares,
        "thresholds": [float(value) for value in thresholds], "map_size": list(shapes[0][1])})
    return shares


def warn_of_empty_classes(histogram, class_names):
    """Name the classes that won no sampled pixel: nothing of them will be taught in this round."""
    empty = [class_names[index] for index in histogram.empty_classes()]
    if empty:
        print(f"warning: no pixel was predicted as {', '.join(empty)}; their threshold is 1e-5", file=sys.stderr)
