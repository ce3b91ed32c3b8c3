"""docs/own_data.md, command by command, on smaller numbers: from two folders to predictions."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from data.lists import read_list
from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "docs" / "own_data.md"
SMALLER = {  # what stands on the page -> what is run here
    "--train 200 --val 100 --size 64 64": "--train 40 --val 3 --size 40 40",
    "shapes_0000[0-4]*.png": "shapes_0000[0-1]*.png",
    'ep0=100 ep=4 ratios="0.4 0.7 1.0" BASELINE=1 ep_b=170': 'ep0=1 ep=1 ratios="1.0" halves=0',
    "field__p3--l.pt": "field__p1--l.pt",
}
CODE = ("data", "dmt", "models", "predict", "prepare", "report", "scripts", "tools", "utils", "main.py", "jobs",
        "dms_sample.py", "generate_splits.py")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """The folder in which all commands of the page have run, and what they printed, one text a block."""
    folder = tmp_path_factory.mktemp("tutorial")
    for name in CODE:  # a copy: the launcher writes beside itself
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, folder / name)
    (folder / "bin").mkdir()
    (folder / "bin/python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (folder / "bin/python").chmod(0o755)
    environment = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "HOME": str(folder), "PYTHON": "python",
                   "CHECK": "0", "REPORT": "0",  # the check is a command of its own, before
                   "OMP_NUM_THREADS": "1"}
    text, printed = "\0".join(blocks("bash")), []
    for page, here in SMALLER.items():
        assert text.count(page) == 1, page
        text = text.replace(page, here)
    for block in text.split("\0"):
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", block], cwd=folder, env=environment,
                              capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        printed.append(done.stdout)
    return folder, printed


def test_the_page_has_the_steps_in_order():
    words = ["data.synthetic", "tools.new_dataset", "main.py --check", "dmt_ple-own.sh", "tools.predict"]
    assert [next(word for word in words if word in block) for block in blocks("bash")] == words


def test_a_spec_and_lists_are_made(followed):
    folder, printed = followed
    lists = folder / "datasets/field/lists"
    assert len(read_list(lists / "all_labeled_0.txt")) == 15 and len(read_list(lists / "val.txt")) == 4
    assert len(read_list(lists / "all_unlabeled_0.txt")) == 40 - 19 + 3
    assert "background   background" in printed[1] and "labelled: 15 images" in printed[2]


def test_two_arms_are_trained(followed):
    folder, printed = followed
    for name in ("p0--l", "p0--r", "p1--l", "p1--r"):
        assert (folder / f"runs/field/field__{name}.pt").is_file() and f"field__{name}" in printed[3]


def test_predictions_have_the_sizes_of_the_images_and_the_colours_of_the_spec(followed):
    folder, _ = followed
    images = sorted((folder / "field/more").iterdir())
    assert len(images) == 3
    for path in images:
        with Image.open(folder / f"predictions/labels/{path.stem}.png") as label, Image.open(path) as image:
            assert label.mode == "P" and label.size == image.size and np.array(label).max() < 8
            assert label.getpalette()[3:6] == [230, 25, 75]


def test_output_on_the_page_is_that_of_the_tools(followed):
    """The first words of the rows of each output on the page are printed here, too."""
    shown = blocks("text")
    assert len(shown) == 4
    for text, printed in zip(shown, followed[1][1:]):
        rows = {line.split()[0] for line in text.splitlines() if line[:1].isalpha()} - {"warning:", "..."}
        assert {row for row in rows if "__" not in row} <= set(printed.split()), text
