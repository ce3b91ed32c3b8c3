"""This software beside a plain rendering of the released procedure (benchmarks/plain.py), on one core of a CPU.

    python -m benchmarks.cpu            loss, thresholds, loading and labelling: about ten minutes
    python -m benchmarks.cpu --quick    tiny sizes: tries the paths, its figures mean nothing

Both are run in turns; a figure is the median of processor seconds, the ratio the median over the rounds. Results go to
cpu.json after every part.
"""

import argparse
import contextlib
import dataclasses
import io
import os
import tempfile
import tracemalloc
from pathlib import Path

# One thread, set before the libraries load: ratios on a shared machine mean little with more.
os.environ["OMP_NUM_THREADS"] = "1"

import cv2
import numpy as np
import torch
import torch.nn.functional as F

import generate_splits
import main as program
from benchmarks import plain
from benchmarks.measure import RESULTS, compare, save
from data import batches, transforms
from data.batches import generator
from data.confidence import decode, encode
from data.lists import Sample, labeled_names, unlabeled_names
from data.specs import load_spec
from data.store import PseudoLabelStore
from data.synthetic import generate
from dmt.loss import DynamicMutualLoss
from dmt.thresholds import ConfidenceHistogram
from models import deeplab_v2
from utils.checkpoints import save_weights

CLASSES, NUM_PSEUDO, RATIO, BETA = 21, 7, 0.4, 0.15
SPLIT = "2", "0"


