"""Copies between host and GPU for which neither side waits."""

import copy

import torch


class Upload:
    """Brings batches to ``device``: called with tensors, it gives a tuple of their copies there (on a CPU themselves).

    Copies from pinned memory run beside the computation, on a stream of their own: the host is ahead of the GPU, so the
    next batch is there when the present step ends.
    """

    def __init__(self, device):
        self.device = torch.device(device)
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def __call__(self, *tensors):
        if self._stream is None:
            return tuple(tensor.to(self.device) for tensor in tensors)
        computation = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._stream):
            copies = tuple(tensor.to(self.device, non_blocking=True) for tensor in tensors)
        computation.wait_stream(self._stream)
        for copy in copies:
            copy.record_stream(computation)  # its memory may be used anew only when the computation is done with it
        return copies


def snapshot(value):
    """Copies of all tensors in ``value`` (dicts, lists and tuples of them and of plain values) on the host, as now.

    Returns (the same structure, a function that waits until the copies are there): what has to be done before anybody
    reads them. The originals may be changed at once. Tensors that share memory get copies of their own.
    """
    copied = _copied(value)
    if not torch.cuda.is_initialized():
        return copied, lambda: None
    arrived = torch.cuda.Event(blocking=True)
    arrived.record()
    return copied, arrived.synchronize


def _copied(value):
    if isinstance(value, torch.Tensor):
        value = value.detach()
        if value.device.type != "cuda":
            return value.clone()
        return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)
    if isinstance(value, dict):
        copied = copy.copy(value)  # with the attributes that a state dict has
        copied.update((key, _copied(part)) for key, part in value.items())
        return copied
    return type(value)(map(_copied, value)) if isinstance(value, (list, tuple)) else value
