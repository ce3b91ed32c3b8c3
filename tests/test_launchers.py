"""The launchers: what DRY_RUN prints is the recipe, flag by flag; and prepare_coco.sh's ways out."""

import hashlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dmt.plan import SEPARATOR, Plan
from models import deeplab_v2
from utils.files import locked
from utils.options import parse_options

ROOT = Path(__file__).parent.parent
CHAINS = ["dmt_ple-voc-20-1", "dmt_ple-voc-106-1lr", "dmt_ple-city-8-1", "dmt_ple-voc-sbd-0"]
LAUNCHERS = ["demo.sh", *(f"{chain}.sh" for chain in CHAINS),
             *(f"scripts/{name}.sh" for name in ("dmt_ple-camvid", "dmt_ple-voc-animals", "dmt_ple-own", "reproduce")),
             *(f"scripts/ablations/{name}.sh" for name in ("voc", "shapes", "camvid", "voc-animals"))]
RATIOS = ("0.2", "0.4", "0.6", "0.8", "1.0")


def start(script, *arguments, cwd=ROOT, **variables):
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "PYTHON": "python", **variables}
    return subprocess.run([str(ROOT / script), *map(str, arguments)], cwd=cwd, env=environment, capture_output=True,
                          text=True, timeout=600)


def commands(script, *arguments, **variables):
    """The printed commands but for the reports, each as a list of words."""
    return [words for words in everything(script, *arguments, **variables) if not is_report(words)]


def everything(script, *arguments, **variables):
    """All printed commands."""
    done = start(script, *arguments, DRY_RUN="1", **variables)
    assert (done.returncode, done.stderr) == (0, "")
    return [shlex.split(line) for line in done.stdout.splitlines()]


def is_report(words):
    return words[1].endswith("tools/report.py")


def expected_chain(exp, dataset, first, second, round0, split, rounds, coco, coco_weights):
    """The 22 commands as strings. ``first`` is the arm that labels first; ``round0`` lists (arm, split) in order."""
    out = f"runs/{exp}"
    common = f"--dataset={dataset} --output-dir={out} --mixed-precision"
    seeds0 = {arm: seed for seed, (arm, _) in enumerate(round0, start=1)}
    seeds = {"r": 1, "l": 2} if "l" in seeds0 else seeds0  # of the rounds

    def flag(arm):
        return "--coco " if arm in coco else ""

    lines = []
    for arm, labeled in round0:
        weights = f"--coco --continue-from={coco_weights} " if arm in coco else ""
        lines.append(f"--exp-name={exp}__p0--{arm} --state=2 --train-set={labeled} {weights}{rounds['zero']} "
                     f"--seed={seeds0[arm]} --val-num-steps={rounds['val0']} {common}")
    sets = f"--train-set={split}"
    for number, ratio in enumerate(RATIOS, start=1):
        last = number - 1
        for teacher, student in ((first, second), (second, first)):
            ple = f"--oldfilename={out}/{exp}__p{last - 1}--{teacher}.pt --Increment=0.15 " if number > 1 else ""
            lines.append(f"--labeling {sets} {flag(teacher)}--continue-from={out}/{exp}__p{last}--{teacher}.pt {ple}"
                         f"--label-ratio={ratio} --batch-size-labeling=8 "
                         f"--pseudo-dir={out}/pseudo/{exp}__p{last}--{teacher} {common}")
            lines.append(f"--exp-name={exp}__p{number}--{student} --state=1 {sets} {flag(student)}"
                         f"--continue-from={out}/{exp}__p{last}--{student}.pt "
                         f"--pseudo-dir={out}/pseudo/{exp}__p{last}--{teacher} "
                         f"{rounds['first' if number == 1 else 'later']} --seed={seeds[student]} "
                         f"--val-num-steps={rounds['val']} {common}")
    return lines


def recipe(zero, val0, epochs, lr, gamma, val, first=(1, 7)):
    """The numbers of a chain as the flags that carry them; ``zero`` is (epochs, lr) of round 0."""
    def mutual(labeled, pseudo):
        return (f"--epochs={epochs} --batch-size-labeled={labeled} --batch-size-pseudo={pseudo} --lr={lr} "
                f"--weight-decay=0.0005 --gamma1={gamma} --gamma2={gamma}")
    return {"zero": f"--epochs={zero[0]} --batch-size-labeled=8 --lr={zero[1]} --weight-decay=0.0005", "val0": val0,
            "val": val, "first": mutual(*first), "later": mutual(1, 7)}


