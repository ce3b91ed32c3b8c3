"""Validation: mIoU over all classes at test size, from one confusion matrix over the whole set (both papers)."""

import torch

from dmt.prediction import winners
from utils.console import progress_bar
from utils.metrics import ConfusionMatrix
from utils.tensors import upload


@torch.inference_mode()
def evaluate(model, forward, loader, machine, see=None):
    """The ``ConfusionMatrix`` of ``model`` over the validation images, of which ``loader`` gives this process's.

    ``forward`` is the ``dmt.prediction.Forward`` of the model on the ``dmt.session.Machine``, ``loader`` one of
    ``data.datasets.WholeImages``. The model is put into eval mode, and left in the mode it was in. ``see`` gets
    (``data.lists.Sample``, image (H, W, 3) uint8 BGR, label (h, w), predicted classes (h, w)) of every image.
    """
    was_training = model.training
    model.eval()
    forward.refresh()  # it has learnt since the last time
    matrix = ConfusionMatrix(model.num_classes, device=machine.device)
    for images, labels, samples, sizes in progress_bar(loader, "validate", "batch"):
        test_size = images.shape[1:3]
        on_device, targets = upload(machine.device, images, labels)
        classes = winners(forward(on_device), test_size)
        matrix.update(targets, classes)  # around the images the targets are ignored
        for number, (sample, (height, width)) in enumerate(zip(samples, sizes)) if see is not None else ():
            see(sample, images[number], targets[number, :height, :width], classes[number, :height, :width])
    model.train(was_training)
    machine.processes.sum(matrix.counts)
    return matrix
