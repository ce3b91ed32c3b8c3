"""Numpy arrays and tensors as one."""

import numpy as np
import torch


def tensor_of(values):
    """The tensor ``values`` itself, or a copy of a numpy array (of any layout and byte order) or list as a tensor."""
    if isinstance(values, torch.Tensor):
        return values
    values = np.asarray(values)
    return torch.tensor(values.astype(values.dtype.newbyteorder("="), order="C"))
