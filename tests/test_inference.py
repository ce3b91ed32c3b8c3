"""How images of any size are shown to networks, and what their answers become: geometry by property, values by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmt.prediction import winners
from models import deeplab_v2
from models.description import Description
from models.deeplab import COCO, IMAGENET, InputFormat
from predict import decide, protocol
from predict.decide import predict
from predict.network import Member, choose_protocol
from predict.protocol import Protocol, canvas_of, grouped, tiles
from utils.errors import UserError
from utils.precision import Precision

CPU = torch.device("cpu")
PLAIN = InputFormat("plain", rgb=False, full=255.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
SIZES = st.tuples(st.integers(1, 90), st.integers(1, 90))
PROTOCOLS = st.builds(
    Protocol, kind=st.sampled_from(["papers", "original", "sliding"]), test_size=st.just((90, 90)),
    test_by=st.sampled_from(["pad", "resize"]),
    window=st.tuples(st.integers(1, 60), st.integers(1, 60)), stride=st.floats(0.4, 1),
    scales=st.lists(st.sampled_from([0.3, 0.5, 0.75, 1.0, 1.25, 2.0]), min_size=1, max_size=3, unique=True).map(tuple),
    flip=st.booleans())


def member(network, num_classes=3, form=PLAIN):
    names = tuple(f"class {number}" for number in range(num_classes))
    described = Description("made", names, ((0, 0, 0),) * num_classes, None, 255, "small", 2, form, None, None)
    return Member("made.pt", network, described, CPU, Precision("fp32", "cpu"))


def colours(images):
    """A network whose logits are the colours of every eighth pixel: what it says of a smooth image is known."""
    return images[:, :, ::8, ::8]


def ramp(height, width):
    """An image whose three channels are linear in row and column."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, 100 - columns], axis=-1).astype(np.uint8)


