"""Validation: mIoU over all classes at test size, from one confusion matrix over the whole set (both papers)."""

import torch

from dmt.prediction import classify, covering
from utils.metrics import ConfusionMatrix


@torch.inference_mode()
def evaluate(model, loader, input_format, precision, device, progress=iter, see=None):
    """Run ``model`` over ``loader`` (batches of ``data.datasets.collate_whole``) and return the ``ConfusionMatrix``.

    The model is left in the mode it was in. ``progress`` wraps the loader to show how far it is; ``see`` gets (index,
    image (H, W, 3) uint8 BGR, label (h, w), predicted classes (h, w)) of every image.
    """
    was_training = model.training
    model.eval()
    matrix = ConfusionMatrix(model.num_classes)
    for images, labels, indices, sizes in progress(loader):
        test_size = images.shape[1:3]
        with precision.autocast():
            maps = model(input_format.normalize(images.to(device, non_blocking=True)))
        for image, logits, label, index, size in zip(images, maps, labels, indices, sizes):
            (rows, columns), _ = covering(size, test_size, logits.shape[1:])
            classes = classify(logits[:, :rows, :columns], size, test_size, logits.shape[1:])
            matrix.update(label.to(device, non_blocking=True), classes)
            if see is not None:
                see(index, image, label, classes)
    model.train(was_training)
    return matrix
