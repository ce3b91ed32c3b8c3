"""Kill a whole chain at random moments, start it again, and compare the end with one that nothing interrupted.

    python -m benchmarks.crash --kills 200

Runs a tiny chain (two arms, round 0, two rounds, the second with PLE) through main.py's own ``main``, each start in a
forked process that dies by SIGKILL or SIGTERM up to 20 ms after a random one of its file operations. At the end every
checkpoint, pseudo label, confidence, prediction and manifest must be there with the same bytes as after the
uninterrupted chain. Operations are counted, not seconds: where kills fall does not depend on how busy the machine is.
"""

import argparse
import collections
import contextlib
import importlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import cv2

from utils.files import sha256


def tiny_chain(root, out):
    """The stages of the chain as lists of words for ``main``: 2 + 2 x 4."""
    common = ["--dataset=shapes", f"--data-root={root}", f"--output-dir={out}", "--backbone=small", "--weights=none",
              "--crop-size", "33", "33", "--test-size", "65", "65", "--workers=0", "--save-num-steps=1",
              "--val-num-steps=3", "--on-collapse=warn"]
    stages = [["--state=2", "--train-set=8", "--epochs=3", "--batch-size-labeled=4", "--lr=0.02",
               f"--exp-name=p0-{arm}", f"--seed={seed}"] for seed, arm in enumerate("lr", 1)]
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


def start(stages, out, operation=None, number=signal.SIGKILL, delay=0.0):
    """Fork a process that runs the chain and exits with the status of the stage that failed, or 0.

    It sends itself the signal ``number``, ``delay`` seconds after its operation ``operation`` (counted from 1) on a
    file under ``out``; with None it writes to ``out`` + ".json" how many there were, and what it imported. Returns what
    ``os.waitstatus_to_exitcode`` gives.
    """
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status, operations, log, ours = 70, 0, f"{out}.log", f"{out}{os.sep}"

    def die():
        time.sleep(delay)
        os.kill(os.getpid(), number)

    def count(event, arguments):
        nonlocal operations
        if (event == "open" or event.startswith("os.")) and arguments and str(arguments[0]).startswith(ours):
            operations += 1
            if operations == operation:
                threading.Thread(target=die, daemon=True).start()

    try:
        import main
        sys.addaudithook(count)
        with open(log, "a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            for stage in stages:
                main.main(stage)
        if operation is None:
            Path(f"{out}.json").write_text(json.dumps([operations, list(sys.modules)]))
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 71
    except BaseException as error:
        Path(f"{log}.error").write_text("".join(traceback.format_exception(error)))
    finally:
        os._exit(status)


def digests(out):
    """SHA-256 of every file whose bytes have to agree, by name."""
    files = [*out.glob("*.pt"), *out.glob("pseudo/**/*.png"), *out.glob("pseudo/**/*.npz"),
             *out.glob("pseudo/**/manifest.json"), out / "log.txt"]
    return {str(path.relative_to(out)): sha256(path) for path in files}


def crash(root, folder, kills, seed=0):
    """Run the chain whole and with at least ``kills`` interruptions; returns the figures as a dict.

    Raises ``RuntimeError`` when a start ends in any way but a kill, a stop on SIGTERM, or success.
    """
    import torch
    torch.set_num_threads(1)
    began = time.monotonic()
    status = start(tiny_chain(root, folder / "whole"), folder / "whole")
    whole = time.monotonic() - began
    if status:
        raise RuntimeError(f"the uninterrupted chain ended with {status}; see {folder / 'whole.log'}")
    operations, modules = json.loads((folder / "whole.json").read_text())
    for name in modules:  # so that the forked processes need not do it each time
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    first, differing = digests(folder / "whole"), set()
    rng, done, chains, starts, terminated, finished = random.Random(seed), 0, 0, 0, 0, collections.Counter()
    while done < kills:  # chain after chain, each killed on its way until it gets to its end
        out, chains = folder / f"killed-{chains}", chains + 1
        stages, ended_well, patience = tiny_chain(root, out), False, operations / 5
        while not ended_well:
            number = signal.SIGTERM if starts % 4 == 3 else signal.SIGKILL
            code = start(stages, out, 1 + int(rng.uniform(0, patience)), number, rng.uniform(0, 0.02))
            starts, ended_well = starts + 1, code == 0
            if code not in (0, -signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM):
                error = Path(f"{out}.log.error")
                raise RuntimeError(f"start {starts} ended with {code}: "
                                   + (error if error.is_file() else Path(f"{out}.log")).read_text()[-2000:])
            if not ended_well:
                done, terminated = done + 1, terminated + (number == signal.SIGTERM)
                finished[len([*out.glob("*.pt"), *out.glob("pseudo/*/manifest.json")])] += 1
                patience *= 1.15  # going over what is finished takes operations, too: every chain comes to its end
        second = digests(out)
        differing |= {f"{out.name}/{name}" for name in {*first, *second} if first.get(name) != second.get(name)}
        shutil.rmtree(out)
    return {"kills": done, "of_them_sigterm": terminated, "chains": chains, "starts": starts,
            "kills_by_finished_stages": dict(sorted(finished.items())), "operations_whole": operations,
            "files_compared": len(first),
            "files_that_differ": sorted(differing), "seconds_whole": round(whole, 2),
            "seconds_in_all": round(time.monotonic() - began, 2)}


def main():
    """Run the benchmark, print its figures and save them as JSON."""
    from benchmarks.measure import RESULTS, save
    from data.synthetic import generate
    import generate_splits

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", default=str(RESULTS), help="folder of the JSON file (default: %(default)s)")
    options = parser.parse_args()
    cv2.setNumThreads(1)  # of more, a forked process would wait for those that are not its own
    with tempfile.TemporaryDirectory() as folder:
        root = generate(Path(folder) / "data", 24, 6, seed=3, size=(64, 64))
        with contextlib.redirect_stdout(io.StringIO()):
            generate_splits.main(["--dataset", "shapes", "--data-root", str(root), "--divisors", "8:3"])
        figures = crash(root, Path(folder), options.kills, options.seed)
    print(json.dumps(figures, indent=2))
    save("crash", figures, options.results)


if __name__ == "__main__":
    main()
