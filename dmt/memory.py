"""How much GPU memory training and labelling take at their fullest, estimated without a GPU, and what fits into less.

The estimate depends on the work alone, never on what is free at the moment: a stage that goes on picks what it picked.
"""

import bisect
import dataclasses
import functools
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from models.deeplab import deeplab_v2, traits
from utils.errors import UserError

# GPU memory that no tensor of ours takes: convolution workspaces, and 10 % for gaps between tensors.
_WORKSPACE, _GAPS = 2**29, 1.1
_LOGIT_MAPS = 3  # of image size, float32: logits, softmax (its gradient takes its place), what upsampling adds
_PASSING_MAPS = 4  # network maps alive at once in a forward pass without backward: a block's input, its parts, its sum
_FEW, _MORE = 2, 3  # images that tell what one more takes; batch normalization of a tiny crop needs more than one


@dataclass(frozen=True)
class Workload:
    """What is to be run, as far as memory and disk depend on it.

    ``batch_size`` is the number of images a training step, 0 where nothing is trained. They are computed in
    ``accumulate`` parts, each by ``processes`` processes; or else in the fewest parts that fit into ``max_memory`` GB.
    A chain of ``rounds`` rounds of ``arms`` arms comes after a supervised round 0.
    """

    output_dir: Path
    device: str = "cpu"
    backbone: str = "resnet101"
    aspp_branches: int = 2
    mixed_precision: bool = False
    batch_size: int = 8
    batch_size_labeling: int = 8
    accumulate: int = 1
    processes: int = 1
    max_memory: float | None = None
    arms: int = 2
    rounds: int = 5
    output_stride: int | None = None


def memory_bytes(spec, work):
    """(bytes of training or None, bytes of labelling and validation): estimates for each process at its fullest.

    Training keeps parameters, gradients, momentum and everything that backward will need of the images that are
    computed at once, and adds the maps of the loss. ``work`` is the ``Workload``.
    """
    images = images_at_once(work)
    pixels = images * spec.crop[0] * spec.crop[1]
    parameters, kept, _ = _network_memory(spec, work, images, spec.crop) if pixels else (0, 0, 0)
    training = parameters * 4 * 3 + kept + _LOGIT_MAPS * 4 * pixels * spec.num_classes
    parameters, _, largest = _network_memory(spec, work, work.batch_size_labeling, spec.test_size)
    labeling = (parameters * 4 * (3 if pixels else 1) + _PASSING_MAPS * largest
                + _LOGIT_MAPS * 4 * spec.test_size[0] * spec.test_size[1] * spec.num_classes)
    if work.mixed_precision:  # a copy of every weight in 16 bits
        training, labeling = training + 2 * parameters, labeling + 2 * parameters
    return int(_GAPS * training) + _WORKSPACE if pixels else None, int(_GAPS * labeling) + _WORKSPACE


def images_at_once(work):
    """The largest share that a process has of a part of a training batch."""
    return math.ceil(math.ceil(work.batch_size / work.accumulate) / work.processes)


def _network_memory(spec, work, count, size):
    """(number of parameters, bytes that a forward pass of ``count`` images keeps for backward, the largest of them)."""
    parameters, few, more = _passes(spec.num_classes, work.backbone, work.aspp_branches, work.output_stride,
                                    work.mixed_precision, tuple(size))
    return parameters, *(one + (count - _FEW) * (other - one) for one, other in zip(few, more))


@functools.cache
def _passes(num_classes, backbone, aspp_branches, output_stride, mixed_precision, size):
    """The number of parameters; for ``_FEW`` and for ``_MORE`` images (bytes kept for backward, the largest of them).

    The network runs without data, on torch's meta device. Every tensor that it keeps grows by the same for each image.
    """
    dtype = torch.float16 if mixed_precision else torch.float32
    network = meta_network(num_classes, backbone, aspp_branches, output_stride).to(dtype)
    own = {tensor.untyped_storage()._cdata for tensor in network.state_dict(keep_vars=True).values()}
    found = []
    for count in (_FEW, _MORE):
        kept = {}  # by address, for several operations may keep one tensor; held here, so that no address comes again

        def keep(tensor, kept=kept):
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                kept[storage._cdata] = storage

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda _: None):
            network(torch.empty(count, 3, *size, dtype=dtype, device="meta"))
        sizes = [storage.nbytes() for storage in kept.values()]
        found.append((sum(sizes), max(sizes)))
    return sum(parameter.numel() for parameter in network.parameters()), *found


