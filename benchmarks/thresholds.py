"""Class-balanced thresholds: memory for any number of images, and the same values as sorting every sample."""

import statistics
import tracemalloc

import numpy as np

from benchmarks import measure, plain
from data.confidence import decode, encode
from dmt.thresholds import ConfidenceHistogram

CLASSES, PIXELS = 21, 375 * 500 // 16
RATIOS = (0.2, 0.4, 0.6, 0.8, 1.0)


def main():
    """Memory at 100, 1000 and 10582 images, time at the largest number, and the difference from sorting."""
    options = measure.arguments(__doc__)
    rows, differences = [], 0
    for count in (100, 1000) if options.quick else (100, 1000, 10582):
        histogram, memory = measured(lambda: fill_histogram(count))
        samples, plain_memory = measured(lambda: fill_samples(count))
        for ratio in RATIOS:
            differences += int((histogram.thresholds(ratio) != plain.thresholds(samples, ratio)).sum())
        rows.append(measure.row(f"memory for thresholds, {count} images", "MB", plain_memory, memory,
                                gain=plain_memory / memory, target=("<=", 64)))
    seconds = measure.interleaved({"plain": lambda: plain.thresholds(samples, 0.4),
                                   "ours": lambda: histogram.thresholds(0.4)}, 3 if options.quick else 7)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    rows.append(measure.row(f"thresholds from what was collected, {count} images", "s", median["plain"], median["ours"],
                            gain=measure.ratio(seconds["plain"], seconds["ours"]),
                            note=f"{differences} thresholds differ from sorting, over {len(RATIOS)} ratios"))
    measure.report("thresholds", rows, options, {"classes": CLASSES, "sampled pixels an image": PIXELS},
                   differences=differences)


def images(count):
    """(labels, confidences) of the sampled pixels of ``count`` images; the confidences are ones that can be stored."""
    for number in range(count):
        rng = np.random.default_rng(number)
        labels = rng.integers(0, CLASSES, PIXELS) // rng.integers(1, 4)
        yield labels, decode(encode((1 / (1 + np.exp(-rng.normal(4, 3, PIXELS)))).astype(np.float32)))


def fill_histogram(count):
    """What this software keeps."""
    histogram = ConfidenceHistogram(CLASSES)
    for labels, confidences in images(count):
        histogram.update(labels, confidences)
    return histogram


def fill_samples(count):
    """What the plain procedure keeps."""
    samples = [[] for _ in range(CLASSES)]
    for labels, confidences in images(count):
        for c in np.unique(labels):
            samples[c].append(confidences[labels == c])
    return samples


def measured(function):
    """(result, peak memory in MB) of a function that works in numpy arrays."""
    tracemalloc.start()
    result = function()
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return result, peak


if __name__ == "__main__":
    main()
