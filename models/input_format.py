"""The forms in which networks take their input: torchvision's (ImageNet weights), Caffe's (COCO weights), timm's; and
images of which sizes."""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch

from utils.errors import UserError


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


@functools.lru_cache(maxsize=16)
def _constants(form, device):
    """Mean and standard deviation in grey levels, (3,) float32 each on ``device``; None for a deviation of 1.

    Cached, because a copy to the GPU in every step would make the step wait.
    """
    with torch.inference_mode(False):
        mean, std = (255 / form.full * torch.tensor([form.mean, form.std], dtype=torch.float64)).float().to(device)
    return mean, None if {*form.std} == {form.full / 255} else std
