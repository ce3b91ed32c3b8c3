"""The reader of dataset specs: what a YAML file says is what comes out, and errors name the line and the mend."""

import dataclasses
import json

import pytest

from data.lists import unlabeled_names, write_list
from data.specs import UNLABELED, load_spec
from data.specs.reader import KEYS
from models.description import Description
from models.deeplab import IMAGENET
from predict.network import built_in_spec
from tests.conftest import REPOSITORY
from utils.errors import UserError

LINES = {  # key -> its line of the spec, as a text
    "name": "name: weeds",
    "classes": "classes:\n  - {name: soil, color: [0, 0, 0]}\n  - {name: weed, color: [200, 0, 0]}",
    "images": "images: images/{name}.*",
    "labels": "labels: masks/{name}.png",
    "crop": "crop: [33, 41]",
    "test_size": "test_size: [65, 73]",
}


def write(path, more="", **changed):
    lines = {**LINES, **changed}
    path.write_text("# a comment\n" + "\n".join(line for line in lines.values() if line) + "\n" + more)
    return path


def refusal(path, *arguments, **changed):
    with pytest.raises(UserError) as caught:
        load_spec(write(path, *arguments, **changed))
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000
    return message


def test_the_smallest_spec(tmp_path):
    spec = load_spec(write(tmp_path / "weeds.yaml"))
    assert (spec.name, spec.class_names, spec.palette) == ("weeds", ("soil", "weed"), ((0, 0, 0), (200, 0, 0)))
    assert (spec.background, spec.ignore, spec.label_ids, spec.mask_colors) == (None, 255, None, None)
    assert (spec.crop, spec.test_size, spec.test_by, spec.root) == ((33, 41), (65, 73), "pad", None)
    assert spec.list_path(tmp_path, "a.txt") == tmp_path / "ImageSets" / "Segmentation" / "a.txt"


def test_every_key(tmp_path):
    classes = ("classes:\n  - name: soil\n    color: [0, 0, 0]\n    colors: [[9, 9, 9], [8, 8, 8]]\n"
               "  - {name: weed, color: [200, 0, 0]}")
    spec = load_spec(write(tmp_path / "weeds.yaml", classes=classes, test_size="test_size: largest", images=(
        "images: ['a/{name}.jpg', 'b/{name}.*']"), more=(
        "background: soil\nmasks: color\nignore_colors: [[255, 255, 255]]\nunlabeled_images: pool/{name}.*\n"
        "root: data\nlists_root: .\nlists: lists\ntrain_list: train.txt\nval_list: [v.txt, w.txt]\n"
        "divisors: {3: 3}\ndms_splits: [all]\n")))
    assert spec.mask_colors == (((8, 8, 8), 0), ((9, 9, 9), 0), ((200, 0, 0), 1), ((255, 255, 255), 255))
    assert spec.background == 0 and spec.test_size is None and spec.images == ("a/{name}.jpg", "b/{name}.*")
    assert spec.root == str(tmp_path / "data") and spec.list_path("/x", "a.txt") == tmp_path / "lists" / "a.txt"
    assert spec.train_lists == ("train.txt",) and spec.val_lists == ("v.txt", "w.txt")
    assert spec.divisors == (("3", 3),) and spec.dms_splits == ("all",)


def test_built_in_specs_give_the_fingerprints_they_always_gave():
    """New keys are None, which counts as absent when a finished stage is compared."""
    new = {"unlabeled_images", "mask_colors", "ignore_other_colors", "lists_root"}
    for name in ("voc", "city", "camvid", "shapes", "voc-animals"):
        values = dataclasses.asdict(load_spec(name))
        assert all(values[key] is None for key in new)
        assert isinstance(values["images"], str) and isinstance(values["ignore"], int)
    assert len(load_spec("city").label_ids) == 256


