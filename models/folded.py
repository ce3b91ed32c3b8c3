"""The network for inference on a GPU: every batch normalization folded into the convolution before it.

In evaluation mode batch normalization is a linear function of each channel, so it can scale a convolution's weights and
be its bias. What remains, convolution, bias, the sum of a residual block and ReLU, is one cuDNN operation: ResNet-101
on whole images spends more than half of its time in normalizing otherwise.
"""

import itertools

import torch
import torch.nn.functional as F


class FoldedDeepLab:
    """Computes what a ``DeepLabV2`` in evaluation mode does, up to rounding, in ``dtype`` on the model's device.

    Called with images (N, 3, H, W) float, normalized, it returns logits (N, C, h, w) in ``dtype``. It holds a copy of
    the weights, always in the same places (a CUDA graph reads them there); ``refresh`` brings it up to date after the
    model has learnt.
    """

    def __init__(self, model, dtype=torch.float32):
        net, head = model.backbone, model.classifier[0]
        self._dtype, self._stem, self._pool = dtype, _Convolution(net.conv1, net.bn1, dtype), net.maxpool
        self._blocks = [  # of torchvision's ``Bottleneck``: (shortcut or None, the three convolutions)
            (None if block.downsample is None else _Convolution(*block.downsample, dtype),
             _Convolution(block.conv1, block.bn1, dtype),
             _Convolution(block.conv2, block.bn2, dtype), _Convolution(block.conv3, block.bn3, dtype))
            for block in model.blocks()]
        self._branches = [_Convolution(conv, None, dtype) for conv in head.convs[:head.branches]]
        self._convolutions = [self._stem, *filter(None, itertools.chain(*self._blocks)), *self._branches]
        self.refresh()

    def refresh(self):
        """Take over the model's present weights and running statistics."""
        for folded in self._convolutions:
            folded.refresh()

    def __call__(self, images):
        features = images.to(self._dtype, memory_format=torch.channels_last)
        features = self._pool(self._stem.relu(features))
        for shortcut, first, second, third in self._blocks:
            residual = features if shortcut is None else shortcut.linear(features)
            features = third.add_relu(second.relu(first.relu(features)), residual)
        logits = self._branches[0].linear(features)
        for branch in self._branches[1:]:
            logits = logits + branch.linear(features)
        return logits


class _Convolution:
    """A convolution and the batch normalization after it (None: nothing follows), as one with a bias."""

    fuses = True  # with what follows

    def __init__(self, conv, norm, dtype):
        self._conv, self._norm = conv, norm
        self._places = conv.stride, conv.padding, conv.dilation, conv.groups
        with torch.inference_mode(False):
            self._weight = torch.empty_like(conv.weight, dtype=dtype, memory_format=torch.channels_last,
                                            requires_grad=False)
            self._bias = torch.empty(conv.out_channels, dtype=dtype, device=conv.weight.device)

    @torch.no_grad()
    def refresh(self):
        conv, norm = self._conv, self._norm
        if norm is None:
            self._weight.copy_(conv.weight)
            self._bias.copy_(conv.bias)
            return
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        self._weight.copy_(conv.weight * scale[:, None, None, None])
        self._bias.copy_(torch.addcmul(norm.bias, norm.running_mean, scale, value=-1))

    def linear(self, features):
        return F.conv2d(features, self._weight, self._bias, *self._places)

    def relu(self, features):
        fused = self._try(torch.cudnn_convolution_relu, features, self._weight, self._bias)
        return self.linear(features).relu_() if fused is None else fused

    def add_relu(self, features, residual):
        fused = self._try(torch.cudnn_convolution_add_relu, features, self._weight, residual, 1.0, self._bias)
        return self.linear(features).add_(residual).relu_() if fused is None else fused

    def _try(self, operation, features, *more):
        """What cuDNN's ``operation`` gives; None, now and from now on, where it knows none for this convolution."""
        if not self.fuses or not features.is_cuda:
            return None
        try:
            return operation(features, *more, *self._places)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            self.fuses = False
            return None
