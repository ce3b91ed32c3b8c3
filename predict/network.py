"""Networks ready to predict, from their files alone: checkpoints or exported ONNX files, one or several together."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data.images import read_image
from data.specs import BUILT_IN_NAMES, DatasetSpec, load_spec
from dmt.prediction import Forward
from dmt.session import Machine, choose_device
from models.deeplab import COCO, deeplab_v2
from models.description import NAMES, Description, describe, said_by_checkpoint
from predict import decide
from predict.files import reason
from predict.onnx import OnnxNetwork
from predict.protocol import ORIGINAL, PAPERS, SLIDING, STRIDE, Protocol
from utils.checkpoints import load_checkpoint, load_model
from utils.errors import UserError
from utils.files import fits
from utils.precision import Precision

_SIDE = range(1, (1 << 16) + 1)


def load(*paths, protocol=ORIGINAL, dataset=None, coco=None, aspp_branches=None, device=None, precision=None, **shown):
    """The ``Ensemble`` of the networks in the files ``paths``: checkpoints (.pt, .safetensors) or exported .onnx files.

    ``protocol`` is how images are shown to them, original, papers or sliding; further arguments of ``choose_protocol``
    may follow, as in ``load("a.pt", "b.pt", flip=True, scales=(0.75, 1.0))``. The classes must be those of ``dataset``,
    if it is given: a name, a YAML file, or a ``DatasetSpec``. ``coco`` (one answer, or one for each file) and
    ``aspp_branches`` answer for old checkpoints, which do not say it. ``device`` is the GPU if there is one; ONNX files
    run on the CPU. ``precision`` is a ``utils.precision.Precision``, by default float32. Raises ``UserError``.
    """
    if not paths:
        raise UserError("no network to load; name its file")
    spec = dataset if dataset is None or isinstance(dataset, DatasetSpec) else load_spec(dataset)
    device = device if isinstance(device, torch.device) else choose_device(device)
    precision = precision or Precision("fp32", device)
    answers = coco if isinstance(coco, (list, tuple)) else [coco] * len(paths)
    members = [load_member(path, device, precision, spec, answer, aspp_branches)
               for path, answer in zip(paths, answers, strict=True)]
    description = common_description(members)
    return Ensemble(members, description, choose_protocol(members, description, spec, protocol, **shown))


class Member:
    """The network of one file, and what it needs to be used: its ``Description``, and its ``torch.device``.

    ``network`` maps normalized images (N, 3, H, W) float32 on ``device`` to logits (N, C, h, w).
    """

    def __init__(self, path, network, description, device, precision):
        self.path, self.network, self.description, self.device = path, network, description, device
        machine = Machine(device, precision, workers=0, batch_size=1)
        self._forward = Forward(network, description.input_format, machine)

    def logits(self, images):
        """``images`` (N, H, W, 3) uint8 BGR -> logits (N, C, h, w)."""
        return self._forward(images.to(self.device, non_blocking=True))


@dataclass(frozen=True)
class Ensemble:
    """One trained network, or several that decide together by the mean of their probabilities; made by ``load``."""

    members: list
    description: Description
    protocol: Protocol

    @property
    def names(self):
        """Names of the classes, a tuple."""
        return self.description.class_names

    @property
    def palette(self):
        """Colours of the classes, a tuple of RGB triples from 0 to 255."""
        return self.description.palette

    def predict(self, image):
        """(classes (H, W) uint8, confidence (H, W) float32, the winner's probability, from 0 to 1) of an image.

        ``image`` is a path, an array (H, W, 3) uint8 in RGB order, or a PIL image. Raises ``UserError``.
        """
        (_, _, (decision,)), = self.predict_all([(None, _bgr(image))])
        return decision.classes.cpu().numpy(), decision.confidence.cpu().numpy()

    def predict_all(self, pictures, **options):
        """``predict.decide.predict_all`` with these networks: many images, in batches."""
        return decide.predict_all(pictures, self.members, self.protocol, **options)


def _bgr(image):
    if isinstance(image, (str, Path)):
        try:
            return read_image(Path(image).expanduser())
        except UserError as error:
            raise UserError(reason(error)) from error
    if hasattr(image, "convert"):
        image = _of_pil(image)
    if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
            and image.size):
        what = f"an array {image.shape} of {image.dtype}" if isinstance(image, np.ndarray) else f"{image!r:.60}"
        raise UserError(f"an image must be a path, a PIL image or an array (H, W, 3) of uint8, not {what}")
    return np.ascontiguousarray(image[..., ::-1])


def _of_pil(image):
    """The (H, W, 3) uint8 RGB of a PIL image; of 16 bits the upper 8, as ``data.images.read_image`` has it."""
    if image.mode in ("I", "F"):
        raise UserError(f"a PIL image of mode {image.mode} has 32 bits a channel, of which nobody can say what is "
                        "white; give one of 8 or 16 bits")
    try:
        if image.mode.startswith("I;16"):
            return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=-1)
        return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise UserError(f"the PIL image does not decode ({error}); give a whole one") from error


# --- one file ---------------------------------------------------------------------------------------------------------


def load_member(path, device, precision, spec=None, coco=None, aspp_branches=None):
    """The ``Member`` in the file ``path``, in eval mode on ``device``; arguments as for ``load``."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"the checkpoint {path} is missing; correct the path")
    exported = path.suffix.lower() == ".onnx"
    if exported:
        network, device, precision = OnnxNetwork(path), torch.device("cpu"), Precision("fp32", "cpu")
        values = network.values
    else:
        values = said_by_checkpoint(load_checkpoint(path), path)
    if coco and values.get("input_format", COCO) != COCO:
        print(f"note: {path} was trained with the input format {values['input_format'].name}; --coco is left aside "
              "for it", file=sys.stderr)
    if spec is not None:
        _check_classes(values, spec, path)
    description = describe(values, spec, coco, aspp_branches)
    if spec is None and "palette" not in values:
        description = describe(values, built_in_spec(description), coco, aspp_branches)
    if not exported:
        network = deeplab_v2(description.num_classes, description.backbone, description.aspp_branches,
                             description.output_stride)
        load_model(network, path)
        network = network.to(device, memory_format=torch.channels_last).eval()
    return Member(path, network, description, torch.device(device), precision)


def _check_classes(values, spec, path):
    """Raise ``UserError`` unless the network's classes are those of ``spec``; only their number if it names none."""
    count, own = values["num_classes"], list(spec.class_names)
    names = list(values.get("class_names", own))
    if count != len(own):
        raise UserError(f"{path} was trained for {count} classes, but {spec.name} has {len(own)}; give a "
                        f"checkpoint of {spec.name} or the dataset of this checkpoint")
    for index, (name, other) in enumerate(zip(names, own)):
        if name != other:
            raise UserError(f"{path} was trained for other classes than those of {spec.name}: its class {index} is "
                            f"{name!r}, not {other!r}; give a checkpoint of {spec.name} or the dataset of this "
                            "checkpoint")


def built_in_spec(description):
    """The built-in spec that a network was trained for: that of its dataset's name with the same classes; or None."""
    spec = load_spec(description.name) if description.name in BUILT_IN_NAMES else None
    return spec if spec and spec.class_names == description.class_names else None


# --- several ----------------------------------------------------------------------------------------------------------


def common_description(members):
    """The ``Description`` of the member that says most about the classes, which all must have to decide together.

    Raises ``UserError`` when they differ; old checkpoints that do not name them are judged by their number.
    """
    best = min(members, key=lambda member: len(member.description.assumed))
    for member in members:
        one, other = member.description, best.description
        if one.num_classes != other.num_classes or NAMES not in one.assumed and one.class_names != other.class_names:
            raise UserError(f"{best.path} and {member.path} have different classes and cannot decide together; give "
                            "checkpoints of one dataset")
    return best.description


def choose_protocol(members, description, spec, kind, test_size=None, test_by=None, window=None, stride=STRIDE,
                    scales=(1.0,), flip=False):
    """The ``Protocol`` of this ``kind`` for ``members``; what is None is as they were trained. Raises ``UserError``.

    Windows are by default of the size of their training crop, else that of ``spec``, else the test size.
    """
    if kind not in (PAPERS, ORIGINAL, SLIDING):
        raise UserError(f"the protocol {kind!r} is none of {PAPERS}, {ORIGINAL} and {SLIDING}")
    if kind != SLIDING and (window is not None or stride != STRIDE):
        raise UserError("--window and --stride are for --protocol sliding; add it, or leave them out")
    test_size = test_size or description.test_size
    window = window or description.facts.get("recipe", {}).get("crop") or (spec and spec.crop) or test_size
    if kind == PAPERS and test_size is None:
        raise UserError("--protocol papers: the checkpoint says no test size; give --test-size H W or --dataset")
    if kind == SLIDING and window is None:
        raise UserError("--protocol sliding: the checkpoint says neither its crop nor its test size; give --window H W")
    for name, size in (("test_size", test_size), ("window", window)):
        if size is not None and not fits(size, [_SIDE, _SIDE]):
            raise UserError(f"{name} must be (height, width) in pixels, not {size!r}")
    if not (fits(scales, [float]) and all(1 / 64 <= scale <= 64 for scale in scales)):
        raise UserError(f"--scales must be numbers from 1/64 to 64, not {scales!r}")
    if not (fits(stride, float) and 0 < stride <= 1):
        raise UserError(f"--stride must be a number above 0 and up to 1, not {stride!r}")
    if len(set(scales)) < len(scales):
        raise UserError(f"--scales {' '.join(f'{scale:g}' for scale in scales)}: give each scale once")
    traits = [member.description.traits for member in members]
    for member in members if kind == PAPERS else ():  # the other protocols' sizes are of their own making
        member.description.traits.check_size(test_size, member.description.backbone, "--test-size")
    steps = [one.output_stride for one in traits if one.exact]
    every, plus = (math.lcm(*steps), 0) if steps else max((one.output_stride, one.plus) for one in traits)
    return Protocol(kind, test_size and tuple(test_size), test_by or description.test_by or "pad",
                    window and tuple(window), stride, tuple(scales), flip, every, plus)