def test_seven_of_vocs_classes():
    voc, animals = load_spec("voc"), load_spec("voc-animals")
    ids = (0, 8, 10, 12, 13, 15, 17)
    assert animals.class_names == tuple(voc.class_names[value] for value in ids)
    assert animals.palette == tuple(voc.palette[value] for value in ids)
    assert animals.label_ids == tuple(ids.index(value) if value in ids else 255 for value in range(256))
    assert (animals.crop, animals.test_size, animals.test_by, animals.background) == ((161, 161), (257, 257), "pad", 0)
    assert animals.divisors == (("8", 8), ("31", 31.31)) and animals.dms_splits == ("8", "31")
    checkpoint = Description("voc-animals", animals.class_names, (), 0, 255, "small", 2, IMAGENET, None, None)
    assert built_in_spec(checkpoint) == animals  # a name with a hyphen
    assert built_in_spec(dataclasses.replace(checkpoint, name="../specs/voc-animals")) is None


CHANGED = [
    (dict(name="nome: weeds"), 2, ["unknown key 'nome'", "did you mean 'name'"]),
    (dict(crop=None), 2, ["'crop' is missing", "as in [321, 321]"]),
    (dict(crop="crop: [321]"), 8, ["crop is [321]", "[height, width]"]),
    (dict(crop="crop: 321"), 8, ["[height, width]"]),
    (dict(crop="crop: [0, 5]"), 8, ["crop is [0, 5]", "[height, width]"]),
    (dict(crop="crop:\n  - 5\n  - 7.5"), 9, ["crop is [5, 7.5]"]),
    (dict(test_size="test_size: biggest"), 9, ["'largest'"]),
    (dict(test_size="test_size: largest\ntest_by: resize"), 9, ["[height, width]", "test_by: pad"]),
    (dict(name="name: no"), 2, ["quotes"]),
    (dict(name="name:"), 2, ["name is None", "text"]),
    (dict(images="images: images/*.jpg"), 6, ["needs {name}"]),
    (dict(images="images: images/{nam}.jpg"), 6, ["{name}"]),
    (dict(images="images: photos/"), 6, ["as in 'photos/{name}.*'"]),
    (dict(images="images: ../{name}.jpg"), 6, ["inside the dataset root", "the folder that holds all"]),
    (dict(images="images: /data/{name}.jpg"), 6, ["inside the dataset root"]),
    (dict(images="images: ['a/{name}.png', 'b/*/{name}.jpg']"), 6, ["'*' only as its suffix"]),
    (dict(labels="labels: masks/{name}.png\nlabels: other/{name}.png"), 8, ["'labels' already stands in line 7"]),
    (dict(classes="classes: [soil, weed]"), 3, ["must be a list of classes", "{name: soil, color: [0, 0, 0]}"]),
    (dict(classes="classes:\n  soil: 0\n  weed: 1"), 4, ["must be a list of classes"]),
    (dict(classes="classes:\n  - {name: soil, color: [0, 0, 0]}"), 4, ["lists 1 class;"]),
    (dict(classes="classes:\n  - {name: a, color: [0, 0, 0]}\n  - {name: b, color: [0, 0]}"), 5, ["classes[1].color"]),
    (dict(classes="classes:\n  - {name: a, color: [0, 0, 0]}\n  - name: b\n    color: [0, 0, "
                  "256]"), 6, ["from 0 to 255"]),
    (dict(classes="classes:\n  - {name: a, color: [0, 0, 0]}\n  - name: b\n    colour: [0, 0, 0]\n    color: [0, 0, "
                  "9]"),
     6, ["unknown key 'colour'"]),
    (dict(classes="classes:\n  - {name: a, color: [0, 0, 0]}\n  - {name: a, color: [0, 0, 0]}"), 5, ["the name 'a'"]),
    (dict(classes="classes:\n  - {name: a, color: [0, 0, 0], ids: [1]}\n  - {name: b, color: [0, 0, 0]}"), 5,
     ["'b' has no 'ids'"]),
    (dict(classes="classes:\n  - {name: a, color: [0, 0, 0], ids: [1]}\n  - {name: b, color: [0, 0, 0], ids: [2, "
                  "1]}"), 5,
     ["value 1 belongs to two classes", "'a'", "'b'"]),
    (dict(classes="classes:\n  - {name: a, color: [0, 0, 0], ids: [1]}\n  - {name: b, color: [0, 0, 0], ids: "
                  "[65536]}"), 5,
     ["from 0 to 65535"]),
    (dict(classes="classes:\n  - {name: a, color: [0, 0, 0], colors: [[1, 1, 1]]}\n  - {name: b, color: [0, 0, 1]}"), 4,
     ["add the line 'masks: color'"]),
]
ADDED = [
    ("background: 2", 10, ["background is 2", "from 0 to 1, the name of a class, or none"]),
    ("background: sky", 10, ["background is 'sky'"]),
    ("ignore: 1", 10, ["number of a class", "none"]),
    ("ignore: 70000", 10, ["from 0 to 65535"]),
    ("test_by: crop", 10, ["'pad' or 'resize'"]),
    ("masks: colour", 10, ["'values' or 'color'"]),
    ("ignore_colors: [[1, 2, 3]]", 10, ["masks: color"]),
    ("masks: color\nignore_colors:\n  - [1, 2]", 12, ["a list of colours"]),
    ("masks: color\nignore_colors: [[0, 0, 0]]", 11, ["that of a class"]),
    ("masks: color\nignore_colors: all", 11, ["'others'"]),
    ("unlabeled_images: pool/{subset}/{name}.jpg", 10, ["no {subset}"]),
    ("lists: /lists", 10, ["inside the dataset root", "lists_root"]),
    ("val_list: []", 10, ["the name of a file"]),
    ("divisors: {2: 2, 8: 1}", 10, ["split 8 is 1", "above 1"]),
    ("divisors:\n  2: 2\n  8: x", 12, ["split 8 is 'x'"]),
    ("dms_splits: 8", 10, ["must be a list of splits"]),
    ("root: [a]", 10, ["root is ['a']"]),
    ("crop: [1, 1]", 10, ["'crop' already stands in line 8"]),
    ("test_by: \tpad: x", 10, ["not valid YAML"]),
    ("divisors: {2: 2", 11, ["not valid YAML", "brackets"]),
    ("unlabeled_images: {name}.jpg", 10, ["not valid YAML", "quotes (a text that begins with {"]),
    ("x: !!python/object/apply:os.system ['echo harm']", 10, ["not valid YAML"]),
    ("x: \x07", 10, ["control character"]),
]


