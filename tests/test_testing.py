"""main.py --state=3: its numbers are those of training's validation, its other protocols count what they say."""

import json

import cv2
import numpy as np
import pytest
import torch

from data.images import read_mask
from data.lists import read_list
from data.specs import load_spec
from models.deeplab import COCO, IMAGENET
from predict.test import table
from tests.test_predict import checkpoint, probabilities
from tests.test_stages import SMALL, first_weights
from utils.metrics import ConfusionMatrix

SHAPES = load_spec("shapes")


@pytest.fixture
def test(command, shapes_root, tmp_path):
    """Run --state=3; returns (results of the JSON file, standard output, lines of standard error)."""
    def run(*words, root=shapes_root, dataset="shapes", size=(65, 65), json_file=tmp_path / "test.json"):
        status, printed, errors = command("--state=3", f"--dataset={dataset}", f"--data-root={root}",
                                          *(["--test-size", *size] if size else []), f"--output-dir={tmp_path}",
                                          "--workers=0",
                                          f"--json={json_file}", *words)
        assert status == 0, errors
        return json.loads(json_file.read_text()), printed, errors.splitlines()
    return run


def pairs(root, spec):
    """(image (H, W, 3) BGR, label (H, W)) of every validation image."""
    names = read_list(spec.list_path(root, "val.txt"))
    return [(cv2.imread(str(spec.image_path(root, name, "val"))), read_mask(spec.label_path(root, name, "val"), spec))
            for name in names]


def test_a_checkpoint_reaches_exactly_what_its_training_said(command, test, shapes_root, tmp_path):
    for name, coco in (("one", []), ("two", ["--coco"])):
        status, _, errors = command("--state=2", "--dataset=shapes", f"--data-root={shapes_root}", "--train-set=8",
                                    "--epochs=2", "--batch-size-labeled=4", "--val-num-steps=1",
                                    "--batch-size-labeling=4", f"--output-dir={tmp_path}", f"--exp-name={name}",
                                    *SMALL, "--test-size", 65, 65, *coco)
        assert status == 0, errors
    miou = {name: json.loads((tmp_path / name / "result.json").read_text())["miou"] for name in ("one", "two")}
    assert miou["one"] != miou["two"]
    alone, printed, errors = test("--continue-from=one.pt", "--batch-size-labeling=4")
    assert alone["results"]["A"]["miou"] == miou["one"] and list(alone["results"]) == ["A"] and errors == []
    assert "protocol: zero-padded to 65 x 65, one scale, no flip (the papers')" in printed
    assert test("--continue-from=one.pt", "--batch-size-labeling=4", size=None)[0] == alone  # as it was trained
    both, printed, errors = test("--continue-from=one.pt", "--second-arm=two.pt", "--batch-size-labeling=4")
    assert list(both["results"]) == ["A", "A+B", "B"] and errors == []  # each with its own input format
    assert both["results"]["A"] == alone["results"]["A"] and both["results"]["B"]["miou"] == miou["two"]
    assert both["networks"]["B"]["input_format"] == "coco" and len(both["networks"]["A"]["sha256"]) == 64
    assert "IoU A+B" in printed and "A+B: mean of their probabilities" in printed


@pytest.mark.parametrize("protocol, size", [("papers", (65, 65)), ("original", (9, 9))])  # there it is no limit
def test_ensembles_count_the_mean_of_the_probabilities(test, shapes_root, tmp_path, protocol, size):
    networks = [(checkpoint(tmp_path / "c.pt", seed=1, form=COCO), COCO),
                (checkpoint(tmp_path / "i.pt", seed=2), IMAGENET)]
    result, _, _ = test("--continue-from=c.pt", "--second-arm=i.pt", f"--protocol={protocol}", size=size)
    expected = {name: ConfusionMatrix(8) for name in ("A", "B", "A+B")}
    for image, label in pairs(shapes_root, SHAPES):
        canvas = np.zeros((65, 65, 3), np.uint8)
        canvas[: image.shape[0], : image.shape[1]] = image
        shown = canvas if protocol == "papers" else image
        one, other = (probabilities(network, form, shown)[:, : label.shape[0], : label.shape[1]]
                      for network, form in networks)
        for matrix, said in zip(expected.values(), (one, other, one + other)):
            matrix.update(torch.from_numpy(label), said.argmax(dim=0))
    for name, matrix in expected.items():
        counted = np.array(result["results"][name]["confusion_matrix"])
        assert np.abs(counted - matrix.matrix).sum() <= 4  # ties that rounding decides
        assert counted.sum() == matrix.matrix.sum()
    assert result["images"] == len(read_list(SHAPES.list_path(shapes_root, "val.txt")))
    assert result["protocol"]["kind"] == protocol


