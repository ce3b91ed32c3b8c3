"""File patterns: which file a name means, and which names a folder has."""

import os

import pytest

from data import patterns
from data.images import rounded_up
from utils.errors import UserError


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")


@pytest.mark.parametrize("file_name", ["a.jpg", "a.JPG", "a.jpeg", "a.Tif", "a.TIFF", "a.png", "a.webp", "a.bmp"])
def test_any_suffix(tmp_path, file_name):
    touch(tmp_path, f"images/{file_name}", "images/a.txt", "images/ab.jpg")
    assert patterns.find(tmp_path, ("images/{name}.*",), "a") == tmp_path / "images" / file_name


def test_nothing_and_two_files(tmp_path):
    touch(tmp_path, "images/a.jpg", "images/a.png")
    assert patterns.find(tmp_path, ("images/{name}.*",), "b") == tmp_path / "images" / "b.*"
    with pytest.raises(UserError, match=r"match a\.\*: a.jpg and a.png; remove one"):
        patterns.find(tmp_path, ("images/{name}.*",), "a")
    assert patterns.find(tmp_path, ("nowhere/{name}.*",), "a") == tmp_path / "nowhere" / "a.*"


def test_the_first_pattern_with_a_file_counts(tmp_path):
    touch(tmp_path, "x/b_rgb.png", "y/train/b.jpg", "y/train/c.jpg")
    several = ("x/{name}_rgb.*", "y/{subset}/{name}.jpg")
    assert patterns.find(tmp_path, several, "b") == tmp_path / "x/b_rgb.png"
    assert patterns.find(tmp_path, several, "c") == tmp_path / "y/train/c.jpg"
    assert patterns.find(tmp_path, several, "d", "val") == tmp_path / "x/d_rgb.*"


def test_a_folder_that_changes_is_looked_at_again(tmp_path):
    touch(tmp_path, "images/a.jpg")
    os.utime(tmp_path / "images", (1e9, 1e9))  # long ago: what was seen then is kept
    find = lambda name: patterns.find(tmp_path, ("images/{name}.*",), name).suffix == ".jpg"  # noqa: E731
    assert find("a") and not find("b")
    touch(tmp_path, "images/b.jpg")
    assert find("b")
    touch(tmp_path, "images/c.jpg")  # at once, perhaps within the same tick of the clock
    assert find("c")


def test_names_in_a_folder(tmp_path):
    touch(tmp_path, "im/2_rgb.png", "im/sub/1_rgb.JPG", "im/sub/1_depth.png", "im/.trash/3_rgb.png", "im/._2_rgb.png",
          "im/4_rgb.txt", "else/5_rgb.png")
    assert patterns.names_in(tmp_path, "im/{name}_rgb.*") == ["2", "sub/1"]
    assert patterns.names_in(tmp_path, "im/{name}_rgb.png") == ["2"]
    assert patterns.names_in(tmp_path, "{name}_rgb.*") == ["else/5", "im/2", "im/sub/1"]
    touch(tmp_path, "im/2_rgb.bmp")
    with pytest.raises(UserError, match="two files have the name 2"):
        patterns.names_in(tmp_path, "im/{name}_rgb.*")
    touch(tmp_path, "v/s/s.png", "v/s/t.png")
    assert patterns.names_in(tmp_path, "v/{name}/{name}.png") == ["s"]


@pytest.mark.parametrize("side, rounded", [(1, 1), (2, 9), (8, 9), (9, 9), (10, 17), (500, 505), (505, 505)])
def test_sizes_that_networks_like(side, rounded):
    assert rounded_up(side) == rounded
