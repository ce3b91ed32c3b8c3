"""How long the whole of dmt_ple-voc-106-1lr.sh takes on this machine, computed from a few measured stages.

    python -m benchmarks.voc_chain --lists ../shared/lists --full-round      on a GPU, with VOC's names
    python -m benchmarks.voc_chain --quick --device cpu                      tiny sizes on a CPU: tries the paths

Generated images stand for VOC's: as many (10582 + 1449), about as large (500 x 375), with its names if --lists has them;
the first weights are random. The launcher's own commands (DRY_RUN=1) are run: a shortened round 0, a labelling, a
shortened round, a labelling with PLE. Steps, validations, labelled images and starts then have a price each, and the
table adds up what the 22 stages cost. --full-round runs one round at its full length and shows how far off that is.
"""

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import dms_sample
import generate_splits
from benchmarks import measure
from data.lists import read_list
from data.synthetic import generate
from dmt.session import Data
from models import deeplab_v2
from utils.checkpoints import save_checkpoint
from utils.errors import UserError, reports_user_errors
from utils.processors import usable

MINUTES, MEMORY = 25, 6.0  # the aims for the chain, and GB of GPU memory at batch 8
LAUNCHER = "dmt_ple-voc-106-1lr.sh"
LISTS = {"train_names": "voc_trainaug.txt", "val_names": "voc_val.txt"}
WARM_UP = 2  # log entries of a shortened training that are not counted: libraries choose their algorithms


# --- the chain --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """One command of the launcher. Trainings have steps and validations, labellings have images."""

    words: tuple
    kind: str
    steps: int = 0
    validations: int = 0
    images: int = 0

    def option(self, name):
        """The value of --name."""
        return next(word.partition("=")[2] for word in self.words if word.startswith(f"--{name}="))

    def but(self, **options):
        """The words with other values; --name=None leaves it out."""
        names = {name.replace("_", "-"): value for name, value in options.items()}
        kept = [word for word in self.words if word.split("=")[0][2:] not in names]
        return [*kept, *(f"--{name}={value}" for name, value in names.items() if value is not None)]


def stages_of(commands, data):
    """The ``Stage`` of every command line that the launcher printed; ``data`` is the ``dmt.session.Data``."""
    return [_stage(tuple(shlex.split(line)), data) for line in commands if " --dataset=" in line]


