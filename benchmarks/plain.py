"""The released procedure, rendered plainly: what the benchmarks compare this software with.

Float tensors in the loader's workers, pseudo labels as ``.npy`` of 8 bytes per pixel (16 after PLE), labelling with two
forward passes (and a third of the previous model for PLE), thresholds from a sort of all sampled confidences, host
reads in every training step. Written for clarity from the papers' procedure; where a choice was open, the cheaper one
was taken.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms.functional import normalize, to_tensor

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation
BACKGROUND = 0


def read_image(path):
    """(3, H, W) float32 RGB in [0, 1]."""
    with Image.open(path) as file:
        return to_tensor(file.convert("RGB"))


def read_mask(path):
    """(labels (H, W) int64 as the file has them, None)."""
    with Image.open(path) as file:
        return torch.from_numpy(np.array(file)).long(), None


def read_pseudo_label(path):
    """(labels (H, W) int64, confidences (H, W) float32)."""
    labels, confidences = torch.from_numpy(np.load(path))
    return labels.long(), confidences.float()


def augment(image, labels, confidences, window, crop):
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
    return normalize(image, *IMAGENET), maps[0].long(), maps[1] if confidences is not None else None


@torch.no_grad()
def predict(model, image, test_size):
    """(labels, confidences), (H, W) arrays, of ``image`` (3, H, W) in [0, 1], padded to ``test_size``."""
    height, width = image.shape[1:]
    padded = F.pad(image, (0, test_size[1] - width, 0, test_size[0] - height))
    logits = F.interpolate(model(normalize(padded, *IMAGENET)[None]), size=test_size, mode="bilinear",
                           align_corners=True)
    confidences, labels = logits.softmax(1)[0, :, :height, :width].max(0)
    return labels.numpy(), confidences.numpy()


def collect(samples, labels, confidences):
    """Add sampled pixels to ``samples``, a list of arrays for each class."""
    for c in np.unique(labels):
        samples[c].append(confidences[labels == c])


def thresholds(samples, ratio):
    """(C,) thresholds: all sampled confidences of each class, sorted."""
    result = []
    for parts in samples:
        won = np.sort(np.concatenate(parts)) if parts else np.empty(0, np.float32)
        n = len(won)
        if n == 0 or (ratio < 1 and n * ratio < 1):
            result.append(np.float32(1e-5))
        else:
            result.append(won[0] if ratio >= 1 else won[-int(n * ratio) - 1])
    return np.array(result, np.float32)


def enhance(current, previous, beta):
    """PLE, for pairs (labels, confidences) that are thresholded already."""
    (labels, confidences), (old_labels, old_confidences) = current, previous
    now, then = labels == BACKGROUND, old_labels == BACKGROUND
    takes = np.where(now == then, old_confidences - confidences >= np.float32(beta), now)
    return np.where(takes, old_labels, labels), np.where(takes, old_confidences, confidences)


def label(models, images, test_size, ratio, beta, folder, num_classes):
    """Label ``images``, pairs (name, path), by ``models``: the current one and, for PLE, the previous one."""
    samples = [[] for _ in range(num_classes)]
    for _, path in images:
        labels, confidences = predict(models[0], read_image(path), test_size)
        collect(samples, labels.ravel()[::16], confidences.ravel()[::16])
    limits = thresholds(samples, ratio)
    folder.mkdir(exist_ok=True)
    for name, path in images:
        image, made = read_image(path), []
        for model in models:
            labels, confidences = predict(model, image, test_size)
            made.append((np.where(confidences < limits[labels], 255, labels), confidences))
        merged = enhance(*made, beta) if len(made) == 2 else made[0]
        np.save(folder / f"{name}.npy", np.stack(merged).astype(np.float64 if len(made) == 2 else np.float32))


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
