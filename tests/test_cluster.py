"""Launchers on several processes, several machines and side by side: what they call, and that statuses come through."""

import os
import shlex
import subprocess
import sys

import pytest

from tests.test_launchers import ROOT, commands, everything, start

TORCHRUN = ["python", "-m", "torch.distributed.run"]


def test_a_stage_on_several_processes_is_the_same_stage():
    alone = commands("dmt_ple-voc-20-1.sh")
    together = commands("dmt_ple-voc-20-1.sh", NPROC="4")
    assert [words[:5] for words in together] == [[*TORCHRUN, "--nproc-per-node=4", "--standalone"]] * 22
    assert [words[5:] for words in together] == [words[1:] for words in alone]
    assert commands("dmt_ple-voc-20-1.sh", NPROC="1", NNODES="1") == alone
    assert commands("dmt_ple-voc-20-1.sh", ARMS_PARALLEL="1") == commands("dmt_ple-voc-20-1.sh", "--arms-parallel") == alone


def test_machines_meet_at_a_port_that_the_stage_before_has_not_used():
    found = commands("dmt_ple-city-8-1.sh", NPROC="4", NNODES="2", RDZV="gpu1:29500")
    options = [dict(word.lstrip("-").split("=", 1) for word in words[3:9]) for words in found]
    assert all((one["nnodes"], one["rdzv-backend"], one["rdzv-conf"]) == (
        "2", "c10d", "read_timeout=1800,join_timeout=1800") for one in options)
    assert len({one["rdzv-id"] for one in options}) == len(found) == 22
    endpoints = [one["rdzv-endpoint"] for one in options]
    assert set(endpoints) == {f"gpu1:{port}" for port in range(29500, 29508)}
    assert not any(one == other for one, other in zip(endpoints, endpoints[1:]))


def test_one_machine_makes_the_reports():
    numbers = {"NNODES": "2", "RDZV": "a:1"}
    first, second = (everything("dmt_ple-voc-106-1lr.sh", NODE_RANK=rank, **numbers) for rank in "01")
    assert [words for words in first if words[1].endswith("report.py")] and len(second) == 22
    assert [words for words in first if not words[1].endswith("report.py")] == second
    assert everything("dmt_ple-voc-106-1lr.sh", SLURM_NODEID="1", **numbers) == second


@pytest.mark.parametrize("variables, said", [
    ({"NPROC": "two"}, "NPROC is 'two'"), ({"NPROC": "0"}, "NPROC is '0'"), ({"NNODES": "2"}, "RDZV is ''"),
    ({"NNODES": "2", "RDZV": "gpu1"}, "RDZV is 'gpu1'")])
def test_bad_numbers_are_one_line(variables, said):
    done = start("dmt_ple-voc-20-1.sh", DRY_RUN="1", **variables)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1) and said in done.stderr


@pytest.mark.parametrize("script", ["scripts/reproduce.sh", "scripts/ablations/voc.sh"])
def test_many_runs_are_not_for_several_machines(script):
    done = start(script, DRY_RUN="1", NNODES="2", RDZV="a:1")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1) and "NNODES" in done.stderr


def bash(text, tmp_path, **variables):
    """Run lines of a launcher after rounds.sh."""
    lines = f"exp=e dataset=shapes coco_weights= coco_arms=\nsource {shlex.quote(str(ROOT / 'scripts/rounds.sh'))}\n{text}"
    return subprocess.Popen(["bash", "-c", lines, "launcher"], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env={**os.environ, "PYTHON": sys.executable, "OUTPUT_DIR": str(tmp_path / "out"), **variables})


def test_slots_get_gpus_of_their_own(tmp_path):
    text = "for slot in 0 1 2; do (use_gpus); done"
    for given, count, expected in (("", "1", ""), ("3,5,7,8", "2", "3,5 7,8 3,5"), ("4,6", "1", "4 6 4"), ("4", "1", "4 4 4"),
                                   ("4", "2", "")):
        shown, errors = bash(text, tmp_path, CUDA_VISIBLE_DEVICES=given, NPROC=count, PATH="/usr/bin:/bin").communicate()
        assert (shown.replace("# CUDA_VISIBLE_DEVICES=", "").split(), errors) == (expected.split(), "")


def test_what_runs_side_by_side_ends_together(tmp_path):
    """The first failure ends the others, which may still save what they have; what they printed is kept."""
    text = """
    slow() { trap 'echo saved >> saved; exit 143' TERM; echo started; touch ready; while true; do sleep 0.05; done; }
    bad() { while [ ! -f ready ]; do sleep 0.05; done; echo it broke; exit 7; }
    begin slow slow
    begin bad bad
    finish slow bad
    """
    running = bash(text, tmp_path, ARMS_PARALLEL="1")
    printed, errors = running.communicate(timeout=60)
    assert (running.returncode, printed) == (7, "") and errors.splitlines()[0] == "it broke", errors
    assert "'bad' failed (status 7)" in errors and len(errors.splitlines()) == 2
    assert (tmp_path / "saved").read_text() == "saved\n"
    assert (tmp_path / "out" / "logs" / "slow.txt").read_text().startswith("started\n")


