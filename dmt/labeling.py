"""Labelling: what one arm teaches the other (DMT paper, class-balanced pseudo labels; PLE paper, enhancement).

The network runs once over every unlabelled image; its logits are quantized and stored, and all that follows is decided
from these. In the next round they are the "previous" predictions of PLE, which so costs no forward pass.
"""

import functools
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from data.confidence import grey_values
from data.datasets import WholeImages
from data.masks import IGNORED
from dmt import collapse
from dmt.enhancement import enhance
from dmt.prediction import Forward, classify, covering, dequantize, network_maps, quantize
from dmt.thresholds import ConfidenceHistogram, apply_thresholds, sample
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
    """Label the ``data.lists.Sample``s of ``setting`` (a ``dmt.session.Setting``) with ``checkpoint``, into ``store``.

    ``previous`` is None, or (checkpoint of the same arm's round before, a store with its logits or None): PLE.
    ``rules`` are the ``LabelingRules``. Logits that ``store`` holds already are used. Of several processes each labels
    the batches that are its own. Returns (thresholds (C,) float32 array, shares of labelled pixels: {"before": by
    thresholds alone, "after": with PLE, "changed": pixels whose label PLE changed}).
    """
    data, machine = setting.data, setting.machine
    device, processes = machine.device, machine.processes
    batches = machine.whole_batches(samples)

    histogram = ConfidenceHistogram(data.spec.num_classes, device)
    for _, predicted in predictions(setting, batches, checkpoint, store, "predict"):
        for classes, confidences in predicted:
            histogram.update(sample(classes), sample(confidences))
    processes.sum(histogram.counts)
    won = histogram.counts.sum(dim=1).cpu().numpy()  # sampled pixels of each class
    empty = [name for name, count in zip(data.spec.class_names, won) if count == 0]
    if empty:
        print(f"warning: no pixel was predicted as {', '.join(empty)}; their threshold is 1e-5", file=sys.stderr)
    collapsed = collapse.one_class(won, data.spec.class_names, setting.network.facts.get("iou"))
    collapse.notice(collapsed, setting.on_collapse)
    thresholds = histogram.thresholds(rules.ratio)

    limits, counts = torch.from_numpy(thresholds).to(device), np.zeros(4, np.int64)
    current = predictions(setting, batches, checkpoint, store, "threshold and merge")
    if previous is not None:
        before = predictions(setting, batches, *previous, "predict with the previous network",
                             rules.previous_statistics)
    with ThreadPoolExecutor() as pool:
        written = []
        for batch, predicted in current:
            earlier = next(before)[1] if previous is not None else predicted
            for write in written:  # an error of the batch before surfaces here
                write.result()
            written = []
            for one, (classes, confidences), (old_classes, old_confidences) in zip(batch, predicted, earlier):
                alone = labels = apply_thresholds(classes, confidences, limits)
                if previous is not None:
                    old_labels = apply_thresholds(old_classes, old_confidences, limits)
                    labels, confidences = enhance((labels, confidences), (old_labels, old_confidences), rules.beta,
                                                  rules.background, rules.conflict_reduction)
                labels, confidences = labels.cpu(), confidences.cpu()
                before_ple, after_ple = alone.cpu().numpy(), labels.numpy()
                counts += [after_ple.size, np.count_nonzero(before_ple != IGNORED),
                           np.count_nonzero(after_ple != IGNORED), np.count_nonzero(after_ple != before_ple)]
                grey = grey_values(labels, confidences).numpy()
                written.append(pool.submit(store.write_label, one.name, after_ple, grey))
        for write in written:
            write.result()
    pixels, labelled, labelled_after, changed = processes.sum(torch.from_numpy(counts)).tolist()
    return thresholds, {"before": labelled / pixels, "after": labelled_after / pixels, "changed": changed / pixels}


def predictions(setting, batches, checkpoint, store, title, statistics=RUNNING):
    """What the network in the file ``checkpoint`` predicts: yields (batch, a list of samples; for each of its images
    the pair (winning classes (H, W) uint8, confidences (H, W) float32, as their codes hold them)).

    Batches whose logits are all in ``store`` are read from there, the others predicted and written to it, so that every
    image is computed in the same company whatever an interruption has left. ``store`` may be None.
    """
    machine, spec, network = setting.machine, setting.data.spec, setting.network
    if statistics == BATCH:
        store = None
    stored = [store is not None and all(store.logits_path(one.name).is_file() for one in batch) for batch in batches]
    missing = [batch for batch, there in zip(batches, stored) if not there]
    if missing:
        model = network.build(machine.device, checkpoint)
        if statistics == BATCH:  # what makes inference fast, folded and recorded, has running statistics
            forward = functools.partial(network_maps, model.train(), network.input_format, machine.precision)
        else:
            if machine.compiled and machine.device.type == "cpu":  # a GPU folds it
                model.compile_blocks()
            forward = Forward(model.eval(), network.input_format, machine)
        loaded = iter(machine.loader(WholeImages(spec), missing))
        title = f"{title} ({Path(checkpoint).name})"
    with ThreadPoolExecutor() as pool:
        written = []
        for batch, there in progress_bar(list(zip(batches, stored)), title, "batch"):
            for write in written:  # an error of the batch before surfaces here
                write.result()
            if there:
                names = [one.name for one in batch]
                yield batch, stored_predictions(store, names, spec.test_size, machine.device, pool.map)
            else:
                images, _, _, sizes = next(loaded)
                steps = quantize(forward(images.to(machine.device)))
                written = []
                for one, size, own in zip(batch, sizes, steps.cpu().numpy().astype(np.uint16)) if store else ():
                    rows, columns = covering(size, spec.test_size, own.shape[1:])
                    part = own[:, :rows, :columns]
                    written.append(pool.submit(store.write_logits, one.name, part, size, own.shape[1:]))
                yield batch, classify(dequantize(steps), sizes, spec.test_size)
        for write in written:
            write.result()


def stored_predictions(store, names, test_size, device="cpu", read=map):
    """As ``predictions`` for the images ``names``, whose logits are in ``store``: a list of pairs on ``device``."""
    steps, sizes = zip(*read(store.read_logits, names))
    return classify(dequantize(torch.from_numpy(np.stack(steps).astype(np.int32)).to(device)), sizes, test_size)
