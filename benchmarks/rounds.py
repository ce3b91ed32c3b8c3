"""Labelling rounds for the benchmarks: networks, image lists and the library's labelling without the command line."""

from pathlib import Path

import torch
from torch.utils.data import DataLoader

from data import datasets
from data.batches import whole_batches
from data.store import PseudoLabelStore
from dmt import labeling
from dmt.prediction import network_maps
from models import deeplab_v2
from models.input_format import input_format
from utils.checkpoints import load_model
from utils.precision import Precision

CPU = torch.device("cpu")
FORMAT = input_format(coco=False)


def network(num_classes, backbone="small", checkpoint=None, seed=0, sureness=1.0):
    """A network in eval mode: from a checkpoint, or random with its head multiplied by ``sureness``."""
    torch.manual_seed(seed)
    model = deeplab_v2(num_classes, backbone)
    if checkpoint:
        load_model(model, Path(checkpoint))
    else:
        with torch.no_grad():
            for parameter in model.classifier.parameters():
                parameter *= sureness
    return model.eval()


def whole_images(spec, root, names, test_size=None, batch_size=1, subset="train", labels=False):
    """The library's loader of whole images, in this process."""
    dataset = datasets.WholeImages(spec, root, names, subset, tuple(test_size or spec.test_size), labels)
    return DataLoader(dataset, batch_size, collate_fn=datasets.collate_whole)


def predict(model, spec, root, names, store, test_size=None, batch_size=1):
    """First pass of a labelling stage into ``store``; returns the histogram of confidences."""
    model = model.to(memory_format=torch.channels_last)  # as main.py does
    loader = whole_images(spec, root, names, test_size, batch_size)
    return labeling.predict(model, loader, names, store, network_maps(model, FORMAT, Precision("fp32", CPU)), CPU)


def decide(spec, names, store, previous, limits, ratio, beta=0.15, test_size=None):
    """Second pass of a labelling stage: thresholds, PLE with the logits in ``previous`` (a store or None), files."""
    rules = labeling.LabelingRules(ratio, beta, spec.background)
    labeling.write_pseudo_labels(names, tuple(test_size or spec.test_size), store, previous, limits, rules)


def label(model, spec, root, names, folder, previous=None, ratio=0.5, test_size=None, batch_size=1):
    """A whole labelling round: (store, thresholds). As in a stage, the previous predictions are first verified."""
    store = PseudoLabelStore(folder, spec.palette)
    if previous is not None and labeling.missing_batches(
            names, whole_batches(len(names), batch_size), previous, previous.read_logits):
        raise SystemExit("the previous predictions are not whole")
    limits = predict(model, spec, root, names, store, test_size, batch_size).thresholds(ratio)
    decide(spec, names, store, previous, limits, ratio, test_size=test_size)
    return store, limits


def folder_bytes(folder):
    """Bytes of all files beneath ``folder``."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
