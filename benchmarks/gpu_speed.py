"""How fast does a GPU train, label and validate, with which options, and what does it wait for?

Every topic takes the ``benchmarks.gpu.Bench`` and adds its rows to it.
"""

import itertools
import statistics
import time
from dataclasses import replace

import torch

from benchmarks import gpu_search, measure
from benchmarks.gpu_clock import Parts, forget, profiled, synchronizations
from benchmarks.gpu_correct import add_curve, second_pass
from benchmarks.gpu_subjects import FORMAT, Subject, copy_of, cycled
from data.specs import load_spec
from dmt import labeling
from dmt.check import Plan
from dmt.evaluation import evaluate
from dmt.memory import memory_bytes
from dmt.prediction import network_maps
from models.folded import FoldedDeepLab
from utils.precision import Precision
from utils.replay import Replay

LABELLING_SHARE, MEMORY = 55, 6.0  # the aims: % of the matrix rate, and GB at batch 8


# --- training ---------------------------------------------------------------------------------------------------------


def training(bench):
    """Crops a second from batches in memory, every option on its own."""
    default = bench.default
    variants = {f"as a launcher trains ({default.kind})": default,
                "float32 (TF32)": replace(default, kind="fp32"),
                "without channels_last": replace(default, channels_last=False),
                "bf16": replace(default, kind="bf16"),
                "without fused normalization": replace(default, norm=False),
                "without CUDA graphs": replace(default, graphs=False),
                # torch's other SGD asks the host whether to skip a step: that cannot be recorded
                "without CUDA graphs and fused SGD": replace(default, graphs=False, fused=False)}
    if not bench.on_gpu:
        for name in ("bf16", "without fused normalization", "without CUDA graphs"):  # as a launcher trains there
            del variants[name]
    compare_training(bench, variants, bench.size.batch)


def compare_training(bench, variants, batch):
    """Rows for ``variants`` ({name: Variant}), of which the first is what the others are compared with."""
    size, few = bench.size, bench.batches_of(batch)
    subjects, peaks, starts = {}, {}, {}
    for name, variant in variants.items():
        def begin(name=name, variant=variant):
            subject = Subject(size, bench.device, variant, batch)
            began = bench.clock()
            peaks[name] = bench.clock.peak(lambda: subject.run(cycled(few, 6)))  # a graph has been recorded by then
            starts[name], subjects[name] = bench.clock() - began, subject
        bench.attempt(f"training, {name}", begin)
    timed = bench.medians({name: lambda subject=subject: subject.run(cycled(few, size.steps))
                           for name, subject in subjects.items()})
    first = next(iter(subjects))
    for name in subjects:
        seconds, values = timed[name]
        crops = batch * size.steps / seconds
        peak = f", {peaks[name] / 1e9:.2f} GB beside the network" if peaks[name] else ""
        bench.row(f"training, batch {batch}: {name}", "crops/s", crops, plain=batch * size.steps / timed[first][0],
                  gain=measure.ratio(timed[first][1], values), floor=bench.rate / (3 * bench.crop_flop),
                  floor_is="the matrix rate", note=f"{bench.share(3 * crops * bench.crop_flop):.1f} % of the matrix rate"
                  f"{peak}; the first steps took {starts[name]:.1f} s")
        bench.crops[variants[name], batch] = crops


def search(bench):
    """cuDNN's search with several limits, each in a process of its own: algorithms that were found stay with a process."""
    for tried in (0, 4):
        found = gpu_search.apart(bench.device, tried) if bench.on_gpu else gpu_search.speed(
            bench.size, bench.device, tried)  # a CPU has no such search
        name = f"in a fresh process, {tried or 'no'} algorithms tried"
        memory = f"; {found['GB']:.1f} GB at most" if found["GB"] else ""
        bench.row(f"training, batch {bench.size.batch}, {name}", "crops/s", found["crops"],
                  note=f"the first step took {found['first step']:.1f} s{memory}")
        bench.row(f"the network alone on whole images, {name}", "images/s", found["images"],
                  note=f"the first batch took {found['first batch']:.1f} s")


def parts(bench):
    """Where a step's time goes, and how often it makes the host wait."""
    for name, variant in bench.with_graphs("", " without CUDA graphs").items():
        subject, few = Subject(bench.size, bench.device, variant), bench.batches
        subject.run(cycled(few, 6))
        step, many = (lambda: subject.run(few[:1])), cycled(few, bench.size.steps)
        waits = synchronizations(lambda: subject.run(many), bench.device)
        bench.row(f"host synchronizations a step{name}", "", None if waits is None else waits / len(many),
                  target=("<=", 0))
        host = []
        for _ in range(bench.size.steps):
            bench.clock()  # an idle GPU, for its queue holds less than two steps: then the host would wait for it
            began = time.perf_counter()
            step()
            host.append(time.perf_counter() - began)
        bench.row(f"time of the host to start a step{name}", "ms", 1000 * statistics.median(host))
        if not variant.graphs:
            seconds = Parts(subject.trainer, bench.device).measure(step, bench.size.steps)
            for part, values in seconds.items():
                bench.row(f"part of a step: {part}", "ms", 1000 * statistics.median(values))


