"""A test: what one network, or two and their ensemble, reach on the validation set under a protocol."""

import dataclasses
import math
import operator

import numpy as np
import pandas as pd
import torch

from data import datasets, images
from data.lists import names_digest
from predict.protocol import PAPERS
from utils.console import progress_bar
from utils.errors import UserError
from utils.files import sha256, write_json
from utils.metrics import ConfusionMatrix
from utils.runs import software

COLUMNS = ("A", "B")
ENSEMBLE = "A+B"


def test(data, samples, network, machine):
    """The ``ConfusionMatrix`` of each member of ``network`` over the validation ``samples``, and of all together.

    ``network`` is a ``predict.network.Ensemble`` of one or two, ``data`` and ``machine`` are those of ``dmt.session``.
    Returns a dict with the keys A, B and A+B, or A alone. Under the papers' protocol labels have the geometry of the
    test size, and each member gets the very number of its validation in training; else labels have their own size. The
    machine's processes share the images. Raises ``UserError``.
    """
    images.check_pairs(data.spec, samples)
    papers, spec = network.protocol.kind == PAPERS, dataclasses.replace(
        data.spec, test_size=network.protocol.test_size)
    judged = datasets.WholeImages(spec, resize=papers)
    # Single samples, of which no tensors are made.
    loader = machine.loader(judged, [[sample] for sample in samples], operator.itemgetter(0))
    count = len(network.members)
    choices = {name: (index,) for index, name in zip(range(count), COLUMNS)}
    if count > 1:
        choices[ENSEMBLE] = tuple(range(count))
    matrices = {name: ConfusionMatrix(data.spec.num_classes, device=machine.device) for name in choices}
    # Every process looks at every image, so that groups are formed as by one, and predicts some of the groups.
    predicted = network.predict_all((((sample.name, label), image) for image, label, sample in loader),
                                    choices=list(choices.values()), batch_size=machine.batch_size, failed=_fail,
                                    share=machine.processes.share)
    for (_, label), _, decisions in progress_bar(predicted, "test", "image", len(samples) // machine.processes.size):
        label = torch.from_numpy(label).to(machine.device, non_blocking=True)
        for matrix, decision in zip(matrices.values(), decisions):
            matrix.update(label, decision.classes)
    for matrix in matrices.values():
        machine.processes.sum(matrix.counts)
    return matrices


def _fail(sample, error):
    raise UserError(f"the image {sample[0]}: {error}") from error


# --- what is shown ----------------------------------------------------------------------------------------------------


def headline(network):
    """Lines that say which member is which, and the protocol."""
    judged, protocol = "", network.protocol
    if protocol.test_by == "resize":
        judged = "; labels resized, too" if protocol.kind == PAPERS else "; labels at their own size"
    lines = [f"{name}: {member.path} (input format {member.description.input_format.name})"
             for name, member in zip(COLUMNS, network.members)]
    if len(lines) > 1:
        lines.append(f"{ENSEMBLE}: mean of their probabilities")
    return "\n".join([*lines, f"protocol: {protocol}{judged}"])


def table(class_names, matrices):
    """IoU and accuracy of every class in percent, mIoU and pixel accuracy, as aligned text; "-" where nothing counts.

    The accuracy of a class is the share of its pixels that are predicted as it.
    """
    columns = {}
    for key, title in (("iou", "IoU"), ("class_accuracy", "accuracy")):
        for name, matrix in matrices.items():
            metrics = matrix.compute()
            columns[title + (f" {name}" if len(matrices) > 1 else "")] = [
                *metrics[key], *((metrics["miou"], "") if key == "iou" else ("", metrics["pixel_accuracy"]))]
    frame = pd.DataFrame(columns, index=[*class_names, "mIoU", "pixel accuracy"], dtype=object)
    frame.columns.name = "class"
    percent = frame.map(lambda value: value if value == "" else "-" if math.isnan(value) else f"{100 * value:.2f}")
    return percent.to_string()


def write_results(path, data, samples, network, matrices):
    """Write everything that the table shows, and where it comes from, as JSON; fractions, null where nothing counts."""
    results = {}
    for name, matrix in matrices.items():
        metrics = matrix.compute()
        results[name] = {key: _plain(metrics[key]) for key in ("iou", "class_accuracy", "miou", "pixel_accuracy")}
        results[name]["confusion_matrix"] = matrix.matrix.tolist()  # rows are targets
    networks = {name: {"file": str(member.path), "sha256": sha256(member.path),
                       "input_format": member.description.input_format.name}
                for name, member in zip(COLUMNS, network.members)}
    write_json(path, {"dataset": data.spec.name, "images": len(samples), "names_sha256": names_digest(samples),
                      "class_names": list(data.spec.class_names), "protocol": network.protocol.values(),
                      "networks": networks, "results": results, "software": software()})


def _plain(value):
    """A number, or an array of them, for JSON: null where it is not a number."""
    return np.where(np.isnan(value), None, value).tolist()
