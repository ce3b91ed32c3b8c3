"""The start: seconds from the first statement of a stage to its first training step, with lists as long as VOC's.

Imports are not counted. Images, masks and pseudo labels are links to a few generated ones.
"""

import contextlib
import io
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import measure, pictures
from benchmarks.loading import write_pseudo_labels

LABELED, UNLABELED, VALIDATION, UNIQUE = 529, 10053, 1449, 32


def main():
    """Start of a supervised and of a semi-supervised stage, and of ``main.py --help``, all from a fresh process."""
    if len(sys.argv) > 2 and sys.argv[1] == "--stage":
        print(seconds_to_first_step(sys.argv[2:]))
        return
    options = measure.arguments(__doc__)
    repeats = 2 if options.quick else 5
    root = linked_dataset(Path(options.work) / "start", options.work)
    common = ["--dataset=shapes", f"--data-root={root}", "--train-set=20", "--backbone=small", "--weights=none",
              "--device=cpu", f"--output-dir={root / 'runs'}", "--do-not-save", "--exp-name=start"]
    kinds = {"supervised": ["--state=2", "--batch-size-labeled=8"],
             "semi-supervised": ["--state=1", f"--pseudo-dir={root / 'pseudo' / 'store'}"]}
    seconds = {name: [] for name in (*kinds, "help", "interpreter")}
    for number in range(repeats):
        for name, extra in kinds.items():
            seconds[name].append(float(_run("-m", "benchmarks.start", "--stage", *common, *extra).split()[-1]))
        for name, words in (("help", ["main.py", "--help"]), ("interpreter", ["-c", "pass"])):
            start = time.perf_counter()
            _run(*words)
            seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    rows = [measure.row(f"start of a {name} stage until its first step", "s", None, median[name], target=("<=", 2),
                        note="wall time") for name in kinds]
    rows.append(measure.row("main.py --help", "s", None, median["help"], target=("<=", 1), floor=median["interpreter"],
                            floor_is="python -c pass", note="wall time"))
    measure.report("start", rows, options, {"labelled": LABELED, "unlabelled": UNLABELED, "validation": VALIDATION,
                                            "repeats": repeats})


def seconds_to_first_step(arguments):
    """Run ``main.py`` in this process up to its first training step."""
    import main as program
    from dmt.training import Trainer
    for module in ("data.datasets", "dmt.labeling", "dmt.stages", "utils.runs", "models.weights", "torch.utils.data",
                   "torch.utils.tensorboard", "tqdm", "torchvision"):
        __import__(module)

    class FirstStep(BaseException):
        """Ends the stage where its first step would begin."""

    def first_step(*_):
        raise FirstStep

    Trainer._train_step = first_step
    shutil.rmtree(Path(next(word for word in arguments if word.startswith("--output-dir=")).split("=")[1]),
                  ignore_errors=True)
    start = time.perf_counter()
    with contextlib.suppress(FirstStep), contextlib.redirect_stdout(io.StringIO()):
        program.main(arguments)
        raise SystemExit("the stage ended before its first step")
    return time.perf_counter() - start


def linked_dataset(folder, work):
    """A dataset in VOC layout with as many names as VOC, and pseudo labels for the unlabelled ones."""
    if (folder / "complete").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    spec, source, few = pictures.generated(work, UNIQUE)
    names = [f"image_{number:06d}" for number in range(LABELED + UNLABELED + VALIDATION)]
    labeled, unlabeled, validation = names[:LABELED], names[LABELED:LABELED + UNLABELED], names[-VALIDATION:]
    store = write_pseudo_labels(spec, source, few, folder / "few")
    lists = {"trainaug.txt": labeled + unlabeled, "val.txt": validation, "20_labeled_0.txt": labeled,
             "20_unlabeled_0.txt": unlabeled}
    for file, listed in lists.items():
        path = spec.list_path(folder, file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(listed) + "\n")
    target = type(store)(folder / "pseudo" / "store", spec.palette)
    for number, name in enumerate(names):
        original = few[number % UNIQUE]
        pairs = [(spec.image_path(source, original), spec.image_path(folder, name)),
                 (spec.label_path(source, original), spec.label_path(folder, name))]
        if LABELED <= number < LABELED + UNLABELED:
            pairs += [(store.label_path(original), target.label_path(name)),
                      (store.confidence_path(original), target.confidence_path(name))]
        for file, link in pairs:
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, link)
    from data.store import names_digest
    target.write_manifest({"dataset": "shapes", "split": "20", "split_id": "0",
                           "names_sha256": names_digest(unlabeled)})
    (folder / "complete").touch()
    return folder


def _run(*words):
    done = subprocess.run([sys.executable, *words], cwd=measure.REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


if __name__ == "__main__":
    main()
