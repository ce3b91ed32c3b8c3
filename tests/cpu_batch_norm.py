"""Batch normalization over the batch of several CPU processes, which torch has for GPUs alone: for the tests."""

import timm.layers
import torch
import torch.distributed as dist
from torch import nn


def over_gloo():
    """Let timm's ``convert_sync_batchnorm`` make modules that compute on a CPU from now on."""
    timm.layers.convert_sync_batchnorm = converted


def converted(model):
    for name, module in model.named_children():
        if isinstance(module, nn.BatchNorm2d):
            own = CPUBatchNorm(module.num_features, module.eps, module.momentum, device="meta")
            own._parameters.update(module._parameters)
            own._buffers.update(module._buffers)
            own.train(module.training)
            if hasattr(module, "act"):  # timm's BatchNormAct2d: dropout and activation follow
                own.drop, own.act = module.drop, module.act
                own.register_forward_hook(lambda norm, _, normalized: norm.act(norm.drop(normalized)))
            setattr(model, name, own)
        else:
            converted(module)
    return model


class CPUBatchNorm(nn.BatchNorm2d):
    """``BatchNorm2d`` over the samples of all processes, computed in float32. A process may have none."""

    def forward(self, features):
        """``features`` (N, C, H, W) floating point -> the same, normalized."""
        if not self.training:
            return super().forward(features)
        with torch.no_grad():
            count, mean, variance = _statistics(features.detach().float())
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        return _Normalize.apply(features, self.weight, self.bias, mean, (variance + self.eps).rsqrt(), count)


def _statistics(features):
    """(count, mean (C,), variance (C,), biased) of ``features`` (N, C, H, W) float32, over all processes.

    Every process sends count, mean and sum of squared deviations from its own mean: those can be put together without
    the cancellation that sums of squares suffer from.
    """
    channels, count = features.shape[1], features.numel() // features.shape[1]
    own = torch.zeros(3, channels, dtype=torch.float64)
    if count:
        variance, mean = torch.var_mean(features, (0, 2, 3), correction=0)
        own[0], own[1], own[2] = count, mean, variance.double() * count
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    counts, means, deviations = torch.stack(parts, 1)
    total = counts.sum(0)
    mean = (counts * means).sum(0) / total
    variance = (deviations + counts * (means - mean) ** 2).sum(0) / total
    return int(total[0]), mean.float(), variance.float()


class _Normalize(torch.autograd.Function):
    """weight · (x - mean) / deviation + bias, where mean and deviation are those of x over all processes."""

    @staticmethod
    def forward(ctx, features, weight, bias, mean, inverse, count):
        ctx.save_for_backward(features, weight, mean, inverse)
        ctx.count = count
        scale = weight * inverse
        return _linear(features.float(), scale, bias - mean * scale).to(features.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        features, weight, mean, inverse = ctx.saved_tensors
        dtype, gradient = features.dtype, gradient.float()
        normalized = _linear(features.float(), inverse, -mean * inverse)
        sums = torch.stack([gradient.sum((0, 2, 3)), (gradient * normalized).sum((0, 2, 3))])
        bias_gradient, weight_gradient = sums.clone()  # of this process's samples, like all other gradients
        dist.all_reduce(sums)
        of_bias, of_weight = sums / ctx.count
        gradient = _linear(gradient - normalized * of_weight[:, None, None], weight * inverse,
                           -of_bias * weight * inverse)
        return gradient.to(dtype), weight_gradient, bias_gradient, None, None, None


def _linear(features, scale, shift):
    """scale · features + shift, for each channel of ``features`` (N, C, H, W); ``scale`` and ``shift`` are (C,)."""
    return torch.addcmul(shift[:, None, None], features, scale[:, None, None])
