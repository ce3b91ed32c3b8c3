"""scripts/reproduce.sh: what DRY_RUN prints is every cell of the papers' tables; and a tiny cell, run and started again."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from report import tables
from utils.options import parse_options

ROOT = Path(__file__).resolve().parents[1]
SPLITS = {"voc-106": 100, "voc-50": 211, "voc-20": 530, "voc-8": 1322, "voc-full": 10582, "voc-sbd": 1464,
          "city-30": 100, "city-8": 371, "city-full": 2975}  # cell -> labelled images


def reproduce(*arguments, **variables):
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "PYTHON": "python", **variables}
    return subprocess.run([ROOT / "scripts/reproduce.sh", *arguments], cwd=ROOT, env=environment, capture_output=True,
                          text=True, timeout=300)


def dry(**variables):
    """(first line, {CELL-ID/METHOD: [options of its main.py calls]}, {the same: {(source, target) of cp}}, last line)."""
    done = reproduce(DRY_RUN="1", OUTPUT_DIR="r", **variables)
    assert (done.returncode, done.stderr) == (0, "")
    first, *lines, last = done.stdout.splitlines()
    stages, links, run = {}, {}, None
    for line in lines:
        words = shlex.split(line, comments=True)
        if line.startswith("# ---"):
            run = line.split()[2]
            stages[run], links[run] = [], set()
        elif words and words[0] == "cp":
            links[run].add(tuple(word.removeprefix("r/") for word in words[2:]))
        elif words and not words[1].endswith("tools/report.py"):
            stages[run].append(parse_options(words[2:]))
    return first, stages, links, last


@pytest.fixture(scope="module")
def everything():
    return dry()


def test_every_cell_has_its_runs_and_stages(everything):
    first, stages, _, last = everything
    counts = {run: len(found) for run, found in stages.items()}
    expected = {}
    for cell in SPLITS:
        for split_id in range(1 if cell == "voc-sbd" else 3):
            expected[f"{cell}-{split_id}/supervised"] = 1
            if not cell.endswith("full"):
                expected[f"{cell}-{split_id}/dmt"] = 22 if cell in ("voc-106", "voc-50") else 21  # c is shared
                expected[f"{cell}-{split_id}/ple"] = 22 if "city" in cell else 16  # or rounds 2 to 5
    assert counts == expected
    trainings = sum(not stage.labeling for found in stages.values() for stage in found)
    assert first.startswith(f"# {trainings} trainings of ") and " GPU hours" in first
    assert shlex.split(last) == ["env", "PYTHONPATH=.", "python", "-m", "tools.tables", *(f"r/{run}" for run in expected)]


# Round 0: epochs, learning rate, steps between validations; a round: the same and gamma; batches of round 1 and later.
VOC, CITY = ((4, 0.001, 500), 5, (1, 7), (1, 7)), ((10, 0.004, 300), 3, (2, 6), (2, 6))
PUBLISHED = {
    "voc-106": ((300, 0.002, 100), VOC), "voc-50": ((134, 0.002, 220), VOC), "voc-20": ((134, 0.002, 220), VOC),
    "voc-8": ((54, 0.002, 220), VOC), "voc-full": ((30, 0.002, 500), None),
    "voc-sbd": ((85, 0.002, 350), ((5, 0.001, 500), *VOC[1:])),
    "city-30": ((615, 0.004, 350), CITY), "city-8": ((170, 0.004, 350), CITY), "city-full": ((22, 0.004, 350), None)}
PLE = {**PUBLISHED, "city-30": ((1189, 0.004, 350), (*CITY[:3], (1, 7))),
       "city-8": ((329, 0.004, 350), (*CITY[:3], (1, 7)))}


@pytest.mark.parametrize("method", ["supervised", "dmt", "ple"])
def test_every_cell_of_the_tables_has_its_numbers(method):
    for run, stages in dry(METHODS=method, IDS="0")[1].items():
        cell = run.removesuffix(f"-0/{method}")
        zero, rounds = (PLE if method == "ple" else PUBLISHED)[cell]
        arms = "c" if method == "supervised" else "lr" if cell in ("voc-106", "voc-50") else "ci"
        trained = [stage for stage in stages if not stage.labeling]
        assert [(stage.exp_name[-5:], *recipe_of(stage)) for stage in trained[:len(arms)]] == [
            (f"p0--{arm}", 2, *zero, 0, (8,), 0 if cell == "voc-full" or cell == "city-full" else seed)
            for seed, arm in enumerate(arms, start=1)]
        if method == "supervised":
            assert len(stages) == 1
            continue
        numbers, gamma, first, later = rounds
        assert [(stage.exp_name[-5:], *recipe_of(stage)) for stage in trained[2:]] == [
            (f"p{number}--{arm}", 1, *numbers, gamma, first if number == 1 else later, seed)
            for number in range(1, 6) for seed, arm in enumerate("rl" if "l" in arms else "ci", start=1)]
        labelings = [stage for stage in stages if stage.labeling]
        assert [stage.label_ratio for stage in labelings] == [0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.8, 0.8, 1, 1]
        assert [bool(stage.oldfilename) for stage in labelings] == [False] * 2 + [method == "ple"] * 8
        assert {(stage.increment, stage.previous_statistics, stage.batch_size_labeling) for stage in labelings} == {
            (0.15, "running", 8)}


def recipe_of(stage):
    """(state, epochs, lr, steps between validations, gamma, batch sizes, seed) of a training."""
    assert stage.gamma1 == stage.gamma2 and stage.weight_decay == 0.0005 and stage.mixed_precision
    batches = (stage.batch_size_labeled, stage.batch_size_pseudo)[:3 - stage.state]
    return stage.state, stage.epochs, stage.lr, stage.val_num_steps, stage.gamma1, batches, stage.seed


def test_supervised_steps_stay_about_the_same():
    steps = {cell: PUBLISHED[cell][0][0] * -(-labeled // 8) for cell, labeled in SPLITS.items()}
    for first, second in (("voc-106", "voc-50"), ("voc-20", "voc-8"), ("city-30", "city-8"), ("city-full", "city-8")):
        assert steps[first] == pytest.approx(steps[second], rel=0.1)


def test_the_full_cell_of_id_0_is_the_oracle_of_the_papers(everything):
    for split_id in range(3):
        only, = everything[1][f"voc-full-{split_id}/supervised"]
        assert (only.train_set, only.sets_id, only.seed, only.val_num_steps, only.lr) == (
            "1", str(split_id), split_id, 500, 0.002)
    _, stages, _, _ = dry(CELLS="voc-sbd", METHODS="oracle")
    assert list(stages) == ["voc-full-0/supervised"]
    only, = stages["voc-full-0/supervised"]
    assert vars(only) == vars(everything[1]["voc-full-0/supervised"][0])


def test_methods_share_what_they_have_in_common(everything):
    _, stages, links, _ = everything
    exp = "voc-20-1"
    assert links[f"{exp}/dmt"] == {(f"{exp}/supervised/{exp}__p0--c{end}", f"{exp}/dmt/{exp}__p0--c{end}")
                                   for end in ("", ".pt")}
    from_dmt = [f"{exp}__p0--i", f"{exp}__p0--i.pt", *(name for arm in "ci" for name in (
        f"{exp}__p1--{arm}", f"{exp}__p1--{arm}.pt", f"pseudo/{exp}__p0--{arm}"))]
    assert links[f"{exp}/ple"] == {(f"{exp}/dmt/{name}", f"{exp}/ple/{name}") for name in from_dmt} | {
        (f"{exp}/supervised/{exp}__p0--c{end}", f"{exp}/ple/{exp}__p0--c{end}") for end in ("", ".pt")}
    city = "city-8-1"  # where DMT+PLE has another recipe
    assert len(links[f"{city}/dmt"]) == 2 and links[f"{city}/ple"] == set()
    assert links["voc-50-2/dmt"] == set()  # its arms l and r do not see the whole split in round 0
    shared, = stages[f"{exp}/supervised"]
    own = next(stage for stage in dry(CELLS="voc-20", IDS="1", METHODS="dmt")[1][f"{exp}/dmt"] if stage.coco)
    assert {**vars(own), "output_dir": shared.output_dir} == vars(shared)  # so the launcher takes it for finished


def test_selection_and_numbers():
    first, stages, _, _ = dry(CELLS="city-8 voc-106", IDS="2", METHODS="ple supervised", ep="3",
                              ep0_ple_city_8="200", SECONDS_PER_STEP="3600")
    assert list(stages) == ["city-8-2/supervised", "city-8-2/ple", "voc-106-2/supervised", "voc-106-2/ple"]
    assert [len(found) for found in stages.values()] == [1, 22, 1, 22]  # nothing to share
    assert {stage.epochs for stage in stages["city-8-2/ple"] if not stage.labeling} == {200, 3}
    # City: 371 labels, 2604 others; VOC: 100 labels, halves of 80, 10482 others
    steps = (170 + 2 * 200) * 47 + 3 * (2 * 434 + 8 * 372) + 300 * (13 + 10 + 10) + 3 * 10 * 1498
    assert f"# 26 trainings of {steps} steps in all and 20 labellings: about {steps}.0 GPU hours" in first


@pytest.mark.parametrize("variables, words", [
    ({"CELLS": "voc-8 voc-9"}, ("voc-9", "voc-106")), ({"IDS": "0 3"}, ("split id '3'",)), ({"IDS": " "}, ("split id",)),
    ({"METHODS": "dmt cbst"}, ("cbst", "supervised dmt ple oracle")), ({"DATA_ROOT": "/data"}, ("VOC_ROOT",)),
    ({"CELLS": "voc-full", "METHODS": "dmt"}, ("nothing",))])
def test_unknown_names_are_one_line(variables, words):
    done = reproduce(DRY_RUN="1", **variables)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
    assert all(word in done.stderr for word in words) and "main.py" not in done.stdout


def test_help_names_every_number_once():
    shown = reproduce("--help").stdout
    names = re.findall(r"^  (\w+)=", shown, re.MULTILINE)
    assert {"CELLS", "IDS", "METHODS", "ep0_city_8", "DRY_RUN", "OUTPUT_DIR"} <= set(names)
    assert len(names) == len(set(names))


def test_a_tiny_cell_runs_and_goes_on(shapes_root, tmp_path):
    variables = {
        "CELLS": "voc-8", "IDS": "1", "METHODS": "supervised", "VOC_ROOT": str(shapes_root), "CHECK": "0",
        "OUTPUT_DIR": str(tmp_path), "PYTHON": sys.executable, "coco_weights": "", "MIXED_PRECISION": "0",
        "ep0_voc_8": "1", "ESTIMATED": "1", "OMP_NUM_THREADS": "1",
        "EXTRA": "--backbone=small --weights=none --workers=0 --crop-size 33 33 --test-size 65 65 --on-collapse=warn"}
    done = reproduce(**variables)
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("| voc | 8 | supervised |"))
    assert " 67.37 |" in row  # recognised as the cell of the published table
    stage = tmp_path / "voc-8-1" / "supervised" / "voc-8-1__p0--c"
    assert (stage / "result.json").is_file() and stage.with_suffix(".pt").is_file()
    # Where the rounds come later, they start from it; no network is needed to see what is left:
    left = reproduce(**{**variables, "METHODS": "dmt", "DRY_RUN": "1", "ratios": "0.5"}).stdout
    assert f"cp -al {stage}.pt " in left and "--exp-name=voc-8-1__p0--c" not in left
    assert f" --baseline={tmp_path}/voc-8-1/supervised --arms c i" in left
    other = reproduce(**{**variables, "ep": "7"})
    assert other.returncode == 2 and "other numbers" in other.stderr and other.stderr.count("\n") == 1


def test_a_baseline_of_its_own_is_not_repeated_with_other_arms_or_the_recipe_of_ple():
    def entry(method, *arms, epochs=170, enhanced=False):
        return {"dataset": "voc", "split": "8", "method": method, "arms": arms, "run": "run", "parent": "voc-8-1",
                "split_id": "1", "seeds": (1,) * len(arms), "enhanced": enhanced,
                "recipe": {f"round 0 of arm {arm}": {"epochs": epochs} for arm in arms},
                "identity": frozenset((arm, f"digest {epochs}", 0.5, "1", 1) for arm in arms)}

    alone, both, rounds = entry("supervised", "c"), entry("supervised", "c", "i"), entry("DMT", "c", "i")
    assert list(tables.group(pd.DataFrame([both, rounds, alone])).arms) == [("c",), ("c", "i")]
    assert list(tables.group(pd.DataFrame([both, rounds])).method) == ["supervised", "DMT"]
    of_ple = entry("supervised", "c", "i", epochs=329, enhanced=True)
    for entries, left in (([of_ple, both], [both]), ([both, of_ple], [both]), ([of_ple, alone], [alone]),
                          ([of_ple], [of_ple])):
        assert list(tables.group(pd.DataFrame(entries)).identity) == [one["identity"] for one in left]
