"""Kill a whole chain at random moments, start it again, and compare the end with one that nothing interrupted.

    python -m benchmarks.crash --kills 200

Runs a tiny chain (two arms, round 0, two rounds, the second with PLE) through main.py's own ``main``, each start in a
forked process that dies by SIGKILL or SIGTERM after a random time. At the end every checkpoint, pseudo label,
confidence, prediction and manifest must be there with the same bytes as after the uninterrupted chain.
"""

import argparse
import collections
import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def tiny_chain(root, out):
    """The stages of the chain as lists of words for ``main``: 2 + 2 x 4."""
    common = ["--dataset=shapes", f"--data-root={root}", f"--output-dir={out}", "--backbone=small", "--weights=none",
              "--crop-size", "33", "33", "--test-size", "65", "65", "--workers=0", "--save-num-steps=1",
              "--val-num-steps=3", "--on-collapse=warn"]
    stages = [["--state=2", "--train-set=8", "--epochs=3", "--batch-size-labeled=4", "--lr=0.02", f"--exp-name=p0-{arm}",
               f"--seed={seed}"] for seed, arm in enumerate("lr", 1)]
    for round_, ratio in ((1, 0.5), (2, 1.0)):
        for teacher, student in ("lr", "rl"):
            pseudo = f"--pseudo-dir={out}/pseudo/p{round_ - 1}-{teacher}"
            stages.append(["--labeling", "--train-set=8", f"--continue-from=p{round_ - 1}-{teacher}.pt", pseudo,
                           f"--label-ratio={ratio}", "--batch-size-labeling=4"]
                          + ([f"--oldfilename=p0-{teacher}.pt"] if round_ == 2 else []))
            stages.append(["--state=1", "--train-set=8", f"--continue-from=p{round_ - 1}-{student}.pt", pseudo,
                           "--epochs=1", "--batch-size-labeled=1", "--batch-size-pseudo=3", "--gamma1=2", "--gamma2=2",
                           "--lr=0.01", f"--exp-name=p{round_}-{student}"])
    return [stage + common for stage in stages]


def start(stages, log):
    """Fork a process that runs the chain and exits with the status of the stage that failed, or 0."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        import main
        with open(log, "a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            for stage in stages:
                main.main(stage)
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 71
    except BaseException as error:
        Path(f"{log}.error").write_text(repr(error))
    finally:
        os._exit(status)


def digests(out):
    """SHA-256 of every file whose bytes have to agree, by name."""
    files = [*out.glob("*.pt"), *out.glob("pseudo/**/*.png"), *out.glob("pseudo/**/*.steps"),
             *out.glob("pseudo/**/manifest.json"), out / "log.txt"]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def crash(root, folder, kills, seed=0):
    """Run the chain whole and with at least ``kills`` interruptions; returns the figures as a dict.

    Raises ``RuntimeError`` when a start ends in any way but a kill, a stop on SIGTERM, or success.
    """
    import torch
    import torch.utils.tensorboard  # noqa: F401 - so that the forked processes need not import it
    torch.set_num_threads(1)
    began = time.monotonic()
    _, status = os.waitpid(start(tiny_chain(root, folder / "whole"), folder / "whole.log"), 0)
    whole = time.monotonic() - began
    if status:
        raise RuntimeError(f"the uninterrupted chain ended with {status}; see {folder / 'whole.log'}")
    first, differing = digests(folder / "whole"), set()
    rng, done, chains, starts, terminated, finished = random.Random(seed), 0, 0, 0, 0, collections.Counter()
    while done < kills:  # chain after chain, each killed on its way until it gets to its end
        out, chains = folder / f"killed-{chains}", chains + 1
        stages, ended_well, patience, before = tiny_chain(root, out), False, whole / 4, 0
        while not ended_well:
            pid, starts = start(stages, folder / "killed.log"), starts + 1
            polite = rng.random() < 0.25
            code = wait(pid, rng.uniform(0, patience), signal.SIGTERM if polite else signal.SIGKILL)
            ended_well = code == 0
            if code not in (0, -signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM):
                raise RuntimeError(f"start {starts} ended with {code}; see {folder / 'killed.log'}")
            if not ended_well:
                done, terminated = done + 1, terminated + polite
                now = len([*out.glob("*.pt"), *out.glob("pseudo/*/manifest.json")])
                # Going over what is finished takes time, too, and a machine may be busier now than it was for the whole:
                # every chain comes to its end.
                patience *= 1.1 if now > before else 1.3
                finished[now], before = finished[now] + 1, now
        second = digests(out)
        differing |= {f"{out.name}/{name}" for name in {*first, *second} if first.get(name) != second.get(name)}
        shutil.rmtree(out)
    return {"kills": done, "of_them_sigterm": terminated, "chains": chains, "starts": starts,
            "kills_by_finished_stages": dict(sorted(finished.items())), "files_compared": len(first),
            "files_that_differ": sorted(differing), "seconds_whole": round(whole, 2),
            "seconds_in_all": round(time.monotonic() - began, 2)}


def wait(pid, seconds, number):
    """Wait for the process, send it the signal ``number`` after ``seconds``, and return its exit code."""
    deadline, ended = time.monotonic() + seconds, 0
    while not ended and time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        time.sleep(0.002)
    if not ended:
        os.kill(pid, number)
        _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def main():
    """Run the benchmark, print its figures and save them as JSON."""
    from benchmarks.measure import save
    from data.synthetic import generate
    import generate_splits

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = generate(Path(folder) / "data", 24, 6, seed=3, size=(64, 64))
        with contextlib.redirect_stdout(io.StringIO()):
            generate_splits.main(["--dataset", "shapes", "--data-root", str(root), "--divisors", "8:3"])
        figures = crash(root, Path(folder), options.kills, options.seed)
    print(json.dumps(figures, indent=2))
    save("crash", figures)


if __name__ == "__main__":
    main()
