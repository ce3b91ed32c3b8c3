"""Pixel accuracy, class accuracy and intersection over union, from one confusion matrix."""

import numpy as np
import torch

_COPIES = 64  # a power of two


class ConfusionMatrix:
    """Counts of (target class, predicted class) over any number of images; exact integers.

    Counting happens on the device of the tensors that come first, without waiting for it; reading (``matrix``,
    ``compute``) fetches the sums.
    """

    def __init__(self, num_classes, ignore_index=255):
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, not {num_classes}")
        self.num_classes, self.ignore_index = int(num_classes), int(ignore_index)
        self._matrix = np.zeros((self.num_classes, self.num_classes), np.int64)
        self._counts = None  # not fetched yet: the flattened matrix, ignored pixels, invalid ones

    def update(self, target, prediction):
        """Count pixels.

        ``target``: integers of any shape, classes or ``ignore_index`` (such pixels are left out, whatever was
        predicted there); ``prediction``: classes, the same shape. Numpy arrays or tensors on any device.
        Raises ``ValueError`` for shapes that differ, dtypes that are not integers, and values that are neither a
        class nor ignored. Values of tensors on a GPU are checked when the matrix is read, for the check would make
        the host wait.
        """
        target, prediction = _as_tensor("target", target), _as_tensor("prediction", prediction)
        if target.shape != prediction.shape:
            raise ValueError(f"target is {tuple(target.shape)} but prediction is {tuple(prediction.shape)}")
        classes = self.num_classes
        ignored, invalid = classes * classes, classes * classes + 1
        target, prediction = target.reshape(-1).long(), prediction.reshape(-1).to(target.device).long()
        valid = (target >= 0) & (target < classes) & (prediction >= 0) & (prediction < classes)
        cells = torch.where(valid, target * classes + prediction, invalid)
        counts = count_apart(cells.masked_fill_(target == self.ignore_index, ignored), invalid + 1)
        if self._counts is None:
            self._counts = counts
        else:
            self._counts += counts.to(self._counts.device)  # in place, for a CUDA graph adds to them
        if self._counts.device.type == "cpu":
            self._fetch()

    def _fetch(self):
        if self._counts is None:
            return
        counts = self._counts.to("cpu", copy=True).numpy()
        _clear(self._counts)
        if counts[-1]:
            raise ValueError(f"{counts[-1]} pixels have a target or a prediction outside 0..{self.num_classes - 1} "
                             f"(and the target is not {self.ignore_index}, which would be ignored)")
        self._matrix += counts[:-2].reshape(self._matrix.shape)

    def merge(self, other):
        """Add the counts of ``other``. Raises ``ValueError`` when it is about another number of classes."""
        if other.num_classes != self.num_classes:
            raise ValueError(f"cannot merge matrices of {self.num_classes} and {other.num_classes} classes")
        self._matrix = self.matrix + other.matrix

    @property
    def matrix(self):
        """The counts so far, a (C, C) int64 array: rows are target classes, columns predicted classes."""
        self._fetch()
        return self._matrix.copy()

    def restore(self, matrix):
        """Replace the counts by ``matrix`` ((C, C) integers). Raises ``ValueError`` for another shape."""
        matrix = np.array(matrix, np.int64)
        if matrix.shape != self._matrix.shape:
            raise ValueError(f"a matrix of shape {matrix.shape} does not fit {self.num_classes} classes")
        self.reset()
        self._matrix = matrix

    def reset(self):
        """Forget everything counted."""
        if self._counts is not None:
            _clear(self._counts)
        self._matrix = np.zeros_like(self._matrix)

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
        iou = _ratio(correct, targets + predictions - correct)
        occurs = ~np.isnan(iou)
        return {
            "pixel_accuracy": float(_ratio(correct.sum(), matrix.sum())),
            "class_accuracy": _ratio(correct, targets),
            "iou": iou,
            "miou": float(iou[occurs].mean()) if occurs.any() else float("nan"),
        }


@torch.inference_mode()
def _clear(counts):
    """Set to 0 in place, also what was made in inference mode."""
    counts.zero_()


def count_apart(cells, size):
    """How often each number occurs in ``cells`` (n,), int64 in 0..size - 1: (size,) int64.

    On a GPU ``bincount`` makes the host wait for the largest value, and additions to one place queue up; so neighbours,
    which mostly agree, count in different copies.
    """
    places = torch.arange(len(cells), device=cells.device).bitwise_and_(_COPIES - 1).mul_(size).add_(cells)
    counts = torch.zeros(_COPIES * size, dtype=torch.int64, device=cells.device)
    return counts.scatter_add_(0, places, torch.ones_like(places)).view(_COPIES, size).sum(0)


def _ratio(part, whole):
    """part / whole as float64, NaN where whole is 0."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def _as_tensor(name, values):
    if not isinstance(values, torch.Tensor):
        values = np.ascontiguousarray(values)
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"{name} must hold integers, not {values.dtype}")
        # A tensor cannot share read-only memory.
        return torch.from_numpy(values if values.flags.writeable else values.copy())
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise ValueError(f"{name} must hold integers, not {values.dtype}")
    return values