@pytest.mark.parametrize("changed, line, words", [
    *CHANGED, *((dict(more=f"{more}\n"), line, words) for more, line, words in ADDED)])
def test_errors_name_the_line_and_the_mend(tmp_path, changed, line, words):
    path = tmp_path / "weeds.yaml"
    message = refusal(path, **changed)
    assert message.startswith(f"{path}, line {line}: "), message
    for word in words:
        assert word in message


def test_conflicts_between_ids_and_the_ignore_value(tmp_path):
    binary = "classes:\n  - {name: a, color: [0, 0, 0], ids: [0]}\n  - {name: b, color: [0, 0, 1], ids: [255, 1000]}"
    spec = load_spec(write(tmp_path / "a.yaml", classes=binary))  # nobody wrote 'ignore', so 255 is what the class says
    assert spec.ignore is None and len(spec.label_ids) == 1001
    assert [spec.label_ids[value] for value in (0, 1, 255, 1000)] == [0, 255, 1, 1]
    assert "also an id of the class 'b'" in refusal(tmp_path / "b.yaml", "ignore: 255\n", classes=binary)
    assert load_spec(write(tmp_path / "c.yaml", "ignore: none\n")).ignore is None


def test_two_classes_of_one_mask_colour(tmp_path):
    classes = ("classes:\n  - {name: a, color: [1, 2, 3]}\n  - {name: b, color: [0, 0, 1], colors: [[5, 5, 5], [1, 2, "
               "3]]}")
    message = refusal(tmp_path / "a.yaml", "masks: color\n", classes=classes)
    assert "line 5" in message and "[1, 2, 3] belongs to two classes, 'a' and 'b'" in message
    ids = classes.replace("colors: [[5, 5, 5], [1, 2, 3]]", "ids: [3]")
    assert "line 5" in (message := refusal(tmp_path / "b.yaml", "masks: color\n", classes=ids)) and "ids" in message
    assert load_spec(write(tmp_path / "c.yaml", "masks: color\nignore_colors: others\n")).ignore_other_colors


