"""A network ready to predict, from its file alone: a checkpoint or an exported ONNX file."""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from data.specs import built_in_names, load_spec
from dmt.memory import largest_map
from dmt.prediction import for_inference, network_maps
from models.deeplab import deeplab_v2
from models.description import UNKNOWN, Description, describe_checkpoint
from models.encoder import check_size
from models.exported import OnnxNetwork
from models.input_format import COCO
from utils.checkpoints import load_checkpoint, load_model
from utils.errors import UserError
from utils.precision import Precision

_NAMES, _COLORS = "names", "colours"  # how the assumptions of a description about them begin


@dataclass(frozen=True)
class Arm:
    """A network and what it needs to be used.

    ``network`` maps normalized images (N, 3, H, W) float32 on ``device`` to logits (N, C, h, w).
    """

    path: Path
    network: Callable
    description: Description
    device: torch.device
    precision: Precision

    @property
    def num_classes(self):
        """Number of classes."""
        return self.description.num_classes

    @property
    def named(self):
        """Whether the file names the classes."""
        return not any(words.startswith(_NAMES) for words in self.description.assumed)

    @functools.cached_property
    def bytes_a_pixel(self):
        """What a forward pass in float32 takes for each pixel, measured on a CPU: 5 of its largest maps."""
        backbone = self.description.backbone
        return 5 * largest_map("resnet101" if backbone == UNKNOWN else backbone, self.description.output_stride)

    @functools.cached_property
    def _maps(self):
        computes = self.network
        if isinstance(computes, torch.nn.Module):
            computes = for_inference(computes, self.precision, self.device)
        return network_maps(computes, self.description.input_format, self.precision)

    def logits(self, images):
        """``images`` (N, H, W, 3) uint8 BGR -> logits (N, C, h, w)."""
        return self._maps(images.to(self.device, non_blocking=True))


def load_arm(path, device, precision, spec=None, coco=None, aspp_branches=None):
    """The ``Arm`` in the file ``path``, in eval mode on ``device`` (an ONNX file always runs on the CPU).

    ``spec`` is the dataset's; its classes must be the network's. ``coco`` and ``aspp_branches`` answer for an old
    checkpoint, which does not say. Raises ``UserError``.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"the checkpoint {path} is missing; correct the path")
    if path.suffix.lower() == ".onnx":
        network, device, precision = OnnxNetwork(path), torch.device("cpu"), Precision("fp32", "cpu")
        description = network.description
        says = description.values()
    else:
        says = load_checkpoint(path)
        description = describe_checkpoint(says, path, None if "input_format" in says else coco,
                                          None if "aspp_branches" in says else aspp_branches)
        network = deeplab_v2(description.num_classes, description.backbone, description.aspp_branches,
                             description.output_stride)
        load_model(network, path)
        network = network.to(device, memory_format=torch.channels_last).eval()
    if coco and "input_format" in says and description.input_format != COCO:
        print(f"note: {path} was trained with the input format {description.input_format.name}; --coco is left aside "
              "for it", file=sys.stderr)
    if spec is not None:
        check_classes(description, spec, path, named="class_names" in says)
    return Arm(path, network, _completed(description, spec, says), torch.device(device), precision)


def check_classes(description, spec, path, named=True):
    """Raise ``UserError`` unless the network's classes are those of ``spec``; only their number if not ``named``."""
    names, own = list(description.class_names), list(spec.class_names)
    if len(names) != len(own):
        raise UserError(f"{path} was trained for {len(names)} classes, but {spec.name} has {len(own)}; give a "
                        f"checkpoint of {spec.name} or the dataset of this checkpoint")
    other = next(((one, two) for one, two in zip(names, own) if one != two), None)
    if named and other:
        raise UserError(f"{path} was trained for other classes than those of {spec.name}: its class "
                        f"{names.index(other[0])} is {other[0]!r}, not {other[1]!r}; give a checkpoint of {spec.name} "
                        "or the dataset of this checkpoint")


def common_description(arms):
    """The ``Description`` of the arm that says most about the classes, which all ``arms`` must have to decide together.

    Raises ``UserError`` when they differ; old checkpoints that do not name them are judged by their number.
    """
    best = min(arms, key=lambda arm: len(arm.description.assumed))
    for arm in arms:
        one, other = arm.description, best.description
        if one.num_classes != other.num_classes or arm.named and one.class_names != other.class_names:
            raise UserError(f"{best.path} and {arm.path} have different classes and cannot decide together; give "
                            "checkpoints of one dataset")
    return best.description


def common_sides(arms):
    """(every, plus): all ``arms`` take images whose sides are k · every + plus (see ``models.encoder.Traits``)."""
    found = [arm.description.traits for arm in arms]
    steps = [one.output_stride for one in found if one.exact]
    return (math.lcm(*steps), 0) if steps else max((one.output_stride, one.plus) for one in found)


def check_test_size(arms, size):
    """Raise ``UserError`` when one of ``arms`` does not take images of the test size (height, width)."""
    for arm in arms:
        check_size(size, arm.description.backbone, arm.description.traits, "--test-size")


def built_in_spec(description):
    """The built-in spec that a network was trained for: that of its dataset's name with the same classes; or None."""
    if description.name not in built_in_names():
        return None
    spec = load_spec(description.name)
    return spec if spec.class_names == description.class_names else None


def _completed(description, spec, says):
    """``description`` with what its file does not say, from ``spec`` or else from the built-in one of its dataset.

    Colours are a matter of taste: those of a ``spec`` that was given win.
    """
    if spec is None and "palette" not in says:
        spec = built_in_spec(description)
    if spec is None:
        return description
    known = {"dataset": spec.name, "class_names": spec.class_names, "background": spec.background,
             "ignore": spec.ignore, "test_size": spec.test_size, "test_by": spec.test_by}
    lacking = {"name" if key == "dataset" else key: value for key, value in known.items() if key not in says}
    return dataclasses.replace(description, **lacking, palette=spec.palette, assumed=tuple(
        words for words in description.assumed if not words.startswith((_NAMES, _COLORS))))