def _stage(words, data):
    stage = Stage(words, "")
    split = stage.option("train-set"), stage.option("sets-id")
    if "--labeling" in words:
        kind = "labelling with PLE" if any(word.startswith("--oldfilename") for word in words) else "labelling"
        return Stage(words, kind, images=len(data.unlabeled(*split)))
    mutual = stage.option("state") == "1"
    images = len(data.unlabeled(*split) if mutual else data.labeled(*split))
    batch = int(stage.option("batch-size-pseudo" if mutual else "batch-size-labeled"))
    steps = int(stage.option("epochs")) * -(-images // batch)
    return Stage(words, "training on pseudo labels" if mutual else "supervised training", steps,
                 -(-steps // int(stage.option("val-num-steps"))))


@dataclass(frozen=True)
class Price:
    """Seconds of a start, a step, a validation (with what is saved after it) and a labelled image."""

    start: float
    step: float = 0.0
    validation: float = 0.0
    image: float = 0.0

    def of(self, stage):
        """Seconds that a stage of this kind takes."""
        return (self.start + self.step * stage.steps + self.validation * stage.validations + self.image * stage.images)


def training_price(lines, wall):
    """The ``Price`` of a training from its metrics (dicts with time, kind, step) and its wall time.

    A validation lasts from the log entry before it to the start of the next interval of steps, which is as long before
    the next entry as its images took. The first ones are warm-up, and part of the start.
    """
    train = [line for line in lines if line["kind"] == "train"]
    end = next(line for line in lines if line["kind"] == "end")
    validated = {line["step"] for line in lines if line["kind"] == "validation"}
    seconds, pauses = [], []
    for before, line in zip([{"step": 0}, *train], train):
        seconds.append((line["seconds"], line["step"] - before["step"]))
    for line, after in zip(train, [*train[1:], None]):
        if line["step"] in validated:
            resumed = after["time"] - after["seconds"] if after else end["time"]
            pauses.append(resumed - line["time"])
    steady = seconds[WARM_UP:] or seconds[-1:]
    step = statistics.median(taken / count for taken, count in steady)
    validation = statistics.median(pauses[1:] or pauses)
    return Price(max(0.0, wall - step * train[-1]["step"] - validation * len(pauses)), step, validation)


# --- measuring --------------------------------------------------------------------------------------------------------


class Chain:
    """The launcher's stages, the folder they run in, and what they were seen to take."""

    def __init__(self, options):
        self.options, self.work = options, Path(options.work).absolute() / "voc_chain"
        self.out = self.work / "run"
        self.environment = {**os.environ, "DRY_RUN": "1", "CHECK": "0", "OUTPUT_DIR": str(self.out),
                            "DATA_ROOT": str(self.work / "data"), "coco_weights": str(self.work / "random.pt"),
                            "PYTHON": sys.executable, "MIXED_PRECISION": "0" if options.device == "cpu" else "1",
                            "EXTRA": f"--device={options.device} --on-collapse=warn {options.extra}"}
        for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):  # of this process, not of the stages
            self.environment.pop(name, None)
        if options.quick:
            self.environment |= {"split": "8", "id": "0", "ep0": "4", "val0": "2", "ep": "2", "val": "3",
                                 "ratios": "0.2 0.4", "OMP_NUM_THREADS": "1"}
            self.environment["EXTRA"] += " --backbone=small --workers=0 --crop-size 33 33 --test-size 65 65"
        self.memory, self.prices, self.seen = [], {}, {}

    def prepare(self):
        """Images, splits and first weights; then the stages are known."""
        names = {}
        if self.options.lists:
            names = {key: read_list(Path(self.options.lists) / file) for key, file in LISTS.items()}
        sizes = (24, 6, 0, (48, 64)) if self.options.quick else (10582, 1449, 0, (375, 500))
        root = generate(self.work / "data", *sizes, workers=1 if self.options.quick else usable(), **names,
                        distinct=max(1, sizes[0] // 8))  # of which the copies are as long to read
        divisors = ["--divisors", "8:3"] if self.options.quick else []
        splits = ["--splits", "8"] if self.options.quick else ["--splits", "106"]
        with contextlib.redirect_stdout(io.StringIO()):
            generate_splits.main(["--dataset=voc", f"--data-root={root}", *divisors])
            dms_sample.main(["--dataset=voc", f"--data-root={root}", *splits])
        backbone = "small" if self.options.quick else "resnet101"
        save_checkpoint(self.work / "random.pt", deeplab_v2(21, backbone))
        shutil.rmtree(self.out, ignore_errors=True)
        self.data = Data("voc", str(root))
        printed = run([f"./{LAUNCHER}"], self.environment)
        self.stages = stages_of(printed.splitlines(), self.data)

    def first(self, kind):
        """The first stage of a kind."""
        return next(stage for stage in self.stages if stage.kind == kind)

    def measure(self, measured):
        """Run one stage of each kind, trainings shortened, in an order that gives each what it needs.

        ``measured()`` is called after each, for what is known by then should survive a kill.
        """
        supervised, mutual = self.first("supervised training"), self.first("training on pseudo labels")
        self.check()
        few = 2 if self.options.quick else 40
        per_epoch = supervised.steps // int(supervised.option("epochs"))
        epochs = min(int(supervised.option("epochs")), max(1, 8 * few // per_epoch))
        self.train(supervised, epochs, max(1, epochs * per_epoch // 4), few)
        measured()
        self.share(supervised)
        self.label(self.first("labelling"))
        measured()
        steps = mutual.steps // int(mutual.option("epochs"))
        self.train(mutual, 1, max(1, steps // 3), few)
        measured()
        self.share(mutual)
        self.label(self.first("labelling with PLE"))
        measured()

    def train(self, stage, epochs, val_num_steps, log_num_steps):
        """Run a shortened training, and note its price."""
        wall = self.run(stage.but(epochs=epochs, val_num_steps=val_num_steps, log_num_steps=log_num_steps))
        self.prices[stage.kind] = training_price(self.lines(stage), wall)

    def label(self, stage):
        """Run a labelling, and note its price."""
        wall = self.run([*stage.words, "--redo"])
        timing = json.loads((Path(stage.option("pseudo-dir")) / "timing.json").read_text())
        self.memory.append(timing["gpu_peak_memory_mb"])
        image = timing["seconds"] / stage.images
        self.prices[stage.kind] = Price(wall - timing["seconds"], image=image)

    def check(self):
        """The check that a launcher runs before its first stage."""
        stage = self.first("training on pseudo labels")
        words = stage.but(**dict.fromkeys(("exp_name", "state", "pseudo_dir", "epochs", "lr", "weight_decay", "gamma1",
                                           "gamma2", "seed", "val_num_steps"), None))
        self.seen["check"] = self.run([*words, "--check", f"--continue-from={self.environment['coco_weights']}"])

    def share(self, stage):
        """Give the other arm the checkpoint of this stage."""
        name = stage.option("exp-name")
        other = {"l": "r", "r": "l"}[name[-1]]
        shutil.copyfile(self.out / f"{name}.pt", self.out / f"{name[:-1]}{other}.pt")

    def lines(self, stage):
        """The metrics of a training, each log entry with the seconds that its steps took."""
        name, batch, before = stage.option("exp-name"), self.batch_of(stage), 0
        lines = [json.loads(line) for line in (self.out / name / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            if line["kind"] == "train":
                line["seconds"] = batch * (line["step"] - before) / line["images_per_second"]
                before = line["step"]
        self.memory.append(lines[-1].get("gpu_peak_memory_mb"))
        return lines

    @staticmethod
    def batch_of(stage):
        """Images a step of full batches."""
        options = ["batch-size-labeled"] + ["batch-size-pseudo"] * (stage.option("state") == "1")
        return sum(int(stage.option(name)) for name in options)

    def full_round(self):
        """Run the stages of the second round as the launcher would; [(stage, seconds seen)] of those there was time for."""
        seen = []
        for stage in [stage for stage in self.stages if re.search(r"--exp-name=\S+__p2--|--pseudo-dir=\S+__p1--",
                                                                  " ".join(stage.words))]:
            if stage.kind.startswith("labelling") or "__p2--" in stage.option("exp-name"):
                if time.monotonic() + self.prices[stage.kind].of(stage) > self.options.deadline:
                    break
                seen.append((stage, self.run([*stage.words, "--redo"])))
        return seen

    def run(self, words):
        """Seconds that a command takes."""
        began = time.monotonic()
        run(words, self.environment)
        seconds = time.monotonic() - began
        name = next((word for word in words if re.match(r"--exp-name|--pseudo-dir", word)), "check")
        print(f"{seconds:6.1f} s  {name}", flush=True)
        return seconds


def run(words, environment):
    """Run a command in the repository; returns what it printed, raises ``UserError`` with its last lines if it failed."""
    done = subprocess.run(words, cwd=measure.REPOSITORY, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{shlex.join(map(str, words))} ended with {done.returncode}: {done.stderr[-1500:]}")
    return done.stdout


# --- report -----------------------------------------------------------------------------------------------------------


def rows_of(chain, seen):
    """The table: what a stage of each kind takes and how many there are, the whole, and how far the estimate is off."""
    rows, total = [], chain.seen["check"]
    rows.append(measure.row("check before the first stage", "s", None, chain.seen["check"]))
    for kind, price in chain.prices.items():
        stages = [stage for stage in chain.stages if stage.kind == kind]
        seconds = sum(price.of(stage) for stage in stages)
        total += seconds
        one = stages[0]
        parts = [f"start {price.start:.1f} s"]
        if one.steps:
            parts += [f"{one.steps} steps of {1000 * price.step:.1f} ms",
                      f"{one.validations} validations of {price.validation:.2f} s"]
        else:
            parts += [f"{one.images} images of {1000 * price.image:.2f} ms"]
        rows.append(measure.row(f"{kind}, each of {len(stages)}", "s", None, price.of(one), note=", ".join(parts)))
    if {stage.kind for stage in chain.stages} <= chain.prices.keys():
        rows.append(measure.row(f"the complete chain of {len(chain.stages)} stages", "min", None, total / 60,
                                target=("<=", MINUTES)))
    memory = [value for value in chain.memory if value is not None]
    if memory:
        rows.append(measure.row("GPU memory, torch's tensors at most", "GB", None, max(memory) * 2**20 / 1e9,
                                target=("<=", MEMORY)))
    if seen:
        expected = sum(chain.prices[stage.kind].of(stage) for stage, _ in seen)
        found = sum(seconds for _, seconds in seen)
        rows.append(measure.row(f"round 2 at full length, {len(seen)} of its 4 stages", "s", None, found,
                                note=f"estimated {expected:.1f} s"))
        rows.append(measure.row("error of the estimate on it", "%", None, 100 * (expected - found) / found))
    return rows


def figures_of(chain):
    """What a start, a step, a validation and a labelled image cost, by kind of stage, and every stage of known price."""
    return {"prices": {kind: vars(price) for kind, price in chain.prices.items()},
            "stages": [{"kind": stage.kind, "steps": stage.steps, "validations": stage.validations,
                        "images": stage.images, "seconds": chain.prices[stage.kind].of(stage)}
                       for stage in chain.stages if stage.kind in chain.prices]}


def parse():
    """The options."""
    parser = measure.gpu_parser(__doc__)
    parser.add_argument("--lists", metavar="DIR",
                        help=f"folder with VOC's names in {' and '.join(LISTS.values())} (default: made-up names)")
    parser.add_argument("--extra", default="", metavar="OPTIONS",
                        help="more options for every main.py, as in --extra='--no-fused-norm'")
    parser.add_argument("--prepare-only", action="store_true", help="only make what is measured on, which is found again")
    parser.add_argument("--full-round", action="store_true", help="also run one round at its full length")
    return measure.parsed(parser)


@reports_user_errors
def main():
    """Measure, add up, and print the table; voc_chain.json is written after every stage that was measured."""
    options = parse()
    options.deadline = time.monotonic() + 60 * options.minutes
    measure.need_gpu(options)
    chain = Chain(options)
    chain.prepare()
    if options.prepare_only:
        return
    print(f"{60 * options.minutes - options.deadline + time.monotonic():6.1f} s  images, lists and first weights", flush=True)
    sizes = [path.stat().st_size for path in (chain.work / "data" / "JPEGImages").iterdir()]
    settings = {"launcher": LAUNCHER, "device": options.device, "extra": options.extra or "none",
                "images": len(sizes), "mean JPEG bytes": round(statistics.mean(sizes))}
    chain.measure(lambda: measure.write("voc_chain", rows_of(chain, []), options, settings, figures=figures_of(chain)))
    seen = chain.full_round() if options.full_round else []
    measure.report("voc_chain", rows_of(chain, seen), options, settings, figures=figures_of(chain))


if __name__ == "__main__":
    main()