def says(probabilities):
    """A network that says the same of every pixel."""
    logits = torch.tensor(probabilities).log()

    def run(images):
        return logits[None, :, None, None].expand(len(images), -1, *(-(-side // 8) for side in images.shape[2:]))
    return run


# --- geometry ---------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(size=SIZES, shown=PROTOCOLS)
def test_every_pixel_is_in_a_tile_of_every_scale_and_flip_and_no_tile_leaves_the_image(size, shown):
    seen = {}
    for tile in tiles(size, shown):
        for start, part, whole, side in zip((tile.top, tile.left), tile.size, tile.scaled, tile.canvas):
            assert 0 <= start and start + part <= whole and part <= side
        rows, columns = (decide._Axis(*values) for values in (
            (size[0], tile.scaled[0], tile.top, tile.size[0], tile.canvas[0]),
            (size[1], tile.scaled[1], tile.left, tile.size[1], tile.canvas[1], tile.flip)))
        count = seen.setdefault((tile.scaled, tile.flip), np.zeros(size, int))
        count[rows.first : rows.last, columns.first : columns.last] += 1
    assert {flip for _, flip in seen} == {False, shown.flip}
    for count in seen.values():
        assert count.min() >= 1
        if shown.kind != protocol.SLIDING:
            assert count.max() == count.min()


def test_canvases_by_hand():
    assert tiles((375, 500), Protocol("papers", (505, 505))) == [((375, 500), False, 0, 0, (375, 500), (505, 505))]
    assert tiles((375, 500), Protocol("original")) == [((375, 500), False, 0, 0, (375, 500), (377, 505))]
    assert [tile.canvas for tile in tiles((1, 9), Protocol("original"))] == [(9, 9)]  # two points of a map at least
    half = tiles((100, 200), Protocol("original", (50, 80), "resize", scales=(0.5,), flip=True))
    assert half == [((25, 40), flip, 0, 0, (25, 40), (25, 41)) for flip in (False, True)]
    windows = tiles((100, 40), Protocol("sliding", window=(42, 42), stride=0.5))  # 42 becomes 49, so 24 apart at most
    assert [(tile.top, tile.left, tile.size, tile.canvas) for tile in windows] == [
        (top, 0, (49, 40), (49, 49)) for top in (0, 17, 34, 51)]


def test_flipped_parts_are_parts_of_the_mirror_image():
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    tile = protocol.Tile((4, 6), True, 1, 2, (2, 3), (9, 9))
    canvas = canvas_of(image, tile)
    np.testing.assert_array_equal(canvas[:2, :3], image[:, ::-1][1:3, 2:5])
    assert not canvas[2:].any() and not canvas[:, 3:].any()


def test_an_image_larger_than_the_test_size_is_named():
    shown, named = Protocol("papers", (11, 11)), []
    with pytest.raises(UserError, match="12 x 10 pixels are larger than the test size 11 x 11.* original"):
        tiles((10, 12), shown)
    pictures = [("a.jpg", np.zeros((10, 12, 3), np.uint8)), ("b.jpg", np.zeros((9, 9, 3), np.uint8))]
    predicted = decide.predict_all(pictures, [member(colours)], shown, failed=lambda name, error: named.append(name))
    assert [name for name, _, _ in predicted] == ["b.jpg"] and named == ["a.jpg"]


def test_groups_hold_consecutive_images_of_equal_canvases():
    def groups_of(sizes, shown, batch_size):
        pictures = [(size, np.broadcast_to(np.uint8(0), (*size, 3))) for size in sizes]
        return [[size for size, _ in group] for group in grouped(pictures, shown, batch_size)]

    sizes = [(10, 10), (11, 12), (20, 20), (10, 9), (9, 10), (9, 17)]  # canvases of 17, 17, 25, 17 x 9, 9 x 17, 9 x 17
    assert groups_of(sizes, Protocol("original"), 2) == [sizes[:2], [sizes[2]], [sizes[3]], sizes[4:]]
    assert groups_of(sizes, Protocol("papers", (64, 64)), 4) == [sizes[:4], sizes[4:]]
    assert groups_of(sizes, Protocol("sliding", window=(9, 9)), 4) == [[size] for size in sizes]
    large = [(2000, 2000)] * 3  # 4 million pixels each, 8 million a batch
    assert groups_of(large, Protocol("original"), 8) == [large[:2], large[2:]]


def test_protocols_say_what_they_are():
    assert str(Protocol("papers", (505, 505))) == "zero-padded to 505 x 505, one scale, no flip (the papers')"
    assert str(Protocol("papers", (512, 1024), "resize", scales=(0.5, 1.0), flip=True)) == (
        "resized to 512 x 1024, scales 0.5, 1, flip")
    assert "sliding windows of 321 x 329, 0.667 of it apart" in str(Protocol("sliding", window=(321, 322)))
    one = member(colours)
    for kind in ("papers", "sliding"):
        with pytest.raises(UserError, match=f"--protocol {kind}"):
            choose_protocol([one], one.description, None, kind)
    with pytest.raises(UserError, match="each scale once"):
        choose_protocol([one], one.description, None, "original", scales=(1.0, 1.0))


# --- values -----------------------------------------------------------------------------------------------------------


def test_one_network_that_sees_a_pixel_once_decides_as_validation_does():
    torch.manual_seed(0)
    network = deeplab_v2(5, "small").eval()
    images = [np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
              for seed, size in enumerate([(40, 50), (64, 33), (64, 64)])]
    for test_size in ((64, 64), (65, 65)):  # map points between pixels, and on them
        decided = predict(images, [member(network, 5, IMAGENET)], Protocol("papers", test_size))
        batch = torch.from_numpy(np.stack([canvas_of(image, tiles(image.shape[:2], Protocol("papers", test_size))[0])
                                           for image in images]))
        with torch.inference_mode():
            maps = network(IMAGENET.normalize(batch))
        pixels = torch.nn.functional.interpolate(maps, test_size, mode="bilinear", align_corners=True).softmax(1)
        for image, whole, probabilities, (decision,) in zip(images, winners(maps, test_size), pixels, decided):
            height, width = image.shape[:2]
            assert torch.equal(decision.classes, whole[:height, :width])
            assert torch.allclose(decision.confidence, probabilities[:, :height, :width].amax(0))


@pytest.mark.parametrize("shown, edge", [
    (Protocol("original"), 0), (Protocol("original", flip=True), 0), (Protocol("papers", (113, 121)), 0),
    (Protocol("sliding", window=(33, 41), stride=0.5), 0),
    (Protocol("sliding", window=(33, 41), stride=1, flip=True), 0),
    (Protocol("original", (105, 97), "resize"), 0),
    (Protocol("original", scales=(0.5, 1.0, 2.0), flip=True), 16),  # at half the size, 48 x 44, maps end in the padding
    (Protocol("sliding", window=(25, 33), scales=(1.0, 1.5), flip=True), 0)])
def test_maps_lie_where_the_pixels_are(shown, edge):
    """A ramp's colours are its own logits: every pixel must come out as the place that it has."""
    image, inner = ramp(97, 89), (slice(0, 97 - edge), slice(edge, 89 - edge))
    (decision,), = predict([image], [member(lambda images: colours(images) / 20)], shown)
    decision = decide.Decision(*(part[inner] for part in decision))
    expected = torch.from_numpy(image[inner]).float()
    largest, second = expected.topk(2, dim=-1).values.unbind(-1)
    assert (((largest - second) <= 2) | (decision.classes == expected.argmax(dim=-1))).all()
    sure = (expected / 20).softmax(dim=-1).amax(dim=-1)
    assert ((decision.confidence - sure).abs() <= 6 / 255).all()  # scaled colours are rounded to whole numbers


def test_the_mean_of_probabilities_decides_and_is_the_confidence():
    members = [member(says([0.25, 0.75, 1e-9])), member(says([0.9, 0.1, 1e-9]))]
    image = np.zeros((12, 7, 3), np.uint8)
    one, other, both = predict([image], members, Protocol("original"), choices=[(0,), (1,), (0, 1)])[0]
    assert (one.classes == 1).all() and (other.classes == 0).all() and (both.classes == 0).all()
    for decision, confidence in ((one, 0.75), (other, 0.9), (both, (0.25 + 0.9) / 2)):
        assert decision.confidence.dtype == torch.float32 and decision.classes.dtype == torch.uint8
        assert decision.classes.shape == decision.confidence.shape == (12, 7)
        assert torch.allclose(decision.confidence, torch.tensor(confidence))


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3), (8, 8), (9, 10)])
@pytest.mark.parametrize("shown", [
    Protocol("original"), Protocol("papers", (512, 513)),
    Protocol("sliding", window=(33, 33), flip=True, scales=(0.5, 1.5))])
