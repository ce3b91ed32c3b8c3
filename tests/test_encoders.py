"""Encoders of timm: a CNN at both strides and a transformer, tiny and random, through the whole chain."""

import json
import signal

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from models import deeplab, deeplab_v2
from models.deeplab import IMAGENET, traits
from models.encoder import Encoder
from models.weights import load_imagenet_weights
from tests.test_distributed import torchrun
from tools import export, predict
from utils.checkpoints import load, load_checkpoint
from utils.errors import UserError

CNN, TRANSFORMER = "timm/test_efficientnet", "timm/test_vit"
CASES = {"stride 8": (CNN, [], 8, 33, 65), "stride 16": (CNN, ["--output-stride=16"], 16, 33, 65),
         "transformer": (TRANSFORMER, [], 16, 32, 64)}

MUTUAL = ["--continue-from=a.pt", "--epochs=1", "--batch-size-pseudo=5", "--accumulate=2", "--gamma1=5", "--gamma2=5"]


def whole(backbone, **options):
    """timm's network with its classifier, and weights that a seed tells."""
    torch.manual_seed(5)
    return timm.create_model(backbone.removeprefix("timm/"), **options)


@pytest.fixture(scope="module", params=CASES)
def chain(request, shapes_root, tmp_path_factory):
    """(case, output folder, options of every stage) after training from a file, labelling, mutual training and PLE."""
    import main
    backbone, stride, _, crop, test = CASES[request.param]
    out = tmp_path_factory.mktemp("encoders") / "out"
    weights = out.parent / "first.safetensors"
    safetensors.torch.save_file(whole(backbone).state_dict(), weights)
    common = ["--dataset=shapes", f"--data-root={shapes_root}", f"--output-dir={out}", "--train-set=8", "--sets-id=1",
              "--workers=0", "--crop-size", str(crop), str(crop), "--test-size", str(test), str(test)]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for words in (["--state=2", "--exp-name=a", f"--backbone={backbone}", *stride, f"--weights={weights}", "--epochs=2",
                   "--batch-size-labeled=4", "--lr=0.01"],
                  ["--labeling", "--continue-from=a.pt", "--label-ratio=0.5"],
                  ["--exp-name=b", *MUTUAL],
                  ["--labeling", "--continue-from=b.pt", "--oldfilename=a.pt", f"--pseudo-dir={out}/ple"]):
        main.main([*words, *common])
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return request.param, out, common


def test_the_checkpoint_says_its_network_and_learnt(chain):
    name, out, _ = chain
    backbone, _, stride, _, _ = CASES[name]
    config = timm.get_pretrained_cfg(backbone.removeprefix("timm/"))
    for file in ("a.pt", "b.pt"):
        said = load(out / file)
        assert (said["backbone"], said["output_stride"]) == (backbone, stride)
        assert (tuple(said["mean"]), tuple(said["std"])) == (config.mean, config.std)
    first = load(out / "a.pt")["model"]
    drawn = deeplab_v2(8, backbone, 2, stride).state_dict()
    assert list(first) == list(drawn)
    changed = [name for name, tensor in load(out / "b.pt")["model"].items() if not torch.equal(tensor, first[name])]
    assert any("backbone" in name for name in changed) and any("classifier" in name for name in changed)
    assert json.loads((out / "ple" / "manifest.json").read_text())["previous"] == "a.pt"


def test_no_stage_needs_an_option_and_a_wrong_one_is_refused(chain, command):
    name, out, common = chain
    backbone, _, stride, _, _ = CASES[name]
    status, printed, errors = command("--state=3", "--continue-from=b.pt", "--second-arm=a.pt", "--protocol=sliding",
                                      "--window", "40", "40", "--scales", "0.75", "1", "--flip", *common)
    assert status == 0, errors
    side = {"stride 8": 41, "stride 16": 49, "transformer": 48}[name]  # 40, as this network takes it
    assert f"sliding windows of {side} x {side}" in printed
    status, printed, errors = command("--check", "--continue-from=b.pt", "--max-memory=3", *common)
    assert status == 0 and "for training" in printed, errors
    for option in ("--backbone=small", f"--output-stride={24 - stride}", "--coco"):
        status, _, errors = command("--labeling", "--continue-from=b.pt", f"--pseudo-dir={out}/none", option, *common)
        assert status == 2 and option.split("=")[0] in errors and len(errors.splitlines()) == 1, errors


