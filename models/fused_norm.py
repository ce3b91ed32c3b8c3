"""Training on a GPU: batch normalization, the sum of a residual block and ReLU at once, for channels_last features.

cuDNN and torch do the three one after the other, and in training ResNet-101 spends as much time in them as in its
convolutions. Here each feature is read twice and written once on the way forward: moments, then everything else. It is
the same arithmetic, in float32, as ``torch.nn.BatchNorm2d``; no sum depends on the order of anything (no atomics).
"""

import functools

import torch
import torch.nn.functional as F
from torch import nn

try:
    import triton
    import triton.language as tl
except ImportError:  # it comes with torch on Linux only
    triton = None

_ROWS, _COLUMNS = 32, 64  # of a tile; tiles of all rows are a grid's first axis, for CUDA takes 65535 of the others
_PROGRAMS = 1056  # that share the rows of all channels: eight for each processor of an H100
_FINISHED = 8  # channels whose shares one program adds up


def usable(features, norm):
    """Whether ``normalize`` can do with ``features`` (N, C, H, W) what ``norm`` does in training."""
    return (triton is not None and features.is_cuda and type(norm) is nn.BatchNorm2d and norm.training
            and norm.momentum is not None and features.is_contiguous(memory_format=torch.channels_last)
            and features.numel() > features.shape[1])  # of one value torch says what is wrong


def normalize(features, norm, residual=None, relu=True):
    """``norm(features)``, plus ``residual`` if there is one, and its ReLU if ``relu``: (N, C, H, W) as ``features``.

    ``norm`` is a ``BatchNorm2d``. What is not ``usable`` here is computed as torch does it.
    """
    if usable(features, norm):
        norm.num_batches_tracked.add_(1)
        return _Normalize.apply(features, norm.weight, norm.bias, residual, norm.running_mean, norm.running_var,
                                norm.momentum, norm.eps, relu)
    normalized = norm(features)
    if residual is not None:
        normalized += residual
    return F.relu(normalized, inplace=True) if relu else normalized


def bottleneck(block, features):
    """What torchvision's ``Bottleneck`` does."""
    residual = features
    if block.downsample is not None:
        conv, norm = block.downsample
        residual = normalize(conv(features), norm, relu=False)
    features = normalize(block.conv1(features), block.bn1)
    features = normalize(block.conv2(features), block.bn2)
    return normalize(block.conv3(features), block.bn3, residual)


@functools.cache
def works(device):
    """Whether ``normalize`` gives on ``device`` what torch does; it needs Triton, and that a C compiler."""
    if triton is None or torch.device(device).type != "cuda":
        return False
    generator = torch.Generator().manual_seed(0)
    features, residual, gradient = (torch.randn(3, 64, 7, 5, generator=generator) for _ in range(3))
    found = []
    for function in (normalize, lambda features, norm, residual: F.relu(norm(features) + residual)):
        norm = nn.BatchNorm2d(64).to(device)
        tensors = [tensor.to(device, memory_format=torch.channels_last).requires_grad_() for tensor in (features, residual)]
        try:
            with torch.enable_grad():
                output = function(tensors[0], norm, tensors[1])
                output.backward(gradient.to(device))
        except Exception:  # of a compiler, for example
            return False
        found.append([output, *(tensor.grad for tensor in tensors), norm.weight.grad, norm.bias.grad, norm.running_var])
    return all(torch.allclose(one, other, rtol=1e-3, atol=1e-3) for one, other in zip(*found))