EXPECTED = {
    "dmt_ple-voc-20-1": (1, expected_chain(
        "dmt_ple-voc-20-1", "voc", "i", "c", [("c", "20"), ("i", "20")], "20",
        recipe((134, 0.002), 220, 4, 0.001, 5, 500), "c", "voc_coco_resnet101.pt")),
    "dmt_ple-voc-106-1lr": (1, expected_chain(
        "dmt_ple-voc-106-1lr", "voc", "l", "r", [("l", "106-l"), ("r", "106-r")], "106",
        recipe((300, 0.002), 100, 4, 0.001, 5, 500), "lr", "voc_coco_resnet101.pt")),
    "dmt_ple-city-8-1": (1, expected_chain(
        "dmt_ple-city-8-1", "city", "i", "c", [("c", "8"), ("i", "8")], "8",
        recipe((329, 0.004), 350, 10, 0.004, 3, 300, first=(2, 6)), "c", "city_coco_resnet101.pt")),
    "dmt_ple-voc-sbd-0": (0, expected_chain(
        "dmt_ple-voc-sbd-0", "voc", "i", "c", [("c", "train"), ("i", "train")], "train",
        recipe((85, 0.002), 350, 5, 0.001, 5, 500), "c", "voc_coco_resnet101.pt")),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_the_chain_is_the_papers(chain):
    split_id, expected = EXPECTED[chain]
    printed = commands(f"{chain}.sh")
    assert len(printed) == len(expected) == 22
    for words, line in zip(printed, expected):
        assert words[:2] == ["python", "main.py"]
        assert sorted(words[2:]) == sorted([*line.split(), f"--sets-id={split_id}"])
        parse_options(words[2:])  # main.py takes every one of them


def test_one_stage_word_for_word():
    printed = start("dmt_ple-voc-20-1.sh", DRY_RUN="1").stdout.splitlines()
    lines = [line for line in printed if "main.py" in line]
    out = "runs/dmt_ple-voc-20-1"
    assert lines[6] == (
        f"python main.py --labeling --train-set=20 --sets-id=1 --continue-from={out}/dmt_ple-voc-20-1__p1--i.pt "
        f"--oldfilename={out}/dmt_ple-voc-20-1__p0--i.pt --Increment=0.15 --label-ratio=0.4 --batch-size-labeling=8 "
        f"--pseudo-dir={out}/pseudo/dmt_ple-voc-20-1__p1--i --dataset=voc --output-dir={out} --mixed-precision")
    assert lines[7] == (
        f"python main.py --exp-name=dmt_ple-voc-20-1__p2--c --state=1 --train-set=20 --sets-id=1 --coco "
        f"--continue-from={out}/dmt_ple-voc-20-1__p1--c.pt --pseudo-dir={out}/pseudo/dmt_ple-voc-20-1__p1--i "
        "--epochs=4 --batch-size-labeled=1 --batch-size-pseudo=7 --lr=0.001 --weight-decay=0.0005 --gamma1=5 "
        "--gamma2=5 --seed=1 "
        f"--val-num-steps=500 --dataset=voc --output-dir={out} --mixed-precision")


def test_every_pseudo_label_folder_is_written_once():
    for chain in CHAINS:
        written = [word for words in commands(f"{chain}.sh") if "--labeling" in words
                   for word in words if word.startswith("--pseudo-dir")]
        assert len(set(written)) == len(written) == 10


@pytest.mark.parametrize("chain, arms", [("dmt_ple-voc-20-1", "ci"), ("dmt_ple-voc-106-1lr", "lr")])
def test_every_round_ends_with_a_report(chain, arms):
    printed = everything(f"{chain}.sh")
    places = [place for place, words in enumerate(printed) if is_report(words)]
    assert places == [6, 11, 16, 21, 26]  # two supervised stages, then four of a round and its report
    out = f"runs/{chain}"
    assert all(printed[place] == ["python", "tools/report.py", out, f"--exp={chain}", "--rounds=5", "--arms", *arms]
               for place in places)
    assert not any(map(is_report, everything(f"{chain}.sh", REPORT="0")))


def test_the_oracle_is_trained_on_request():
    *chain, oracle = commands("dmt_ple-voc-sbd-0.sh", ORACLE="1")
    assert len(chain) == 22
    assert {"--exp-name=dmt_ple-voc-sbd-0__oracle", "--state=2", "--train-set=1", "--sets-id=0", "--coco",
            "--epochs=30", "--continue-from=voc_coco_resnet101.pt", "--batch-size-labeled=8", "--seed=0"} <= set(oracle)


def test_numbers_come_as_arguments_or_from_the_environment():
    numbers = {"ep": "1", "split": "8", "id": "2", "ratios": "0.5", "beta": "", "MIXED_PRECISION": "0",
               "DATA_ROOT": "/my data", "EXTRA": "--aspp-branches=4 --workers=0", "coco_weights": "",
               "LISTS_DIR": "lists", "OUTPUT_DIR": "here", "backbone": "small", "weights": "none"}
    printed = commands("dmt_ple-voc-20-1.sh", **numbers)
    assert printed == commands("dmt_ple-voc-20-1.sh", *(f"{name}={value}" for name, value in numbers.items()), ep="7")
    assert len(printed) == 6
    for words in printed:
        assert {"--sets-id=2", "--train-set=8", "--data-root=/my data", "--lists-dir=lists",
                "--output-dir=here"} <= set(words)
        assert words[-2:] == ["--aspp-branches=4", "--workers=0"]
        assert not {"--coco", "--mixed-precision"} & set(words)
        first = "--exp-name=dmt_ple-voc-8-2__p0" in " ".join(words)
        assert ({"--backbone=small", "--weights=none"} <= set(words)) == first
    assert "--exp-name=dmt_ple-voc-8-2__p1--c" in printed[3] and "--epochs=1" in printed[3]
    plain = commands("dmt_ple-voc-20-1.sh", beta="")
    assert not any(word.startswith(("--oldfilename", "--Increment")) for words in plain for word in words)
    released = commands("dmt_ple-voc-20-1.sh", previous_statistics="batch")  # concerns the labellings with PLE alone
    assert [parse_options(words[2:]).previous_statistics == "batch" for words in released] == [
        parse_options(words[2:]).oldfilename is not None for words in released]


@pytest.mark.parametrize("words, message", [
    (("epp=1",), "unknown number 'epp'; did you mean ep?"), (("bachbone=small",), "did you mean backbone?"),
    (("ep=one",), "--epochs"), (("ratios=0.5 no",), "--label-ratio"), (("REDO=no",), "REDO is 'no'"),
    (("MIXED_PRECISION=off",), "it must be 0 or 1"), (("--epochs=3",), "unknown argument '--epochs=3'"),
    (("coco_arms=c i", "backbone=small"), "set coco_weights= (empty), too"),
    (("OUTPUT_DIR=/proc/no",), "cannot be written"), (("EXTRA=--aug",), "--no-aug"),
    (("EXTRA=--output-dir=x",), "--output-dir stands twice"), (("EXTRA=--exp-name=x",), "--exp-name stands twice"),
    (("PYTHON=no-python",), "PYTHON is 'no-python'"), (("NPROC=99",), "NPROC is 99, but")])
def test_wrong_words_are_refused_before_anything_is_written(words, message, tmp_path):
    done = start("dmt_ple-voc-20-1.sh", f"OUTPUT_DIR={tmp_path / 'out'}", *words, PYTHON=sys.executable)
    assert done.returncode == 2 and done.stdout == "" and message in done.stderr, done
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ") and not any(tmp_path.iterdir())


def test_launchers_work_from_any_directory(tmp_path):
    printed = commands("dmt_ple-city-8-1.sh", cwd=tmp_path, OUTPUT_DIR="mine")
    assert printed[0][1] == str(ROOT.resolve() / "main.py")
    assert f"--continue-from={ROOT.resolve() / 'city_coco_resnet101.pt'}" in printed[0]
    assert "--output-dir=mine" in printed[0]  # the user's own, relative to where the user is
    (tmp_path / "city_coco_resnet101.pt").touch()
    assert "--continue-from=city_coco_resnet101.pt" in commands("dmt_ple-city-8-1.sh", cwd=tmp_path)[0]
    assert f"--output-dir={ROOT.resolve()}/runs/dmt_ple-city-8-1" in commands("dmt_ple-city-8-1.sh", cwd=tmp_path)[0]


def test_a_launcher_by_a_link_and_a_home_folder_in_quotes(tmp_path):
    (tmp_path / "link.sh").symlink_to(ROOT / "dmt_ple-voc-20-1.sh")
    printed = commands(tmp_path / "link.sh", "OUTPUT_DIR=~/a b", HOME="/home/me", cwd=tmp_path)
    assert len(printed) == 22 and all("--output-dir=/home/me/a b" in words for words in printed)


@pytest.mark.parametrize("name, split", [("camvid", 8), ("voc-animals", 31)])
def test_a_baseline_beside_the_arms_and_lists_beside_the_run(name, split):
    printed = commands(f"scripts/dmt_ple-{name}.sh", "/my data", OUTPUT_DIR="out")
    data = [f"--dataset={name}", "--data-root=/my data"]
    assert printed[0] == ["python", "generate_splits.py", *data, "--out=out/lists"]
    assert printed[1] == ["python", "dms_sample.py", *data, "--lists=out/lists", "--out=out/lists"]
    assert printed[-1][-4:] == ["tools.summarize", "out", f"--exp=dmt_ple-{name}-{split}-0", "--data-root=/my data"]
    stages = printed[2:-1]
    assert len(stages) == 3 + 20 + 3
    assert [word for words in stages[:3] for word in words if word.startswith("--train-set")] == [
        f"--train-set={split}", f"--train-set={split}-l", f"--train-set={split}-r"]
    assert {word for words in stages[3:-3] for word in words if word.startswith("--train-set")} == {
        f"--train-set={split}"}
    for words in stages:
        parse_options(words[2:])
        assert {"--lists-dir=out/lists", *data} <= set(words)
        assert name != "camvid" or ("--backbone=small" in words and "--weights=none" in words) == (
            not any(word.startswith("--continue-from") for word in words))
    assert all("--state=3" in words for words in stages[-3:])


def test_animals_name_encoder_and_weights_where_no_checkpoint_does():
    stages = commands("scripts/dmt_ple-voc-animals.sh", weights="my file", output_stride="8", LISTS_DIR="lists")[:-1]
    assert all("--lists-dir=lists" in words for words in stages)
    encoder = {"--backbone=timm/tf_efficientnet_lite0", "--output-stride=8", "--weights=my file"}
    for words in stages:
        assert encoder & set(words) == (set() if any("--continue-from" in word for word in words) else encoder)
    baseline, left, right, *rounds = [parse_options(words[2:]) for words in stages if "--labeling" not in words][:-3]
    # 13 steps an epoch for 100 images, 10 for 80, 433 for 3031 by 7: b sees as many as an arm in all
    assert (13 * baseline.epochs, 10 * left.epochs, 10 * right.epochs) == (2652, 480, 480) and 480 + 5 * 433 == 2645
    for stage in (baseline, left, right):
        assert (stage.batch_size_labeled, stage.lr, stage.val_num_steps) == (8, 0.002, 120)
    for stage in rounds:
        assert (stage.epochs, stage.batch_size_labeled, stage.batch_size_pseudo, stage.lr) == (1, 1, 7, 0.002)
        assert (stage.gamma1, stage.gamma2, stage.val_num_steps) == (3, 3, 217)
    plain = commands("scripts/dmt_ple-voc-animals.sh", output_stride="", beta="")
    left_out = ("--output-stride", "--weights", "--oldfilename")
    assert not any(word.startswith(left_out) for words in plain for word in words)


@pytest.mark.parametrize("script", LAUNCHERS)
def test_help_gives_every_number_a_meaning_under_its_heading(script):
    done = start(script, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    _, listed = done.stdout.split("\n\nNumbers, as in: ")
    lines = [line for line in listed.splitlines()[1:] if line]
    numbers = [line for line in lines if line.startswith("  ")]
    assert all(re.fullmatch(r"  \w+=.*\S {1,}\S.*|  \w+= +\S.*", line) for line in numbers)
    names = [line.split("=")[0].strip() for line in numbers]
    assert len(names) == len(set(names)) and {"OUTPUT_DIR", "PYTHON", "DRY_RUN"} <= set(names)
    assert lines.index("Of every launcher:") > 0
    if script != "scripts/reproduce.sh":
        zero, rounds = (next(place for place, line in enumerate(lines) if line.startswith(word))
                        for word in ("Round 0", "Rounds"))
        assert zero < next(place for place, line in enumerate(lines) if line.startswith("  batch0=")) < rounds
        assert rounds < next(place for place, line in enumerate(lines) if line.startswith("  batch_labeling="))


def test_missing_coco_weights_are_noticed_before_the_first_stage(shapes_root, tmp_path):
    done = start("dmt_ple-voc-106-1lr.sh", cwd=tmp_path, coco_weights="absent_coco.pt", dataset="shapes",
                 DATA_ROOT=str(shapes_root), split="8", id="0", OUTPUT_DIR="out", PYTHON=sys.executable)
    assert done.returncode == 2 and "prepare_coco.sh" in done.stderr and "--exp-name" not in done.stdout


@pytest.fixture(scope="module")
def chain(shapes_root, tmp_path_factory):
    """(the numbers of a chain of two rounds on tiny data, what came of it), started from elsewhere."""
    folder = tmp_path_factory.mktemp("a chain")
    numbers = {
        "dataset": "shapes", "split": "8", "id": "0", "exp": "e", "coco_weights": "", "DATA_ROOT": str(shapes_root),
        "OUTPUT_DIR": str(folder / "out"), "ep0": "1", "ep": "1", "ratios": "0.5 1.0",
        "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "backbone": "small", "weights": "none", "REPORT": "0",
        "EXTRA": "--workers=0 --crop-size 33 33 --test-size 65 65 --on-collapse=warn"}
    return numbers, start("dmt_ple-voc-106-1lr.sh", cwd=folder, **numbers)


def test_a_chain_says_what_comes_and_frees_its_disk(chain):
    numbers, done = chain
    out = Path(numbers["OUTPUT_DIR"])
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("notice: --mixed-precision needs a GPU") == 1
    # The halves of 8 labelled images are a step each, the 16 others by 7 three.
    assert "plan: 6 trainings of 14 steps in all and 4 labellings\n" in done.stdout
    assert [line for line in done.stdout.splitlines() if line.startswith("# stage")] == [
        f"# stage {number} of 10" for number in range(1, 11)]
    assert sorted(path.stem for path in out.glob("*.pt")) == [f"e__p{n}--{arm}" for n in range(3) for arm in "lr"]
    left = {str(path.relative_to(out / "pseudo")) for path in out.glob("pseudo/*/*") if path.is_dir()}
    assert left == {f"e__p{n}--{arm}/{kind}" for n in range(2) for arm in "lr" for kind in ("labels", "confidence")} | {
        f"e__p1--{arm}/logits" for arm in "lr"}
    table, last = done.stdout.split("best validation mIoU (%)\n")[1].split("\n\n")
    assert [line.split()[0] for line in table.splitlines()] == [
        f"e__p{n}--{arm}" for n, arm in ((0, "l"), (0, "r"), (1, "r"), (1, "l"), (2, "r"), (2, "l"))]
    test, predict = map(shlex.split, last.splitlines()[1:])
    assert parse_options(test[2:]).second_arm == str(out / "e__p2--r.pt") and predict[1].endswith("tools/predict.py")
    assert predict[0] == sys.executable and Path(predict[-1]).is_file()


def test_both_arms_at_the_same_time_give_the_same_bytes(chain, tmp_path):
    numbers, _ = chain
    out, one_by_one = tmp_path / "out", Path(numbers["OUTPUT_DIR"])
    together = start("dmt_ple-voc-106-1lr.sh", "--arms-parallel", f"OUTPUT_DIR={out}", "ratios=0.5", "CHECK=0",
                     **{name: numbers[name] for name in numbers if name not in ("OUTPUT_DIR", "ratios", "REPORT")})
    assert together.returncode == 0 and "warning: the report" not in together.stderr, together.stderr
    assert (out / "report" / "index.html").is_file()
    names = [f"e__p{n}--{arm}" for n in range(2) for arm in "lr"]
    assert sorted(re.findall(r"^ *\d+ s  (\S+): best", together.stdout, re.MULTILINE)) == names
    assert sorted(path.stem for path in (out / "logs").iterdir()) == names
    labels = sorted(path.relative_to(out) for path in out.glob("pseudo/*/labels/*"))
    assert len(labels) == 2 * 16
    for path in [*labels, *(f"{name}.pt" for name in names)]:
        assert (out / path).read_bytes() == (one_by_one / path).read_bytes()


def test_changed_numbers_are_listed_and_a_folder_has_one_launcher(chain, tmp_path):
    numbers, done = chain
    out = Path(numbers["OUTPUT_DIR"])
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    others = {name: numbers[name] for name in numbers if name != "ep"}
    changed = start("dmt_ple-voc-106-1lr.sh", "ep=2", cwd=tmp_path, **others)
    assert changed.returncode == 2 and len(changed.stderr.splitlines()) == 1
    assert "e__p1--r (--epochs was 1, now it is 2)" in changed.stderr and "REDO=1" in changed.stderr
    with locked(out / ".lock", "it"):
        refused = start("dmt_ple-voc-106-1lr.sh", cwd=tmp_path, **numbers)
    assert refused.returncode == 2 and "another launcher" in refused.stderr and len(refused.stderr.splitlines()) == 1
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert planned(numbers).finished == 10 and not planned(numbers).changed
    changed = planned(numbers, "lr0=0.5").changed
    assert len(changed) == 10 and list(changed.values()).count(None) == 8
    (out / "log.txt").write_bytes(b"garbage\nx: y\n\xff: 1.0000\n" + (out / "log.txt").read_bytes())
    test = next(line for line in done.stdout.splitlines() if "--second-arm" in line)
    again = subprocess.run([sys.executable, ROOT / "scripts" / "results.py", "python", "0"], capture_output=True,
                           input=SEPARATOR.join(shlex.split(test)), text=True)
    assert again.returncode == 0 and f"{'e__p0--l':<44} " in again.stdout and "garbage" not in again.stdout


def planned(numbers, *words):
    printed = start("dmt_ple-voc-106-1lr.sh", *words, DRY_RUN="plan", **numbers).stdout
    return Plan(printed.splitlines(), parse_options)


@pytest.mark.parametrize("word, count, reason", [
    ("beta=", 4, "PLE (beta) was on, now it is off"),
    ("batch_labeling=4", 8, "--batch-size-labeling was 8, now it is 4"),
    ("weights=LICENSE", 10, "--weights was none, now it is "),
    ("EXTRA=--background=none", 10, "--crop-size was [33, 33], now it is [97, 97]"),
    ("EXTRA=--crop-size 33 33 --test-size 65 65 --background=none", 8, "--background was 0, now it is None"),
    ("EXTRA=--crop-size 33 33 --test-size 65 65 --no-aug", 10, "--no-aug was False, now it is True"),
    ("EXTRA=--crop-size 33 33 --test-size 65 65 --aspp-branches=4", 10, "--aspp-branches was 2, now it is 4")])
def test_whatever_number_has_changed_is_named_before_a_finished_stage_is_replaced(chain, word, count, reason):
    numbers = {name: value for name, value in chain[0].items() if not word.startswith(f"{name}=")}
    changed = planned(numbers, word).changed
    assert len(changed) == count and any(one and one.startswith(reason) for one in changed.values())


def test_a_background_that_is_no_class_is_refused_before_round_0(chain, tmp_path):
    done = start("dmt_ple-voc-106-1lr.sh", **{**chain[0], "EXTRA": "--background=99", "OUTPUT_DIR": str(tmp_path / "o")})
    assert done.returncode == 2 and done.stderr == (
        "error: --background 99: shapes has the classes 0 to 7; give one of them or none\n")
    assert not (tmp_path / "o").exists()


def test_a_failed_job_ends_the_other_and_its_line_says_why(chain, tmp_path):
    numbers, _ = chain
    done = start("dmt_ple-voc-106-1lr.sh", "--arms-parallel", "CHECK=0", **{
        **numbers, "OUTPUT_DIR": str(tmp_path), "EXTRA": numbers["EXTRA"] + " --weights=/no/such/file"})
    assert done.returncode == 2 and done.stderr.startswith("error: 'e__p0--l' failed (status 2): ")
    assert "/no/such/file" in done.stderr


@pytest.mark.parametrize("parallel", ["0", "1"])
def test_ctrl_c_stops_what_runs_and_says_what_is_kept(chain, parallel, tmp_path):
    numbers, _ = chain
    environment = {"PATH": os.environ["PATH"], **numbers, "OUTPUT_DIR": str(tmp_path / "out"), "ep0": "100000",
                   "CHECK": "0", "ARMS_PARALLEL": parallel}
    with subprocess.Popen([ROOT / "dmt_ple-voc-106-1lr.sh"], env=environment, cwd=tmp_path, start_new_session=True,
                          preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as launcher:
        metrics = tmp_path / "out" / "e__p0--l" / "metrics.jsonl"
        deadline = time.monotonic() + 200
        while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.2)
        os.killpg(launcher.pid, signal.SIGINT)  # as a terminal does
        _, errors = launcher.communicate(timeout=200)
    assert launcher.returncode == 130
    assert "its state is saved" in errors and "stopped: what is finished is kept" in errors
    with locked(tmp_path / "out" / ".lock", "it"):  # nothing runs on
        pass


# --- prepare_coco.sh ---------------------------------------------------------------------------------------------


def made_up_coco(folder):
    """A file with the names and shapes of the Caffe model, named after its hash."""
    with torch.device("meta"):
        names = deeplab_v2(21).state_dict()
    state = {name.replace("backbone.", "").replace("classifier.0.convs.", "layer5.conv2d_list."):
             torch.tensor(1.0).expand(tensor.shape)
             for name, tensor in names.items() if not name.endswith("num_batches_tracked")}
    torch.save(state, folder / "made")
    digits = hashlib.sha256((folder / "made").read_bytes()).hexdigest()[:8]
    return (folder / "made").rename(folder / f"resnet101COCO-{digits}.pth")


def test_prepare_coco_goes_on_checks_converts_and_skips(tmp_path):
    (tmp_path / "web").mkdir()
    source = made_up_coco(tmp_path / "web")
    target = tmp_path / "out"
    target.mkdir()
    (target / f"{source.name}.part").write_bytes(source.read_bytes()[:1000])  # an interrupted download
    variables = {"COCO_URL": source.as_uri(), "COCO_DIR": "out", "PYTHON": sys.executable, "cwd": tmp_path}
    done = start("prepare_coco.sh", **variables)
    assert done.returncode == 0, done.stderr
    assert "528 tensors match" in done.stdout and "520 tensors match" in done.stdout
    assert {path.name for path in target.iterdir()} == {source.name, "voc_coco_resnet101.pt", "city_coco_resnet101.pt"}
    assert (target / source.name).read_bytes() == source.read_bytes()
    again = start("prepare_coco.sh", **variables)
    assert again.returncode == 0 and "already" in again.stdout and "downloading" not in again.stdout


def test_prepare_coco_says_what_to_do_by_hand(tmp_path):
    assert "COCO_DIR=" in start("prepare_coco.sh", "--help").stdout
    assert start("prepare_coco.sh", "--epochs=3").returncode == 2
    (tmp_path / "resnet101COCO-41f33a49.pth").write_bytes(b"an error page")
    wrong, absent = (
        start("prepare_coco.sh", COCO_DIR=str(tmp_path / "out"), COCO_URL=(tmp_path / f"{name}-41f33a49.pth").as_uri())
        for name in ("resnet101COCO", "gone"))
    damaged = start("prepare_coco.sh", COCO_DIR=str(tmp_path))
    for done, message in ((wrong, "another file"), (absent, "put it at"), (damaged, "is damaged")):
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and message in done.stderr
    assert list((tmp_path / "out").iterdir()) == []
