"""Which network: what its file says about it, enough to use it alone, as plain values; and the network built.

Checkpoints carry these values beside the weights, exported files in their metadata. Old checkpoints carry fewer or
none; what can be seen from the weights is, and the rest is assumed and said.
"""

import reprlib
import sys
from dataclasses import dataclass, field

import torch

from models.deeplab import BACKBONES, COCO, IMAGENET, OWN, PREFIX, InputFormat, deeplab_v2, traits
from models.weights import load_imagenet_weights
from utils.checkpoints import HEAD, load_checkpoint, load_model
from utils.errors import UserError
from utils.files import fits

INPUT_FORMATS = {IMAGENET.name: IMAGENET, COCO.name: COCO}
NAMES = "names of the classes"  # in the words of ``Description.assumed``

_SIDE, _FACTS = range(1, (1 << 16) + 1), ("recipe", "lists", "software", "miou", "iou", "step")
KINDS = {  # key -> what its value can be (see utils.files.fits); the last six are where it comes from
    "backbone": str, "output_stride": range(1, 257), "aspp_branches": (2, 4), "input_format": (*INPUT_FORMATS, OWN),
    "mean": [float] * 3, "std": [float] * 3, "num_classes": range(1, 256), "class_names": [str],
    "palette": [[range(256)] * 3], "background": (None, range(255)), "ignore": (None, range(1 << 16)), "dataset": str,
    "test_size": [_SIDE, _SIDE], "test_by": str, "recipe": dict, "lists": dict, "software": dict,
    "miou": (None, float), "iou": (None, [(None, float)]), "step": range(1 << 40)}


def said(values, path):
    """The known entries of ``values``, what the file ``path`` says about its network; others are left out.

    ``input_format`` becomes the ``InputFormat`` of that name. Raises ``UserError`` for an entry that cannot be meant:
    the file was damaged, forged, or made by a newer version.
    """
    known = {key: values[key] for key in KINDS if key in values}
    for key, value in known.items():
        if not fits(value, KINDS[key]) or key == "backbone" and value not in BACKBONES and not value.startswith(PREFIX):
            raise UserError(f"{path} says of its network {key} = {reprlib.repr(value)}, which cannot be; the file is "
                            "damaged or was made by a newer version of this software: get it again or use that version")
    form = known.get("input_format")
    if form == OWN and not {"mean", "std"} <= known.keys():
        raise UserError(f"{path} does not say the mean and std of its input; the file is damaged: get it again")
    if form is not None:
        known["input_format"] = INPUT_FORMATS.get(form) or InputFormat(
            form, True, 1.0, tuple(known["mean"]), tuple(known["std"]))
    count = known.get("num_classes")
    for key in ("class_names", "palette"):
        if count and len(known.get(key, range(count))) != count:
            raise UserError(f"{path} has {count} classes but {key} for {len(known[key])}; the file is damaged: "
                            "get it again")
    return known


