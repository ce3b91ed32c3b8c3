"""The check before a run: every fault is found in one pass, and the estimates are of the right order."""

import dataclasses
import os
import types

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from data.lists import read_list
from data.specs import UNLABELED, load_spec
from dmt.check import LABELLED, UNLABELLED, VALIDATION, Report, Subset, check, disk_bytes, print_report
from dmt.check import subsets as subsets_of
from dmt.memory import Workload, memory_bytes
from dmt.session import Data
from utils.errors import UserError
from utils.options import parse_options

LISTS = "ImageSets/Segmentation"
SPEC = dataclasses.replace(load_spec("shapes"), crop=(33, 33), test_size=(65, 65))
SMALL = Workload("runs", backbone="small", batch_size=2, batch_size_labeling=2)


def subsets(root):
    """The lists of split 8 and the validation list, as a run would read them."""
    return {"labeled": listed(root, root / LISTS / "8_labeled_0.txt"),
            "unlabeled": listed(root, root / LISTS / "8_unlabeled_0.txt", UNLABELLED),
            "validation": listed(root, root / LISTS / "val.txt", VALIDATION)}


def listed(root, path, kind=LABELLED, dataset="shapes"):
    """The images that a list names, as a subset of that kind."""
    folder = {LABELLED: "train", VALIDATION: "val", UNLABELLED: UNLABELED}[kind]
    return Subset(lambda: Data(dataset, root).samples(read_list(path), folder), kind)


def run(root, tmp_path, lists=None, work=SMALL, dataset="shapes", **options):
    sizes = {name: options.pop(name, getattr(SPEC, name)) for name in ("crop", "test_size", "max_pixels")}
    data = Data(dataset, root, **sizes)
    return check(data, lists or subsets(root), dataclasses.replace(work, output_dir=tmp_path / "runs"), **options)


def masks(root, name):
    return [np.array(Image.open(root / "SegmentationClassAug" / f"{image}.png"))
            for image in read_list(root / LISTS / name)]


# --- the files ------------------------------------------------------------------------------------------------------


def test_a_clean_dataset_has_no_errors_and_its_table_is_right(shapes_root, tmp_path):
    report = run(shapes_root, tmp_path)
    assert report.errors == []
    lines = {line.split()[0]: line.split()[1:] for line in report.table}
    for column, name in enumerate(("8_labeled_0.txt", "val.txt")):
        pixels = np.concatenate([mask.ravel() for mask in masks(shapes_root, name)])
        for index, class_name in enumerate(SPEC.class_names):
            share = 100 * (pixels == index).sum() / (pixels != 255).sum()
            assert lines[class_name][column] == f"{share:.2f}"
    assert [line.split(":")[0] for line in report.table[:3]] == ["labeled", "unlabeled", "validation"]
    assert report.table[0].startswith("labeled: 8 images, ") and report.table[1].startswith("unlabeled: 16 images, ")
    sizes = [mask.shape for mask in masks(shapes_root, "8_unlabeled_0.txt")]
    (low_height, low_width), (height, width) = np.min(sizes, axis=0), np.max(sizes, axis=0)
    assert f"{width} pixels wide" in report.table[1] and f"{height} high" in report.table[1]
    for low, high in ((low_height, height), (low_width, width)):
        assert low == high or f"{low} to {high}" in report.table[1]
    assert not (tmp_path / "runs").exists()  # nothing is written


def test_classes_that_no_labelled_mask_has_are_named(shapes_root, tmp_path):
    there = set(np.concatenate([mask.ravel() for mask in masks(shapes_root, "8_labeled_0.txt")]).tolist())
    lacking = [name for index, name in enumerate(SPEC.class_names) if index not in there]
    warnings = run(shapes_root, tmp_path).warnings
    assert len(warnings) == bool(lacking) and all(name in warnings[0] for name in lacking)
    one = read_list(shapes_root / LISTS / "8_labeled_0.txt")[:1]
    there = set(masks(shapes_root, "8_labeled_0.txt")[0].ravel().tolist())
    warning, = run(shapes_root, tmp_path, lists={"half": Subset(lambda: Data("shapes", shapes_root).samples(one, "train"), LABELLED)}).warnings
    named = warning.split(" pixel of ")[1].split(";")[0].split(", ")
    assert named == [name for index, name in enumerate(SPEC.class_names) if index not in there] and "half" in warning


