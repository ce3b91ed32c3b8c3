"""One GPU at its limit: is it correct in 16 bits, how fast does it train, label and validate, and what holds it back?

    python -m benchmarks.gpu                            on a GPU: all of it within --minutes, results in gpu.json
    python -m benchmarks.gpu --quick --device cpu       tiny sizes on a CPU: tries the paths, its figures mean nothing

Correctness comes first, then speed, the slow torch.compile nearly last: where the time does not suffice for it, call
again with --only compiled. gpu.json is written after every topic, so what was measured survives a kill; a topic that the
time left is too short for is left out and named.
"""

import itertools
import statistics
import time
import traceback
from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu_correct, gpu_speed, measure
from benchmarks.gpu_clock import Clock, forget
from benchmarks.gpu_subjects import TINY, Images, Size, Variant, network
from dmt.session import choose_device
from models import deeplab_v2
from utils.errors import reports_user_errors

TRAINING_SHARE = 45  # the aim at batch 8, % of the matrix rate
TOPICS = {  # topic -> seconds on an H100 or H200, from above
    gpu_correct.ceilings: 5, gpu_correct.agreement: 10, gpu_correct.curves: 50, gpu_correct.labels: 15,
    gpu_correct.overflow: 3, gpu_speed.training: 40, gpu_speed.parts: 5, gpu_speed.inference: 25,
    gpu_speed.larger_batches: 25, gpu_speed.search: 50, gpu_speed.loader: 25, gpu_speed.memory: 8,
    gpu_speed.compiled: 80, gpu_speed.waiting: 12}
NEEDED = {"labels": ("curves",), "compiled": ("curves",)}  # topic -> the others that it needs


class Bench:
    """What is measured on, what has been found so far, and how much time is left.

    ``crops`` are crops a second by (``Variant``, batch), ``rates`` other figures by name; ``correct`` says which
    features of a ``Variant`` are; ``start`` is an untrained network, ``trained`` what float32 made of it.
    """

    def __init__(self, options):
        self.options, self.device = options, choose_device(options.device)
        self.size = TINY if options.quick else Size()
        self.clock, self.on_gpu = Clock(self.device), self.device.type == "cuda"
        self.default = Variant() if self.on_gpu else Variant(kind="bf16", graphs=False)  # fp16 is for GPUs
        self.kinds = ("fp16", "bf16") if self.on_gpu else ("bf16",)
        self.rows, self.figures, self.left_out, self.failed = [], {}, [], {}
        self.damaged = False  # a recording that fails leaves torch's allocator as it was within
        self.crops, self.rates, self.correct, self.start, self.trained, self.labelling = {}, {}, {}, None, None, 0.0
        self.deadline = time.monotonic() + 60 * options.minutes
        with torch.device("meta"):
            model = deeplab_v2(self.size.classes, self.size.backbone)
        self.crop_flop, self.image_flop = flop(model, self.size.crop), flop(model, self.size.test_size)
        self.rate = None  # FLOP/s of the matrix units, measured first
        self.images, self._batches = Images(self.size, options.work), {}

    def batches_of(self, batch):
        """A few training batches of so many crops, as they come from the loader."""
        if batch not in self._batches:
            machine = self.images.machine(self.device, self.default)
            self._batches[batch] = list(itertools.islice(self.images.training(machine, batch), 4))
        return self._batches[batch]

    @property
    def network(self):
        """A network: what float32 made of it, or where nothing was trained, what it began as."""
        return self.trained or network(self.size, self.device)

    @property
    def batches(self):
        """The same at the recipe's size."""
        return self.batches_of(self.size.batch)

    def with_graphs(self, within, without):
        """{name: Variant} as a launcher runs it, and on a GPU also without CUDA graphs."""
        return {within: self.default} | ({without: replace(self.default, graphs=False)} if self.on_gpu else {})

    def attempt(self, what, function):
        """``function()``; what it raises is reported at the end, and the rest goes on. Returns whether it came through."""
        try:
            function()
            return True
        except Exception as error:
            traceback.print_exc()
            self.failed[what] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            self.damaged |= "CUDA graph" in str(error)
            return False

    @property
    def left(self):
        """Seconds left."""
        return self.deadline - time.monotonic()

    def row(self, what, unit, value, **more):
        """Add a line to the table; None (not measurable here) is left out."""
        if value is not None:
            self.rows.append(measure.row(what, unit, more.pop("plain", None), value, **more))

    def share(self, flop_per_second):
        """Percent of the matrix rate."""
        return 100 * flop_per_second / self.rate

    def medians(self, functions):
        """Median seconds of each function, measured in turns; {name: (median, all)}."""
        found = measure.interleaved(functions, self.size.rounds, clock=self.clock)
        return {name: (statistics.median(values), values) for name, values in found.items()}

    def save(self):
        """Write gpu.json as it stands; with --only, gpu-TOPIC.json, so that the other stays."""
        settings = {"device": str(self.device), "backbone": self.size.backbone, "crop": self.size.crop,
                    "test size": self.size.test_size, "batch": self.size.batch, "images": self.size.images}
        return measure.write("-".join(["gpu", *self.options.only]), self.rows, self.options, settings, figures=self.figures, left_out=self.left_out,
                             failed=self.failed)


