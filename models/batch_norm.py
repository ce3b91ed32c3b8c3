"""Batch normalization over all processes, and where a batch comes in parts."""

from torch.nn.modules.batchnorm import _BatchNorm


def synchronize(model):
    """Let ``model`` normalize over the batch of all processes, which takes GPUs; in place, names and tensors stay.

    By timm, whose own normalizations keep what follows within them. Returns the model.
    """
    from timm.layers import convert_sync_batchnorm  # loading timm takes a second
    return convert_sync_batchnorm(model)


def average_parts(model, parts):
    """Let the running statistics of ``model`` forget as slowly when a batch comes in ``parts`` as when it is whole."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 1 - (1 - module.momentum) ** (1 / parts)
