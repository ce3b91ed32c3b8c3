"""Batch normalization where a batch comes in parts."""

from torch.nn.modules.batchnorm import _BatchNorm


def average_parts(model, parts):
    """Let the running statistics of ``model`` forget as slowly when a batch comes in ``parts`` as when it is whole."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 1 - (1 - module.momentum) ** (1 / parts)
