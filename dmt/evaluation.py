"""Validation: mIoU over all classes at test size, from one confusion matrix over the whole set (both papers)."""

import torch

from dmt.prediction import winners
from utils.metrics import ConfusionMatrix
from utils.transfer import Upload


@torch.inference_mode()
def evaluate(model, loader, forward, device, progress=iter, see=None):
    """Run ``model`` over ``loader`` (batches of ``data.datasets.collate_whole``) and return the ``ConfusionMatrix``.

    ``forward`` is what runs it on a batch (see ``dmt.prediction.network_maps``); the model is put into eval mode, and
    left in the mode it was in. ``progress`` wraps the loader to show how far it is; ``see`` gets (index,
    image (H, W, 3) uint8 BGR, label (h, w), predicted classes (h, w)) of every image.
    """
    was_training = model.training
    model.eval()
    matrix, upload = ConfusionMatrix(model.num_classes), Upload(device)
    for images, labels, indices, sizes in progress(loader):
        test_size = images.shape[1:3]
        on_device, targets = upload(images, labels)
        classes = winners(forward(on_device), test_size)
        matrix.update(targets, classes)  # around the images the targets are ignored
        for number, (index, (height, width)) in enumerate(zip(indices, sizes)) if see is not None else ():
            see(index, images[number], targets[number, :height, :width], classes[number, :height, :width])
    model.train(was_training)
    return matrix
