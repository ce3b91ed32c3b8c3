"""A dataset of one's own through every stage: masks in colours and of 16 bits, any suffix, unlabelled images apart."""

import json
import shlex

import cv2
import numpy as np
import pytest
from PIL import Image

import generate_splits
from data.lists import read_list
from data.specs import load_spec
from tests.conftest import REPOSITORY
from tests.test_launchers import start
from tests.test_stages import SMALL

SHAPES = load_spec("shapes")
SPEC = """name: own
classes:
{classes}
{more}
images: photos/{{name}}.*
labels: masks/{{name}}_m.*
unlabeled_images: pool/{{name}}.*
crop: [33, 33]
test_size: {size}
root: data
lists_root: .
lists: lists
"""


def own_dataset(folder, shapes_root, kind):
    """Eight labelled images, three for validation, and six in a pool whose names are those of labelled ones."""
    names = read_list(shapes_root / "ImageSets/Segmentation/trainaug.txt")
    for place in ("data/photos", "data/masks", "data/pool", "lists"):
        (folder / place).mkdir(parents=True)
    for number, name in enumerate(names[:17]):
        image = cv2.imread(str(shapes_root / f"JPEGImages/{name}.jpg"))
        suffix = ("JPG", "png", "tif", "bmp", "webp")[number % 5]
        if number >= 11:  # the pool
            cv2.imwrite(str(folder / f"data/pool/{number - 11}.{suffix}"), image)
            continue
        cv2.imwrite(str(folder / f"data/photos/{number}.{suffix}"), image)
        mask = np.array(Image.open(shapes_root / f"SegmentationClassAug/{name}.png"))
        if kind == "color":
            colors = np.array([*SHAPES.palette, *[(255, 255, 255)] * 248], np.uint8)
            Image.fromarray(colors[mask]).save(folder / f"data/masks/{number}_m.{('png', 'tif', 'bmp')[number % 3]}")
        else:
            suffix = ("png", "tif")[number % 2]
            cv2.imwrite(str(folder / f"data/masks/{number}_m.{suffix}"), mask.astype(np.uint16) * 257)
    ids = "" if kind == "color" else ", ids: [{}]"
    classes = "\n".join(f"  - {{name: {name}, color: {list(color)}{ids.format(257 * index)}}}"
                        for index, (name, color) in enumerate(zip(SHAPES.class_names, SHAPES.palette)))
    more = "masks: color\nignore_colors: [[255, 255, 255]]" if kind == "color" else "ignore: 65535\ntest_by: resize"
    (folder / "own.yaml").write_text(SPEC.format(classes=classes, more=more,
                                                 size="largest" if kind == "color" else "[57, 65]"))
    (folder / "lists/all_labeled_0.txt").write_text("\n".join(map(str, range(8))))
    (folder / "lists/val.txt").write_text("8\n9\n10\n")
    return folder / "own.yaml"


@pytest.mark.parametrize("kind", ["color", "16 bits"])
def test_every_stage(tmp_path, shapes_root, command, kind):
    spec = own_dataset(tmp_path / "own", shapes_root, kind)
    common = [f"--dataset={spec}", "--train-set=all", f"--output-dir={tmp_path}", "--backbone=small"]

    def stage(*words):
        status, out, errors = command(*common, *words)
        assert status == 0, errors
        return out

    out = stage("--check", "--weights=none")
    assert "labelled: 8 images" in out and "unlabelled: 6 images" in out and "validation: 3 images" in out
    assert all(name in out for name in SHAPES.class_names)
    stage("--state=2", "--exp-name=a", "--epochs=1", "--batch-size-labeled=4", "--weights=none")
    labeling = ["--labeling", "--continue-from=a.pt", f"--pseudo-dir={tmp_path / 'pseudo' / 'a'}"]
    assert "labelled 6 images" in stage(*labeling)
    pool = tmp_path / "own/data/pool"
    for name in range(6):
        label = np.array(Image.open(tmp_path / f"pseudo/a/labels/{name}.png"))
        size = cv2.imread(str(next(pool.glob(f"{name}.*")))).shape[:2]
        assert label.shape == (size if kind == "color" else (57, 65))  # of the pool's image, not of the labelled one
    mutual = ["--state=1", "--exp-name=b", "--continue-from=a.pt", labeling[-1], "--epochs=1", "--batch-size-pseudo=3"]
    assert "8 labelled and 6 pseudo-labelled images" in stage(*mutual)
    assert "already labelled: 6 images" in stage(*labeling) and "already finished" in stage(*mutual)
    assert "star" in stage("--state=3", "--continue-from=b.pt")
    (tmp_path / "own/lists/all_unlabeled_0.txt").write_text("3\n5\n")  # a list goes before the folder
    assert "unlabelled: 2 images" in stage("--check", "--weights=none")
    assert "labelled 2 images" in stage(*labeling)


def test_splits_keep_the_images_without_masks(tmp_path, shapes_root, called):
    spec, lists = own_dataset(tmp_path / "own", shapes_root, "color"), tmp_path / "own/lists"
    (lists / "trainaug.txt").write_text("0\n6\n7\n8\n")
    pool = [str(number) for number in range(6)]
    for apart in (pool, ["3", "x"]):  # the folder; then a list goes before it
        status, out, errors = called(generate_splits.main, "--dataset", spec, "--divisors", "2", "--ids", "1")
        assert status == 0 and f"{len(apart)} images without masks" in out, errors
        labeled, unlabeled = (read_list(lists / f"2_{kind}_0.txt") for kind in ("labeled", "unlabeled"))
        assert len(labeled) == 2 and sorted(unlabeled) == sorted({"0", "6", "7", "8", *apart} - ({*labeled} - {*apart}))
        assert read_list(lists / "1_labeled_0.txt") == read_list(lists / "0_unlabeled_0.txt")[:4]
        (lists / "all_unlabeled_0.txt").write_text("3\nx\n")