@dataclass(frozen=True)
class Description:
    """A network and what it needs to be used: classes, input, size; what a checkpoint must say to be used with it.

    ``palette`` holds an RGB triple (0 to 255) a class. ``test_size`` (height, width) is the size that images are
    brought to, in the way ``test_by`` says (see ``data.specs.DatasetSpec``); both are None where nobody knows.
    ``facts`` is where it comes from: recipe, digests of the data lists, versions, validation result. ``assumed`` is
    what the file did not say, in words.
    """

    name: str  # of the dataset
    class_names: tuple
    palette: tuple
    background: int | None
    ignore: int | None
    backbone: str
    aspp_branches: int
    input_format: InputFormat
    test_size: tuple | None
    test_by: str | None
    output_stride: int | None = None  # None: that of the backbone
    facts: dict = field(default_factory=dict)
    assumed: tuple = ()

    @property
    def num_classes(self):
        """Number of classes."""
        return len(self.class_names)

    @property
    def traits(self):
        """The ``models.deeplab.Traits`` of its backbone."""
        return traits(self.backbone, self.output_stride)

    def identity(self):
        """Plain values that tell networks apart. The built-in ones have one stride and formats that a name tells."""
        form = self.input_format
        values = {"backbone": self.backbone, "aspp_branches": self.aspp_branches, "input_format": form.name,
                  "num_classes": self.num_classes}
        if self.backbone.startswith(PREFIX):
            values.update(output_stride=self.traits.output_stride, mean=list(form.mean), std=list(form.std))
        return values

    def values(self):
        """The description as plain values, as checkpoints and exported files carry it; ``said`` reads them."""
        known = {
            "dataset": self.name, "num_classes": self.num_classes, "class_names": list(self.class_names),
            "palette": [list(color) for color in self.palette], "background": self.background, "ignore": self.ignore,
            **self.identity(), "test_size": list(self.test_size) if self.test_size else None,
            "test_by": self.test_by, **self.facts}
        return {key: value for key, value in known.items() if value is not None or key in ("background", "ignore")}

    def build(self, device, checkpoint=None, weights=None, seed=1):
        """The network on ``device``.

        From the file ``checkpoint``; or else with the backbone weights ``weights`` (see
        ``models.weights.load_imagenet_weights``) and a head drawn from ``seed``. Raises ``UserError``.
        """
        torch.manual_seed(seed)
        model = deeplab_v2(self.num_classes, self.backbone, self.aspp_branches, self.output_stride)
        if checkpoint is not None:
            self._check(checkpoint, load_model(model, checkpoint))
        elif self.input_format == COCO and not weights:
            raise UserError("--coco without --continue-from: give the COCO weights (prepare_coco.sh makes "
                            "voc_coco_resnet101.pt and city_coco_resnet101.pt), or --weights none to start from "
                            "nothing")
        else:
            load_imagenet_weights(model, weights)
        return model.to(device, memory_format=torch.channels_last)

    def _check(self, checkpoint, content):
        """Refuse a checkpoint that says it is of another network; warn of another input format."""
        content = said(content, checkpoint)
        for key in ("backbone", "output_stride", "aspp_branches"):
            own, option = self.identity().get(key), f"--{key.replace('_', '-')}"
            if content.get(key, own) != own:
                mend = (f"add {option} {content[key]}" if key == "aspp_branches" else
                        f"leave {option} out, or give a checkpoint of that network")
                raise UserError(f"{checkpoint} was trained with {option} {content[key]}, but this stage has {own}; "
                                f"{mend}")
        names = list(content.get("class_names", self.class_names))
        if names != list(self.class_names):
            raise UserError(f"{checkpoint} was trained for other classes ({names!s:.200}); give a checkpoint of "
                            f"{self.name} or the dataset of this checkpoint, or train with --new-head, which keeps its "
                            "encoder alone")
        trained_with, own = content.get("input_format", self.input_format).name, self.input_format.name
        if trained_with != own:
            print(f"warning: {checkpoint} was trained with the input format {trained_with}, but this stage uses {own}; "
                  f"{'add' if trained_with == 'coco' else 'leave out'} --coco", file=sys.stderr)


def said_by_checkpoint(content, path):
    """What a checkpoint says of its network, or its weights show: ``said`` of ``content``, the whole dict in ``path``.

    Raises ``UserError`` when the file holds no network of this software, or says of it what cannot be.
    """
    state = content.get("model")
    bias = state.get(HEAD) if isinstance(state, dict) else None
    if not isinstance(bias, torch.Tensor) or bias.dim() != 1 or not 1 <= len(bias) <= 255:
        raise UserError(f"{path} is no checkpoint of this software: it has no {HEAD} with a number for each class "
                        "under the key 'model'; give the NAME.pt of a training stage")
    count = len(bias)
    values = said({"num_classes": count, **content}, path)
    if values["num_classes"] != count:
        raise UserError(f"{path} says it has {values['num_classes']} classes, but its head has {count}; "
                        "the file is damaged: get it again")
    if "backbone" not in values:
        values["backbone"] = recognized(state)
    if values["backbone"] is None:
        raise UserError(f"{path} holds another network: its backbone is none of {', '.join(BACKBONES)}; "
                        "give a checkpoint of this software")
    return values


