"""Any encoder of timm that gives a feature map, as the backbone ``timm/NAME`` of a network.

timm is asked for everything: which options the encoder takes, its channels, its stride and its input normalization.
"""

import difflib
import functools
import logging
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from models.input_format import IMAGENET, OWN, InputFormat
from utils.errors import UserError

PREFIX = "timm/"
DEFAULT_STRIDE = 8
_POINTS = 8  # of the map, along an axis, on which an encoder is tried
_NEAREST = 5  # names that an unknown one is answered with


class Traits(NamedTuple):
    """What others ask of a backbone.

    ``output_stride``: pixels from one point of its map to the next. Images whose sides are k · ``output_stride`` +
    ``plus`` have points from border to border; if ``exact``, it takes no others. ``input_format``: what it was made for.
    """

    output_stride: int
    plus: int
    exact: bool
    input_format: InputFormat


class _Found(NamedTuple):
    options: dict
    channels: int
    channels_last: bool
    traits: Traits


class Encoder(nn.Module):
    """timm's ``features_only`` network with random weights, of which the last feature map is used.

    ``backbone`` is ``timm/NAME``, ``output_stride`` None (8 where the encoder can have it, else its own) or what it must
    be. ``channels`` and ``traits`` say what it gives. State-dict names: ``network.`` + timm's. Raises ``UserError``.
    """

    def __init__(self, backbone, output_stride=None):
        super().__init__()
        found = _look_at(backbone, output_stride)
        self.backbone, self.channels, self.traits = backbone, found.channels, found.traits
        self._options, self._channels_last = found.options, found.channels_last
        self.network = _create(backbone, **found.options)

    def forward(self, images):
        """``images`` (N, 3, H, W) float, normalized -> features (N, channels, h, w)."""
        features = self.network(images)[-1]
        return features.permute(0, 3, 1, 2) if self._channels_last else features

    def load(self, source=None):
        """Load timm's own weights (``source`` None: downloaded, or from its cache), or those in the file ``source``.

        The file is one of safetensors or torch with the names that timm's whole network has; classifier and whatever
        else is not needed are ignored. Raises ``UserError`` when they cannot be had or do not fit.
        """
        more = {"pretrained": True}
        if source is not None:
            more["pretrained_cfg_overlay"] = {"state_dict": _tensors(source), "source": "", "custom_load": False}
        with torch.random.fork_rng(devices=[]):  # whatever is drawn after this does not depend on where weights are from
            fresh, loaded = (self._drawn_anew(source, **some) for some in ({}, more))
        for name, tensor in loaded.items():  # timm only notes what a file lacks
            if tensor.is_floating_point() and torch.equal(tensor, fresh[name]) and tensor.numel() > 1 and tensor.std() > 0:
                raise UserError(f"{source or 'the download'} does not fit the backbone {self.backbone}: it has nothing for "
                                f"{name}; give another --weights FILE")
        self.network.load_state_dict(loaded)

    def _drawn_anew(self, source, **more):
        torch.manual_seed(0)
        try:
            return _create(self.backbone, **self._options, **more).state_dict()
        except Exception as error:  # of network, hub, disk or shapes: timm and its hub have many kinds
            reason = next((line.strip() for line in str(error).splitlines()[1:] or [str(error)]), type(error).__name__)
            if source is not None:
                raise UserError(f"{source} does not fit the backbone {self.backbone} ({reason:.200}); give another --weights "
                                "FILE") from error
            raise UserError(f"the weights of {self.backbone} cannot be had from timm's hub ({reason:.200}); fetch them on a "
                            "machine with network and give --weights FILE, or --weights none to start from random "
                            "ones") from error


