"""Several processes as torchrun starts them, on a CPU: what they compute is what one computes, and how they end."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import REPOSITORY
from tests.test_stages import SMALL, first_weights, tensors
from tests.together import run
from utils.checkpoints import load
from utils.distributed import Processes
from utils.errors import UserError

SIZES = ["--test-size", "65", "65", "--batch-size-labeling=3"]
COUNTS = [2, 3]


def torchrun(count, *words, **options):
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}",
                           *map(str, words)], cwd=REPOSITORY, capture_output=True, text=True, timeout=300, **options)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """10 labelled, 17 unlabelled and 7 validation images: by batches of 3 they divide among neither 2 nor 3 processes."""
    import generate_splits
    from data.synthetic import generate
    root = tmp_path_factory.mktemp("uneven") / "data"
    generate(root, 27, 7, seed=3, size=(64, 64), layout="voc")
    generate_splits.main(["--dataset", "shapes", "--data-root", str(root), "--divisors", "8:3"])
    return root


@pytest.fixture(scope="module")
def lines(root, tmp_path_factory):
    """The stages that every number of processes runs, as a function of the output folder."""
    given = tmp_path_factory.mktemp("given")
    for seed in (1, 2):
        first_weights(given / f"{seed}.pt", 8, seed=seed, sureness=10)
    first_weights(given / "calm.pt", 8)  # one that rounding does not upset within a few steps

    def make(out):
        common = ["--dataset=shapes", f"--data-root={root}", "--train-set=8", f"--output-dir={out}", "--device=cpu",
                  *map(str, SMALL), *SIZES]
        train = ["--epochs=2", "--lr=0.0005", "--log-num-steps=1", "--val-num-steps=3", "--save-num-steps=2", *common]
        mutual = ["--gamma1=5", "--gamma2=5", "--batch-size-labeled=1", "--batch-size-pseudo=6",
                  f"--pseudo-dir={out}/pseudo/2", f"--continue-from={given / 'calm.pt'}", *train]
        return [
            ["--labeling", f"--continue-from={given / '1.pt'}", "--label-ratio=0.5", f"--pseudo-dir={out}/pseudo/1", *common],
            ["--labeling", f"--continue-from={given / '2.pt'}", "--label-ratio=0.5", f"--oldfilename={given / '1.pt'}",
             "--beta=0.02", "--background=none", f"--pseudo-dir={out}/pseudo/2", *common],
            ["--state=2", "--exp-name=supervised", "--batch-size-labeled=4", f"--continue-from={given / 'calm.pt'}", *train],
            ["--exp-name=mutual", "--aspp-branches=4", *mutual],
            ["confusion", f"{out}/confusion.json", f"--continue-from={given / '2.pt'}", *common],
            ["--labeling", f"--continue-from={given / '2.pt'}", "--label-ratio=0.5", f"--oldfilename={given / '1.pt'}",
             "--previous-statistics=batch", "--beta=0.02", f"--pseudo-dir={out}/pseudo/3", *common],
        ]
    return make


@contextlib.contextmanager
def handlers_kept():
    """Stages set signal handlers in the process they run in."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.fixture(scope="module")
def alone(lines, tmp_path_factory):
    """The output folder of the stages in one process, this one."""
    out = tmp_path_factory.mktemp("alone") / "out"
    with handlers_kept():
        run(lines(out))
    return out


@pytest.fixture(scope="module", params=COUNTS)
def together(request, lines, tmp_path_factory):
    """(output folder, standard output, standard error) of the stages with several processes."""
    folder = tmp_path_factory.mktemp(f"together{request.param}")
    out, file = folder / "out", folder / "lines.json"
    file.write_text(json.dumps([*lines(out), ["batch_norm", f"{out}/batch_norm.json"]]))
    done = torchrun(request.param, "tests/together.py", file)
    assert done.returncode == 0, done.stderr
    return out, done.stdout, done.stderr


def given(lines, number):
    """The checkpoint that a stage starts from."""
    return next(word for word in lines("")[number] if word.startswith("--continue-from")).split("=")[1]


def metrics(folder, kind):
    return [line for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if line["kind"] == kind]


@pytest.mark.parametrize("name", ["supervised", "mutual"])
def test_the_loss_curve_is_one_processs(name, alone, together):
    expected, found = (metrics(folder / name, "train") for folder in (alone, together[0]))
    assert [line["step"] for line in expected] == [line["step"] for line in found] == [1, 2, 3, 4, 5, 6]
    for one, several in zip(expected, found):
        for key in ("loss", "unweighted_loss", "mean_weight", "disagreeing_share", "lr"):
            assert several[key] == pytest.approx(one[key], rel=2e-5), (one["step"], key)


