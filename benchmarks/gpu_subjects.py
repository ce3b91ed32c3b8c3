"""What the GPU benchmark measures: the library's own Trainer, labelling and validation, on generated images."""

import contextlib
import itertools
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torchvision.models.resnet import Bottleneck

from benchmarks import pictures
from benchmarks.loading import write_pseudo_labels
from data import batches, datasets
from dmt.session import Machine
from dmt.training import Recipe, Trainer
from models import deeplab_v2
from models.fused_norm import works
from models.input_format import input_format
from utils.precision import Precision
from utils.processors import loaders

FORMAT = input_format(coco=True)
NEVER = 10**9


@dataclass(frozen=True)
class Size:
    """How large everything is: VOC's recipe, or something tiny that only tries the paths."""

    backbone: str = "resnet101"
    classes: int = 21
    crop: tuple = (321, 321)
    test_size: tuple = (505, 505)
    image: tuple = (375, 500)
    batch: int = 8
    other_batches: tuple = (16, 32)
    images: int = 128
    steps: int = 10  # a timing
    rounds: int = 5  # timings of each candidate
    curve: int = 60  # steps of the short trainings
    matrix: int = 8192
    copied: int = 2**31


TINY = Size("small", 8, (17, 17), (33, 33), (24, 32), 2, (3,), 6, 2, 1, 2, 64, 2**16)


@dataclass(frozen=True)
class Variant:
    """One way to run the network; the defaults are those of a launcher on a GPU."""

    kind: str = "fp16"
    channels_last: bool = True
    fused: bool = True
    compiled: bool = False
    graphs: bool = True
    norm: bool = True  # normalization, sum and ReLU at once, which only goes with graphs

    @property
    def fuses_norm(self):
        """Whether they are fused."""
        return self.norm and self.graphs and not self.compiled

    @property
    def features(self):
        """What may make it wrong."""
        return {self.kind} | {name for name, is_so in (("compiled", self.compiled), ("graphs", self.graphs),
                                                       ("norm", self.fuses_norm)) if is_so}

    @property
    def flags(self):
        """The options of main.py that give it, as far as there are any."""
        words = [] if self.kind == "fp32" else ["--mixed-precision"]
        words += ["--amp-dtype=bf16"] if self.kind == "bf16" else []
        return " ".join(words + ["--compile"] * self.compiled + ["--no-cuda-graphs"] * (not self.graphs)
                        + ["--no-fused-norm"] * (not self.norm))


class Silent:
    """A stage that keeps its metrics in memory and writes nothing."""

    name = "benchmark"

    def __init__(self):
        self.lines = []

    def log_metrics(self, **values):
        self.lines.append(values)


class Subject:
    """A Trainer of one variant at one batch size, a seventh of whose samples are labelled."""

    def __init__(self, size, device, variant=Variant(), batch=None, model=None, log=NEVER, lr=0.001):
        self.size, self.device, self.variant = size, torch.device(device), variant
        self.batch = batch or size.batch
        model = network(size, device) if model is None else model
        if variant.compiled:
            model.compile_blocks()
        model.fused = variant.fuses_norm and works(self.device)
        if not variant.channels_last:  # or the convolutions would follow the input
            model.to(memory_format=torch.contiguous_format)
            model.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
        self.model, self.stage, self.steps = model, Silent(), steps(self.batch)
        recipe = Recipe(lr, gamma1=5, gamma2=5, val_num_steps=NEVER, log_num_steps=log, save_num_steps=NEVER)
        self.precision = Precision(variant.kind, device)
        self.trainer = Trainer(model, recipe, self.steps, FORMAT, self.precision, device, self.stage, None, {}, {},
                               save=False, graphs=variant.graphs)
        if not variant.fused:
            group = self.trainer.optimizer.defaults
            self.trainer.optimizer = torch.optim.SGD(model.active_parameters(), lr, group["momentum"],
                                                     weight_decay=group["weight_decay"])

    def run(self, some):
        """Train on ``some`` batches."""
        self.trainer.run(some)


def network(size, device, seed=0):
    """A network with random weights on ``device``, whose residual branches are weak, as those of trained ones are.

    At full strength they double the features' variance in each of 33 blocks, and rounding grows with it: in train mode
    16 bits would be off by a fifth of the logits, which says nothing about networks that anyone uses.
    """
    torch.manual_seed(seed)
    with torch.device(device):
        model = deeplab_v2(size.classes, size.backbone)
    for module in model.modules():
        if isinstance(module, Bottleneck):
            torch.nn.init.constant_(module.bn3.weight, 0.2)
    return model.to(memory_format=torch.channels_last)


def copy_of(model):
    """A network of the same weights, of which nothing has been compiled."""
    with torch.device(next(model.parameters()).device):
        fresh = deeplab_v2(model.num_classes, model.backbone_name, model.aspp_branches)
    fresh.load_state_dict(model.state_dict())
    return fresh.to(memory_format=torch.channels_last)


def steps(batch):
    """Steps of so many images, one of eight labelled, that no measurement comes to their end."""
    labeled = max(1, batch // 8)
    kinds = ((datasets.PSEUDO, batch - labeled), (datasets.LABELED, labeled))
    return batches.Steps([batches.Stream(kind, 4096 * count, count, 0) for kind, count in kinds], epochs=1000)


class Images:
    """Generated images of VOC's size with masks and pseudo labels, and loaders over them."""

    def __init__(self, size, work):
        self.size, self.work = size, Path(work) / "gpu"
        self.spec, self.root, self.names = pictures.generated(work, size.images, size.image)
        self.spec = replace(self.spec, crop=size.crop, test_size=size.test_size)
        self.store = write_pseudo_labels(self.spec, self.root, self.names, self.work / "pseudo")

    def machine(self, device, variant=Variant(), workers=None):
        """The ``dmt.session.Machine`` that main.py would make."""
        device = torch.device(device)
        workers = loaders() if workers is None else workers
        return Machine(device, Precision(variant.kind, device), workers, self.size.batch, variant.compiled,
                       variant.graphs, variant.norm)

    def training(self, machine, batch):
        """A loader of training batches, without end, as a training stage has it."""
        data = datasets.TrainingImages(self.spec, self.root, self.size.crop, 0, self.names, self.names, self.store)
        return machine.loader(data, data.collate, batch_sampler=Endless(steps(batch), len(self.names)))

    def whole(self, machine, labels, repeats=1):
        """A loader of the whole images, ``repeats`` times over; with masks for validation."""
        data = datasets.WholeImages(self.spec, self.root, self.names, "train", self.size.test_size, labels)
        indices = list(range(len(self.names))) * repeats
        return machine.loader(data, datasets.collate_whole, batch_sampler=[
            indices[start:start + self.size.batch] for start in range(0, len(indices), self.size.batch)])

    def fresh(self, name):
        """An empty folder for pseudo labels."""
        shutil.rmtree(self.work / name, ignore_errors=True)
        return type(self.store)(self.work / name, self.spec.palette)


class Endless:
    """The batches of ``Steps`` with their indices folded into the images that are there."""

    def __init__(self, steps, count):
        self._steps, self._count = steps, count

    def __len__(self):
        return len(self._steps)

    def __iter__(self):
        for batch in self._steps:
            yield [(kind, pass_number, index % self._count) for kind, pass_number, index in batch]


@contextlib.contextmanager
def tf32(allowed):
    """Whether float32 convolutions may round their factors to 10 bits on the way, as torch lets them on a GPU."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def cycled(few, count):
    """``count`` batches, the ``few`` of a list over and over."""
    return list(itertools.islice(itertools.cycle(few), count))
