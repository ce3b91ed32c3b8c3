"""What cuDNN's search for algorithms costs a process and brings: first steps, speed and memory, with a given limit.

benchmarks.gpu starts it, since what cuDNN has found for a shape stays with a process. Prints a JSON object.
"""

import json
import statistics
import subprocess
import sys

import torch

from benchmarks import measure
from benchmarks.gpu_clock import Clock
from benchmarks.gpu_subjects import FORMAT, TINY, Size, Subject, Variant, cycled
from dmt.prediction import Forward
from utils import precision
from utils.errors import reports_user_errors


def apart(device, tried, *more):
    """What ``speed`` finds at VOC's size, in a process of its own; ``tried`` algorithms of each convolution, 0: no search."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu_search", f"--device={device}", f"--tried={tried}", *more],
                          cwd=measure.REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-1000:])
    return json.loads(done.stdout.splitlines()[-1])


def speed(size, device, tried, compiled=False, norm=True):
    """{"first step": seconds, "crops": a second, "first batch": seconds, "images": a second, "GB": at most} of a
    launcher's training and labelling on random pixels, the best of what was found."""
    precision.ALGORITHMS, variant, clock = tried, Variant(compiled=compiled, norm=norm), Clock(device)
    shape, found = (size.batch, *size.crop), {}
    batch = (torch.randint(256, (*shape, 3), dtype=torch.uint8), torch.randint(size.classes, shape, dtype=torch.uint8),
             torch.randint(256, shape, dtype=torch.uint8))
    subject = Subject(size, device, variant)
    found["first step"] = clock.seconds(lambda: subject.run([batch]))
    found["crops"] = size.batch * size.steps / steady(clock, size, lambda count: subject.run(cycled([batch], count)))
    images = torch.randint(256, (size.batch, *size.test_size, 3), dtype=torch.uint8, device=device)
    forward = Forward(subject.model.eval(), FORMAT, subject.precision, device, size.batch, variant.graphs)

    @torch.inference_mode()
    def predict(count):
        for _ in range(count):
            forward(images)

    found["first batch"] = clock.seconds(lambda: predict(1))
    found["images"] = size.batch * size.steps / steady(clock, size, predict)
    return found | {"GB": torch.cuda.max_memory_reserved(device) / 1e9 if clock.on_gpu else None}


def steady(clock, size, run):
    """Median seconds of ``run(size.steps)``, after a few steps."""
    run(6)
    return statistics.median(clock.seconds(lambda: run(size.steps)) for _ in range(size.rounds))


@reports_user_errors
def main():
    """Print what was found."""
    parser = measure.gpu_parser(__doc__)
    parser.add_argument("--tried", type=int, choices=range(100), metavar="N", required=True, help="algorithms of each convolution; 0: no search")
    parser.add_argument("--compiled", action="store_true", help="with torch.compile")
    parser.add_argument("--no-fused-norm", action="store_true", help="normalization as torch does it")
    options = measure.parsed(parser)
    measure.need_gpu(options)
    print(json.dumps(speed(TINY if options.quick else Size(), options.device, options.tried, options.compiled, not options.no_fused_norm)))


if __name__ == "__main__":
    main()
