"""The check of a Cityscapes folder, its zip files, and the lists, on small trees with the real structure."""

import functools
import io
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.lists import read_list
from prepare import cityscapes as prepare_cityscapes

REPOSITORY = Path(__file__).resolve().parents[1]
NAMES = {"train": [f"{city}/{city}_{index:06d}_000019" for city in ("aachen", "bochum") for index in range(5)],
         "val": [f"frankfurt/frankfurt_000000_{index:06d}" for index in range(3)],
         "test": ["berlin/berlin_000000_000019", "bonn/bonn_000001_000019"]}
COUNTS = ("--counts", "10", "3", "2")


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
    assert found and all(line.startswith(("error: ", "note: ")) for line in text.splitlines())
    return found


def image(root, name, subset="train"):
    return root / "leftImg8bit" / subset / f"{name}_leftImg8bit.png"


def mask(root, name, subset="train"):
    return root / "gtFine" / subset / f"{name}_gtFine_labelIds.png"


def test_a_whole_tree_gets_its_lists(root):
    environment = {key: value for key, value in os.environ.items() if key != "CITYSCAPES_ROOT"}
    done = subprocess.run([sys.executable, str(REPOSITORY / "tools" / "prepare_cityscapes.py"), str(root), *COUNTS],
                          cwd="/", env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for subset, names in NAMES.items():
        assert read_list(root / "data_lists" / f"{subset}.txt") == names
    assert len(read_list(root / "data_lists" / "4_labeled_2.txt")) == 2  # 10 / 4
    assert (root / "data_lists" / "2-r_labeled_0.txt").is_file()
    assert f"export CITYSCAPES_ROOT={root}" in done.stdout.splitlines()
    assert "too few for the splits 20 30" in done.stdout
    notes = done.stderr.splitlines()
    assert len(notes) == 3 and all(note.startswith("note: ") and "32 x 16" in note for note in notes)
    counts = re.findall(r"of (\w+) +(\d+) +(\d+)$", done.stdout, re.MULTILINE)
    assert counts == [("train", "10", "10"), ("train", "10", "10"), ("val", "3", "3"), ("val", "3", "3"),
                      ("test", "2", "2")]


def test_the_environment_names_the_folder_and_splits_can_be_left_out(root, prepare, monkeypatch):
    monkeypatch.setenv("CITYSCAPES_ROOT", str(root))
    status, output, _ = prepare("--no-splits", "--no-counts")
    assert status == 0 and "python generate_splits.py --dataset=city" in output
    assert sorted(path.name for path in (root / "data_lists").iterdir()) == ["test.txt", "train.txt", "val.txt"]


def test_all_findings_come_at_once_and_nothing_is_written(root, prepare):
    train = NAMES["train"]
    mask(root, train[1]).unlink()
    mask(root, train[2]).unlink()
    image(root, train[4]).unlink()
    image(root, train[5]).write_bytes(b"")
    mask(root, train[6]).write_bytes(mask(root, train[6]).read_bytes()[:-20])
    image(root, train[7]).write_bytes(b"<html>no image</html>")
    mask(root, train[8]).write_bytes(png(1, 1, size=(16, 31)))
    image(root, NAMES["test"][0], "test").write_bytes(b"")
    found = errors(prepare(root, "--counts", "10", "4", "2"))
    assert len(found) == 8
    text = "\n".join(found)
    assert "images of train: 9 instead of 10; masks of train: 8 instead of 10" in found[0]
    assert "images of val: 3 instead of 4" in found[0] and "test" not in found[0]
    assert f"for 2 of 9 images: {train[1]}, {train[2]}" in text
    assert f"for 1 of 8 masks: {train[4]}" in text
    assert f"an empty file: {image(root, train[5])}" in text
    assert f"an empty file: {image(root, NAMES['test'][0], 'test')}" in text
    assert f"a file that is cut off or damaged: {mask(root, train[6])}" in text
    assert f"no PNG that decodes: {image(root, train[7])}" in text
    assert f"{image(root, train[8])} (32 x 16, its mask 31 x 16)" in text
    assert not (root / "data_lists").exists()


def test_official_numbers_are_expected_unless_others_are_given(root, prepare):
    found = errors(prepare(root))
    assert len(found) == 1 and "10 instead of 2975" in found[0] and "3 instead of 500" in found[0]
    assert "2 instead of 1525" in found[0] and "--counts" in found[0]
    shutil.rmtree(root / "leftImg8bit" / "test")
    assert "images of test: 0 instead of 2" in errors(prepare(root, *COUNTS))[0]
    assert prepare(root, "--counts", "10", "3", "0")[0] == 0


def test_many_findings_are_shortened(root, prepare):
    for name in NAMES["train"][:7]:
        mask(root, name).unlink()
    found = errors(prepare(root, "--no-counts"))
    assert len(found) == 1 and f"{NAMES['train'][4]} and 2 more" in found[0] and NAMES["train"][5] not in found[0]


def test_masks_of_another_form_are_told(root, prepare):
    for path in root.rglob("*_labelIds.png"):
        path.unlink()
    found = errors(prepare(root, "--no-counts"))
    assert len(found) == 2 and all("has no mask CITY/*_gtFine_labelIds.png" in line for line in found)
    assert "aachen_000000_000019_gtFine_" in found[0] and "createLabels" in found[0]


def test_missing_trees_say_where_they_come_from(tmp_path, prepare):
    (tmp_path / "empty").mkdir()
    found = errors(prepare(tmp_path / "empty"))
    assert len(found) == 2 and "leftImg8bit" in found[0] and "gtFine" in found[1]
    assert all("www.cityscapes-dataset.com" in line and "--zips" in line for line in found)
    nested = tmp_path / "nested" / "gtFine_trainvaltest" / "gtFine"
    nested.mkdir(parents=True)
    assert f"move {nested} to" in errors(prepare(tmp_path / "nested"))[1]


# --- zip files --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zips")
    return [write_zip(folder / f"{tree}_trainvaltest.zip", files_of(tree)) for tree in ("leftImg8bit", "gtFine")]


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_zip_files_are_unpacked_and_an_interruption_is_no_matter(zips, tmp_path, prepare):
    root = tmp_path / "new" / "cityscapes"
    status, output, _ = prepare(root, "--zips", *zips, *COUNTS)
    assert status == 0 and "leftImg8bit_trainvaltest.zip: 15 files unpacked, 0 were there" in output
    whole = contents(root)
    wanted = {name: content for name, content in {**files_of("leftImg8bit"), **files_of("gtFine")}.items()
              if name.endswith(("_leftImg8bit.png", "_labelIds.png"))}
    assert {name: content for name, content in whole.items() if not name.startswith("data_lists")} == wanted
    first = image(root, NAMES["train"][0])
    first.write_bytes(first.read_bytes()[:100])
    mask(root, NAMES["val"][1], "val").unlink()
    status, output, _ = prepare(root, "--zips", *zips, *COUNTS)
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
                                       ("other", "holds no")])
def test_a_bad_zip_file_is_one_line(zips, tmp_path, prepare, how, word):
    path = broken_zip(tmp_path / "gtFine_trainvaltest.zip", how)
    found = errors(prepare(tmp_path / "root", "--zips", zips[0], path, *COUNTS))
    assert len(found) == 1 and str(path) in found[0] and word in found[0]
    assert not (tmp_path / "root" / "data_lists").exists()
    assert not mask(tmp_path / "root", NAMES["train"][3]).exists()
    if how != "a byte":  # which only reading it shows
        assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("arguments, word", [
    ([], "CITYSCAPES_ROOT"), (["missing"], "not a folder"), (["root", "--zips", "missing.zip"], "missing.zip"),
    (["file"], "not a folder"), (["--counts", "1", "root"], "--counts"), (["--no-such-option"], "--no-such-option")])
def test_what_a_user_can_get_wrong(tmp_path, prepare, monkeypatch, arguments, word):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("a file")
    found = errors(prepare(*arguments))
    assert len(found) == 1 and word in found[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_help_is_quick(script):
    done = script("-X", "importtime", "-m", "tools.prepare_cityscapes", "--help")
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0 and "leftImg8bit_trainvaltest.zip" in done.stdout and "torch" not in loaded
