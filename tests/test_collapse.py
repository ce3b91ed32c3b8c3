"""A collapse is noticed where it happens, with numbers; a model that never learnt anything has not collapsed."""

import numpy as np
import pytest
import torch

from dmt import collapse
from tests.test_stages import SMALL, first_weights

NAMES = ("background", "cat", "dog")


def test_one_class():
    def found(pixels, iou=None):
        return collapse.one_class(np.array(pixels), NAMES, iou)

    assert "background on 99.5 %" in found([995, 5, 0])
    assert found([980, 20, 0]) is None
    assert found([0, 0, 0]) is None
    assert found([1000, 0, 0], [0.9, 0.5, 0.0]) is not None
    assert found([1000, 0, 0], [0.9, 0.05, None]) is None  # never knew more


@pytest.mark.parametrize("before, after, fell", [
    (0.59, 0.20, True), (0.59, 0.50, False), (0.59, 0.44, True), (0.30, 0.21, False), (0.19, 0.01, False),
    (None, 0.2, False), (float("nan"), 0.2, False), (0.5, 0.6, False)])
def test_fall(before, after, fell):
    assert (collapse.fall("p1--c", before, after) is not None) == fell


def test_labelling_stops_on_a_collapsed_model_and_goes_on_when_told_to(shapes_root, tmp_path, command):
    first_weights(tmp_path / "net.pt", 8)
    checkpoint = torch.load(tmp_path / "net.pt", weights_only=True)
    checkpoint["model"]["classifier.0.convs.0.bias"][3] = 1e3
    torch.save(checkpoint, tmp_path / "net.pt")
    words = ["--labeling", "--dataset=shapes", f"--data-root={shapes_root}", "--train-set=8", f"--output-dir={tmp_path}",
             "--continue-from=net.pt", "--test-size", 65, 65, *SMALL]
    status, _, errors = command(*words)
    assert status == 2 and "triangle on 100.0 %" in errors and "--coco" in errors
    assert not (tmp_path / "pseudo_labels" / "manifest.json").exists()
    status, _, errors = command(*words, "--on-collapse=warn")
    assert status == 0 and "warning: the labelling model predicts triangle" in errors
    assert "warning: no pixel was predicted as background, disc, square, ring, cross, bar, star; their" in errors
    assert (tmp_path / "pseudo_labels" / "manifest.json").exists()


def test_training_stops_after_a_fall_and_says_so_again_when_skipped(shapes_root, tmp_path, command):
    first_weights(tmp_path / "net.pt", 8)
    checkpoint = torch.load(tmp_path / "net.pt", weights_only=True)
    torch.save({**checkpoint, "miou": 0.59}, tmp_path / "net.pt")
    words = ["--state=2", "--dataset=shapes", f"--data-root={shapes_root}", "--train-set=8", f"--output-dir={tmp_path}",
             "--exp-name=fallen", "--continue-from=net.pt", "--epochs=1", "--batch-size-labeled=8", "--test-size", 65, 65,
             *SMALL]
    for _ in range(2):
        status, _, errors = command(*words)
        assert status == 2 and "fell from 59.00 to" in errors
    assert (tmp_path / "fallen.pt").is_file()  # kept, to be looked at
    status, _, errors = command(*words, "--on-collapse=warn")
    assert status == 0 and "warning: the validation mIoU of fallen fell" in errors
