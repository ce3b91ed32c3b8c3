"""The network for inference: batch normalization folded into convolutions gives the same logits."""

import pytest
import torch

from models import deeplab_v2
from models.folded import FoldedDeepLab

GPU = pytest.param("cuda", marks=pytest.mark.gpu)


def trained(backbone, branches=2, seed=0):
    """A network whose normalizations are far from doing nothing."""
    torch.manual_seed(seed)
    model = deeplab_v2(5, backbone, branches)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(-0.5, 1.5)
            module.bias.data.uniform_(-0.5, 0.5)
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    return model.eval().to(memory_format=torch.channels_last)


def distance(found, expected):
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("branches", [2, 4])
@pytest.mark.parametrize("backbone", ["small", "resnet50"])
def test_the_logits_are_the_networks(backbone, branches, device):
    model = trained(backbone, branches)
    images = torch.randn(2, 3, 65, 49)
    with torch.inference_mode():
        expected = model.double()(images.double())
        model = model.float().to(device)
        found = FoldedDeepLab(model)(images.to(device))
    assert found.shape == expected.shape and found.dtype == torch.float32
    assert distance(found.cpu(), expected) < (1e-5 if device == "cpu" else 3e-3)  # a GPU rounds factors to TF32


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("dtype, off", [(torch.float16, 0.01), (torch.bfloat16, 0.08)])
def test_16_bits_are_as_far_off_as_autocast(dtype, off, device):
    model, images = trained("small").to(device), torch.randn(2, 3, 65, 65, device=device)
    with torch.inference_mode():
        expected, found = model(images), FoldedDeepLab(model, dtype)(images)
    assert found.dtype == dtype and distance(found, expected) < off


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_cudnn_does_all_at_once(dtype):
    folded = FoldedDeepLab(trained("resnet50").cuda(), dtype)
    with torch.inference_mode():
        folded(torch.randn(2, 3, 65, 65, device="cuda"))
    assert all(convolution.fuses for convolution in folded._convolutions)


def test_what_cudnn_cannot_do_at_once_is_done_apart(monkeypatch):
    def refuse(*_):
        raise RuntimeError("no engine")

    convolution = FoldedDeepLab(trained("small"))._blocks[0][3]

    class OnGPU(torch.Tensor):
        is_cuda = True

    features, residual = torch.randn(1, 64 // 4, 5, 5), torch.randn(1, 64, 5, 5)
    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", refuse)
    expected = (convolution.linear(features) + residual).relu()
    assert convolution._try(refuse, features.as_subclass(OnGPU)) is None and not convolution.fuses
    assert torch.equal(convolution.add_relu(features, residual), expected)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_it_follows_the_model_when_asked_without_moving(mode):
    model, images = trained("small"), torch.randn(1, 3, 33, 33)
    with mode():
        folded = FoldedDeepLab(model)
        before = folded(images)
    places = [conv._weight.data_ptr() for conv in folded._convolutions]
    model.load_state_dict(trained("small", seed=1).state_dict())
    with torch.inference_mode():
        assert torch.equal(folded(images), before)
        folded.refresh()
        assert distance(folded(images), model(images)) < 1e-5
    assert [conv._weight.data_ptr() for conv in folded._convolutions] == places


def test_networks_of_several_processes_are_folded_too():
    model, images = trained("small"), torch.randn(1, 3, 33, 33)
    with torch.inference_mode():
        expected = model(images)
        assert distance(FoldedDeepLab(torch.nn.SyncBatchNorm.convert_sync_batchnorm(model))(images), expected) < 1e-5
