"""The training transform in uint8 beside the plain one in float: the same pixels, up to the rounding of grey levels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from data import transforms
from data.batches import generator
from data.transforms import Window
from models.deeplab import COCO, IMAGENET


def noise(height, width, channels=3, seed=0):
    """The hardest image for an interpolation: every pixel is independent of its neighbours."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def plain(image, window, crop):
    """(h, w, 3) float32, the procedure in words: scale, pad at bottom and right with 0, crop, flip."""
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    x = F.interpolate(x, size=(window.height, window.width), mode="bilinear", align_corners=False)
    x = F.pad(x, (0, max(crop[1] - window.width, 0), 0, max(crop[0] - window.height, 0)))
    x = x[0, :, window.top : window.top + crop[0], window.left : window.left + crop[1]]
    return (x.flip(-1) if window.flip else x).permute(1, 2, 0).numpy()


def plain_nearest(values, window, crop, fill):
    scaled = np.full((max(window.height, crop[0]), max(window.width, crop[1])), fill, values.dtype)
    for i in range(window.height):
        for j in range(window.width):
            scaled[i, j] = values[i * values.shape[0] // window.height, j * values.shape[1] // window.width]
    part = scaled[window.top : window.top + crop[0], window.left : window.left + crop[1]]
    return part[:, ::-1] if window.flip else part


sides = st.integers(1, 90)


@settings(max_examples=200, deadline=None)
@given(sides, sides, sides, sides, st.integers(0, 2**31))
def test_images_are_within_one_grey_level_of_the_float_transform(height, width, crop_height, crop_width, seed):
    crop = crop_height, crop_width
    window = transforms.draw_window(generator(seed, "test"), (height, width), crop)
    image = noise(height, width, seed=seed)
    ours = transforms.crop_image(image, window, crop)
    assert ours.dtype == np.uint8 and ours.shape == (*crop, 3)
    assert np.abs(ours - plain(image, window, crop)).max() <= 1


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (333, 500), (281, 500), (360, 480), (512, 1024)])
def test_images_of_the_datasets_sizes_are_within_one_grey_level(size):
    image = noise(*size)
    crop = (256, 512) if size == (512, 1024) else (321, 321)
    for number in range(12):
        window = transforms.draw_window(generator(7, "test", number), size, crop)
        difference = np.abs(transforms.crop_image(image, window, crop) - plain(image, window, crop))
        assert difference.max() <= 1
        assert difference.mean() <= 0.3  # the rounding alone is a quarter of a level


@settings(max_examples=100, deadline=None)
@given(sides, sides, sides, sides, st.integers(0, 2**31))
def test_labels_take_the_pixel_floor_i_in_out(height, width, crop_height, crop_width, seed):
    crop = crop_height, crop_width
    window = transforms.draw_window(generator(seed, "test"), (height, width), crop)
    values = noise(height, width, 1, seed)[..., 0]
    for fill in (255, 0):
        ours = transforms.crop_nearest(values, window, crop, fill)
        assert ours.dtype == values.dtype
        np.testing.assert_array_equal(ours, plain_nearest(values, window, crop, fill))


def test_nearest_is_torchs_nearest():
    values = noise(375, 500, 1)[..., 0]
    x = torch.from_numpy(values)[None, None].float()
    for size in [(187, 250), (321, 321), (562, 750), (281, 375), (375, 500)]:
        expected = F.interpolate(x, size, mode="nearest")[0, 0]
        np.testing.assert_array_equal(transforms.resize_nearest(values, size), expected)


def test_a_crop_is_a_part_of_the_whole_scaled_image():
    image, values = noise(120, 160), noise(120, 160, 1)[..., 0]
    for flip in (False, True):
        for height, width in [(60, 80), (120, 160), (131, 175), (180, 240)]:
            whole = transforms.resize_image(image, (height, width))
            whole_values = transforms.resize_nearest(values, (height, width))
            for top, left in [(0, 0), (7, 13), (height - 50, width - 64)]:
                window = Window(height, width, top, left, flip)
                step = -1 if flip else 1
                part = (slice(top, top + 50), slice(left, left + 64))
                np.testing.assert_array_equal(transforms.crop_image(image, window, (50, 64)), whole[part][:, ::step])
                np.testing.assert_array_equal(transforms.crop_nearest(values, window, (50, 64), 255),
                                              whole_values[part][:, ::step])


def test_the_image_and_its_label_stay_together():
    """Where the label is a function of the pixel's colour, it still is after the transform, padding included."""
    blocks = np.kron(np.arange(48, dtype=np.uint8).reshape(6, 8), np.ones((20, 20), np.uint8))
    image = np.repeat(blocks[..., None], 3, axis=2)
    for number in range(20):
        window = transforms.draw_window(generator(3, "test", number), blocks.shape, (130, 130))
        scaled = transforms.crop_image(image, window, (130, 130))[..., 0]
        label = transforms.crop_nearest(blocks, window, (130, 130), 255)
        assert (scaled[label == 255] == 0).all()
        assert (scaled == label)[label != 255].mean() > 0.85  # all but the borders of the blocks


def test_padding_is_black_before_normalization():
    image = np.full((40, 50, 3), 200, np.uint8)
    window = Window(40, 50)
    padded = transforms.crop_image(image, window, (64, 64))
    assert (padded[:40, :50] == 200).all() and (padded[40:] == 0).all() and (padded[:, 50:] == 0).all()
    flipped = transforms.crop_image(image, Window(40, 50, flip=True), (64, 64))
    np.testing.assert_array_equal(flipped, padded[:, ::-1])
    for form in (IMAGENET, COCO):
        corner = form.normalize(torch.from_numpy(padded)[None])[0, :, -1, -1]
        expected = -torch.tensor(form.mean) / torch.tensor(form.std)
        torch.testing.assert_close(corner, expected)


def test_normalization_is_that_of_the_weights():
    """Both input formats from RGB in [0, 1], as they are defined."""
    image = noise(5, 7)
    rgb = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)[None].float() / 255
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    torch.testing.assert_close(IMAGENET.normalize(torch.from_numpy(image)[None]), (rgb - mean) / std)
    bgr = rgb[:, [2, 1, 0]] * 255
    mean = torch.tensor([104.008, 116.669, 122.675])[:, None, None]
    torch.testing.assert_close(COCO.normalize(torch.from_numpy(image)[None]), bgr - mean, atol=2e-5, rtol=1e-5)


def test_scales_crops_and_flips_are_spread_over_their_range():
    windows = [transforms.draw_window(generator(1, "test", number), (375, 500), (321, 321)) for number in range(400)]
    scales = np.array([window.width / 500 for window in windows])
    assert scales.min() < 0.52 and scales.max() > 1.48 and abs(scales.mean() - 1) < 0.05
    assert 150 < sum(window.flip for window in windows) < 250
    for window in windows:
        assert 0 <= window.top <= max(window.height - 321, 0) and 0 <= window.left <= max(window.width - 321, 0)
        assert window.top == 0 or window.height > 321
    assert any(window.top == window.height - 321 > 0 for window in windows)
