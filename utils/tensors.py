"""Tensors: made of arrays, brought to a GPU and back while neither side waits, and work on them recorded once."""

import copy
import functools

import numpy as np
import torch

from utils.errors import UserError

_EAGER_CALLS = 3  # before recording: libraries choose their algorithms and make their workspaces in the first calls
_WORTH = 100  # replays that make it worth while to record again


def tensor_of(values):
    """The tensor ``values`` itself, or a copy of a numpy array (of any layout and byte order) or list as a tensor."""
    if isinstance(values, torch.Tensor):
        return values
    values = np.asarray(values)
    return torch.tensor(values.astype(values.dtype.newbyteorder("="), order="C"))


class Replay:
    """Calls ``function(*arguments)``; with ``record``, as a CUDA graph once the same shapes have come a few times.

    Arguments are tensors on ``device`` and plain values; plain values are part of the shape. ``function`` must not make
    the host wait for the GPU, and what it changes it must change in place. What it returns (a tensor or None) is
    overwritten by the next call of the recorded shape. One shape is recorded, that of the full batches: any other is
    computed without a graph. The graph holds on to the GPU memory that the function needed: where another shape comes
    and less than that is free, the graph is given up, and recorded again later if it had served for long. Raises
    ``UserError`` when the work cannot be recorded.
    """

    def __init__(self, function, device, record):
        self._function, self._device = function, torch.device(device)
        self._record = record and self._device.type == "cuda"
        self._forget()

    def _forget(self):
        self._calls, self._shape, self._graph, self._arguments, self._result = {}, None, None, None, None
        self._bytes = self._replays = 0

    def __call__(self, *arguments):
        if not self._record:
            return self._function(*arguments)
        shape = tuple((argument.shape, argument.dtype) if isinstance(argument, torch.Tensor) else argument
                      for argument in arguments)
        if self._graph is None:
            self._calls[shape] = self._calls.get(shape, 0) + 1
            if self._calls[shape] > _EAGER_CALLS:
                self._start_graph(shape, arguments)
        if shape != self._shape:
            if self._graph is not None:
                self._make_room()
            return self._function(*arguments)
        for own, argument in zip(self._arguments, arguments):
            if isinstance(own, torch.Tensor):
                own.copy_(argument)
        self._graph.replay()
        self._replays += 1
        return self._result

    def _make_room(self):
        """Give up the graph where the memory may not suffice for what comes beside it."""
        if torch.cuda.mem_get_info(self._device)[0] >= self._bytes:
            return
        torch.cuda.synchronize(self._device)  # it may still be at work
        self._record = self._replays >= _WORTH
        self._forget()
        torch.cuda.empty_cache()

    def _start_graph(self, shape, arguments):
        """Record a call; nothing is computed by that."""
        graph, own = torch.cuda.CUDAGraph(), [argument.clone() if isinstance(argument, torch.Tensor) else argument
                                              for argument in arguments]
        try:
            # Only this thread must not wait while recording; the loader's thread that pins memory goes on meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                before = torch.cuda.memory_reserved(self._device)
                result = self._function(*own)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise UserError(f"the work of a batch cannot be recorded as a CUDA graph ({str(error).splitlines()[0]}); "
                            "give --no-cuda-graphs") from error
        # Only now: a recording that fails leaves none.
        self._shape, self._graph, self._arguments, self._result = shape, graph, own, result
        self._bytes = torch.cuda.memory_reserved(self._device) - before


def upload(device, *tensors):
    """A tuple of copies of ``tensors`` on the ``torch.device``; on a CPU they themselves.

    Copies from pinned memory run beside the computation, on a stream of their own: the host is ahead of the GPU, so the
    next batch is there when the present step ends.
    """
    if device.type == "cpu":
        return tensors
    computation, stream = torch.cuda.current_stream(device), _copying(device)
    with torch.cuda.stream(stream):
        copies = tuple(tensor.to(device, non_blocking=True) for tensor in tensors)
    computation.wait_stream(stream)
    for tensor in copies:
        tensor.record_stream(computation)  # its memory may be used anew only when the computation is done with it
    return copies


_copying = functools.cache(torch.cuda.Stream)  # of a device


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
