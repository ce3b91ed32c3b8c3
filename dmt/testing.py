"""A test: what one arm, or two and their ensemble, reach on the validation set under a protocol; as table and JSON."""

import math
from typing import NamedTuple

import numpy as np
import torch

from data import datasets, images
from data.lists import names_digest
from dmt.inference import predict_all
from dmt.protocol import PAPERS, tiles
from utils.console import progress_bar
from utils.errors import UserError
from utils.files import sha256, write_json
from utils.metrics import ConfusionMatrix
from utils.runs import software

COLUMNS = ("A", "B")
ENSEMBLE = "A+B"


class _Case(NamedTuple):
    name: str
    image: np.ndarray
    label: np.ndarray


def test(data, names, arms, protocol, machine):
    """The ``ConfusionMatrix`` of one or two ``arms`` over the validation images ``names``, and that of their ensemble.

    ``data`` and ``machine`` are those of ``dmt.session``. Returns a dict with the keys A, B and A+B, or A alone. Under
    the papers' protocol labels have the geometry of the test size, else their own size. A single arm under the papers'
    protocol is evaluated as in training; two give the same numbers each. The machine's processes share the images.
    Raises ``UserError``.
    """
    images.check_pairs(data.spec, data.pairs(names, "val"))
    papers = protocol.kind == PAPERS
    if len(arms) == 1 and papers and protocol.seen_once and isinstance(arms[0].network, torch.nn.Module):
        validate = machine.validator(data, names, arms[0].description.input_format, progress_bar("validate", "batch"))
        return {COLUMNS[0]: validate(machine.ready(arms[0].network, training=False))}
    resized = data.spec.test_size if papers and data.spec.test_by == "resize" else None
    judged = datasets.JudgedImages(data.spec, data.root, names, resized)
    loader = machine.loader(judged, datasets.as_is, batch_size=None)
    choices = {name: (index,) for index, name in zip(range(len(arms)), COLUMNS)}
    if len(arms) > 1:
        choices[ENSEMBLE] = tuple(range(len(arms)))
    matrices = {name: ConfusionMatrix(data.spec.num_classes) for name in choices}
    # Every process looks at every image, so that groups are formed as by one, and predicts some of the groups.
    predicted = predict_all(_cases(loader, protocol), arms, protocol, choices=list(choices.values()),
                            batch_size=machine.batch_size, failed=_too_large, share=machine.processes.share)
    for case, decisions in progress_bar("test", "image", len(names) // machine.processes.size)(predicted):
        label = torch.from_numpy(case.label).to(decisions[0].classes.device, non_blocking=True)
        for matrix, decision in zip(matrices.values(), decisions):
            matrix.update(label, decision.classes)
    for matrix in matrices.values():
        matrix.restore(machine.processes.sum_array(matrix.state()))
    return matrices


def _cases(loader, protocol):
    for sample in loader:
        case = _Case(*sample)
        tiles(case.image.shape[:2], protocol, f"the image {case.name}")  # an image too large is named
        yield case


def _too_large(case, error):
    raise UserError(f"the image {case.name}: {error}") from error


# --- what is shown ----------------------------------------------------------------------------------------------------


def headline(arms, protocol):
    """Lines that say which arm is which, and the protocol."""
    judged = ""
    if protocol.test_by == "resize":
        judged = "; labels resized, too" if protocol.kind == PAPERS else "; labels at their own size"
    lines = [f"{name}: {arm.path} (input format {arm.description.input_format.name})"
             for name, arm in zip(COLUMNS, arms)]
    if len(arms) > 1:
        lines.append(f"{ENSEMBLE}: mean of their probabilities")
    return "\n".join([*lines, f"protocol: {protocol}{judged}"])


def table(class_names, matrices):
    """IoU and accuracy of every class in percent, mIoU and pixel accuracy, as aligned text; "-" where nothing counts.

    The accuracy of a class is the share of its pixels that are predicted as it.
    """
    metrics = [matrix.compute() for matrix in matrices.values()]
    several = len(matrices) > 1
    titles = [f"{title} {name}" if several else title for title in ("IoU", "accuracy") for name in matrices]
    rows = [("class", titles)]
    for index, name in enumerate(class_names):
        rows.append((name, [_percent(metric[key][index]) for key in ("iou", "class_accuracy") for metric in metrics]))
    rows.append(("mIoU", [_percent(metric["miou"]) for metric in metrics]))
    rows.append(("pixel accuracy", [""] * len(metrics) + [_percent(metric["pixel_accuracy"]) for metric in metrics]))
    first, width = max(len(name) for name, _ in rows), max(8, *map(len, titles))
    return "\n".join("  ".join([name.ljust(first), *(cell.rjust(width) for cell in cells)]).rstrip()
                     for name, cells in rows)


def _percent(value):
    return "-" if math.isnan(value) else f"{100 * value:.2f}"


def write_results(path, data, names, arms, protocol, matrices):
    """Write everything that the table shows, and where it comes from, as JSON; fractions, null where nothing counts."""
    results = {}
    for name, matrix in matrices.items():
        metrics = matrix.compute()
        results[name] = {key: _plain(metrics[key]) for key in ("iou", "class_accuracy", "miou", "pixel_accuracy")}
        results[name]["confusion_matrix"] = matrix.matrix.tolist()  # rows are targets
    networks = {name: {"file": str(arm.path), "sha256": sha256(arm.path),
                       "input_format": arm.description.input_format.name} for name, arm in zip(COLUMNS, arms)}
    write_json(path, {"dataset": data.spec.name, "images": len(names), "names_sha256": names_digest(names),
                      "class_names": list(data.spec.class_names), "protocol": protocol.values(), "networks": networks,
                      "results": results, "software": software()})


def _plain(value):
    if isinstance(value, np.ndarray):
        return [_plain(part) for part in value]
    return None if math.isnan(value) else float(value)