def check_size(size, backbone, traits, option):
    """Raise ``UserError`` naming the nearest sizes when the backbone does not take images of ``size`` (height, width)."""
    step = traits.output_stride
    if traits.exact and any(side % step for side in size):
        near = [" ".join(str(max(1, rounded) * step) for rounded in sides)
                for sides in ([side // step for side in size], [-(-side // step) for side in size])]
        raise UserError(f"{option} {size[0]} {size[1]}: {backbone} takes images whose sides are multiples of {step} only; the "
                        f"nearest are {option} {near[0]} and {option} {near[1]}")


def traits(backbone, output_stride=None):
    """The ``Traits`` of the encoder ``timm/NAME``. Raises ``UserError`` as ``Encoder`` does."""
    return _look_at(backbone, output_stride).traits


def _timm():
    import timm  # not at the top: it takes seconds, and most runs do without
    logging.getLogger("timm").setLevel(logging.ERROR)  # remarks on classifiers that are left out
    return timm


def _create(backbone, **options):
    return _timm().create_model(backbone.removeprefix(PREFIX), features_only=True, out_indices=(-1,), **options)


@functools.cache
def _look_at(backbone, output_stride):
    """What timm's encoder is, found out by building it without memory and showing it images without values."""
    name, timm = backbone.removeprefix(PREFIX), _timm()
    if not timm.is_model(name):  # also keeps out what timm would fetch from elsewhere
        raise UserError(f"--backbone {backbone}: timm {timm.__version__} has no such model; {_nearest(name)}")
    options = {"output_stride": output_stride or DEFAULT_STRIDE, "dynamic_img_size": True, "strict_img_size": False}
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network = _with_what_it_takes(backbone, options, output_stride is not None)
    stride, channels = network.feature_info.reduction()[-1], network.feature_info.channels()[-1]
    if output_stride not in (None, stride):
        raise UserError(f"--output-stride {output_stride}: {backbone} has its own, {stride}"
                        f"{'' if 'output_stride' in options else ', which cannot be changed'}; leave the option out")
    channels_last = str(getattr(network, "output_fmt", None)).endswith("NHWC")
    points = _points(network, _POINTS * stride, channels, channels_last)
    if points != _POINTS:
        raise UserError(f"--backbone {backbone}: this encoder does not give a map with a point every {stride} pixels for images "
                        f"of any size ({points}); choose another one")
    more = _points(network, _POINTS * stride + 1, channels, channels_last)
    config = network.pretrained_cfg
    form = InputFormat(OWN, True, 1.0, tuple(config["mean"]), tuple(config["std"]))
    if (form.mean, form.std) == (IMAGENET.mean, IMAGENET.std):
        form = IMAGENET
    return _Found(options, channels, channels_last,
                  Traits(stride, int(more == _POINTS + 1), not isinstance(more, int), form))


def _with_what_it_takes(backbone, options, asked):
    """The network of ``backbone``, made with those of ``options`` that it knows; the others are removed from the dict."""
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
            raise UserError(f"--backbone {backbone}: timm cannot make an encoder of it ({reason:.200}); choose another one"
                            + (", or leave --output-stride out" if asked else ""))
        del options[unknown]


@torch.no_grad()
def _points(network, side, channels, channels_last):
    """How many points along an axis the map of a square image has; or in words, why there is none."""
    try:
        shape = network.eval()(torch.empty(1, 3, side, side, device="meta"))[-1].shape
    except Exception as error:
        return f"{str(error) or type(error).__name__:.200}"
    expected = (1, shape[2], shape[2], channels) if channels_last else (1, channels, shape[3], shape[3])
    return shape[2] if len(shape) == 4 and tuple(shape) == expected else f"its map has the shape {tuple(shape)}"


def _nearest(name):
    timm = _timm()
    near = difflib.get_close_matches(name, timm.list_models(), _NEAREST, cutoff=0.5)
    return f"the nearest are {', '.join(PREFIX + one for one in near)}" if near else "timm.list_models() names them all"


def _tensors(path):
    """The state dict in the file ``path``, as timm reads it. Raises ``UserError``."""
    from timm.models import load_state_dict  # as above

    if not Path(path).is_file():
        raise UserError(f"the weights {path} are missing; correct the path")
    try:
        state = load_state_dict(str(path))
    except Exception as error:  # damaged bytes meet nearly every kind of exception
        raise UserError(f"{path} is not a file of weights, or it is damaged ({type(error).__name__}); get it again or give "
                        "another file") from error
    if not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise UserError(f"{path} does not hold a state dict (names to tensors); give a .safetensors file or one made by "
                        "torch.save(model.state_dict(), FILE)")
    return state
