"""Labelling with ResNet-101 at 505 x 505: seconds per image of a plain round and of a round with PLE.

With CamVid and two checkpoints of one arm also: the share of pixels that float32 decides otherwise.
"""

import copy
import shutil
import statistics
from pathlib import Path

import torch

from benchmarks import measure, pictures, plain, rounds
from data.lists import read_list
from data.specs import load_spec
from data.store import PseudoLabelStore

CLASSES, TEST_SIZE, RATIO, BETA = 21, (505, 505), 0.4, 0.15


def main():
    """Times of both kinds of round, and the agreement with float32 on real images."""
    options = measure.arguments(__doc__, trained=True)
    count, repeats = (1, 1) if options.quick else (2, 3)
    work = Path(options.work) / "labeling"
    rows = measure_rounds(pictures.generated(options.work, count), work, repeats)
    if options.camvid_root and options.checkpoints:
        rows += compare_labels(options, work, 20 if options.quick else 100)
    measure.report("labeling", rows, options,
                   {"backbone": "resnet101", "classes": CLASSES, "test size": TEST_SIZE, "images": count,
                    "repeats": repeats, "ratio": RATIO, "beta": BETA})


def measure_rounds(source, work, repeats):
    """Seconds per image of whole rounds, decoding and writing included."""
    spec, root, names = source
    network = rounds.network(CLASSES, "resnet101", sureness=10)
    last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    images = [(name, spec.image_path(root, name)) for name in names]
    folder = fresh(work / "plain")
    previous = PseudoLabelStore(fresh(work / "previous"), spec.palette)
    rounds.predict(last, spec, root, names, previous, TEST_SIZE)
    white = torch.zeros(1, 3, *TEST_SIZE).to(memory_format=torch.channels_last)

    def released(ple):
        plain.label(network, network if ple else None, images, TEST_SIZE, RATIO, BETA, 0, folder, CLASSES)

    def ours(ple):
        rounds.label(last, spec, root, names, work / "ours", previous if ple else None, RATIO, TEST_SIZE)

    @torch.inference_mode()
    def forward():
        for _ in names:
            last(white)

    seconds = measure.interleaved(
        {"plain": lambda: released(False), "ours": lambda: ours(False), "plain with PLE": lambda: released(True),
         "ours with PLE": lambda: ours(True), "forward": forward}, repeats)
    median = {name: statistics.median(values) / len(names) for name, values in seconds.items()}
    return [measure.row(f"labelling a round{title}, per image", "s", median[f"plain{key}"], median[f"ours{key}"],
                        gain=measure.ratio(seconds[f"plain{key}"], seconds[f"ours{key}"]), target=target,
                        floor=median["forward"], floor_is="one forward pass alone")
            for title, key, target in ((" without PLE", "", 1.9), (" with PLE", " with PLE", 2.8))]


def compare_labels(options, work, count):
    """Percent of pixels whose label is not that of the plain procedure in float32."""
    spec, root = load_spec("camvid"), Path(options.camvid_root)
    names = read_list(spec.list_path(root, spec.train_lists[0]))
    names = names[:: max(1, len(names) // count)][:count]
    images = [(name, spec.image_path(root, name)) for name in names]
    old, new = (rounds.network(spec.num_classes, checkpoint=file) for file in options.checkpoints)
    previous = PseudoLabelStore(fresh(work / "camvid-previous"), spec.palette)
    rounds.predict(copy.deepcopy(old), spec, root, names, previous)
    rows = []
    for title, earlier, store in (("thresholds", None, None), ("thresholds and PLE", old, previous)):
        folder = fresh(work / "camvid-plain")
        plain.label(new, earlier, images, spec.test_size, RATIO, BETA, spec.background, folder, spec.num_classes)
        ours, _ = rounds.label(copy.deepcopy(new), spec, root, names, fresh(work / "camvid"), store, RATIO)
        pairs = [(plain.read_pseudo_label(folder / f"{name}.npy")[0].numpy(), ours.read_pseudo_label(name)[0])
                 for name in names]
        pixels = sum(labels.size for labels, _ in pairs)
        different = sum(int((labels != stored).sum()) for labels, stored in pairs)
        rows.append(measure.row(f"CamVid pixels labelled otherwise than in float32, after {title}", "%", None,
                                100 * different / pixels, target=("<=", 0.05),
                                note=f"{different} of {pixels} pixels of {len(names)} images"))
    return rows


def fresh(folder):
    """``folder``, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


if __name__ == "__main__":
    main()
