"""scripts/ablations: what DRY_RUN prints is SPEC's table, row by row; and a tiny run that shares, stops and goes on."""

import shlex
import sys
from pathlib import Path

import pytest

from dmt.plan import Plan
from tests.test_launchers import ROOT, start
from utils.options import parse_options

BETAS = ["0", "0.05", "0.1", "0.2", "0.3", "0.5"]  # 0.15 is the row ple
ROWS = ["baseline", "cbst", "dst", "dmt", "naive", "flip", "online", "ple", "ple-no-conflict-reduction",
        *(f"beta-{beta}" for beta in BETAS)]


def dry(script, *arguments):
    """({row: [options of its main.py calls]}, {row: sources of its links}), a row's own calls only.

    A stage that several rows need has the same numbers in all of their calls, else each would do it anew.
    """
    done = start(script, *arguments, DRY_RUN="1")
    assert (done.returncode, done.stderr) == (0, "")
    stages, links, row, numbers = {}, {}, None, {}
    for line in done.stdout.splitlines():
        words = shlex.split(line, comments=True)
        if line.startswith("# ---"):
            row = line.split()[2].rsplit("/", 1)[1]
            stages.setdefault(row, []), links.setdefault(row, set())
        elif words[0] == "cp":
            links[row] |= {source for source in words[2:-1] if words[-1].endswith(f"/{row}")}
        elif words[1] == "main.py":
            stage = parse_options(words[2:])
            stages[row].append(stage)
            assert numbers.setdefault((stage.output_dir, stage.exp_name, stage.pseudo_dir), words) == words
    return {row: [one for one in found if one.output_dir.endswith(f"/{row}")] for row, found in stages.items()}, links


def planned(script, *arguments):
    """What main.py --plan reads before the first stage."""
    done = start(script, *arguments, DRY_RUN="plan")
    assert (done.returncode, done.stderr) == (0, "")
    return Plan(done.stdout.splitlines(), parse_options)


@pytest.fixture(scope="module")
def voc():
    return dry("scripts/ablations/voc.sh", "OUTPUT_DIR=a")


def trainings(stages):
    return [stage for stage in stages if not stage.labeling]


def labelings(stages):
    return [stage for stage in stages if stage.labeling]


def test_every_row_of_the_table_is_there_and_the_baseline_is_trained_once(voc):
    stages, links = voc
    assert list(stages) == ROWS
    supervised = {row: [stage for stage in found if stage.state == 2] for row, found in stages.items()}
    assert [row for row in ROWS if supervised[row]] == ["baseline"]
    assert [(stage.exp_name[-5:], stage.train_set, stage.seed) for stage in supervised["baseline"]] == [
        ("p0--c", "50", 1), ("p0--l", "50-l", 1), ("p0--r", "50-r", 2)]
    for stage in supervised["baseline"]:
        assert (stage.epochs, stage.batch_size_labeled, stage.lr, stage.val_num_steps) == (134, 8, 0.002, 220)
        assert stage.continue_from == "voc_coco_resnet101.pt"
    for row in ROWS[1:]:
        arms = "c" if row in ("cbst", "dst", "online") else "lr"
        assert {source for source in links[row] if source.startswith("a/baseline/")} == {
            f"a/baseline/ablations-voc-50-2__p0--{arm}{suffix}" for arm in arms for suffix in ("", ".pt")}
    # Each stage counts once, whatever rows share it: self-training 2 x 5, mutual training 3 x 10, with PLE 8 x 8, online.
    assert str(planned("scripts/ablations/voc.sh", "OUTPUT_DIR=a")) == (
        f"plan: {3 + 2 * 5 + 3 * 10 + 8 * 8 + 1} trainings and {2 * 5 + 3 * 10 + 8 * 8} labellings")


def test_all_stages_have_the_numbers_of_the_table(voc):
    for row, found in voc[0].items():
        for stage in found:
            assert (stage.dataset, stage.sets_id, stage.coco, stage.mixed_precision) == ("voc", "2", True, True)
            assert stage.output_dir == f"a/{row}"
            if row == "baseline" or stage.labeling:
                continue
            assert (stage.train_set, stage.lr, stage.batch_size_labeled, stage.batch_size_pseudo) == ("50", 0.001, 1, 7)
            assert stage.epochs == (20 if row == "online" else 4)
            assert stage.seed == {"c": 1, "r": 1, "l": 2}[stage.exp_name[-1]]  # round 0 has l 1 and r 2
            gamma = 0 if row in ("cbst", "online") else 5
            assert (stage.gamma1, stage.gamma2) == (gamma, gamma)
            assert stage.on_student_win == {"naive": "naive", "flip": "flip"}.get(row, "stop")
            assert stage.online == (0.9 if row == "online" else None)


