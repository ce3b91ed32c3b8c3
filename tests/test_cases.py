"""Inputs as people really have them: what new_dataset, --check, training and predict make of each kind."""

import functools
import os
import shlex
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from data import images
from data.lists import read_list
from data.specs import load_spec
from data.splits import save_lists
from prepare import own
from tests.conftest import REPOSITORY
from utils.errors import UserError

RANDOM = np.random.default_rng(5)
VALUES = np.kron(np.arange(4).reshape(2, 2), np.ones((12, 16), int)).astype(np.uint8)  # four squares of 12 x 16 pixels


def photo(path, size=(24, 32), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RANDOM.integers(0, 256, (*size, 3)).astype(np.uint8)).save(path, **options)
    return path


def mask(path, values=(0, 1, 2, 3), mode=None):
    """A mask of four squares with these values, or colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.array(values, np.uint16 if np.max(values) > 255 else np.uint8)[VALUES]
    (Image.fromarray(array).convert(mode) if mode else Image.fromarray(array)).save(path)
    return path


@pytest.fixture
def wizard(tmp_path, called, monkeypatch):
    """Run new_dataset in ``tmp_path`` on ten photos ``p`` with masks ``m``: (status, output, errors)."""
    monkeypatch.chdir(tmp_path)
    for number in range(10):
        photo(tmp_path / f"p/{number}.jpg")
        mask(tmp_path / f"m/{number}.png")
    return functools.partial(called, own.main)


def refused(result, *words):
    status, _, errors = result
    assert status == 2 and len(errors.splitlines()) == 1 and errors.startswith("error: "), result
    assert not [word for word in words if word not in errors], errors
    assert not os.path.exists("datasets") or not os.listdir("datasets")


def made(result):
    """(spec, dict of its lists), and the warnings."""
    status, _, errors = result
    assert status == 0, errors
    folder, = (entry.path for entry in os.scandir("datasets"))
    return load_spec(f"{folder}/dataset.yaml"), {name[:-4]: read_list(f"{folder}/lists/{name}")
                                                 for name in os.listdir(f"{folder}/lists")}, errors


def masks_of(values, folder="m", count=10):
    for number in range(count):
        mask(folder / f"{number}.png", values)


# --- which values are classes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("values, options, found", [
    ((0, 255, 0, 255), [], [(0,), (255,)]),  # a binary mask
    ((0, 1, 2, 255), [], None), ((1, 2, 3, 4), [], None),  # class numbers, of which masks may lack some
    ((1, 2, 3, 0), ["--ignore=0"], [(1,), (2,), (3,)]), ((0, 1, 2, 250), ["--ignore=250"], None),
    ((7, 8, 33, 0), ["--ignore=0"], [(7,), (8,), (33,)]), ((1000, 2000, 3000, 65535), ["--ignore=65535"],
                                                           [(1000,), (2000,), (3000,)]),
    ((0, 128, 255, 0), ["--ignore=none"], [(0,), (128,), (255,)]),
    ((0, 128, 255, 0), ["--classes=ground,edge,thing"], [(0,), (128,), (255,)]),
    ((7, 26, 255, 7), ["--classes=road,car"], [(7,), (26,)]), ((0, 1, 2, 250), ["--ignore=250", "--classes=a,b,c"], None),
    ([(0, 0, 0), (1, 1, 1), (0, 0, 0), (255, 255, 255)], [], None),  # greys saved as RGB
])
def test_values_that_are_certain_or_said(tmp_path, wizard, values, options, found):
    masks_of(values, tmp_path / "m")
    spec, _, _ = made(wizard("p", "m", *options, "--out=datasets/d"))
    classes = images.read_mask(tmp_path / "m/0.png", spec)
    if found is None:
        values = [int(np.max(value)) for value in values]
        assert spec.label_ids is None and (classes == np.array([v if v < 250 else 255 for v in values])[VALUES]).all()
    else:
        assert [tuple(np.flatnonzero(np.array(spec.label_ids) == index)) for index in range(len(found))] == found
        numbers = {value: index for index, (value,) in enumerate(found)}
        assert (classes == np.array([numbers.get(value, 255) for value in values])[VALUES]).all()


def test_values_that_are_not_certain_are_refused_with_their_shares(tmp_path, wizard):
    for stray in (128, 1):
        masks_of((0, 255, 0, 255), tmp_path / "m")
        array = np.array(Image.open(tmp_path / "m/3.png"))
        array[0, :3] = stray
        Image.fromarray(array).save(tmp_path / "m/3.png")
        refused(wizard("p", "m"), f"0 (49.96 %), {stray} (0.04 %), 255 (50.00 %)", "--ignore 255", "--ignore none",
                "--classes FILE", "python -m tools.convert_rgb")
    (tmp_path / "classes.txt").write_text("ground 0\nthing 255\n")  # what the error says
    spec, _, warnings = made(wizard("p", "m", "--classes=classes.txt", "--out=datasets/d"))
    assert spec.label_ids[1] == 255 and spec.label_ids[255] == 1 and "no class has the values 1" in warnings
    masks_of((7, 8, 33, 0), tmp_path / "m")
    shutil.rmtree("datasets")
    refused(wizard("p", "m"), "33 (25.00 %)")
    masks_of((5, 5, 5, 5), tmp_path / "m")
    refused(wizard("p", "m", "--ignore=5"), "means no label")


@pytest.mark.parametrize("kind", ["L", "RGB", "soft"])
def test_masks_with_soft_edges_and_jpegs_are_refused(tmp_path, wizard, kind):
    for number in range(10):
        path = mask(tmp_path / f"m/{number}.png", (0, 200, 100, 255))
        picture = cv2.imread(str(path), 0)
        path.unlink()
        if kind == "soft":
            cv2.imwrite(str(path), cv2.GaussianBlur(picture, (0, 0), 2))
        else:
            Image.fromarray(picture).convert(kind).save(path.with_suffix(".jpg"))
    for option in ([], ["--ignore=none"], ["--ignore=255"]):
        refused(wizard("p", "m", *(option if kind != "RGB" else [])), f"python -m tools.convert_rgb {tmp_path / 'm'} NEW --colors FILE")


def test_names_in_different_unicode_forms_are_named(tmp_path, wizard):
    for number in range(10):
        (tmp_path / f"p/{number}.jpg").rename(tmp_path / f"p/\u00fc{number}.jpg")
        (tmp_path / f"m/{number}.png").rename(tmp_path / f"m/u\u0308{number}.png")
    refused(wizard("p", "m"), "Unicode forms", "--nfc")


def test_palettes_that_differ_are_refused(tmp_path, wizard):
    for number in range(10):
        picture = Image.open(tmp_path / f"m/{number}.png")
        picture.putpalette([number // 9] * 768)
        picture.save(tmp_path / f"m/{number}.png")
    refused(wizard("p", "m"), "the palettes of the masks differ", "--colors FILE", "--ignore 255")


def test_many_classes_with_zero_for_no_label(tmp_path, wizard):
    for number in range(10):
        values = np.random.default_rng(number).integers(0, 151, (6, 8)) if number else np.arange(104, 152).reshape(6, 8) % 151
        Image.fromarray(np.kron(values, np.ones((4, 4), int)).astype(np.uint8)).save(tmp_path / f"m/{number}.png")
    (tmp_path / "names").write_text("".join(f"thing {number} with words {number}\n" for number in range(1, 151)))
    spec, _, _ = made(wizard("p", "m", "--ignore=0", "--classes=names", "--out=datasets/d"))
    assert spec.num_classes == 150 and spec.class_names[149] == "thing 150 with words"
    found = np.array(Image.open(tmp_path / "m/1.png")).astype(int)
    assert (images.read_mask(tmp_path / "m/1.png", spec) == np.where(found == 0, 255, found - 1)).all()


def test_lists_of_classes_as_others_write_them(tmp_path, wizard):
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nCat:48,112,32::\nbackground:0,0,0::\n")
    colors = [(0, 0, 0), (48, 112, 32), (0, 0, 0), (48, 112, 32)]
    masks_of(colors, tmp_path / "export/SegmentationClass")
    masks_of(colors, tmp_path / "export/SegmentationObject")
    refused(wizard("p", "export"), "export/SegmentationClass,", "give one of the folders")
    for text in ("0: ground\n1: thing\n", "{'Cat': 1}\n", "Cat;48;112;32\n", "name,r,g,b\nCat,48,112,32\nground,0,0,0\n"):
        (tmp_path / "other.txt").write_text(text)
        refused(wizard("p", "export/SegmentationClass", "--classes=other.txt"), "a line looks like" if "name" not in text
                else "the class 'name,r,g,b' has no colour")
    spec, _, _ = made(wizard("p", "export/SegmentationClass", "--classes=labelmap.txt"))
    assert spec.class_names == ("Cat", "background") and spec.background == 1
    assert dict(spec.mask_colors) == {(48, 112, 32): 0, (0, 0, 0): 1}


# --- files ------------------------------------------------------------------------------------------------------------


def test_orientation_tags(tmp_path, wizard, command):
    exif = Image.Exif()
    exif[0x0112] = 3
    other = Image.fromarray(np.zeros((24, 32, 3), np.uint8))
    photo(tmp_path / "p/0.jpg", exif=exif)
    photo(tmp_path / "p/1.jpg").unlink()
    photo(tmp_path / "p/1.mpo", exif=exif, save_all=True, append_images=[other]).rename(tmp_path / "p/1.jpg")
    _, _, warnings = made(wizard("p", "m", "--out=datasets/d"))
    assert "2 images carry an orientation tag" in warnings and "mogrify -auto-orient" in warnings
    status, _, errors = command("--check", "--state=2", "--dataset=datasets/d/dataset.yaml", "--train-set=all",
                                "--backbone=small", "--weights=none", f"--output-dir={tmp_path}")
    assert status == 0 and "2 images carry an orientation tag" in errors
    exif[0x0112] = 6
    for number in range(10):
        photo(tmp_path / f"p/{number}.jpg", (32, 24), exif=exif)
    status, _, errors = wizard("p", "m", "--out=e")
    assert status == 2 and "the image carries an orientation tag" in errors and "store the mask as the image lies" in errors


def test_bytes_behind_the_end_of_a_jpeg(tmp_path, wizard):
    path = photo(tmp_path / "a.jpg")
    content, pixels = path.read_bytes(), images.read_image(path)
    for behind in (bytes(8192), b"\0\0\0\x18ftypmp42" + RANDOM.integers(0, 255, 60000, np.uint8).tobytes()):
        path.write_bytes(content + behind)
        assert (images.read_image(path) == pixels).all()
        path.write_bytes(content[:-400] + behind)
        with pytest.raises(UserError, match="truncated"):
            images.read_image(path)
    exif = Image.Exif()
    exif[0x010E] = "\xff\xd9" * 40  # ends of a preview in the headers are none
    photo(path, exif=exif)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(UserError, match="truncated"):
        images.read_image(path)


@pytest.mark.parametrize("line", [
    "JPEGImages/{}.jpg SegmentationClassAug/{}.png", "/JPEGImages/{}.jpg /SegmentationClassAug/{}.png",
    "JPEGImages/{}.jpg\tSegmentationClassAug/{}.png", "JPEGImages/{}.jpg", "{}.jpg", "{root}/JPEGImages/{}.jpg"])
def test_lists_of_paths_are_read_as_names(shapes_root, tmp_path, line):
    spec = load_spec("shapes")
    names = read_list(shapes_root / "ImageSets/Segmentation/val.txt")
    path = tmp_path / "list.txt"
    path.write_text("".join(line.format(name, name, root=shapes_root) + "\n" for name in names))
    assert read_list(path, spec, shapes_root) == names
    other = line.replace("SegmentationClassAug", "SegmentationClass").replace("JPEGImages", "images")
    if other != line:
        path.write_text("".join(other.format(name, name, root=shapes_root) + "\n" for name in names))
        with pytest.raises(UserError, match="line 1"):
            read_list(path, spec, shapes_root)
    if "Seg" in line:
        path.write_text(line.format("a", "b", root=""))
        with pytest.raises(UserError, match="second column, '/?SegmentationClassAug/b.png', is not the mask"):
            read_list(path, spec, shapes_root)
        with pytest.raises(UserError, match="a second column"):
            read_list(path)


def test_good_lists_are_not_replaced_by_names_of_no_image(own_shapes, called):
    import generate_splits
    path = own_shapes / "ImageSets/Segmentation/trainaug.txt"
    before = {file: file.read_bytes() for file in path.parent.glob("*labeled*")}
    path.write_text("\n".join(f"nowhere_{number}" for number in range(24)))
    status, _, errors = called(generate_splits.main, "--dataset=shapes", f"--data-root={own_shapes}", "--divisors", "8:3")
    assert status == 2 and "no image of the 24 names" in errors and len(errors.splitlines()) == 1
    assert {file: file.read_bytes() for file in path.parent.glob("*labeled*")} == before


def test_links_are_followed_everywhere(tmp_path, wizard, command, called):
    from tools import predict
    for folder in "pm":
        (tmp_path / folder).rename(tmp_path / f"disk_{folder}")
        (tmp_path / "d" / folder / "a").mkdir(parents=True)
        (tmp_path / "d" / folder / "b").symlink_to(tmp_path / f"disk_{folder}")
        (tmp_path / "d" / folder / "b" / "loop").symlink_to(tmp_path / "d" / folder)
        for file in (tmp_path / f"disk_{folder}").glob("[0-3].*"):
            (tmp_path / "d" / folder / "a" / f"x{file.name}").symlink_to(file)
    spec, lists, warnings = made(wizard("d/p", "d/m", "--out=datasets/d"))
    assert len(lists["train"]) + len(lists["val"]) == 14 and "loop" not in str(lists)
    assert "copies of training images" in warnings or not {f"a/x{n}" for n in range(4)} & {*lists["val"]}
    small = ["--backbone=small", "--weights=none", f"--output-dir={tmp_path}", "--dataset=datasets/d/dataset.yaml",
             "--train-set=all", "--state=2"]
    assert command("--check", *small)[0] == 0
    assert command(*small, "--epochs=1", "--batch-size-labeled=7", "--exp-name=a", "--allow-links")[0] == 0
    status, out, errors = called(predict.main, "--checkpoint", tmp_path / "a.pt", "--out", tmp_path / "o", "--recursive",
                                 "d/p")
    assert status == 0 and ("10 images predicted" in out or "14 images predicted" in out), errors


def run(*words, **variables):
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, timeout=120, cwd=REPOSITORY,
                          env={**os.environ, **variables}, errors="backslashreplace")


def test_names_that_are_no_text_end_in_one_line(tmp_path, wizard):
    def lines(*words, **variables):
        done = run("tools/new_dataset.py", tmp_path / "p", tmp_path / "m", *words, **variables)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
        return done.stderr

    os.rename(tmp_path / "p/1.jpg", os.fsencode(tmp_path / "p") + b"/gr\xf6\xdfe.jpg")
    assert "is not UTF-8" in lines("--out", tmp_path / "o", LC_ALL="C.UTF-8")
    os.rename(os.fsencode(tmp_path / "p") + b"/gr\xf6\xdfe.jpg", tmp_path / "p/größe.jpg")
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    assert "C.UTF-8" in lines("--out", tmp_path / "o", **ascii_only)
    (tmp_path / "p/größe.jpg").rename(tmp_path / "p/1.jpg")
    assert "in letters of this locale" in lines("--out", tmp_path / "o", "--classes", "Fläche,b,c,d", **ascii_only)
    assert not (tmp_path / "o").exists()


def test_too_little_shared_memory_is_one_line(tmp_path, shapes_root):
    words = (f"{sys.executable} main.py --state=2 --dataset=shapes --data-root={shapes_root} --train-set=8 --backbone=small "
             f"--weights=none --workers=2 --epochs=1 --batch-size-labeled=8 --output-dir={tmp_path}")
    for options in ("size=64k", "ro"):
        done = subprocess.run(["unshare", "-rm", "sh", "-c", f"mount -t tmpfs -o {options} tmpfs /dev/shm || exit 77; {words}"],
                              cwd=REPOSITORY, capture_output=True, text=True, timeout=200)
        if done.returncode in (1, 77):
            pytest.skip("nobody but root may mount here")
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
        assert "--workers=0" in done.stderr and "--shm-size" in done.stderr


# --- which images are for validation ----------------------------------------------------------------------------------


def test_folders_that_say_train_and_val_are_that_split(tmp_path, wizard):
    for folder, suffix in (("p", "jpg"), ("m", "png")):
        for number in range(10):
            subset = "test" if number == 9 else "val" if number > 5 else "train"
            (tmp_path / folder / subset).mkdir(exist_ok=True)
            (tmp_path / folder / f"{number}.{suffix}").rename(tmp_path / folder / subset / f"{number}.{suffix}")
    (tmp_path / "m/train/5.png").unlink()
    (tmp_path / "m/val/8.png").unlink()
    result = wizard("p", "m")
    _, lists, warnings = made(result)
    assert "as the folders train and val say" in result[1]
    assert lists["val"] == ["val/6", "val/7"] and lists["all_unlabeled_0"] == ["train/5"]
    assert lists["train"] == [f"train/{number}" for number in range(5)]
    assert "1 images in a folder for testing are left out" in warnings
    assert "1 images in a folder for validation have no mask and are left out" in warnings


def test_folders_of_images_and_masks_within_train_and_val_are_that_split(tmp_path, wizard):
    for number in range(9):
        subset = "val" if number > 5 else "Training"
        photo(tmp_path / f"d/{subset}/imgs/{number}.png")
        mask(tmp_path / f"d/{subset}/labels/a/{number}.png" if number == 4 else
             tmp_path / f"d/{subset}/labels/{number}.png")
    photo(tmp_path / "d/test/imgs/9.png")
    photo(tmp_path / "d/pool/10.png")
    result = wizard("d", "d", "--unlabeled", "d/pool")
    spec, lists, warnings = made(result)
    assert "as the folders train and val say" in result[1] and "a folder for testing, is left out" in warnings
    assert spec.images == ("Training/imgs/{name}.png", "val/imgs/{name}.png")
    assert (lists["train"], lists["val"]) == ([str(number) for number in (0, 1, 2, 3, 5)], ["6", "7", "8"])
    assert lists["all_unlabeled_0"] == ["10", "4"]
    shutil.rmtree("datasets")
    refused(wizard("d", "d"), "--val-images", "--val-masks")


def test_a_given_validation_set(tmp_path, wizard):
    for number in range(9):
        subset = "val" if number > 5 else "train"
        photo(tmp_path / f"d/{subset}/i/{number}.jpg")
        mask(tmp_path / f"d/{subset}/m/{number}.png")
    refused(wizard("d", "d"), "--val-images", "--val-masks")
    options = ["d/train/i", "d/train/m", "--val-images", "d/val/i", "--val-masks", "d/val/m", "--out=datasets/d"]
    spec, lists, _ = made(wizard(*options))
    assert (spec.images, spec.labels) == (("train/i/{name}.jpg", "val/i/{name}.jpg"), ("train/m/{name}.png", "val/m/{name}.png"))
    assert (lists["train"], lists["val"]) == ([str(number) for number in range(6)], ["6", "7", "8"])
    shutil.rmtree("datasets")
    photo(tmp_path / "d/val/i/1.jpg")
    mask(tmp_path / "d/val/m/1.png")
    refused(wizard(*options), "have one name")
    for kind in "im":
        (tmp_path / f"both/{kind}").mkdir(parents=True)
        for subset in ("train", "val"):
            (tmp_path / f"both/{kind}/{subset}").symlink_to(tmp_path / f"d/{subset}/{kind}")  # what the error says
    assert made(wizard("both/i", "both/m"))[1]["val"] == ["val/1", "val/6", "val/7", "val/8"]


def test_a_list_of_validation_images_and_those_held_out_are_named(tmp_path, wizard):
    (tmp_path / "val.txt").write_text("3\n7\n4\n")
    _, lists, _ = made(wizard("p", "m", "--val-list=val.txt", "--out=datasets/d"))
    assert lists["val"] == ["3", "4", "7"] and len(lists["train"]) == 7
    (tmp_path / "val.txt").write_text("3\n17\n")
    status, _, errors = wizard("p", "m", "--val-list=val.txt", "--out=e")
    assert status == 2 and "names 17" in errors
    status, out, _ = wizard("p", "m", "--out=f")
    assert ": " + ", ".join(read_list("f/lists/val.txt")) in out


def test_copies_among_the_unlabelled_are_named_and_never_those_of_validation(tmp_path, wizard, command):
    for path in (tmp_path / "p").iterdir():
        (tmp_path / "all").mkdir(exist_ok=True)
        (tmp_path / "all" / path.name).write_bytes(path.read_bytes())
    photo(tmp_path / "all/new.jpg")
    photo(tmp_path / "all/0.jpg")
    _, lists, warnings = made(wizard("p", "m", "--unlabeled", "all", "--out=datasets/d"))
    assert not {*lists["val"]} & {*lists["all_unlabeled_0"]} - {"0"} and "new" in lists["all_unlabeled_0"]
    for words in ("copies of training images", "copies of validation images and are left out", "called like"):
        assert words in warnings
    save_lists("datasets/d/lists", {"all_unlabeled_0.txt": [*lists["all_unlabeled_0"], lists["val"][0]]})
    _, _, errors = command("--check", "--dataset=datasets/d/dataset.yaml", "--train-set=all", "--backbone=small",
                           "--weights=none", f"--output-dir={tmp_path}")
    assert "are copies of validation images" in errors and "are copies of labelled images" in errors
    assert "what is validated on must not be trained on" in errors and "called like" in errors


# --- what is printed and written --------------------------------------------------------------------------------------


def test_nothing_is_written_where_the_spec_would_not_mean_these_files(tmp_path, wizard):
    for number in range(10):
        (tmp_path / f"m/{number}.png").rename(tmp_path / f"p/{number}.png")
    (tmp_path / "p/9.jpg").rename(tmp_path / "p/9.JPG")  # images of two suffixes beside masks: {name}.* means both
    refused(wizard("p", "p", "--out=datasets/d"), "two files")
    assert not [path for path in tmp_path.rglob("*") if "yaml" in path.name or path.name == "lists"]


def test_the_commands_at_the_end_run(tmp_path, wizard, command):
    for number in range(2, 10):
        (tmp_path / f"m/{number}.png").unlink()
    _, out, _ = wizard("p", "m", "--out=two words")
    assert "halves=0" in out and "'two words/dataset.yaml'" in out  # one image cannot be divided
    for number in range(2, 10):
        (tmp_path / f"p/{number}.jpg").unlink()
    _, out, _ = wizard("p", "m", "--out=few")
    words = shlex.split(next(line for line in out.splitlines() if "--epochs" in line))
    assert "dmt_ple-own" not in out
    status, _, errors = command(*words[2:], "--backbone=small", "--weights=none", "--epochs=1")
    assert status == 0, errors
