"""Datasets made ready: PASCAL VOC, Cityscapes, your own images, COCO annotations and coloured masks."""
