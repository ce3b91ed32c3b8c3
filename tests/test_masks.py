"""Masks and images of every format: by value, never scaled; colours; and what is refused with which words."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from data import images
from data.specs import load_spec
from tests.test_specs import write
from utils.errors import UserError

SHAPES = load_spec("shapes")
VALUES = np.random.default_rng(0).integers(0, 8, (13, 21)).astype(np.uint8)


def saved(path, array, mode=None, **options):
    Image.fromarray(array, mode).save(path, **options)
    return path


def grey_png(values, bits):
    """A greyscale PNG of few bits a pixel, which no library here writes."""
    rows = b""
    for row in values:
        digits = "".join(format(value, f"0{bits}b") for value in row)
        digits += "0" * (-len(digits) % 8)
        rows += b"\0" + int(digits, 2).to_bytes(len(digits) // 8, "big")

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("file_name, options", [
    ("m.png", {}), ("m.tif", {}), ("m.tiff", {"compression": "tiff_lzw"}),
    ("m.TIF", {"compression": "tiff_adobe_deflate"}),
    ("m.bmp", {}), ("m.webp", {"lossless": True})])
def test_grey_masks_of_every_format(tmp_path, file_name, options):
    array = VALUES if "webp" not in file_name else VALUES[..., None].repeat(3, 2)  # WebP has no greyscale
    assert (images.read_mask(saved(tmp_path / file_name, array, **options), SHAPES) == VALUES).all()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_greyscale_of_few_bits_is_not_scaled(tmp_path, bits):
    values = VALUES % 2**bits
    (tmp_path / "m.png").write_bytes(grey_png(values, bits))
    assert (images.read_mask(tmp_path / "m.png", SHAPES) == values).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_masks_of_16_bits(tmp_path, suffix):
    spec = load_spec(write(tmp_path / "s.yaml", "ignore: 65535\n", classes=(
        "classes:\n  - {name: a, color: [0, 0, 0], ids: [7, 300]}\n  - {name: b, color: [0, 0, 1], ids: [40000]}")))
    array = np.array([[7, 300, 40000, 65535, 0, 299]], np.uint16).repeat(2, 0)
    path = tmp_path / f"m.{suffix}"
    assert cv2.imwrite(str(path), array)
    assert images.read_mask(path, spec).tolist() == [[0, 0, 1, 255, 255, 255]] * 2
    spec = load_spec(write(tmp_path / "t.yaml", "ignore: 65535\n"))  # values are classes
    cv2.imwrite(str(path), np.array([[0, 1, 65535]], np.uint16))
    assert images.read_mask(path, spec).tolist() == [[0, 1, 255]]
    cv2.imwrite(str(path), np.array([[0, 1, 2]], np.uint16))
    with pytest.raises(UserError, match=r"m\.\w+ holds the value 2 \(at x 2, y 0\).*ids: \[2\]"):
        images.read_mask(path, spec)
    spec = load_spec(write(tmp_path / "u.yaml", "ignore: 1000\n"))
    cv2.imwrite(str(path), np.array([[0, 1, 1000]], np.uint16))
    assert images.read_mask(path, spec).tolist() == [[0, 1, 255]]


def test_32_bits(tmp_path):
    saved(tmp_path / "m.tif", VALUES.astype(np.int32))
    assert (images.read_mask(tmp_path / "m.tif", SHAPES) == VALUES).all()
    saved(tmp_path / "m.tif", VALUES.astype(np.float32) + 0.5)
    with pytest.raises(UserError, match="no whole numbers"):
        images.read_mask(tmp_path / "m.tif", SHAPES)
    with pytest.raises(UserError, match="32 bits a channel"):
        images.read_image(tmp_path / "m.tif")


def test_no_ignored_value(tmp_path):
    spec = load_spec(write(tmp_path / "s.yaml", "ignore: none\n"))
    saved(tmp_path / "m.png", np.array([[0, 1, 255]], np.uint8))
    with pytest.raises(UserError, match="the value 255"):
        images.read_mask(tmp_path / "m.png", spec)


# --- colours ----------------------------------------------------------------------------------------------------------

COLORS = np.array([[0, 0, 0], [200, 0, 0], [9, 8, 7], [255, 255, 255]], np.uint8)
CLASSES = np.array([0, 1, 1, 255], np.uint8)


@pytest.fixture
def color_spec(tmp_path):
    return load_spec(write(tmp_path / "s.yaml", "masks: color\nignore_colors: [[255, 255, 255]]\n", classes=(
        "classes:\n  - {name: soil, color: [0, 0, 0]}\n  - {name: weed, color: [200, 0, 0], colors: [[200, 0, 0], [9, "
        "8, 7]]}")))


@pytest.mark.parametrize("file_name", ["m.png", "m.tif", "m.bmp", "m.webp"])
def test_colours_say_the_class(tmp_path, color_spec, file_name):
    options = {"lossless": True} if file_name.endswith("webp") else {}
    path = saved(tmp_path / file_name, COLORS[VALUES % 4], **options)
    assert (images.read_mask(path, color_spec) == CLASSES[VALUES % 4]).all()


def test_colours_of_palettes_and_greys_count_too(tmp_path, color_spec):
    image = Image.fromarray(VALUES % 4)
    image.putpalette(COLORS.ravel().tolist())
    image.save(tmp_path / "m.png")
    assert (images.read_mask(tmp_path / "m.png", color_spec) == CLASSES[VALUES % 4]).all()
    saved(tmp_path / "grey.png", np.array([[0, 255]], np.uint8))
    assert images.read_mask(tmp_path / "grey.png", color_spec).tolist() == [[0, 255]]


def test_a_constant_alpha_channel_is_tolerated(tmp_path, color_spec):
    alpha = np.full((*VALUES.shape, 1), 128, np.uint8)
    path = saved(tmp_path / "m.png", np.concatenate([COLORS[VALUES % 4], alpha], 2))
    assert (images.read_mask(path, color_spec) == CLASSES[VALUES % 4]).all()
    alpha[3, 4] = 0
    saved(path, np.concatenate([COLORS[VALUES % 4], alpha], 2))
    with pytest.raises(UserError, match="transparent in part"):
        images.read_mask(path, color_spec)


def test_an_unknown_colour_is_named_with_its_place(tmp_path, color_spec):
    array = COLORS[VALUES % 4]
    array[5, 11] = 1, 2, 3
    array[9, 2] = 1, 2, 4
    with pytest.raises(UserError) as caught:
        images.read_mask(saved(tmp_path / "m.png", array), color_spec)
    for word in ("m.png", "[1, 2, 3] at x 11, y 5", "1 more colours", "colors: [[1, 2, 3]]", "ignore_colors"):
        assert word in str(caught.value)
    spec = load_spec(write(tmp_path / "o.yaml", "masks: color\nignore_colors: others\n"))
    expected = np.array([0, 1, 255, 255], np.uint8)[VALUES % 4]
    expected[[5, 9], [11, 2]] = 255
    assert (images.read_mask(tmp_path / "m.png", spec) == expected).all()


def test_colours_where_values_are_expected(tmp_path):
    saved(tmp_path / "m.png", COLORS[VALUES % 4])
    with pytest.raises(UserError, match="masks: color.*tools.convert_rgb"):
        images.read_mask(tmp_path / "m.png", SHAPES)
    cv2.imwrite(str(tmp_path / "m.png"), VALUES.astype(np.uint16))
    with pytest.raises(UserError, match="no colours of 8 bits"):
        images.read_mask(tmp_path / "m.png", load_spec(write(tmp_path / "s.yaml", "masks: color\n")))


def test_jpeg_masks_are_told_apart(tmp_path, color_spec):
    saved(tmp_path / "m.jpg", VALUES * 30)
    with pytest.raises(UserError, match="JPEG changes values"):
        images.read_mask(tmp_path / "m.jpg", SHAPES)
    saved(tmp_path / "c.jpg", COLORS[VALUES % 4])
    with pytest.raises(UserError, match="--tolerance"):
        images.read_mask(tmp_path / "c.jpg", color_spec)


# --- images -----------------------------------------------------------------------------------------------------------

PICTURE = np.random.default_rng(1).integers(0, 256, (9, 14, 4)).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_transparency_of_images_is_ignored(tmp_path, suffix):
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"i.{suffix}", PICTURE, **options)
    assert (images.read_image(path) == PICTURE[..., 2::-1]).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_of_16_bits_the_upper_8_count(tmp_path, suffix):
    wide = np.random.default_rng(2).integers(0, 65536, (5, 6, 3)).astype(np.uint16)
    path = tmp_path / f"i.{suffix}"
    cv2.imwrite(str(path), wide)
    assert (images.read_image(path) == wide >> 8).all()
    cv2.imwrite(str(path), wide[..., 0])
    assert (images.read_image(path) == (wide[..., :1] >> 8)).all()


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_grey_images_have_three_equal_channels(tmp_path, suffix):
    path = saved(tmp_path / f"i.{suffix}", PICTURE[..., 0].copy())
    assert (images.read_image(path) == PICTURE[..., :1]).all()


def test_images_are_not_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    saved(tmp_path / "i.jpg", PICTURE[..., :3].copy(), exif=exif)
    assert images.read_image(tmp_path / "i.jpg").shape == (9, 14, 3)
    assert images.image_size(tmp_path / "i.jpg") == (9, 14)


def test_damaged_masks_are_refused(tmp_path, color_spec):
    for options in ({"format": "PNG"}, {"format": "TIFF", "compression": "tiff_lzw"}, {"format": "BMP"}):
        content = io.BytesIO()
        Image.fromarray(COLORS[VALUES % 4]).save(content, **options)
        (tmp_path / "m.png").write_bytes(content.getvalue()[:-40])
        with pytest.raises(UserError, match="does not decode"):
            images.read_mask(tmp_path / "m.png", color_spec)