def test_all_faults_are_found_in_one_pass(own_shapes, tmp_path):
    labeled = read_list(own_shapes / LISTS / "8_labeled_0.txt")
    unlabeled = read_list(own_shapes / LISTS / "8_unlabeled_0.txt")
    validation = read_list(own_shapes / LISTS / "val.txt")

    def image(name):
        return own_shapes / "JPEGImages" / f"{name}.jpg"

    def mask(name):
        return own_shapes / "SegmentationClassAug" / f"{name}.png"

    content = image(unlabeled[0]).read_bytes()
    image(unlabeled[0]).write_bytes(content[: len(content) // 2])
    Image.fromarray(np.zeros((7, 9), np.uint8)).save(mask(labeled[0]))
    size = cv2.imread(str(image(labeled[1]))).shape[:2]
    Image.fromarray(np.full(size, 99, np.uint8)).save(mask(labeled[1]))
    mask(labeled[2]).unlink()
    cv2.imwrite(str(image(unlabeled[1])), np.zeros((20, 90, 3), np.uint8))
    image(unlabeled[2]).unlink()
    image(unlabeled[3]).write_text("no image")
    mask(validation[0]).write_bytes(mask(validation[0]).read_bytes()[:-30])
    for name, surplus in (("8_unlabeled_0.txt", labeled[0]), ("val.txt", unlabeled[4])):
        with open(own_shapes / LISTS / name, "a") as file:
            file.write(surplus + "\n")

    def refuse():
        raise UserError("the weights w.pt are missing")

    report = run(own_shapes, tmp_path, functions=[refuse])
    expected = [  # a file, and what is said of it
        ("w.pt", "missing"), (image(unlabeled[0]), "truncated"), (mask(labeled[0]), "is 9 x 7 pixels"),
        (mask(labeled[1]), "value 99"), (mask(labeled[2]), "missing"), (image(unlabeled[1]), "90 x 20 pixels"),
        (image(unlabeled[2]), "missing"), (image(unlabeled[3]), "does not decode"),
        (mask(validation[0]), "does not decode"),
        (image(labeled[0]), "list labeled and the list unlabeled"),
        (image(unlabeled[4]), "list unlabeled and the list validation")]
    for path, what in expected:
        assert [line for line in report.errors if str(path) in line and what in line], (path, what)
    assert len(report.errors) == len(expected) and all("\n" not in line for line in report.errors)


def test_a_list_that_cannot_be_read_is_one_finding_of_several(own_shapes, tmp_path):
    (own_shapes / LISTS / "8_unlabeled_0.txt").unlink()
    (own_shapes / LISTS / "val.txt").write_text("../outside\n")
    name = read_list(own_shapes / LISTS / "8_labeled_0.txt")[0]
    (own_shapes / "JPEGImages" / f"{name}.jpg").unlink()
    errors = run(own_shapes, tmp_path).errors
    for line, what in zip(errors, ("generate_splits.py", "val.txt, line 1", f"{name}.jpg is missing"), strict=True):
        assert what in line


def test_halves_of_a_split_may_share_images(shapes_root, tmp_path):
    lists = subsets(shapes_root)
    lists["labeled-l"] = lists["labeled"]
    assert run(shapes_root, tmp_path, lists=lists).errors == []


def test_what_one_split_id_labels_another_may_leave_unlabelled(shapes_root, tmp_path):
    trainings = [parse_options([f"--state={state}", "--train-set=8", f"--sets-id={number}"])
                 for state in (1, 2) for number in (0, 1)]
    lists = subsets_of(Data("shapes", shapes_root), trainings)
    assert set(lists) == {"labelled 8 of id 0", "labelled 8 of id 1", "validation", "unlabelled of id 0",
                          "unlabelled of id 1"}
    report = run(shapes_root, tmp_path, lists=lists)
    assert report.errors == [] and not [line for line in report.warnings if "copies of" in line]


def test_only_images_that_are_padded_must_fit_the_test_size(shapes_root, tmp_path):
    errors = run(shapes_root, tmp_path, test_size=(33, 33)).errors
    assert len(errors) == 16 + 6 and all("--test-size" in line for line in errors)  # unlabelled and validation images


def test_sizes_that_an_encoder_does_not_take_are_findings_among_others(shapes_root, tmp_path):
    work = dataclasses.replace(SMALL, backbone="timm/vit_tiny_patch16_224")
    report = run(shapes_root, tmp_path, work=work, crop=(33, 33), test_size=(80, 80))
    assert [error.split(":")[0] for error in report.errors] == ["--crop-size 33 33"]
    assert any(line.startswith("disk") for line in report.estimates)


def test_a_pipe_in_place_of_an_image_is_not_waited_for(own_shapes, tmp_path):
    image = own_shapes / "JPEGImages" / f"{read_list(own_shapes / LISTS / '8_unlabeled_0.txt')[0]}.jpg"
    image.unlink()
    os.mkfifo(image)
    error, = run(own_shapes, tmp_path).errors
    assert f"{image} is no file" in error
    Data("shapes", own_shapes)  # looks for the largest image


def test_huge_images_are_refused(shapes_root, tmp_path):
    errors = run(shapes_root, tmp_path, max_pixels=100).errors
    assert len(errors) == 8 + 8 + 16 + 6 + 6 and all("--max-pixels" in line for line in errors)


def test_links_are_followed(own_shapes, tmp_path):
    image, mask = (read_list(own_shapes / LISTS / "8_labeled_0.txt")[index] for index in (0, 1))
    for path in (own_shapes / "JPEGImages" / f"{image}.jpg", own_shapes / "SegmentationClassAug" / f"{mask}.png"):
        path.symlink_to(path.rename(tmp_path / path.name))
    assert run(own_shapes, tmp_path).errors == []


def test_copies_turned_images_and_small_validation_sets_are_named(own_shapes, tmp_path):
    labeled, unlabeled, validation = (read_list(own_shapes / LISTS / name) for name in (
        "8_labeled_0.txt", "8_unlabeled_0.txt", "val.txt"))
    folder = own_shapes / "JPEGImages"
    (folder / f"{unlabeled[0]}.jpg").write_bytes((folder / f"{validation[0]}.jpg").read_bytes())
    (own_shapes / LISTS / "val.txt").write_text("\n".join(validation[:2]))
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(folder / f"{labeled[0]}.jpg").save(folder / f"{labeled[0]}.jpg", exif=exif)
    few, copies, turned = run(own_shapes, tmp_path).warnings[:3]
    assert "2 images for validation" in few and "copies of" in copies and "mogrify -auto-orient" in turned
    assert f"{unlabeled[0]}.jpg" in copies and f"{validation[0]}.jpg" in copies and f"{labeled[0]}.jpg" in turned


def test_a_validation_set_without_a_label_is_an_error(own_shapes, tmp_path, command):
    for name in read_list(own_shapes / LISTS / "val.txt"):
        path = own_shapes / "SegmentationClassAug" / f"{name}.png"
        Image.fromarray(np.full(np.array(Image.open(path)).shape, 255, np.uint8)).save(path)
    assert [line for line in run(own_shapes, tmp_path).errors if "no pixel of these masks has a label" in line]
    status, _, errors = command("--state=2", "--dataset=shapes", f"--data-root={own_shapes}", "--train-set=8",
                                f"--output-dir={tmp_path}", "--backbone=small", "--weights=none")
    assert status == 2 and "no pixel of these masks has a label" in errors and len(errors.splitlines()) == 1


def test_city_layout_resizes_images_of_any_size(city_root, tmp_path):
    lists = {"train": listed(city_root, city_root / "data_lists" / "train.txt", dataset="city"),
             "validation": listed(city_root, city_root / "data_lists" / "val.txt", VALIDATION, "city")}
    report = run(city_root, tmp_path, lists, dataset="city")  # images of 64 x 128, test size 65 x 65
    assert report.errors == [] and report.table[1].startswith("validation: 6 images, 128 pixels wide and 64 high")


def test_the_report_is_printed(capsys):
    print_report(Report([f"e{number}" for number in range(60)], ["w\nw"], ["table"], ["disk"]), limit=50)
    out, err = capsys.readouterr()
    assert out == "table\ndisk\n"
    assert err.splitlines() == [f"error: e{number}" for number in range(50)] + ["error: and 10 more", "warning: w w"]


# --- the estimates --------------------------------------------------------------------------------------------------


def test_memory_of_resnet101():
    voc = load_spec("voc")
    work = Workload("runs", mixed_precision=True, batch_size=8)
    training, labeling = memory_bytes(voc, work)
    assert 3e9 < training < 12e9 and 0.5e9 < labeling < training
    assert memory_bytes(voc, dataclasses.replace(work, batch_size=12))[0] > training
    assert memory_bytes(voc, dataclasses.replace(work, mixed_precision=False))[0] > 1.5 * training
    assert memory_bytes(voc, dataclasses.replace(work, batch_size_labeling=16))[1] > labeling
    assert memory_bytes(voc, dataclasses.replace(work, batch_size=0))[0] is None


@pytest.mark.parametrize("free, errors", [(10e9, 0), (3e9, 1), (0.1e9, 2)])
def test_memory_is_judged_on_a_gpu(shapes_root, tmp_path, monkeypatch, free, errors):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free), int(80e9)))
    work = Workload(tmp_path, "cuda:0", mixed_precision=True, batch_size=8, batch_size_labeling=1)
    found = run(shapes_root, tmp_path, work=work, crop=(321, 321)).errors
    assert len(found) == errors and all("GPU memory, but cuda:0 has" in line for line in found)