def relative(expected, found):
    return ((expected.double() - found.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize("name", ["supervised", "mutual"])
def test_what_was_learnt_and_the_running_statistics_are_one_processs(name, lines, alone, together):
    start, expected, found = (tensors(path) for path in (
        given(lines, 2), alone / f"{name}.pt", together[0] / f"{name}.pt"))
    assert list(expected) == list(found)

    def learnt(state):
        return torch.cat([(state[key] - start[key]).flatten() for key in state if key.endswith(("weight", "bias"))])

    assert relative(learnt(expected), learnt(found)) < 0.01  # a change of a millionth, known to two digits
    for key, value in expected.items():
        if "running" in key:
            assert relative(value, found[key]) < 1e-4, key
        elif key.endswith("tracked"):
            assert torch.equal(value, found[key])


def test_synchronized_batch_normalization_is_that_of_the_whole_batch(together):
    for distances in json.loads((together[0] / "batch_norm.json").read_text()):
        assert len(distances) == 3 * 9
        assert {name: value for name, value in distances.items() if value > 2e-6} == {}


def test_the_confusion_matrix_is_identical(alone, together):
    expected, found = (json.loads((folder / "confusion.json").read_text()) for folder in (alone, together[0]))
    assert expected == found and sum(map(sum, expected)) > 7 * 32 * 32


def test_thresholds_and_pseudo_labels_are_identical(alone, together):
    expected = sorted(path for path in (alone / "pseudo").rglob("*") if path.is_file()
                      and path.name not in ("timing.json", ".lock"))
    assert len(expected) == 3 * (3 * 17 + 2)
    for path in expected:
        assert path.read_bytes() == (together[0] / path.relative_to(alone)).read_bytes(), path
    manifest = json.loads((alone / "pseudo" / "2" / "manifest.json").read_text())
    assert 0 < manifest["labeled_share"]["changed"] and len(set(manifest["thresholds"])) > 2


def test_parameters_of_idle_branches_stay_as_loaded(lines, together):
    start = tensors(given(lines, 2))
    for name, trained in (("supervised", 2), ("mutual", 4)):
        after = tensors(together[0] / f"{name}.pt")
        same = [torch.equal(start[f"classifier.0.convs.{index}.weight"], after[f"classifier.0.convs.{index}.weight"])
                for index in range(4)]
        assert same == [False] * trained + [True] * (4 - trained)


def test_one_process_speaks_and_writes(alone, together):
    out, printed, errors = together
    assert printed.count("best validation mIoU") == 2 and printed.count("labelled 17 images in") == 2
    assert errors.count("warning: ") <= 2
    files = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")
                    if path.is_file() and "events" not in path.name and not path.name.endswith("norm.json"))
             for folder in (alone, out)]
    assert files[0] == files[1]
    assert len(list(out.glob("*/tensorboard/events*"))) == 2
    assert (out / "log.txt").read_text().count("\n") == 2


# --- the end ------------------------------------------------------------------------------------------------------


def signalled(count, rank, number, metrics_file, words, status):
    """Start ``words``, and signal one process with its loader's when some steps are done: its status and outputs.

    That is how torchrun itself passes on a signal.
    """
    before = len(metrics_file.read_text().splitlines()) if metrics_file.is_file() else 0
    started = subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--standalone",
                                f"--nproc-per-node={count}", "main.py", *words, "--workers=1"], cwd=REPOSITORY,
                               text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env={**os.environ, "STATUS_FILE": status})
    try:
        while not metrics_file.is_file() or len(metrics_file.read_text().splitlines()) < before + 7:
            assert started.poll() is None, started.communicate()
            time.sleep(0.02)
        processes = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
        wanted = [int(process) for process in processes
                  if f"RANK={rank}" in Path(f"/proc/{process}/environ").read_text().split("\0")]
        os.killpg(*wanted, number)
        printed, errors = started.communicate(timeout=60)
    finally:
        started.kill()
    return started.returncode, printed, errors


def test_signals_and_deaths_end_all_and_any_number_of_processes_goes_on(lines, root, tmp_path):
    def line(out):
        return [*lines(out)[2], "--epochs=12", "--lr=0.00005"]  # the last of equal options counts

    status, metrics_file = tmp_path / "status", tmp_path / "out" / "supervised" / "metrics.jsonl"
    code, printed, errors = signalled(2, 1, signal.SIGTERM, metrics_file, line(tmp_path / "out"), status)
    assert (code, status.read_text()) == (0, str(128 + signal.SIGTERM)), errors
    assert len(errors.splitlines()) == 1 and "stopped at step" in errors
    stopped = int(errors.split("stopped at step ")[1].split(";")[0])
    code, printed, errors = signalled(3, 1, signal.SIGKILL, metrics_file, line(tmp_path / "out"), status)
    assert f"3 processes, going on from step {stopped}" in printed
    said = [text for text in errors.splitlines() if text.startswith("error: ")]
    assert code != 0 and len(said) == 1 and "rank 1 of 3 processes" in said[0] and "died" in said[0], errors
    with handlers_kept():
        run([line(tmp_path / "out"), line(tmp_path / "whole")])
    expected, found = (metrics(tmp_path / out / "supervised", "train") for out in ("whole", "out"))
    assert [entry["step"] for entry in found] == [entry["step"] for entry in expected] == list(range(1, 37))
    for one, other in zip(expected, found):  # rounding grows from step to step
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)