@pytest.mark.parametrize("row, rounds", [("cbst", 5), ("dst", 5), ("dmt", 5), ("naive", 5), ("flip", 5), ("ple", 4),
                                         ("ple-no-conflict-reduction", 4), *((f"beta-{beta}", 4) for beta in BETAS)])
def test_rounds_of_a_row(voc, row, rounds):
    stages, links = voc
    arms = 1 if row in ("cbst", "dst") else 2
    labels, students = labelings(stages[row]), trainings(stages[row])
    assert [stage.label_ratio for stage in labels] == [ratio for ratio in (0.2, 0.4, 0.6, 0.8, 1.0)[-rounds:]
                                                       for _ in range(arms)]
    assert len(students) == rounds * arms
    for teacher, student in zip(labels, students):
        assert student.pseudo_dir == teacher.pseudo_dir
        assert (teacher.continue_from == student.continue_from) == (arms == 1)
    with_ple = row.startswith(("ple", "beta"))
    assert all(bool(stage.oldfilename) == with_ple for stage in labels)
    if with_ple:  # round 1 is DMT's
        assert {stage.increment for stage in labels} == {0.15 if row.startswith("ple") else float(row[5:])}
        assert {stage.no_conflict_reduction for stage in labels} == {row == "ple-no-conflict-reduction"}
        assert {source for source in links[row] if source.startswith("a/dmt/")} == {
            f"a/dmt/ablations-voc-50-2__p1--{arm}{suffix}" for arm in "lr" for suffix in ("", ".pt")}


def test_online_is_one_training_of_as_many_steps_without_labelling(voc):
    only, = voc[0]["online"]
    assert only.continue_from == "a/online/ablations-voc-50-2__p0--c.pt"
    assert only.epochs == sum(stage.epochs for stage in trainings(voc[0]["cbst"]))


def test_a_single_row_brings_what_it_needs():
    plan = planned("scripts/ablations/voc.sh", "ROWS=ple beta", "betas=0.3", "OUTPUT_DIR=nowhere")
    assert {(stage.output_dir, stage.exp_name[-5:]) for stage in plan.stages if stage.state == 2} == {
        ("nowhere/baseline", "p0--l"), ("nowhere/baseline", "p0--r")}
    # Round 1 of DMT has two trainings and two labellings, the four rounds of each row eight and eight.
    assert str(plan) == f"plan: {2 + 2 + 2 * 8} trainings and {2 + 2 * 8} labellings"


def test_every_seed_has_its_own_images_split_and_folder():
    printed = start("scripts/ablations/shapes.sh", DRY_RUN="1", ROWS="baseline", SEEDS="0 4").stdout
    for seed, split_id in ((0, 0), (4, 1)):
        assert f"--out=runs/ablations-shapes/data-{seed}" in printed and f"--sets-id={split_id} " in printed
        assert f"--seed={10 * seed + 1} " in printed and f"--output-dir=runs/ablations-shapes/seed-{seed}/baseline" in printed
    assert printed.count("--exp-name=ablations-shapes__p0--b") == 2
    assert shlex.split(printed.splitlines()[-1])[4:] == [
        "tools.tables", *(f"runs/ablations-shapes/seed-{seed}/baseline" for seed in (0, 4)), "--by", "beta"]


@pytest.mark.parametrize("row, epochs", [("baseline", 352), ("full", 46)])  # 352 * 6 steps and 46 * 46
def test_camvid_has_supervised_training_on_few_and_on_all_labels_for_as_many_steps(row, epochs):
    """367 images, of which 45 are labelled at 1/8; batches of 8. The chain of an arm has about as many steps."""
    stages, _ = dry("scripts/ablations/camvid.sh", "IDS=2", f"ROWS={row}", "baseline_arms=b")
    (only,) = stages[row]
    assert (only.state, only.epochs, only.train_set, only.sets_id) == (2, epochs, "8" if row == "baseline" else "1", "2")
    assert (only.weights, bool(only.coco), only.output_dir) == ("none", False, f"runs/ablations-camvid/camvid-2/{row}")
    assert Path(only.dataset) == ROOT / "scripts/ablations/camvid-half.yaml"


