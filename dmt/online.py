"""Pseudo labels made on the fly by the model that learns from them: a variant of the DMT paper's ablation ("online").

No other model and no labelling stage takes part. Every step the model labels the unlabelled images of its batch, in the
crop and with the augmentation that it then learns them in, and in train mode, as the loss sees it.
"""

import torch


@torch.no_grad()
def label_online(logits, labels, num_pseudo, threshold, ignore_index=255):
    """Labels (N, h, w) of a batch whose first ``num_pseudo`` samples are unlabelled: there the model's own decisions.

    ``logits`` (N, C, h, w) floating point; ``labels`` (N, h, w) integers, of which only those equal to ``ignore_index``
    (padding) matter in the unlabelled samples. Pixels whose largest probability is not above ``threshold`` get
    ``ignore_index``. No gradient goes through the labels.
    """
    confidence, decision = logits[:num_pseudo].softmax(1, dtype=torch.promote_types(logits.dtype, torch.float32)).max(1)
    unsure = (confidence <= threshold) | (labels[:num_pseudo] == ignore_index)
    own = decision.to(labels.dtype).masked_fill(unsure, ignore_index)
    return torch.cat([own, labels[num_pseudo:]])
