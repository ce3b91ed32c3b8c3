"""First weights of a network: torchvision's ImageNet weights, or the COCO weights of a Caffe model, converted.

The COCO weights are the DeepLab-ResNet-101 of Hung et al. (BMVC 2018, arXiv 1802.07934):
    python -m models.weights convert-coco resnet101COCO-41f33a49.pth --out .
"""

import re
from pathlib import Path

import torch
from torchvision.models import ResNet50_Weights, ResNet101_Weights

from models.deeplab import deeplab_v2
from utils.checkpoints import COUNTER, check_fit, load_checkpoint, save
from utils.errors import OneLineParser, UserError, number, reports_user_errors
from utils.files import sha256

_IMAGENET = {"resnet101": ResNet101_Weights.IMAGENET1K_V1, "resnet50": ResNet50_Weights.IMAGENET1K_V1}
_HEAD, _BACKBONE = "classifier.0.convs.", "backbone."
_CAFFE_HEAD = "layer5.conv2d_list."
COCO_FILES = {"voc_coco_resnet101.pt": 21, "city_coco_resnet101.pt": 19}


def load_imagenet_weights(model, source=None):
    """Load pre-trained weights into the backbone of ``model``, in place; the head keeps its initialization.

    ``source`` is None (download torchvision's, or take its cached copy), "none" (leave the backbone random), or a file
    with a torchvision ResNet state dict, whose ``fc.*`` are ignored, or with a network whose ``backbone`` fits.
    ``small`` has no ImageNet weights: None leaves it random and says so. Raises ``UserError`` when the file or the
    download cannot be had or does not fit.
    An encoder of timm loads timm's own (``models.encoder.Encoder.load``).
    """
    if source == "none":
        return
    timm = not model.foldable
    if source is not None:
        state, where = load_checkpoint(source)["model"], source
    elif timm:
        model.backbone.load()
        return
    elif model.backbone_name in _IMAGENET:
        state, where = _download(_IMAGENET[model.backbone_name]), "the download"
    else:
        print(f"note: the backbone {model.backbone_name} has no ImageNet weights; it starts from random ones")
        return
    encoder = {name.removeprefix(_BACKBONE): tensor for name, tensor in state.items() if name.startswith(_BACKBONE)}
    if timm and not encoder:
        model.backbone.load(state, where)
        return
    state = encoder or {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    own = model.backbone.state_dict()
    check_fit(state, own, f"{where} does not fit the backbone {model.backbone_name}", "give another --weights FILE")
    model.backbone.load_state_dict({**own, **state})


def convert_coco(state_dict, model):
    """The full state dict of ``model`` with the tensors of the Caffe model's ``state_dict`` in it; prints the numbers.

    ``layer5.conv2d_list.i.*`` becomes ``classifier.0.convs.i.*``, everything else gets the prefix ``backbone.``. A
    head for another number of classes keeps the initialization of ``model``: 528 tensors match a ResNet-101 for 21
    classes, 520 for any other number. Raises ``UserError`` naming the first tensor that is missing, unknown or of
    another shape.
    """
    own = model.state_dict()
    renamed = {_HEAD + name[len(_CAFFE_HEAD):] if name.startswith(_CAFFE_HEAD) else _BACKBONE + name: tensor
               for name, tensor in state_dict.items()}
    bias = renamed.get(_HEAD + "0.bias")
    # A missing bias counts as fitting, so that it is reported as missing. A head that does not fit is replaced by the
    # model's own before the check, which still finds it incomplete.
    head_fits = bias is None or bias.shape == own[_HEAD + "0.bias"].shape
    if not head_fits:
        renamed.update({name: own[name] for name in renamed if name.startswith(_HEAD) and name in own})
    check_fit(renamed, own, "the COCO weights do not fit", "download the file again")
    kept = 0 if head_fits else sum(name.startswith(_HEAD) for name in own)
    matching = sum(not name.endswith(COUNTER) for name in renamed) - kept
    print(f"{model.num_classes} classes: {matching} tensors match, {kept} of the head keep their initialization")
    return {**own, **{name: tensor.to(own[name].dtype) for name, tensor in renamed.items()}}


def _download(weights):
    """torchvision's state dict of ``weights``, from its cache or the network."""
    name = weights.url.rsplit("/", 1)[-1]
    try:
        return weights.get_state_dict(progress=True, check_hash=True)
    except Exception as error:  # network, proxy, disk, hash: whatever it was, the way out is the same
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        place = Path(torch.hub.get_dir()) / "checkpoints" / name
        raise UserError(f"the ImageNet weights {name} cannot be had from {weights.url} ({reason}); put the file at "
                        f"{place}, or give --weights FILE, or --weights none to start from random ones") from error


def _check_hash(path):
    """The 8 or more hexadecimal digits in the name of ``path`` must be the start of its SHA-256."""
    digits = re.search(r"-([0-9a-f]{8,64})\.[^.]+$", Path(path).name)
    if digits is None:
        raise UserError(f"{path}: the name lacks the start of the file's SHA-256, as in resnet101COCO-41f33a49.pth; "
                        "give the file its name back")
    actual = sha256(path)
    if not actual.startswith(digits[1]):
        raise UserError(f"{path} is damaged: its SHA-256 starts with {actual[:len(digits[1])]}, not {digits[1]}; "
                        "delete it and download it again")


@reports_user_errors
def main(arguments=None):
    """The command ``convert-coco``."""
    parser = OneLineParser(prog="python -m models.weights", description="Convert the COCO weights of the Caffe model.")
    command = parser.add_subparsers(dest="command", required=True, parser_class=OneLineParser).add_parser(
        "convert-coco", help="write voc_coco_resnet101.pt and city_coco_resnet101.pt")
    command.add_argument("file", metavar="FILE", help="resnet101COCO-41f33a49.pth")
    command.add_argument("--out", metavar="DIR", default=".", help="folder to write to (default: here)")
    command.add_argument("--num-classes", metavar="N", type=number(int, 2, "a whole number from 2 to 255", high=255),
                         help="write only coco_resnet101_N.pt, for a dataset of your own with N classes")
    options = parser.parse_args(arguments)
    _check_hash(options.file)
    caffe = load_checkpoint(options.file)["model"]
    count = options.num_classes
    for name, num_classes in ({f"coco_resnet101_{count}.pt": count} if count else COCO_FILES).items():
        torch.manual_seed(0)  # of a head that keeps its initialization
        state = convert_coco(caffe, deeplab_v2(num_classes))
        path = Path(options.out) / name
        save(path, {"model": state, "input_format": "coco"})
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