def test_merged_and_shared_values_keep_their_lines(tmp_path):
    path = tmp_path / "a.yaml"
    message = refusal(path, classes=("classes:\n  - &first {name: a, color: [0, 0, 0]}\n  - <<: *first\n    name: b\n"
                                     "    ids: [x]"))
    assert f"{path}, line 7: classes[1].ids is ['x']" in message


def test_files_that_are_no_specs(tmp_path):
    for content in (b"", b"- a\n- b\n", b"text", b"name: k\xe4fer"):
        (tmp_path / "a.yaml").write_bytes(content)
        with pytest.raises(UserError, match="a.yaml, line 1: "):
            load_spec(tmp_path / "a.yaml")


def test_every_key_is_documented():
    text = (REPOSITORY / "docs" / "own_data.md").read_text(encoding="utf-8")
    for key in KEYS:
        assert f"`{key}`" in text


# --- unlabelled images ------------------------------------------------------------------------------------------------


def pool(root):
    """Images a, b, c with masks for a, b; a pool of a (another image), x and sub/y; a split "all"."""
    root.mkdir(exist_ok=True)
    spec = load_spec(write(root / "s.yaml", "unlabeled_images: pool/{name}.*\nlists_root: .\nlists: lists\n"))
    for path in ("images/a.jpg", "images/b.PNG", "images/c.tif", "pool/a.bmp", "pool/x.JPEG", "pool/sub/y.webp",
                 "pool/notes.txt", "pool/.hidden.jpg"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)
    write_list(root / "lists" / "all_labeled_0.txt", ["a"])
    write_list(root / "lists" / "all-l_labeled_0.txt", ["a"])
    write_list(root / "lists" / "val.txt", ["b"])
    return spec


def test_a_folder_of_unlabelled_images_is_enough(tmp_path):
    spec = pool(tmp_path)
    assert unlabeled_names(spec, tmp_path, "all", 0) == ["a", "sub/y", "x"]
    assert unlabeled_names(spec, tmp_path, "all-l", 0) == ["a", "sub/y", "x"]
    assert spec.image_path(tmp_path, "a", UNLABELED) == tmp_path / "pool/a.bmp"  # another image than the labelled one
    assert spec.image_path(tmp_path, "a") == tmp_path / "images/a.jpg"
    assert spec.label_path(tmp_path, "a", UNLABELED) is None
    write_list(tmp_path / "lists" / "all_unlabeled_0.txt", ["c", "sub/y"])  # a list says which, from both folders
    assert unlabeled_names(spec, tmp_path, "all", 0) == ["c", "sub/y"]
    assert spec.image_path(tmp_path, "c", UNLABELED) == tmp_path / "images/c.tif"
    assert spec.image_path(tmp_path, "sub/y", UNLABELED) == tmp_path / "pool/sub/y.webp"
    assert spec.image_path(tmp_path, "z", UNLABELED) == tmp_path / "pool/z.*"


def test_labelled_and_validation_images_in_that_folder_are_left_out(tmp_path):
    spec = dataclasses.replace(pool(tmp_path), unlabeled_images="images/{name}.*")
    assert unlabeled_names(spec, tmp_path, "all", 0) == ["c"]
    assert spec.label_path(tmp_path, "c", UNLABELED) == tmp_path / "masks/c.png"
    (tmp_path / "pool" / "link.jpg").symlink_to(tmp_path / "images" / "a.jpg")
    assert "link" not in unlabeled_names(pool(tmp_path), tmp_path, "all", 0)
    (tmp_path / "images" / "c.tif").unlink()
    with pytest.raises(UserError, match="no image for the pattern images"):
        unlabeled_names(spec, tmp_path, "all", 0)
    with pytest.raises(UserError, match="does not exist; correct the pattern"):
        unlabeled_names(dataclasses.replace(spec, unlabeled_images="pol/{name}.*"), tmp_path, "all", 0)


def test_stages_are_the_same_wherever_the_lists_lie(tmp_path):
    """Only the root and the folder of the lists may differ between two places."""
    one, two = (dataclasses.asdict(pool(tmp_path / name)) for name in "ab")
    assert {key for key in one if one[key] != two[key]} == {"lists_root"} and json.dumps(one)
