"""ImageNet weights from files, and the conversion of the Caffe COCO weights."""

import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet50

from models import deeplab_v2, weights
from utils.checkpoints import load_checkpoint
from utils.errors import UserError

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def caffe():
    """A made-up state dict with names and shapes of the Caffe model for 21 classes; it takes no room."""
    with torch.device("meta"):
        names = deeplab_v2(21).state_dict()
    state = {}
    for index, (name, tensor) in enumerate(names.items()):
        name = name.replace("backbone.", "").replace("classifier.0.convs.", "layer5.conv2d_list.")
        if not name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(float(index)).expand(tensor.shape)
    return state


@pytest.fixture(scope="module")
def network():
    """ResNet-101 DeepLab for 21 and 19 classes without memory of its own for the backbone."""
    def build(num_classes):
        with torch.device("meta"):
            return deeplab_v2(num_classes)
    return build


def test_528_tensors_match_21_classes(caffe, network, capsys):
    state = weights.convert_coco(caffe, network(21))
    assert "528 tensors match, 0 " in capsys.readouterr().out
    assert torch.equal(state["backbone.layer4.2.conv3.weight"], caffe["layer4.2.conv3.weight"])
    assert torch.equal(state["classifier.0.convs.3.bias"], caffe["layer5.conv2d_list.3.bias"])
    assert list(state) == list(network(21).state_dict())


def test_520_tensors_match_19_classes_and_the_head_stays(caffe, network, capsys):
    model = network(19)
    state = weights.convert_coco(caffe, model)
    assert "520 tensors match, 8 " in capsys.readouterr().out
    assert state["classifier.0.convs.0.weight"].shape == (19, 2048, 3, 3)
    assert state["classifier.0.convs.0.weight"].is_meta and not state["backbone.conv1.weight"].is_meta


@pytest.mark.parametrize("classes", [21, 19])
@pytest.mark.parametrize("change, message", [
    ({"layer1.0.conv1.weight": None}, "backbone.layer1.0.conv1.weight is missing"),
    ({"layer5.conv2d_list.2.weight": None}, "classifier.0.convs.2.weight is missing"),
    ({"layer5.conv2d_list.0.bias": None}, "classifier.0.convs.0.bias is missing"),
    ({"conv9.weight": torch.zeros(1)}, "backbone.conv9.weight is unknown"),
    ({"layer5.conv2d_list.4.bias": torch.zeros(21)}, "classifier.0.convs.4.bias is unknown"),
    ({"bn1.bias": torch.zeros(3)}, r"backbone.bn1.bias has shape \(3,\), not \(64,\)"),
])
def test_a_mismatch_is_named(caffe, network, classes, change, message):
    changed = {name: tensor for name, tensor in {**caffe, **change}.items() if tensor is not None}
    if classes == 19 and message == "classifier.0.convs.0.bias is missing":
        message = "classifier.0.convs.0"
    with pytest.raises(UserError, match=message):
        weights.convert_coco(changed, network(classes))


def convert(*arguments):
    return subprocess.run([sys.executable, "-m", "models.weights", "convert-coco", *map(str, arguments)], cwd=ROOT,
                          capture_output=True, text=True, timeout=120)


def with_hash(folder, write):
    """Write a file and give it the name that its SHA-256 asks for."""
    path = folder / "written"
    write(path)
    return path.rename(folder / f"resnet101COCO-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth")


def test_the_command_writes_both_files(caffe, tmp_path):
    file = with_hash(tmp_path, lambda path: torch.save(caffe, path))
    done = convert(file, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "528 tensors match" in done.stdout and "520 tensors match" in done.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "city_coco_resnet101.pt", "voc_coco_resnet101.pt"]
    for name, classes in weights.COCO_FILES.items():
        checkpoint = torch.load(tmp_path / "out" / name, weights_only=True, mmap=True)
        assert checkpoint["input_format"] == "coco"
        assert checkpoint["model"]["classifier.0.convs.0.bias"].shape == (classes,)
        assert checkpoint["model"]["backbone.bn1.running_var"][0] == caffe["bn1.running_var"][0]


