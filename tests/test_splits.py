"""The split scripts: the published counts, nesting, the recipe by hand, and what is refused."""

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from data.lists import read_list, write_list
from data.specs import load_spec
from data.splits import make_splits, sample_dms, save_lists
from utils.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[1]
LISTS = REPOSITORY.parent / "shared" / "lists"
ROOTS = ("VOC_ROOT", "CITYSCAPES_ROOT", "CAMVID_ROOT", "SHAPES_ROOT")
SPEC = """
name: mine
classes: [{name: ground, color: [0, 0, 0]}, {name: crack, color: [255, 0, 0]}]
images: photos/{name}.jpg
labels: masks/{name}.png
lists: lists
train_list: all.txt
crop: [65, 65]
test_size: [65, 65]
root: .
divisors: {4: 4, few: 12.5}
dms_splits: [4]
"""


def _released(file_name):
    if not (LISTS / file_name).is_file():
        pytest.skip(f"the public name list {file_name} is not here")
    return read_list(LISTS / file_name)


def _run(script, *arguments, cwd, **variables):
    environment = {key: value for key, value in os.environ.items() if key not in ROOTS}
    environment.update({key: str(value) for key, value in variables.items()})
    return subprocess.run([sys.executable, str(REPOSITORY / script), *map(str, arguments)], cwd=cwd, env=environment,
                          capture_output=True, text=True, timeout=60)


def _refused(done):
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: "), done.stderr
    return done.stderr


def _digest(folder):
    """One hash over all lists in ``folder``, names of files included."""
    total = hashlib.sha256()
    for path in sorted(folder.glob("*labeled*.txt")):
        total.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()


def _check_splits(lists, names, counts, ids=3):
    for split_id in range(ids):
        larger = set(names)
        for split, count in counts.items():
            labeled, unlabeled = lists[f"{split}_labeled_{split_id}.txt"], lists[f"{split}_unlabeled_{split_id}.txt"]
            assert len(labeled) == count
            assert len(labeled) + len(unlabeled) == len(names)
            assert set(labeled) | set(unlabeled) == set(names)
            assert set(labeled) < larger
            larger = set(labeled)
        assert lists[f"1_labeled_{split_id}.txt"] == lists[f"0_unlabeled_{split_id}.txt"]
        assert sorted(lists[f"1_labeled_{split_id}.txt"]) == sorted(names)


def test_splits_by_hand():
    names = [f"n{number}" for number in range(100)]
    random.seed(7777)
    first = list(names)
    random.shuffle(first)
    second = list(first)
    random.shuffle(second)
    lists = make_splits(names, [("2", 2), ("10", 10), ("x", 10.9)], ids=2)
    assert lists["2_labeled_0.txt"] == first[:50] and lists["2_unlabeled_0.txt"] == first[50:]
    assert lists["10_labeled_0.txt"] == first[:10] and lists["x_labeled_0.txt"] == first[:10]  # 9 % 8 == 1: one more
    assert lists["10_labeled_1.txt"] == second[:10] and lists["10_unlabeled_1.txt"] == second[10:]
    assert lists["1_labeled_1.txt"] == second and lists["0_unlabeled_1.txt"] == second
    assert list(lists)[:6] == ["2_labeled_0.txt", "2_unlabeled_0.txt", "10_labeled_0.txt", "10_unlabeled_0.txt",
                               "x_labeled_0.txt", "x_unlabeled_0.txt"]
    assert names == [f"n{number}" for number in range(100)]
    assert len(lists) == 16


def test_file_order_decides_and_is_not_sorted_away():
    names = [f"n{number}" for number in range(40)]
    forward = make_splits(names, [("4", 4)])
    assert make_splits(names, [("4", 4)]) == forward
    assert make_splits(names[::-1], [("4", 4)]) != forward
    assert make_splits(names, [("4", 4)], seed=1) != forward


