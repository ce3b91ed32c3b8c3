"""tools/new_dataset.py on folders as people have them: what it finds, what it writes, and that the result is usable."""

import collections
import functools
import itertools

import numpy as np
import pytest
from PIL import Image

from data import images
from data.lists import read_list
from data.specs import UNLABELED, load_spec
from data.splits import hold_out
from dmt.session import Data
from prepare import own as new_dataset
from utils.errors import UserError

RANDOM = np.random.default_rng(7)


def image(path, size=(24, 32), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RANDOM.integers(0, 256, (*size, 3)).astype(np.uint8)).save(path, **options)


def mask(path, values=(0, 1), size=(24, 32), palette=None):
    """A mask of vertical stripes with ``values`` (numbers, or colours)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.array(values, np.uint16 if np.max(values) > 255 else np.uint8)
    array = values[np.arange(size[1]) * len(values) // size[1]][None].repeat(size[0], 0)
    picture = Image.fromarray(array)
    if palette:
        picture.putpalette(palette)
    picture.save(path)


@pytest.fixture
def make(tmp_path, called, monkeypatch):
    """Run the tool in ``tmp_path``; returns (status, output, errors)."""
    monkeypatch.chdir(tmp_path)
    return functools.partial(called, new_dataset.main)


def lists_of(out, *names):
    return [read_list(out / "lists" / f"{name}.txt") for name in names]


def check(spec, names):
    """All images and masks of ``names`` open, by the paths that a stage would take."""
    data = Data(spec, None)
    images.check_pairs(data.spec, data.samples(names, "train"))
    return data


def dataset(folder, count=4, values=(0, 1), size=(24, 32)):
    for number in range(count):
        image(folder / f"i/{number}.jpg", size)
        mask(folder / f"m/{number}.png", values, size)


def test_two_folders_and_a_pool(tmp_path, make):
    for number in range(10):
        image(tmp_path / f"field/photos/{number:02}.JPG" if number % 2 else tmp_path / f"field/photos/{number:02}.png")
    for number in range(5):
        mask(tmp_path / f"field/labels/{number:02}_mask.png", (0, 1, 2, 255),
             palette=[1, 1, 1, 200, 0, 0, 0, 200, 0] + [0] * (253 * 3))
    image(tmp_path / "field/more/a/x.webp")
    image(tmp_path / "field/more/03.bmp", (30, 20))  # another image than the labelled 03
    (tmp_path / "field/photos/Thumbs.db").write_text("")
    status, out, errors = make("field/photos", "field/labels", "--unlabeled", "field/more", "--classes=bg,crop,weed")
    assert status == 0, errors
    spec = load_spec("datasets/field/dataset.yaml")
    assert (spec.name, spec.images, spec.labels) == ("field", "photos/{name}.*", "labels/{name}_mask.png")
    assert spec.unlabeled_images == "more/{name}.*"
    assert spec.class_names == ("bg", "crop", "weed") and spec.palette[1] == (200, 0, 0) and spec.background == 0
    assert (spec.ignore, spec.label_ids, spec.test_size, spec.test_by) == (255, None, (33, 33), "pad")
    assert (spec.divisors, spec.dms_splits) == ((("2", 2),), ("all",))
    train, labeled, validation, unlabeled = lists_of(tmp_path / "datasets/field", "train", "all_labeled_0", "val",
                                                     "all_unlabeled_0")
    assert train == labeled and len(validation) == 1 and sorted(train + validation) == ["00", "01", "02", "03", "04"]
    assert unlabeled == ["03", "05", "06", "07", "08", "09", "a/x"]
    data = check("datasets/field/dataset.yaml", train + validation)
    assert [sample.image.name for sample in data.samples(unlabeled, UNLABELED)] == [
        "03.bmp", "05.JPG", "06.png", "07.JPG", "08.png", "09.JPG", "x.webp"]
    assert [sample.name for sample in data.unlabeled("all", "0")] == unlabeled
    for words in ("10 in field/photos", "5 in field/labels, called NAME_mask; 5 images have none", "20 to 32 pixels",
                  "255       5        25.00  ignored", "2 weed", "background   bg",
                  "main.py --check --dataset=datasets/field/dataset.yaml --train-set=all --sets-id=0",
                  "scripts/dmt_ple-own.sh datasets/field/dataset.yaml", "predict.py"):
        assert words in out, words
    status, _, errors = make("field/photos", "field/labels")
    assert status == 2 and "--force" in errors and len(errors.splitlines()) == 1
    assert make("field/photos", "field/labels", "--force")[0] == 0
    assert lists_of(tmp_path / "datasets/field", "val") == [validation]  # the draw is the same


@pytest.mark.parametrize("image_name, mask_name, images, labels, name", [
    ("{}.jpg", "{}.png", "i/{name}.jpg", "m/{name}.png", "1"),
    ("c/c_{}_leftImg8bit.png", "c/c_{}_gtFine_labelIds.png", "i/{name}_leftImg8bit.png",
     "m/{name}_gtFine_labelIds.png", "c/c_1"),
    ("sub/{}_a.tif", "sub/{}_a_L.TIF", "i/{name}.tif", "m/{name}_L.TIF", "sub/1_a"),
])
def test_names_of_masks(tmp_path, make, image_name, mask_name, images, labels, name):
    for number in range(1, 5):
        image(tmp_path / "d/i" / image_name.format(number))
        mask(tmp_path / "d/m" / mask_name.format(number))
        if "gtFine" in mask_name:
            mask(tmp_path / "d/m" / mask_name.format(number).replace("labelIds", "color"), [(9, 9, 9), (1, 2, 3)])
    image(tmp_path / "d/i" / image_name.format(10))
    options = []
    if "gtFine" in mask_name:
        status, _, errors = make("d/i", "d/m")
        assert status == 2 and "--image-suffix _leftImg8bit" in errors
        status, _, errors = make("d/i", "d/m", "--image-suffix=_leftImg8bit")
        assert status == 2 and "_gtFine_color, _gtFine_labelIds" in errors and "--mask-suffix" in errors
        options = ["--image-suffix=_leftImg8bit", "--mask-suffix=_gtFine_labelIds"]
    status, _, errors = make("d/i", "d/m", "--mask-suffix=foo")
    assert status == 2 and "rename them, or say what stands behind" in errors
    assert make("d/i", "d/m", *options)[0] == 0
    spec = load_spec("datasets/d/dataset.yaml")
    assert (spec.images, spec.labels, spec.mask_colors) == (images, labels, None)
    train, validation, unlabeled = lists_of(tmp_path / "datasets/d", "train", "val", "all_unlabeled_0")
    assert name in train + validation and len(train + validation) == 4 and len(unlabeled) == 1
    check("datasets/d/dataset.yaml", train + validation)


@pytest.mark.parametrize("mask_name", ["{}.png", "{}_mask.png"])
def test_images_and_masks_in_one_folder(tmp_path, make, mask_name):
    for number in range(6):
        image(tmp_path / f"d/{number}.jpg")
        if number < 4:
            mask(tmp_path / "d" / mask_name.format(number))
    assert make("d", "d")[0] == 0
    spec = load_spec("datasets/d/dataset.yaml")
    assert (spec.images, spec.labels) == ("{name}.jpg", mask_name.format("{name}"))
    assert lists_of(tmp_path / "datasets/d", "all_unlabeled_0") == [["4", "5"]]


def test_colours(tmp_path, make):
    dataset(tmp_path / "d", values=[(0, 0, 0), (200, 0, 0), (0, 0, 200), (224, 224, 192)])
    status, out, errors = make("d/i", "d/m")
    assert status == 0 and "224,224,192       4        25.00  ignored" in out, errors
    spec = load_spec("datasets/d/dataset.yaml")
    assert spec.mask_colors == (((0, 0, 0), 0), ((0, 0, 200), 2), ((200, 0, 0), 1), ((224, 224, 192), 255))
    (tmp_path / "names").write_text("weed 200 0 0\nsoil: 0 0 0\n")
    status, _, errors = make("d/i", "d/m", "--classes=names", "--force")
    assert status == 2 and "the colour [0, 0, 200]" in errors
    assert make("d/i", "d/m", "--classes=names", "--force", "--ignore", "224,224,192", "0,0,200")[0] == 0
    assert load_spec("datasets/d/dataset.yaml").class_names == ("weed", "soil")
    status, _, errors = make("d/i", "d/m", "--classes=a,b,c", "--force")
    assert status == 2 and "the class 'a' has no colour" in errors


def test_what_looks_wrong_is_said(tmp_path, make):
    dataset(tmp_path / "d", 8, (0, 1, 255))
    exif = Image.Exif()
    exif[0x0112] = 6
    image(tmp_path / "d/i/0.jpg", exif=exif)
    (tmp_path / "d/i/1.jpg").write_bytes((tmp_path / "d/i/1.jpg").read_bytes()[:-300])
    mask(tmp_path / "d/m/2.png", (0, 1), (24, 31))
    (tmp_path / "d/m/3.png").write_text("no image")
    mask(tmp_path / "d/m/lost.png")
    image(tmp_path / "d/i/8.png")
    image(tmp_path / "d/u/9.png")
    (tmp_path / "d/u/10.png").write_text("no image")
    status, out, errors = make("d/i", "d/m", "--unlabeled", "d/u")
    assert status == 0
    for words in ("1 images carry an orientation tag", "mogrify -auto-orient", "1.jpg does not decode: it is truncated",
                  "2.png is 31 x 24 pixels; they must be of one size", "3.png does not decode", "lost.png",
                  "1 masks belong to no image", "the value 255", "10.png does not decode"):
        assert words in errors, words
    train, validation, unlabeled = lists_of(tmp_path / "datasets/d", "train", "val", "all_unlabeled_0")
    assert sorted(train + validation) == ["0", "4", "5", "6", "7"] and unlabeled == ["8", "9"]


def test_large_images_are_resized(tmp_path, make):
    dataset(tmp_path / "d", 3, size=(600, 1200))
    status, out, errors = make("d/i", "d/m")
    assert status == 0 and "give a folder of them with --unlabeled" in out and "--state=2" in out, errors
    assert not (tmp_path / "datasets/d/lists/all_unlabeled_0.txt").exists()
    spec = load_spec("datasets/d/dataset.yaml")
    assert (spec.test_by, spec.test_size, spec.crop) == ("resize", (513, 1025), (321, 321))


@pytest.mark.parametrize("arguments, words", [
    (["d/i", "d/nowhere"], "d/nowhere is not a folder"),
    (["d/i", "d/empty"], "d/empty holds no images or masks"),
    (["d/i", "d/other"], "--mask-suffix"),
    (["d/i", "d/m", "--val-share=1"], "between 0 and 1"),
    (["d/i", "d/m", "--classes=nofile"], "no such file"),
    (["d/i", "d/m", "--classes=twice.txt"], "the mask value 0 to 'a' and to 'b'"),
    (["d/i", "d/m", "--classes=none.txt"], "none.txt lists no class"),
    (["d/i", "d/m", "--classes=dashes.txt"], "the name first"),
    (["d/i", "d/m", "--classes=one,two,two"], "twice"),
    (["d/i", "d/m", "--classes=a,b,c", "--ignore=1"], "--ignore 1"),
    (["d/i", "d/m", "--ignore=x"], "--ignore x"),
    (["d/i", "d/m", "--ignore=1"], "has 1 classes"),
    (["d/i", "d/m", "--unlabeled", "d/empty"], "d/empty holds no images"),
    (["d/i", "d/m/sub"], "too few"),
    (["d/i", "d/photographs"], "tools.convert_rgb"),
    (["d/i", "d/m", "--unlabeled", "d/more"], "have one name"),
])
def test_mistakes_end_in_one_line(tmp_path, make, arguments, words):
    dataset(tmp_path / "d", 3)
    image(tmp_path / "d/i/x.jpg")
    image(tmp_path / "d/more/x.jpg")
    mask(tmp_path / "d/m/sub/0.png")
    (tmp_path / "d/empty").mkdir()
    mask(tmp_path / "d/other/zzz.png")
    for name, text in (("twice", "a 0\nb 0\n"), ("none", "# nothing\n"), ("dashes", "- a\n- b\n")):
        (tmp_path / f"{name}.txt").write_text(text)
    for number in range(3):
        image(tmp_path / f"d/photographs/{number}.png", (80, 80))
    status, _, errors = make(*arguments)
    assert status == 2 and len(errors.splitlines()) == 1 and errors.startswith("error: ") and words in errors, errors
    assert not (tmp_path / "datasets").exists()


# --- the share held out -----------------------------------------------------------------------------------------------


def test_every_class_of_two_masks_stays_in_training():
    """Ten images of classes that are common, rare (two masks) and single; over many seeds."""
    for seed, share in itertools.product(range(30), (0.1, 0.3, 0.6, 0.9)):
        own = {f"n{index}": {0, index % 3} for index in range(10)}
        own["n3"] |= {7}
        own["n8"] |= {7, 8}
        held = hold_out(own, share, seed)
        left = collections.Counter(index for name in own if name not in held for index in own[name])
        assert set(left) == {0, 1, 2, 7, 8} and "n8" not in held
        assert len(held) <= max(1, round(10 * share)) and held == sorted(set(held))
        if share == 0.3:
            assert len(held) == 3 and {1, 2} <= set().union(*(own[name] for name in held))


def test_hold_out_where_every_image_is_the_only_one_of_its_class():
    assert len(hold_out({"a": {0}, "b": {1}}, 0.5)) == 1
    with pytest.raises(UserError, match="1 image with a usable mask is too few"):
        hold_out({"a": {0}}, 0.5)