class Evil:
    """Unpickles by creating a file in the working directory."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


@pytest.mark.parametrize("content, message", [
    (b"garbage", "is damaged or holds objects"), (pickle.dumps(Evil(), protocol=2), "is damaged or holds objects"),
    (b"", "is damaged"),
])
def test_broken_files_are_one_line_and_run_nothing(content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        load_checkpoint(with_hash(tmp_path, lambda path: path.write_bytes(content)))
    assert not (tmp_path / "unpickled").exists()


def test_truncated_and_foreign_files(tmp_path):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "whole.pt")
    (tmp_path / "half.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:2000])
    torch.save({"model": {"a": torch.zeros(1)}, "state_dict": {"a": torch.ones(1)}}, tmp_path / "two.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, message in (("half.pt", "damaged"), ("two.pt", "model and state_dict are dicts of tensors"),
                          ("list.pt", "it holds a list"), ("absent.pt", "cannot be read")):
        with pytest.raises(UserError, match=message):
            load_checkpoint(tmp_path / name)


def test_the_command_checks_the_hash_first(tmp_path):
    wrong = tmp_path / "resnet101COCO-41f33a49.pth"
    wrong.write_bytes(b"half a download")
    done = convert(wrong)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "is damaged" in done.stderr
    with pytest.raises(UserError, match="give the file its name back"):
        weights._check_hash(wrong.rename(tmp_path / "coco.pth"))


@pytest.mark.parametrize("wrap", [
    lambda state: state, lambda state: {"state_dict": state, "epoch": 3}, lambda state: {"model": state, "optimizer": None},
    lambda state: {f"module.{name}": value for name, value in state.items()},
    lambda state: {"state_dict": {f"module._orig_mod.{name}": value for name, value in state.items()}},
    lambda state: {f"backbone.{name}": value for name, value in state.items()} | {"classifier.4.bias": torch.zeros(21)}])
def test_wrappers_of_other_projects_are_taken_off(tmp_path, wrap):
    source = deeplab_v2(3, "small").backbone.state_dict()
    torch.save(wrap(source), tmp_path / "w.pth")
    model = deeplab_v2(2, "small")
    weights.load_imagenet_weights(model, tmp_path / "w.pth")
    assert all(torch.equal(tensor, source[name]) for name, tensor in model.backbone.state_dict().items())


def test_torchvision_weights_from_a_file(tmp_path):
    torch.manual_seed(1)
    source = resnet50().state_dict()
    del source["bn1.num_batches_tracked"]  # as in files from before it existed
    torch.save(source, tmp_path / "resnet50.pth")
    model = deeplab_v2(3, "resnet50")
    head = model.classifier[0].convs[0].weight.clone()
    weights.load_imagenet_weights(model, str(tmp_path / "resnet50.pth"))
    assert all(torch.equal(tensor, source[name]) for name, tensor in model.backbone.state_dict().items()
               if name in source)
    assert torch.equal(model.classifier[0].convs[0].weight, head)
    with pytest.raises(UserError, match="does not fit the backbone small: .* has shape"):
        weights.load_imagenet_weights(deeplab_v2(3, "small"), tmp_path / "resnet50.pth")


def test_none_and_small_stay_random(capsys):
    model = deeplab_v2(3, "small")
    before = model.backbone.conv1.weight.clone()
    weights.load_imagenet_weights(model, "none")
    assert capsys.readouterr().out == ""
    weights.load_imagenet_weights(model, None)
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert torch.equal(model.backbone.conv1.weight, before)


def test_a_failed_download_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for variable in ("http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(UserError, match="resnet101-63fe2227.pth cannot be had .*checkpoints/resnet101-63fe2227.pth.*"
                                        "--weights none"):
        with torch.device("meta"):
            model = deeplab_v2(3)
        weights.load_imagenet_weights(model, None)
