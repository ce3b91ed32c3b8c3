"""tools/predict.py through its command line: what it writes, how it names it, and what it refuses."""

import dataclasses
import json
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from data.specs import load_spec
from models import deeplab_v2
from models.description import Description
from models.deeplab import COCO, IMAGENET
from predict import load
from predict.pictures import write_panel
from tests.conftest import REPOSITORY
from tests.test_stages import first_weights
from tools import predict
from utils.errors import UserError

SHAPES = load_spec("shapes")


@pytest.fixture
def run(capsys):
    """Run the command; returns (exit status, standard output, lines of standard error)."""
    def start(*words):
        status = 0
        try:
            predict.main([str(word) for word in words])
        except SystemExit as stop:
            status = stop.code or 0
        captured = capsys.readouterr()
        return status, captured.out, captured.err.splitlines()
    return start


def checkpoint(path, spec=SHAPES, seed=0, form=IMAGENET, **changes):
    """A checkpoint as training writes them; returns its network."""
    torch.manual_seed(seed)
    network = deeplab_v2(spec.num_classes, "small").eval()
    with torch.no_grad():
        for parameter in network.classifier.parameters():
            parameter *= 20  # surer than a network that was never trained
    described = Description(spec.name, spec.class_names, spec.palette, spec.background, spec.ignore, "small", 2, form,
                            spec.test_size, spec.test_by)
    values = {**dataclasses.replace(described, **changes).values()}
    torch.save({"model": network.state_dict(), "optimizer": None, "lr_scheduler": None, **values}, path)
    return network


