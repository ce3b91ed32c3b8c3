"""Labelling: what one arm teaches the other (DMT paper, class-balanced pseudo labels; PLE paper, enhancement).

The network runs once over every unlabelled image; its logits are quantized and stored, and all that follows is decided
from these. In the next round they are the "previous" predictions of PLE, which so costs no forward pass.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from data import datasets
from data.confidence import grey_values
from dmt import collapse
from dmt.enhancement import enhance
from dmt.prediction import classify, covering, dequantize, network_maps, quantize
from dmt.thresholds import IGNORED, ConfidenceHistogram, apply_thresholds, sample
from utils.checkpoints import load_checkpoint
from utils.console import progress_bar

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
        """The rules as plain values; the default statistics are left out."""
        values = asdict(self)
        if self.previous_statistics == RUNNING:
            del values["previous_statistics"]
        return values


@torch.inference_mode()
def label(setting, samples, store, checkpoint, previous, rules):
    """Label the ``data.lists.Sample``s of ``setting`` (a ``dmt.stages.Setting``) with ``checkpoint``, into ``store``.

    ``previous`` is None, or (checkpoint of the same arm's round before, a store with its logits or None): PLE. ``rules``
    are the ``LabelingRules``. Logits that ``store`` holds already are used. Of several processes each labels the
    batches that are its own. Returns (thresholds (C,) float32 array, shares of labelled pixels: {"before": by thresholds
    alone, "after": with PLE, "changed": pixels whose label PLE changed}).
    """
    data, machine = setting.data, setting.machine
    device, processes = machine.device, machine.processes

    histogram = ConfidenceHistogram(data.spec.num_classes, device)
    for _, predicted in predictions(setting, samples, checkpoint, store, "predict"):
        for classes, confidences in predicted:
            histogram.update(sample(classes), sample(confidences))
    processes.sum(histogram.counts)
    processes.first(_warn, histogram.pixels(), checkpoint, data.spec.class_names, setting.on_collapse)
    thresholds = histogram.thresholds(rules.ratio)

    limits, counts = torch.from_numpy(thresholds).to(device), np.zeros(4, np.int64)
    current = predictions(setting, samples, checkpoint, store, "threshold and merge")
    if previous is not None:
        before = predictions(setting, samples, *previous, "predict with the previous network", rules.previous_statistics)
    with ThreadPoolExecutor() as pool:
        written = []
        for batch, predicted in current:
            earlier = next(before)[1] if previous is not None else predicted
            decided = []
            for (classes, confidences), (old_classes, old_confidences) in zip(predicted, earlier):
                alone = labels = apply_thresholds(classes, confidences, limits)
                if previous is not None:
                    old_labels = apply_thresholds(old_classes, old_confidences, limits)
                    labels, confidences = enhance((labels, confidences), (old_labels, old_confidences), rules.beta,
                                                  rules.background, rules.conflict_reduction)
                alone, labels, confidences = alone.cpu(), labels.cpu(), confidences.cpu()
                counts += [labels.numel(), *(int(which.sum()) for which in
                                             (alone != IGNORED, labels != IGNORED, labels != alone))]
                decided.append((labels.numpy(), grey_values(labels, confidences).numpy()))
            list(written)  # an error of the batch before surfaces here
            written = pool.map(store.write_label, batch, *zip(*decided))
        list(written)
    pixels, *shares = processes.sum_array(counts).tolist()
    return thresholds, dict(zip(("before", "after", "changed"), (share / pixels for share in shares)))


def predictions(setting, samples, checkpoint, store, title, statistics=RUNNING):
    """What the network in the file ``checkpoint`` predicts: yields (names of a batch, for each of its images the pair
    (winning classes (H, W) uint8, confidences (H, W) float32, as their codes hold them)).

    Batches whose logits are all in ``store`` are read from there, the others predicted and written to it, so that every
    image is computed in the same company whatever an interruption has left. ``store`` may be None.
    """
    data, machine = setting.data, setting.machine
    batches = machine.whole_batches(len(samples))
    if statistics == BATCH:
        store = None
    missing = [batch for batch in batches
               if store is None or not all(store.logits_path(samples[index].name).is_file() for index in batch)]
    fresh, test_size = iter(missing), data.spec.test_size
    if missing:
        model, _ = setting.network.build(machine.device, checkpoint)
        if statistics == BATCH:  # what makes inference fast, folded and recorded, has running statistics
            forward = network_maps(model.train(), setting.network.input_format, machine.precision)
        else:
            forward = machine.forward(machine.ready(model.eval(), training=False), setting.network.input_format)
        fresh = iter(machine.loader(datasets.WholeImages(data.spec, samples), datasets.collate_whole, batch_sampler=missing))
        title = f"{title} ({Path(checkpoint).name})"
    to_predict = {batch[0] for batch in missing}
    with ThreadPoolExecutor() as pool:
        written = []
        for batch in progress_bar(title, "batch")(batches):
            its_names = [samples[index].name for index in batch]
            list(written)
            if batch[0] in to_predict:
                images, _, _, sizes = next(fresh)
                steps = quantize(forward(images.to(machine.device)))
                if store is not None:
                    written = pool.map(lambda name, own, size: _write_logits(store, name, own, size, test_size),
                                       its_names, steps.cpu().numpy().astype(np.uint16), sizes)
                yield its_names, classify(dequantize(steps), sizes, test_size)
            else:
                yield its_names, stored_predictions(store, its_names, test_size, machine.device, pool.map)
        list(written)


def stored_predictions(store, names, test_size, device="cpu", read=map):
    """As ``predictions`` for the images ``names``, whose logits are in ``store``: a list of pairs on ``device``."""
    steps, sizes = zip(*read(store.read_logits, names))
    return classify(dequantize(torch.from_numpy(np.stack(steps).astype(np.int32)).to(device)), sizes, test_size)


def _write_logits(store, name, steps, size, test_size):
    rows, columns = covering(size, test_size, steps.shape[1:])[0]
    store.write_logits(name, steps[:, :rows, :columns], size, steps.shape[1:])


def _warn(pixels, checkpoint, class_names, on_collapse):
    """Name the classes that won no sampled pixel, of which nothing will be taught; notice a collapsed network."""
    empty = [name for name, count in zip(class_names, pixels) if count == 0]
    if empty:
        print(f"warning: no pixel was predicted as {', '.join(empty)}; their threshold is 1e-5", file=sys.stderr)
    if collapse.one_class(pixels, class_names):
        known = load_checkpoint(checkpoint).get("iou")  # of the validation, where the file has it
        message = collapse.one_class(pixels, class_names, known)
        if message:
            on_collapse(message)