@pytest.mark.parametrize("count, divisor, word", [(7, 8, "no labelled"), (8, 8, None), (2, 1.5, "none unlabelled")])
def test_a_side_without_names_is_refused(count, divisor, word):
    names = [f"n{number}" for number in range(count)]
    if word is None:  # int(8 / 8) = 1, one more: 2
        assert len(make_splits(names, [("8", divisor)])["8_labeled_0.txt"]) == 2
        return
    with pytest.raises(UserError, match=word):
        make_splits(names, [("8", divisor)])


def test_dms_by_hand():
    lists_of = {(split, split_id): [f"{split}-{split_id}-{number}" for number in range(size)]
                for split, size in (("8", 21), ("20", 5)) for split_id in range(2)}
    random.seed(7777)
    shuffled = {}
    for split_id in range(2):
        for split in ("8", "20"):
            names = list(lists_of[split, split_id])
            random.shuffle(names)
            shuffled[split, split_id] = names
    lists = sample_dms({(split, split_id): lists_of[split, split_id] for split_id in range(2) for split in ("8", "20")})
    for split_id in range(2):  # ceil(0.2 · 21) = 5 of 21 and ceil(0.2 · 5) = 1 of 5 are exclusive
        names = shuffled["8", split_id]
        assert lists[f"8-l_labeled_{split_id}.txt"] == names[:16]
        assert lists[f"8-r_labeled_{split_id}.txt"] == names[5:]
        names = shuffled["20", split_id]
        assert lists[f"20-l_labeled_{split_id}.txt"] == names[:4]
        assert lists[f"20-r_labeled_{split_id}.txt"] == names[1:]
    assert len(lists) == 8


def test_dms_portions():
    names = [f"n{number}" for number in range(10)]
    halves = sample_dms({("8", 0): names}, portion=0)
    assert not set(halves["8-l_labeled_0.txt"]) & set(halves["8-r_labeled_0.txt"])
    most = sample_dms({("8", 0): names}, portion="0.8")
    assert len(set(most["8-l_labeled_0.txt"]) & set(most["8-r_labeled_0.txt"])) == 8
    with pytest.raises(UserError, match="too few"):
        sample_dms({("8", 0): names[:1]})


def test_saving_reports_what_changed(tmp_path):
    assert save_lists(tmp_path, {"a.txt": ["x"], "b.txt": ["y"]}) == {"a.txt": "new", "b.txt": "new"}
    (tmp_path / "c.txt").write_bytes(b"\xff")
    states = save_lists(tmp_path, {"a.txt": ["x"], "b.txt": ["z"], "c.txt": ["w"]})
    assert states == {"a.txt": "unchanged", "b.txt": "replaced", "c.txt": "replaced"}
    assert read_list(tmp_path / "b.txt") == ["z"] and read_list(tmp_path / "c.txt") == ["w"]


def test_voc_scripts(tmp_path):
    names, own = _released("voc_trainaug.txt"), _released("voc_train1464.txt")
    spec = load_spec("voc")
    folder = spec.list_path(tmp_path, "")
    write_list(folder / "trainaug.txt", names)
    write_list(folder / "train.txt", own)
    for script in ("generate_splits.py", "dms_sample.py"):
        done = _run(script, cwd=tmp_path, VOC_ROOT=tmp_path)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        assert "106" in done.stdout and "530" in done.stdout and "note" not in done.stdout
    lists = {path.name: read_list(path) for path in folder.glob("*labeled*.txt")}
    _check_splits(lists, names, {2: 5291, 4: 2645, 8: 1322, 20: 530, 50: 211, 106: 100})
    assert lists["train_labeled_0.txt"] == own and len(lists["train_unlabeled_0.txt"]) == 9118
    assert not set(own) & set(lists["train_unlabeled_0.txt"])
    for split, side, common in ((8, 1057, 792), (20, 424, 318), (50, 168, 125), (106, 80, 60)):
        for split_id in range(3):
            left, right = (set(lists[f"{split}-{half}_labeled_{split_id}.txt"]) for half in "lr")
            assert len(left) == len(right) == side and len(left & right) == common
            assert left | right == set(lists[f"{split}_labeled_{split_id}.txt"])
    digest = _digest(folder)
    assert digest == "36a5d32363614ecf08f0a562eca82089e663eb0bdcd483d7c33a334b0e16f29b"
    for script in ("generate_splits.py", "dms_sample.py"):
        assert "replaced" not in _run(script, "--data-root", tmp_path, cwd="/").stdout
    assert _digest(folder) == digest