def waiting(bench):
    """How long the GPU waits for the host, and which kernels it spends its time in.

    The last topic: the profiler may slow down what follows.
    """
    for name, variant in bench.with_graphs("", " without CUDA graphs").items():
        subject, few = Subject(bench.size, bench.device, variant), bench.batches
        subject.run(cycled(few, 6))
        found = profiled(lambda: subject.run(cycled(few, bench.size.steps)), bench.device)
        if found:
            bench.row(f"share of the time in which the GPU waits{name}", "%", 100 * found[0])
            note_kernels(bench, f"a training step{name}", found[1], bench.size.steps)
    machine, model = bench.images.machine(bench.device, bench.default), copy_of(bench.network).eval()
    forward = machine.forward(model, FORMAT)
    resident = [batch[0].to(bench.device) for batch in itertools.islice(bench.images.whole(machine, labels=True), 8)]

    @torch.inference_mode()
    def network_alone():
        for batch in resident:
            forward(batch)

    network_alone()
    found = profiled(network_alone, bench.device)
    if found:
        note_kernels(bench, "a batch of the network alone, whole images", found[1], len(resident))


def note_kernels(bench, what, kernels, count, most=25):
    """Keep the milliseconds of the kernels that take longest, for each of ``count`` times, and print some of them."""
    milliseconds = {name: 1000 * seconds / count for name, seconds in kernels.items()}
    few = dict(itertools.islice(milliseconds.items(), most))
    bench.figures.setdefault("kernels", {})[what] = few
    print(f"{what}: {sum(milliseconds.values()):.2f} ms in {len(kernels)} kernels")
    for name, value in few.items():
        print(f"{value:8.3f}  {name[:150]}")


def larger_batches(bench):
    """Batch 16 and 32, one by one and as CUDA graphs."""
    for batch in bench.size.other_batches:
        compare_training(bench, bench.with_graphs(f"as a launcher trains ({bench.default.kind})", "without CUDA graphs"), batch)


def compiled(bench):
    """torch.compile, correct only if its loss curve agrees, too; and how soon a process starts that finds all compiled."""
    if not bench.on_gpu:
        return  # on a CPU it would take minutes
    variant = replace(bench.default, compiled=True)
    compare_training(bench, {f"as a launcher trains ({bench.default.kind})": bench.default, "torch.compile": variant},
                     bench.size.batch)
    add_curve(bench, "torch.compile", variant, bench.start)
    found = gpu_search.apart(bench.device, 0, "--compiled")
    bench.row(f"training, batch {bench.size.batch}, torch.compile in a fresh process", "crops/s", found["crops"],
              note=f"the first step took {found['first step']:.1f} s")


# --- labelling and validation -----------------------------------------------------------------------------------------


def inference(bench):
    """Images a second of the network alone, of labelling and of validation, from batches in memory."""
    size, images = bench.size, bench.images
    for name, variant in bench.with_graphs("", ", without CUDA graphs").items():
        machine, model = images.machine(bench.device, variant), copy_of(bench.network).eval()
        few = list(itertools.islice(images.whole(machine, labels=True), 8))
        many, names = repeated(few, images.names, size.rounds)
        count = sum(len(indices) for _, _, indices, _ in many)
        forward, store = machine.forward(model, FORMAT), images.fresh("speed")
        resident = [batch[0].to(bench.device) for batch in few]

        @torch.inference_mode()
        def network_alone():
            for batch in resident * size.rounds:
                forward(batch)

        functions = {"the network alone": network_alone,
                     "labelling, first pass": lambda: labeling.predict(model, many, names, store, forward,
                                                                       bench.device),
                     "validation": lambda: evaluate(model, many, forward, bench.device).matrix}
        network_alone()
        peaks = {what: bench.clock.peak(function) for what, function in functions.items()}
        for what, (seconds, _) in bench.medians(functions).items():
            add_inference(bench, what + name, count / seconds, peaks[what],
                          LABELLING_SHARE if what == "labelling, first pass" else None)
        if not variant.graphs:
            waits = synchronizations(functions["labelling, first pass"], bench.device)
            bench.row("host synchronizations a batch of labelling", "", None if waits is None else waits / len(many))
    other_networks(bench, resident)
    # The network stands for both models: what is decided does not matter here.
    bench.histogram = labeling.predict(model, many, names, store, forward, bench.device)
    stored = [names[index] for _, _, indices, _ in many for index in indices]
    seconds = bench.medians({"second": lambda: second_pass(bench, stored, store, store)})["second"][0]
    bench.row("labelling, second pass with PLE", "images/s", count / seconds)


