"""scripts/reproduce.sh: what DRY_RUN prints is every cell of the papers' tables; and a tiny cell, run and started again."""

import functools
import shlex
import sys

import pandas as pd
import pytest

from dmt.plan import Plan
from report import tables
from tests.test_launchers import start
from utils.options import parse_options

SPLITS = {"voc-106": 100, "voc-50": 211, "voc-20": 530, "voc-8": 1322, "voc-full": 10582, "voc-sbd": 1464,
          "city-30": 100, "city-8": 371, "city-full": 2975}  # cell -> labelled images


METHODS = ("supervised", "dmt", "ple")
reproduce = functools.partial(start, "scripts/reproduce.sh")


def dry(**variables):
    """({CELL-ID/METHOD: [options of its main.py calls]}, last line)."""
    done = reproduce(DRY_RUN="1", OUTPUT_DIR="r", **variables)
    assert (done.returncode, done.stderr) == (0, "")
    *lines, last = done.stdout.splitlines()
    stages, run = {}, None
    for line in lines:
        words = shlex.split(line, comments=True)
        if line.startswith("# ---"):
            run = line.split()[2]
            stages[run] = []
        elif not words[1].endswith("tools/report.py"):
            stages[run].append(parse_options(words[2:]))
    return stages, last


@pytest.fixture(scope="module")
def everything():
    return dry()


def test_every_cell_has_its_runs_and_stages(everything):
    stages, last = everything
    expected = {}
    for cell in SPLITS:
        for split_id in range(1 if cell == "voc-sbd" else 3):
            expected[f"{cell}-{split_id}/supervised"] = 1
            if not cell.endswith("full"):
                expected[f"{cell}-{split_id}/dmt"] = expected[f"{cell}-{split_id}/ple"] = 22
    assert {run: len(found) for run, found in stages.items()} == expected
    assert shlex.split(last) == ["env", "PYTHONPATH=.", "python", "-m", "tools.tables", *(f"r/{run}" for run in expected)]


def test_the_plan_is_what_is_printed(everything):
    plan = Plan(reproduce(DRY_RUN="plan", OUTPUT_DIR="r", CELLS="voc-sbd city-8", IDS="0").stdout.splitlines(), parse_options)
    printed = [everything[0][f"{cell}-0/{method}"] for cell in ("voc-sbd", "city-8") for method in METHODS]
    printed.insert(3, everything[0]["voc-full-0/supervised"])  # the oracle
    assert [vars(stage) for stage in plan.stages] == [vars(stage) for found in printed for stage in found]


# Round 0: epochs, learning rate, steps between validations; a round: the same and gamma; batches of round 1 and later.
VOC, CITY = ((4, 0.001, 500), 5, (1, 7), (1, 7)), ((10, 0.004, 300), 3, (2, 6), (2, 6))
PUBLISHED = {
    "voc-106": ((300, 0.002, 100), VOC), "voc-50": ((134, 0.002, 220), VOC), "voc-20": ((134, 0.002, 220), VOC),
    "voc-8": ((54, 0.002, 220), VOC), "voc-full": ((30, 0.002, 500), None),
    "voc-sbd": ((85, 0.002, 350), ((5, 0.001, 500), *VOC[1:])),
    "city-30": ((615, 0.004, 350), CITY), "city-8": ((170, 0.004, 350), CITY), "city-full": ((22, 0.004, 350), None)}
PLE = {**PUBLISHED, "city-30": ((1189, 0.004, 350), (*CITY[:3], (1, 7))),
       "city-8": ((329, 0.004, 350), (*CITY[:3], (1, 7)))}


@pytest.mark.parametrize("method", METHODS)
def test_every_cell_of_the_tables_has_its_numbers(method, everything):
    for cell in SPLITS:
        stages = everything[0].get(f"{cell}-0/{method}")
        if stages is None:
            assert cell.endswith("full") and method != "supervised"
            continue
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
        only, = everything[0][f"voc-full-{split_id}/supervised"]
        assert (only.train_set, only.sets_id, only.seed, only.val_num_steps, only.lr) == (
            "1", str(split_id), split_id, 500, 0.002)
    stages, _ = dry(CELLS="voc-sbd", METHODS="oracle")
    assert list(stages) == ["voc-full-0/supervised"]
    only, = stages["voc-full-0/supervised"]
    assert vars(only) == vars(everything[0]["voc-full-0/supervised"][0])


