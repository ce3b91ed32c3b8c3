"""Copies between host and GPU for which neither side waits. On a CPU nothing is copied."""

import torch


class Upload:
    """Brings batches to ``device``: called with tensors, it returns their copies there, as a tuple.

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
