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
    """The images of a list of ``data.lists.Sample``, with their masks where they have some: as they are, or resized to
    the test size where the spec says so (not with ``resize`` false)."""

    def __init__(self, spec, samples, resize=True):
        self.spec, self.samples, self.size = spec, samples, spec.resized if resize else None

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        """(image (h, w, 3) uint8 BGR, label (h, w) uint8 with 255 = ignored, or None, index)."""
        sample = self.samples[index]
        image = images.read_image(sample.image, self.spec.max_pixels)
        label = None if sample.mask is None else images.read_mask(sample.mask, self.spec)
        return *matched(sample.name, image, label, self.size), index

    def collate(self, items):
        """(images (N, *test_size, 3) uint8, labels (N, *test_size) uint8 or None, list of indices, list of sizes).

        Images are padded with 0 and labels with 255 at bottom and right; the sizes (height, width) are without. Raises
        ``UserError`` for an image that is larger.
        """
        test_size, (pictures, labels, indices) = self.spec.test_size, zip(*items)
        sizes = [picture.shape[:2] for picture in pictures]
        for index, size in zip(indices, sizes):
            if size[0] > test_size[0] or size[1] > test_size[1]:
                raise UserError(images.too_large(self.samples[index].image, size, test_size))

        def padded(arrays, fill):
            return torch.from_numpy(np.stack([transforms.pad(array, test_size, fill) for array in arrays]))

        return padded(pictures, 0), None if labels[0] is None else padded(labels, 255), list(indices), sizes


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