def test_any_size_can_be_predicted(size, shown):
    torch.manual_seed(0)
    network = deeplab_v2(4, "small").eval()
    (decision,), = predict([np.zeros((*size, 3), np.uint8)], [member(network, 4, IMAGENET)], shown)
    assert decision.classes.shape == decision.confidence.shape == size
    assert (decision.classes < 4).all() and (decision.confidence >= 0.24).all()


@pytest.mark.parametrize("shown", [
    Protocol("original"), Protocol("papers", (80, 90)), Protocol("original", scales=(0.7, 1.0)),
    Protocol("sliding", window=(25, 33), flip=True, scales=(1.0, 1.3))])
def test_strips_give_what_the_whole_gives(shown, monkeypatch):
    torch.manual_seed(0)
    members = [member(deeplab_v2(4, "small").eval(), 4, form) for form in (IMAGENET, COCO)]
    image = np.random.default_rng(0).integers(0, 256, (77, 59, 3), np.uint8)
    whole = predict([image], members, shown, [(0,), (0, 1)], batch_size=2)[0]
    monkeypatch.setattr(decide, "_STRIP", 1)
    for one, other in zip(whole, predict([image], members, shown, [(0,), (0, 1)], batch_size=2)[0]):
        assert (one.classes == other.classes).float().mean() > 0.999  # a tie may fall to the other side
        assert torch.allclose(one.confidence, other.confidence, atol=1e-5)
    assert len(whole[0].classes.unique()) > 1


# --- memory -----------------------------------------------------------------------------------------------------------


def photo(name, side):
    return name, np.zeros((side, side, 3), np.uint8)


def cramped(most):
    """A network whose memory is full with more than ``most`` pixels at once."""
    def run(images):
        if images[:, 0].numel() > most:
            raise torch.OutOfMemoryError("full")
        return colours(images)
    return run


def test_what_does_not_fit_together_is_predicted_alone_and_what_never_fits_is_named():
    small, large, refused = [photo(number, 9) for number in range(5)], photo("large", 40), []
    results = list(decide.predict_all([*small[:3], large, *small[3:]], [member(cramped(2 * 81))], Protocol("original"),
                                      batch_size=4, failed=lambda name, error: refused.append((name, str(error)))))
    assert {name for name, _, _ in results} == set(range(5))
    assert refused[0][0] == "large" and "--protocol sliding" in refused[0][1] and len(refused) == 1
    with pytest.raises(UserError):
        list(decide.predict_all([large], [member(cramped(81))], Protocol("original")))
    windows = Protocol("sliding", window=(9, 9))
    assert len(list(decide.predict_all([large], [member(cramped(4 * 81))], windows, batch_size=4))) == 1


def test_an_image_that_would_get_the_process_killed_is_refused_before():
    """A map of 10^6 x 10^6 pixels is more than any machine has; the image itself is one number."""
    image = np.broadcast_to(np.uint8(0), (10**6, 10**6, 3))
    with pytest.raises(UserError, match="GB are free; give --protocol sliding"):
        list(decide.predict_all([("huge", image)], [member(colours)], Protocol("original")))