@pytest.mark.parametrize("printed, shown", [("1\n2\nerror: a\nerror: b\nreport\n3\n4\n5", "error: b"), ("1\n2\n3\n4", "2\n3\n4")])
def test_what_a_failed_stage_said_is_shown_and_not_the_report_after_it(printed, shown, tmp_path):
    (tmp_path / "log.txt").write_text(printed + "\n")
    assert bash("said log.txt", tmp_path).communicate()[0] == shown + "\n"


@pytest.mark.parametrize("arguments", [["--arms-parallel", "more"], ["more"], ["--arms-parallel", "--foo"]])
def test_words_that_mean_nothing_are_refused(arguments):
    done = start("dmt_ple-voc-20-1.sh", *arguments, DRY_RUN="1")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1) and arguments[-1] in done.stderr


def test_the_status_of_a_stage_comes_through_torchrun(tmp_path):
    text = f"stage --continue-from=absent.pt --labeling --data-root={tmp_path} || echo status $?"
    running = bash(text, tmp_path, NPROC="2", MIXED_PRECISION="0", TMPDIR=str(tmp_path))
    printed, errors = running.communicate(timeout=300)
    assert printed.splitlines()[-1] == "status 2" and len(errors.splitlines()) == 1 and "error: " in errors, errors
    assert not list(tmp_path.glob("tmp.*"))


def test_two_machines_share_a_stage(shapes_root, tmp_path):
    """Two launchers on this machine, each with one process: the one that comes first leads."""
    from utils.files import sha256
    text = """
    lock_run
    if [ -z "$leads" ]; then echo follows; fi
    train_labeled "$(name 0 b)" b 8 1 1 10
    print_results
    """
    numbers = {"batch0": "4", "lr0": "0.01", "weight_decay": "0", "split": "8", "id": "0", "DATA_ROOT": str(shapes_root),
               "MIXED_PRECISION": "0", "OMP_NUM_THREADS": "1", "RDZV_TIMEOUT": "200",
               "EXTRA": "--backbone=small --weights=none --crop-size 33 33 --test-size 65 65"}
    port = 20000 + os.getpid() % 40000
    machines = [bash(text, tmp_path, NNODES="2", RDZV=f"localhost:{port}", **numbers) for _ in range(2)]
    printed = [machine.communicate(timeout=300) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], printed
    assert sum("follows" in out for out, _ in printed) == 1
    assert sum("best validation mIoU (%)" in out for out, _ in printed) == 1
    assert sum("2 processes" in out for out, _ in printed) == 1  # rank 0 speaks
    assert len((tmp_path / "out" / "log.txt").read_text().splitlines()) == 1 and sha256(tmp_path / "out" / "e__p0--b.pt")


# --- the examples for clusters --------------------------------------------------------------------------------------


@pytest.fixture
def tools(tmp_path):
    """A folder with commands of a cluster that run on this machine what they are given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, lines in {
            "ssh": '[ "$1 $2 $3" = "-tt -o BatchMode=yes" ] || exit 99\nexec bash -c "$5"',
            "srun": '[ "$1" = "--kill-on-bad-exit=1" ] || exit 99\nshift\nSLURM_NODEID=0 "$@"\nSLURM_NODEID=1 "$@"',
            "scontrol": '[ "$1 $2 $3" = "show hostnames gpu[7-8]" ] || exit 99\nprintf "gpu7\\ngpu8\\n"'}.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{lines}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_ssh_starts_the_launcher_on_every_machine(tools):
    done = start("scripts/cluster/ssh.sh", "DRY_RUN=1", "ep=9", "./dmt_ple-voc-20-1.sh", PATH=tools, HOSTS="one two", NPROC="3")
    assert (done.returncode, done.stderr) == (0, "")
    lines = {host: [line.partition(": ")[2] for line in done.stdout.splitlines() if line.startswith(host)]
             for host in ("one", "two")}
    expected = everything("dmt_ple-voc-20-1.sh", NNODES="2", RDZV="one:29500", NPROC="3", NODE_RANK="0", ep="9")
    assert [shlex.split(line) for line in lines["one"]] == expected and len(lines["two"]) == 22
    failed = start("scripts/cluster/ssh.sh", "NPROC=x", "./dmt_ple-voc-20-1.sh", PATH=tools, HOSTS="one two")
    assert failed.returncode == 2
    alone = start("scripts/cluster/ssh.sh", "./dmt_ple-voc-20-1.sh", PATH=tools, HOSTS="one")
    assert alone.returncode == 2 and len(alone.stderr.splitlines()) == 1


def test_slurm_starts_the_launcher_on_every_machine(tools):
    job = {"SLURM_JOB_NODELIST": "gpu[7-8]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "123456", "SLURM_GPUS_ON_NODE": "8"}
    done = start("scripts/cluster/slurm.sh", "env", "ep=9", "./dmt_ple-voc-20-1.sh", PATH=tools, DRY_RUN="1", **job)
    assert (done.returncode, done.stderr) == (0, "")
    numbers = {"NNODES": "2", "RDZV": "gpu7:23456", "NPROC": "8", "ep": "9"}
    expected = [words for rank in "01" for words in everything("dmt_ple-voc-20-1.sh", NODE_RANK=rank, **numbers)]
    assert [shlex.split(line) for line in done.stdout.splitlines()] == expected
    outside = start("scripts/cluster/slurm.sh", "./dmt_ple-voc-20-1.sh", PATH=tools)
    assert outside.returncode == 2 and len(outside.stderr.splitlines()) == 1
