"""What was learnt, forgotten and changed: the figures of the report, from label maps and tables of IoU alone.

Label maps are (H, W) integers with 255 = ignored, or unknown in a truth. Counts are int64 and add up over images.
Nothing here reads a file, and nothing needs torch.
"""

import numpy as np

IGNORED = 255
RIGHT, WRONG, UNLABELLED = range(3)  # how a pixel stands to the truth: the two axes of ``changes``

# What the merge did to a pixel, by its state before and after (PLE paper: what is repaired, and at what price).
OUTCOMES = {
    "kept": (RIGHT, RIGHT), "mended": (WRONG, RIGHT), "spoilt": (RIGHT, WRONG), "dropped": (RIGHT, UNLABELLED),
    "newly right": (UNLABELLED, RIGHT), "newly wrong": (UNLABELLED, WRONG), "error removed": (WRONG, UNLABELLED),
    "still wrong": (WRONG, WRONG), "still ignored": (UNLABELLED, UNLABELLED),
}


def states(labels, truth):
    """``RIGHT``, ``WRONG`` or ``UNLABELLED`` for every pixel: (H, W) uint8. Means nothing where the truth is unknown."""
    wrong_or_right = np.where(np.asarray(labels) == truth, RIGHT, WRONG)
    return np.where(np.asarray(labels) == IGNORED, UNLABELLED, wrong_or_right).astype(np.uint8)


def changes(first, second, truth, num_classes):
    """How the pixels of each true class stood in ``first`` and stand in ``second``: (C, 3, 3) int64.

    The axes are true class, state in ``first``, state in ``second`` (``RIGHT``, ``WRONG``, ``UNLABELLED``). With the
    labels before and after PLE this says what PLE mended and spoilt; with the predictions of two rounds what was
    learnt and forgotten; with those of two arms who was right where they disagree. Pixels of unknown truth are left
    out. Raises ``ValueError`` for shapes that differ and for a truth that is no class.
    """
    first, second, truth = _same_shape(first, second, truth)
    cell = _checked(truth, num_classes) * 9 + states(first, truth) * 3 + states(second, truth)
    return _count(cell[truth != IGNORED], (num_classes, 3, 3))


def joint(first, second, num_classes):
    """How often each pair of labels occurs: (C + 1, C + 1) int64; the last row and column count ignored pixels.

    Raises ``ValueError`` for shapes that differ and for labels that are no class.
    """
    first, second = (_checked(part, num_classes) for part in _same_shape(first, second))
    return _count(first * (num_classes + 1) + second, (num_classes + 1, num_classes + 1))


def outcomes(counts):
    """The names of ``OUTCOMES`` -> number of pixels, from ``changes`` (..., 3, 3): sums over the axes before."""
    total = np.asarray(counts).reshape(-1, 3, 3).sum(axis=0)
    return {name: int(total[cell]) for name, cell in OUTCOMES.items()}


def accuracy(counts):
    """Share of the labelled pixels of known truth whose label is right, from ``joint(truth, labels)``; NaN for none."""
    known = np.asarray(counts)[:-1, :-1]
    return float(share(np.trace(known), known.sum()))


def accuracy_of_classes(counts):
    """The same for the pixels labelled as each class: (C,) float64, from ``joint(truth, labels)``."""
    known = np.asarray(counts)[:-1, :-1]
    return share(np.diag(known), known.sum(axis=0))


def coverage(counts):
    """Share of all pixels that have a label, from ``joint(anything, labels)``."""
    counts = np.asarray(counts)
    return float(share(counts[:, :-1].sum(), counts.sum()))


def coverage_of_classes(counts, predicted):
    """Pixels labelled as each class for every pixel predicted as it: (C,) float64, from ``joint(truth, labels)``.

    ``predicted`` (C,) counts the pixels that the labelling model gives each class before any threshold. Before PLE
    this is near the labelling ratio; PLE can bring it above 1, with labels of the previous model.
    """
    return share(np.asarray(counts)[:, :-1].sum(axis=0), predicted)


def agreement(counts):
    """Share of pixels with equal labels among those where both have one, from ``joint(first, second)``."""
    both = np.asarray(counts)[:-1, :-1]
    return float(share(np.trace(both), both.sum()))


def forgetting(iou):
    """Best earlier value minus the present one, for every round and class (Chaudhry et al., ECCV 2018).

    ``iou``: (rounds, C), NaN where there is none. Returns (rounds, C) float64; NaN in the first row, for a class
    without a value now, and for one without any before. Negative where a class is better than it ever was.
    """
    iou = np.asarray(iou, np.float64)
    best = np.fmax.accumulate(iou, axis=0)  # fmax prefers the number to the NaN
    return np.concatenate([np.full_like(iou[:1], np.nan), best[:-1] - iou[1:]])


def forgotten(counts):
    """Share of the pixels right in the first map that are wrong in the second, from ``changes`` (..., 3, 3).

    Returns the leading shape: one share a class from (C, 3, 3), a single one from (3, 3).
    """
    return _share_of_state(counts, RIGHT, WRONG)


def learnt(counts):
    """Share of the pixels wrong in the first map that are right in the second; the rest as in ``forgotten``."""
    return _share_of_state(counts, WRONG, RIGHT)


def share(part, whole):
    """part / whole as float64, NaN where whole is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def _share_of_state(counts, first, second):
    counts = np.asarray(counts)
    return share(counts[..., first, second], counts[..., first, :].sum(axis=-1))


def _same_shape(*maps):
    maps = [np.asarray(part) for part in maps]
    if len({part.shape for part in maps}) > 1:
        raise ValueError(f"label maps of one image must have one shape, not {[part.shape for part in maps]}")
    return maps


def _checked(labels, num_classes):
    """The labels as int64, with ``num_classes`` for ignored ones."""
    ignored = labels == IGNORED
    if not (ignored | ((labels >= 0) & (labels < num_classes))).all():
        raise ValueError(f"some labels are neither one of the {num_classes} classes nor {IGNORED}")
    return np.where(ignored, num_classes, labels.astype(np.int64))


def _count(cells, shape):
    return np.bincount(cells.ravel(), minlength=int(np.prod(shape))).reshape(shape)