def photo(path, size=(40, 50), seed=0):
    """A random image in the file ``path``; returns it as it decodes, BGR."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))
    return cv2.imread(str(path))


def probabilities(network, form, image):
    """(C, H, W): the plain way, with black at the bottom and right up to a multiple of 8, plus 1."""
    height, width = image.shape[:2]
    canvas = np.zeros(tuple(max(9, -(-(side - 1) // 8) * 8 + 1) for side in (height, width)) + (3,), np.uint8)
    canvas[:height, :width] = image
    with torch.inference_mode():
        maps = network(form.normalize(torch.from_numpy(canvas[None])))
        logits = torch.nn.functional.interpolate(maps, canvas.shape[:2], mode="bilinear", align_corners=True)
    return logits[0, :, :height, :width].softmax(dim=0)


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# --- what is written --------------------------------------------------------------------------------------------------


def test_labels_overlays_and_confidences_of_a_folder(run, tmp_path):
    network = checkpoint(tmp_path / "net.pt")
    sizes = {"a": (40, 50), "b": (1, 1), "c": (3, 300), "d": (130, 120)}  # d is larger than the test size
    images = {name: photo(tmp_path / "in" / f"{name}.png", size, seed=len(name)) for name, size in sizes.items()}
    (tmp_path / "in" / "notes.txt").write_text("no image")
    out = tmp_path / "out"
    status, printed, errors = run("--checkpoint", tmp_path / "net.pt", "--confidence", "--out", out, tmp_path / "in")
    assert (status, errors) == (0, []) and "undivided, at original resolution, one scale, no flip" in printed
    assert files(out) == [*(f"confidence/{name}.png" for name in sizes), *(f"labels/{name}.png" for name in sizes),
                          *(f"overlays/{name}.jpg" for name in sizes), "predictions.json"]
    for name, image in images.items():
        expected = probabilities(network, IMAGENET, image)
        label, confidence = (Image.open(out / kind / f"{name}.png") for kind in ("labels", "confidence"))
        assert label.mode == "P" and confidence.mode == "L" and label.size == confidence.size == image.shape[1::-1]
        assert label.getpalette()[: 3 * 8] == [channel for color in SHAPES.palette for channel in color]
        np.testing.assert_array_equal(np.array(label), expected.argmax(dim=0).numpy())
        np.testing.assert_allclose(np.array(confidence), 255 * expected.amax(dim=0).numpy(), atol=0.51)
        assert Image.open(out / "overlays" / f"{name}.jpg").size == label.size
    said = json.loads((out / "predictions.json").read_text())
    assert said["predicted"] == 4 and said["not_predicted"] == [] and said["class_names"] == list(SHAPES.class_names)
    assert len(said["networks"][0]["sha256"]) == 64 and said["protocol"]["kind"] == "original"


def test_overlays_are_blended_and_leave_the_background(run, tmp_path):
    checkpoint(tmp_path / "net.pt", background=4)
    image = photo(tmp_path / "a.png")
    status, _, errors = run("--checkpoint", tmp_path / "net.pt", "--out", tmp_path / "out", "--overlay-format=png",
                            "--alpha=0.25", tmp_path / "a.png")
    assert status == 0, errors
    label = np.array(Image.open(tmp_path / "out/labels/a.png"))
    shown = cv2.imread(str(tmp_path / "out/overlays/a.png")).astype(float)
    colors = np.array(SHAPES.palette, float)[:, ::-1]
    expected = np.where(label[..., None] == 4, image, 0.25 * colors[label] + 0.75 * image)
    assert 0 < (label == 4).mean() < 1
    np.testing.assert_allclose(shown, expected, atol=0.51)


def test_arms_of_two_input_formats_decide_together(run, tmp_path):
    networks = [(checkpoint(tmp_path / "c.pt", seed=1, form=COCO), COCO),
                (checkpoint(tmp_path / "i.pt", seed=2), IMAGENET)]
    image = photo(tmp_path / "a.png")
    status, _, errors = run("--checkpoint", tmp_path / "c.pt", "--checkpoint", tmp_path / "i.pt", "--no-overlays",
                            "--out", tmp_path / "out", tmp_path / "a.png")
    assert (status, errors) == (0, [])
    both = sum(probabilities(network, form, image) for network, form in networks)
    label = np.array(Image.open(tmp_path / "out/labels/a.png"))
    np.testing.assert_array_equal(label, both.argmax(dim=0).numpy())
    assert files(tmp_path / "out") == ["labels/a.png", "predictions.json"]
    forms = [entry["input_format"] for entry in json.loads((tmp_path / "out/predictions.json").read_text())["networks"]]
    assert forms == ["coco", "imagenet"]


@pytest.mark.parametrize("words, said", [
    (["--protocol=papers"], "zero-padded to 113 x 113, one scale, no flip (the papers')"),
    (["--protocol", "papers", "--flip"], "zero-padded to 113 x 113, one scale, flip"),
    (["--scales", "0.75", "1", "1.25", "--flip"], "scales 0.75, 1, 1.25, flip"),
    (["--protocol=sliding", "--window", "32", "40", "--stride=0.5", "--scales=0.5,1"],
     "sliding windows of 33 x 41, 0.5 of it apart, scales 0.5, 1, no flip"),
    (["--protocol=sliding"], "sliding windows of 33 x 41")])
def test_every_protocol_gives_labels_of_the_images_size(run, tmp_path, words, said):
    checkpoint(tmp_path / "net.pt", facts={"recipe": {"crop": [33, 41]}})
    photo(tmp_path / "a.png", (70, 90))
    status, printed, errors = run("--checkpoint", tmp_path / "net.pt", "--out", tmp_path / "out", *words,
                                  tmp_path / "a.png")
    assert (status, errors) == (0, []) and said in printed
    assert Image.open(tmp_path / "out/labels/a.png").size == (90, 70)


def test_what_is_too_long_for_jpeg_gets_another_overlay(run, tmp_path):
    checkpoint(tmp_path / "net.pt")
    photo(tmp_path / "a.png", (1, 65501))
    status, _, errors = run("--checkpoint", tmp_path / "net.pt", "--out", tmp_path / "out", tmp_path / "a.png")
    assert (status, errors) == (0, []) and files(tmp_path / "out/overlays") == ["a.png"]


def test_images_of_any_kind(run, tmp_path):
    network = checkpoint(tmp_path / "net.pt")
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (20, 30), np.uint8)
    cv2.imwrite(str(tmp_path / "deep.png"), rng.integers(0, 65536, (20, 30, 3)).astype(np.uint16))
    for name in ("grey.png", "grey.tif", "grey.bmp"):
        cv2.imwrite(str(tmp_path / name), grey)
    Image.fromarray(rng.integers(0, 256, (20, 30, 4), np.uint8), "RGBA").save(tmp_path / "clear.png")
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / "web.WEBP")
    status, _, errors = run("--checkpoint", tmp_path / "net.pt", "--out", tmp_path / "out", tmp_path)
    assert (status, errors) == (0, [])
    assert files(tmp_path / "out/labels") == ["clear.png", "deep.png", "grey_bmp.png", "grey_png.png", "grey_tif.png",
                                              "web.png"]
    expected = probabilities(network, IMAGENET, np.repeat(grey[..., None], 3, axis=-1)).argmax(dim=0)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "out/labels/grey_tif.png")), expected)


def test_images_that_viewers_turn_are_predicted_as_they_are_stored_with_a_note(run, tmp_path):
    checkpoint(tmp_path / "net.pt")
    tag = Image.Exif()
    tag[0x0112] = 6
    for name, exif in (("turned", tag), ("not", Image.Exif())):
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / f"{name}.jpg", exif=exif)
    status, _, errors = run("--checkpoint", tmp_path / "net.pt", "--out", tmp_path / "out", tmp_path)
    assert status == 0 and len(errors) == 1 and "1 of the images" in errors[0] and "turned.jpg" in errors[0]
    assert Image.open(tmp_path / "out/labels/turned.png").size == (30, 20)


def test_the_panel_shows_the_first_images_with_the_whole_legend(run, tmp_path):
    voc = load_spec("voc")
    checkpoint(tmp_path / "net.pt", voc)
    for name, size in (("a", (3, 900)), ("b", (70, 40)), ("c", (9, 9))):
        photo(tmp_path / "in" / f"{name}.png", size)
    status, _, errors = run("--checkpoint", tmp_path / "net.pt", "--out", tmp_path / "out", "--panel=2",
                            "--no-overlays", tmp_path / "in")
    assert (status, errors) == (0, [])
    assert files(tmp_path / "out") == ["labels/a.png", "labels/b.png", "labels/c.png", "panel.png", "predictions.json"]
    panel = np.array(Image.open(tmp_path / "out/panel.png").convert("RGB"))
    below = panel[int(130 * 1.75 * (1 / 8 + 70 / 40)) :]
    legend = {tuple(color) for color in below.reshape(-1, 3).tolist()}
    assert set(map(tuple, voc.palette)) <= legend
    for edge in (panel[0], panel[-1], panel[:, 0], panel[:, -1]):
        assert (edge == 255).all()  # nothing is cut off


def test_pictures_of_a_panel_leave_no_gaps(tmp_path):
    black = np.zeros((40, 60, 3), np.uint8)
    write_panel(tmp_path / "panel.png", {"": [black] * 3, " ": [black] * 3}, ["a name of a class"], [(0, 200, 0)])
    dark = (np.array(Image.open(tmp_path / "panel.png").convert("RGB")) < 20).all(axis=-1)
    rows, columns = (np.flatnonzero(dark.mean(axis=axis) > 0.3) for axis in (1, 0))
    assert dark[rows[0] : rows[-1], columns[0] : columns[-1]].mean() > 0.92


def test_ids_of_cityscapes(run, tmp_path):
    city = load_spec("city")
    network = checkpoint(tmp_path / "net.pt", city, test_by="pad")
    image = photo(tmp_path / "a.png")
    status, _, errors = run("--checkpoint", tmp_path / "net.pt", "--ids", "--out", tmp_path / "out", tmp_path / "a.png")
    assert status == 0, errors
    label = Image.open(tmp_path / "out/labels/a.png")
    ids = np.array([7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33])
    np.testing.assert_array_equal(np.array(label), ids[probabilities(network, IMAGENET, image).argmax(dim=0).numpy()])
    assert label.getpalette()[3 * 26 : 3 * 27] == [0, 0, 142]  # car


def test_ids_that_no_png_can_hold(run, tmp_path):
    (tmp_path / "deep.yaml").write_text("""
