"""What TensorBoard and metrics.jsonl get while a stage runs."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.lists import Sample, evenly_spaced
from data.specs import load_spec
from dmt.live_view import LiveView, confusion_figure

SPEC = load_spec("shapes")
ROOT = Path(__file__).resolve().parents[1]
SMALL = ["--backbone=small", "--weights=none", "--crop-size", 33, 33, "--workers=0", "--test-size", 65, 65]


@pytest.fixture(scope="module")
def stage(shapes_root, tmp_path_factory):
    """The folder of a finished supervised stage: 8 images, 2 epochs of 2 steps, a validation after each epoch."""
    import main
    out = tmp_path_factory.mktemp("live")
    main.main([str(word) for word in (
        "--state=2", "--dataset=shapes", f"--data-root={shapes_root}", "--train-set=8", "--epochs=2",
        "--batch-size-labeled=4", "--val-num-steps=2", "--log-num-steps=1", f"--output-dir={out}", "--exp-name=live",
        *SMALL)])
    return out / "live"


def events(folder):
    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return found


def pictures(found, tag):
    return [np.array(Image.open(io.BytesIO(event.encoded_image_string))) for event in found.Images(tag)]


def test_tensorboard_gets_curves_classes_and_pictures(stage):
    found = events(stage)
    assert {"train/loss", "train/lr", "train/images_per_second", "validation/miou", "epoch/pixel_accuracy",
            *(f"iou/{name}" for name in SPEC.class_names)} <= set(found.Tags()["scalars"])
    assert [event.step for event in found.Scalars("train/images_per_second")] == [1, 2, 3, 4]
    assert all(event.value > 0 for event in found.Scalars("train/images_per_second"))
    assert len(pictures(found, "validation/confusion")) == 2
    last = pictures(found, "validation/image, truth, prediction")[-1]
    assert last.shape[0] <= 4 * (64 + 2) and last.shape[1] <= 3 * 64


def test_scale_of_mixed_precision_is_logged(tmp_path):
    view = LiveView(tmp_path / "tensorboard", 0, SPEC, [])
    view.numbers("train", {"loss": 1.5, "scale": 65536.0, "nothing": None}, 7)
    view.close()
    found = events(tmp_path)
    assert [(event.step, event.value) for event in found.Scalars("train/scale")] == [(7, 65536.0)]
    assert "train/nothing" not in found.Tags()["scalars"]


def test_metrics_say_how_far_and_what_it_took(stage):
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    assert (lines[0]["kind"], lines[0]["step"], lines[0]["total_steps"]) == ("start", 0, 4)
    assert (lines[-1]["kind"], lines[-1]["step"]) == ("end", 4)
    assert lines[-1]["seconds"] > 0 and lines[-1]["peak_memory_mb"] > 50 and lines[-1]["gpu_peak_memory_mb"] is None
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)


def test_pandas_as_documented(stage, capsys):
    first, second = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "reports.md").read_text(), re.S)
    names = {}
    exec((first + second).replace("runs/demo/demo__p1--l", str(stage)), names)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in printed[1:3]] == ["2", "4"]
    assert names["metrics"].query("kind == 'validation'").miou.between(0, 1).all()
    assert list(SPEC.class_names) == printed[3].split()


def test_every_kind_of_line_is_documented(stage):
    text = (ROOT / "docs" / "reports.md").read_text()
    for line in (stage / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        assert f"| `{values['kind']}` |" in text
        assert all(f"`{name}`" in text for name in values), values


def test_a_gallery_shows_image_truth_and_prediction_in_the_palette(tmp_path):
    samples = [Sample(str(number), None, None) for number in range(10)]
    view = LiveView(tmp_path / "tensorboard", 0, SPEC, evenly_spaced(samples, 2))
    image = torch.zeros(20, 30, 3, dtype=torch.uint8)
    image[..., 0] = 200  # blue, in BGR
    label, prediction = torch.full((16, 24), 255), torch.ones(16, 24, dtype=torch.int64)
    for sample in reversed(samples):
        view.see(sample, image, label, prediction)
    view.validated(np.eye(8), [0.5] * 8, 1)
    view.close()
    (rows,) = pictures(events(tmp_path), "validation/image, truth, prediction")
    assert rows.shape == (2 * (16 + 2), 3 * 24, 3)
    assert rows[0, 0].tolist() == [0, 0, 200] and rows[0, 24].tolist() == [224, 224, 192]
    assert tuple(rows[0, 48]) == SPEC.palette[1] and rows[16, 0].tolist() == [255, 255, 255]


def test_a_confusion_matrix_shows_shares_of_the_true_class():
    axes = confusion_figure([[3, 1], [0, 0]], ["first", "zweite \u4e00"]).axes[0]
    assert axes.images[0].get_array().tolist() == [[75, 25], [0, 0]]
    assert [text.get_text() for text in axes.texts] == ["75", "25"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["first", "zweite \u4e00"]
