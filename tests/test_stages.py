"""The stages through the real command line, on tiny data: the released flags, the whole chain, and the same bits twice."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

SMALL = ["--backbone=small", "--weights=none", "--crop-size", 33, 33, "--workers=0"]


def released(root, out, dataset="voc"):
    """A chain as the released launchers write it, with every flag of theirs; one epoch."""
    common = [f"--dataset={dataset}", "--sets-id=1", "--mixed-precision"]
    new = [f"--data-root={root}", f"--output-dir={out}", *SMALL]
    ratio = ["--val-num-steps=3", "--batch-size-labeled=1", "--batch-size-pseudo=7", "--epochs=1"]
    mutual = ["--gamma1=5", "--gamma2=5", "--lr=0.001", "--seed=1", "--state=1", *ratio]
    return [[*line, *common, *new] for line in (
        ["--exp-name=e__p0--c", "--state=2", "--train-set=8", "--coco", "--continue-from=coco.pt", "--epochs=1",
         "--batch-size-labeled=8", "--lr=0.002", "--weight-decay=0.0005", "--seed=1", "--val-num-steps=220"],
        ["--exp-name=e__p0--i", "--state=2", "--train-set=8", "--epochs=1", "--batch-size-labeled=8", "--lr=0.002",
         "--seed=2", "--val-num-steps=220", "--valtiny"],
        ["--labeling", "--train-set=8", "--continue-from=e__p0--i.pt", "--label-ratio=0.2"],
        ["--exp-name=e__p1--c", "--train-set=8", "--continue-from=e__p0--c.pt", "--coco", *mutual],
        ["--labeling", "--train-set=8", "--continue-from=e__p0--c.pt", "--label-ratio=0.2", "--coco"],
        ["--exp-name=e__p1--i", "--train-set=8", "--continue-from=e__p0--i.pt", "--no-aug", *mutual],
        ["--labeling", "--train-set=8", "--continue-from=e__p1--i.pt", "--oldfilename=e__p0--i.pt",
         "--Increment=0.15", "--label-ratio=0.4"],
        ["--exp-name=e__p2--c", "--train-set=8", "--continue-from=e__p1--c.pt", "--coco", "--do-not-save", *mutual],
        ["--state=3", "--continue-from=e__p1--c.pt", "--coco"])]


def first_weights(path, num_classes, seed=0, sureness=1):
    """A checkpoint as the released ones are: a dict with the key model, and entries that are None.

    ``sureness`` multiplies the head, so that confidences spread as those of a trained network do.
    """
    from models import deeplab_v2
    torch.manual_seed(seed)
    state = deeplab_v2(num_classes, "small").state_dict()
    state.update({name: value * sureness for name, value in state.items() if name.startswith("classifier")})
    torch.save({"model": state, "optimizer": None, "lr_scheduler": None}, path)


@pytest.mark.parametrize("dataset, classes", [("voc", 21), ("city", 19)])
def test_released_command_lines_run_unchanged(dataset, classes, shapes_root, city_root, tmp_path, command):
    root = {"voc": shapes_root, "city": city_root}[dataset]
    lists = tmp_path / "data" / ("ImageSets/Segmentation" if dataset == "voc" else "data_lists")
    shutil.copytree(root, tmp_path / "data")
    shutil.copy(lists / "val.txt", lists / "valtiny.txt")
    out = tmp_path / "runs"
    out.mkdir()
    first_weights(out / "coco.pt", classes)
    small_test = ["--test-size", 65, 65] if dataset == "voc" else ["--test-size", 64, 128]
    for line in released(tmp_path / "data", out, dataset):
        status, printed, errors = command(*line, *small_test)
        assert status == 0, (line, errors)
    assert "mIoU" in printed
    assert sorted(path.name for path in out.glob("*.pt")) == [
        "coco.pt", "e__p0--c.pt", "e__p0--i.pt", "e__p1--c.pt", "e__p1--i.pt"]  # p2--c was not to be saved
    names = [line.split(": ")[0] for line in (out / "log.txt").read_text().splitlines()]
    assert names == ["e__p0--c", "e__p0--i", "e__p1--c", "e__p1--i", "e__p2--c"]
    assert json.loads((out / "e__p1--c" / "config.json").read_text())["gamma1"] == 5
    assert list((out / "e__p1--c" / "tensorboard").glob("events*"))
    label = next((out / "pseudo_labels" / "labels").rglob("*.png"))
    image = Image.open(label)
    assert image.mode == "P"
    values = np.unique(np.asarray(image))
    assert ((values < classes) | (values == 255)).all()


def train(command, root, out, name, *more):
    status, _, errors = command("--state=2", "--dataset=shapes", f"--data-root={root}", "--train-set=8", "--epochs=3",
                                "--batch-size-labeled=4", "--val-num-steps=3", f"--output-dir={out}",
                                f"--exp-name={name}", *SMALL, "--test-size", 65, 65, *more)
    assert status == 0, errors
    return out / f"{name}.pt"


def tensors(path):
    return torch.load(path, weights_only=True)["model"]


def test_the_same_seed_gives_the_same_bits_with_and_without_workers(shapes_root, tmp_path, command):
    first = tensors(train(command, shapes_root, tmp_path, "first"))
    again = tensors(train(command, shapes_root, tmp_path, "again"))
    workers = tensors(train(command, shapes_root, tmp_path, "workers", "--workers=2"))
    other = tensors(train(command, shapes_root, tmp_path, "other", "--seed=2"))
    for name, value in first.items():
        assert torch.equal(value, again[name]) and torch.equal(value, workers[name]), name
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


def test_validation_images_that_are_trained_on_are_named(own_shapes, tmp_path, command):
    lists = own_shapes / "ImageSets/Segmentation"
    with open(lists / "val.txt", "a") as file:
        file.write((lists / "8_labeled_0.txt").read_text().splitlines()[0] + "\n")
    status, _, errors = command("--state=2", "--dataset=shapes", f"--data-root={own_shapes}", "--train-set=8",
                                "--epochs=1", f"--output-dir={tmp_path}", *SMALL, "--test-size", 65, 65)
    assert status == 0 and "warning: 1 of 7 images of the validation are trained on" in errors


def label(command, root, out, checkpoint, folder, *more):
    return command("--labeling", "--dataset=shapes", f"--data-root={root}", "--train-set=8", f"--output-dir={out}",
                   f"--continue-from={checkpoint}", "--test-size", 65, 65, f"--pseudo-dir={folder}",
                   "--label-ratio=0.5", *SMALL, *more)


def test_previous_predictions_are_found_or_made_and_give_the_same_labels(shapes_root, tmp_path, command):
    old, new = tmp_path / "old.pt", tmp_path / "new.pt"
    first_weights(old, 8, seed=1)
    first_weights(new, 8, seed=2)
    ple = [f"--oldfilename={old}", "--beta=0.02", "--background=none"]
    assert label(command, shapes_root, tmp_path, old, tmp_path / "pseudo" / "old")[0] == 0
    assert label(command, shapes_root, tmp_path, new, tmp_path / "pseudo" / "found", *ple)[0] == 0
    assert label(command, shapes_root, tmp_path, new, tmp_path / "alone" / "made", *ple)[0] == 0
    found, made = tmp_path / "pseudo" / "found", tmp_path / "alone" / "made"
    files = sorted(path.relative_to(found) for path in found.rglob("*.png"))
    assert len(files) == 2 * 16
    for file in files:
        assert (found / file).read_bytes() == (made / file).read_bytes(), file
    shares = json.loads((found / "manifest.json").read_text())["labeled_share"]
    assert 0 < shares["changed"] < 1 and shares["before"] != shares["after"]
    share = np.mean([(np.asarray(Image.open(path)) != 255).mean() for path in (found / "labels").glob("*.png")])
    sizes = {Image.open(path).size for path in (found / "labels").glob("*.png")}
    if len(sizes) == 1:
        assert share == pytest.approx(shares["after"])


def test_pseudo_labels_follow_the_papers_rules_pixel_by_pixel(shapes_root, tmp_path, command):
    """The stored labels against the plain procedure: float32 softmax, sorted confidences, thresholds."""
    checkpoint = tmp_path / "net.pt"
    first_weights(checkpoint, 8, sureness=10)
    folder = tmp_path / "pseudo" / "net"
    assert label(command, shapes_root, tmp_path, checkpoint, folder)[0] == 0
    current = plain_predictions(shapes_root, checkpoint, 1)
    thresholds = plain_thresholds(current)
    expected = {name: plain_label(pair, thresholds) for name, pair in current.items()}
    assert share_of_other_labels(folder, expected) <= 0.0005  # logits and confidences are stored in 16 bits


def test_previous_statistics_of_each_batch_are_those_of_train_mode(shapes_root, tmp_path, command):
    """PLE as released, the previous network in train mode, against the plain procedure; 16 images in batches of 5."""
    old, new = tmp_path / "old.pt", tmp_path / "new.pt"
    first_weights(old, 8, seed=1, sureness=10)
    first_weights(new, 8, seed=2, sureness=10)
    stored, folder = tmp_path / "pseudo" / "old", tmp_path / "pseudo" / "new"
    ple = [f"--oldfilename={old}", "--beta=0.02", "--background=none"]
    five = "--batch-size-labeling=5"
    assert label(command, shapes_root, tmp_path, old, stored, five)[0] == 0
    before = {path: path.read_bytes() for path in (old, new, *stored.rglob("*.*")) if path.is_file()}
    status, _, errors = label(command, shapes_root, tmp_path, new, folder, *ple, five, "--previous-statistics=batch")
    assert (status, errors) == (0, "")
    assert all(path.read_bytes() == content for path, content in before.items())
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["confidence", "labels", "logits"]

    current, previous = plain_predictions(shapes_root, new, 5), plain_predictions(shapes_root, old, 5, training=True)
    thresholds, expected = plain_thresholds(current), {}
    for name, pair in current.items():
        surer = previous[name][1] - pair[1] >= 0.02
        expected[name] = np.where(surer, plain_label(previous[name], thresholds), plain_label(pair, thresholds))
    assert share_of_other_labels(folder, expected) <= 0.001
    assert "already labelled" in label(command, shapes_root, tmp_path, new, folder, *ple, five,
                                       "--previous-statistics=batch")[1]
    assert "labelled anew, since" in label(command, shapes_root, tmp_path, new, folder, *ple, five)[1]
    assert share_of_other_labels(folder, expected) > 0.1
    assert "previous_statistics" not in json.loads((folder / "manifest.json").read_text())["rules"]


def plain_predictions(root, checkpoint, batch_size, training=False):
    """{name: (classes, confidences)} of the unlabelled images: the network, upsampling, float32 softmax."""
    from data.datasets import WholeImages
    from data.lists import Sample, read_list
    from data.specs import load_spec
    from models import deeplab_v2
    from models.deeplab import IMAGENET
    names = read_list(root / "ImageSets/Segmentation/8_unlabeled_0.txt")
    model = deeplab_v2(8, "small").train(training)
    model.load_state_dict(tensors(checkpoint))
    spec = dataclasses.replace(load_spec("shapes"), test_size=(65, 65))
    data, samples = WholeImages(spec), [Sample(name, spec.image_path(root, name), None) for name in names]
    found = {}
    for start in range(0, len(names), batch_size):
        images, _, batch, sizes = data.collate([data[sample] for sample in samples[start : start + batch_size]])
        with torch.inference_mode():
            logits = torch.nn.functional.interpolate(model(IMAGENET.normalize(images)), (65, 65),
                                                     mode="bilinear", align_corners=True)
        for maps, sample, size in zip(logits.softmax(1), batch, sizes):
            confidence, winner = maps[:, : size[0], : size[1]].max(0)
            found[sample.name] = winner.numpy(), confidence.numpy()
    return found


def plain_thresholds(predictions, ratio=0.5):
    """The threshold of each class, from every 16th pixel of each image."""
    winners, confidences = (np.concatenate([pair[which].ravel()[::16] for pair in predictions.values()])
                            for which in (0, 1))
    thresholds = {}
    for value in range(8):
        won = np.sort(confidences[winners == value])
        thresholds[value] = won[-int(ratio * len(won)) - 1] if ratio * len(won) >= 1 else 1e-5
    return thresholds


def plain_label(prediction, thresholds):
    """The winning classes of a (classes, confidences), 255 below the threshold."""
    winner, confidence = prediction
    return np.where(confidence < np.vectorize(thresholds.get)(winner), 255, winner)


def share_of_other_labels(folder, expected):
    """Share of the pixels whose stored label is another one."""
    stored = {name: np.asarray(Image.open(folder / "labels" / f"{name}.png")) for name in expected}
    return (sum((stored[name] != labels).sum() for name, labels in expected.items())
            / sum(labels.size for labels in expected.values()))
