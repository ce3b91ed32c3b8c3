"""DeepLab-v2: an encoder and an atrous spatial pyramid head (Chen et al., TPAMI 2018, arXiv 1606.00915).

The encoder is a dilated ResNet, as in the papers, or any of timm's.
"""

import functools
import itertools

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import resnet50, resnet101
from torchvision.models.resnet import Bottleneck, ResNet

from models.input_format import IMAGENET, Traits
from utils.errors import UserError

DILATIONS = (6, 12, 18, 24)


class NarrowResNet(ResNet):
    """torchvision's ResNet with a quarter of the channels: its four layers give 64, 128, 256 and 512."""

    def _make_layer(self, block, planes, *args, **kwargs):
        return super()._make_layer(block, planes // 4, *args, **kwargs)


BACKBONES = {"resnet101": resnet101, "resnet50": resnet50,
             "small": functools.partial(NarrowResNet, Bottleneck, [1, 1, 1, 1])}
_TRAITS = Traits(output_stride=8, plus=1, exact=False, input_format=IMAGENET)  # of these
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


def traits(backbone, output_stride=None):
    """The ``models.input_format.Traits`` of a backbone. Raises as ``deeplab_v2`` does."""
    if backbone not in BACKBONES:
        if not backbone.startswith(PREFIX):
            raise ValueError(f"backbone is {backbone!r}; use one of {', '.join(BACKBONES)}, or {PREFIX}NAME")
        from models import encoder  # as above
        return encoder.look_at(backbone, output_stride).traits
    if output_stride not in (None, _TRAITS.output_stride):
        raise UserError(f"--output-stride {output_stride}: {backbone} has output stride {_TRAITS.output_stride}; leave "
                        f"the option out, or give an encoder of timm, as in --backbone {PREFIX}resnet50")
    return _TRAITS


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
