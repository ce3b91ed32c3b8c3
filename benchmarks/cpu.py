"""This software beside a plain rendering of the released procedure (benchmarks/plain.py), on one core of a CPU.

    python -m benchmarks.cpu            loss, thresholds, labelling and loading: about ten minutes
    python -m benchmarks.cpu --quick    tiny sizes: tries the paths, its figures mean nothing

Both are run in turns; a figure is the median of processor seconds, the ratio the median over the rounds. Results go to
cpu.json after every one.
"""

import argparse
import contextlib
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
from data.store import PseudoLabelStore
from data.synthetic import generate
from dmt.loss import DynamicMutualLoss
from dmt.session import Data
from dmt.thresholds import ConfidenceHistogram
from models import deeplab_v2
from utils import checkpoints

CLASSES, NUM_PSEUDO, RATIO, BETA = 21, 7, 0.4, 0.15
SPLIT = "2", "0"


def loss(size, folder):
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

    yield "mutual loss, forward and backward (s)", compare(released, ours, size["repeats"])


def thresholds(size, folder):
    """Thresholds of all classes from every 16th pixel of many images: time, memory, and whether they are the same."""
    def sampled():
        for number in range(size["counted"]):
            rng = np.random.default_rng(number)
            labels = rng.integers(0, CLASSES, 11718) // rng.integers(1, 4)
            confidences = (1 / (1 + np.exp(-rng.normal(4, 3, len(labels))))).astype(np.float32)
            yield labels, decode(encode(torch.from_numpy(confidences))).numpy()

    samples, histogram, megabytes = [[] for _ in range(CLASSES)], ConfidenceHistogram(CLASSES), {}
    for name, add in (("plain", lambda *one: plain.collect(samples, *one)), ("ours", histogram.update)):
        tracemalloc.start()
        for one in sampled():
            add(*one)
        megabytes[name] = round(tracemalloc.get_traced_memory()[0] / 1e6, 2)
        tracemalloc.stop()
    what = f"thresholds of {size['counted']} images"
    yield f"memory for {what} (MB)", megabytes
    yield "thresholds that differ", sum(
        int((np.asarray(histogram.thresholds(ratio)) != plain.thresholds(samples, ratio)).sum())
        for ratio in (0.2, 0.4, 0.6, 0.8, 1.0))
    yield f"{what} (s)", compare(lambda: plain.thresholds(samples, RATIO), lambda: histogram.thresholds(RATIO),
                                 size["repeats"])


def rounds(size, folder):
    """Whole labellings of generated images of VOC's size, without PLE and with it (the previous predictions are there
    from before), and the training samples, labelled and pseudo-labelled, that are loaded from their files then."""
    root, networks = generate(folder / "data", 8, 2, size=size["image"]), {}
    with contextlib.redirect_stdout(io.StringIO()):
        generate_splits.main(["--dataset=shapes", f"--data-root={root}", "--divisors", SPLIT[0]])
    data = Data("shapes", root, crop=size["crop"])
    for seed, name in enumerate(("old", "new")):
        torch.manual_seed(seed)
        networks[name] = deeplab_v2(data.spec.num_classes, size["backbone"]).eval()
        checkpoints.save(folder / f"{name}.pt", {"model": networks[name].state_dict()})
    labeled, unlabeled = data.labeled(*SPLIT), data.unlabeled(*SPLIT)

    def label(name, *more):
        """The labelling stage of main.py with that network, anew."""
        words = ["--labeling", "--dataset=shapes", f"--data-root={root}", f"--train-set={SPLIT[0]}",
                 f"--sets-id={SPLIT[1]}", f"--backbone={size['backbone']}", "--workers=0", "--on-collapse=warn",
                 f"--output-dir={folder}", f"--continue-from={name}.pt", f"--label-ratio={RATIO}", "--redo",
                 f"--pseudo-dir={folder / 'pseudo' / name}", "--device=cpu", "--test-size", *map(str, size["test"])]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            program.main([*words, *more])

    def label_plainly(*names):
        plain.label([networks[name] for name in names], [sample[:2] for sample in unlabeled], size["test"], RATIO, BETA,
                    folder / "plain", data.spec.num_classes)

    label("old")
    yield "labelling without PLE (s)", compare(lambda: label_plainly("new"), lambda: label("new"), size["labellings"])
    yield "labelling with PLE (s)", compare(
        lambda: label_plainly("new", "old"), lambda: label("new", "--oldfilename=old.pt", f"--Increment={BETA}"),
        size["labellings"])
    ours = batches.TrainingImages(data.spec, 1, labeled, unlabeled, PseudoLabelStore(folder / "pseudo" / "new"))

    def load_plainly(kind, number, index):
        sample = ours.samples[kind][index]
        image = plain.read_image(sample.image)
        labels, confidence = (plain.read_pseudo_label(folder / "plain" / f"{sample.name}.npy")
                              if kind == batches.PSEUDO else plain.read_mask(sample.mask))
        rng = generator(1, "augmentation of labeled images", number, index)
        window = transforms.draw_window(rng, image.shape[1:], size["crop"])
        plain.augment(image, labels, confidence, window, size["crop"])

    for kind in (batches.LABELED, batches.PSEUDO):
        keys = [(kind, number, index) for number in range(size["passes"]) for index in range(len(ours.samples[kind]))]
        yield f"loading of {len(keys)} {kind} images (s)", compare(
            lambda keys=keys: [load_plainly(*key) for key in keys], lambda keys=keys: [ours[key] for key in keys],
            size["repeats"])


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
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in (loss, thresholds, rounds):
            for what, value in part(size, Path(folder)):
                print(f"{what}: {value}", flush=True)
                found[what] = value
                path = save("cpu", {"quick": options.quick, "settings": size, "found": found}, options.results)
    print(path)


if __name__ == "__main__":
    main()
