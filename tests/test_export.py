"""Networks that leave this software: ONNX, torch.export and safetensors files, compared, described, and run elsewhere."""

import pytest
import torch

from models import deeplab_v2
from models.description import describe_checkpoint, exported_metadata
from models.exported import OnnxNetwork, trace, write_onnx
from models.input_format import COCO

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

NAMES = ["soil", "crop", "weed"]


def small_network(seed=0, num_classes=3):
    """A small network whose statistics are not those of an untrained one, and the content of its checkpoint."""
    torch.manual_seed(seed)
    network = deeplab_v2(num_classes, "small")
    for name, value in network.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            value.add_(torch.rand_like(value))
    return network.eval(), {"model": network.state_dict(), "class_names": NAMES, "input_format": "coco",
                            "palette": [[0, 0, 0], [0, 160, 0], [200, 0, 0]], "dataset": "weeds", "test_size": [65, 81],
                            "test_by": "pad", "aspp_branches": 2}


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    """(network, the ONNX file of it that upsamples, its program)."""
    network, content = small_network()
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    program = trace(network, upsampled=True)
    write_onnx(program, path, exported_metadata(describe_checkpoint(content, "net.pt"), upsampled=True))
    return network, path, program


def test_an_onnx_network_knows_what_it_is(onnx_file):
    exported = OnnxNetwork(onnx_file[1])
    assert exported.num_classes == 3 and exported.class_names == tuple(NAMES)
    assert exported.palette == ((0, 0, 0), (0, 160, 0), (200, 0, 0)) and exported.input_format == COCO
    assert exported.description.test_size == (65, 81) and exported.description.name == "weeds"


@pytest.mark.parametrize("size", [(1, 9, 9), (3, 33, 50), (2, 100, 64)])
def test_an_onnx_network_gives_the_same_logits_at_any_size(onnx_file, size):
    network, path, _ = onnx_file
    count, height, width = size
    images = torch.randn(count, 3, height, width)
    with torch.inference_mode():
        expected = torch.nn.functional.interpolate(network(images), (height, width), mode="bilinear", align_corners=True)
    found = OnnxNetwork(path)(images.to(memory_format=torch.channels_last))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