def loss(size):
    """The mutual loss of a batch of 8 crops, forward and backward."""
    coarse = 3 * torch.randn(8, CLASSES, 41, 41, generator=torch.Generator().manual_seed(0))
    logits = F.interpolate(coarse, size["crop"], mode="bilinear", align_corners=True)
    labels = F.interpolate(coarse + torch.randn_like(coarse), size["crop"], mode="bilinear").argmax(1)
    labels[:, :, : size["crop"][1] // 10] = 255
    confidence = torch.rand(labels.shape)
    # Each in the memory format in which its network hands the logits over.
    last = logits.contiguous(memory_format=torch.channels_last).requires_grad_()
    first, criterion = logits.clone().requires_grad_(), DynamicMutualLoss(5, 5)

    def released():
        first.grad = None
        plain.mutual_loss(first, labels, confidence, NUM_PSEUDO, 5, 5)[0].backward()

    def ours():
        last.grad = None
        criterion(last, labels, confidence, NUM_PSEUDO)[0].backward()

    return {"mutual loss, forward and backward (s)": compare(released, ours, size["repeats"])}


def thresholds(size):
    """Thresholds of all classes from every 16th pixel of many images: time, memory, and whether they are the same."""
    def sampled(number):
        rng = np.random.default_rng(number)
        labels = rng.integers(0, CLASSES, 11718) // rng.integers(1, 4)
        return labels, decode(encode(torch.from_numpy((1 / (1 + np.exp(-rng.normal(4, 3, len(labels))))).astype(np.float32)))).numpy()

    def collect():
        samples = [[] for _ in range(CLASSES)]
        for number in range(size["counted"]):
            labels, confidences = sampled(number)
            for c in np.unique(labels):
                samples[c].append(confidences[labels == c])
        return samples

    def count():
        histogram = ConfidenceHistogram(CLASSES)
        for number in range(size["counted"]):
            histogram.update(*sampled(number))
        return histogram

    found, megabytes = [], {}
    for name, function in (("plain", collect), ("ours", count)):
        tracemalloc.start()
        found.append(function())
        megabytes[name] = round(tracemalloc.get_traced_memory()[0] / 1e6, 2)
        tracemalloc.stop()
    samples, histogram = found
    different = sum(int((np.asarray(histogram.thresholds(ratio)) != plain.thresholds(samples, ratio)).sum())
                    for ratio in (0.2, 0.4, 0.6, 0.8, 1.0))
    return {f"thresholds of {size['counted']} images (s)": compare(
        lambda: plain.thresholds(samples, RATIO), lambda: histogram.thresholds(RATIO), size["repeats"]),
        f"memory for thresholds of {size['counted']} images (MB)": megabytes, "thresholds that differ": different}


class Rounds:
    """A generated dataset of VOC's image size, two networks of one arm, and what both procedures make of them."""

    def __init__(self, folder, size):
        self.size, self.folder, self.spec = size, folder, load_spec("shapes")
        self.root = generate(folder / "data", 8, 2, size=size["image"])
        with contextlib.redirect_stdout(io.StringIO()):
            generate_splits.main(["--dataset=shapes", f"--data-root={self.root}", "--divisors", SPLIT[0]])
        self.labeled = labeled_names(self.spec, self.root, *SPLIT)
        self.unlabeled = unlabeled_names(self.spec, self.root, *SPLIT)
        self.networks = {}
        for seed, name in enumerate(("old", "new")):
            torch.manual_seed(seed)
            self.networks[name] = deeplab_v2(self.spec.num_classes, size["backbone"]).eval()
            save_weights(folder / f"{name}.pt", self.networks[name].state_dict())

    def label(self, name, *more):
        """The labelling stage of main.py with that network, anew."""
        words = ["--labeling", "--dataset=shapes", f"--data-root={self.root}", f"--train-set={SPLIT[0]}",
                 f"--sets-id={SPLIT[1]}", f"--backbone={self.size['backbone']}", "--workers=0", "--on-collapse=warn",
                 f"--output-dir={self.folder}", f"--continue-from={name}.pt", f"--label-ratio={RATIO}", "--redo",
                 f"--pseudo-dir={self.folder / 'pseudo' / name}", "--device=cpu",
                 "--test-size", *map(str, self.size["test"])]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            program.main([*words, *more])

    def label_plainly(self, ple):
        """The same by the plain rendering."""
        images = [(name, self.spec.image_path(self.root, name)) for name in self.unlabeled]
        plain.label(self.networks["new"], self.networks["old"] if ple else None, images, self.size["test"], RATIO, BETA,
                    0, self.folder / "plain", self.spec.num_classes)

    def labelling(self):
        """Whole labellings of a round, without PLE and with it, whose previous predictions are there from before."""
        self.label("old")
        repeats, ple = self.size["labellings"], ["--oldfilename=old.pt", f"--Increment={BETA}"]
        return {f"labelling {title} PLE (s)": compare(
            lambda: self.label_plainly(bool(more)), lambda: self.label("new", *more), repeats)
            for title, more in (("without", []), ("with", ple))}

    def loading(self):
        """Training samples from files, labelled and pseudo-labelled with PLE as ``labelling`` left them."""
        crop, passes = self.size["crop"], range(self.size["passes"])
        samples = [[Sample(name, self.spec.image_path(self.root, name), self.spec.label_path(self.root, name))
                    for name in names] for names in (self.labeled, self.unlabeled)]
        ours = batches.TrainingImages(dataclasses.replace(self.spec, crop=crop), 1, *samples,
                                       PseudoLabelStore(self.folder / "pseudo" / "new"))

        def run_ours(kind):
            for number in passes:
                for index in range(len(ours.samples[kind])):
                    ours[kind, number, index]

        def run_plainly(kind):
            for number in passes:
                for index, sample in enumerate(ours.samples[kind]):
                    image = plain.read_image(sample.image)
                    if kind == batches.PSEUDO:
                        labels, confidence = plain.read_pseudo_label(self.folder / "plain" / f"{sample.name}.npy")
                    else:
                        labels, confidence = plain.read_mask(sample.mask), None
                    rng = generator(1, "augmentation of labeled images", number, index)
                    window = transforms.draw_window(rng, image.shape[1:], crop)
                    plain.augment(image, labels, confidence, window, crop, coco=True)

        return {f"loading of {len(passes) * len(ours.samples[kind])} {kind} images (s)": compare(
            lambda kind=kind: run_plainly(kind), lambda kind=kind: run_ours(kind), self.size["repeats"])
            for kind in (batches.LABELED, batches.PSEUDO)}


def main():
    """Every part in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: only tries the paths")
    parser.add_argument("--results", default=str(RESULTS), help="folder of cpu.json (default: %(default)s)")
    options = parser.parse_args()
    size = {"backbone": "resnet101", "crop": (321, 321), "test": (505, 505), "image": (375, 500), "repeats": 15,
            "labellings": 3, "passes": 4, "counted": 1000}
    if options.quick:
        size |= {"backbone": "small", "crop": (33, 33), "test": (65, 65), "image": (48, 64), "repeats": 1,
                 "labellings": 1, "passes": 1, "counted": 3}
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        rounds, found = Rounds(Path(folder), size), {}
        for part in (lambda: loss(size), lambda: thresholds(size), rounds.labelling, rounds.loading):
            for what, value in part().items():
                print(f"{what}: {value}", flush=True)
                found[what] = value
            path = save("cpu", {"quick": options.quick, "settings": size, "found": found}, options.results)
    print(path)


if __name__ == "__main__":
    main()