def choose_network(spec, checkpoint=None, backbone=None, aspp_branches=None, coco=None, output_stride=None):
    """The ``Description`` of the network for the dataset ``spec`` that the options ask for; None is what was not given.

    Then it is as the file ``checkpoint`` says, if there is one, or as its weights show; else the papers'.
    Raises ``UserError``.
    """
    says = {}
    if checkpoint is not None:
        content = load_checkpoint(checkpoint)
        says = said(content, checkpoint)
        if "backbone" not in says:
            says["backbone"] = recognized(content["model"]) or "resnet101"
    backbone = backbone or says.get("backbone", "resnet101")
    own = backbone == says.get("backbone")
    found = traits(backbone, output_stride or (says.get("output_stride") if own else None))
    if coco and backbone not in BACKBONES:
        raise UserError(f"--coco: {backbone} takes its input in a form of its own; leave the option out")
    form = COCO if coco else says["input_format"] if own and "input_format" in says else found.input_format
    return Description(
        spec.name, spec.class_names, spec.palette, spec.background, spec.ignore, backbone,
        aspp_branches or says.get("aspp_branches", 2), form, spec.test_size, spec.test_by, found.output_stride,
        {"miou": says.get("miou"), "iou": says.get("iou")})


def describe(values, spec=None, coco=None, aspp_branches=None):
    """The ``Description`` of a network: from what its file says, the checked ``values``; then from the dataset ``spec``
    and the answers ``coco`` (whether its input format is that of the COCO weights) and ``aspp_branches``, where they
    are given; then from what is usual. Colours are a matter of taste: those of a ``spec`` win.
    """
    known = dict(values)
    if spec is not None:
        known = {"dataset": spec.name, "class_names": spec.class_names, "background": spec.background,
                 "ignore": spec.ignore, "test_size": spec.test_size, "test_by": spec.test_by, **values,
                 "palette": spec.palette}
    if coco is not None:
        known.setdefault("input_format", COCO if coco else IMAGENET)
    if aspp_branches is not None:
        known.setdefault("aspp_branches", aspp_branches)
    usual = {
        "class_names": ([f"class {number}" for number in range(values["num_classes"])], NAMES),
        "palette": (voc_colors(values["num_classes"]), "colours (VOC's are taken)"),
        "input_format": (IMAGENET, "input format (imagenet is taken; --coco for the other)"),
        "aspp_branches": (2, "ASPP branches (2 are taken; else give --aspp-branches)")}
    assumed = tuple(words for key, (_, words) in usual.items() if key not in known)
    known = {**{key: value for key, (value, _) in usual.items()}, **known}
    return Description(
        name=known.get("dataset", "unknown"), class_names=tuple(known["class_names"]),
        palette=tuple(map(tuple, known["palette"])), background=known.get("background"),
        ignore=known.get("ignore", 255), backbone=known["backbone"], aspp_branches=known["aspp_branches"],
        input_format=known["input_format"], output_stride=known.get("output_stride"),
        test_size=tuple(known["test_size"]) if known.get("test_size") else None, test_by=known.get("test_by"),
        facts={key: known[key] for key in _FACTS if key in known}, assumed=assumed)


def recognized(state):
    """The built-in backbone whose tensors have the names and shapes of those in ``state``; None if there is none."""
    shapes = _backbone_shapes(state)
    for backbone in BACKBONES:
        with torch.device("meta"):  # shapes only, no memory
            if _backbone_shapes(deeplab_v2(1, backbone).state_dict()) == shapes:
                return backbone
    return None


def _backbone_shapes(state):
    return {name: value.shape for name, value in state.items() if name.startswith("backbone.")
            and not name.endswith("num_batches_tracked")}  # older files have no counters


def voc_colors(count):
    """VOC's colours of the classes 0 to ``count`` - 1, as RGB triples: bits of the number, the lowest bits first."""
    return [[sum((number >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)]
            for number in range(count)]
