"""Files made to do harm: each ends in one line."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data import images
from data.specs import load_spec
from tests.test_bad_input import first_labeled, refuse  # noqa: F401 - a fixture
from utils.errors import UserError


def bomb(width, height):
    """A small PNG that claims to be ``width`` x ``height``, and whose data inflate to more than that."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(bytes(50_000_000))) + chunk(b"IEND", b""))


def test_image_bombs_are_refused_and_an_option_raises_the_limit(refuse, own_shapes):  # noqa: F811
    path = own_shapes / "JPEGImages" / f"{first_labeled(own_shapes)}.jpg"
    path.write_bytes(bomb(60000, 60000))
    line = refuse()
    assert str(path) in line and "60000 x 60000" in line and "--max-pixels" in line
    assert "more than the limit of 100" in refuse("--max-pixels=100")


def test_masks_do_not_inflate_beyond_their_header(tmp_path):
    (tmp_path / "mask.png").write_bytes(bomb(10, 10))  # zlib stops where the last row ends
    assert images.read_mask(tmp_path / "mask.png", load_spec("shapes")).shape == (10, 10)
    (tmp_path / "mask.png").write_bytes(bomb(40000, 40000))
    with pytest.raises(UserError, match="claims to have 40000 x 40000"):
        images.read_mask(tmp_path / "mask.png", load_spec("shapes"))


def test_yaml_that_would_grow_without_end(tmp_path):
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError) as caught:
        load_spec(tmp_path / "bomb.yaml")
    assert len(str(caught.value)) < 2000
    (tmp_path / "code.yaml").write_text("name: !!python/object/apply:os.system ['echo harm']")
    with pytest.raises(UserError, match="not valid YAML"):
        load_spec(tmp_path / "code.yaml")
    (tmp_path / "deep.yaml").write_text("[" * 5000)
    with pytest.raises(UserError):
        load_spec(tmp_path / "deep.yaml")


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_masks_of_few_bits_hold_their_values(tmp_path, bits):
    """Pillow scales greyscale of 2 and 4 bits to 0..255; palette images keep their numbers."""
    values = np.arange(2 ** min(bits, 3), dtype=np.uint8)[None].repeat(3, 0)[:, :8]
    image = Image.fromarray(values)
    image.putpalette([0, 0, 0] * 256)
    image.save(tmp_path / "mask.png", bits=bits)
    assert (images.read_mask(tmp_path / "mask.png", load_spec("shapes")) == values).all()
