"""Several processes as torchrun starts them, on a CPU: what they compute is what one computes, and how they end."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import REPOSITORY
from tests.test_stages import SMALL, first_weights, tensors
from tests.together import confusion, stage
from utils.distributed import ALONE, Processes

SIZES = ["--test-size", "65", "65", "--batch-size-labeling=3"]
COUNTS = [3]


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
        for words in lines(out):
            function = confusion if words[0] == "confusion" else stage
            function(ALONE, *words[function is confusion :])
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
    assert printed.count("best validation mIoU") == 2 and printed.count("labelled 17 images in") == 3
    assert errors.count("warning: ") <= 2
    files = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")
                    if path.is_file() and "events" not in path.name and not path.name.endswith("norm.json"))
             for folder in (alone, out)]
    assert files[0] == files[1]
    assert len(list(out.glob("*/tensorboard/events*"))) == 2
    assert (out / "log.txt").read_text().count("\n") == 2


# --- main.py itself by torchrun -----------------------------------------------------------------------------------


def errors_of(done):
    return [text for text in done.stderr.splitlines() if text.startswith("error: ")]


def test_several_processes_label_as_one(lines, alone, tmp_path):
    done = torchrun(2, "main.py", *lines(tmp_path)[0])
    assert done.returncode == 0 and done.stdout.count("labelled 17 images in") == 1, done.stderr
    expected = [path for path in (alone / "pseudo" / "1").rglob("*") if path.suffix in (".png", ".npz", ".json")
                and path.name != "timing.json"]
    assert len(expected) == 3 * 17 + 2
    for path in expected:
        assert path.read_bytes() == (tmp_path / "pseudo" / "1" / path.relative_to(alone / "pseudo" / "1")).read_bytes(), path


def test_training_by_several_processes_takes_gpus(lines, tmp_path):
    done = torchrun(2, "main.py", *lines(tmp_path)[2])
    assert done.returncode != 0 and "takes a GPU for each" in "".join(errors_of(done)), done.stderr
    assert len(errors_of(done)) == 1 and not (tmp_path / "supervised").exists()


@pytest.mark.parametrize("everywhere", [True, False])
def test_bad_input_is_one_line(everywhere, lines, root, tmp_path):
    """Every process finds that the data are missing, the second of them that its image is damaged."""
    own, line = tmp_path / "data", lines(tmp_path / "out")[0]
    if not everywhere:
        shutil.copytree(root, own)
        name = (own / "ImageSets/Segmentation/8_unlabeled_0.txt").read_text().split()[3]  # of the second batch of 3
        image = own / "JPEGImages" / f"{name}.jpg"
        image.write_bytes(image.read_bytes()[:-300])
    done = torchrun(2, "main.py", *line, f"--data-root={own}")
    assert done.returncode != 0 and len(errors_of(done)) == 1 and str(own) in errors_of(done)[0], done.stderr


def signalled(line, metrics_file, folder, choose, number):
    """Start two processes and send a signal when they have logged some steps: (status, errors, their numbers).

    ``choose`` picks the receiver from the number of torchrun and those of its processes.
    """
    (folder / "line.json").write_text(json.dumps([line]))
    started = subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
                                "tests/together.py", folder / "line.json"], cwd=REPOSITORY, text=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        while not metrics_file.is_file() or len(metrics_file.read_text().splitlines()) < 7:
            assert started.poll() is None, started.communicate()
            time.sleep(0.02)
        ranks = [int(rank) for rank in Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()]
        os.kill(choose(started.pid, ranks), number)
        _, errors = started.communicate(timeout=100)
    finally:
        started.kill()
    return started.returncode, errors, ranks


def test_sigterm_saves_the_state_and_any_number_of_processes_goes_on(lines, tmp_path):
    def line(out):
        return [*lines(out)[2], "--epochs=12", "--lr=0.00005"]  # the last of equal options counts

    stopped, whole = tmp_path / "stopped" / "supervised", tmp_path / "whole" / "supervised"
    status, errors, _ = signalled(line(stopped.parent), stopped / "metrics.jsonl", tmp_path, lambda own, _: own,
                                  signal.SIGTERM)
    last = int(errors.split("stopped at step ")[1].split(";")[0])
    assert status != 0 and last == max(entry["step"] for entry in metrics(stopped, "train")) < 36
    with handlers_kept():
        stage(ALONE, *line(stopped.parent))
        stage(ALONE, *line(whole.parent))
    expected, found = metrics(whole, "train"), metrics(stopped, "train")
    assert [entry["step"] for entry in found] == [entry["step"] for entry in expected] == list(range(1, 37))
    for one, other in zip(expected, found):  # rounding grows from step to step
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)


def test_where_one_dies_torchrun_ends_the_others(lines, tmp_path):
    status, errors, ranks = signalled([*lines(tmp_path)[2], "--epochs=10000", "--lr=0.00005"],
                                      tmp_path / "supervised" / "metrics.jsonl", tmp_path, lambda _, ranks: ranks[1],
                                      signal.SIGKILL)
    assert status != 0 and "SIGKILL" in errors
    assert not any(Path("/proc", str(rank)).exists() for rank in ranks)


def test_what_torchrun_does_not_start_is_alone():
    assert Processes({"RANK": "3", "WORLD_SIZE": "4"}).size == 1
    started = Processes({"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"})
    assert (started.rank, started.size, started.local_rank, started.local_size) == (3, 4, 1, 2)