def test_disk_by_hand():
    """Two 80 x 160 images, 8 classes: 11 x 21 points of 16 bytes, and 0.6 bytes a pixel + 8 KiB, an image."""
    logits, labels = 2 * 11 * 21 * 16, 2 * (0.6 * 80 * 160 + 8192)
    sizes = [(80, 160)] * 2
    pseudo, checkpoints = disk_bytes(SPEC, SMALL, sizes)  # two arms, five rounds
    assert pseudo == int(2 * (5 * labels + 2 * logits))
    assert disk_bytes(SPEC, dataclasses.replace(SMALL, rounds=0), sizes) == (0, checkpoints // 18 * 8)  # 12 + 6, 2 + 6
    voc = disk_bytes(load_spec("voc"), Workload("runs"), [])[1]
    assert voc == pytest.approx(18 * 4 * 44.1e6, rel=0.01)  # ResNet-101 with its head has 44 million parameters


def test_a_disk_that_is_too_small(shapes_root, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: types.SimpleNamespace(free=1000))
    errors = run(shapes_root, tmp_path).errors
    assert len(errors) == 1 and str(tmp_path) in errors[0] and "make room" in errors[0]
    (tmp_path / "runs").mkdir()
    with open(tmp_path / "runs" / "written.pt", "wb") as file:  # a run that goes on needs only the rest
        file.truncate(sum(disk_bytes(SPEC, SMALL, [(64, 64)] * 16)))
    assert run(shapes_root, tmp_path).errors == []