def _shares(rows, channels):
    """(groups of channels, shares of the rows, rows in a share): who adds up what."""
    groups = triton.cdiv(channels, _COLUMNS)
    share = triton.cdiv(triton.cdiv(rows, max(1, _PROGRAMS // groups)), _ROWS) * _ROWS
    return groups, triton.cdiv(rows, share), share


class _Normalize(torch.autograd.Function):

    @staticmethod
    def forward(ctx, features, weight, bias, residual, running_mean, running_var, momentum, eps, relu):
        channels = features.shape[1]
        rows = features.numel() // channels
        groups, shares, share = _shares(rows, channels)
        if residual is not None:
            residual = residual.contiguous(memory_format=torch.channels_last)
        moments = torch.empty(2, shares, channels, device=features.device)
        mean, inverse = torch.empty(2, channels, device=features.device)
        output = torch.empty_like(features)
        _add_moments[groups, shares](features, moments[0], moments[1], rows, channels, share, _ROWS, _COLUMNS)
        _finish_moments[(triton.cdiv(channels, _FINISHED),)](
            moments[0], moments[1], mean, inverse, running_mean, running_var, momentum, eps, rows, channels, share, shares,
            triton.next_power_of_2(shares), _FINISHED)
        _write_output[triton.cdiv(rows, 2 * _ROWS), groups](
            features, features if residual is None else residual, output, mean, inverse, weight, bias, rows, channels,
            residual is not None, relu, 2 * _ROWS, _COLUMNS)
        ctx.save_for_backward(features, weight, mean, inverse, output if relu else None)
        ctx.residual = residual is not None
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        features, weight, mean, inverse, output = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        channels = features.shape[1]
        rows = features.numel() // channels
        groups, shares, share = _shares(rows, channels)
        relu = output is not None
        sums = torch.empty(2, shares, channels, device=features.device)
        of_bias, of_weight = torch.empty(2, channels, device=features.device)
        masked = torch.empty_like(features) if ctx.residual and relu else gradient
        _add_gradients[groups, shares](gradient, output if relu else features, features, masked, mean, inverse, sums[0],
                                       sums[1], rows, channels, share, relu, ctx.residual and relu, _ROWS, _COLUMNS)
        _finish_gradients[(triton.cdiv(channels, _FINISHED),)](sums[0], sums[1], of_bias, of_weight, channels, shares,
                                                        triton.next_power_of_2(shares), _FINISHED)
        result, again = torch.empty_like(features), relu and not ctx.residual
        _write_gradient[triton.cdiv(rows, 2 * _ROWS), groups](
            masked, output if again else features, features, result, mean, inverse, weight, of_bias, of_weight, rows,
            channels, again, 2 * _ROWS, _COLUMNS)
        return result, of_weight, of_bias, masked if ctx.residual else None, None, None, None, None, None


if triton is not None:
    _jit = functools.partial(triton.jit, do_not_specialize=["rows", "share", "shares", "momentum", "eps"])

    @triton.jit
    def _tile(start, stop, columns, channels, ROWS: tl.constexpr):
        """Offsets and mask of ``ROWS`` rows from ``start``, as far as they lie before ``stop``."""
        rows = start + tl.arange(0, ROWS)
        return (rows.to(tl.int64)[:, None] * channels + columns[None, :],
                (rows < stop)[:, None] & (columns < channels)[None, :])

    @_jit
    def _add_moments(features, means, squares, rows, channels, share, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
        """Mean and sum of squared deviations of a share of the rows, for some channels.

        Sums of differences from the first row: so nothing cancels where the mean is far from 0.
        """
        columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        start = tl.program_id(1) * share
        stop = tl.minimum(start + share, rows)
        inside = columns < channels
        first = tl.load(features + start.to(tl.int64) * channels + columns, inside, 0).to(tl.float32)
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        square = tl.zeros((ROWS, COLUMNS), tl.float32)
        for begin in range(start, stop, ROWS):
            offsets, mask = _tile(begin, stop, columns, channels, ROWS)
            values = tl.load(features + offsets, mask, 0).to(tl.float32)
            differences = tl.where(mask, values - first[None, :], 0)
            total += differences
            square += differences * differences
        total, square = tl.sum(total, 0), tl.sum(square, 0)
        count = (stop - start).to(tl.float32)
        place = tl.program_id(1) * channels + columns
        tl.store(means + place, first + total / count, inside)
        tl.store(squares + place, square - total * total / count, inside)

    @_jit
    def _finish_moments(means, squares, mean, inverse, running_mean, running_var, momentum, eps, rows, channels, share,
                        shares, SHARES: tl.constexpr, COLUMNS: tl.constexpr):
        """Moments of all rows from those of the shares; the running statistics follow them."""
        columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        inside = columns < channels
        number = tl.arange(0, SHARES)
        mask = (number < shares)[:, None] & inside[None, :]
        place = number[:, None] * channels + columns[None, :]
        count = tl.minimum(tl.maximum(rows - number * share, 0), share).to(tl.float32)[:, None]
        own = tl.load(means + place, mask, 0)
        whole = tl.sum(own * count, 0) / rows
        differences = tl.where(mask, own - whole[None, :], 0)
        square = tl.sum(tl.load(squares + place, mask, 0) + count * differences * differences, 0)
        tl.store(mean + columns, whole, inside)
        tl.store(inverse + columns, 1 / tl.sqrt(square / rows + eps), inside)
        old = tl.load(running_mean + columns, inside, 0)
        tl.store(running_mean + columns, old + momentum * (whole - old), inside)
        old = tl.load(running_var + columns, inside, 0)
        tl.store(running_var + columns, old + momentum * (square / (rows - 1) - old), inside)

    @_jit
    def _write_output(features, residual, output, mean, inverse, weight, bias, rows, channels, RESIDUAL: tl.constexpr,
                      RELU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
        columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        inside = columns < channels
        scale = tl.load(inverse + columns, inside, 0) * tl.load(weight + columns, inside, 0)
        shift = tl.load(bias + columns, inside, 0) - tl.load(mean + columns, inside, 0) * scale
        offsets, mask = _tile(tl.program_id(0) * ROWS, rows, columns, channels, ROWS)
        values = tl.load(features + offsets, mask, 0).to(tl.float32) * scale[None, :] + shift[None, :]
        if RESIDUAL:
            values += tl.load(residual + offsets, mask, 0).to(tl.float32)
        if RELU:
            values = tl.where(values < 0, 0, values)  # NaN stays NaN
        tl.store(output + offsets, values.to(output.dtype.element_ty), mask)

    @_jit
    def _add_gradients(gradient, output, features, masked, mean, inverse, of_bias, of_weight, rows, channels, share,
                       RELU: tl.constexpr, WRITE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
        """Sums of the gradient, and of it times the normalized features, over a share of the rows.

        With ``WRITE`` the gradient behind the ReLU, which is the residual's, is kept in ``masked``.
        """
        columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        start = tl.program_id(1) * share
        stop = tl.minimum(start + share, rows)
        inside = columns < channels
        center, scale = tl.load(mean + columns, inside, 0), tl.load(inverse + columns, inside, 0)
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        product = tl.zeros((ROWS, COLUMNS), tl.float32)
        for begin in range(start, stop, ROWS):
            offsets, mask = _tile(begin, stop, columns, channels, ROWS)
            values = tl.load(gradient + offsets, mask, 0)
            if RELU:
                values = tl.where(tl.load(output + offsets, mask, 0) <= 0, 0, values)
                if WRITE:
                    tl.store(masked + offsets, values, mask)
            values = values.to(tl.float32)
            total += values
            product += values * ((tl.load(features + offsets, mask, 0).to(tl.float32) - center[None, :]) * scale[None, :])
        place = tl.program_id(1) * channels + columns
        tl.store(of_bias + place, tl.sum(total, 0), inside)
        tl.store(of_weight + place, tl.sum(product, 0), inside)

    @_jit
    def _finish_gradients(biases, weights, of_bias, of_weight, channels, shares, SHARES: tl.constexpr,
                          COLUMNS: tl.constexpr):
        columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        inside = columns < channels
        number = tl.arange(0, SHARES)
        mask = (number < shares)[:, None] & inside[None, :]
        place = number[:, None] * channels + columns[None, :]
        tl.store(of_bias + columns, tl.sum(tl.load(biases + place, mask, 0), 0), inside)
        tl.store(of_weight + columns, tl.sum(tl.load(weights + place, mask, 0), 0), inside)

    @_jit
    def _write_gradient(gradient, output, features, result, mean, inverse, weight, of_bias, of_weight, rows, channels,
                        RELU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
        columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        inside = columns < channels
        center, scale = tl.load(mean + columns, inside, 0), tl.load(inverse + columns, inside, 0)
        bias, product = tl.load(of_bias + columns, inside, 0) / rows, tl.load(of_weight + columns, inside, 0) / rows
        offsets, mask = _tile(tl.program_id(0) * ROWS, rows, columns, channels, ROWS)
        values = tl.load(gradient + offsets, mask, 0)
        if RELU:
            values = tl.where(tl.load(output + offsets, mask, 0) <= 0, 0, values)
        normalized = (tl.load(features + offsets, mask, 0).to(tl.float32) - center[None, :]) * scale[None, :]
        scale *= tl.load(weight + columns, inside, 0)
        values = (values.to(tl.float32) - bias[None, :] - normalized * product[None, :]) * scale[None, :]
        tl.store(result + offsets, values.to(result.dtype.element_ty), mask)
