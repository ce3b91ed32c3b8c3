"""DeepLab-v2: an encoder and an atrous spatial pyramid head (Chen et al., TPAMI 2018, arXiv 1606.00915).

The encoder is a dilated ResNet, as in the papers, or any of timm's. Below is what they take: the form of their input,
torchvision's (ImageNet weights), Caffe's (COCO weights) or timm's, and images of which sizes.
"""

import functools
import itertools
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import resnet50, resnet101
from torchvision.models.resnet import Bottleneck, ResNet

from utils.errors import UserError

DILATIONS = (6, 12, 18, 24)


class NarrowResNet(ResNet):
    """torchvision's ResNet with a quarter of the channels: its four layers give 64, 128, 256 and 512."""

    def _make_layer(self, block, planes, *args, **kwargs):
        return super()._make_layer(block, planes // 4, *args, **kwargs)


BACKBONES = {"resnet101": resnet101, "resnet50": resnet50,
             "small": functools.partial(NarrowResNet, Bottleneck, [1, 1, 1, 1])}
PREFIX = "timm/"  # of the names of all others, see ``models.encoder``


class PyramidHead(nn.Module):
    """Parallel 3x3 convolutions of dilation 6, 12, 18 and 24, summed.

    Only the first ``branches`` of them are computed and trained; the parameters of the others stay as they are, since
    every checkpoint holds all four. The published DMT results come from two branches, DeepLab-v2 has four.
    """

    def __init__(self, channels, num_classes, branches):
        super().__init__()
        self.branches = branches
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, num_classes, 3, padding=dilation, dilation=dilation) for dilation in DILATIONS)
        self.convs[branches:].requires_grad_(False)

    def forward(self, features):
        """``features`` (N, channels, h, w) float -> logits (N, C, h, w)."""
        logits = self.convs[0](features)
        for conv in self.convs[1:self.branches]:
            logits = logits + conv(features)
        return logits


class DeepLabV2(nn.Module):
    """A DeepLab-v2 with random weights for ``num_classes`` classes.

    ``backbone`` is resnet101, resnet50 or small (a narrow ResNet of 13 convolutions in a row, for CPUs), all three of
    output stride 8; or timm/NAME with the ``output_stride`` (see ``models.encoder.Encoder``).
    ``aspp_branches`` is 2, as in what DMT's authors released, or 4, as in the DeepLab-v2 paper. Raises ``ValueError``
    for anything else, ``UserError`` for an encoder or a stride that timm does not have.
    State-dict names: ``backbone.`` + torchvision's ResNet names, or those of ``models.encoder.Encoder``;
    ``classifier.0.convs.{0..3}.{weight,bias}``.
    """

    def __init__(self, num_classes, backbone="resnet101", aspp_branches=2, output_stride=None):
        super().__init__()
        if aspp_branches not in (2, 4):
            raise ValueError(f"aspp_branches is {aspp_branches!r}; use 2 or 4")
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes!r}; it must be at least 1")
        self.num_classes, self.backbone_name, self.aspp_branches = num_classes, backbone, aspp_branches
        self.traits = traits(backbone, output_stride)
        self.foldable = backbone in BACKBONES  # whether ``models.folded.FoldedDeepLab`` can compute it
        if self.foldable:
            # The stride of layer3 and layer4 becomes dilation: the output stride is 8 instead of 32.
            self.backbone = BACKBONES[backbone](replace_stride_with_dilation=[False, True, True])
            channels = self.backbone.layer4[-1].conv3.out_channels
            del self.backbone.avgpool, self.backbone.fc  # of the image classifier
        else:
            from models.encoder import Encoder  # loading timm takes seconds
            self.backbone = Encoder(backbone, output_stride)
            channels = self.backbone.channels
        self.classifier = nn.Sequential(PyramidHead(channels, num_classes, aspp_branches))

    def forward(self, images):
        """``images`` (N, 3, H, W) float, normalized -> logits (N, C, h, w): ceil(H / 8), ceil(W / 8) for a ResNet."""
        net = self.backbone
        features = net.maxpool(net.relu(net.bn1(net.conv1(images)))) if self.foldable else images
        for block in self.blocks():
            features = block(features)
        return self.classifier(features)

    def blocks(self):
        """From the image to the head: residual blocks (torchvision's ``Bottleneck``), or timm's encoder as a whole."""
        net = self.backbone
        return itertools.chain(net.layer1, net.layer2, net.layer3, net.layer4) if self.foldable else [net]

    def compile_blocks(self, backend="inductor"):
        """Let torch.compile fuse what follows each convolution, within every block; returns the network.

        Parameters keep their names. The 33 blocks of ResNet-101 share a few compiled forms, which is sooner done than
        the network as a whole. Each size of batch is compiled anew.
        """
        torch._dynamo.config.recompile_limit = 64  # forms x sizes x (training, evaluation)
        for block in self.blocks():
            block.compile(dynamic=False, backend=backend)
        return self

    def active_parameters(self):
        """The parameters that take part in ``forward``, as a list: the ones to train and to decay."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


deeplab_v2 = DeepLabV2  # as functions are called, and as others import it


def upsample(logits, size):
    """``logits`` (N, C, h, w) of any float type -> (N, C, *size) float32, bilinear with aligned corners.

    ``size`` is (height, width). With aligned corners the four corner pixels keep their values.
    """
    return F.interpolate(logits.float(), size=tuple(size), mode="bilinear", align_corners=True)


def synchronize(model):
    """Let ``model`` normalize over the batch of all processes, which takes GPUs; in place, names and tensors stay.

    By timm, whose own normalizations keep what follows within them. Returns the model.
    """
    from timm.layers import convert_sync_batchnorm  # loading timm takes a second
    return convert_sync_batchnorm(model)


def average_parts(model, parts):
    """Let the running statistics of ``model`` forget as slowly when a batch comes in ``parts`` as when it is whole."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 1 - (1 - module.momentum) ** (1 / parts)


