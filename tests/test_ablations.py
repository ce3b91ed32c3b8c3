"""scripts/ablations: what DRY_RUN prints is SPEC's table, row by row; and a tiny run that shares, stops and goes on."""

import glob
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from utils.options import parse_options

ROOT = Path(__file__).resolve().parents[1]
LAUNCHERS = [f"scripts/ablations/{name}.sh" for name in ("voc", "shapes", "camvid", "voc-animals")]
BETAS = ["0", "0.05", "0.1", "0.2", "0.3", "0.5"]  # 0.15 is the row ple
ROWS = ["baseline", "cbst", "dst", "dmt", "naive", "flip", "online", "ple", "ple-no-conflict-reduction",
        *(f"beta-{beta}" for beta in BETAS)]


def launch(script, *arguments, **variables):
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "PYTHON": "python", **variables}
    return subprocess.run([ROOT / script, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True,
                          timeout=300)


def dry(script, **variables):
    """(lines that start with #, {row: [options of its main.py calls]}, {row: [words of its cp calls]})."""
    done = launch(script, DRY_RUN="1", **variables)
    assert (done.returncode, done.stderr) == (0, "")
    comments, stages, links, row = [], {}, {}, None
    for line in done.stdout.splitlines():
        words = shlex.split(line, comments=True)
        if line.startswith("# ---"):
            row = line.split()[2]
            stages[row], links[row] = [], []
        elif line.startswith("#"):
            comments.append(line)
        elif words[0] == "cp":
            links[row].append(words[2:])
        elif words[1] == "main.py":
            stages[row].append(parse_options(words[2:]))
    return comments, stages, links


@pytest.fixture(scope="module")
def voc():
    return dry("scripts/ablations/voc.sh", OUTPUT_DIR="a")


def trainings(stages):
    return [stage for stage in stages if not stage.labeling]


def labelings(stages):
    return [stage for stage in stages if stage.labeling]


def test_every_row_of_the_table_is_there_and_the_baseline_is_trained_once(voc):
    _, stages, links = voc
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
        shared = {(source, target) for source, target in links[row] if source.startswith("a/baseline/")}
        assert shared == {(f"a/baseline/ablations-voc-50-2__p0--{arm}{suffix}", f"a/{row}/ablations-voc-50-2__p0--{arm}{suffix}")
                          for arm in arms for suffix in ("", ".pt")}


def test_all_stages_have_the_numbers_of_the_table(voc):
    for row, found in voc[1].items():
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
    _, stages, links = voc
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
        shared = {source for source, _ in links[row] if source.startswith("a/dmt/")}
        exp = "ablations-voc-50-2"
        assert shared == {f"a/dmt/{name}" for arm in "lr" for name in (
            f"{exp}__p1--{arm}", f"{exp}__p1--{arm}.pt", f"pseudo/{exp}__p0--{arm}")}


def test_online_is_one_training_of_as_many_steps_without_labelling(voc):
    only, = voc[1]["online"]
    assert only.continue_from == "a/online/ablations-voc-50-2__p0--c.pt"
    assert only.epochs == sum(stage.epochs for stage in trainings(voc[1]["cbst"]))


def test_the_estimate_counts_steps(voc):
    # Labelled: int(10582 / 50) = 211, halves 211 - ceil(0.2 * 211) = 168; unlabelled 10371, so 1482 steps an epoch.
    steps = 134 * (27 + 21 + 21) + (2 * 5 + 3 * 10 + 8 * 8) * 4 * 1482 + 20 * 1482
    assert voc[0] == [f"# {3 + 2 * 5 + 3 * 10 + 8 * 8 + 1} trainings of {steps} steps in all and "
                      f"{2 * 5 + 3 * 10 + 8 * 8} labellings: about {steps * 0.38 / 3600:.1f} GPU hours, at 0.38 s a step."]
    comments, stages, _ = dry("scripts/ablations/voc.sh", ROWS="baseline", SECONDS_PER_STEP="1", ep0="8")
    assert comments == [f"# 3 trainings of {8 * 69} steps in all and 0 labellings: about 0.2 GPU hours, at 1 s a step."]
    assert list(stages) == ["baseline"]


def test_a_single_row_brings_what_it_needs():
    _, stages, links = dry("scripts/ablations/voc.sh", ROWS="ple beta", betas="0.3", OUTPUT_DIR="nowhere")
    assert [stage.output_dir for stage in stages["ple"][:2]] == ["nowhere/baseline"] * 2
    assert len(stages["ple"]) == 2 + 5 * 4 and len(stages["beta-0.3"]) == 5 * 4  # no row dmt to share round 1 with
    assert len(links["beta-0.3"]) == 4


def test_every_seed_has_its_own_images_split_and_folder():
    comments, _, _ = dry("scripts/ablations/shapes.sh", ROWS="baseline online")
    assert len(comments) == 1 and re.search(r"about [\d.]+ processor hours", comments[0])
    printed = launch("scripts/ablations/shapes.sh", DRY_RUN="1", ROWS="baseline", SEEDS="0 4").stdout
    for seed, split_id in ((0, 0), (4, 1)):
        assert f"--out=runs/ablations-shapes/data-{seed}" in printed and f"--sets-id={split_id} " in printed
        assert f"--seed={10 * seed + 1} " in printed
    assert printed.count("--exp-name=ablations-shapes__p0--b") == 2


@pytest.mark.parametrize("row, epochs, steps", [("baseline", 352, 352 * 6), ("full", 46, 46 * 46)])
def test_camvid_has_supervised_training_on_few_and_on_all_labels_for_as_many_steps(row, epochs, steps):
    """367 images, of which 45 are labelled at 1/8; batches of 8. The chain of an arm has about as many steps."""
    comments, stages, _ = dry("scripts/ablations/camvid.sh", IDS="2", ROWS=row, baseline_arms="b")
    (only,) = stages[row]
    assert (only.state, only.epochs, only.train_set, only.sets_id) == (2, epochs, "8" if row == "baseline" else "1", "2")
    assert (only.weights, only.coco, only.output_dir) == ("none", False, f"runs/ablations-camvid/camvid-2/{row}")
    assert Path(only.dataset) == ROOT / "scripts/ablations/camvid-half.yaml"
    assert comments[0].startswith(f"# 1 trainings of {steps} steps in all")


def test_camvid_takes_the_numbers_of_its_launcher_and_makes_lists_once():
    done = launch("scripts/ablations/camvid.sh", "some/data", DRY_RUN="1", ROWS="dmt ple", IDS="0 1", ep="7",
                  backbone="resnet50", dataset="camvid")
    assert (done.returncode, done.stderr) == (0, "")
    calls = [shlex.split(line) for line in done.stdout.splitlines() if " main.py " in line]
    options = [parse_options(words[2:]) for words in calls]
    assert {(one.dataset, one.data_root, one.lists_dir, one.backbone) for one in options} == {
        ("camvid", "some/data", "runs/ablations-camvid/lists", "resnet50")}
    rounds = [one for one in trainings(options) if one.state == 1]
    assert len(rounds) == 2 * (5 + 4) * 2 and {(one.epochs, one.gamma1, one.lr) for one in rounds} == {(7, 5, 0.01)}
    assert {one.increment for one in labelings(options) if one.oldfilename} == {0.15}
    assert done.stdout.count("generate_splits.py") == done.stdout.count("dms_sample.py") == 1
    table = shlex.split(done.stdout.splitlines()[-1])
    assert table[3:5] == ["-m", "tools.tables"] and table[5:] == [
        f"runs/ablations-camvid/camvid-{number}/{row}" for number in (0, 1) for row in ("dmt", "ple")]


def test_animals_have_the_first_rows_of_all_ids_before_the_others():
    done = launch("scripts/ablations/voc-animals.sh", "my data", DRY_RUN="1", OUTPUT_DIR="a", weights="w")
    assert (done.returncode, done.stderr) == (0, "")
    estimate, *lines = done.stdout.splitlines()
    first, later = ["baseline", "full", "dmt", "ple"], [
        "ple-batch-statistics", "ple-no-conflict-reduction", "cbst", "beta-0", "beta-0.05", "beta-0.3"]
    assert [line.split()[2] for line in lines if line.startswith("# ---")] == 3 * first + 3 * later
    runs = [f"a/voc-animals-{number}/{row}" for number in range(3) for row in (*first, *later)]
    assert shlex.split(lines[-1])[3:] == ["-m", "tools.tables", *runs, "--by", "beta"]
    stages = [parse_options(shlex.split(line)[2:]) for line in lines if " main.py " in line]
    assert list(dict.fromkeys(stage.output_dir for stage in stages)) == [
        f"a/voc-animals-{number}/{row}" for rows in (first, later) for number in range(3) for row in rows]
    assert {(stage.dataset, stage.data_root, stage.lists_dir) for stage in stages} == {
        ("voc-animals", "my data", "a/lists")}
    for stage in stages:
        assert f"voc-animals-{stage.sets_id}/" in stage.output_dir
        assert (stage.weights == "w") == (stage.continue_from is None) == (stage.state == 2 and not stage.labeling)
        released = stage.labeling and stage.output_dir.endswith("/ple-batch-statistics")
        assert (stage.previous_statistics == "batch") == released
    supervised = [(stage.exp_name[-1], stage.train_set, stage.epochs) for stage in stages if stage.state == 2
                  and not stage.labeling and stage.sets_id == "2"]
    assert supervised == [("b", "31", 204), ("c", "31", 48), ("l", "31-l", 48), ("r", "31-r", 48), ("f", "1", 7)]
    steps = 13 * 204 + 13 * 48 + 2 * 10 * 48 + 392 * 7 + 433 * (5 * 2 + 5 * 4 * 2 + 5 + 4 * 2)
    trainings = [stage for stage in stages if not stage.labeling]
    assert estimate.startswith(f"# {len(trainings)} trainings of {3 * steps} steps in all")


@pytest.mark.parametrize("script", LAUNCHERS)
def test_help_unknown_arguments_rows_and_seeds(script):
    shown = launch(script, "--help")
    assert shown.returncode == 0 and "ROWS=" in shown.stdout and "betas=" in shown.stdout and "KEEP=" in shown.stdout
    for wrong in (launch(script, "--quick"), launch(script, ROWS="dmp", DRY_RUN="1"),
                  launch("scripts/ablations/shapes.sh", SEEDS="1 x"), launch("scripts/ablations/camvid.sh", IDS="0 3"),
                  launch("scripts/ablations/voc-animals.sh", IDS="a"),
                  launch("scripts/ablations/shapes.sh", JOBS="0")):
        assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and wrong.stderr.startswith("error: ")


def test_a_tiny_run_shares_goes_on_and_keeps_its_numbers(tmp_path):
    variables = {"SEED": "0", "OUTPUT_DIR": str(tmp_path / "seed-0"), "PYTHON": sys.executable,
                 "images": "24", "val_images": "6", "size": "64", "crop": "33 33", "test_size": "65 65", "ep0": "1",
                 "split": "8", "ratios": "0.5", "ep": "1", "ESTIMATED": "1"}
    first = launch("scripts/ablations/shapes.sh", ROWS="online", **variables)
    out = tmp_path / "seed-0"
    assert first.returncode == 0, first.stderr
    # What a second row shares is linked by the launcher itself; an interpreter that does nothing shows what it would call.
    again = launch("scripts/ablations/shapes.sh", ROWS="cbst", **{**variables, "PYTHON": "true"})
    assert again.returncode == 0, again.stderr
    exp = "ablations-shapes"
    assert f"--exp-name={exp}__p0--c" in first.stdout and f"--exp-name={exp}__p0--c" not in again.stdout
    assert f"--exp-name={exp}__p1--c" in again.stdout
    assert (out / "online" / "report" / "index.html").is_file() and f" --baseline={out}/baseline --arms c" in again.stdout
    results = {str(path.parent.relative_to(out)) for path in out.glob("*/*/result.json")}
    assert results == {f"baseline/{exp}__p0--c", f"online/{exp}__p0--c", f"online/{exp}__p1--c", f"cbst/{exp}__p0--c"}
    same = [out / row / f"{exp}__p0--c.pt" for row in ("baseline", "online", "cbst")]
    assert all(path.samefile(same[0]) for path in same)
    assert [len((out / row / "log.txt").read_text().splitlines()) for row in ("online", "cbst")] == [2, 1]
    assert sorted(glob.glob("*", root_dir=out)) == ["baseline", "cbst", "online"]  # seed-N/* are the run folders
    other = launch("scripts/ablations/shapes.sh", ROWS="online", **{**variables, "ep": "2"})
    assert other.returncode == 2 and "other numbers" in other.stderr and other.stderr.count("\n") == 1


def test_help_prints_the_launchers_own_line_only():
    shown = launch("scripts/ablations/shapes.sh", "--help").stdout
    names = re.findall(r"^  (\w+)=", shown, re.MULTILINE)
    assert len(names) == len(set(names)) and re.search(r"^  KEEP=1 +pseudo labels of every round", shown, re.MULTILINE)
    assert re.search(r"^  CHECK=0 +0: do not check", shown, re.MULTILINE)  # its own default, the common meaning
