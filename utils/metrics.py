"""Pixel accuracy, class accuracy and intersection over union, from one confusion matrix."""

import numpy as np
import torch

from utils.tensors import tensor_of

_COPIES = 64  # a power of two


class ConfusionMatrix:
    """Counts of (target class, predicted class) over any number of images, on ``device``; exact integers.

    ``counts`` is (C · C + 2,) int64: the matrix, whose rows are target classes, then the ignored pixels and the invalid
    ones. The ``counts`` of several processes add up.
    """

    def __init__(self, num_classes, ignore_index=255, device="cpu"):
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, not {num_classes}")
        self.num_classes, self.ignore_index = int(num_classes), int(ignore_index)
        self.counts = torch.zeros(self.num_classes**2 + 2, dtype=torch.int64, device=device)

    def update(self, target, prediction):
        """Count pixels.

        ``target``: integers of any shape, classes or ``ignore_index`` (such pixels are left out, whatever was predicted
        there); ``prediction``: classes, the same shape. Numpy arrays or tensors on any device. Raises ``ValueError``
        for shapes that differ, dtypes that are not integers, and values that are neither a class nor ignored. On a GPU
        values are checked when the matrix is read, for the check would make the host wait.
        """
        target, prediction = tensor_of(target), tensor_of(prediction)
        if target.shape != prediction.shape:
            raise ValueError(f"target is {tuple(target.shape)} but prediction is {tuple(prediction.shape)}")
        for name, values in (("target", target), ("prediction", prediction)):
            if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
                raise ValueError(f"{name} must hold integers, not {values.dtype}")
        classes, device = self.num_classes, self.counts.device
        ignored, invalid = classes * classes, classes * classes + 1
        target, prediction = target.reshape(-1).to(device).long(), prediction.reshape(-1).to(device).long()
        valid = (target >= 0) & (target < classes) & (prediction >= 0) & (prediction < classes)
        cells = torch.where(valid, target * classes + prediction, invalid)
        counts = count_apart(cells.masked_fill_(target == self.ignore_index, ignored), invalid + 1)
        if device.type == "cpu":
            self._check(counts.numpy())
        self.counts += counts  # in place, for a CUDA graph adds to them

    def _check(self, counts):
        if counts[-1]:
            raise ValueError(f"{counts[-1]} pixels have a target or a prediction outside 0..{self.num_classes - 1} "
                             f"(and the target is not {self.ignore_index}, which would be ignored)")

    def merge(self, other):
        """Add the counts of ``other``. Raises ``ValueError`` when it is about another number of classes."""
        if other.num_classes != self.num_classes:
            raise ValueError(f"cannot merge matrices of {self.num_classes} and {other.num_classes} classes")
        self.counts += other.counts.to(self.counts.device)

    @property
    def matrix(self):
        """The matrix so far, a (C, C) int64 array of its own. This is where the host waits for a GPU."""
        counts = self.counts.to("cpu", copy=True).numpy()
        self._check(counts)
        return counts[:-2].reshape(self.num_classes, -1)

    def compute(self):
        """The metrics, as fractions: a dict of

        - ``pixel_accuracy``: float, correct pixels / all counted pixels;
        - ``class_accuracy``: (C,) float64, correct pixels / target pixels of the class, NaN without target pixels;
        - ``iou``: (C,) float64, intersection over union, NaN for a class in neither targets nor predictions;
        - ``miou``: float, the mean of ``iou`` over the classes that are not NaN.

        All are NaN when nothing was counted.
        """
        matrix = self.matrix
        correct, targets, predictions = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
        with np.errstate(invalid="ignore"):  # 0 / 0
            iou = correct / (targets + predictions - correct)
            class_accuracy, pixel_accuracy = correct / targets, correct.sum() / matrix.sum()
        occurs = ~np.isnan(iou)
        return {
            "pixel_accuracy": float(pixel_accuracy),
            "class_accuracy": class_accuracy,
            "iou": iou,
            "miou": float(iou[occurs].mean()) if occurs.any() else float("nan"),
        }


def count_apart(cells, size):
    """How often each number occurs in ``cells`` (n,), int64 in 0..size - 1: (size,) int64.

    On a GPU ``bincount`` makes the host wait for the largest value, and additions to one place queue up; so neighbours,
    which mostly agree, count in different copies.
    """
    places = torch.arange(len(cells), device=cells.device).bitwise_and_(_COPIES - 1).mul_(size).add_(cells)
    counts = torch.zeros(_COPIES * size, dtype=torch.int64, device=cells.device)
    return counts.scatter_add_(0, places, torch.ones_like(places)).view(_COPIES, size).sum(0)
