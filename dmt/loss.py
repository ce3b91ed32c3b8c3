"""The dynamic mutual loss (DMT paper): cross-entropy, weighted by how far the student agrees with its teacher."""

import math
import operator

import torch
from torch import nn

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
    won = student_wins(q_max, agrees, confidence)
    if on_student_win == FLIP:
        return torch.where(won, (1 - confidence).pow(gamma2), weight)
    return weight.masked_fill_(won, 0)


def student_wins(q_max, agrees, confidence):
    """Where the student disagrees and is surer than its teacher: a ≠ y and max q > p, strictly (DMT paper)."""
    return ~(agrees | (q_max <= confidence))


class DynamicMutualLoss(nn.Module):
    """Cross-entropy over pseudo-labelled and labelled pixels, the former weighted by ``pixel_weights`` (DMT paper).

    Called as ``loss(logits, labels, confidence, num_pseudo)``, or ``loss(logits, labels)`` when all is labelled; for a
    part of a batch with ``valid_pixels``, the number of pixels that have a label in all of it (0-d, integer):

    - ``logits``: (N, C, H, W) floating point; half precisions are computed in float32, float64 stays;
    - ``labels``: (N, H, W) integers in 0..C - 1, or ``ignore_index`` for pixels without a label;
    - ``confidence``: (N, H, W) floating point, the teacher's confidence; only the pseudo-labelled samples' is read;
    - ``num_pseudo``: the first ``num_pseudo`` samples are pseudo-labelled, the others labelled (w = 1).

    ``on_student_win`` is what becomes of pixels where the student wins (see ``pixel_weights``): "stop" (DMT), "naive"
    or "flip". With "flip" they count as labelled with the student's decision a; with gamma1 = gamma2 = 0 nothing flips,
    as nothing is weighted.

    Returns ``(loss, statistics)``. The loss is sum(w · cross-entropy) / number of pixels that have a label, 0-d, and 0
    when none has; no gradient goes through w. The losses and means of a batch's parts add up to those of the batch.
    The statistics are tensors on the device, to be read when convenient:

    - ``disagreements``: int64, pseudo-labelled pixels where the student decides otherwise (a ≠ y);
    - ``student_wins``: int64, those among them where it is surer than the teacher (max q > p);
    - ``mean_weight``, ``unweighted_loss``: means of w and of the cross-entropy over pixels that have a label;
    - ``pseudo_pixels``: int64, the pseudo-labelled samples' pixels that have a label;
    - ``valid_pixels``: int64, all pixels that have a label;
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
        softmax, prediction, q_max, q_label, cross_entropy = _student(logits.detach().flatten(2), y)
        cross_entropy.masked_fill_(~valid, 0)

        weight = valid.to(cross_entropy.dtype)
        pseudo_pixels = disagreements = wins = torch.zeros((), dtype=torch.int64, device=logits.device)
        if num_pseudo:
            pseudo = slice(num_pseudo)
            p = confidence[pseudo].flatten(1).to(weight.dtype)
            agrees = prediction[pseudo] == y[pseudo]
            labelled = valid[pseudo]
            weight[pseudo] = pixel_weights(q_label[pseudo], q_max[pseudo], agrees, p, self.gamma1, self.gamma2,
                                           self.on_student_win).masked_fill_(~labelled, 0)
            won = labelled & student_wins(q_max[pseudo], agrees, p)
            pseudo_pixels, wins = labelled.count_nonzero(), won.count_nonzero()
            disagreements = (labelled & ~agrees).count_nonzero()
            if self._flips:
                y[pseudo] = torch.where(won, prediction[pseudo], y[pseudo])
                cross_entropy[pseudo] = torch.where(won, -q_max[pseudo].log(), cross_entropy[pseudo])

        own_pixels = valid.count_nonzero()
        n = (own_pixels if valid_pixels is None else valid_pixels).clamp(min=1)
        loss = _WeightedMean.apply(logits, y, weight, cross_entropy, n, softmax)
        statistics = {
            "disagreements": disagreements,
            "student_wins": wins,
            "mean_weight": weight.sum() / n,
            "unweighted_loss": cross_entropy.sum() / n,
            "pseudo_pixels": pseudo_pixels,
            "valid_pixels": own_pixels,
            "prediction": prediction.view(labels.shape),
        }
        return loss, statistics


@torch.no_grad()
def _student(x, y):
    """Of the student's softmax q over the logits ``x`` (N, C, P): q (N, C, P), and (N, P) each its decision a (the
    first of equals), q[a], q[y], and the cross-entropy -log q[y]. ``y`` is (N, P) int64. Halves are computed in
    float32.
    """
    x_max, decision = x.max(1)
    softmax = _softmax(x)
    q_max = softmax.gather(1, decision[:, None])[:, 0]
    below = x.gather(1, y[:, None])[:, 0].to(softmax.dtype).sub_(x_max)
    q_label = below.exp().mul_(q_max)
    # q[a] = 1 / sum(exp(x - max x)), so its log stands for the log of the sum; log(q[y]) would overflow for small q[y].
    return softmax, decision, q_max, q_label, below.add_(q_max.log()).neg_()


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
        gradient = _softmax(logits.flatten(2)) if softmax is None else softmax
        gradient.mul_(scale).scatter_add_(1, y[:, None], -scale)
        return gradient.to(logits.dtype).view(logits.shape), None, None, None, None, None


def _softmax(x):
    """q (N, C, P) of the logits ``x`` (N, C, P), in their layout, in float32 at least."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if x.stride(1) != 1:
        return torch.softmax(x, 1, dtype=dtype)
    # channels_last: along a dimension that is not the last one, softmax would first rearrange all the logits.
    return torch.softmax(x.transpose(1, 2), 2, dtype=dtype).transpose(1, 2)


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


@torch.no_grad()
def label_online(logits, labels, num_pseudo, threshold, ignore_index=255):
    """Labels (N, h, w) of a batch whose first ``num_pseudo`` samples are unlabelled: there the model's own decisions.

    A variant of the DMT paper's ablation ("online") without another model or a labelling stage: every step the model
    labels the unlabelled images of its batch, in the crop and with the augmentation that it then learns them in, and in
    train mode, as the loss sees it.

    ``logits`` (N, C, h, w) floating point; ``labels`` (N, h, w) integers, of which only those equal to ``ignore_index``
    (padding) matter in the unlabelled samples. Pixels whose largest probability is not above ``threshold`` get
    ``ignore_index``. No gradient goes through the labels.
    """
    confidence, decision = logits[:num_pseudo].softmax(1, dtype=torch.promote_types(logits.dtype, torch.float32)).max(1)
    unsure = (confidence <= threshold) | (labels[:num_pseudo] == ignore_index)
    own = decision.to(labels.dtype).masked_fill(unsure, ignore_index)
    return torch.cat([own, labels[num_pseudo:]])
