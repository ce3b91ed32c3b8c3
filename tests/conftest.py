"""Tiny datasets that the tests share, and the real command line run in this process."""

import contextlib
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

# Tiny tensors gain nothing from threads, and threads that wait for each other are slow on a busy machine.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items):
    """Tests that need a GPU are skipped where there is none."""
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if wanting:
        import torch
        if not torch.cuda.is_available():
            for item in wanting:
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(autouse=True)
def subnormal_numbers():
    """Stages flush them to zero in the process they run in, which here is everybody's."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


@pytest.fixture
def called(capsys):
    """Calls a command's ``main`` in this process: (exit status, standard output, standard error)."""
    def call(main, *arguments):
        capsys.readouterr()
        try:
            main([str(argument) for argument in arguments])
            status = 0
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()
    return call


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory):
    """A generated dataset in VOC layout: 24 + 6 images of up to 64 x 64, with splits and DMS subsets. Do not change it."""
    return _generated(tmp_path_factory.mktemp("shapes") / "data", "shapes", "voc", (64, 64))


@pytest.fixture(scope="session")
def city_root(tmp_path_factory):
    """A generated dataset in Cityscapes layout, images of 64 x 128. Do not change it."""
    return _generated(tmp_path_factory.mktemp("city") / "data", "city", "cityscapes", (64, 128))


@pytest.fixture
def own_shapes(shapes_root, tmp_path):
    """A copy of the VOC-layout dataset that a test may damage."""
    return Path(shutil.copytree(shapes_root, tmp_path / "own"))


def _generated(root, spec, layout, size):
    import dms_sample
    import generate_splits
    from data.synthetic import generate
    generate(root, 24, 6, seed=3, size=size, layout=layout)
    with contextlib.redirect_stdout(io.StringIO()):
        generate_splits.main(["--dataset", spec, "--data-root", str(root), "--divisors", "8:3", "20:4"])
        dms_sample.main(["--dataset", spec, "--data-root", str(root), "--splits", "8", "20"])
    return root


@pytest.fixture(scope="session")
def tiny_run(shapes_root, tmp_path_factory):
    """Two rounds of the arms l and r and a baseline b, as the launchers lay them out. Do not change it."""
    import main
    out = tmp_path_factory.mktemp("run") / "tiny"
    common = ["--dataset=shapes", f"--data-root={shapes_root}", f"--output-dir={out}", "--train-set=8", "--sets-id=1",
              "--backbone=small", "--workers=0", "--crop-size", "33", "33", "--test-size", "65", "65"]

    def stage(*options):
        with (contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()),
              pytest.MonkeyPatch.context() as patch):
            patch.setattr("sys.argv", ["main.py", *options, *common])
            main.main()

    for seed, arm in enumerate("blr"):
        stage("--state=2", f"--exp-name=tiny__p0--{arm}", "--weights=none", "--epochs=8", "--lr=0.05", f"--seed={seed}")
    for number, ratio in ((1, "0.5"), (2, "0.8")):
        for arm in "lr":
            old = [f"--oldfilename=tiny__p{number - 2}--{arm}.pt"] if number > 1 else []
            stage("--labeling", f"--continue-from=tiny__p{number - 1}--{arm}.pt", f"--label-ratio={ratio}", *old,
                  f"--pseudo-dir={out}/pseudo/tiny__p{number - 1}--{arm}")
        for arm, teacher in ("rl", "lr"):
            stage(f"--exp-name=tiny__p{number}--{arm}", f"--continue-from=tiny__p{number - 1}--{arm}.pt",
                  f"--pseudo-dir={out}/pseudo/tiny__p{number - 1}--{teacher}", "--epochs=1", "--lr=0.02")
    return out


@pytest.fixture
def command(capsys, monkeypatch):
    """Run main.py's ``main`` with the given arguments; returns (exit status, standard output, standard error)."""
    import signal

    import main

    def run(*arguments):
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        capsys.readouterr()
        try:
            main.main([str(argument) for argument in arguments])
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def script():
    """Run a file of the repository as its own process, as a person would."""
    def run(*words, **options):
        return subprocess.run([sys.executable, *map(str, words)], cwd=REPOSITORY, capture_output=True, text=True,
                              timeout=300, **options)
    return run