@pytest.mark.parametrize("early", [False, True])
def test_processes_end_with_torchrun(early, lines, tmp_path):
    """It is killed: they save what they have and end, too; or where they have not met yet, give up looking for it."""
    stage = tmp_path / "supervised"
    words = [*lines(tmp_path)[2], "--epochs=10000", "--lr=0.00005"]
    started = subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
                                "main.py", *words], cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ranks = []
    try:
        while len(ranks) < 2 or not early and not (stage / "state.pt").is_file():
            assert started.poll() is None
            ranks = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
            time.sleep(0.02)
    finally:
        started.kill()
        started.wait()
    end = time.monotonic() + 90
    while (left := [rank for rank in ranks if Path("/proc", rank).exists()]) and time.monotonic() < end:
        time.sleep(0.1)
    assert left == []
    if not early:
        steps = [line["step"] for line in map(json.loads, (stage / "metrics.jsonl").read_text().splitlines())]
        state = load(stage / "state.pt")
        assert state["step"] == max(steps)  # the last thing they did was to save


@pytest.mark.parametrize("everywhere", [True, False])
def test_bad_input_is_one_line(everywhere, lines, root, tmp_path):
    """Every process finds that the data are missing, one of them that its image is damaged."""
    own, line = tmp_path / "data", lines(tmp_path / "out")[2]
    if not everywhere:
        shutil.copytree(root, own)
        name = (own / "ImageSets/Segmentation/8_labeled_0.txt").read_text().split()[0]
        image = own / "JPEGImages" / f"{name}.jpg"
        image.write_bytes(image.read_bytes()[:-300])
    done = torchrun(2, "main.py", *line, f"--data-root={own}", env={**os.environ, "STATUS_FILE": tmp_path / "status"})
    said = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert (tmp_path / "status").read_text() == "2" and len(said) == 1 and str(own) in said[0], done.stderr
    if everywhere:  # torchrun has nothing to report
        assert (done.returncode, done.stderr.splitlines()) == (0, said)
    else:
        assert done.returncode != 0


ALONE_HERE = """
import sys, time
sys.path.insert(0, {path!r})
import torch
from utils.checkpoints import load
from utils.distributed import Processes
from utils.errors import UserError
with Processes() as processes:
    {line}
"""


@pytest.mark.parametrize("line, said", [
    ("if processes.rank: raise UserError('nothing is here')\n    processes.connect(torch.device('cpu'))", "nothing is here"),
    ("processes.connect(torch.device('cpu'))\n    processes.agree(min(processes.rank, 1), 'the numbers of it')",
     "the processes differ in the numbers of it (rank 1 from rank 0)")])
def test_who_does_not_come_or_has_other_numbers_ends_all(line, said, tmp_path):
    """Also where nobody kills the others, as on another machine; a status that an earlier start has left is not this one's."""
    (tmp_path / "apart.py").write_text(ALONE_HERE.format(path=str(REPOSITORY), line=line))
    (tmp_path / "status").write_text("0")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    apart = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "localhost",
             "MASTER_PORT": str(port)}
    machines = [subprocess.Popen([sys.executable, tmp_path / "apart.py"], stderr=subprocess.PIPE, text=True, env={
        **os.environ, **apart, "RANK": str(rank), "STATUS_FILE": str(tmp_path / f"status{rank or ''}")}) for rank in range(2)]
    errors = [machine.communicate(timeout=100)[1] for machine in machines]
    lines = [text for text in "".join(errors).splitlines() if text.startswith("error: ")]
    assert len(lines) == 1 and said in lines[0], errors
    assert (tmp_path / "status").read_text() == "2"


def test_a_cluster_that_sets_ranks_alone_is_one_line():
    with pytest.raises(UserError, match="MASTER_ADDR is not"):
        Processes({"RANK": "0", "WORLD_SIZE": "4"})


def test_the_status_is_that_of_the_one_who_speaks_however_long_it_takes(tmp_path):
    """All processes raise the same at the same time, and one is told to say it: the others must not be first to end."""
    (tmp_path / "slow.py").write_text(f"""
import sys, time
sys.path.insert(0, {str(REPOSITORY)!r})
from utils.checkpoints import load
from utils.distributed import Processes
from utils.errors import UserError
class Slow(UserError):
    status = 3
    def __str__(self):
        time.sleep(0.5)
        return "slowly"
with Processes() as processes:
    raise Slow
""")
    done = torchrun(2, tmp_path / "slow.py", env={**os.environ, "STATUS_FILE": tmp_path / "status"})
    assert (tmp_path / "status").read_text() == "3" and done.stderr.count("error: slowly") == 1, done.stderr