def test_camvid_takes_the_numbers_of_its_launcher_and_makes_lists_once():
    words = ("some/data", "ROWS=dmt ple", "IDS=0 1", "ep=7", "backbone=resnet50", "dataset=camvid")
    done = start("scripts/ablations/camvid.sh", *words, DRY_RUN="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("generate_splits.py") == done.stdout.count("dms_sample.py") == 1
    options = planned("scripts/ablations/camvid.sh", *words).stages
    assert {(one.dataset, one.data_root, one.lists_dir) for one in options} == {
        ("camvid", "some/data", "runs/ablations-camvid/lists")}
    assert [one.backbone for one in options if one.state == 2] == ["resnet50"] * 4
    rounds = [one for one in trainings(options) if one.state == 1]
    assert len(rounds) == 2 * (5 + 4) * 2 and {(one.epochs, one.gamma1, one.lr) for one in rounds} == {(7, 5, 0.01)}
    assert {one.increment for one in labelings(options) if one.oldfilename} == {0.15}
    table = shlex.split(done.stdout.splitlines()[-1])
    assert table[3:5] == ["-m", "tools.tables"] and table[5:-2] == [
        f"runs/ablations-camvid/camvid-{number}/{row}" for number in (0, 1) for row in ("dmt", "ple")]


def test_animals_have_the_first_rows_of_all_ids_before_the_others():
    words = ("my data", "OUTPUT_DIR=a", "weights=w", "IDS=0 2", "betas=0 0.15")
    done = start("scripts/ablations/voc-animals.sh", *words, DRY_RUN="1")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    first, later = ["baseline", "full", "dmt", "ple"], [
        "ple-batch-statistics", "ple-no-conflict-reduction", "cbst", "beta-0"]
    assert [line.split()[2] for line in lines if line.startswith("# ---")] == [
        f"voc-animals-{number}/{row}" for rows in (first, later) for number in (0, 2) for row in rows]
    runs = [f"a/voc-animals-{number}/{row}" for number in (0, 2) for row in (*first, *later)]
    assert shlex.split(lines[-1])[3:] == ["-m", "tools.tables", *runs, "--by", "beta"]
    stages = planned("scripts/ablations/voc-animals.sh", *words).stages
    assert {stage.output_dir for stage in stages} == set(runs)
    assert {(stage.dataset, stage.data_root, stage.lists_dir) for stage in stages} == {
        ("voc-animals", "my data", "a/lists")}
    for stage in stages:
        assert f"voc-animals-{stage.sets_id}/" in stage.output_dir
        assert (stage.weights == "w") == (stage.continue_from is None) == (stage.state == 2)
        released = stage.labeling and stage.output_dir.endswith("/ple-batch-statistics")
        assert (stage.previous_statistics == "batch") == released
    supervised = [(stage.exp_name[-1], stage.train_set, stage.epochs) for stage in stages if stage.state == 2
                  and stage.sets_id == "2"]
    assert supervised == [("b", "31", 204), ("c", "31", 48), ("l", "31-l", 48), ("r", "31-r", 48), ("f", "1", 7)]
    assert len(trainings(stages)) == 2 * (5 + 10 + 4 * 8 + 5)  # supervised, dmt, four rows with PLE, cbst


@pytest.mark.parametrize("script, word", [
    ("voc", "ROWS=dmp"), ("shapes", "SEEDS=1 x"), ("shapes", "JOBS=0"), ("camvid", "IDS=0 3"), ("voc-animals", "IDS=a")])
def test_unknown_rows_seeds_and_ids_are_one_line(script, word, tmp_path):
    wrong = start(f"scripts/ablations/{script}.sh", word, f"OUTPUT_DIR={tmp_path / 'out'}", PYTHON=sys.executable)
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and wrong.stderr.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_a_tiny_run_shares_goes_on_and_keeps_its_numbers(tmp_path):
    numbers = {"SEEDS": "0", "OUTPUT_DIR": str(tmp_path / "out"), "PYTHON": sys.executable, "images": "24", "val_images": "6",
               "size": "64", "crop": "33 33", "test_size": "65 65", "ep0": "1", "split": "8", "ratios": "0.5", "ep": "1",
               "JOBS": "1", "REPORT": "0"}
    done = start("scripts/ablations/shapes.sh", "ROWS=online cbst", **numbers)
    assert done.returncode == 0, done.stderr
    exp, out = "ablations-shapes", tmp_path / "out" / "seed-0"
    assert "plan: 3 trainings and 1 labellings" in done.stdout and done.stdout.count("# stage 1 of 4\n") == 2
    results = {str(path.parent.relative_to(out)) for path in out.glob("*/*/result.json")}
    assert results == {f"{row}/{exp}__{stage}--c" for row, stage in (
        ("baseline", "p0"), ("online", "p0"), ("online", "p1"), ("cbst", "p0"), ("cbst", "p1"))}
    same = [out / row / f"{exp}__p0--c.pt" for row in ("baseline", "online", "cbst")]
    assert all(path.samefile(same[0]) for path in same)
    assert [len((out / row / "log.txt").read_text().splitlines()) for row in ("baseline", "online", "cbst")] == [1, 2, 2]
    other = start("scripts/ablations/shapes.sh", "ROWS=online", "ep=2", **numbers)
    assert other.returncode == 2 and "REDO=1" in other.stderr and other.stderr.count("\n") == 1
