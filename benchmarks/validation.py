"""Validation outside the forward pass: from the network's logits at 1/8 to the counts of the confusion matrix."""

import statistics

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import measure, plain
from dmt.prediction import classify, covering
from utils.metrics import ConfusionMatrix

CLASSES, SIZE, TEST_SIZE, MAP_SIZE = 21, (375, 500), (505, 505), (64, 64)


def main():
    """Time of one image of VOC's size, padded to the test size; both give the same matrix."""
    options = measure.arguments(__doc__)
    repeats = 5 if options.quick else 31
    torch.manual_seed(0)
    logits = 4 * F.interpolate(torch.randn(1, CLASSES, 12, 12), MAP_SIZE, mode="bicubic")
    label = np.random.default_rng(0).integers(0, CLASSES, SIZE).astype(np.uint8)
    last = logits.contiguous(memory_format=torch.channels_last)  # as the network hands it over

    @torch.inference_mode()
    def ours():
        matrix = ConfusionMatrix(CLASSES)
        (rows, columns), _ = covering(SIZE, TEST_SIZE, MAP_SIZE)
        matrix.update(torch.from_numpy(label), classify(last[0, :, :rows, :columns], SIZE, TEST_SIZE, MAP_SIZE))
        return matrix.matrix

    @torch.no_grad()
    def slow():
        return plain.validation_counts(logits, label, SIZE, TEST_SIZE, CLASSES)

    @torch.inference_mode()
    def floor():
        return F.interpolate(logits, SIZE, mode="bilinear", align_corners=True).max(1)

    different = int(np.abs(ours() - slow()).sum()) // 2
    seconds = measure.interleaved({"plain": slow, "ours": ours, "floor": floor}, repeats)
    median = {name: 1000 * statistics.median(values) for name, values in seconds.items()}
    measure.report("validation", [measure.row(
        "validation per image, outside the forward pass", "ms", median["plain"], median["ours"], target=3,
        gain=measure.ratio(seconds["plain"], seconds["ours"]), floor=median["floor"],
        floor_is="upsampling and maximum alone", note=f"{different} pixels of {label.size} counted differently")],
        options, {"classes": CLASSES, "image": SIZE, "test size": TEST_SIZE, "repeats": repeats})


if __name__ == "__main__":
    main()
