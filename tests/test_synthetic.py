"""The generated dataset: exact labels, images that depend on (seed, subset, index) alone, and safe regeneration."""

import hashlib
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from data.lists import read_list, write_list
from data.shapes import IGNORE, render
from data.specs import load_spec
from data.synthetic import MANIFEST, generate, main
from utils.errors import UserError
from utils.files import read_json, write_json

REPOSITORY = Path(__file__).resolve().parents[1]


def _files(root):
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("shapes") / "data", num_train=30, num_val=6, seed=5)


def test_lists_images_and_labels_agree_with_the_spec(dataset):
    spec = load_spec("shapes")
    train, val = (read_list(spec.list_path(dataset, name)) for name in ("trainaug.txt", "val.txt"))
    assert len(train) == 30 and len(val) == 6 and not set(train) & set(val)
    assert train[0] == "shapes_000001"
    assert read_list(spec.list_path(dataset, "train.txt")) == train[:4]  # 30 · 1464 / 10582
    sizes = set()
    for name in train + val:
        image = cv2.imread(str(spec.image_path(dataset, name)))
        with Image.open(spec.label_path(dataset, name)) as mask:
            assert mask.mode == "P"
            palette = mask.getpalette()
            label = np.array(mask)
        assert image.shape == (*label.shape, 3) and image.std() > 5
        assert max(label.shape) <= 112 and min(label.shape) >= 98
        assert [tuple(palette[3 * index:3 * index + 3]) for index in range(8)] == list(spec.palette)
        assert set(np.unique(label)) <= {*range(8), IGNORE}
        assert set(np.unique(label)) & set(range(1, 8))
        sizes.add(label.shape)
    assert len(sizes) > 5
    assert read_json(dataset / MANIFEST)["complete"] is True


def test_every_shape_has_a_border_of_one_ignored_pixel():
    for index in range(20):
        _, label = render(1, "train", index, 100, 112)
        shapes = (label > 0) & (label < IGNORE)
        near = cv2.dilate(shapes.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        assert not (near & (label == 0)).any()
        far = cv2.dilate(shapes.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        assert not ((label == IGNORE) & ~far).any()


def test_all_classes_occur_and_background_prevails():
    counts = np.zeros(256, int)
    for index in range(60):
        counts += np.bincount(render(0, "val", index, 112, 112)[1].ravel(), minlength=256)
    share = counts / counts.sum()
    assert (share[1:8] > 0.005).all() and 0.5 < share[0] < 0.9 and 0.01 < share[IGNORE] < 0.1


def test_an_image_depends_on_seed_subset_and_index_alone(dataset, tmp_path):
    image, label = render(3, "train", 7, 112, 112)
    again, label_again = render(3, "train", 7, 112, 112)
    assert (image == again).all() and (label == label_again).all()
    for other in ((4, "train", 7), (3, "val", 7), (3, "train", 8)):
        assert (render(*other, 112, 112)[0] != image).any()
    fewer = _files(generate(tmp_path / "fewer", num_train=10, num_val=3, seed=5))
    all_files = _files(dataset)
    images = [name for name in fewer if name.endswith((".jpg", ".png"))]
    assert len(images) == 26 and all(fewer[name] == all_files[name] for name in images)
    parallel = generate(tmp_path / "parallel", num_train=30, num_val=6, seed=5, workers=2)
    assert _files(parallel) == all_files


def test_shapes_grow_with_the_image():
    small = np.mean([(render(0, "train", index, 64, 64)[1] > 0).mean() for index in range(20)])
    large = np.mean([(render(0, "train", index, 320, 320)[1] > 0).mean() for index in range(20)])
    assert 0.6 < small / large < 1.7


def test_a_finished_dataset_is_reused_and_another_one_replaces_it(tmp_path):
    root = generate(tmp_path / "data", num_train=4, num_val=2)
    image = root / "JPEGImages" / "shapes_000001.jpg"
    before = image.stat().st_mtime_ns
    generate(root, num_train=4, num_val=2)
    assert image.stat().st_mtime_ns == before
    write_list(root / "ImageSets" / "Segmentation" / "2_labeled_0.txt", ["shapes_000001"])
    generate(root, num_train=3, num_val=2)
    assert image.stat().st_mtime_ns != before
    assert not (root / "JPEGImages" / "shapes_000004.jpg").exists()
    assert not (root / "ImageSets" / "Segmentation" / "2_labeled_0.txt").exists()


@pytest.mark.parametrize("damage", ["incomplete", "broken", "image missing"])
def test_an_unfinished_dataset_is_made_again(tmp_path, damage):
    root = generate(tmp_path / "data", num_train=3, num_val=1)
    whole = _files(root)
    manifest = root / MANIFEST
    if damage == "incomplete":
        write_json(manifest, {**read_json(manifest), "complete": False})
        (root / "JPEGImages" / "shapes_000002.jpg").write_bytes(b"half")
    elif damage == "broken":
        manifest.write_text("{")
        (root / "ImageSets" / "Segmentation" / "val.txt").unlink()
    else:
        (root / "SegmentationClassAug" / "shapes_000003.png").unlink()
    assert _files(generate(root, num_train=3, num_val=1)) == whole


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "JPEGImages" / "2007_000032.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match="choose an empty folder"):
        generate(tmp_path, num_train=1, num_val=1)
    assert (tmp_path / "JPEGImages" / "2007_000032.jpg").read_bytes() == b"mine"
    assert not (tmp_path / "ImageSets").exists()


def test_cityscapes_layout(tmp_path):
    root = generate(tmp_path / "city", num_train=6, num_val=4, size=(64, 128), layout="cityscapes")
    spec = load_spec("city")
    counts = {"train": 6, "val": 4, "test": 1}
    seen = set()
    for subset, count in counts.items():
        names = read_list(root / "data_lists" / f"{subset}.txt")
        assert len(names) == count and names == sorted(names) and all(name.count("/") == 1 for name in names)
        for name in names:
            image = cv2.imread(str(spec.image_path(root, name, subset)))
            ids = cv2.imread(str(spec.label_path(root, name, subset)), cv2.IMREAD_UNCHANGED)
            assert image.shape == (64, 128, 3) and ids.shape == (64, 128) and ids.dtype == np.uint8
            classes = np.array(spec.label_ids)[ids]
            assert set(np.unique(classes)) <= {*range(8), spec.ignore} and (ids[classes == spec.ignore] == 0).all()
            seen |= set(np.unique(classes))
    assert len(seen) > 4
    lists = {path.name: path.read_bytes() for path in (root / "data_lists").iterdir()}
    done = subprocess.run([sys.executable, str(REPOSITORY / "cityscapes_data_list.py"), "--data-root", str(root)],
                          cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""
    assert {path.name: path.read_bytes() for path in (root / "data_lists").iterdir()} == lists


@pytest.mark.parametrize("arguments, word", [
    (["--train", "0"], "training images"), (["--val", "-1"], "validation images"), (["--seed", "-1"], "seed"),
    (["--size", "8", "8"], "32 to 4096"), (["--workers", "0"], "workers")])
def test_what_a_user_can_get_wrong(tmp_path, monkeypatch, capsys, arguments, word):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["--out", "data", *arguments])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert word in error and len(error.splitlines()) == 1
    assert not (tmp_path / "data").exists()


def test_as_a_command(tmp_path):
    done = subprocess.run([sys.executable, "-m", "data.synthetic", "--out", str(tmp_path / "data"), "--train", "2",
                           "--val", "1"], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == "" and "--dataset shapes" in done.stdout
    assert len(list((tmp_path / "data" / "JPEGImages").iterdir())) == 3
