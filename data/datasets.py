"""Datasets for a DataLoader: training samples (labelled and pseudo-labelled) and whole images (validation, labelling).

Everything stays uint8 until the device.
"""

import multiprocessing
import os
import signal
import threading

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from data import images, transforms
from data.batches import generator
from utils.errors import NO_SHARED_MEMORY, UserError

LABELED, PSEUDO = "labeled", "pseudo"
CERTAIN = 255  # grey confidence of a human label: 1

_ENDING = (signal.SIGTERM, signal.SIGINT)


class TrainingImages(Dataset):
    """Training samples by key (kind, pass, index), as ``data.batches.Steps`` gives them.

    ``labeled`` and ``pseudo`` are lists of ``data.lists.Sample``; ``store`` is the ``PseudoLabelStore`` of the latter, or
    None where their labels are made on the fly: then they come with label 0, and 255 in the padding. With
    ``augment_pseudo`` false, pseudo-labelled images are only resized to the spec's crop.
    Every random draw is a function of (seed, kind, pass, index).
    """

    def __init__(self, spec, seed, labeled, pseudo=(), store=None, augment_pseudo=True):
        self.spec, self.crop, self.seed = spec, spec.crop, seed
        self.samples = {LABELED: labeled, PSEUDO: pseudo}
        self.store, self.augment_pseudo = store, augment_pseudo

    def __getitem__(self, key):
        """(image (h, w, 3) uint8 BGR, label (h, w) uint8 with 255 = ignored, grey confidence (h, w) uint8)."""
        kind, pass_number, index = key
        sample = self.samples[kind][index]
        image, confidence = images.read_image(sample.image, self.spec.max_pixels), None
        if kind == LABELED:
            label = images.read_mask(sample.mask, self.spec)
        elif self.store is None:
            label = confidence = np.zeros(image.shape[:2], np.uint8)
        else:
            label, confidence = self.store.read_label(sample.name)
        image, label = _matched(sample.name, image, label, self.spec.resized)
        if kind == LABELED or self.augment_pseudo:
            rng = generator(self.seed, f"augmentation of {kind} images", pass_number, index)
            window = transforms.draw_window(rng, image.shape[:2], self.crop)
        else:
            window = transforms.Window(*self.crop)
        image = transforms.crop_image(image, window, self.crop)
        label = transforms.crop_nearest(label, window, self.crop, 255)
        if confidence is None:
            return image, label, np.full(label.shape, CERTAIN, np.uint8)
        return image, label, transforms.crop_nearest(confidence, window, self.crop, 0)

    def collate(self, samples):
        """Stack samples: (images (N, h, w, 3), labels (N, h, w), grey confidences (N, h, w)), all uint8; N may be 0."""
        if samples:
            return tuple(default_collate(samples))  # in a worker it stacks into the memory that the main process reads
        return tuple(torch.empty((0, *self.crop, *channels), dtype=torch.uint8) for channels in ((3,), (), ()))


class WholeImages(Dataset):
    """The images of a list of ``data.lists.Sample`` at the spec's test size, with their masks where they have some."""

    def __init__(self, spec, samples):
        self.spec, self.samples = spec, samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        """(image (*test_size, 3) uint8 BGR, label (*size) uint8 with 255 = ignored, or None, index, size).

        ``size`` (height, width) is the part of the test size that the image covers: all of it where images are resized.
        """
        sample, test_size = self.samples[index], self.spec.test_size
        label = None if sample.mask is None else images.read_mask(sample.mask, self.spec)
        image = images.read_image(sample.image, self.spec.max_pixels)
        image, label = _matched(sample.name, image, label, self.spec.resized)
        size = image.shape[:2]
        if size[0] > test_size[0] or size[1] > test_size[1]:
            raise UserError(
                f"the image {sample.image} is {size[1]} x {size[0]} pixels, larger than the test size {test_size[1]} x "
                f"{test_size[0]} it is padded to; raise test_size in the dataset's spec or give --test-size")
        return transforms.pad(image, test_size, 0), label, index, size


class JudgedImages(Dataset):
    """The images of a list of ``data.lists.Sample`` with their masks, unpadded: as they are, or resized to ``size``."""

    def __init__(self, spec, samples, size=None):
        self.spec, self.samples, self.size = spec, samples, size

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        """(name, image (H, W, 3) uint8 BGR, label (H, W) uint8 with 255 = ignored)."""
        name, image, mask = self.samples[index]
        image, label = images.read_image(image, self.spec.max_pixels), images.read_mask(mask, self.spec)
        return name, *_matched(name, image, label, self.size)


def collate_whole(samples):
    """(images (N, *test_size, 3) uint8, labels (N, *test_size) uint8 or None, list of indices, list of sizes).

    Labels are padded with 255 at bottom and right.
    """
    stacked, labels, indices, sizes = zip(*samples)
    whole = None
    if labels[0] is not None:
        whole = torch.from_numpy(np.stack([transforms.pad(label, image.shape[:2], 255)
                                           for image, label in zip(stacked, labels)]))
    return torch.from_numpy(np.stack(stacked)), whole, list(indices), list(sizes)


def _matched(name, image, label, size=None):
    """Image and label (or None), resized to ``size`` where it is given. Raises ``UserError`` where they differ in size."""
    if size is not None:
        image = transforms.resize_image(image, size)
        label = None if label is None else transforms.resize_nearest(label, size)
    if label is not None and image.shape[:2] != label.shape:
        raise UserError(f"the image {name} is {image.shape[1]} x {image.shape[0]} but its label is {label.shape[1]} x "
                        f"{label.shape[0]} pixels; make the labels again")
    return image, label


# --- loader processes ---------------------------------------------------------------------------------------------------


def loaders(shares=1):
    """How many loader processes feed a GPU of a machine with ``shares`` of them; the rest is for what else is done.

    On 16 processors of an H200's machine 8 loaders gave validation fewer images a second than the network takes.
    """
    # Containers and batch systems give a process fewer processors than the machine has; not every system can say.
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    own = usable // shares
    return max(1, min(own, 8), min(own * 3 // 4, 12))


def check_shared_memory():
    """Raise ``UserError`` where the system has no memory that loader processes could share."""
    try:
        multiprocessing.Lock()
    except OSError as error:
        raise UserError(NO_SHARED_MEMORY) from error


def start_worker(_):
    """Loader workers decode with one thread each: the processes are the parallelism. They end with their parent.

    A signal to the whole group of processes, as torchrun and terminals send it, would end them while their parent still
    needs them to come to an orderly end.
    """
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    threading.Thread(target=_obey_parent, daemon=True).start()


def _obey_parent():
    while signal.sigwaitinfo(_ENDING).si_pid != os.getppid():
        pass
    os._exit(0)