def test_a_stopped_training_ends_with_the_same_bits(chain, command, monkeypatch):
    from dmt.training import Trainer
    _, out, common = chain
    line = ["--exp-name=b2", *MUTUAL, *common]
    learn, done = Trainer.step, []

    def stopped(trainer, *batch):
        learn(trainer, *batch)
        done.append(batch)
        if len(done) == 2:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stopped)
        assert command(*line)[0] == 128 + signal.SIGTERM
    assert command(*line)[0] == 0
    one, other = (load(out / name)["model"] for name in ("b.pt", "b2.pt"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_prediction_of_any_size_and_export(chain, tmp_path, called, shapes_root):
    name, out, _ = chain
    images = sorted((shapes_root / "JPEGImages").iterdir())[:3]
    kind = "onnx" if name == "transformer" else "torch-export"
    file = tmp_path / f"b{export.SUFFIXES[kind]}"
    status, printed, errors = called(export.main, str(out / "b.pt"), "--out", str(file))
    assert status == 0 and "largest difference" in printed, errors
    for source, folder in ((out / "b.pt", "one"), *([(file, "other")] if kind == "onnx" else [])):
        status, _, errors = called(predict.main, "--checkpoint", str(source), "--out", str(tmp_path / folder),
                                   *map(str, images))
        assert status == 0, errors
        assert len(list((tmp_path / folder / "labels").iterdir())) == 3


@pytest.mark.parametrize("chain", ["stride 8", "transformer"], indirect=True)
def test_two_processes_learn_what_one_does(chain, command, tmp_path):
    """The last batch has one image, so one process has none of it."""
    _, out, common = chain
    words = ["--state=2", "--continue-from=a.pt", "--epochs=1", "--batch-size-labeled=7", "--lr=0.01", "--device=cpu",
             *common]
    assert command(*words, "--exp-name=by1")[0] == 0
    (tmp_path / "lines.json").write_text(json.dumps([[str(word) for word in (*words, "--exp-name=by2")]]))
    done = torchrun(2, "tests/together.py", tmp_path / "lines.json")
    assert done.returncode == 0, done.stderr
    before, alone, both = (load(out / f"{name}.pt")["model"] for name in ("a", "by1", "by2"))
    learnt = [key for key in alone if alone[key].is_floating_point() and not torch.equal(alone[key], before[key])]
    assert len(learnt) > 20
    for key in learnt:
        change = alone[key] - before[key]
        assert (both[key] - alone[key]).norm() <= 0.01 * change.norm() + 1e-6, key


# --- the encoder alone ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone, options, side", [
    (CNN, {"output_stride": 8}, 33), (CNN, {"output_stride": 16}, 33), (TRANSFORMER, {"dynamic_img_size": True}, 32)])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_from_a_file_give_timms_last_feature_map(backbone, options, side, suffix, tmp_path):
    network = whole(backbone, **options).eval()
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_mean)
    path = tmp_path / f"whole.{suffix}"
    (safetensors.torch.save_file if suffix == "safetensors" else torch.save)(network.state_dict(), path)
    encoder, images = Encoder(backbone, options.get("output_stride")).eval(), torch.randn(2, 3, side, side)
    encoder.load(load_checkpoint(path)["model"])
    with torch.inference_mode():
        expected = network.forward_intermediates(images, indices=1, norm=False, intermediates_only=True)[-1]
        assert torch.allclose(encoder(images), expected, atol=1e-5)


def test_weights_that_do_not_fit_are_one_line(tmp_path):
    network, state, path = deeplab_v2(3, CNN), whole(CNN).state_dict(), tmp_path / "some.pth"
    encoder = network.backbone
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    torch.save({name: tensor for name, tensor in state.items() if name != "conv_stem.weight"}, path)
    with pytest.raises(UserError, match="some.pth does not fit .* has nothing for conv_stem.weight"):
        load_imagenet_weights(network, path)
    torch.save(whole("timm/test_resnet").state_dict(), path)
    with pytest.raises(UserError, match="some.pth does not fit the backbone timm/test_efficientnet"):
        load_imagenet_weights(network, path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="no checkpoint that can be trusted"):
        load_imagenet_weights(network, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_a_download_that_fails_names_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="give --weights FILE, or --weights none") as failed:
        Encoder(CNN).load()
    assert "\n" not in str(failed.value)


@pytest.mark.parametrize("backbone, stride, said", [
    ("timm/efficientnet_lite9", None, "timm/efficientnet_lite0"),
    ("timm/resnet50.a9_in1k", None, "timm/resnet50.a1_in1k"),
    ("timm/hf-hub:somebody/model", None, "no such model"), ("timm/test_vit", 8, "has its own, 16"),
    ("timm/vgg11", 16, "leave --output-stride out"), ("timm/test_vit_relpos", None, "choose another one"),
    ("resnet50", 16, "output stride 8")])
def test_what_timm_does_not_have_is_one_line(backbone, stride, said):
    with pytest.raises(UserError, match=said) as refused:
        deeplab_v2(3, backbone, 2, stride)
    assert "\n" not in str(refused.value)


def test_sizes_and_formats_are_the_encoders():
    """By hand: a patch of 14; a stem of 4 x 4 without overlap; convolutions with padding; windows of no fixed size."""
    own = traits("timm/vit_small_patch14_dinov2")
    assert own[:3] == (14, 0, True) and own.input_format == IMAGENET
    with pytest.raises(UserError, match="nearest are --crop-size 308 322 and --crop-size 322 322"):
        own.check_size((321, 322), "timm/vit_small_patch14_dinov2", "--crop-size")
    own.check_size((322, 308), "", "")
    assert traits("timm/test_convnext")[:3] == (8, 0, False) and traits("timm/test_resnet", 16)[:3] == (16, 1, False)
    assert traits(CNN)[:3] == traits("small")[:3] == (8, 1, False)
    assert traits("timm/swin_tiny_patch4_window7_224")[:3] == (32, 0, True)
    encoder = Encoder("timm/swin_tiny_patch4_window7_224")
    assert encoder(torch.randn(1, 3, 64, 96)).shape == (1, 768, 2, 3)  # timm gives (1, 2, 3, 768)
    assert not any(getattr(module, "drop_prob", None) for module in encoder.modules())  # nothing is drawn in training


def test_what_follows_in_timms_normalization_stays_when_processes_share_it():
    torch.manual_seed(0)
    encoder, other = Encoder(CNN).eval(), Encoder(CNN).eval()
    other.load_state_dict(encoder.state_dict())
    deeplab.synchronize(other)
    assert list(other.state_dict()) == list(encoder.state_dict())
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in other.modules())
    images = torch.randn(2, 3, 33, 33)
    assert torch.allclose(other(images), encoder(images), atol=1e-6)