@pytest.mark.parametrize("words, said, counted", [
    ([], "resized to 32 x 64, one scale, no flip (the papers'); labels resized, too", 32 * 64),
    (["--protocol=original", "--flip"],
     "resized to 32 x 64, undivided, one scale, flip; labels at their own size", 64 * 128),
    (["--protocol=sliding", "--scales", "0.5", "1", "--window", "17", "33"],
     "sliding windows of 17 x 33, 0.667 of it apart, scales 0.5, 1, no flip; labels at their own size", 64 * 128)])
def test_resized_datasets_are_judged_where_they_say(test, city_root, tmp_path, words, said, counted):
    city = load_spec("city")
    checkpoint(tmp_path / "net.pt", city)
    result, printed, _ = test("--continue-from=net.pt", *words, root=city_root, dataset="city", size=(32, 64))
    assert said in printed
    total = np.array(result["results"]["A"]["confusion_matrix"]).sum()
    labels = [label for _, label in pairs(city_root, city)]
    ignored = np.mean([(label == 255).mean() for label in labels])
    assert total == pytest.approx(counted * len(labels) * (1 - ignored), rel=0.05)
    if counted == 64 * 128:
        assert total == sum((label != 255).sum() for label in labels)


def test_the_table_by_hand():
    first, second = ConfusionMatrix(3), ConfusionMatrix(3)
    first.update(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1]))
    second.update(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 0, 0]))
    assert [line.split() for line in table(("sky", "tree", "car"), {"A": first}).splitlines()] == [
        ["class", "IoU", "accuracy"], ["sky", "66.67", "66.67"], ["tree", "50.00", "100.00"], ["car", "-", "-"],
        ["mIoU", "58.33"], ["pixel", "accuracy", "75.00"]]
    both = table(("sky", "tree", "car"), {"A": first, "B": second}).splitlines()
    assert both[0].split() == ["class", "IoU", "A", "IoU", "B", "accuracy", "A", "accuracy", "B"]
    assert both[2].split() == ["tree", "50.00", "0.00", "100.00", "0.00"]
    assert both[4].split() == ["mIoU", "58.33", "37.50"] and both[5].split()[-2:] == ["75.00", "75.00"]


def test_json_by_default_beside_the_checkpoint_and_old_ones_too(command, shapes_root, tmp_path):
    first_weights(tmp_path / "old.pt", 8)
    words = ["--state=3", "--dataset=shapes", f"--data-root={shapes_root}", "--test-size", 65, 65, "--workers=0",
             f"--output-dir={tmp_path}", "--continue-from=old.pt"]
    status, printed, errors = command(*words)
    assert (status, errors) == (0, "") and str(tmp_path / "old-test.json") in printed
    result = json.loads((tmp_path / "old-test.json").read_text())
    assert result["networks"]["A"]["input_format"] == "imagenet" and result["class_names"] == list(SHAPES.class_names)
    status, printed, _ = command(*words, "--coco", "--second-arm=old.pt")
    assert "A: " in printed and "(input format coco)" in printed and "(input format imagenet)" in printed
    assert (tmp_path / "old+old-test.json").is_file()


def test_tests_that_are_wrong(command, shapes_root, tmp_path):
    checkpoint(tmp_path / "net.pt")
    checkpoint(tmp_path / "city.pt", load_spec("city"))
    words = ["--state=3", "--dataset=shapes", f"--data-root={shapes_root}", f"--output-dir={tmp_path}", "--workers=0",
             "--continue-from=net.pt"]
    torch.save({"model": {}}, tmp_path / "empty.pt")
    for more, parts in (
            (["--test-size", 33, 33], ["larger than the test size 33 x 33"]),
            (["--test-size", 33, 33, "--flip"], ["the image ", "larger than the test size", "--protocol original"]),
            (["--second-arm=city.pt"], ["city.pt", "19 classes", "8"]), (["--second-arm=gone.pt"], ["gone.pt"]),
            (["--second-arm=empty.pt"], ["empty.pt"]), (["--scales", "0"], ["--scales"]),
            (["--stride=0"], ["--stride"]),
            ([f"--json={tmp_path}"], ["--json", "folder"])):
        status, _, errors = command(*words, *more)
        lines = errors.splitlines()
        assert status == 2 and len(lines) == 1 and lines[0].startswith("error: "), (more, errors)
        assert all(part in lines[0] for part in parts), (more, errors)
    assert not list(tmp_path.glob("*.json"))
