"""Confidence codes: hand-computed levels, exact inverses, error bounds; the grey levels that the student sees."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.confidence import GREY_LEVELS, NUM_CODES, decode, encode, grey_values

LEVELS = decode(torch.arange(NUM_CODES))


def _probabilities():
    """Random confidences, dense near 1, with the neighbours of every join of the levels."""
    random = np.random.default_rng(0)
    near_one = 1 - 10 ** -random.uniform(0, 8, 20000)
    joins = np.float32([0, 1 / 32768, 0.5, 15 / 16, 31 / 32, 1 - 2**-14, 1 - 2**-24, 1])
    p = np.concatenate([random.uniform(0, 1, 20000), near_one, joins,
                        np.nextafter(joins, np.float32(0)), np.nextafter(joins, np.float32(1))])
    return torch.from_numpy(p.astype(np.float32)).clamp(0, 1)


def test_hand_computed_levels():
    assert NUM_CODES <= 65536 and LEVELS.dtype == torch.float32
    assert LEVELS[0] == 0 and LEVELS[-1] == 1 and (LEVELS.diff() > 0).all()
    assert LEVELS[16384] == 0.5  # 16384 / 32768
    assert LEVELS[30720] == 15 / 16  # 30720 / 32768
    assert LEVELS[-2] == 1 - 2**-24  # the last float32 below 1
    # From x = 1/32 down to 1/64 there are 1024 steps of 2^-16, below that 1024 of 2^-17.
    at = int(torch.searchsorted(LEVELS, 1 - 1 / 64))
    assert LEVELS[at] == 1 - 1 / 64 and LEVELS[at - 1024] == 1 - 1 / 32
    assert LEVELS[at + 1] - LEVELS[at] == 2.0**-17


def test_every_code_survives_decoding_and_encoding():
    for dtype in (torch.int32, torch.int64):
        assert torch.equal(encode(decode(torch.arange(NUM_CODES, dtype=dtype))).to(dtype), torch.arange(NUM_CODES, dtype=dtype))


def test_nearest_level_and_error_bounds():
    p = _probabilities()
    codes, p = encode(p), p.double()
    error = (LEVELS[codes].double() - p).abs()
    assert error.max() <= 1 / 65536
    x = 1 - p
    fine = x < 1 / 16
    # 1024 levels a halving: half a step is 2^-11 of x; float32's own last step is 2^-24.
    assert (error[fine] <= torch.clamp(x[fine] * 2.0**-11, min=2.0**-25)).all()
    for neighbour in ((codes - 1).clamp(min=0), (codes + 1).clamp(max=NUM_CODES - 1)):
        assert (error <= (LEVELS[neighbour].double() - p).abs() + 1e-12).all()


@given(st.floats(0, 1, width=32), st.floats(0, 1, width=32))
def test_encoding_is_monotone(a, b):
    codes = encode(torch.tensor(sorted((a, b))))
    assert codes[0] <= codes[1]


def test_other_values_shapes_and_precisions():
    assert encode(torch.tensor([-1, 2, np.inf, -np.inf, np.nan])).tolist() == [0, NUM_CODES - 1, NUM_CODES - 1, 0, 0]
    assert encode(torch.tensor([0.5], dtype=torch.bfloat16)).tolist() == [16384]
    assert decode(torch.tensor([[16384]])).tolist() == [[0.5]]
    assert encode(torch.zeros(0, 3)).shape == (0, 3)
    with pytest.raises(TypeError, match="floating point"):
        encode(torch.tensor([1]))
    with pytest.raises(TypeError, match="integers"):
        decode(torch.tensor([0.5]))


def test_grey_levels_keep_the_odds_within_4_4_percent_and_ignored_pixels_black():
    p = torch.tensor([[0.05, 0.3, 0.5], [0.9, 0.999, 1 - 1e-6]])
    grey = grey_values(torch.tensor([[0, 1, 255], [2, 0, 1]], dtype=torch.uint8), p)
    assert grey.dtype == torch.uint8 and grey[0, 2] == 0 and (grey.flatten()[[0, 1, 3, 4, 5]] > 0).all()
    found = GREY_LEVELS[grey.int()].double()
    odds, expected = found / (1 - found), p.double() / (1 - p.double())
    kept = torch.tensor([[True, True, False], [True, True, True]])
    assert ((odds / expected - 1).abs()[kept] < 0.044).all()
    assert GREY_LEVELS[0] == 0 and GREY_LEVELS[255] == 1 - 2**-24 and (GREY_LEVELS.diff() >= 0).all()
