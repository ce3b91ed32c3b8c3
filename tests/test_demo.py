"""demo.sh: what it would run. The whole of it takes minutes and is run by hand; its stages have tests of their own."""

import functools
import shlex

import pytest

from tests.test_launchers import start
from utils.options import parse_options



demo = functools.partial(start, "demo.sh", cwd="/")


@pytest.fixture(scope="module")
def stages():
    """The options of every main.py that the demo calls, in order."""
    done = demo(DRY_RUN="1")
    assert (done.returncode, done.stderr) == (0, "")
    words = [shlex.split(line) for line in done.stdout.splitlines()]
    return [parse_options(line[2:]) for line in words if line[1].endswith("/main.py")]


def test_stages_are_a_baseline_two_arms_and_rounds_of_which_two_have_ple(stages):
    trainings = [stage.exp_name for stage in stages if not stage.labeling]
    assert trainings == ["demo__p0--b", "demo__p0--l", "demo__p0--r", "demo__p1--r", "demo__p1--l", "demo__p2--r",
                         "demo__p2--l", "demo__p3--r", "demo__p3--l"]
    labelings = [stage for stage in stages if stage.labeling]
    assert [bool(stage.oldfilename) for stage in labelings] == [False, False, True, True, True, True]
    assert [stage.label_ratio for stage in labelings[::2]] == [0.4, 0.6, 0.8]
    assert {stage.increment for stage in labelings} == {0.15}
    assert {(stage.gamma1, stage.gamma2) for stage in stages if stage.state == 1 and not stage.labeling} == {(5, 5)}


def test_baseline_has_all_labels_and_no_fewer_steps_than_an_arm(stages):
    images = 800
    baseline, *others = [stage for stage in stages if not stage.labeling]
    labels = images // int(baseline.train_set)
    arm = [stage for stage in others if stage.exp_name.endswith("--l")]
    half = labels - -(-labels // 5)  # dms_sample.py leaves out a fifth, rounded up
    steps = arm[0].epochs * -(-half // arm[0].batch_size_labeled)
    steps += sum(stage.epochs * -(-(images - labels) // stage.batch_size_pseudo) for stage in arm[1:])
    assert baseline.train_set == arm[1].train_set and arm[0].train_set == f"{baseline.train_set}-l"
    assert baseline.epochs * -(-labels // baseline.batch_size_labeled) >= steps


def test_seed_changes_images_split_and_trainings():
    first, second = (demo(DRY_RUN="1", SEED=seed).stdout for seed in "01")
    for option in ("--seed=0", "--sets-id=0"):
        assert option in first and option not in second
    assert "demo-1__p3--r" in second and "runs/demo-1" in second


def test_defaults_of_the_demo_can_be_set(tmp_path):
    printed = demo("MIXED_PRECISION=1", "backbone=resnet50", "OUTPUT_DIR=here", DRY_RUN="1").stdout
    assert printed.count(" --mixed-precision ") == 15 and printed.count(" --backbone=resnet50 ") == 3
    assert "--output-dir=here " in printed  # where the user is
    refused = demo("SEED=x", f"OUTPUT_DIR={tmp_path / 'out'}")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and not any(tmp_path.iterdir())
