"""Pseudo label enhancement: every row of the table by hand, ties, 255, options, both kinds of maps."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmt.enhancement import enhance

# current label, current confidence, previous label, previous confidence, is the previous one taken (beta = 0.25)?
TABLE = [
    (3, 0.25, 0, 1.00, False),  # foreground, was background: current, however sure the previous model was
    (0, 1.00, 3, 0.25, True),  # background, was foreground: previous, however unsure
    (255, 0.25, 0, 1.00, False),  # 255 is foreground
    (0, 1.00, 255, 0.25, True),  # also in the previous map
    (3, 0.50, 4, 0.75, True),  # both foreground: 0.75 - 0.50 = 0.25 >= 0.25, the tie goes to the previous model
    (3, 0.50, 4, 0.625, False),  # 0.125 < 0.25
    (0, 0.50, 0, 0.875, True),  # both background: 0.375 >= 0.25, the confidence changes
    (0, 0.50, 0, 0.625, False),
    (255, 0.25, 5, 0.75, True),  # an ignored pixel gets a label back
    (5, 0.25, 255, 0.75, True),  # and a label can be lost
    (255, 0.50, 255, 0.625, False),
    (3, 0.75, 4, 0.50, False),  # -0.25 < 0.25
]


def _maps(kind):
    current_labels, current_confidences, previous_labels, previous_confidences, wins = zip(*TABLE)
    maps = [np.array(labels, np.uint8).reshape(3, 4) if dtype == np.uint8 else np.array(labels, dtype).reshape(3, 4)
            for labels, dtype in ((current_labels, np.uint8), (current_confidences, np.float32),
                                  (previous_labels, np.uint8), (previous_confidences, np.float32))]
    if kind == "torch":
        maps = [torch.from_numpy(array) for array in maps]
    return (maps[0], maps[1]), (maps[2], maps[3]), np.array(wins).reshape(3, 4)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_every_row_of_the_table(kind):
    current, previous, wins = _maps(kind)
    before = [np.array(a) for a in (*current, *previous)]
    labels, confidences = enhance(current, previous, beta=0.25)
    assert isinstance(labels, torch.Tensor if kind == "torch" else np.ndarray)
    assert labels.dtype == current[0].dtype and confidences.dtype == current[1].dtype
    assert np.array(labels).tolist() == np.where(wins, before[2], before[0]).tolist()
    assert np.array(confidences).tolist() == np.where(wins, before[3], before[1]).tolist()
    assert all((np.array(a) == b).all() for a, b in zip((*current, *previous), before))


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("options", [{"background": None}, {"conflict_reduction": False}])
def test_without_conflicts_only_confidences_decide(kind, options):
    current, previous, _ = _maps(kind)
    wins = np.array(previous[1]) - np.array(current[1]) >= 0.25
    labels, confidences = enhance(current, previous, beta=0.25, **options)
    assert np.array(labels).tolist() == np.where(wins, np.array(previous[0]), np.array(current[0])).tolist()
    assert np.array(confidences).tolist() == np.where(wins, np.array(previous[1]), np.array(current[1])).tolist()


def test_another_background_class():
    # With background 4: foreground 0 was background 4 -> current; background 4 was foreground 0 -> previous.
    current = np.array([0, 4]), np.float32([0.1, 0.9])
    previous = np.array([4, 0]), np.float32([0.9, 0.1])
    labels, confidences = enhance(current, previous, background=4)
    assert labels.tolist() == [0, 0] and confidences.tolist() == np.float32([0.1, 0.1]).tolist()


def test_the_default_beta_is_0_15():
    current = np.array([1, 1, 1]), np.float32([0.5, 0.5, 0.5])
    previous = np.array([2, 2, 2]), np.float32([0.64, 0.66, 0.4])
    assert enhance(current, previous)[0].tolist() == [1, 2, 1]


def test_beta_of_0_takes_the_previous_at_equal_confidence():
    maps = np.array([1]), np.float32([0.5])
    assert enhance(maps, (np.array([2]), np.float32([0.5])), beta=0)[0].tolist() == [2]


unit = st.floats(0, 1, width=32)


@given(unit, unit, unit)
def test_the_comparison_is_the_plain_float32_one(now, before, beta):
    now, before = np.full(1, now, np.float32), np.full(1, before, np.float32)
    expected = np.where(before - now >= beta, 2, 1).tolist()
    assert enhance((np.array([1]), now), (np.array([2]), before), np.float64(beta))[0].tolist() == expected


@pytest.mark.parametrize("beta", [0.05, 0.1, 0.15, 0.2, 0.3, 0.5])
def test_differences_that_straddle_the_rounding_of_beta(beta):
    now = np.random.default_rng(0).uniform(0, 0.5, 2000).astype(np.float32)
    before = now + np.float32(beta)
    labels, _ = enhance((np.full(2000, 1), now), (np.full(2000, 2), before), beta)
    assert (labels == np.where(before - now >= np.float32(beta), 2, 1)).all() and {*labels.tolist()} == {1, 2}


def test_half_precision_is_compared_in_float32_and_returned_as_it_came():
    current, previous = (np.array([1]), np.float16([0.5])), (np.array([2]), np.float16([0.65]))
    # 0.65 is 0.64990234375 in half precision: the difference 0.14990234375 is below 0.15.
    labels, confidences = enhance(current, previous)
    assert labels.tolist() == [1] and confidences.dtype == np.float16


def test_results_do_not_share_memory_with_the_inputs():
    current, previous, _ = _maps("numpy")
    labels, confidences = enhance(current, previous)
    assert not any(np.shares_memory(result, given_map) for result in (labels, confidences)
                   for given_map in (*current, *previous))


def test_what_does_not_fit_is_refused():
    maps = np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.float32)
    for other in ((np.zeros((2, 3), np.uint8), maps[1]), (maps[0], np.zeros(4, np.float32))):
        with pytest.raises(ValueError, match="one shape"):
            enhance(maps, other)
        with pytest.raises(ValueError, match="one shape"):
            enhance(other, maps)
    for beta in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="beta must be finite"):
            enhance(maps, maps, beta=beta)
    with pytest.raises(ValueError, match="floating point"):
        enhance(maps, (maps[0], np.zeros((2, 2), np.uint16)))
    with pytest.raises(ValueError, match="all numpy arrays or all tensors"):
        enhance(maps, (torch.zeros(2, 2, dtype=torch.uint8), torch.zeros(2, 2)))