def flop(model, size):
    """Floating-point operations of a forward pass of one image of ``size``; ``model`` lies on the meta device."""
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, *size, device="meta"))
    return counter.get_total_flops()


def verdict(bench):
    """The aims, and the fastest combination that is correct."""
    batch = bench.size.batch
    known = {variant: crops for (variant, size), crops in bench.crops.items() if size == batch}
    correct = [variant for variant in known if all(bench.correct.get(feature) for feature in variant.features)]
    if correct:
        best = max(correct, key=known.get)
        bench.row(f"training at batch {batch}, the best that is correct: share of the matrix rate", "%",
                  bench.share(3 * known[best] * bench.crop_flop), target=(">=", TRAINING_SHARE),
                  note=f"{best.flags or 'float32'}; channels_last {best.channels_last}, "
                       f"fused SGD {best.fused}")
        bench.figures["best"] = {"flags": best.flags, "crops_per_second": known[best],
                                 "channels_last": best.channels_last, "fused": best.fused}
    if bench.labelling:
        bench.row("labelling, first pass: share of the matrix rate", "%", bench.labelling,
                  target=(">=", gpu_speed.LABELLING_SHARE))


def parse():
    """The options."""
    parser = measure.gpu_parser(__doc__)
    parser.add_argument("--only", nargs="*", default=[], metavar="TOPIC", choices=[topic.__name__ for topic in TOPICS],
                        help="only these topics, beside those they need")
    return measure.parsed(parser)


@reports_user_errors
def main():
    """Every topic in turn; the table, and what was left out, at the end."""
    options = parse()
    measure.need_gpu(options)
    bench = Bench(options)
    wanted = {"ceilings", *options.only, *(name for topic in options.only for name in NEEDED.get(topic, ()))}
    for topic, seconds in TOPICS.items():
        name = topic.__name__
        if options.only and name not in wanted:
            continue
        if bench.on_gpu and (bench.left < seconds or bench.damaged):
            bench.left_out.append(name)
            continue
        forget()
        began = time.monotonic()
        bench.attempt(name, lambda topic=topic: topic(bench))
        bench.save()
        print(f"{name}: {time.monotonic() - began:.1f} s", flush=True)
    verdict(bench)
    path = bench.save()
    print(f"\n{measure.table(bench.rows)}\n")
    for name, error in bench.failed.items():
        print(f"failed: {name}: {error}")
    if bench.left_out:
        print(f"left out, {'after a failed recording' if bench.damaged else 'for want of time'}: "
              f"{', '.join(bench.left_out)}")
    missed = [row["what"] for row in bench.rows if row["met"] is False]
    print(f"{len(missed)} aims missed{': ' if missed else ''}{'; '.join(missed)}")
    print(f"best combination that is correct: {bench.figures.get('best')}")
    print(path)
    if bench.failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
