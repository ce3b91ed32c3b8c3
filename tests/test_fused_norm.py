"""Normalization, sum and ReLU at once give what torch gives one after the other."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import deeplab_v2, fused_norm
from tests.conftest import REPOSITORY

CASES = [((3, 64, 7, 5), torch.float32), ((2, 72, 9, 40), torch.float32), ((1, 128, 1, 3), torch.float32),
         ((2, 72, 9, 40), torch.float16), ((2, 64, 11, 11), torch.bfloat16)]
INTERPRETED = fused_norm.triton is not None and tuple(map(int, fused_norm.triton.__version__.split(".")[:2])) >= (3, 7)
NEAR = {torch.float32: 1e-4, torch.float16: 1e-3, torch.bfloat16: 1e-2}


def compare(shape, dtype, with_residual, relu, device):
    """Output, gradients and running statistics against torch's in float64, by the norm of the difference."""
    generator, found, channels = torch.Generator().manual_seed(0), [], shape[1]
    features = torch.randn(shape, generator=generator) * 2 + 20 * torch.randn(channels, 1, 1, generator=generator)
    residual, gradient = (torch.randn(shape, generator=generator) for _ in range(2))
    for fused in (True, False):
        norm = nn.BatchNorm2d(channels, momentum=0.3).to(device, torch.float32 if fused else torch.float64)
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(-1, 2, channels))
            norm.bias.copy_(torch.linspace(1, -1, channels))
            norm.running_mean.fill_(0.5)
        own = [tensor.to(dtype).to(device, dtype if fused else torch.float64, memory_format=torch.channels_last)
               for tensor in (features, residual, gradient)]
        own[0].requires_grad_()
        own[1].requires_grad_(with_residual)
        if fused:
            output = fused_norm.normalize(own[0], norm, own[1] if with_residual else None, relu)
            assert isinstance(output.grad_fn, fused_norm._Normalize._backward_cls)
        else:
            output = norm(own[0]) + (own[1] if with_residual else 0)
            output = F.relu(output) if relu else output
        output.backward(own[2])
        found.append([output, own[0].grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var,
                      norm.num_batches_tracked] + [own[1].grad] * with_residual)
    for one, other in zip(*found):
        assert (one.double() - other.double()).norm() <= NEAR[dtype] * other.double().norm(), (shape, dtype)


def compare_all(device):
    for shape, dtype in CASES:
        for with_residual in (False, True):
            for relu in (False, True):
                compare(shape, dtype, with_residual, relu, device)


def step(model, images):
    """Logits of a training step, and the gradients and running statistics after it."""
    logits = model(images)
    logits.float().square().mean().backward()
    return {"logits": logits, **{f"{name}, gradient": parameter.grad for name, parameter in model.named_parameters()
                                 if parameter.grad is not None}, **dict(model.named_buffers())}


def compare_networks(device):
    torch.manual_seed(0)
    models = [deeplab_v2(4, "small").to(device, memory_format=torch.channels_last).train() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    models[1].fused = True
    images = torch.randn(2, 3, 33, 33, device=device).to(memory_format=torch.channels_last)
    found = [step(model, images) for model in models]
    assert list(found[0]) == list(found[1])
    for name, value in found[0].items():
        assert (value - found[1][name]).double().norm() <= 2e-3 * value.double().norm() + 1e-6, name


@pytest.mark.skipif(not INTERPRETED, reason="Triton comes with torch on Linux; older interpreters fail with numpy 2.4")
@pytest.mark.parametrize("what", ["compare_all", "compare_networks"])
def test_the_kernels_compute_what_torch_does(what):
    """Interpreted by Triton, in a process of its own, since that is chosen when they are defined."""
    words = (f"import torch; from models import fused_norm; from tests import test_fused_norm as test\n"
             f"fused_norm.usable = lambda features, norm: features.is_contiguous(memory_format=torch.channels_last)\n"
             f"test.{what}('cpu')")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", words], cwd=REPOSITORY, capture_output=True, text=True,
                          env={**os.environ, "TRITON_INTERPRET": "1"})
    assert done.returncode == 0, done.stderr[-3000:]


def test_what_is_not_usable_is_left_to_torch():
    torch.manual_seed(0)
    model, images = deeplab_v2(4, "small").train(), torch.randn(2, 3, 33, 33)
    other = deeplab_v2(4, "small").train()
    other.load_state_dict(model.state_dict())
    other.fused = True
    one, same = step(model, images), step(other, images)
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert not fused_norm.works("cpu")


def test_one_value_a_channel_is_what_torch_says_it_is():
    assert not fused_norm.usable(torch.zeros(1, 3, 1, 1), nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match="more than 1 value"):
        fused_norm.normalize(torch.zeros(1, 3, 1, 1), nn.BatchNorm2d(3))


def test_not_a_number_is_not_hidden_by_the_relu():
    norm = nn.BatchNorm2d(3)
    features = torch.full((2, 3, 4, 4), float("nan"))
    assert fused_norm.normalize(features, norm).isnan().all()


@pytest.mark.gpu
def test_a_gpu_computes_the_same_and_not_a_number_stays():
    assert fused_norm.works("cuda")
    compare_all("cuda")
    with torch.backends.cudnn.flags(allow_tf32=False):
        compare_networks("cuda")
    features = torch.full((2, 64, 4, 4), float("nan"), device="cuda").to(memory_format=torch.channels_last)
    assert fused_norm.normalize(features, nn.BatchNorm2d(64).cuda()).isnan().all()


@pytest.mark.gpu
def test_more_rows_than_a_grid_has_on_its_other_axes():
    torch.manual_seed(0)
    features = torch.randn(1, 8, 2100, 2000, device="cuda", dtype=torch.float16).to(memory_format=torch.channels_last)
    found = fused_norm.normalize(features, nn.BatchNorm2d(8).cuda(), relu=False)
    assert (found.float() - nn.BatchNorm2d(8).cuda()(features.float())).abs().max() < 0.01
