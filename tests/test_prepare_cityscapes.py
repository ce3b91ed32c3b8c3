"""The check of a Cityscapes folder, its zip files, and the lists, on small trees with the real structure."""

import functools
import io
import re
import zipfile

import numpy as np
import pytest
from PIL import Image

from data.lists import read_list
from prepare import cityscapes as prepare_cityscapes

NAMES = {"train": [f"{city}/{city}_{index:06d}_000019" for city in ("aachen", "bochum") for index in range(5)],
         "val": [f"frankfurt/frankfurt_000000_{index:06d}" for index in range(3)],
         "test": ["berlin/berlin_000000_000019", "bonn/bonn_000001_000019"]}


def png(seed, channels, size=(16, 32)):
    content = io.BytesIO()
    shape = (*size, 3) if channels == 3 else size
    Image.fromarray(np.random.default_rng(seed).integers(0, 34, shape).astype(np.uint8)).save(content, "PNG")
    return content.getvalue()


def files_of(tree):
    files = {}
    for subset, names in NAMES.items():
        for seed, name in enumerate(names):
            if tree == "leftImg8bit":
                files[f"leftImg8bit/{subset}/{name}_leftImg8bit.png"] = png(seed, 3)
            else:
                files[f"gtFine/{subset}/{name}_gtFine_labelIds.png"] = png(seed, 1)
                files[f"gtFine/{subset}/{name}_gtFine_color.png"] = b"not read"
                files[f"gtFine/{subset}/{name}_gtFine_polygons.json"] = b"{}"
    return files


def write_zip(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("README", "Cityscapes")
        archive.writestr("license.txt", "...")
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def root(tmp_path):
    """A whole tree that a test may damage."""
    folder = tmp_path / "cityscapes"
    for name, content in {**files_of("leftImg8bit"), **files_of("gtFine")}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def prepare(called, monkeypatch):
    """The tool in this process: (status, standard output, standard error)."""
    monkeypatch.delenv("CITYSCAPES_ROOT", raising=False)
    return functools.partial(called, prepare_cityscapes.main)


def errors(result):
    status, _, text = result
    assert status == 2, result
    found = [line.removeprefix("error: ") for line in text.splitlines() if line.startswith("error: ")]
    assert found and all(line.startswith("error: ") for line in text.splitlines())
    return found


def image(root, name, subset="train"):
    return root / "leftImg8bit" / subset / f"{name}_leftImg8bit.png"


def mask(root, name, subset="train"):
    return root / "gtFine" / subset / f"{name}_gtFine_labelIds.png"


def test_a_whole_tree_gets_its_lists(root, prepare, monkeypatch):
    monkeypatch.setenv("CITYSCAPES_ROOT", str(root))
    status, output, error = prepare("--no-counts")
    assert (status, error) == (0, "")
    for subset, names in NAMES.items():
        assert read_list(root / "data_lists" / f"{subset}.txt") == names
    assert len(read_list(root / "data_lists" / "4_labeled_2.txt")) == 2  # 10 / 4
    assert (root / "data_lists" / "2-r_labeled_0.txt").is_file()
    assert f"export CITYSCAPES_ROOT={root}" in output.splitlines() and "too few for the splits 20 30" in output
    counts = re.findall(r"of (\w+) +(\d+) +(\S+)$", output, re.MULTILINE)
    assert counts == [("train", "10", "2975")] * 2 + [("val", "3", "500")] * 2 + [("test", "2", "-")]


def test_what_is_missing_is_named_and_nothing_is_written(root, prepare):
    found = errors(prepare(root))
    assert len(found) == 1 and "10 instead of 2975" in found[0] and "3 instead of 500" in found[0]
    train = NAMES["train"]
    mask(root, train[1]).unlink()
    mask(root, train[2]).unlink()
    image(root, train[4]).unlink()
    found = errors(prepare(root, "--no-counts"))
    assert f"2 files have no mask, the first is {mask(root, train[1])}" in found[0]
    assert f"1 files have no image, the first is {image(root, train[4])}" in found[0]
    for path in root.rglob("*_labelIds.png"):
        path.unlink()
    assert "createLabels" in errors(prepare(root, "--no-counts"))[0]
    assert not (root / "data_lists").exists()


def test_missing_trees_say_where_they_come_from(tmp_path, prepare):
    (tmp_path / "empty").mkdir()
    found = errors(prepare(tmp_path / "empty"))
    assert "leftImg8bit" in found[0] and "www.cityscapes-dataset.com" in found[0] and "--zips" in found[0]
    nested = tmp_path / "nested" / "leftImg8bit_trainvaltest" / "leftImg8bit"
    nested.mkdir(parents=True)
    assert f"move {nested} to" in errors(prepare(tmp_path / "nested"))[0]


# --- zip files --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zips")
    return [write_zip(folder / f"{tree}_trainvaltest.zip", files_of(tree)) for tree in ("leftImg8bit", "gtFine")]


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_zip_files_are_unpacked_and_an_interruption_is_no_matter(zips, tmp_path, prepare):
    root = tmp_path / "new" / "cityscapes"
    status, output, _ = prepare(root, "--zips", *zips, "--no-counts")
    assert status == 0 and "15 files unpacked, 0 were there" in output
    whole = contents(root)
    wanted = {name: content for name, content in {**files_of("leftImg8bit"), **files_of("gtFine")}.items()
              if name.endswith(("_leftImg8bit.png", "_labelIds.png")) and not name.startswith("gtFine/test")}
    assert {name: content for name, content in whole.items() if not name.startswith("data_lists")} == wanted
    first = image(root, NAMES["train"][0])
    first.write_bytes(first.read_bytes()[:100])
    mask(root, NAMES["val"][1], "val").unlink()
    status, output, _ = prepare(root, "--zips", *zips, "--no-counts")
    assert status == 0 and "1 files unpacked, 14 were there" in output
    assert contents(root) == whole


def broken_zip(path, how):
    files = files_of("gtFine")
    if how == "other":
        files = {"photos/a.png": png(0, 1)}
    write_zip(path, files)
    content = path.read_bytes()
    if how == "cut off":
        path.write_bytes(content[:len(content) // 2])
    elif how == "a byte":
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(f"gtFine/train/{NAMES['train'][3]}_gtFine_labelIds.png")
        place = info.header_offset + 30 + len(info.filename) + info.compress_size // 2
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1:])
    return path


@pytest.mark.parametrize("how, word", [("cut off", "damaged"), ("a byte", "damaged"),
                                       ("other", "another archive")])
def test_a_bad_zip_file_is_one_line(zips, tmp_path, prepare, how, word):
    path = broken_zip(tmp_path / "gtFine_trainvaltest.zip", how)
    found = errors(prepare(tmp_path / "root", "--zips", zips[0], path, "--no-counts"))
    assert len(found) == 1 and str(path) in found[0] and word in found[0]
    assert not (tmp_path / "root" / "data_lists").exists()
    assert not mask(tmp_path / "root", NAMES["train"][3]).exists()


@pytest.mark.parametrize("arguments, word", [
    ([], "CITYSCAPES_ROOT"), (["missing"], "not a folder"), (["root", "--zips", "missing.zip"], "missing.zip"),
    (["file"], "not a folder"), (["--no-such-option"], "--no-such-option")])
def test_what_a_user_can_get_wrong(tmp_path, prepare, monkeypatch, arguments, word):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("a file")
    found = errors(prepare(*arguments))
    assert len(found) == 1 and word in found[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]

