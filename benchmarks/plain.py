"""The released procedure, rendered plainly: what the benchmarks compare this software with.

Float tensors in the loader's workers, pseudo labels as ``.npy`` of 8 bytes per pixel (16 after PLE), labelling with two
forward passes (and a third of the previous model for PLE), thresholds from a sort of all sampled confidences, host
reads in every training step. Written for clarity from the papers' procedure; where a choice was open, the cheaper one was
taken.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms.functional import to_tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COCO_MEAN = (104.008, 116.669, 122.675)


# --- loading ------------------------------------------------------------------------------------------------------


def read_image(path):
    """(3, H, W) float32 RGB in [0, 1]."""
    with Image.open(path) as file:
        return to_tensor(file.convert("RGB"))


def read_mask(path):
    """(H, W) int64 as the file has it."""
    with Image.open(path) as file:
        return torch.from_numpy(np.array(file)).long()


def write_pseudo_label(path, labels, confidences, ple=False):
    """Store label and confidence: 4 + 4 bytes per pixel, after PLE 8 + 8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.stack([labels, confidences]).astype(np.float64 if ple else np.float32))


def read_pseudo_label(path):
    """(labels (H, W) int64, confidences (H, W) float32)."""
    labels, confidences = torch.from_numpy(np.load(path))
    return labels.long(), confidences.float()


def normalize(image, coco):
    """``image`` (3, h, w) float RGB in [0, 1] in the input format of the COCO or of the ImageNet weights."""
    if coco:
        image = (image * 255)[[2, 1, 0]]
    mean, std = (COCO_MEAN, (1, 1, 1)) if coco else (IMAGENET_MEAN, IMAGENET_STD)
    return (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def augment(image, labels, confidences, window, crop, coco):
    """The training transform in float: scale, pad, crop, flip, normalize; ``window``: ``data.transforms.Window``."""
    size = (window.height, window.width)
    image = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]
    maps = [labels.float()] if confidences is None else [labels.float(), confidences]
    maps = [F.interpolate(one[None, None], size=size, mode="nearest")[0, 0] for one in maps]
    below, right = max(crop[0] - size[0], 0), max(crop[1] - size[1], 0)
    image = F.pad(image, (0, right, 0, below))
    maps = [F.pad(one, (0, right, 0, below), value=fill) for one, fill in zip(maps, (255, 0))]
    rows, columns = slice(window.top, window.top + crop[0]), slice(window.left, window.left + crop[1])
    image, maps = image[:, rows, columns], [one[rows, columns] for one in maps]
    if window.flip:
        image, maps = image.flip(-1), [one.flip(-1) for one in maps]
    return normalize(image, coco), maps[0].long(), maps[1] if confidences is not None else None


# --- labelling ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def predict(model, image, size, test_size):
    """(labels (H, W), confidences (H, W)) of ``image`` (3, H, W) in [0, 1], padded to ``test_size``."""
    padded = F.pad(image, (0, test_size[1] - size[1], 0, test_size[0] - size[0]))
    logits = F.interpolate(model(normalize(padded, coco=False)[None]), size=test_size, mode="bilinear",
                           align_corners=True)
    confidences, labels = logits.softmax(1)[0, :, : size[0], : size[1]].max(0)
    return labels, confidences


def thresholds(samples, ratio):
    """(C,) thresholds from ``samples``, a list of C lists of arrays: all sampled confidences of each class, sorted."""
    result = []
    for parts in samples:
        won = np.sort(np.concatenate(parts)) if parts else np.empty(0, np.float32)
        n = len(won)
        if n == 0 or (ratio < 1 and n * ratio < 1):
            result.append(np.float32(1e-5))
        else:
            result.append(won[0] if ratio >= 1 else won[-int(n * ratio) - 1])
    return np.array(result, np.float32)


def collect(samples, labels, confidences):
    """Add every 16th pixel of an image to ``samples``, by class."""
    labels, confidences = labels.numpy().ravel()[::16], confidences.numpy().ravel()[::16]
    for c in np.unique(labels):
        samples[c].append(confidences[labels == c])


def apply_thresholds(labels, confidences, limits):
    """The labels with 255 where the confidence is below the threshold of the class."""
    return np.where(confidences < limits[labels], 255, labels)


def enhance(current, previous, beta, background):
    """PLE, for pairs (labels, confidences) that are thresholded already."""
    (labels, confidences), (old_labels, old_confidences) = current, previous
    takes = old_confidences - confidences >= np.float32(beta)
    if background is not None:
        now, then = labels == background, old_labels == background
        takes = np.where(now == then, takes, now)
    return np.where(takes, old_labels, labels), np.where(takes, old_confidences, confidences)


def label(model, previous_model, images, test_size, ratio, beta, background, folder, num_classes):
    """Label ``images``, a list of pairs (name, path): forward passes for the thresholds, and again for the labels.

    With ``previous_model`` (PLE) it labels too, and the maps are merged. Returns the thresholds.
    """
    samples = [[] for _ in range(num_classes)]
    for _, path in images:
        image = read_image(path)
        collect(samples, *predict(model, image, image.shape[1:], test_size))
    limits = thresholds(samples, ratio)
    for name, path in images:
        image = read_image(path)
        labels, confidences = (part.numpy() for part in predict(model, image, image.shape[1:], test_size))
        labels = apply_thresholds(labels, confidences, limits)
        if previous_model is not None:
            old, old_confidences = (part.numpy() for part in
                                    predict(previous_model, image, image.shape[1:], test_size))
            old = apply_thresholds(old, old_confidences, limits)
            labels, confidences = enhance((labels, confidences), (old, old_confidences), beta, background)
        write_pseudo_label(folder / f"{name}.npy", labels, confidences, previous_model is not None)
    return limits


# --- loss ---------------------------------------------------------------------------------------------------------


def mutual_loss(logits, labels, confidences, num_pseudo, gamma1, gamma2):
    """The dynamic mutual loss step by step: softmax, decision, masks, weights, cross-entropy; host reads."""
    valid = labels != 255
    y = labels.clone()
    y[~valid] = 0
    with torch.no_grad():
        q = logits.softmax(1)
        q_max, decision = q.max(1)
        q_label = q.gather(1, y[:, None])[:, 0]
        weight = torch.ones_like(q_max)
        agree = decision == y
        lose = ~agree & (q_max <= confidences)
        win = ~agree & (q_max > confidences)
        dynamic = torch.where(agree, q_label ** gamma1, torch.where(lose, q_label ** gamma2, torch.zeros_like(q_label)))
        weight[:num_pseudo] = dynamic[:num_pseudo]
        disagreements = (~agree & valid)[:num_pseudo].sum().item()
        wins = (win & valid)[:num_pseudo].sum().item()
    cross_entropy = F.cross_entropy(logits, labels, ignore_index=255, reduction="none")
    total = valid.sum().item()
    loss = (weight * cross_entropy).sum() / max(total, 1)
    return loss, {"disagreements": disagreements, "student_wins": wins}
