"""The dynamic mutual loss, forward and backward, beside the plain formula and beside plain cross-entropy."""

import statistics
import subprocess
import sys
import threading
import time

import torch
import torch.nn.functional as F

from benchmarks import measure, plain
from dmt.loss import DynamicMutualLoss

SHAPE = (8, 21, 321, 321)
NUM_PSEUDO = 7


def main():
    """Time and peak extra memory; the memory of each way is measured in a process of its own."""
    if len(sys.argv) == 3 and sys.argv[1] == "--memory-of":
        print(extra_memory(sys.argv[2]))
        return
    options = measure.arguments(__doc__)
    repeats = 3 if options.quick else 15
    ways = {name: way(name) for name in ("plain", "ours", "cross-entropy")}
    seconds = measure.interleaved(ways, repeats)
    memory = {name: int(subprocess.run([sys.executable, "-m", "benchmarks.loss", "--memory-of", name], text=True,
                                       cwd=measure.REPOSITORY, capture_output=True, check=True).stdout) / 2**20
              for name in ways}
    median = {name: statistics.median(values) for name, values in seconds.items()}
    measure.report("loss", [
        measure.row("mutual loss, forward and backward", "s", median["plain"], median["ours"],
                    gain=measure.ratio(seconds["plain"], seconds["ours"]), target=2, floor=median["cross-entropy"],
                    floor_is="plain cross-entropy"),
        measure.row("peak memory beyond logits and labels", "MB", memory["plain"], memory["ours"],
                    gain=memory["plain"] / memory["ours"], target=2, floor=gradient_megabytes(),
                    floor_is="the gradient itself")],
        options, {"shape": SHAPE, "pseudo-labelled": NUM_PSEUDO, "gammas": [5, 5], "repeats": repeats})


def gradient_megabytes():
    """Size of the gradient that the loss must leave."""
    return 4 * torch.Size(SHAPE).numel() / 2**20


def way(name, shape=SHAPE):
    """A function that computes the loss and its gradient once, in the way of that name, on the same data."""
    torch.manual_seed(0)
    images, classes, height, width = shape
    coarse = 3 * torch.randn(images, classes, 41, 41)
    # Each in the memory format in which its network hands the logits over: channels_last here, NCHW there.
    logits = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    if name == "ours":
        logits = logits.contiguous(memory_format=torch.channels_last)
    logits.requires_grad_()
    labels = F.interpolate(coarse + torch.randn_like(coarse), (height, width), mode="bilinear").argmax(1)
    labels[:, :, : width // 10] = 255
    confidence = torch.rand(images, height, width)
    ours = DynamicMutualLoss(5, 5)

    def run():
        logits.grad = None
        if name == "plain":
            loss, statistics_ = plain.mutual_loss(logits, labels, confidence, NUM_PSEUDO, 5, 5)
        elif name == "ours":
            loss, statistics_ = ours(logits, labels, confidence, NUM_PSEUDO)
        else:
            loss = F.cross_entropy(logits, labels, ignore_index=255)
        loss.backward()
    return run


def extra_memory(name):
    """Peak memory of this process during one run of the way beyond what it held before, in bytes."""
    torch.set_num_threads(1)
    way(name, (8, 21, 16, 16))()  # what libraries allocate once does not count
    run = way(name)
    statm = open("/proc/self/statm")
    peak, stop = 0, threading.Event()

    def resident():
        statm.seek(0)
        return int(statm.read().split()[1]) * 4096

    def watch():
        nonlocal peak
        while not stop.is_set():
            peak = max(peak, resident())
            time.sleep(0.0005)

    before = resident()
    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    stop.set()
    watcher.join()
    return peak - before


if __name__ == "__main__":
    main()
