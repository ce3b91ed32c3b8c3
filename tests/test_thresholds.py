"""Class-balanced thresholds: the rules by hand, order statistics at random, merging, and the label decision."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.confidence import decode, encode
from dmt.thresholds import SAMPLE_STRIDE, ConfidenceHistogram, apply_thresholds, sample, threshold

KEEP_ALL = np.float32(1e-5)


def by_sorting(confidences, ratio):
    """The rules of the paper on a plain list of confidences."""
    ordered, n = sorted(confidences), len(confidences)
    if n == 0:
        return KEEP_ALL
    if ratio >= 1:
        return ordered[0]
    if n * ratio < 1:
        return KEEP_ALL
    return ordered[-int(n * ratio) - 1]


def test_the_rule_by_hand():
    p = [0.5, 0.875, 0.625, 0.25, 0.75]  # sorted: 0.25 0.5 0.625 0.75 0.875
    for given_as in (p, np.float32(p), torch.tensor(p)):
        assert threshold(given_as, 0.2) == 0.75  # int(5 · 0.2) = 1 -> sorted[-2]
        assert threshold(given_as, 0.6) == 0.5  # int(3.0) = 3 -> sorted[-4]
        assert threshold(given_as, 0.19) == KEEP_ALL  # 5 · 0.19 < 1
        assert threshold(given_as, 1.0) == threshold(given_as, 1.5) == 0.25
    assert threshold([], 1.0) == threshold([], 0.2) == KEEP_ALL
    for ratio in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="ratio"):
            threshold(p, ratio)


def test_hand_computed_thresholds_of_a_histogram():
    # Class 0: five pixels, class 1: two, class 2: none; every confidence is a multiple of 1/32768, so stored exactly.
    labels = np.array([0, 0, 1, 0, 0, 1, 0])
    confidences = np.float32([0.5, 0.875, 0.75, 0.625, 0.25, 0.5, 0.75])
    histogram = ConfidenceHistogram(3)
    histogram.update(labels, confidences)
    assert histogram.thresholds(0.2).tolist() == [0.75, KEEP_ALL, KEEP_ALL]
    assert histogram.thresholds(0.6).tolist() == [0.5, 0.5, KEEP_ALL]
    assert histogram.thresholds(1.0).tolist() == [0.25, 0.5, KEEP_ALL]
    assert histogram.thresholds(0).tolist() == [KEEP_ALL] * 3
    assert histogram.thresholds(0.2).dtype == np.float32


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 10, 1000])
def test_a_ratio_just_below_1_keeps_everything(n):
    p = decode(torch.arange(20000, 20000 + n)).numpy()
    histogram = ConfidenceHistogram(1)
    histogram.update(np.zeros(n, np.uint8), p)
    for ratio in (np.nextafter(1.0, 0), np.nextafter(np.float32(1), np.float32(0))):
        assert histogram.thresholds(ratio)[0] == threshold(p, ratio) == by_sorting(p, float(ratio))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0.375, 1, width=32)), max_size=60),
       st.one_of(st.sampled_from([0.2, 0.4, 0.6, 0.8, 1.0]), st.floats(0, 1.2)))
def test_thresholds_are_exact_order_statistics(pixels, ratio):
    labels = np.array([label for label, _ in pixels], np.int64)
    stored = decode(encode(torch.tensor([p for _, p in pixels], dtype=torch.float32))).numpy()
    histogram = ConfidenceHistogram(3)
    histogram.update(labels, stored)
    expected = [by_sorting(stored[labels == c], ratio) for c in range(3)]
    assert histogram.thresholds(ratio).tolist() == expected
    assert [threshold(stored[labels == c], ratio) for c in range(3)] == expected


def test_arrays_lists_and_tensors_count_the_same_and_merging_is_counting_together():
    random = np.random.default_rng(2)
    labels, p = random.integers(0, 3, 500), random.uniform(0.3, 1, 500).astype(np.float32)
    arrays, tensors, first, second = (ConfidenceHistogram(3) for _ in range(4))
    arrays.update(labels, p)
    tensors.update(torch.from_numpy(labels.astype(np.uint8)).view(20, 25), torch.from_numpy(p).view(20, 25))
    first.update(labels[:150].tolist(), p[:150].tolist())
    second.update(labels[150:], p[150:])
    first.merge(second)
    assert torch.equal(arrays.counts, tensors.counts) and torch.equal(arrays.counts, first.counts)
    assert arrays.counts.sum() == 500
    with pytest.raises(ValueError, match="3 and 4 classes"):
        arrays.merge(ConfidenceHistogram(4))


@pytest.mark.parametrize("labels, confidences, message", [
    ([3], [0.5], "outside 0..2"), ([255], [0.5], "outside 0..2"), ([-1], [0.5], "outside 0..2"),
    ([0.0], [0.5], "integers"), ([True], [0.5], "integers"), ([0, 1], [0.5], "labels are"),
])
def test_wrong_pixels_are_refused_and_not_counted(labels, confidences, message):
    histogram = ConfidenceHistogram(3)
    with pytest.raises(ValueError, match=message):
        histogram.update(np.array(labels), np.array(confidences))
    assert histogram.counts.sum() == 0
    with pytest.raises(ValueError, match="num_classes"):
        ConfidenceHistogram(0)


def test_no_pixels_at_all():
    histogram = ConfidenceHistogram(2)
    histogram.update(np.zeros(0, np.int64), np.zeros(0))
    assert histogram.thresholds(1).tolist() == [KEEP_ALL] * 2


def test_labels_below_the_threshold_of_their_class_are_ignored():
    labels = torch.tensor([[0, 1, 1], [1, 0, 0]], dtype=torch.uint8)
    confidences = torch.tensor([[0.5, 0.5, 0.75], [0.875, 0.25, 0.625]])
    result = apply_thresholds(labels, confidences, torch.tensor([0.5, 0.75]))
    assert result.tolist() == [[0, 255, 1], [1, 255, 0]] and result.dtype == torch.uint8  # equal to it is kept
    assert labels.tolist() == [[0, 1, 1], [1, 0, 0]]


def test_sampling_takes_every_16th_pixel_of_the_flattened_image():
    image = torch.arange(5 * 7).reshape(5, 7)
    assert SAMPLE_STRIDE == 16 and sample(image).tolist() == [0, 16, 32]
    assert sample(torch.arange(80).reshape(5, 16)[:, :7]).tolist() == [0, 34, 68]  # of the part, not of the whole


def test_memory_stays_bounded_for_many_classes():
    assert ConfidenceHistogram(150).counts.nbytes < 64 * 2**20
