"""The network: names, shapes, branches; the input formats."""

import pytest
import torch
import torch.nn.functional as F

from models import deeplab_v2, upsample
from models.deeplab import COCO, IMAGENET

BRANCHES = [f"classifier.0.convs.{branch}.{kind}" for branch in range(4) for kind in ("weight", "bias")]


def test_resnet101_has_the_names_and_shapes_of_existing_checkpoints():
    with torch.device("meta"):
        model = deeplab_v2(21)
    state = model.state_dict()
    assert (model.num_classes, model.backbone_name, model.aspp_branches) == (21, "resnet101", 2)
    assert {name.split(".")[1] for name in state if name.startswith("backbone.")} == {
        "conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}
    assert [name for name in state if not name.startswith("backbone.")] == BRANCHES
    assert sum(not name.endswith("num_batches_tracked") for name in state) == 528
    assert state["backbone.layer3.22.conv3.weight"].shape == (1024, 256, 1, 1)
    assert state["classifier.0.convs.3.weight"].shape == (21, 2048, 3, 3)
    stages = model.backbone
    assert stages.layer3[0].conv2.stride == stages.layer4[0].conv2.stride == (1, 1)
    assert stages.layer3[1].conv2.dilation == (2, 2) and stages.layer4[1].conv2.dilation == (4, 4)
    assert stages.layer2[0].conv2.stride == (2, 2) and stages.layer2[0].conv1.stride == (1, 1)
    dilations = [(conv.dilation, conv.padding) for conv in model.classifier[0].convs]
    assert dilations == [((d, d), (d, d)) for d in (6, 12, 18, 24)]


@pytest.mark.parametrize("size, expected", [((97, 97), (13, 13)), ((64, 41), (8, 6)), ((33, 100), (5, 13))])
@pytest.mark.parametrize("backbone", ["small", "resnet50"])
def test_output_stride_is_8(backbone, size, expected):
    with torch.device("meta"):
        model = deeplab_v2(5, backbone)
        assert model(torch.zeros(2, 3, *size)).shape == (2, 5, *expected)


@pytest.mark.parametrize("branches", [2, 4])
def test_the_head_sums_its_first_branches(branches):
    torch.manual_seed(0)
    model = deeplab_v2(4, "small", aspp_branches=branches).eval()
    features = []
    model.classifier.register_forward_hook(lambda _, inputs, __: features.append(inputs[0]))
    with torch.no_grad():
        logits = model(torch.randn(1, 3, 41, 57))
        expected = sum(F.conv2d(features[0], conv.weight, conv.bias, padding=d, dilation=d)
                       for conv, d in zip(list(model.classifier[0].convs)[:branches], (6, 12, 18, 24)))
    torch.testing.assert_close(logits, expected)


def test_inactive_branches_get_no_gradient_and_stay_as_loaded():
    torch.manual_seed(0)
    model = deeplab_v2(4, "small")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.active_parameters(), lr=0.1, momentum=0.9, weight_decay=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 33, 33)).square().mean().backward()
        optimizer.step()
    inactive = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert inactive == set(BRANCHES[4:])
    after = model.state_dict()
    unchanged = {name for name in before if torch.equal(before[name], after[name])}
    assert unchanged == inactive
    everything = deeplab_v2(4, "small", aspp_branches=4)
    assert len(everything.active_parameters()) == len(list(everything.parameters()))
    assert len(everything.active_parameters()) == len(model.active_parameters()) + 4


def test_checkpoints_are_the_same_for_two_and_four_branches():
    two, four = deeplab_v2(4, "small", 2), deeplab_v2(4, "small", 4)
    assert not four.load_state_dict(two.state_dict()).missing_keys


@pytest.mark.parametrize("arguments", [{"aspp_branches": 3}, {"backbone": "vgg"}, {"num_classes": 0}])
def test_wrong_arguments_are_value_errors(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        deeplab_v2(**{"num_classes": 4, "backbone": "small", **arguments})


def test_upsample_aligns_corners_and_returns_float32():
    logits = torch.tensor([[[[0.0, 2.0], [4.0, 6.0]]]], dtype=torch.float16)
    result = upsample(logits, (3, 3))
    assert result.dtype == torch.float32
    assert result.tolist() == [[[[0, 1, 2], [2, 3, 4], [4, 5, 6]]]]


def test_the_small_network_learns_within_sixty_steps():
    torch.manual_seed(0)
    model = deeplab_v2(3, "small")
    optimizer = torch.optim.SGD(model.active_parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    images = torch.rand(4, 3, 65, 65)
    labels = torch.zeros(4, 65, 65, dtype=torch.int64)
    for index in range(4):  # a bright square of class 1 and a dark one of class 2, elsewhere in each image
        images[index, :, 8 * index:8 * index + 24, :24] += 1
        labels[index, 8 * index:8 * index + 24, :24] = 1
        images[index, :, 30:54, 8 * index:8 * index + 24] -= 1
        labels[index, 30:54, 8 * index:8 * index + 24] = 2
    for _ in range(60):
        loss = F.cross_entropy(upsample(model(images), (65, 65)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.25


@pytest.mark.parametrize("form", [IMAGENET, COCO])
def test_normalize_is_the_plain_formula(form):
    images = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    original = images.clone()
    result = form.normalize(images)
    plain = images.double().permute(0, 3, 1, 2)
    if form is IMAGENET:
        plain = (plain.flip(1) / 255 - torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(3, 1, 1)) \
            / torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(3, 1, 1)
    else:
        plain = plain - torch.tensor([104.008, 116.669, 122.675], dtype=torch.float64).view(3, 1, 1)
    assert result.dtype == torch.float32 and result.shape == (2, 3, 5, 7)
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result, plain.float(), rtol=1e-6, atol=1e-5)  # float32 near a mean of 122
    assert torch.equal(images, original)