def test_check_names_what_is_wrong(tmp_path, shapes_root, command):
    spec = own_dataset(tmp_path / "own", shapes_root, "color")
    data = tmp_path / "own/data"
    mask = np.array(Image.open(data / "masks/4_m.tif"))
    mask[7, 9] = 1, 2, 3
    Image.fromarray(mask).save(data / "masks/4_m.tif")
    (data / "pool/1.tif").write_bytes(b"no image")
    (data / "photos/7.tif").unlink()
    status, out, errors = command("--check", f"--dataset={spec}", "--train-set=all", f"--output-dir={tmp_path}", *SMALL)
    assert status == 2 and "labelled: 8 images" in out
    for words in ("4_m.tif holds the colour [1, 2, 3] at x 9, y 7", "pool/1.tif does not decode", "photos/7.* is missing"):
        assert words in errors, errors
    assert len([line for line in errors.splitlines() if line.startswith("error: ")]) == 3
    (data / "photos/2.png").write_bytes((data / "photos/1.png").read_bytes())
    status, _, errors = command("--check", f"--dataset={spec}", "--train-set=all", f"--output-dir={tmp_path}", *SMALL)
    assert status == 2 and "2.png and 2.tif; remove one" in errors


def test_the_largest_image_counts(tmp_path, shapes_root):
    from dmt.session import Data
    spec = own_dataset(tmp_path / "own", shapes_root, "color")
    cv2.imwrite(str(tmp_path / "own/data/pool/wide.png"), np.zeros((58, 122, 3), np.uint8))
    (tmp_path / "own/data/pool/damaged.png").write_text("no image")
    assert Data(spec, None).spec.test_size == (65, 129)  # the largest generated images have 64 rows
    assert Data(spec, None, test_size=(70, 70)).spec.test_size == (70, 70)
    assert json.dumps(Data(spec, None).spec.test_size)


# --- the launcher -----------------------------------------------------------------------------------------------------


def commands(tmp_path, *arguments, **variables):
    spec = tmp_path / "weeds" / "dataset.yaml"
    spec.parent.mkdir(exist_ok=True)
    spec.write_text("")
    done = start("scripts/dmt_ple-own.sh", spec, *arguments, DRY_RUN="1", **variables)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert sum("tools/report.py" in line for line in lines) == len(variables.get("ratios", "1 2 3 4 5").split())
    return spec, [line for line in lines if "tools/report.py" not in line]


def test_the_launcher_of_own_data(tmp_path):
    from utils.options import parse_options
    spec, lines = commands(tmp_path)
    assert lines[0] == ["python", "dms_sample.py", f"--dataset={spec}", "--splits", "all", "--ids", "1"]
    stages = [parse_options(words[2:]) for words in lines[1:] if words[1] == "main.py"]
    assert len(stages) == 2 + 5 * 4 + 2 and lines[-1][-3:] == ["tools.summarize", "runs/weeds", "--exp=weeds"]
    assert [(stage.exp_name, stage.train_set, stage.lr, stage.seed) for stage in stages[:2]] == [
        ("weeds__p0--l", "all-l", 0.002, 1), ("weeds__p0--r", "all-r", 0.002, 2)]
    assert all(stage.train_set == "all" and stage.backbone is None and stage.weights is None
               for stage in stages[2:-2])
    assert stages[3].lr == 0.001 and stages[3].pseudo_dir == "runs/weeds/pseudo/weeds__p0--l"


def test_the_launcher_on_a_cpu_and_with_other_choices(tmp_path):
    _, lines = commands(tmp_path, backbone="small", halves="0", ratios="0.5", BASELINE="1", exp="e", LISTS_DIR="l")
    assert len(lines) == 3 + 4 + 2 + 1 and lines[0][1] == "main.py"
    assert all("--lists-dir=l" in words for words in lines[:-1])
    assert all({"--backbone=small", "--weights=none"} <= set(words) for words in lines[:3])  # checkpoints know the network
    assert [word for words in lines[:3] for word in words if word.startswith(("--exp", "--train-set", "--lr"))] == [
        f"--{text}" for arm in "blr" for text in (f"exp-name=e__p0--{arm}", "train-set=all", "lr=0.02")]
    _, lines = commands(tmp_path, coco_weights="coco.pt", MIXED_PRECISION="0")
    assert "--coco" in lines[1] and "--continue-from=coco.pt" in lines[1] and "--mixed-precision" not in lines[1]


def test_the_launcher_without_a_spec():
    for arguments in ((), ("nowhere.yaml",)):
        done = start("scripts/dmt_ple-own.sh", *arguments)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "tools.new_dataset" in done.stderr
    assert "datasets/weeds/dataset.yaml" in start("scripts/dmt_ple-own.sh", "--help").stdout
    assert (REPOSITORY / "scripts/dmt_ple-own.sh").stat().st_mode & 0o100
