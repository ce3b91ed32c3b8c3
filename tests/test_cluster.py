"""Launchers on several processes and side by side: what they call, and how what they have started ends."""

import os
import shlex
import subprocess
import sys

import pytest

from tests.test_launchers import ROOT, commands, start

TORCHRUN = ["python", "-m", "torch.distributed.run"]


def test_a_stage_on_several_processes_is_the_same_stage():
    alone = commands("dmt_ple-voc-20-1.sh")
    for launched, more in (
            ([*TORCHRUN, "--standalone", "--nproc-per-node=4"], {"NPROC": "4"}),
            ([*TORCHRUN, "--nnodes=2", "--nproc-per-node=4"], {"LAUNCH": "torchrun --nnodes=2 --nproc-per-node=4"}),
            (["srun", "--ntasks-per-node=1", *TORCHRUN, "--nnodes=2"],
             {"LAUNCH": "srun --ntasks-per-node=1 torchrun --nnodes=2"})):
        together = commands("dmt_ple-voc-20-1.sh", **more)
        assert [words[: len(launched)] for words in together] == [launched] * 22
        assert [words[len(launched) :] for words in together] == [words[1:] for words in alone]
    own, *_ = commands("dmt_ple-voc-20-1.sh", NPROC="2", PYTHON="/my python/bin/python")
    assert own[:4] == ["/my python/bin/python", *TORCHRUN[1:], "--standalone"]
    assert commands("dmt_ple-voc-20-1.sh", NPROC="1") == alone
    assert commands("dmt_ple-voc-20-1.sh", ARMS_PARALLEL="1") == alone
    assert commands("dmt_ple-voc-20-1.sh", "--arms-parallel") == alone


@pytest.mark.parametrize("variables, said", [
    ({"NPROC": "two"}, "NPROC is 'two'"), ({"NPROC": "0"}, "NPROC is '0'"),
    ({"LAUNCH": "srun --nodes=2"}, "needs the word torchrun"),
    ({"LAUNCH": "torchrun --nnodes=2", "ARMS_PARALLEL": "1"}, "goes without ARMS_PARALLEL, which is for one machine")])
def test_bad_numbers_are_one_line(variables, said):
    done = start("dmt_ple-voc-20-1.sh", DRY_RUN="1", **variables)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1) and said in done.stderr


@pytest.mark.parametrize("arguments", [["--arms-parallel", "more"], ["more"], ["--arms-parallel", "--foo"]])
def test_words_that_mean_nothing_are_refused(arguments):
    done = start("dmt_ple-voc-20-1.sh", *arguments, DRY_RUN="1")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1) and arguments[-1] in done.stderr


def bash(text, tmp_path, **variables):
    """Run lines of a launcher after rounds.sh."""
    rounds = shlex.quote(str(ROOT / "scripts/rounds.sh"))
    lines = f"exp=e dataset=shapes coco_weights= coco_arms=\nsource {rounds}\n{text}"
    environment = {**os.environ, "PYTHON": sys.executable, "OUTPUT_DIR": str(tmp_path / "out"), **variables}
    return subprocess.Popen(["bash", "-c", lines, "launcher"], cwd=tmp_path, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_places_get_gpus_of_their_own(tmp_path):
    text = "for place in 0 1 2; do (use_gpus $place; echo $CUDA_VISIBLE_DEVICES); done"
    for given, count, expected in (("", "1", ""), ("3,5,7,8", "2", "3,5 7,8 3,5"), ("4,6", "1", "4 6 4"),
                                   ("4", "1", "4 4 4"), ("4", "2", "4 4 4")):
        variables = {"CUDA_VISIBLE_DEVICES": given, "NPROC": count, "PATH": "/usr/bin:/bin"}
        shown, errors = bash(text, tmp_path, **variables).communicate()
        assert (shown.split(), errors) == (expected.split(), "")


def test_sigterm_to_a_launcher_ends_what_runs_beside_it(tmp_path):
    text = """
    endless() { trap 'echo saved >> saved; exit 143' TERM; touch ready; while true; do sleep 0.05; done; }
    begin endless endless
    while [ ! -f ready ]; do sleep 0.05; done
    echo ready
    finish endless
    """
    running = bash(text, tmp_path, ARMS_PARALLEL="1")
    assert running.stdout.readline() == "ready\n"
    running.terminate()
    running.communicate(timeout=60)
    assert running.returncode == 143 and (tmp_path / "saved").read_text() == "saved\n"


def test_a_stage_that_fails_under_torchrun_says_so_in_one_line(tmp_path):
    text = f"stage --continue-from=absent.pt --labeling --data-root={tmp_path} || echo failed"
    printed, errors = bash(text, tmp_path, NPROC="2", MIXED_PRECISION="0").communicate(timeout=300)
    assert printed.splitlines()[-1] == "failed" and errors.count("error: ") == 1, errors
