"""Confidence codes: the table's shape, exact inverses, error bounds, and numpy = torch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.confidence import LEVELS, NUM_CODES, decode, encode


def _probabilities():
    """Random confidences, dense near 1, with the neighbours of every join of the table."""
    random = np.random.default_rng(0)
    near_one = 1 - 10 ** -random.uniform(0, 8, 20000)
    joins = np.float32([0, 1 / 32768, 0.5, 15 / 16, 31 / 32, 1 - 2**-14, 1 - 2**-24, 1])
    p = np.concatenate([random.uniform(0, 1, 20000), near_one, joins,
                        np.nextafter(joins, np.float32(0)), np.nextafter(joins, np.float32(1))])
    return p.astype(np.float32)


def test_table_is_ascending_from_0_to_1_and_fits_16_bits():
    assert LEVELS.dtype == np.float32 and LEVELS.shape == (NUM_CODES,)
    assert NUM_CODES <= 65536
    assert LEVELS[0] == 0 and LEVELS[-1] == 1
    assert (np.diff(LEVELS) > 0).all()


def test_hand_computed_levels():
    assert LEVELS[16384] == 0.5  # 16384 / 32768
    assert LEVELS[30720] == np.float32(15 / 16)  # 30720 / 32768
    assert LEVELS[-2] == np.float32(1 - 2**-24)  # the last float32 below 1
    # From x = 1/32 down to 1/64 there are 1024 steps of 2^-16, below that 1024 of 2^-17.
    at = int(np.searchsorted(LEVELS, np.float32(1 - 1 / 64)))
    assert LEVELS[at] == np.float32(1 - 1 / 64)
    assert LEVELS[at - 1024] == np.float32(1 - 1 / 32)
    assert LEVELS[at + 1] - LEVELS[at] == 2.0**-17


def test_every_code_survives_decoding_and_encoding():
    codes = np.arange(NUM_CODES, dtype=np.uint16)
    assert (encode(decode(codes)) == codes).all()
    tensor = torch.arange(NUM_CODES, dtype=torch.int32)
    assert torch.equal(encode(decode(tensor)), tensor)
    assert decode(codes).dtype == np.float32 and decode(tensor).dtype == torch.float32


def test_numpy_and_torch_give_the_same_codes_and_dtypes():
    p = _probabilities()
    codes = encode(p)
    tensor_codes = encode(torch.from_numpy(p))
    assert codes.dtype == np.uint16 and tensor_codes.dtype == torch.int32
    assert (codes == tensor_codes.numpy()).all()
    assert (decode(codes) == decode(tensor_codes).numpy()).all()


def test_nearest_level_and_error_bounds():
    p = _probabilities().astype(np.float64)
    codes = encode(p.astype(np.float32))
    error = np.abs(LEVELS[codes].astype(np.float64) - p)
    assert error.max() <= 1 / 65536
    x = 1 - p
    fine = x < 1 / 16
    # 1024 levels a halving: half a step is 2^-11 of x; float32's own last step is 2^-24.
    assert (error[fine] <= np.maximum(x[fine] * 2.0**-11, 2.0**-25)).all()
    for neighbour in (np.maximum(codes, 1) - 1, np.minimum(codes + 1, NUM_CODES - 1)):
        assert (error <= np.abs(LEVELS[neighbour].astype(np.float64) - p) + 1e-12).all()


@given(st.floats(0, 1, width=32), st.floats(0, 1, width=32))
def test_encoding_is_monotone(a, b):
    low, high = sorted((a, b))
    codes = encode(np.float32([low, high]))
    assert codes[0] <= codes[1]


def test_values_outside_are_clamped_and_nan_becomes_the_reserved_code():
    p = np.float32([-1, 2, np.inf, -np.inf, np.nan])
    expected = [0, NUM_CODES - 1, NUM_CODES - 1, 0, 0]
    assert encode(p).tolist() == expected
    assert encode(torch.from_numpy(p)).tolist() == expected


def test_other_shapes_and_precisions():
    p = np.linspace(0.1, 1, 12).reshape(3, 4)
    assert encode(p).shape == (3, 4)
    assert (encode(p) == encode(p.astype(np.float32))).all()
    assert encode(torch.tensor(0.5)).item() == 16384
    assert encode(torch.tensor([0.5], dtype=torch.bfloat16)).tolist() == [16384]
    assert decode(torch.tensor([[16384]], dtype=torch.int64)).tolist() == [[0.5]]
    assert encode(p[:, ::-2]).tolist() == encode(p)[:, ::-2].tolist()
    assert encode(torch.zeros(0, 3)).shape == (0, 3)


def test_wrong_kinds_are_refused():
    with pytest.raises(TypeError, match="floating point"):
        encode(np.array([1]))
    with pytest.raises(TypeError, match="floating point"):
        encode(torch.tensor([1]))
    with pytest.raises(TypeError, match="integers"):
        decode(np.array([0.5]))
    with pytest.raises(TypeError, match="integers"):
        decode(torch.tensor([0.5]))
    with pytest.raises(IndexError):
        decode(np.array([-1]))
    with pytest.raises(IndexError):
        decode(np.array([NUM_CODES]))
    with pytest.raises(IndexError):
        decode(torch.tensor([NUM_CODES]))


def test_levels_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        LEVELS[0] = 1
