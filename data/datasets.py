"""Whole images for a DataLoader, for all but training (see ``data.batches``), and its loader processes.

Everything stays uint8 until the device.
"""

import multiprocessing
import os
import signal
import threading

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from data import images, transforms
from utils.errors import NO_SHARED_MEMORY, UserError

_ENDING = (signal.SIGTERM, signal.SIGINT)


class WholeImages(Dataset):
    """Whole images by ``data.lists.Sample``, the keys of this dataset, with their masks where they have some: as they
    are, or resized to the test size where the spec says so (not with ``resize`` false)."""

    def __init__(self, spec, resize=True):
        self.spec, self.size = spec, spec.resized if resize else None

    def __getitem__(self, sample):
        """(image (h, w, 3) uint8 BGR, label (h, w) uint8 with 255 = ignored, or None, sample)."""
        image = images.read_image(sample.image, self.spec.max_pixels)
        label = None if sample.mask is None else images.read_mask(sample.mask, self.spec)
        return *matched(sample.name, image, label, self.size), sample

    def collate(self, items):
        """(images (N, *test_size, 3) uint8, labels (N, *test_size) uint8, list of samples, list of sizes).

        Images are padded with 0 at bottom and right; the sizes (height, width) are without. Where there is no label it
        is 255. Raises ``UserError`` for an image that is larger.
        """
        test_size, samples, sizes = self.spec.test_size, [], []
        pictures = np.zeros((len(items), *test_size, 3), np.uint8)
        labels = np.full((len(items), *test_size), 255, np.uint8)
        for number, (image, label, sample) in enumerate(items):
            height, width = size = image.shape[:2]
            if height > test_size[0] or width > test_size[1]:
                raise UserError(images.too_large(sample.image, size, test_size))
            pictures[number, :height, :width] = image
            if label is not None:
                labels[number, :height, :width] = label
            samples.append(sample)
            sizes.append(size)
        return torch.from_numpy(pictures), torch.from_numpy(labels), samples, sizes


def matched(name, image, label, size=None):
    """Image and label (or None), resized to ``size`` where it is given; ``UserError`` where they differ in size."""
    if size is not None:
        image = transforms.resize_image(image, size)
        label = None if label is None else transforms.resize_nearest(label, size)
    if label is not None and image.shape[:2] != label.shape:
        raise UserError(f"the image {name} is {image.shape[1]} x {image.shape[0]} but its label is {label.shape[1]} x "
                        f"{label.shape[0]} pixels; make the labels again")
    return image, label


# --- loader processes -------------------------------------------------------------------------------------------------


def loaders(shares=1):
    """How many loader processes feed a GPU of a machine with ``shares`` of them; the rest is for what else is done.

    On 16 processors of an H200's machine 8 loaders gave validation fewer images a second than the network takes.
    """
    # Containers and batch systems give a process fewer processors than the machine has.
    own = len(os.sched_getaffinity(0)) // shares
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