def test_animals_have_100_labels_and_their_folder_is_only_read(tmp_path):
    names = [f"2008_{number:06d}" for number in range(3131)]
    write_list(tmp_path / "data" / "ImageSets" / "Segmentation" / "trainaug.txt", names)
    before = sorted((tmp_path / "data").rglob("*"))
    data = ("--dataset", "voc-animals", "--data-root", "data")
    for script, source in (("generate_splits.py", ()), ("dms_sample.py", ("--lists", "lists"))):
        done = _run(script, *data, *source, "--out", "lists", cwd=tmp_path)
        assert done.returncode == 0 and done.stderr == "", done.stderr
    lists = {path.name: read_list(path) for path in (tmp_path / "lists").glob("*labeled*.txt")}
    _check_splits(lists, names, {8: 391, 31: 100})
    for split, side in ((8, 312), (31, 80)):
        assert all(len(lists[f"{split}-{half}_labeled_{number}.txt"]) == side for half in "lr" for number in range(3))
    assert sorted((tmp_path / "data").rglob("*")) == before


def test_cityscapes_scripts(tmp_path):
    names = _released("cityscapes_train.txt")
    for subset, listed in (("train", names), ("val", _released("cityscapes_val.txt"))):
        for name in listed:
            image = tmp_path / "leftImg8bit" / subset / f"{name}_leftImg8bit.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            image.touch()
    done = _run("cityscapes_data_list.py", cwd=tmp_path, CITYSCAPES_ROOT=tmp_path)
    assert done.returncode == 0
    warnings = done.stderr.splitlines()
    assert len(warnings) == 3 and all(line.startswith("warning: ") for line in warnings)  # two without labels, no test
    folder = tmp_path / "data_lists"
    assert (folder / "train.txt").read_bytes() == (LISTS / "cityscapes_train.txt").read_bytes()
    assert (folder / "val.txt").read_bytes() == (LISTS / "cityscapes_val.txt").read_bytes()
    for script in ("generate_splits.py", "dms_sample.py"):
        done = _run(script, "--dataset", "city", cwd="/", CITYSCAPES_ROOT=tmp_path)
        assert done.returncode == 0 and done.stderr == ""
    lists = {path.name: read_list(path) for path in folder.glob("*labeled*.txt")}
    _check_splits(lists, names, {2: 1487, 4: 743, 8: 371, 20: 148, 30: 100})
    assert "train_labeled_0.txt" not in lists
    for split, side in ((2, 1189), (4, 594), (8, 296), (20, 118), (30, 80)):
        assert all(len(lists[f"{split}-{half}_labeled_{split_id}.txt"]) == side for half in "lr" for split_id in range(3))
    assert _digest(folder) == "cbe2fcf3a21a6486e67850629d0cecd4f5dda83f5016f3805f2547a6c6474550"


