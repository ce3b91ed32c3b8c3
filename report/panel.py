"""One picture of a run: unlabelled images, truth, pseudo labels before and after PLE, and predictions side by side."""

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch.utils.data import DataLoader

from data.datasets import WholeImages, collate_whole
from data.specs import UNLABELED
from dmt.arms import load_arm
from dmt.prediction import classify
from report.pixels import NO_LABEL, Labels, colors, evenly_spaced
from utils.errors import UserError
from utils.precision import Precision


def labelling_to_show(run):
    """The labelling whose pseudo labels the panel shows: the last with PLE and a ratio below 1, else the last of all.

    None where all labels are gone.
    """
    made = [one for one in run.labellings if one.manifest and any((one.folder / "labels").rglob("*.png"))]
    enhanced = [one for one in made if one.enhanced]
    below = [one for one in enhanced if one.manifest["rules"]["ratio"] < 1]
    return next((rows[-1] for rows in (below, enhanced, made) if rows), None)


def columns_of(run, data, summary, labelling, count):
    """The panel of ``count`` images: title -> pictures (H, W, 3) uint8 RGB."""
    labels = Labels(labelling, data)
    names, test_size, table = evenly_spaced(labels.names, count), labels.test_size, colors(data.spec.palette)
    after = [labels.label(name)[0] for name in names]
    truths = [labels.truth(data, name, label.shape) for name, label in zip(names, after)]
    columns = {"image": [data.picture(name, test_size) for name in names]}
    if any(data.truth(name, test_size) is not None for name in names):  # unlabelled images of one's own have none
        columns["truth"] = [table[truth] for truth in truths]
    made = f"pseudo label\nround {labelling.round}, arm {labelling.arm}, ratio {labelling.manifest['rules']['ratio']:g}"
    if labelling.enhanced and labels.predictions:
        columns[f"{made}\nbefore PLE"] = [table[labels.predicted(name)[1]] for name in names]
    columns[made + ("\nafter PLE" if labelling.enhanced else "")] = [table[label] for label in after]
    for title, end in (("prediction\nafter the last round", summary["final"] and summary["final"]["best_stage"]),
                       ("prediction\nsupervised alone", summary["baseline"] and summary["baseline"]["stage"])):
        checkpoint = run.folder / f"{end}.pt"
        if end and checkpoint.is_file():
            columns[f"{title}\n{end}"] = [table[classes] for classes in predictions(checkpoint, data, names, test_size)]
    return columns


def predictions(checkpoint, data, names, test_size):
    """Classes (H, W) uint8 that the network in the file ``checkpoint`` predicts for the unlabelled images ``names``."""
    arm = load_arm(checkpoint, "cpu", Precision("fp32", "cpu"))
    dataset = WholeImages(data.spec, data.root, names, UNLABELED, test_size, labels=False)
    result = []
    with torch.inference_mode():
        for batch, _, _, sizes in DataLoader(dataset, batch_size=4, collate_fn=collate_whole):
            result += [classes.numpy() for classes, _ in classify(arm.logits(batch), sizes, test_size)]
    return result


def write_panel(path, titles, columns, spec, ignored=True):
    """Draw ``columns`` of pictures with their ``titles`` above, and the colours of classes (and of no label) below."""
    wide = max(picture.shape[1] / picture.shape[0] for picture in columns[0])
    width, rows = 1.75 * wide * len(columns), len(columns[0])
    names = (*spec.class_names, *["ignored"] * ignored)
    beside = max(1, int(width / (0.55 + 0.07 * max(map(len, names)))))  # as many as fit
    figure = Figure((width, 1.75 * rows + 0.6 + 0.2 * -(-len(names) // beside)), layout="constrained")
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for column, (title, pictures) in enumerate(zip(titles, columns)):
        axes[0, column].set_title(title, fontsize=7)
        for row, picture in enumerate(pictures):
            axes[row, column].imshow(picture, interpolation="nearest")
            axes[row, column].axis("off")
    patches = [Patch(facecolor=np.array(color) / 255, edgecolor="grey", label=name)
               for name, color in zip(names, (*spec.palette, NO_LABEL))]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(beside, len(names)), fontsize=7, frameon=False)
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise UserError(f"the panel {path} cannot be written: {error}") from error
