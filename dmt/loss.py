"""The dynamic mutual loss (DMT paper): cross-entropy, weighted by how far the student agrees with its teacher."""

import math
import operator
from typing import NamedTuple

import torch
from torch import nn

# Images are taken in groups of at most this many logits (128 MB in float32), or one by one where one has more: that
# bounds the temporaries. Smaller groups would fit the CPU's cache, but cost more in starting threads than they save.
_GROUP = 2**25

# What happens to a pixel that the student decides otherwise and surer than its teacher (max q > p): DMT stops it, and
# two variants of the DMT paper's ablation do not.
STOP, NAIVE, FLIP = ON_STUDENT_WIN = ("stop", "naive", "flip")


def pixel_weights(q_label, q_max, agrees, confidence, gamma1, gamma2, on_student_win=STOP):
    """The weight w of every pseudo-labelled pixel (DMT paper); all tensors have one shape.

    ``q_label``: q[y], the student's probability of the pseudo label y; ``q_max``: its largest probability, that of its
    decision a; ``agrees``: boolean, a = y; ``confidence``: p, the teacher's confidence in y.

    - agreement: w = q[y]^gamma1
    - disagreement, and the student is surer than the teacher (max q > p), by ``on_student_win``: "stop" (DMT) w = 0;
      "naive" w = q[y]^gamma2, as if it had not won; "flip" w = (1 - p)^gamma2, for the pixel now learns a
    - any other disagreement: w = q[y]^gamma2

    gamma1 = gamma2 = 0 turns weighting off: w = 1, for disagreements too, whatever ``on_student_win``.
    """
    if gamma1 == 0 and gamma2 == 0:
        return torch.ones_like(q_label)
    weight = q_label.pow(gamma1)
    if gamma1 != gamma2:
        weight = torch.where(agrees, weight, q_label.pow(gamma2))
    if on_student_win == NAIVE:
        return weight
    won = ~(agrees | (q_max <= confidence))
    if on_student_win == FLIP:
        return torch.where(won, (1 - confidence).pow(gamma2), weight)
    return weight.masked_fill_(won, 0)