def test_a_dataset_of_ones_own(tmp_path):
    (tmp_path / "mine.yaml").write_text(SPEC)
    names = [f"photo_{number:03d}" for number in range(50, 0, -1)]
    write_list(tmp_path / "lists" / "all.txt", names)
    done = _run("generate_splits.py", "--dataset", "mine.yaml", cwd=tmp_path)
    assert done.returncode == 0 and "not sorted" in done.stdout
    lists = {path.name: read_list(path) for path in (tmp_path / "lists").glob("*labeled*.txt")}
    _check_splits(lists, names, {4: 12, "few": 4})
    done = _run("dms_sample.py", "--dataset", "mine.yaml", cwd=tmp_path)
    assert done.returncode == 0
    assert len(read_list(tmp_path / "lists" / "4-l_labeled_2.txt")) == 9  # ceil(0.2 · 12) = 3
    done = _run("generate_splits.py", "--list", tmp_path / "lists" / "all.txt", "--out", tmp_path / "other",
                "--divisors", "5", "third:3", "--ids", "1", "--seed", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == [
        "0_unlabeled_0.txt", "1_labeled_0.txt", "5_labeled_0.txt", "5_unlabeled_0.txt", "third_labeled_0.txt",
        "third_unlabeled_0.txt"]
    done = _run("dms_sample.py", "--lists", tmp_path / "other", "--splits", "third", "--ids", "1", "--portion", "0",
                cwd=tmp_path)
    assert done.returncode == 0 and len(read_list(tmp_path / "other" / "third-l_labeled_0.txt")) == 8


@pytest.mark.parametrize("script, arguments, word", [
    ("generate_splits.py", [], "VOC_ROOT"), ("dms_sample.py", [], "VOC_ROOT"),
    ("cityscapes_data_list.py", [], "CITYSCAPES_ROOT"),
    ("generate_splits.py", ["--dataset", "vok"], "no such dataset"),
    ("generate_splits.py", ["--data-root", "missing"], "not a folder"),
    ("generate_splits.py", ["--data-root", "."], "train_aug.txt"),
    ("generate_splits.py", ["--list", "few.txt", "--out", "out"], "no labelled image"),
    ("generate_splits.py", ["--list", "twice.txt", "--out", "out"], "line 2"),
    ("generate_splits.py", ["--list", "missing.txt", "--out", "out"], "does not exist"),
    ("generate_splits.py", ["--list", "few.txt", "--out", "out", "--divisors", "0"], "--divisors 0"),
    ("generate_splits.py", ["--list", "few.txt", "--out", "out", "--divisors", "nan"], "--divisors nan"),
    ("generate_splits.py", ["--list", "few.txt", "--out", "out", "--divisors", "a/b:2"], "letters"),
    ("generate_splits.py", ["--list", "few.txt", "--out", "out", "--divisors", "2", "2"], "given twice"),
    ("generate_splits.py", ["--list", "few.txt", "--out", "out", "--divisors", "x-l:2"], "cannot be named"),
    ("generate_splits.py", ["--list", "few.txt", "--out", "out", "--divisors", "1:2"], "cannot be named"),
    ("generate_splits.py", ["--list", "few.txt", "--out", "few.txt", "--divisors", "2"], "cannot be written"),
    ("generate_splits.py", ["--list", "few.txt", "--out", "out", "--ids", "0"], "--ids"),
    ("dms_sample.py", ["--lists", ".", "--splits", "8"], "generate_splits.py"),
    ("dms_sample.py", ["--lists", ".", "--portion", "1"], "--portion"),
    ("dms_sample.py", ["--lists", ".", "--portion", "most"], "--portion"),
    ("cityscapes_data_list.py", ["--data-root", "."], "leftImg8bit")])
def test_what_a_user_can_get_wrong(tmp_path, script, arguments, word):
    (tmp_path / "few.txt").write_text("a\nb\nc\n")
    (tmp_path / "twice.txt").write_text("a\na\n")
    before = sorted(tmp_path.rglob("*"))
    assert word in _refused(_run(script, *arguments, cwd=tmp_path))
    assert sorted(tmp_path.rglob("*")) == before


def test_cityscapes_without_images(tmp_path):
    (tmp_path / "leftImg8bit" / "train" / "aachen").mkdir(parents=True)
    assert "no image" in _refused(_run("cityscapes_data_list.py", "--data-root", tmp_path, cwd=tmp_path))
    assert not (tmp_path / "data_lists").exists()


def test_help_and_unknown_options(tmp_path):
    for script in ("generate_splits.py", "dms_sample.py", "cityscapes_data_list.py"):
        assert "--data-root" in _run(script, "--help", cwd=tmp_path).stdout
        assert _run(script, "--no-such-option", cwd=tmp_path).returncode == 2
