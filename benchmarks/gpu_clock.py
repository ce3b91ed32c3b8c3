"""How the GPU benchmark measures: seconds, parts of a step, host synchronizations, and how much of the time a GPU waits.

On a CPU the same functions run, as far as they mean something there; what does not is None.
"""

import collections
import contextlib
import gc
import time
import warnings

import torch


class Clock:
    """Wall time of work on ``device``: the device is waited for before the clock is read."""

    def __init__(self, device):
        self.device = torch.device(device)
        self.on_gpu = self.device.type == "cuda"

    def __call__(self):
        """Seconds, when all that was asked of the device so far is done."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def seconds(self, function):
        """How long ``function()`` takes."""
        start = self()
        function()
        return self() - start

    def peak(self, function):
        """Bytes of GPU memory that ``function()`` had more than was taken before, at most; None on a CPU."""
        if not self.on_gpu:
            function()
            return None
        forget()
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        function()
        self()
        return torch.cuda.max_memory_allocated(self.device) - before


def forget():
    """Give back what nobody uses: a Trainer and what it has recorded know each other, so they go only when collected."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def synchronizations(function, device):
    """How often ``function()`` makes the host wait for the GPU; None on a CPU."""
    if torch.device(device).type != "cuda":
        function()
        return None
    torch.cuda.synchronize(device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in caught)


def profiled(function, device):
    """(share of the time in which no kernel and no copy runs on the GPU, seconds by kernel) of ``function()``.

    The seconds are a dict, the longest first. The profiler tells how long the GPU is busy. It slows the host, so the time
    is that of a run without it, before. What is measured after the first profile may be slower, too. None on a CPU.
    """
    if torch.device(device).type != "cuda":
        function()
        return None
    from torch.profiler import ProfilerActivity, profile
    seconds = Clock(device).seconds(function)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        function()
        torch.cuda.synchronize(device)
    events = [event for event in profiler.events()
              if event.device_type == torch.autograd.DeviceType.CUDA and not _spans_others(event)]
    busy = busy_time((event.time_range.start, event.time_range.end) for event in events)
    kernels = collections.Counter()
    for event in events:
        kernels[event.name] += event.time_range.elapsed_us() / 1e6
    return max(0.0, 1 - busy / 1e6 / seconds), dict(kernels.most_common())


def _spans_others(event):
    """Whether the profiler's event stands for a range of work, as of a whole optimizer step, and not for a kernel."""
    return getattr(event, "is_user_annotation", False) or event.name.startswith("Optimizer.")


def busy_time(spans):
    """How long at least one of the ``spans`` (start, end) lasted."""
    busy, reached = 0.0, -float("inf")
    for start, end in sorted(spans):
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return busy


class Parts:
    """Seconds of the parts of a training step, from one mark to the next, on the device's own clock."""

    ORDER = ("copy and normalize", "forward", "upsample", "loss", "counting, backward, scaler", "optimizer", "statistics")
    AHEAD = 100_000_000  # cycles that the GPU idles first, about 50 ms: or it would wait for the host, within the parts

    def __init__(self, trainer, device):
        self._trainer, self._on_gpu, self._marks = trainer, torch.device(device).type == "cuda", []

    def measure(self, step, count):
        """Lists of ``count`` seconds by part; ``step()`` makes one training step."""
        seconds = {part: [] for part in self.ORDER}
        with self._hooks():
            for _ in range(count):
                if self._on_gpu:
                    torch.cuda._sleep(self.AHEAD)
                self._marks = [self._now()]
                step()
                self._marks.append(self._now())
                for part, taken in zip(self.ORDER, self._differences()):
                    seconds[part].append(taken)
        return seconds

    @contextlib.contextmanager
    def _hooks(self):
        def mark(*_):
            self._marks.append(self._now())

        trainer = self._trainer
        handles = [trainer.model.register_forward_pre_hook(mark), trainer.model.register_forward_hook(mark),
                   trainer.loss.register_forward_pre_hook(mark), trainer.loss.register_forward_hook(mark),
                   trainer.optimizer.register_step_pre_hook(mark), trainer.optimizer.register_step_post_hook(mark)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _now(self):
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _differences(self):
        pairs = list(zip(self._marks, self._marks[1:]))
        if not self._on_gpu:
            return [second - first for first, second in pairs]
        self._marks[-1].synchronize()
        return [first.elapsed_time(second) / 1000 for first, second in pairs]


def matrix_rate(device, dtype, size, repeats=10, rounds=3):
    """FLOP/s of a product of two random ``size`` x ``size`` matrices in ``dtype``: the best of a few rounds.

    The best, for it serves as the ceiling that the network's rate is compared with.
    """
    clock = Clock(device)
    first, second = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def products():
        for _ in range(repeats):
            first @ second

    products()
    return 2 * size**3 * repeats / min(clock.seconds(products) for _ in range(rounds))


def copy_rate(device, count, repeats=10, rounds=3):
    """Bytes a second, read and written together, of copying ``count`` bytes within the device's memory."""
    clock = Clock(device)
    source = torch.randint(256, (count,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copies():
        for _ in range(repeats):
            target.copy_(source)

    copies()
    return 2 * count * repeats / min(clock.seconds(copies) for _ in range(rounds))