def other_networks(bench, resident):
    """The network alone with its normalization apart, and with everything apart that cuDNN could do at once."""
    model, precision = copy_of(bench.network).eval(), Precision(bench.default.kind, bench.device)
    apart = FoldedDeepLab(model, precision.dtype)
    for convolution in apart._convolutions:
        convolution.fuses = False
    for name, network in {"normalization apart": model, "normalization folded, the rest apart": apart}.items():
        maps = network_maps(network, FORMAT, precision)
        replayed = Replay(maps, bench.device, bench.default.graphs)

        @torch.inference_mode()
        def run(replayed=replayed):
            for batch in resident * bench.size.rounds:
                replayed(batch)

        run()
        seconds = bench.medians({name: run})[name][0]
        add_inference(bench, f"the network alone, {name}", sum(map(len, resident)) * bench.size.rounds / seconds, None)


def repeated(few, names, times):
    """(batches, names): the batches ``few`` over and over, as if of other images, for no file may be written by two."""
    many = [(images, labels, [number * len(names) + index for index in indices], sizes)
            for number in range(times) for images, labels, indices, sizes in few]
    return many, [f"{name}-{number}" for number in range(times) for name in names]


def add_inference(bench, what, rate, peak, aim=None):
    """A row of images a second, and its share of the matrix rate where there is an aim for it."""
    gigabytes = f", {peak / 1e9:.2f} GB at most" if peak else ""
    bench.row(what, "images/s", rate, floor=bench.rate / bench.image_flop, floor_is="the matrix rate",
              note=f"{bench.share(rate * bench.image_flop):.1f} % of the matrix rate{gigabytes}")
    if aim:
        bench.labelling = max(bench.labelling, bench.share(rate * bench.image_flop))


# --- loader, memory, verdict ------------------------------------------------------------------------------------------


def loader(bench):
    """Training, labelling and validation from files: the loader alone, and all together."""
    size, images = bench.size, bench.images
    machine, subject = images.machine(bench.device, bench.default), Subject(size, bench.device, bench.default)
    many = 8 * size.steps * size.rounds  # what the workers have ready when the clock starts is a small part
    for what, run in {"the loader alone": lambda some: consume(some), "training": subject.run}.items():
        batches = iter(images.training(machine, size.batch))
        run(list(itertools.islice(batches, 8)))  # the workers have started by then
        seconds = bench.clock.seconds(lambda: run(itertools.islice(batches, many)))
        bench.rates[what] = rate = size.batch * many / seconds
        bench.row(f"training crops from files, {what}", "crops/s", rate, note=f"{machine.workers} workers")
        del batches
    model = copy_of(bench.network).eval()
    forward, store = machine.forward(model, FORMAT), images.fresh("speed")
    repeats = 1 if bench.options.quick else 6
    for kind, with_labels in (("labelling", False), ("validation", True)):
        source = images.whole(machine, with_labels, repeats)
        consume(source)
        bench.row(f"whole images from files for {kind}, the loader alone", "images/s",
                  repeats * size.images / bench.clock.seconds(lambda: consume(source)))
        whole = {"labelling": lambda: labeling.predict(model, source, images.names, store, forward, bench.device),
                 "validation": lambda: evaluate(model, source, forward, bench.device).matrix}[kind]
        whole()
        add_inference(bench, f"{kind} from files" + (", first pass" if kind == "labelling" else ""),
                      repeats * size.images / bench.clock.seconds(whole), None)
    needed = max(crops for (_, batch), crops in bench.crops.items() if batch == size.batch)
    bench.row("the loader's crops for each that the GPU can train on", "", bench.rates["the loader alone"] / needed,
              target=(">=", 1))


def consume(batches):
    """Go through ``batches``."""
    for _ in batches:
        pass


def memory(bench):
    """What dmt/memory.py estimates against what torch's tensors take, with nothing else on the GPU."""
    if not bench.on_gpu:
        return
    size = bench.size
    plan = Plan(".", str(bench.device), size.backbone, 2, True, size.batch, size.batch)
    estimates = memory_bytes(replace(load_spec("voc"), crop=size.crop, test_size=size.test_size), plan)
    for graphs in (False, True):
        variant = replace(bench.default, graphs=graphs)
        subjects = []

        def train():
            subjects.append(Subject(size, bench.device, variant))
            subjects[0].run(cycled(bench.batches, 6))

        machine = bench.images.machine(bench.device, variant)
        few = list(itertools.islice(bench.images.whole(machine, labels=True), 6))
        forget()
        before = torch.cuda.memory_reserved(bench.device)
        train_peak = bench.clock.peak(train)
        name = " with CUDA graphs" if graphs else ""
        bench.row(f"GPU memory of training{name}, tensors", "GB", train_peak / 1e9, floor=estimates[0] / 1e9,
                  floor_is="estimate of --check")
        model = subjects[0].model
        evaluate(model, few, machine.forward(model, FORMAT), bench.device)
        bench.clock()
        bench.row(f"GPU memory of training and validation{name}, taken from the driver", "GB",
                  (torch.cuda.max_memory_reserved(bench.device) - before) / 1e9, target=("<=", MEMORY))
        del model, subjects