def test_methods_have_the_same_numbers_where_they_share(everything):
    """Only then does a launcher take what is linked from another method for finished."""
    def recipes(run, *ends):
        return [{**vars(stage), "output_dir": None, "continue_from": None, "pseudo_dir": None, "oldfilename": None}
                for stage in everything[0][run] if not stage.labeling and stage.exp_name.endswith(ends)]

    for cell in ("voc-20-1", "voc-8-0", "voc-sbd-0", "city-30-1", "city-8-2"):
        assert recipes(f"{cell}/supervised", "p0--c") == recipes(f"{cell}/dmt", "p0--c")
    for cell in ("voc-106-2", "voc-50-0", "voc-20-1", "voc-8-0", "voc-sbd-0"):
        shared = [f"p{number}--{arm}" for number in (0, 1) for arm in "cilr"]
        assert len(recipes(f"{cell}/dmt", *shared)) == 4
        assert recipes(f"{cell}/dmt", *shared) == recipes(f"{cell}/ple", *shared)


def test_selection_and_numbers():
    stages, _ = dry(CELLS="city-8 voc-106", IDS="2", METHODS="ple supervised", ep="3", ep0_ple_city_8="200")
    assert list(stages) == ["city-8-2/supervised", "city-8-2/ple", "voc-106-2/supervised", "voc-106-2/ple"]
    assert [len(found) for found in stages.values()] == [1, 22, 1, 22]
    assert {stage.epochs for stage in stages["city-8-2/ple"] if not stage.labeling} == {200, 3}
    stages, _ = dry(CELLS="voc-50 voc-full voc-106", IDS="0", METHODS="supervised", val0="77")
    assert [stage.val_num_steps for stage, in stages.values()] == [77, 77, 77]


@pytest.mark.parametrize("variables, words", [
    ({"CELLS": "voc-8 voc-9"}, ("voc-9", "voc-106")), ({"IDS": "0 3"}, ("split id '3'",)), ({"IDS": " "}, ("split id",)),
    ({"METHODS": "dmt cbst"}, ("cbst", "supervised dmt ple oracle")), ({"DATA_ROOT": "/data"}, ("VOC_ROOT",)),
    ({"CELLS": "voc-full", "METHODS": "dmt"}, ("nothing",))])
def test_unknown_names_are_one_line(variables, words):
    done = reproduce(DRY_RUN="1", **variables)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
    assert all(word in done.stderr for word in words) and "main.py" not in done.stdout


def test_a_tiny_cell_runs_and_hands_on_what_is_shared(shapes_root, tmp_path):
    variables = {
        "CELLS": "voc-8", "IDS": "1", "VOC_ROOT": str(shapes_root), "CHECK": "0", "REPORT": "0",
        "OUTPUT_DIR": str(tmp_path / "out"), "PYTHON": sys.executable, "coco_weights": "", "ep0_voc_8": "1",
        "OMP_NUM_THREADS": "1", "backbone": "small", "weights": "none",
        "EXTRA": "--workers=0 --crop-size 33 33 --test-size 65 65 --on-collapse=warn"}
    done = reproduce("ratios=0.5", "ep=1", **variables)
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("| voc | 8 | supervised |"))
    assert " 67.37 |" in row  # recognised as the cell of the published table
    runs, begun = tmp_path / "out" / "voc-8-1", done.stdout.split("# --- voc-8-1/")
    assert [part.count("already finished") for part in begun] == [0, 0, 1, 4] and begun[3].count("already labelled") == 2
    assert (runs / "supervised" / "voc-8-1__p0--c.pt").samefile(runs / "dmt" / "voc-8-1__p0--c.pt")
    assert (runs / "dmt" / "voc-8-1__p1--i.pt").samefile(runs / "ple" / "voc-8-1__p1--i.pt")
    assert sorted(path.name for path in (runs / "supervised").glob("*.pt")) == ["voc-8-1__p0--c.pt"]
    other = reproduce("ratios=0.5", "ep=7", "METHODS=dmt", **variables)
    assert other.returncode == 2 and "REDO=1" in other.stderr and other.stderr.count("\n") == 1


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
