"""Training images per second of one loader worker, and what no loader can undercut: decoding the JPEGs.

The figures are the processor time of a real ``DataLoader`` worker, from the files to the batch in shared memory.
"""

import multiprocessing
import shutil
import statistics
import time
from pathlib import Path

import cv2
import numpy as np
from torch.utils.data import DataLoader, Dataset

from benchmarks import measure, pictures, plain
from data import datasets, transforms
from data.batches import generator
from data.confidence import encode
from data.store import PseudoLabelStore

CROP = (321, 321)
BATCH = 8


def main():
    """Labelled images in both input formats and pseudo-labelled ones, generated and (if there) CamVid's."""
    options = measure.arguments(__doc__, camvid=True)
    count, repeats = (16, 3) if options.quick else (64, 15)
    rows, settings = [], {"crop": CROP, "batch": BATCH, "images": count, "repeats": repeats, "workers": 1}
    for title, source in _sources(options, count):
        settings[f"{title}: mean JPEG bytes"] = round(pictures.jpeg_bytes(*source))
        rows += measure_source(title, *source, Path(options.work) / "loading" / title, repeats)
    measure.report("loading", rows, options, settings)


def _sources(options, count):
    yield "generated", pictures.generated(options.work, count)
    if options.camvid_root:
        yield "CamVid", pictures.camvid(options.camvid_root, count)


class PlainImages(Dataset):
    """The plain procedure's training samples, with the windows that this software would draw."""

    def __init__(self, spec, root, names, folder, pseudo, coco):
        self.spec, self.root, self.names, self.folder = spec, root, names, folder
        self.pseudo, self.coco = pseudo, coco

    def __getitem__(self, key):
        _, pass_number, index = key
        name = self.names[index]
        image = plain.read_image(self.spec.image_path(self.root, name))
        if self.pseudo:
            labels, confidences = plain.read_pseudo_label(self.folder / f"{name}.npy")
        else:
            labels, confidences = plain.read_mask(self.spec.label_path(self.root, name)), None
        rng = generator(1, "augmentation of labeled images", pass_number, index)
        window = transforms.draw_window(rng, image.shape[1:], CROP)
        sample = plain.augment(image, labels, confidences, window, CROP, self.coco)
        return sample if self.pseudo else sample[:2]


class Decoding(Dataset):
    """The floor: JPEGs from memory, decoded and thrown away."""

    def __init__(self, spec, root, names):
        self.contents = [np.frombuffer(spec.image_path(root, name).read_bytes(), np.uint8) for name in names]

    def __getitem__(self, key):
        cv2.imdecode(self.contents[key[2]], cv2.IMREAD_COLOR)
        return 0


def measure_source(title, spec, root, names, folder, repeats):
    """Rows for one set of images."""
    store = write_pseudo_labels(spec, root, names, folder)
    ours = datasets.TrainingImages(spec, root, CROP, 1, names, names, store)
    sets = {"labelled": (ours, datasets.LABELED), "pseudo": (ours, datasets.PSEUDO),
            "decode": (Decoding(spec, root, names), "")}
    for pseudo in (False, True):
        for form in ("COCO", "ImageNet"):
            plain_images = PlainImages(spec, root, names, folder, pseudo, form == "COCO")
            sets[f"plain {'pseudo' if pseudo else 'labelled'} {form}"] = plain_images, ""
    workers = {name: Worker(*chosen, len(names)) for name, chosen in sets.items()}
    seconds = {name: [] for name in workers}
    for number in range(-1, repeats):  # interleaved, as in benchmarks.measure, but by the clocks of the workers
        order = list(workers.items())
        for name, worker in order if number % 2 else reversed(order):
            taken = worker.one_pass()
            if number >= 0:
                seconds[name].append(taken)

    def rate(name):
        return len(names) / statistics.median(seconds[name])

    titles = {"labelled": "labelled", "pseudo": "pseudo-labelled with PLE"}
    return [measure.row(f"{title} images, {titles[what]}, {form} format", "images/s", rate(f"plain {what} {form}"),
                        rate(what), floor=rate("decode"), floor_is="JPEG decode alone",
                        gain=measure.ratio(seconds[f"plain {what} {form}"], seconds[what]), target=3)
            for what in titles for form in ("COCO", "ImageNet")]


class Worker:
    """A loader with one worker that stays, and its processor time."""

    def __init__(self, dataset, kind, count):
        batches = [[(kind, 0, index) for index in range(start, min(start + BATCH, count))]
                   for start in range(0, count, BATCH)]
        collate = dataset.collate if isinstance(dataset, datasets.TrainingImages) else None
        self.loader = DataLoader(dataset, batch_sampler=batches, collate_fn=collate, num_workers=1,
                                 persistent_workers=True, worker_init_fn=datasets.start_worker)
        before = set(multiprocessing.active_children())
        self.one_pass_over_the_loader()
        (process,) = set(multiprocessing.active_children()) - before
        self.threads = Path(f"/proc/{process.pid}/task")

    def one_pass_over_the_loader(self):
        for _ in self.loader:
            pass

    def one_pass(self):
        """Seconds of processor time that the worker takes for all batches (wall time where the system has no count)."""
        start = self._now()
        self.one_pass_over_the_loader()
        return self._now() - start

    def _now(self):
        if not self.threads.exists():
            return time.perf_counter()
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in self.threads.iterdir()) / 1e9


def write_pseudo_labels(spec, root, names, folder):
    """Pseudo labels in both forms, from the true masks: a fifth of the pixels ignored, smooth confidences."""
    shutil.rmtree(folder, ignore_errors=True)
    store = PseudoLabelStore(folder, spec.palette)
    for number, name in enumerate(names):
        labels = plain.read_mask(spec.label_path(root, name)).numpy().astype(np.uint8)
        rng = np.random.default_rng(number)
        coarse = rng.normal(3, 2.5, (labels.shape[0] // 20 + 1, labels.shape[1] // 20 + 1))
        confidences = (1 / (1 + np.exp(-cv2.resize(coarse, labels.shape[::-1])))).astype(np.float32)
        labels[confidences < np.quantile(confidences, 0.2)] = 255
        store.write_pseudo_label(name, labels, encode(confidences))
        plain.write_pseudo_label(folder / f"{name}.npy", labels, confidences, ple=True)
    return store


if __name__ == "__main__":
    main()