class DynamicMutualLoss(nn.Module):
    """Cross-entropy over pseudo-labelled and labelled pixels, the former weighted by ``pixel_weights`` (DMT paper).

    Called as ``loss(logits, labels, confidence, num_pseudo)``, or ``loss(logits, labels)`` when all is labelled; for a
    part of a batch with ``valid_pixels``, the number of pixels that have a label in all of it (0-d, integer):

    - ``logits``: (N, C, H, W) floating point; half precisions are computed in float32, float64 stays;
    - ``labels``: (N, H, W) integers in 0..C - 1, or ``ignore_index`` for pixels without a label;
    - ``confidence``: (N, H, W) floating point, the teacher's confidence; only the pseudo-labelled samples' is read;
    - ``num_pseudo``: the first ``num_pseudo`` samples are pseudo-labelled, the others labelled (w = 1).

    ``on_student_win`` is what becomes of pixels where the student wins (see ``pixel_weights``): "stop" (DMT), "naive" or
    "flip". With "flip" they count as labelled with the student's decision a; with gamma1 = gamma2 = 0 nothing flips, as
    nothing is weighted.

    Returns ``(loss, statistics)``. The loss is sum(w · cross-entropy) / number of pixels that have a label, 0-d, and 0
    when none has; no gradient goes through w. The losses and means of a batch's parts add up to those of the batch.
    The statistics are tensors on the device, to be read when convenient:

    - ``disagreements``: int64, pseudo-labelled pixels where the student decides otherwise (a ≠ y);
    - ``student_wins``: int64, those among them where it is surer than the teacher (max q > p);
    - ``mean_weight``, ``unweighted_loss``: means of w and of the cross-entropy over pixels that have a label;
    - ``valid_pixels``: int64, the pixels that have a label;
    - ``prediction``: (N, H, W) int64, the student's decisions a (the first of equals).

    Nothing in here makes the host wait for the device. Raises ``ValueError`` for shapes and dtypes that do not fit
    and for gammas that are negative or not finite; labels outside the classes fail in the indexing.
    """

    def __init__(self, gamma1, gamma2, ignore_index=255, on_student_win=STOP):
        super().__init__()
        self.gamma1, self.gamma2 = float(gamma1), float(gamma2)
        if not all(math.isfinite(gamma) and gamma >= 0 for gamma in (self.gamma1, self.gamma2)):
            raise ValueError(f"gamma1 and gamma2 must be finite and at least 0, not {gamma1} and {gamma2}")
        if on_student_win not in ON_STUDENT_WIN:
            raise ValueError(f"on_student_win must be one of {', '.join(ON_STUDENT_WIN)}, not {on_student_win!r}")
        self.ignore_index, self.on_student_win = int(ignore_index), on_student_win
        self._flips = on_student_win == FLIP and (self.gamma1 > 0 or self.gamma2 > 0)

    def forward(self, logits, labels, confidence=None, num_pseudo=None, valid_pixels=None):
        num_pseudo = _checked(logits, labels, confidence, num_pseudo)
        # (N, H·W) from here on.
        y = labels.flatten(1).long()
        valid = y != self.ignore_index
        y = y.masked_fill(~valid, 0)
        keep = torch.is_grad_enabled() and logits.requires_grad
        student = _student(logits.detach(), y, keep)
        cross_entropy = student.cross_entropy.masked_fill_(~valid, 0)

        weight = valid.to(cross_entropy.dtype)
        disagreements = student_wins = torch.zeros((), dtype=torch.int64, device=logits.device)
        if num_pseudo:
            p = confidence[:num_pseudo].flatten(1).to(weight.dtype)
            q_label, q_max = student.q_label[:num_pseudo], student.q_max[:num_pseudo]
            agrees = student.prediction[:num_pseudo] == y[:num_pseudo]
            dynamic = pixel_weights(q_label, q_max, agrees, p, self.gamma1, self.gamma2, self.on_student_win)
            weight[:num_pseudo] *= dynamic
            disagrees = valid[:num_pseudo] & ~agrees
            disagreements = disagrees.count_nonzero()
            won = disagrees & (q_max > p)
            student_wins = won.count_nonzero()
            if self._flips:
                y[:num_pseudo] = torch.where(won, student.prediction[:num_pseudo], y[:num_pseudo])
                cross_entropy[:num_pseudo] = torch.where(won, -q_max.log(), cross_entropy[:num_pseudo])

        own_pixels = valid.count_nonzero()
        n = (own_pixels if valid_pixels is None else valid_pixels).clamp(min=1)
        loss = _WeightedMean.apply(logits, y, weight, cross_entropy, n, student.softmax)
        statistics = {
            "disagreements": disagreements,
            "student_wins": student_wins,
            "mean_weight": weight.sum() / n,
            "unweighted_loss": cross_entropy.sum() / n,
            "valid_pixels": own_pixels,
            "prediction": student.prediction.view(labels.shape),
        }
        return loss, statistics


class _Student(NamedTuple):
    prediction: torch.Tensor  # (N, P) int64: a = argmax q, the first of equals
    q_max: torch.Tensor  # (N, P): q[a]
    q_label: torch.Tensor  # (N, P): q[y]
    cross_entropy: torch.Tensor  # (N, P): -log q[y]
    softmax: torch.Tensor | None  # (N, C, P): q, where the gradient can be formed in its place


