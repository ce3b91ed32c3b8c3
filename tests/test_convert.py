"""tools/convert_coco.py and tools/convert_rgb.py: the masks pixel by pixel, and mistakes in one line."""

import copy
import json

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask as coco

from prepare import coco as convert_coco, own as new_dataset, rgb as convert_rgb


@pytest.fixture
def run(called, tmp_path, monkeypatch):
    """Run a tool's ``main`` in ``tmp_path``; returns (status, output, errors)."""
    monkeypatch.chdir(tmp_path)

    def call(tool, *arguments):
        return called(tool.main, *arguments)
    return call


def read(path):
    with Image.open(path) as file:
        assert file.mode == "P"
        return np.array(file), file.getpalette()


# --- COCO -------------------------------------------------------------------------------------------------------------


def rectangle(left, top, right, bottom):
    return [left, top, right, top, right, bottom, left, bottom]


def compressed(mask):
    encoded = coco.encode(np.asfortranarray(mask))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def annotations():
    """Image 1: a large cat, on it a small dog (listed before it), a crowd, a cat of two polygons; image 2: nothing."""
    dog = np.zeros((20, 30), np.uint8)
    dog[5:10, 10:14] = 1
    return {
        "images": [{"id": 1, "file_name": "field/a.b.jpg", "height": 20, "width": 30},
                   {"id": 2, "file_name": "empty.jpg", "height": 4, "width": 6}],
        "categories": [{"id": 17, "name": "cat"}, {"id": 5, "name": "dog"}, {"id": 90, "name": "horse"}],
        "annotations": [
            {"id": 11, "image_id": 1, "category_id": 5, "segmentation": compressed(dog), "iscrowd": 0},
            {"id": 12, "image_id": 1, "category_id": 17, "segmentation": [rectangle(8, 2, 20, 12)]},
            {"id": 13, "image_id": 1, "category_id": 5, "iscrowd": 1,
             "segmentation": {"size": [20, 30], "counts": [0, 200, 400]}},  # the ten columns at the left
            {"id": 14, "image_id": 1, "category_id": 17, "area": 1, "segmentation": [
                rectangle(24, 15, 26, 17), rectangle(28, 15, 30, 17)]},
            {"id": 15, "image_id": 1, "category_id": 90, "segmentation": [], "bbox": [22, 2, 4, 3]}]}


def expected():
    mask = np.zeros((20, 30), np.uint8)
    mask[:, :10] = 255
    mask[2:5, 22:26] = 255  # horse: no outline, its box is ignored
    mask[2:12, 8:20] = 2
    mask[5:10, 10:14] = 1
    mask[15:17, 24:26] = mask[15:17, 28:30] = 2
    return mask


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_coco_masks_by_hand(tmp_path, run):
    write(tmp_path / "a.json", annotations())
    status, out, errors = run(convert_coco, "a.json", "masks")
    assert status == 0, errors
    mask, palette = read(tmp_path / "masks/field/a.b.png")
    assert (mask == expected()).all()
    assert (tmp_path / "masks/classes.txt").read_text() == "background: 0\ndog: 1\ncat: 2\nhorse: 3\n"
    assert palette[3:6] == [128, 0, 0] and palette[765:] == [224, 224, 192]
    assert not (tmp_path / "masks/empty.png").exists() and "1 images without annotations" in out
    assert out.splitlines()[2].split() == ["1", "1", f"{100 * 20 / 600:.2f}", "dog"]
    assert run(convert_coco, "a.json", "masks")[0] == 2
    assert run(convert_coco, "a.json", "masks", "--force", "--empty")[0] == 0
    assert read(tmp_path / "masks/empty.png")[0].tolist() == [[0] * 6] * 4


def test_coco_without_a_background(tmp_path, run):
    content = annotations()
    content["categories"][0]["name"] = "ground"
    write(tmp_path / "a.json", content)
    assert run(convert_coco, "a.json", "one", "--background=none")[0] == 0
    mask, _ = read(tmp_path / "one/field/a.b.png")
    assert (mask == np.array([255, 0, 1], np.uint8)[np.where(expected() == 255, 0, expected())]).all()
    assert run(convert_coco, "a.json", "two", "--background=ground")[0] == 0  # that category is class 0
    mask, _ = read(tmp_path / "two/field/a.b.png")
    assert (mask == np.where(expected() == 2, 0, expected())).all()


