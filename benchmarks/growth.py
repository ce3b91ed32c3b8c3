"""How labelling, thresholds and loading grow with the number of images: time, memory, and a plot of both."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import measure, pictures, rounds
from data import datasets
from data.store import PseudoLabelStore

SIZE, TEST_SIZE, CROP, UNIQUE, BATCH = (60, 80), (65, 81), (49, 65), 64, 8
PLOT = measure.REPOSITORY / "docs" / "growth.png"


def main():
    """Each number of images runs in a process of its own, whose peak memory is read at the end."""
    if len(sys.argv) == 4 and sys.argv[1] == "--one":
        print(json.dumps(one(int(sys.argv[2]), Path(sys.argv[3]))))
        return
    options = measure.arguments(__doc__)
    counts = (100, 300) if options.quick else (100, 1000, 10582)
    results = {}
    for count in counts:
        done = subprocess.run([sys.executable, "-m", "benchmarks.growth", "--one", str(count), options.work], text=True,
                              cwd=measure.REPOSITORY, capture_output=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        results[count] = json.loads(done.stdout.splitlines()[-1])
    rows = []
    for what in ("labelling with PLE", "thresholds", "loading"):
        first = results[counts[0]][what] / counts[0]
        for count in counts:
            each = 1000 * results[count][what] / count
            unit, value = ("ms in all", 1000 * results[count][what]) if what == "thresholds" else ("ms/image", each)
            rows.append(measure.row(f"{what}, {count} images", unit, None, value, note="" if what == "thresholds" else
                                    f"{each / 1000 / first:.2f} of the time per image at {counts[0]}"))
    for count in counts:
        rows.append(measure.row(f"peak memory of the process, {count} images", "MB", None, results[count]["memory"]))
    result = measure.report("growth", rows, options, {"image": SIZE, "backbone": "small", "batch": BATCH},
                            counts=list(counts), results=results)
    if not options.quick:
        plot(result, PLOT)


def one(count, work):
    """Seconds of processor time for each part at ``count`` images, and the peak memory in MB."""
    measure.torch.set_num_threads(1)
    measure.torch.set_flush_denormal(True)
    measure.cv2.setNumThreads(1)
    spec, root, names = linked(work / "growth", work, count)
    folder = work / "growth" / f"store-{count}"
    shutil.rmtree(folder, ignore_errors=True)
    network, seconds = rounds.network(spec.num_classes, sureness=10), {}
    store = PseudoLabelStore(folder / "current", spec.palette)
    previous = PseudoLabelStore(folder / "previous", spec.palette)
    rounds.predict(rounds.network(spec.num_classes, sureness=10, seed=1), spec, root, names, previous, TEST_SIZE, BATCH)
    start = time.process_time()
    histogram = rounds.predict(network, spec, root, names, store, TEST_SIZE, BATCH)
    middle = time.process_time()
    limits = histogram.thresholds(0.4)
    end = time.process_time()
    rounds.decide(spec, names, store, previous, limits, 0.4, test_size=TEST_SIZE)
    seconds["labelling with PLE"] = time.process_time() - start - (end - middle)
    seconds["thresholds"] = end - middle
    images = datasets.TrainingImages(spec, root, CROP, 1, names, names, store)
    start = time.process_time()
    for index in range(count):
        images[datasets.PSEUDO, 0, index]
    seconds["loading"] = time.process_time() - start
    seconds["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    shutil.rmtree(folder)
    return seconds


def linked(folder, work, count):
    """(spec, root, names): as many names as wanted, for a few generated images."""
    spec, source, few = pictures.generated(work, UNIQUE, SIZE)
    names = [f"image_{number:06d}" for number in range(count)]
    for number, name in enumerate(names):
        link = spec.image_path(folder, name)
        if not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link(spec.image_path(source, few[number % UNIQUE]), link)
    return spec, folder, names


def plot(result, path):
    """Time and memory over the number of images, both axes of the time logarithmic."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    counts = result["counts"]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(7.5, 3), layout="constrained")
    for what in ("labelling with PLE", "loading", "thresholds"):
        left.loglog(counts, [result["results"][count][what] for count in counts], "o-", label=what)
    left.loglog(counts, [result["results"][counts[0]]["loading"] * count / counts[0] / 3 for count in counts], "--",
                color="grey", label="linear")
    left.set(xlabel="images", ylabel="seconds of processor time")
    right.semilogx(counts, [result["results"][count]["memory"] for count in counts], "o-")
    right.set(xlabel="images", ylabel="peak memory of the process (MB)", ylim=(0, None))
    left.legend(fontsize=8)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