@torch.no_grad()
def _student(logits, y, keep_softmax):
    """What the loss needs of the student's softmax, without gradient. ``logits`` (N, C, H, W), ``y`` (N, P) int64."""
    x = logits.flatten(2)
    dtype = _precision(logits)
    # The softmax of half-precision logits would take twice their memory until backward: there it is computed again.
    softmax = torch.empty_like(x) if keep_softmax and dtype == logits.dtype else None
    x_max = torch.empty(y.shape, dtype=logits.dtype, device=y.device)
    prediction, q_max = torch.empty_like(y), torch.empty_like(x_max, dtype=dtype)
    for group in _groups(logits):
        torch.max(x[group], 1, out=(x_max[group], prediction[group]))
        q = _softmax(x[group], dtype, out=None if softmax is None else softmax[group])
        torch.gather(q, 1, prediction[group, None], out=q_max[group, None])
    below = x.gather(1, y[:, None])[:, 0].to(dtype).sub_(x_max)
    q_label = below.exp().mul_(q_max)
    # q[a] = 1 / sum(exp(x - max x)), so its log stands for the log of the sum; log(q[y]) would overflow for small q[y].
    return _Student(prediction, q_max, q_label, below.add_(q_max.log()).neg_(), softmax)


class _WeightedMean(torch.autograd.Function):
    """sum(w · cross-entropy) / n, with the gradient (q - onehot(y)) · w / n for the logits.

    Autograd would keep several tensors of the logits' size; here the gradient takes the place of the one softmax.
    It is formed in backward, with the incoming gradient: under a loss scale half precisions then do not underflow.
    """

    @staticmethod
    def forward(ctx, logits, y, weight, cross_entropy, n, softmax):
        ctx.save_for_backward(logits, y, weight, n)
        ctx.softmax = softmax
        return (weight * cross_entropy).sum() / n

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        logits, y, weight, n = ctx.saved_tensors
        scale = (weight * (grad / n))[:, None]
        # Its place is taken by the gradient: a second backward through a retained graph computes it again.
        softmax, ctx.softmax = ctx.softmax, None
        x = logits.flatten(2)
        gradient = torch.empty(x.shape, dtype=x.dtype, device=x.device) if softmax is None else softmax
        for group in _groups(logits):
            part = _softmax(x[group], weight.dtype) if softmax is None else softmax[group]
            part.mul_(scale[group]).scatter_add_(1, y[group, None], -scale[group])
            if softmax is None:
                gradient[group] = part
        return gradient.view(logits.shape), None, None, None, None, None


def _softmax(x, dtype, out=None):
    """q (n, C, P) of the logits ``x`` (n, C, P), in their layout."""
    if x.stride(1) != 1:
        return torch.softmax(x, 1, dtype=dtype, out=out)
    # channels_last: along a dimension that is not the last one, softmax would first rearrange all the logits.
    out = None if out is None else out.transpose(1, 2)
    return torch.softmax(x.transpose(1, 2), 2, dtype=dtype, out=out).transpose(1, 2)


def _precision(logits):
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _groups(logits):
    """Slices over the images of ``logits``."""
    images = len(logits)
    step = max(1, _GROUP * images // max(1, logits.numel()))
    return [slice(start, start + step) for start in range(0, images, step)]


def _checked(logits, labels, confidence, num_pseudo):
    """The number of pseudo-labelled samples, after checking what can be checked without reading tensors."""
    if logits.ndim != 4 or not logits.is_floating_point():
        raise ValueError(f"logits must be (N, C, H, W) floating point, not {tuple(logits.shape)} {logits.dtype}")
    expected = (logits.shape[0], *logits.shape[2:])
    if tuple(labels.shape) != expected:
        raise ValueError(f"labels must be {expected} for these logits, not {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integers, not {labels.dtype}")
    if confidence is None and num_pseudo is None:
        return 0
    if confidence is None or num_pseudo is None:
        raise ValueError("confidence and num_pseudo belong together: give both, or none when all is labelled")
    num_pseudo = operator.index(num_pseudo)
    if not 0 <= num_pseudo <= len(logits):
        raise ValueError(f"num_pseudo must be in 0..{len(logits)}, not {num_pseudo}")
    if tuple(confidence.shape) != expected or not confidence.is_floating_point():
        raise ValueError(f"confidence must be {expected} floating point for these logits, "
                         f"not {tuple(confidence.shape)} {confidence.dtype}")
    return num_pseudo
