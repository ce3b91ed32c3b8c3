"""Is a GPU right in 16 bits? Logits, loss, pseudo labels and short trainings against float32; skipped steps.

Every topic takes the ``benchmarks.gpu.Bench`` and adds its rows to it.
"""

from dataclasses import replace

import torch

from benchmarks.gpu_clock import copy_rate, matrix_rate
from benchmarks.gpu_subjects import FORMAT, Subject, copy_of, cycled, network, tf32
from data.store import GREY_LEVELS
from dmt import labeling
from dmt.loss import DynamicMutualLoss
from dmt.prediction import network_maps
from models.deeplab import upsample
from utils.precision import Precision

LOGITS_OFF = {"fp16": 0.01, "bf16": 0.08}  # at most so much of their norm
LABELS_OFF = {"fp16": 1.0, "bf16": 5.0}  # % of the pixels
CURVE_OFF = 5.0  # % of the loss, or three times what float32 is off from itself
RATIO, BETA = 0.4, 0.15


def ceilings(bench):
    """The rates that nothing exceeds: matrix products, and copies within the GPU's memory."""
    for kind, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        rate = matrix_rate(bench.device, dtype, bench.size.matrix)
        bench.row(f"matrix product of {bench.size.matrix} squared, {kind}", "TFLOP/s", rate / 1e12)
        bench.rate = max(bench.rate or 0, rate)
    bench.row("copy within the memory, read and written", "GB/s", copy_rate(bench.device, bench.size.copied) / 1e9)


def agreement(bench):
    """Logits and loss of one training batch in 16 bits against float32 without TF32."""
    images, labels, grey = (part.to(bench.device) for part in bench.batches[0])
    confidence = torch.from_numpy(GREY_LEVELS).to(bench.device)[grey.int()]
    start, found = network(bench.size, bench.device), {}
    for kind in ("fp32", *bench.kinds):
        with torch.no_grad(), tf32(False):
            logits = network_maps(copy_of(start).train(), FORMAT, Precision(kind, bench.device))(images).float()
            loss, _ = DynamicMutualLoss(5, 5)(upsample(logits, bench.size.crop), labels, confidence, len(images) - 1)
        found[kind] = logits, loss
    exact, exact_loss = found.pop("fp32")
    for kind, (logits, loss) in found.items():
        bench.row(f"logits in {kind}: distance from float32, of their norm", "", distance(logits, exact),
                  target=("<=", LOGITS_OFF[kind]))
        bench.row(f"mutual loss in {kind}: distance from float32, of the loss", "", distance(loss, exact_loss),
                  target=("<=", LOGITS_OFF[kind]))


def distance(found, exact):
    """Norm of the difference over the norm of ``exact``, a float."""
    return ((found.double() - exact.double()).norm() / exact.double().norm()).item()


def curves(bench):
    """Short trainings from the same weights on the same batches: the loss of each step, in 16 bits and in float32."""
    start, bench.curve_limit = network(bench.size, bench.device, seed=1), CURVE_OFF
    plain = replace(bench.default, graphs=False)
    variants = dict.fromkeys(("float32", "float32 again"), replace(plain, kind="fp32"))
    variants |= {kind: replace(plain, kind=kind) for kind in bench.kinds}
    if bench.on_gpu:
        variants["CUDA graphs"] = replace(bench.default, norm=False)
        variants["CUDA graphs, fused normalization"] = bench.default
    for name, variant in variants.items():
        with tf32(not name.startswith("float32")):
            add_curve(bench, name, variant, start)


def add_curve(bench, name, variant, start):
    """Train a copy of ``start`` and compare its losses with those of the first curve, the one in float32.

    The features that a variant is the first to have are correct if its curve agrees.
    """
    subject = Subject(bench.size, bench.device, variant, model=copy_of(start), log=1)
    subject.run(cycled(bench.batches, bench.size.curve))
    losses = [line["loss"] for line in subject.stage.lines if line["kind"] == "train"]
    known = bench.figures.setdefault("loss curves", {})
    known[name] = losses
    if bench.trained is None:
        bench.start, bench.trained = start, subject.model
    late = slice(len(losses) // 2, None)
    expected = known["float32"][late]
    off = 100 * sum(abs(a - b) for a, b in zip(losses[late], expected)) / sum(expected)
    if name == "float32 again":
        bench.curve_limit = max(CURVE_OFF, 3 * off)
    if name != "float32":
        bench.row(f"loss curve: {name} against float32, second half of {len(losses)} steps", "%", off,
                  target=("<=", bench.curve_limit), note=f"loss {losses[0]:.3f} to {losses[-1]:.3f}, float32 to {expected[-1]:.3f}")
        for feature in variant.features:
            bench.correct.setdefault(feature, off <= bench.curve_limit)


def labels(bench):
    """Pseudo labels of the network trained in float32: by 16 bits and by float32, both passes, pixel by pixel."""
    exact = None
    for kind in ("fp32", *bench.kinds):
        with tf32(kind != "fp32"):
            store = bench.images.fresh(f"labels-{kind}")
            machine = bench.images.machine(bench.device, replace(bench.default, kind=kind))
            first_pass(bench, copy_of(bench.trained), machine, bench.images.whole(machine, labels=False), store)
            second_pass(bench, bench.images.names, store, None)
        found = [store.read_pseudo_label(name)[0] for name in bench.images.names]
        exact = exact or found
        if kind != "fp32":
            different = sum(int((one != other).sum()) for one, other in zip(found, exact))
            bench.row(f"pixels labelled otherwise in {kind} than in float32", "%",
                      100 * different / sum(one.size for one in exact), target=("<=", LABELS_OFF[kind]),
                      note="of a network after a few steps, whose confidences lie close together")


def first_pass(bench, model, machine, loader, store):
    """The library's first pass over ``loader``; its histogram stays in ``bench``."""
    forward = machine.forward(model, FORMAT)
    bench.histogram = labeling.predict(model, loader, bench.images.names, store, forward, bench.device)


def second_pass(bench, names, store, previous):
    """The library's second pass over the images ``names``."""
    labeling.write_pseudo_labels(names, bench.size.test_size, store, previous,
                                 bench.histogram.thresholds(RATIO), labeling.LabelingRules(RATIO, BETA), bench.device)


def overflow(bench):
    """A scale at which everything overflows: the step must be skipped, counted, and leave no trace."""
    if not bench.on_gpu:
        return
    subject = Subject(bench.size, bench.device)
    subject.run(bench.batches[:2])
    subject.precision.scaler._scale.fill_(2.0**120)
    before = [parameter.detach().clone() for parameter in subject.model.active_parameters()]
    skipped = int(subject.precision.skipped.item())
    subject.run(bench.batches[:1])
    changed = sum(not torch.equal(now, then) for now, then in zip(subject.model.active_parameters(), before))
    bench.row("forced overflow: steps counted as skipped", "", int(subject.precision.skipped.item()) - skipped,
              target=(">=", 1))
    bench.row("forced overflow: parameters that changed all the same", "", changed, target=("<=", 0))