def test_coco_to_a_dataset(tmp_path, run):
    content = annotations()
    content["images"] += [{**content["images"][0], "id": 7, "file_name": "field/c.jpg"}]
    content["annotations"] += [{**entry, "image_id": 7} for entry in content["annotations"]]
    write(tmp_path / "a.json", content)
    assert run(convert_coco, "a.json", "masks")[0] == 0
    for entry in content["images"]:
        path = tmp_path / "photos" / entry["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (entry["width"], entry["height"])).save(path)
    status, out, errors = run(new_dataset, "photos", "masks", "--classes=masks/classes.txt", "--out=datasets/pets")
    assert status == 0 and "background   background" in out, errors
    spec = yaml.safe_load((tmp_path / "datasets/pets/dataset.yaml").read_text())
    assert spec["classes"][1] == {"name": "dog", "color": [128, 0, 0]} and len(spec["classes"]) == 4
    assert (tmp_path / "datasets/pets/lists/all_unlabeled_0.txt").read_text() == "empty\n"


def broken(change):
    content = copy.deepcopy(annotations())
    change(content)
    return content


@pytest.mark.parametrize("content, words", [
    ("{", ["no COCO annotation"]), ("[1, 2]", ["no COCO annotation"]), ("[" * 100000, ["no COCO annotation"]),
    (broken(lambda c: c.pop("categories")), ["'categories'"]),
    (broken(lambda c: c.update(annotations={"a": 1})), ["no COCO annotation"]),
    (broken(lambda c: c.update(annotations=[])), ["no annotation"]),
    (broken(lambda c: c.update(categories=[])), ["1 classes"]),
    (broken(lambda c: c["images"][0].pop("file_name")), ["'file_name'"]),
    (broken(lambda c: c["images"][0].update(file_name="../../etc/x.jpg")), ["the image 1", "'..'"]),
    (broken(lambda c: c["images"][0].update(file_name="/etc/x.jpg")), ["absolute"]),
    (broken(lambda c: c["images"][0].update(width=0)), ["the image 1", "0 x 20 pixels"]),
    (broken(lambda c: c["images"][0].update(height=None)), ["the image 1"]),
    (broken(lambda c: c["images"][0].update(height=10**9, width=10**9)), ["--max-pixels"]),
    (broken(lambda c: c["images"][1].update(id=1)), ["is there twice"]),
    (broken(lambda c: c["images"][1].update(file_name="field/a.b.png")), ["is there twice", "'field/a.b.png'"]),
    (broken(lambda c: c["categories"][1].update(name="cat")), ["twice"]),
    (broken(lambda c: c["annotations"][0].update(image_id=99)), ["annotation 11", "the image 99"]),
    (broken(lambda c: c["annotations"][0].update(category_id=99)), ["annotation 11", "the category 99"]),
    (broken(lambda c: c["annotations"][0].pop("segmentation")), ["annotation 11", "'segmentation'"]),
    (broken(lambda c: c["annotations"][0]["segmentation"].update(counts="zzz")), ["annotation 11", "damaged"]),
    (broken(lambda c: c["annotations"][0]["segmentation"].update(counts="o0" * 50)), ["annotation 11", "damaged"]),
    (broken(lambda c: c["annotations"][0]["segmentation"].update(size=[30, 20])), ["annotation 11", "[20, 30]"]),
    (broken(lambda c: c["annotations"][2]["segmentation"].update(counts=[-5, 605])), ["annotation 13", "damaged"]),
    (broken(lambda c: c["annotations"][2]["segmentation"].update(counts=[1, 2])), ["add up to the 600 pixels"]),
    (broken(lambda c: c["annotations"][1].update(segmentation=[[1, 2, 3, 4]])), ["annotation 12", "at least 6"]),
    (broken(lambda c: c["annotations"][1].update(segmentation=[[1, 2, 3, 4, 5, "x"]])), ["annotation 12"]),
    (broken(lambda c: c["annotations"][1].update(segmentation=[[0, 0, 1e9, 0, 0, 5]])), ["near the image of 30 x 20"]),
    (broken(lambda c: c["annotations"][4].pop("bbox")), ["annotation 15", "'bbox'"]),
])
def test_coco_mistakes_end_in_one_line(tmp_path, run, content, words):
    status, _, errors = run(convert_coco, write(tmp_path / "a.json", content), "masks")
    assert status == 2 and len(errors.splitlines()) == 1 and errors.startswith("error: "), errors
    for word in ("a.json", *words):
        assert word in errors, errors
    assert not (tmp_path / "masks").exists()


def test_coco_files_that_are_none(tmp_path, run):
    assert "cannot be read" in run(convert_coco, "nowhere.json", "masks")[2]
    (tmp_path / "a.json").write_bytes(b"\xff\xd8\xff")
    assert "no COCO annotation" in run(convert_coco, "a.json", "masks")[2]


# --- RGB --------------------------------------------------------------------------------------------------------------

COLORS = np.array([[0, 0, 0], [200, 0, 0], [0, 0, 250], [255, 255, 255]], np.uint8)
VALUES = np.sort(np.random.default_rng(0).integers(0, 4, (40, 40)).astype(np.uint8), 1)


@pytest.fixture
def colored(tmp_path):
    """Two coloured masks, one of them with transparency of 255 and in a folder of its own."""
    (tmp_path / "rgb/sub").mkdir(parents=True)
    Image.fromarray(COLORS[VALUES]).save(tmp_path / "rgb/a.png")
    alpha = np.full((*VALUES.shape, 1), 255, np.uint8)
    Image.fromarray(np.concatenate([COLORS[VALUES.T], alpha], 2)).save(tmp_path / "rgb/sub/b.tif")
    write(tmp_path / "colors.txt", "# comment\nsoil 0 0 0\nweed: 200 0 0\nwater 0, 0, 250\n")
    return tmp_path


def test_rgb_masks_by_a_list_of_colours(colored, run):
    status, _, errors = run(convert_rgb, "rgb", "out", "--colors=colors.txt")
    assert status == 2 and not (colored / "out").exists()
    share = f"{100 * (VALUES == 3).mean():.2f} % of the pixels"
    for words in ("1 colour of no class", share, f"[255, 255, 255], {2 * (VALUES == 3).sum()} pixels (first in",
                  "a.png)", "--ignore", "nothing was written"):
        assert words in errors
    status, out, errors = run(convert_rgb, "rgb", "out", "--colors=colors.txt", "--ignore", "255,255,255")
    assert status == 0 and "2 masks in out" in out, errors
    classes = np.array([0, 1, 2, 255], np.uint8)
    mask, palette = read(colored / "out/a.png")
    assert (mask == classes[VALUES]).all() and palette[:9] == [0, 0, 0, 200, 0, 0, 0, 0, 250]
    assert (read(colored / "out/sub/b.png")[0] == classes[VALUES.T]).all()
    assert (colored / "out/classes.txt").read_text() == "soil: 0\nweed: 1\nwater: 2\n"
    assert "--force" in run(convert_rgb, "rgb", "out", "--colors=colors.txt", "--ignore", "others")[2]
    assert run(convert_rgb, "rgb", "out", "--colors=colors.txt", "--ignore", "others", "--force")[0] == 0


def test_masks_of_inexact_colours_need_a_tolerance(tmp_path, run):
    (tmp_path / "rgb").mkdir()
    noise = np.random.default_rng(1).integers(-9, 10, (*VALUES.shape, 3))
    Image.fromarray((COLORS[VALUES % 3] + noise).clip(0, 255).astype(np.uint8)).save(tmp_path / "rgb/a.png")
    write(tmp_path / "colors.txt", "soil 0 0 0\nweed 200 0 0\nwater 0 0 250\n")
    status, _, errors = run(convert_rgb, "rgb", "out", "--colors=colors.txt", "--tolerance=2")
    assert status == 2 and "--tolerance" in errors and "more. Add" in errors
    assert run(convert_rgb, "rgb", "out", "--colors=colors.txt", "--tolerance=40")[0] == 0
    assert (read(tmp_path / "out/a.png")[0] == VALUES % 3).all()


def test_jpeg_masks(tmp_path, run):
    """Of blurred edges either side may win, but nothing else does; where colours are flat, they are right."""
    (tmp_path / "rgb").mkdir()
    values = np.kron(np.array([[0, 1], [2, 0]]), np.ones((22, 22), int))
    Image.fromarray(COLORS[values]).save(tmp_path / "rgb/a.jpg", quality=75)
    write(tmp_path / "colors.txt", "soil 0 0 0\nweed 200 0 0\nwater 0 0 250\n")
    assert run(convert_rgb, "rgb", "out", "--colors=colors.txt", "--tolerance=441")[0] == 0
    mask, _ = read(tmp_path / "out/a.png")
    for rows, columns in ((slice(0, 16), slice(0, 16)), (slice(0, 16), slice(32, 44)), (slice(32, 44), slice(0, 16))):
        assert (mask[rows, columns] == values[rows, columns]).all()


@pytest.mark.parametrize("arguments, words", [
    (["nowhere", "out", "--colors=colors.txt"], "not a folder"), (["rgb", "out"], "required"),
    (["rgb/sub", "rgb", "--colors=colors.txt"], "holds the masks"),
    (["rgb", "out", "--colors=nowhere"], "no such file"),
    (["rgb", "out", "--colors=bad.txt"], "'weed' has no colour"), (["rgb", "out", "--colors=twice.txt"], "twice"),
    (["rgb", "out", "--colors=colors.txt", "--ignore=white"], "255,255,255"),
    (["rgb", "out", "--colors=colors.txt", "--tolerance=-1"], "--tolerance"),
])
def test_rgb_mistakes_end_in_one_line(colored, run, arguments, words):
    write(colored / "bad.txt", "soil 0 0 0\nweed\n")
    write(colored / "twice.txt", "soil 0 0 0\nweed 0 0 0\n")
    status, _, errors = run(convert_rgb, *arguments)
    assert status == 2 and len(errors.splitlines()) == 1 and words in errors, errors
    assert not (colored / "out").exists()

