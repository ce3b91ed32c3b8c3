"""Any encoder of timm that gives a feature map, as the backbone ``timm/NAME`` of a network.

timm is asked for everything: which options the encoder takes, its channels, its stride and its input normalization.
Loading it takes seconds, so this file is imported where such an encoder is asked for.
"""

import difflib
import functools
import logging
from typing import NamedTuple

import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.deeplab import IMAGENET, OWN, PREFIX, InputFormat, Traits
from utils.errors import UserError

logging.getLogger("timm").setLevel(logging.ERROR)  # remarks on classifiers that are left out

DEFAULT_STRIDE = 8
_POINTS = 8  # of the map, along an axis, on which an encoder is tried
_NEAREST = 5  # names that an unknown one is answered with


class _Found(NamedTuple):
    options: dict  # of timm's create_model
    channels: int
    channels_last: bool
    idle: set  # names of parameters that the map does not depend on
    traits: Traits


class Encoder(nn.Module):
    """timm's ``features_only`` network with random weights, of which the last feature map is used.

    ``backbone`` is ``timm/NAME``, ``output_stride`` None (8 where the encoder can have it, else its own) or what it has
    to be. ``channels`` says what it gives. State-dict names: ``network.`` + timm's. Raises ``UserError``.
    """

    def __init__(self, backbone, output_stride=None):
        super().__init__()
        self._found = found = look_at(backbone, output_stride)
        self.backbone, self.channels = backbone, found.channels
        self.network = _create(backbone, **found.options)
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name not in found.idle)

    def forward(self, images):
        """``images`` (N, 3, H, W) float, normalized -> features (N, channels, h, w)."""
        if self.training and not len(images) and not any(
                isinstance(module, _BatchNorm) for module in self.network.modules()):
            # An empty share of a batch, as one of several processes may have. Encoders with batch normalization, where
            # an image of zeros would count, take no images, too.
            return self(images.new_zeros(1, *images.shape[1:]))[:0]
        features = self.network(images)[-1]
        return features.permute(0, 3, 1, 2) if self._found.channels_last else features

    def load(self, state=None, where="the download"):
        """Load timm's own weights (``state`` None: downloaded, or from its cache), or those in ``state``.

        ``state`` is a state dict with the names that timm's whole network has, from the file ``where``; classifier and
        whatever else is not needed are ignored. Raises ``UserError`` when they cannot be had or do not fit.
        """
        more = {"pretrained": True}
        if state is not None:
            more["pretrained_cfg_overlay"] = {"state_dict": state, "source": "", "custom_load": False}
        drawn = []
        with torch.random.fork_rng(devices=[]):  # what is drawn after this does not depend on where weights are from
            for seed in (0, 1):
                torch.manual_seed(seed)
                try:
                    drawn.append(_create(self.backbone, **self._found.options, **more).state_dict())
                except Exception as error:  # of network, hub, disk or shapes: timm and its hub have many kinds
                    lines = str(error).splitlines()
                    reason = (lines[1:] or lines or [type(error).__name__])[0].strip()
                    if state is not None:
                        raise UserError(f"{where} does not fit the backbone {self.backbone} ({reason:.200}); give "
                                        "another --weights FILE") from error
                    raise UserError(
                        f"the weights of {self.backbone} cannot be had from timm's hub ({reason:.200}); fetch them on "
                        "a machine with network and give --weights FILE, or --weights none to start from random "
                        "ones") from error
        for name, tensor in drawn[0].items():  # timm is silent on what is lacking, which then stays as it was drawn
            if not torch.equal(tensor, drawn[1][name]):
                raise UserError(f"{where} does not fit the backbone {self.backbone}: it has nothing for {name}; give "
                                "another --weights FILE")
        self.network.load_state_dict(drawn[0])


def _create(backbone, **options):
    return timm.create_model(backbone.removeprefix(PREFIX), features_only=True, out_indices=(-1,), **options)


@functools.cache
def look_at(backbone, output_stride):
    """What the encoder ``timm/NAME`` is, found out by building it without memory and showing it images without values.
    Raises ``UserError`` as ``Encoder`` does.
    """
    name = backbone.removeprefix(PREFIX)
    known = [*timm.list_models(), *timm.list_pretrained()]  # those with a tag are the latter's
    if name not in known:  # also keeps out what timm would fetch from elsewhere
        near = [PREFIX + one for one in difflib.get_close_matches(name, known, _NEAREST, cutoff=0.5)]
        raise UserError(f"--backbone {backbone}: timm {timm.__version__} has no such model; "
                        + (f"the nearest are {', '.join(near)}" if near else "timm.list_models() names them all"))
    options = {"output_stride": output_stride or DEFAULT_STRIDE, "dynamic_img_size": True, "strict_img_size": False,
               "drop_path_rate": 0.0}  # what a training that goes on would draw anew is not its seed's
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network = _with_what_it_takes(backbone, options, output_stride is not None)
    stride, channels = network.feature_info.reduction()[-1], network.feature_info.channels()[-1]
    if output_stride not in (None, stride):
        raise UserError(f"--output-stride {output_stride}: {backbone} has its own, {stride}"
                        f"{'' if 'output_stride' in options else ', which cannot be changed'}; leave the option out")
    channels_last = str(getattr(network, "output_fmt", None)).endswith("NHWC")

    def points(side):
        """How many points along an axis the map of square images has; or in words, why there is none."""
        try:
            shape = tuple(network.eval()(torch.empty(1, 3, side, side, device="meta"))[-1].shape)
        except Exception as error:
            return str(error) or type(error).__name__
        size = shape[1:3] if channels_last else shape[2:]
        whole = (1, *size, channels) if channels_last else (1, channels, *size)
        return size[0] if shape == whole and size[0] == size[1] else f"a map of the shape {shape}"

    found = points(_POINTS * stride)
    if found != _POINTS:
        found = f"{found} points" if isinstance(found, int) else f"{found:.200}"
        raise UserError(f"--backbone {backbone}: this encoder does not give {_POINTS} x {_POINTS} points for an image "
                        f"of {_POINTS * stride} x {_POINTS * stride} pixels ({found}); choose another one")
    more = points(_POINTS * stride + 1)
    with torch.inference_mode(False), torch.enable_grad():
        images = torch.empty(2, 3, _POINTS * stride, _POINTS * stride, device="meta")
        network.train()(images)[-1].sum().backward()
    idle = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    config = network.pretrained_cfg
    form = InputFormat(OWN, True, 1.0, tuple(config["mean"]), tuple(config["std"]))
    if (form.mean, form.std) == (IMAGENET.mean, IMAGENET.std):
        form = IMAGENET
    return _Found(options, channels, channels_last, idle,
                  Traits(stride, int(more == _POINTS + 1), not isinstance(more, int), form))


def _with_what_it_takes(backbone, options, asked):
    """The network of ``backbone``, made with those of ``options`` that it knows; others are removed from the dict."""
    while True:
        try:
            return _create(backbone, **options)
        except TypeError as error:
            unknown = next((key for key in options if f"'{key}'" in str(error)), None)
            reason = str(error)
        except Exception as error:  # as AssertionError for a stride that it cannot have
            unknown = "output_stride" if "output_stride" in options and not asked else None
            reason = str(error) or f"{type(error).__name__}, as for an --output-stride that it does not allow"
        if unknown is None:
            raise UserError(f"--backbone {backbone}: timm cannot make an encoder of it ({reason:.200}); choose another"
                            + (", or leave --output-stride out" if asked else ""))
        del options[unknown]
