"""One GPU: is it right, and how fast are the stages of main.py? Each part is timed as a user would see it.

    python -m benchmarks.gpu                                     on a GPU: tests, training, labelling, validation
    python -m benchmarks.gpu --parts tests chain --minutes 9.5   some parts, within some minutes
    python -m benchmarks.gpu --table "scripts/own.sh ..."        and a command of yours at the end
    python -m benchmarks.gpu --quick --device cpu                tiny sizes on a CPU: tries the paths, no more

Generated images stand for VOC's (10582 + 1449 of up to 500 x 375), first weights are random. gpu.json is written after
every part, so what was measured survives a kill; a part that fails or takes too long is named there, and the rest goes
on.
"""

import argparse
import contextlib
import io
import json
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

import dms_sample
import generate_splits
from benchmarks.measure import REPOSITORY, RESULTS, save
from data.synthetic import generate
from models import deeplab_v2
from utils import checkpoints
from utils.errors import UserError, reports_user_errors
from utils.options import parse_options

LAUNCHER = "dmt_ple-voc-106-1lr.sh"
LIMITS = {"tests": 300, "training": 400, "labelling": 240, "validation": 120, "chain": 900, "table": 3600}  # seconds
STEPS, LOG_STEPS, WARM_UP = 160, 20, 3  # of a timed training; log entries of it that do not count


