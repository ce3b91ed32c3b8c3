"""The confusion matrix and its metrics: hand-computed values, absent classes, ignored and invalid pixels."""

import math
import warnings

import numpy as np
import pytest
import torch

from utils.metrics import ConfusionMatrix

KINDS = [np.array, torch.tensor, lambda values: torch.tensor(values, dtype=torch.uint8),
         lambda values: np.array(values, np.uint8)]


@pytest.mark.parametrize("kind", KINDS)
def test_hand_computed_metrics(kind):
    confusion = ConfusionMatrix(4)
    confusion.update(kind([[0, 0, 0, 1], [1, 2, 255, 255]]), kind([[0, 0, 1, 1], [0, 1, 0, 3]]))
    assert confusion.matrix.tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert confusion.matrix.dtype == np.int64
    metrics = confusion.compute()
    assert metrics["pixel_accuracy"] == 3 / 6
    # Class 0: 2 of 3; class 1: 1 of 2; class 2: 0 of 1; class 3 occurs nowhere that counts.
    np.testing.assert_array_equal(metrics["class_accuracy"], [2 / 3, 1 / 2, 0, np.nan])
    # Union of class 0: 3 + 3 - 2 = 4; of class 1: 2 + 3 - 1 = 4; of class 2: 1.
    np.testing.assert_array_equal(metrics["iou"], [2 / 4, 1 / 4, 0, np.nan])
    assert metrics["miou"] == (2 / 4 + 1 / 4 + 0) / 3
    assert isinstance(metrics["miou"], float) and isinstance(metrics["pixel_accuracy"], float)


def test_a_class_that_is_only_predicted_counts_in_the_mean():
    confusion = ConfusionMatrix(3)
    confusion.update(torch.tensor([0, 0]), torch.tensor([0, 2]))
    metrics = confusion.compute()
    np.testing.assert_array_equal(metrics["iou"], [0.5, np.nan, 0])
    np.testing.assert_array_equal(metrics["class_accuracy"], [0.5, np.nan, np.nan])
    assert metrics["miou"] == 0.25


@pytest.mark.parametrize("target", [[], [255, 255]])
def test_nothing_counted_is_nan_without_warnings(target):
    confusion = ConfusionMatrix(2)
    confusion.update(torch.tensor(target, dtype=torch.int64), torch.zeros(len(target), dtype=torch.int64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics = confusion.compute()
    assert math.isnan(metrics["miou"]) and math.isnan(metrics["pixel_accuracy"])
    assert np.isnan(metrics["iou"]).all() and np.isnan(metrics["class_accuracy"]).all()


def test_counts_equal_a_plain_loop_and_add_up():
    random = np.random.default_rng(0)
    target, prediction = random.integers(0, 6, (4, 9, 8)), random.integers(0, 5, (4, 9, 8))
    target[target == 5] = 255
    expected = np.zeros((5, 5), int)
    for t, p in zip(target.flat, prediction.flat):
        if t != 255:
            expected[t, p] += 1
    whole, first, second = (ConfusionMatrix(5) for _ in range(3))
    target, prediction = torch.from_numpy(target), torch.from_numpy(prediction)
    whole.update(target, prediction)
    first.update(target[:1], prediction[:1])
    for t, p in zip(target[1:], prediction[1:]):
        second.update(t, p)
    first.merge(second)
    assert (whole.matrix == expected).all() and (first.matrix == expected).all()
    with pytest.raises(ValueError, match="5 and 4 classes"):
        whole.merge(ConfusionMatrix(4))


def test_another_ignored_label():
    confusion = ConfusionMatrix(2, ignore_index=-100)
    confusion.update(torch.tensor([0, -100, 1]), torch.tensor([0, 0, 1]))
    assert confusion.matrix.tolist() == [[1, 0], [0, 1]]
    with pytest.raises(ValueError, match="1 pixels"):
        confusion.update(torch.tensor([255]), torch.tensor([0]))
    confusion = ConfusionMatrix(2, ignore_index=0)  # a class can be left out
    confusion.update(torch.tensor([0, 1]), torch.tensor([1, 0]))
    assert confusion.matrix.tolist() == [[0, 0], [1, 0]]


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
@pytest.mark.parametrize("target, prediction, message", [
    ([3], [0], "1 pixels"), ([-1], [0], "1 pixels"), ([0], [3], "1 pixels"), ([0], [-1], "1 pixels"),
    ([0], [255], "1 pixels"), ([0, 1], [0], "target is"), ([0.0], [0], "integers"), ([0], [0.0], "integers"),
    ([True], [0], "integers"),
])
def test_what_does_not_fit_is_refused_and_not_counted(kind, target, prediction, message):
    confusion = ConfusionMatrix(3)
    with pytest.raises(ValueError, match=message):
        confusion.update(kind(target), kind(prediction))
    assert confusion.matrix.sum() == 0


def test_views_and_read_only_arrays():
    target = np.array([[0, 1], [1, 1]])
    target.flags.writeable = False
    confusion = ConfusionMatrix(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        confusion.update(target[:, ::-1], torch.tensor([[1, 0], [0, 1]]).t())
    # Target rows reversed: (1, 0), (1, 1); predictions transposed: (1, 0), (0, 1).
    assert confusion.matrix.tolist() == [[1, 0], [1, 2]]


@pytest.mark.gpu
def test_on_a_gpu_the_counts_are_the_same_and_errors_come_when_read():
    target, prediction = torch.randint(0, 3, (2, 50, 50)), torch.randint(0, 3, (2, 50, 50))
    target[0, :9] = 255
    on_cpu, on_gpu = ConfusionMatrix(3), ConfusionMatrix(3, device="cuda")
    on_cpu.update(target, prediction)
    there = target.cuda(), prediction.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_gpu.update(*there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (on_cpu.matrix == on_gpu.matrix).all()
    on_gpu.update(torch.tensor([7], device="cuda"), torch.tensor([0], device="cuda"))
    with pytest.raises(ValueError, match="1 pixels"):
        on_gpu.compute()
