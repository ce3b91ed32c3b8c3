"""Class-balanced thresholds: the three rules by hand, order statistics at random, merging, and the label decision."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.confidence import LEVELS, NUM_CODES, decode, encode
from dmt.thresholds import (SAMPLE_STRIDE, ConfidenceHistogram, apply_thresholds, codes_of_thresholds, sample)


def by_sorting(confidences, ratio):
    """The rules of the paper on a plain list of confidences."""
    ordered, n = sorted(confidences), len(confidences)
    if n == 0:
        return np.float32(1e-5)
    if ratio >= 1:
        return ordered[0]
    if n * ratio < 1:
        return np.float32(1e-5)
    return ordered[-int(n * ratio) - 1]


def test_hand_computed_thresholds():
    # Class 0: five pixels, class 1: two, class 2: none; every confidence is a multiple of 1/32768, so stored exactly.
    labels = np.array([0, 0, 1, 0, 0, 1, 0])
    confidences = np.float32([0.5, 0.875, 0.75, 0.625, 0.25, 0.5, 0.75])
    histogram = ConfidenceHistogram(3)
    histogram.update(labels, confidences)
    keep_all = np.float32(1e-5)
    # Class 0 sorted: 0.25 0.5 0.625 0.75 0.875. r = 0.2: int(1.0) = 1 -> sorted[-2]; r = 0.6: int(3.0) = 3 -> [-4].
    # Class 1 sorted: 0.5 0.75. r = 0.2: 2·0.2 < 1 -> 1e-5; r = 0.6: int(1.2) = 1 -> sorted[-2].
    assert histogram.thresholds(0.2).tolist() == [0.75, keep_all, keep_all]
    assert histogram.thresholds(0.6).tolist() == [0.5, 0.5, keep_all]
    assert histogram.thresholds(1.0).tolist() == [0.25, 0.5, keep_all]
    assert histogram.thresholds(1.5).tolist() == [0.25, 0.5, keep_all]
    assert histogram.thresholds(0).tolist() == [keep_all] * 3
    assert histogram.thresholds(0.2).dtype == np.float32
    assert histogram.empty_classes() == [2]
    assert histogram.pixels().tolist() == [5, 2, 0]
    # At 0.75 class 0 keeps 0.75 and 0.875.
    assert histogram.counts_above(histogram.thresholds(0.2)).tolist() == [2, 2, 0]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 10, 1000])
def test_a_ratio_just_below_1_keeps_everything(n):
    p = LEVELS[20000:20000 + n]
    histogram = ConfidenceHistogram(1)
    histogram.update(np.zeros(n, np.uint8), p)
    for ratio in (np.nextafter(1.0, 0), np.nextafter(np.float32(1), np.float32(0))):
        assert histogram.thresholds(ratio)[0] == by_sorting(p, float(ratio))
        assert histogram.counts_above(histogram.thresholds(ratio))[0] == n


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0.375, 1, width=32)), max_size=60),
       st.one_of(st.sampled_from([0.2, 0.4, 0.6, 0.8, 1.0]), st.floats(0, 1.2)))
def test_thresholds_are_exact_order_statistics(pixels, ratio):
    labels = np.array([label for label, _ in pixels], np.int64)
    stored = decode(encode(np.array([p for _, p in pixels], np.float32)))
    histogram = ConfidenceHistogram(3)
    histogram.update(labels, stored)
    thresholds = histogram.thresholds(ratio)
    assert thresholds.tolist() == [by_sorting(stored[labels == c], ratio) for c in range(3)]
    kept = [(stored[labels == c] >= thresholds[c]).sum() for c in range(3)]
    assert histogram.counts_above(thresholds).tolist() == kept


def test_labelling_by_codes_is_labelling_by_confidences():
    random = np.random.default_rng(1)
    labels = random.integers(0, 4, (50, 60)).astype(np.uint8)
    codes = encode(1 - random.uniform(0, 0.7, (50, 60)) ** 3)
    histogram = ConfidenceHistogram(5)
    histogram.update_codes(sample(labels), sample(codes))
    for ratio in (0.0, 0.2, 0.5, 0.8, 1.0):
        thresholds = histogram.thresholds(ratio)
        result = apply_thresholds(labels, codes, histogram.threshold_codes(ratio))
        assert result.dtype == np.uint8
        assert (result == np.where(decode(codes) < thresholds[labels], 255, labels)).all()
    assert (apply_thresholds(labels, codes, histogram.threshold_codes(0)) == labels).all()


def test_threshold_codes_decide_as_the_levels_do():
    exact = LEVELS[[0, 1, 16384, NUM_CODES - 1]]
    assert codes_of_thresholds(exact).tolist() == [0, 1, 16384, NUM_CODES - 1]
    assert codes_of_thresholds(np.float32([1e-5])).tolist() == [1]  # every code that a prediction can have
    assert codes_of_thresholds(np.nextafter(exact[2:3], np.float32(1))).tolist() == [16385]
    assert codes_of_thresholds([1.5]).tolist() == [NUM_CODES]


def test_apply_thresholds_by_hand():
    labels = np.array([[0, 1, 255], [1, 0, 1]], np.uint8)
    codes = np.array([[10, 10, 0], [20, 9, 21]], np.uint16)
    result = apply_thresholds(labels, codes, np.array([10, 20], np.uint16))
    assert result.tolist() == [[0, 255, 255], [1, 255, 1]]  # equal to the threshold is kept
    assert labels.tolist() == [[0, 1, 255], [1, 0, 1]]


@pytest.mark.parametrize("labels", [[2], [254], [256], [-1]])
def test_apply_thresholds_refuses_labels_that_are_no_class(labels):
    with pytest.raises(ValueError, match="label"):
        apply_thresholds(np.array(labels), np.array([5], np.uint16), np.array([1, 1], np.uint16))


def test_apply_thresholds_refuses_shapes_that_differ_and_an_ignored_class():
    with pytest.raises(ValueError, match="confidence codes are"):
        apply_thresholds(np.zeros(3, np.uint8), np.zeros(2, np.uint16), np.zeros(2, np.uint16))
    with pytest.raises(ValueError, match="one of the 2 classes"):
        apply_thresholds(np.zeros(3, np.uint8), np.zeros(3, np.uint16), np.zeros(2, np.uint16), ignore=1)


def test_numpy_and_torch_and_codes_count_the_same():
    random = np.random.default_rng(2)
    labels, p = random.integers(0, 3, 500), random.uniform(0.3, 1, 500).astype(np.float32)
    arrays, tensors, codes = (ConfidenceHistogram(3) for _ in range(3))
    arrays.update(labels, p)
    tensors.update(torch.from_numpy(labels), torch.from_numpy(p))
    codes.update_codes(labels.astype(np.uint8).reshape(20, 25), encode(p).reshape(20, 25))
    assert (arrays.counts == tensors.counts).all() and (arrays.counts == codes.counts).all()
    assert arrays.counts.sum() == 500


def test_merging_is_counting_together():
    random = np.random.default_rng(3)
    labels, p = random.integers(0, 3, 400), random.uniform(0.3, 1, 400)
    whole, first, second = (ConfidenceHistogram(3) for _ in range(3))
    whole.update(labels, p)
    first.update(labels[:150], p[:150])
    second.update(labels[150:], p[150:])
    first.merge(second)
    assert (first.counts == whole.counts).all()
    with pytest.raises(ValueError, match="3 and 4 classes"):
        whole.merge(ConfidenceHistogram(4))


def test_state_survives_npz_and_json(tmp_path):
    histogram = ConfidenceHistogram(3)
    histogram.update([0, 0, 2], [0.5, 0.5, 0.99])
    np.savez(tmp_path / "state.npz", **histogram.state())
    with np.load(tmp_path / "state.npz") as saved:
        assert (ConfidenceHistogram.from_state(saved).counts == histogram.counts).all()
    text = json.dumps({name: np.asarray(value).tolist() for name, value in histogram.state().items()})
    assert (ConfidenceHistogram.from_state(json.loads(text)).counts == histogram.counts).all()
    assert len(histogram.state()["cells"]) == 2
    with pytest.raises(ValueError, match="confidence codes"):
        ConfidenceHistogram.from_state(histogram.state() | {"num_codes": 5})


@pytest.mark.parametrize("labels, confidences, message", [
    ([3], [0.5], "outside 0..2"), ([255], [0.5], "outside 0..2"), ([-1], [0.5], "outside 0..2"),
    ([0.0], [0.5], "integers"), ([0, 1], [0.5], "labels are"),
])
def test_wrong_pixels_are_refused_and_not_counted(labels, confidences, message):
    histogram = ConfidenceHistogram(3)
    with pytest.raises(ValueError, match=message):
        histogram.update(np.array(labels), np.array(confidences))
    assert histogram.counts.sum() == 0


def test_other_wrong_arguments_are_refused():
    histogram = ConfidenceHistogram(2)
    with pytest.raises(ValueError, match="confidence code"):
        histogram.update_codes([0], [NUM_CODES])
    for ratio in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="ratio"):
            histogram.thresholds(ratio)
    with pytest.raises(ValueError, match="expected 2 thresholds"):
        histogram.counts_above([0.5])
    with pytest.raises(ValueError, match="num_classes"):
        ConfidenceHistogram(0)


def test_no_pixels_at_all():
    histogram = ConfidenceHistogram(2)
    histogram.update(np.zeros(0, np.int64), np.zeros(0))
    assert histogram.thresholds(1).tolist() == [np.float32(1e-5)] * 2
    assert histogram.empty_classes() == [0, 1]


def test_sampling_takes_every_16th_pixel_of_each_flattened_image():
    image = np.arange(5 * 7).reshape(5, 7)
    assert SAMPLE_STRIDE == 16
    assert sample(image).tolist() == [0, 16, 32]
    batch = torch.stack([torch.from_numpy(image), torch.from_numpy(image) + 100])
    assert sample(batch).tolist() == [[0, 16, 32], [100, 116, 132]]
    with pytest.raises(ValueError, match="maps must be"):
        sample(np.zeros(16))


def test_memory_stays_bounded_for_many_classes():
    assert ConfidenceHistogram(150).counts.nbytes < 64 * 2**20