def meta_network(num_classes, backbone, aspp_branches, output_stride=None):
    """The network without values: shapes only."""
    with torch.device("meta"):
        return deeplab_v2(num_classes, backbone, aspp_branches, output_stride)


def largest_map(backbone, output_stride):
    """Bytes of float32 for each pixel of an image that the largest of the maps in a forward pass takes."""
    side = 16 * traits(backbone, output_stride).output_stride
    _, (_, largest), _ = _passes(1, backbone, 2, output_stride, False, (side, side))
    return largest / (_FEW * side * side)


# --- what fits --------------------------------------------------------------------------------------------------------


def fit(spec, work, known=None):
    """``work`` with the fewest parts of a batch whose estimate is at most ``work.max_memory`` GB; without it, ``work``.

    An earlier start of the same stage, perhaps with fewer processes, has picked ``known`` parts: that stays if it fits.
    Raises ``UserError`` where that needs more parts than a batch has images, where labelling or validation do not fit,
    and where ``work.accumulate`` is more than there are images.
    """
    if work.max_memory is None:
        if 0 < work.batch_size < work.accumulate:
            raise UserError(f"--accumulate {work.accumulate}: a batch of {work.batch_size} images "
                            "(--batch-size-labeled, with pseudo labels and --batch-size-pseudo) cannot be cut into "
                            f"more than {work.batch_size} parts; give at most --accumulate {work.batch_size}")
        return work
    limit, asked = work.max_memory * 1e9, f"--max-memory {work.max_memory:g}"
    mixed = "" if work.mixed_precision else ", or add --mixed-precision"

    def labeling(count):
        return memory_bytes(spec, dataclasses.replace(work, batch_size_labeling=count))[1]

    def training(parts):
        return memory_bytes(spec, dataclasses.replace(work, accumulate=parts))[0]

    # Both are searched in ascending order of whether they fit.
    count = work.batch_size_labeling
    if labeling(count) > limit:
        needs = (f"{asked}: labelling and validation of {in_pixels(count, spec.test_size)} need about "
                 f"{gb(labeling(count))}")
        most = bisect.bisect_left(range(1, count), True, key=lambda fewer: labeling(fewer) > limit)
        if most:
            raise UserError(f"{needs}; the largest batch that fits is --batch-size-labeling {most}")
        single = f" and even --batch-size-labeling 1 needs about {gb(labeling(1))}" if count > 1 else ""
        raise UserError(f"{needs}{single}; give more --max-memory or a smaller --test-size{mixed}")
    if not work.batch_size:
        return work
    parts = 1 + bisect.bisect_left(range(1, work.batch_size), True, key=lambda parts: training(parts) <= limit)
    if known and parts < known <= work.batch_size:
        parts = known
    if training(parts) > limit:
        fewest = math.ceil(work.batch_size / work.processes)
        raise UserError(f"{asked}: training needs about {gb(training(parts))} even with {in_pixels(1, spec.crop)} at "
                        f"once (--accumulate {fewest}); give more --max-memory or a smaller --crop-size{mixed}")
    return dataclasses.replace(work, accumulate=parts)


def estimate(spec, work):
    """What ``memory_bytes`` says, in words, with what training would take in one part where there are several."""
    training, labeling = memory_bytes(spec, work)
    said = []
    if training is not None:
        said.append(f"about {gb(training)} for training {in_pixels(images_at_once(work), spec.crop)}")
        if work.accumulate > 1:
            whole = memory_bytes(spec, dataclasses.replace(work, accumulate=1))[0]
            said[0] += f" at once (batches of {work.batch_size} in {work.accumulate} parts; whole: about {gb(whole)})"
    said.append(f"about {gb(labeling)} for labelling {in_pixels(work.batch_size_labeling, spec.test_size)}")
    return ", ".join(said) + ("" if work.max_memory is None else f", within --max-memory {work.max_memory:g} GB")


def in_pixels(count, size):
    """``count`` images of ``size`` in words."""
    return f"{count} x {size[0]} x {size[1]} pixels"


def gb(count):
    """``count`` bytes in words."""
    return f"{count / 1e9:.2f} GB"
