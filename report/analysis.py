"""What was learnt, forgotten and mended, as numbers: from label maps and tables of IoU alone.

Label maps are (H, W) integers with 255 = ignored, or unknown in a truth. Counts are int64 and add up over images.
"""

import numpy as np

IGNORED = 255
RIGHT, WRONG, UNLABELLED = range(3)  # how a pixel stands to the truth: the last two axes of ``changes``

# What PLE did to a pixel, by its state before and after.
OUTCOMES = {
    "kept": (RIGHT, RIGHT), "mended": (WRONG, RIGHT), "spoilt": (RIGHT, WRONG), "dropped": (RIGHT, UNLABELLED),
    "newly right": (UNLABELLED, RIGHT), "newly wrong": (UNLABELLED, WRONG), "error removed": (WRONG, UNLABELLED),
    "still wrong": (WRONG, WRONG), "still ignored": (UNLABELLED, UNLABELLED),
}
BETTER, WORSE = ("mended", "newly right", "error removed"), ("spoilt", "newly wrong", "dropped")


def changes(first, second, truth, num_classes):
    """How the pixels of each true class stood in ``first`` and stand in ``second``: (C, 3, 3) int64.

    The axes are true class, state in ``first``, state in ``second`` (``RIGHT``, ``WRONG``, ``UNLABELLED``). With the
    labels before and after PLE this says what PLE mended and spoilt; with the predictions of two rounds what was
    learnt and forgotten. Pixels of unknown truth are left out.
    """
    def states(labels):
        return np.where(labels == IGNORED, UNLABELLED, np.where(labels == truth, RIGHT, WRONG))

    cells = truth.astype(np.int64) * 9 + states(first) * 3 + states(second)
    return np.bincount(cells[truth != IGNORED], minlength=9 * num_classes).reshape(num_classes, 3, 3)


def judged(labels, truth, num_classes):
    """Pixels with each label, (3, C) int64: all of them, those of known truth, and those that are right."""
    return np.stack([np.bincount(chosen, minlength=IGNORED)[:num_classes] for chosen in (
        labels.ravel(), labels[truth != IGNORED], labels[labels == truth])])  # ignored ones are cut off


def outcomes(counts):
    """The names of ``OUTCOMES`` -> number of pixels, from ``changes`` (..., 3, 3): sums over the axes before."""
    total = np.asarray(counts).reshape(-1, 3, 3).sum(axis=0)
    return {name: int(total[cell]) for name, cell in OUTCOMES.items()}


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
    counts = np.asarray(counts)
    return share(counts[..., RIGHT, WRONG], counts[..., RIGHT, :].sum(axis=-1))


def share(part, whole):
    """part / whole as float64, NaN where whole is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