class Bench:
    """Folders and sizes, and ``found``, what has been measured so far."""

    def __init__(self, options):
        self.options, self.work = options, Path(options.work).absolute()
        self.found, self.failed, self.printed = {}, {}, ""
        self.out, self.root = self.work / "runs", self.work / "data"
        self.deadline = time.monotonic() + 60 * options.minutes
        self.backbone, self.size, counts, image = "resnet101", (), (10582, 1449), (375, 500)
        self.split, self.chain_split, self.batches = ("20", "0"), "106", (8, 16, 32)
        if options.quick:
            self.backbone, counts, image, self.batches = "small", (24, 6), (48, 64), (4,)
            self.size, self.split = ("--crop-size", "33", "33", "--test-size", "65", "65"), ("8", "1")
            self.chain_split = "8"
        generate(self.root, *counts, size=image, workers=1 if options.quick else len(os.sched_getaffinity(0)))
        with contextlib.redirect_stdout(io.StringIO()):
            divisors = ["--divisors", "8:3"] if options.quick else []
            generate_splits.main(["--dataset=voc", f"--data-root={self.root}", *divisors])
            dms_sample.main(["--dataset=voc", f"--data-root={self.root}", "--splits", self.chain_split])
        shutil.rmtree(self.out, ignore_errors=True)
        for name in ("old", "new"):
            self.random(self.out / f"{name}.pt")

    def random(self, path):
        """A checkpoint with random weights."""
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoints.save(path, {"model": deeplab_v2(21, self.backbone).state_dict()})

    def stage(self, *words, limit):
        """Run a stage of main.py; returns its seconds, from the start of Python to its end."""
        common = ["--dataset=voc", f"--data-root={self.root}", f"--output-dir={self.out}",
                  f"--device={self.options.device}", f"--backbone={self.backbone}", f"--train-set={self.split[0]}",
                  f"--sets-id={self.split[1]}", "--mixed-precision", "--on-collapse=warn", *self.size]
        return self.run([sys.executable, "main.py", *words, *common], limit)

    def run(self, words, limit, **environment):
        """Seconds that a command takes; raises ``UserError`` when it fails or is not done within ``limit`` seconds."""
        began = time.monotonic()
        left = min(limit, self.deadline - began)
        # A session of its own, so that what the command has started ends with it.
        started = subprocess.Popen(words, cwd=REPOSITORY, env={**os.environ, **environment}, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            self.printed, _ = started.communicate(timeout=max(left, 1))
        except subprocess.TimeoutExpired:
            raise UserError(f"not done within {left:.0f} s: {shlex.join(words)}") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
        if started.returncode:
            raise UserError(f"status {started.returncode}: {shlex.join(words)}: {self.printed[-1500:]}")
        return time.monotonic() - began

    def metrics(self, name):
        """The lines of a stage's metrics.jsonl."""
        return [json.loads(line) for line in (self.out / name / "metrics.jsonl").read_text().splitlines()]

    def names(self, list_name):
        """How many names a split list has."""
        return len((self.root / "ImageSets/Segmentation" / f"{list_name}.txt").read_text().split())

    def save(self):
        """Write gpu.json as it stands."""
        return save("gpu", {"quick": self.options.quick, "device": self.options.device, "backbone": self.backbone,
                            "failed": self.failed, "found": self.found}, self.options.results)


# --- parts: each adds to bench.found, and gives a command at most ``limit`` seconds ----------------------------------


def tests(bench, limit):
    """The tests that need a GPU."""
    files = [str(path) for path in sorted((REPOSITORY / "tests").glob("test_*.py")) if "mark.gpu" in path.read_text()]
    bench.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", *files], limit)
    bench.found["tests"] = bench.printed.splitlines()[-1]


def training(bench, limit):
    """Supervised training from files: crops a second of full batches, GPU memory, and the time of a validation."""
    labelled, steps = bench.names("_labeled_".join(bench.split)), 8 if bench.options.quick else STEPS
    for way in ([], ["--compile"])[: 1 if bench.options.quick else 2]:
        for batch in bench.batches:
            name, epochs = f"training-{batch}{'-compile' * bool(way)}", -(-steps * batch // labelled)
            seconds = bench.stage("--state=2", f"--exp-name={name}", f"--epochs={epochs}",
                                  f"--batch-size-labeled={batch}", f"--continue-from={bench.out / 'new.pt'}",
                                  f"--val-num-steps={steps // 2}",
                                  f"--log-num-steps={2 if bench.options.quick else LOG_STEPS}", *way, limit=limit)
            lines = bench.metrics(name)
            rates = [line["images_per_second"] for line in lines if line["kind"] == "train"]
            bench.found[name] = {
                "crops a second": round(statistics.median(rates[WARM_UP:] or rates), 1),
                "seconds outside steps and validations": round(seconds - lines[-1]["seconds"], 1),
                "seconds of a validation": round(validations_of(lines)[-1], 2),
                "GPU memory of tensors (MB)": lines[-1]["gpu_peak_memory_mb"]}
            bench.save()


def labelling(bench, limit):
    """Both passes over all unlabelled images, without PLE and with it."""
    for name, more in (("old", []), ("new", ["--oldfilename=old.pt", "--Increment=0.15"])):
        folder = bench.out / "pseudo" / name
        bench.stage("--labeling", f"--continue-from={name}.pt", "--label-ratio=0.4", f"--pseudo-dir={folder}", *more,
                    limit=limit)
        timing = json.loads((folder / "timing.json").read_text())
        bench.found[f"labelling{' with PLE' * bool(more)}"] = {
            "images a second": round(timing["images"] / timing["seconds"], 1), "images": timing["images"],
            "GPU memory of tensors (MB)": timing["gpu_peak_memory_mb"]}


def validation(bench, limit):
    """A test under the papers' protocol, start and all."""
    seconds = bench.stage("--state=3", "--continue-from=new.pt", limit=limit)
    bench.found["test of the validation set (s)"] = round(seconds, 1)


def chain(bench, limit):
    """Half a round of the launcher (r labels without PLE and with it, l learns), and what all stages take by that."""
    exp, id_ = "chain", "1"
    environment = {"DRY_RUN": "1", "OUTPUT_DIR": str(bench.out / exp), "DATA_ROOT": str(bench.root),
                   "PYTHON": sys.executable, "exp": exp, "coco_weights": str(bench.out / "new.pt"),
                   "split": bench.chain_split, "id": id_,
                   "EXTRA": " ".join([f"--device={bench.options.device}", "--on-collapse=warn",
                                      f"--backbone={bench.backbone}", *bench.size])}
    if bench.options.quick:
        environment |= {"ep0": "2", "ep": "2", "val0": "2", "val": "3"}
    bench.run([f"./{LAUNCHER}"], limit, **environment)
    commands = [shlex.split(line) for line in bench.printed.splitlines() if " --dataset=" in line]
    stages = [parse_options(words[2:]) for words in commands]  # behind the interpreter and main.py
    for name in ("p0--r", "p1--r", "p1--l"):
        bench.random(bench.out / exp / f"{exp}__{name}.pt")
    price = {}
    for words, stage in zip(commands, stages):
        # The second labelling takes PLE's previous predictions from the first; l does as r does.
        name = Path(stage.pseudo_dir if stage.labeling else stage.exp_name).name.removeprefix(f"{exp}__")
        if name in (("p0--r", "p1--r") if stage.labeling else ("p2--l",)):
            price[kind_of(stage)] = bench.run(words, limit)
            print(f"{price[kind_of(stage)]:7.1f} s  {kind_of(stage)} {name}", flush=True)
    lines = bench.metrics(f"{exp}/{exp}__p2--l")
    validation_seconds = statistics.mean(validations_of(lines))
    step = (lines[-1]["seconds"] - sum(validations_of(lines))) / lines[-1]["step"]
    zero = next(stage for stage in stages if stage.state == 2)
    steps = zero.epochs * -(-bench.names(f"{zero.train_set}_labeled_{id_}") // zero.batch_size_labeled)
    price["supervised training"] = (price["training on pseudo labels"] - lines[-1]["seconds"] + steps * step
                                    + -(-steps // zero.val_num_steps) * validation_seconds)
    bench.found["chain"] = {
        "seconds of a stage": {kind: round(value, 1) for kind, value in price.items()},
        "milliseconds of a step": round(1000 * step, 2), "seconds of a validation": round(validation_seconds, 2),
        f"minutes of the {len(commands)} stages, computed from these":
            round(sum(price[kind_of(stage)] for stage in stages) / 60, 2)}


def table(bench, limit):
    """A command of the user's, whose last lines are kept."""
    seconds = bench.run(shlex.split(bench.options.table), limit)
    bench.found["table"] = {"command": bench.options.table, "seconds": round(seconds, 1),
                            "printed": bench.printed.splitlines()[-60:]}


PARTS = {"tests": tests, "training": training, "labelling": labelling, "validation": validation, "chain": chain,
         "table": table}


# --- reading ----------------------------------------------------------------------------------------------------------


def validations_of(lines):
    """Seconds of each validation in a training's metrics: it follows the log entry of the same step."""
    logged = {line["step"]: line["time"] for line in lines if line["kind"] == "train"}
    return [line["time"] - logged[line["step"]] for line in lines if line["kind"] == "validation"]


def kind_of(stage):
    """The kind of stage of the options of a command."""
    if stage.labeling:
        return "labelling with PLE" if stage.oldfilename else "labelling"
    return "supervised training" if stage.state == 2 else "training on pseudo labels"


@reports_user_errors
def main():
    """Every part in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["tests", "training", "labelling", "validation"],
                        metavar="PART", help=f"of {', '.join(PARTS)} (default: all but the last two)")
    parser.add_argument("--table", metavar="COMMAND", help="a command to run at the end; adds the part table")
    parser.add_argument("--minutes", type=float, default=60, help="for everything together (60)")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu with --quick (cuda)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: only tries the paths")
    parser.add_argument("--work", default="runs/benchmark", help="folder of generated data (default: %(default)s)")
    parser.add_argument("--results", default=os.environ.get("OUT", str(RESULTS)),
                        help="folder of gpu.json (%(default)s)")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("there is no GPU here; --quick --device cpu tries the paths of this benchmark on a CPU")
    if not options.device.startswith("cuda") and not options.quick:
        raise UserError(f"--device {options.device}: at full size this would take hours; add --quick")
    wanted = {*options.parts, *(["table"] if options.table else [])}
    if "table" in wanted and not options.table:
        raise UserError("--parts table: say which command by --table COMMAND")
    bench = Bench(options)
    for name, part in PARTS.items():
        if name in wanted:
            known, began = set(bench.found), time.monotonic()
            try:
                part(bench, LIMITS[name])
            except UserError as error:
                bench.failed[name] = str(error)
            bench.save()
            print(f"{name}: {time.monotonic() - began:.1f} s, {bench.failed.get(name, 'done')}", flush=True)
            for what in bench.found.keys() - known:
                print(f"    {what}: {bench.found[what]}", flush=True)
    print(bench.save())
    sys.exit(bool(bench.failed))


if __name__ == "__main__":
    main()