name: deep
classes: [{name: ground, color: [0, 0, 0], ids: [3]}, {name: tree, color: [0, 90, 0], ids: [300]}]
images: "{name}.png"
labels: "{name}_mask.png"
crop: [33, 33]
test_size: [65, 65]
""")
    checkpoint(tmp_path / "net.pt", load_spec(tmp_path / "deep.yaml"))
    photo(tmp_path / "a.png")
    status, _, errors = run("--checkpoint", tmp_path / "net.pt", "--ids", "--dataset", tmp_path / "deep.yaml", "--out",
                            tmp_path / "out", tmp_path / "a.png")
    assert status == 2 and len(errors) == 1 and "'tree'" in errors[0] and not (tmp_path / "out").exists()


def test_networks_of_resized_datasets_see_resized_images(run, tmp_path):
    spec = dataclasses.replace(load_spec("city"), test_size=(33, 65))
    network = checkpoint(tmp_path / "net.pt", spec)
    photo(tmp_path / "a.png", (66, 130))
    status, printed, errors = run("--checkpoint", tmp_path / "net.pt", "--out", tmp_path / "out", tmp_path / "a.png")
    assert status == 0 and "resized to 33 x 65, undivided" in printed, errors
    small = cv2.resize(cv2.imread(str(tmp_path / "a.png")), (65, 33), interpolation=cv2.INTER_LINEAR)
    inner = probabilities(network, IMAGENET, small).argmax(dim=0).numpy()
    label = np.array(Image.open(tmp_path / "out/labels/a.png"))
    assert label.shape == (66, 130)
    assert (label.reshape(33, 2, 65, 2) == inner[:, None, :, None]).mean() > 0.8


# --- from Python ------------------------------------------------------------------------------------------------------


def test_three_lines_of_python(tmp_path):
    networks = [(checkpoint(tmp_path / "c.pt", seed=1, form=COCO), COCO),
                (checkpoint(tmp_path / "i.pt", seed=2), IMAGENET)]
    image = photo(tmp_path / "a.png")
    one, both = load(tmp_path / "c.pt"), load(tmp_path / "c.pt", tmp_path / "i.pt")
    assert one.names == SHAPES.class_names and one.palette == SHAPES.palette
    expected = [probabilities(network, form, image) for network, form in networks]
    rgb = np.ascontiguousarray(image[..., ::-1])
    for shown in (tmp_path / "a.png", str(tmp_path / "a.png"), rgb, Image.fromarray(rgb)):
        for network, said in ((one, expected[0]), (both, sum(expected) / 2)):
            classes, confidence = network.predict(shown)
            assert classes.dtype == np.uint8 and confidence.dtype == np.float32
            np.testing.assert_array_equal(classes, said.argmax(dim=0).numpy())
            np.testing.assert_allclose(confidence, said.amax(dim=0).numpy(), atol=1e-5)
    windows = load(tmp_path / "c.pt", protocol="sliding", window=(33, 33), flip=True).predict(rgb)
    assert [part.shape for part in windows] == [(40, 50)] * 2
    for wrong in (rgb / 255, rgb[..., 0], None, tmp_path / "gone.png"):
        with pytest.raises(UserError):
            one.predict(wrong)
    with pytest.raises(UserError, match=r"not an array \(40, 50\) of uint8$"):
        one.predict(rgb[..., 0])
    with pytest.raises(UserError, match="no network"):
        load()
    with pytest.raises(UserError, match="'slidng' is none of papers, original and sliding"):
        load(tmp_path / "c.pt", protocol="slidng")
    with pytest.raises(UserError, match="the image nope.png is missing$"):
        one.predict("nope.png")
    for shown, said in (({"scales": ()}, "--scales"), ({"scales": (-1,)}, "--scales"), ({"window": (9, 9)}, "sliding"),
                        ({"protocol": "sliding", "window": 33}, "window must be"),
                        ({"protocol": "sliding", "stride": 5}, "--stride"), ({"test_size": (33,)}, "test_size must be")):
        with pytest.raises(UserError, match=said):
            load(tmp_path / "c.pt", **shown)


def test_pil_images_of_many_bits(tmp_path):
    checkpoint(tmp_path / "net.pt")
    network = load(tmp_path / "net.pt")
    cv2.imwrite(str(tmp_path / "deep.png"), np.random.default_rng(0).integers(0, 65536, (20, 30)).astype(np.uint16))
    opened = Image.open(tmp_path / "deep.png")
    for one, other in zip(network.predict(opened), network.predict(tmp_path / "deep.png")):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(UserError, match="32 bits"):
        network.predict(Image.new("F", (30, 20)))
    (tmp_path / "cut.png").write_bytes((tmp_path / "deep.png").read_bytes()[:300])
    with pytest.raises(UserError, match="does not decode"):
        network.predict(Image.open(tmp_path / "cut.png"))


# --- names ------------------------------------------------------------------------------------------------------------


def test_names_keep_their_folders_and_never_meet(run, tmp_path, monkeypatch):
    checkpoint(tmp_path / "net.pt")
    for name in ("in/a.png", "in/a.jpg", "in/deep/b.png", "in/deep/c.png", "other/b.png", "in/.hidden.png"):
        photo(tmp_path / name, (9, 9))
    monkeypatch.chdir(tmp_path)

    def labels(*words):
        shutil.rmtree("out", ignore_errors=True)
        status, _, errors = run("--checkpoint", "net.pt", "--no-overlays", "--out", "out", *words)
        assert status == 0, errors
        return files(tmp_path / "out" / "labels")

    assert labels("in") == ["a_jpg.png", "a_png.png"]
    assert labels("in", "--recursive") == ["a_jpg.png", "a_png.png", "deep/b.png", "deep/c.png"]
    assert labels("in/**/*.png") == ["a.png", "deep/b.png", "deep/c.png"]
    assert labels("in/deep/?.png", "other") == ["c.png", "deep/b.png", "other/b.png"]
    assert labels("in/a.png", "in/../in/a.png", "in/a.p*g") == ["a.png"]  # one file, named three times
    (tmp_path / "list.txt").write_text("\n in/deep/b.png \n\nother\n")
    assert labels("@list.txt") == ["deep/b.png", "other/b.png"]
    assert labels("in/a.png", "--recursive", ".") == [
        "a.png", "in/a.png", "in/deep/b.png", "in/deep/c.png", "other/b.png"]  # in/a.jpg is the other in/a
    for folder in ("one", "two"):
        photo(tmp_path / folder / "same/e.png", (9, 9))
    assert labels("one/same", "two/same/e.png") == ["one/same/e_png.png", "two/same/e_png.png"]


def test_the_same_command_again_replaces_whole_files_and_does_not_eat_its_own(run, tmp_path):
    checkpoint(tmp_path / "net.pt")
    photo(tmp_path / "in/a.png")
    words = ["--checkpoint", tmp_path / "net.pt", "--out", tmp_path / "in", "--recursive", "--confidence",
             tmp_path / "in"]
    assert run(*words)[0] == 0
    before = {name: (tmp_path / "in" / name).read_bytes() for name in files(tmp_path / "in")}
    (tmp_path / "in/labels/a.png").write_bytes(b"cut off")
    assert run(*words)[0] == 0
    assert {name: (tmp_path / "in" / name).read_bytes() for name in files(tmp_path / "in")} == before
    assert sorted(before) == ["a.png", "confidence/a.png", "labels/a.png", "overlays/a.jpg", "predictions.json"]
    status, _, errors = run(*words[:4], tmp_path / "in/labels/a.png")
    assert status == 2 and "would be replaced" in errors[0]


# --- videos -----------------------------------------------------------------------------------------------------------


def film(path, frames=5, size=(33, 41)):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, size[::-1])
    for number in range(frames):
        writer.write(np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8))
    writer.release()


def test_videos_give_a_label_a_frame_and_a_video(run, tmp_path):
    checkpoint(tmp_path / "net.pt")
    film(tmp_path / "a.avi", 5, (32, 40))
    photo(tmp_path / "b.png")
    status, _, errors = run("--checkpoint", tmp_path / "net.pt", "--out", tmp_path / "out", tmp_path / "a.avi",
                            tmp_path / "b.png")
    assert (status, errors) == (0, [])
    assert files(tmp_path / "out/labels") == [*(f"a/{number:06}.png" for number in range(1, 6)), "b.png"]
    assert Image.open(tmp_path / "out/labels/a/000005.png").size == (40, 32)
    made = next((tmp_path / "out/overlays").glob("a.*"))
    capture = cv2.VideoCapture(str(made))
    assert (capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)) == (5, 10)
    assert capture.read()[1].shape == (32, 40, 3)


def test_damaged_videos_are_named_and_give_what_they_have(run, tmp_path):
    checkpoint(tmp_path / "net.pt")
    film(tmp_path / "cut.avi", 20)
    content = (tmp_path / "cut.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: len(content) // 2])
    (tmp_path / "none.mp4").write_text("no video")
    status, _, errors = run("--checkpoint", tmp_path / "net.pt", "--out", tmp_path / "out", tmp_path / "cut.avi",
                            tmp_path / "none.mp4")
    assert status == 1 and "of its 20 frames decode" in errors[0] and "none.mp4" in errors[1]
    assert 1 < len(files(tmp_path / "out/labels/cut")) < 20


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_images_that_cannot_be_read_are_named_at_the_end(run, tmp_path):
    checkpoint(tmp_path / "net.pt")
    for number in range(6):
        photo(tmp_path / f"in/{number}.jpg", seed=number)
    (tmp_path / "in/1.jpg").write_bytes((tmp_path / "in/1.jpg").read_bytes()[:-300])
    (tmp_path / "in/2.jpg").write_text("text")
    (tmp_path / "in/3.jpg").write_bytes(b"")
    status, printed, errors = run("--checkpoint", tmp_path / "net.pt", "--out", tmp_path / "out", tmp_path / "in",
                                  tmp_path / "gone.png")
    assert status == 1 and "3 images predicted" in printed
    assert len(errors) == 5 and all(line.startswith("error: ") for line in errors)
    for name, line in zip(("1.jpg", "2.jpg", "3.jpg", "gone.png", "4 of the inputs"), errors):
        assert name in line
    assert files(tmp_path / "out/labels") == ["0.png", "4.png", "5.png"]
    assert len(json.loads((tmp_path / "out/predictions.json").read_text())["not_predicted"]) == 4
    status, printed, errors = run("--checkpoint", tmp_path / "net.pt", "--out", tmp_path / "out", "--protocol=papers",
                                  "--test-size", "39", "60", "--no-overlays", tmp_path / "in/0.jpg")
    assert status == 1 and "larger than the test size" in errors[0] and "nothing was predicted" in errors[-1]


def test_commands_that_are_wrong(run, tmp_path):
    checkpoint(tmp_path / "net.pt")
    checkpoint(tmp_path / "city.pt", load_spec("city"))
    other = ("sky", *SHAPES.class_names[1:])
    checkpoint(tmp_path / "other.pt", class_names=other, name="mine")
    first_weights(tmp_path / "old.pt", 8)
    photo(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    net, image = ("--checkpoint", tmp_path / "net.pt"), tmp_path / "a.png"
    for words, parts in (
            ([image], ["--checkpoint"]),
            ([*net], ["nothing to predict"]),
            (["--checkpoint", tmp_path / "gone.pt", image], ["gone.pt", "missing"]),
            (["--checkpoint", image, image], ["a.png", "no checkpoint"]),
            ([*net, "--dataset=voc", image], ["net.pt", "8 classes", "21"]),
            (["--checkpoint", tmp_path / "other.pt", "--dataset=shapes", image], ["other.pt", "'sky'", "'background'"]),
            ([*net, "--checkpoint", tmp_path / "other.pt", image], ["net.pt", "other.pt", "different classes"]),
            ([*net, tmp_path / "city.pt", image], ["city.pt", "different classes"]),
            (["--checkpoint", tmp_path / "other.pt", "--ids", image], ["--ids", "--dataset"]),
            (["--checkpoint", tmp_path / "old.pt", "--protocol=papers", image], ["--protocol papers", "--test-size"]),
            ([*net, tmp_path / "empty"], ["empty", "no image"]),
            ([*net, tmp_path / "x*.png"], ["x*.png", "no image"]),
            ([*net, "--scales", "0", image], ["--scales"]), ([*net, "--scales", "1,1", image], ["each scale once"]),
            ([*net, "--stride=1.5", image], ["--stride"]), ([*net, "--alpha=nan", image], ["--alpha"]),
            ([*net, "--batch-size=0", image], ["--batch-size"]), ([*net, "--device=tpu9", image], ["--device"])):
        status, _, errors = run("--out", tmp_path / "out", *words)
        assert status == 2 and errors[-1].startswith("error: ") and "Traceback" not in "".join(errors), (words, errors)
        assert all(part in errors[-1] for part in parts), (words, errors)
        assert not (tmp_path / "out").exists(), words
    status, _, errors = run("--out", tmp_path / "file", *net, image)
    assert status == 2 and len(errors) == 1 and str(tmp_path / "file") in errors[0]


def test_old_checkpoints_get_their_names_and_colours_from_the_spec(run, tmp_path):
    first_weights(tmp_path / "old.pt", 8, sureness=20)
    photo(tmp_path / "a.png")
    status, printed, errors = run("--checkpoint", tmp_path / "old.pt", "--out", tmp_path / "out", tmp_path / "a.png")
    assert status == 0 and len(errors) == 1 and errors[0].startswith("note: ") and "--dataset" in errors[0]
    assert Image.open(tmp_path / "out/labels/a.png").getpalette()[3:6] == [128, 0, 0]  # VOC's first colour
    plain = np.array(Image.open(tmp_path / "out/labels/a.png"))
    status, _, errors = run("--checkpoint", tmp_path / "old.pt", "--out", tmp_path / "out", "--dataset=shapes",
                            "--aspp-branches=2", "--coco", tmp_path / "a.png")
    assert (status, errors) == (0, [])
    label = Image.open(tmp_path / "out/labels/a.png")
    assert label.getpalette()[3:6] == list(SHAPES.palette[1])
    assert (np.array(label) != plain).any()  # --coco changed what it sees
    status, _, errors = run("--coco-checkpoint", tmp_path / "old.pt", "--checkpoint", tmp_path / "old.pt", "--out",
                            tmp_path / "out", "--dataset=shapes", tmp_path / "a.png")
    networks = json.loads((tmp_path / "out/predictions.json").read_text())["networks"]
    assert status == 0 and [network["input_format"] for network in networks] == ["imagenet", "coco"]


def test_onnx_files_predict_what_their_networks_do(run, tmp_path):
    from tools import export
    checkpoint(tmp_path / "net.pt", form=COCO)
    export.main([str(tmp_path / "net.pt")])
    photo(tmp_path / "in/a.png")
    photo(tmp_path / "in/b.png", (1, 70))
    for name in ("net.pt", "net.onnx"):
        status, printed, errors = run("--checkpoint", tmp_path / name, "--out", tmp_path / name[4:], tmp_path / "in")
        assert (status, errors) == (0, []) and "8 classes" in printed
    for name in ("a", "b"):
        one, other = (Image.open(tmp_path / kind / "labels" / f"{name}.png") for kind in ("pt", "onnx"))
        assert (np.array(one) == np.array(other)).mean() >= 0.999 and one.getpalette() == other.getpalette()


def test_by_its_path_from_anywhere_and_help_without_torch(script, tmp_path):
    checkpoint(tmp_path / "net.pt")
    photo(tmp_path / "a.png")
    done = subprocess.run([sys.executable, REPOSITORY / "tools/predict.py", "a.png", "net.pt", "--out", "out"],
                          cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and files(tmp_path / "out/labels") == ["a.png"], done.stderr
    done = script("-X", "importtime", "-m", "tools.predict", "--help")
    assert done.returncode == 0 and "--checkpoint FILE" in done.stdout
    assert "torch" not in {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
