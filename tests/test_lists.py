"""Name lists: what is read, what is refused, and with which words."""

import pytest

from data.lists import (evenly_spaced, find_list, labeled_names, read_list, split_list_names,
                        unlabeled_names, write_list)
from data.specs import load_spec
from utils.errors import UserError


def _refusal(tmp_path, content):
    path = tmp_path / "names.txt"
    path.write_bytes(content)
    with pytest.raises(UserError) as refused:
        read_list(path)
    message = str(refused.value)
    assert str(path) in message and "\n" not in message
    return message


def test_blanks_and_line_endings_are_ignored(tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes(b"\xef\xbb\xbf2007_000032 \r\n\r\n\t aachen/aachen_000000_000019\n  \nk\xc3\xa4fer")
    assert read_list(path) == ["2007_000032", "aachen/aachen_000000_000019", "käfer"]


def test_written_names_come_back(tmp_path):
    names = ["b", "a", "city/c with blank", "ü"]
    write_list(tmp_path / "new" / "names.txt", names)
    assert read_list(tmp_path / "new" / "names.txt") == names
    assert (tmp_path / "new" / "names.txt").read_bytes() == "b\na\ncity/c with blank\nü\n".encode()


@pytest.mark.parametrize("name, word", [
    ("../secret", "'..'"), ("a/../../b", "'..'"), ("/etc/passwd", "absolute"), ("a\\b", "backslash"),
    ("a\0b", "control"), ("a\x1bb", "control"), ("a\rb", "control"), ("a\x0bb", "control"), ("a//b", "empty component"),
    ("./a", "'.'"), ("a/", "empty component"), ("a\u2028b", "control")])
def test_unsafe_names_are_refused_with_their_line(tmp_path, name, word):
    message = _refusal(tmp_path, f"good\n\n{name}\n".encode())
    assert "line 3" in message and word in message
    with pytest.raises(UserError, match="not written"):
        write_list(tmp_path / "out.txt", ["good", name])
    assert not (tmp_path / "out.txt").exists()


def test_a_blank_name_is_not_written(tmp_path):
    with pytest.raises(UserError, match="blank"):
        write_list(tmp_path / "out.txt", [" a"])
    assert list(tmp_path.iterdir()) == []


def test_a_duplicate_names_both_lines(tmp_path):
    message = _refusal(tmp_path, b"a\nb\na \n")
    assert "line 3" in message and "line 1" in message


def test_text_in_another_encoding_and_images_are_refused(tmp_path):
    assert "UTF-8" in _refusal(tmp_path, "käfer\n".encode("latin-1"))
    assert "UTF-8" in _refusal(tmp_path, b"\xff\xd8\xff\xe0")


@pytest.mark.parametrize("content", [b"", b"\n \r\n\t\n", b"\xef\xbb\xbf"])
def test_an_empty_list_is_refused(tmp_path, content):
    assert "empty" in _refusal(tmp_path, content)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_list(tmp_path)


@pytest.mark.parametrize("path, script", [
    ("20_labeled_1.txt", "generate_splits.py"), ("20_unlabeled_0.txt", "generate_splits.py"),
    ("train_labeled_0.txt", "generate_splits.py"), ("106-l_labeled_1.txt", "dms_sample.py"),
    ("data_lists/val.txt", "cityscapes_data_list.py"), ("data_lists/8_labeled_1.txt", "generate_splits.py"),
    ("valtiny.txt", "one image name a line")])
def test_a_missing_list_says_where_it_comes_from(tmp_path, path, script):
    with pytest.raises(UserError) as refused:
        read_list(tmp_path / path)
    assert script in str(refused.value) and str(tmp_path / path) in str(refused.value)


def test_file_names_of_splits():
    assert split_list_names("20", "1") == ("20_labeled_1.txt", "20_unlabeled_1.txt")
    assert split_list_names(20, 1) == ("20_labeled_1.txt", "20_unlabeled_1.txt")
    assert split_list_names("106-l", 2) == ("106-l_labeled_2.txt", "106_unlabeled_2.txt")
    assert split_list_names("106-r", 2) == ("106-r_labeled_2.txt", "106_unlabeled_2.txt")
    assert split_list_names("train", 0) == ("train_labeled_0.txt", "train_unlabeled_0.txt")


@pytest.mark.parametrize("split, split_id", [("../20", 1), ("", 1), ("2 0", 1), ("20", "1/2"), ("20", ""), ("20\n", 1)])
def test_file_names_of_splits_stay_in_the_folder(split, split_id):
    with pytest.raises(UserError, match="letters, digits"):
        split_list_names(split, split_id)


def test_labelled_and_unlabelled_names(tmp_path):
    spec = load_spec("voc")
    for file_name, names in (("20_labeled_1.txt", ["a"]), ("20_unlabeled_1.txt", ["b", "c"]),
                             ("20-r_labeled_1.txt", ["d"]), ("1_labeled_1.txt", ["a", "b", "c"])):
        write_list(spec.list_path(tmp_path, file_name), names)
    assert labeled_names(spec, tmp_path, "20", 1) == ["a"]
    assert unlabeled_names(spec, tmp_path, "20", 1) == ["b", "c"]
    assert labeled_names(spec, tmp_path, "20-r", 1) == ["d"]
    assert unlabeled_names(spec, tmp_path, "20-r", 1) == ["b", "c"]
    assert labeled_names(spec, tmp_path, "1", 1) == ["a", "b", "c"]
    assert unlabeled_names(spec, tmp_path, "1", 1) == []
    with pytest.raises(UserError, match="8_unlabeled_1.txt does not exist; make it with generate_splits.py"):
        unlabeled_names(spec, tmp_path, "8", 1)


def test_the_first_training_list_that_is_there_is_taken(tmp_path):
    spec = load_spec("voc")
    with pytest.raises(UserError) as refused:
        find_list(spec, tmp_path, "training")
    assert "trainaug.txt" in str(refused.value) and "train_aug.txt" in str(refused.value)
    write_list(spec.list_path(tmp_path, "train_aug.txt"), ["a"])
    assert find_list(spec, tmp_path, "training") == spec.list_path(tmp_path, "train_aug.txt")
    write_list(spec.list_path(tmp_path, "trainaug.txt"), ["a"])
    assert find_list(spec, tmp_path, "training") == spec.list_path(tmp_path, "trainaug.txt")
    with pytest.raises(UserError, match="no validation list"):
        find_list(spec, tmp_path, "validation")
    with pytest.raises(UserError, match="cityscapes_data_list.py"):
        find_list(load_spec("city"), tmp_path, "training")


def test_items_at_even_distances():
    assert evenly_spaced("abcdefghi", 3) == ["b", "e", "h"]
    assert evenly_spaced("abc", 5) == evenly_spaced("abc", 0) == ["a", "b", "c"]
    assert evenly_spaced(range(9), 3) == [1, 4, 7] and evenly_spaced(range(0), 4) == []
