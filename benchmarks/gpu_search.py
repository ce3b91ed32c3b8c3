"""Seconds of the first training step of a process, and crops a second, with or without cuDNN's search for algorithms.

benchmarks.gpu starts it, since what cuDNN has found for a shape stays with a process. Prints the two numbers.
"""

import statistics
import subprocess
import sys

import torch

from benchmarks import measure
from benchmarks.gpu_clock import Clock
from benchmarks.gpu_subjects import Size, Subject, Variant, cycled


def apart(device, searches):
    """(seconds of the first step, crops a second) of a launcher's training at VOC's size, in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu_search", "--device", str(device)]
                          + ["--search"] * searches, cwd=measure.REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-1000:])
    return tuple(map(float, done.stdout.split()[-2:]))


def speed(size, device, variant):
    """The same for any ``Size`` and ``Variant``, in this process, on a batch of random crops."""
    shape, clock = (size.batch, *size.crop), Clock(device)
    batch = (torch.randint(256, (*shape, 3), dtype=torch.uint8), torch.randint(size.classes, shape, dtype=torch.uint8),
             torch.randint(256, shape, dtype=torch.uint8))
    subject = Subject(size, device, variant)
    first = clock.seconds(lambda: subject.run([batch]))
    subject.run(cycled([batch], 6))
    seconds = [clock.seconds(lambda: subject.run(cycled([batch], size.steps))) for _ in range(size.rounds)]
    return first, size.batch * size.steps / statistics.median(seconds)


def main():
    """Print the two numbers."""
    parser = measure.gpu_parser(__doc__)
    parser.add_argument("--search", action="store_true", help="let cuDNN search")
    options = measure.parsed(parser)
    measure.need_gpu(options)
    print(*speed(Size(), options.device, Variant(search=options.search)))


if __name__ == "__main__":
    main()