# --- what they take ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InputFormat:
    """Channel order and the value that 255 becomes; mean and standard deviation of the channels, in that order."""

    name: str
    rgb: bool
    full: float
    mean: tuple
    std: tuple

    def normalize(self, images):
        """``images`` (N, H, W, 3) uint8 BGR on any device -> (N, 3, H, W) float32, ready for the network.

        Computes (x · full / 255 - mean) / std per channel as (x - mean') / std', in two passes at most over the
        floats. The result keeps the order of ``images`` in memory, so its memory format is channels_last.
        """
        mean, std = _constants(self, images.device)
        if self.rgb:
            images = images.flip(-1)  # while a value is still one byte
        normalized = torch.sub(images, mean)  # uint8 - float32 -> float32
        if std is not None:
            normalized.div_(std)
        return normalized.permute(0, 3, 1, 2)


IMAGENET = InputFormat("imagenet", rgb=True, full=1.0, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
COCO = InputFormat("coco", rgb=False, full=255.0, mean=(104.008, 116.669, 122.675), std=(1.0, 1.0, 1.0))
OWN = "own"  # the name of any other


class Traits(NamedTuple):
    """What others ask of a backbone.

    ``output_stride``: pixels from one point of its map to the next. Images whose sides are k · ``output_stride`` +
    ``plus`` have points from border to border; if ``exact``, it takes no others. ``input_format`` is what it expects.
    """

    output_stride: int
    plus: int
    exact: bool
    input_format: InputFormat

    @property
    def smallest(self):
        """The smallest side, in pixels, with two points."""
        return (2 - self.plus) * self.output_stride + self.plus

    def map_size(self, *sides):
        """The size of the map, in words, for ``sides`` in words."""
        rounded = "{} / {}" if self.exact else "ceil({} / {})" if self.plus else "floor({} / {})"
        return ", ".join(rounded.format(side, self.output_stride) for side in sides)

    def check_size(self, size, backbone, option):
        """Raise ``UserError`` naming the nearest sizes when the ``backbone`` does not take ``size`` (height, width)."""
        step = self.output_stride
        if self.exact and any(side % step for side in size):
            near = [" ".join(str(max(1, rounded) * step) for rounded in sides)
                    for sides in ([side // step for side in size], [-(-side // step) for side in size])]
            raise UserError(f"{option} {size[0]} {size[1]}: {backbone} takes images whose sides are multiples of "
                            f"{step} only; the nearest are {option} {near[0]} and {option} {near[1]}")


_TRAITS = Traits(output_stride=8, plus=1, exact=False, input_format=IMAGENET)  # of ``BACKBONES``


def traits(backbone, output_stride=None):
    """The ``Traits`` of a backbone. Raises as ``deeplab_v2`` does."""
    if backbone not in BACKBONES:
        if not backbone.startswith(PREFIX):
            raise ValueError(f"backbone is {backbone!r}; use one of {', '.join(BACKBONES)}, or {PREFIX}NAME")
        from models import encoder  # as above
        return encoder.look_at(backbone, output_stride).traits
    if output_stride not in (None, _TRAITS.output_stride):
        raise UserError(f"--output-stride {output_stride}: {backbone} has output stride {_TRAITS.output_stride}; leave "
                        f"the option out, or give an encoder of timm, as in --backbone {PREFIX}resnet50")
    return _TRAITS


@functools.lru_cache(maxsize=16)
def _constants(form, device):
    """Mean and standard deviation in grey levels, (3,) float32 each on ``device``; None for a deviation of 1.

    Cached, because a copy to the GPU in every step would make the step wait.
    """
    with torch.inference_mode(False):
        mean, std = (255 / form.full * torch.tensor([form.mean, form.std], dtype=torch.float64)).float().to(device)
    return mean, None if {*form.std} == {form.full / 255} else std
