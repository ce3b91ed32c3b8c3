"""What notebooks hand over: arrays of any layout, writeable or not, are taken silently."""

import warnings

import numpy as np
import pytest

from dmt.enhancement import enhance
from dmt.thresholds import ConfidenceHistogram
from utils.metrics import ConfusionMatrix

LABELS, CONFIDENCES = np.array([[0, 1, 2], [2, 1, 1]]), np.array([[0.5, 0.6, 0.7], [0.8, 0.9, 1]], np.float32)


def _read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("layout", [
    lambda array: np.fliplr(np.fliplr(array).copy()), lambda array: array.T.copy().T, _read_only,
    lambda array: array.astype(array.dtype.newbyteorder(">"))], ids=["flipped", "transposed", "read-only", "big-endian"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_layouts(layout, dtype):
    labels, confidences = layout(LABELS.astype(dtype)), layout(CONFIDENCES)
    histogram, matrix, expected = ConfidenceHistogram(3), ConfusionMatrix(3), ConfidenceHistogram(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        histogram.update(labels, confidences)
        matrix.update(labels, labels)
        merged = enhance((labels, confidences), (labels, confidences))
    expected.update(LABELS.tolist(), CONFIDENCES.tolist())
    assert (histogram.counts == expected.counts).all()
    assert np.diag(matrix.matrix).tolist() == [1, 3, 2]
    assert merged[0].dtype == dtype and (merged[0] == LABELS).all() and (merged[1] == CONFIDENCES).all()
