"""Copies between host and GPU for which neither side waits."""

import torch


class Upload:
    """Brings batches to ``device``: called with tensors, it returns their copies there, as a tuple (a CPU's themselves).

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


def download(tensor):
    """Start copying ``tensor`` to the host; returns a function that waits for the copy and gives the numpy array."""
    if tensor.device.type != "cuda":
        return tensor.numpy
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    copy.copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event(blocking=True)  # many threads wait, which should not spin
    arrived.record(torch.cuda.current_stream(tensor.device))

    def wait():
        arrived.synchronize()
        return copy.numpy()
    return wait


def snapshot(value):
    """Copies of all tensors in ``value`` (dicts, lists and tuples of them and of plain values) on the host, as now.

    Returns (the same structure, a function that waits until the copies are there): what has to be done before anybody
    reads them. The originals may be changed at once. Tensors that share memory get copies of their own.
    """
    devices = set()
    copied = _copied(value, devices)
    events = [torch.cuda.Event(blocking=True) for _ in devices]
    for event, device in zip(events, devices):
        event.record(torch.cuda.current_stream(device))

    def wait():
        for event in events:
            event.synchronize()
    return copied, wait


def _copied(value, devices):
    if isinstance(value, torch.Tensor):
        value = value.detach()
        if value.device.type != "cuda":
            return value.clone()
        devices.add(value.device)
        return torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)
    if isinstance(value, dict):
        copied = type(value)((key, _copied(part, devices)) for key, part in value.items())
        if hasattr(value, "_metadata"):  # of a state dict
            copied._metadata = value._metadata
        return copied
    return type(value)(_copied(part, devices) for part in value) if isinstance(value, (list, tuple)) else value
