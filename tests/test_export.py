"""Networks that leave this software: ONNX, torch.export and safetensors, compared, described, and run elsewhere."""

import functools
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from data.specs import load_spec
from models import deeplab_v2, upsample
from models.description import describe, said_by_checkpoint
from models.deeplab import COCO, IMAGENET, traits
from predict.export import how_to_use, largest_difference, read_program
from predict.onnx import OnnxNetwork
from tests.conftest import REPOSITORY
from tests.test_stages import first_weights
from tools import export
from utils.checkpoints import load
from utils.errors import UserError
from utils.files import sha256

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

NAMES = ["soil", "crop", "weed"]
COLORS = [[0, 0, 0], [0, 160, 0], [200, 0, 0]]


def checkpoint(path, branches=2, **more):
    """Write a checkpoint of a small network, with statistics as after training; returns the network."""
    torch.manual_seed(0)
    network = deeplab_v2(3, "small", branches)
    for name, value in network.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            value.add_(torch.rand_like(value))
    torch.save({"model": network.state_dict(), "class_names": NAMES, "palette": COLORS, "dataset": "weeds",
                "background": 0, "test_size": [65, 81], "test_by": "pad", "aspp_branches": branches,
                "recipe": {"lr": 0.002}, "miou": 0.5, **more}, path)
    return network.eval()


@pytest.fixture
def run(called):
    """Run tools/export.py; returns (exit status, standard output, standard error)."""
    return functools.partial(called, export.main)


@pytest.fixture(scope="module")
def upsampling(tmp_path_factory):
    """(network, its checkpoint, its ONNX file that upsamples); the checkpoint says it was trained with --coco."""
    path = tmp_path_factory.mktemp("onnx") / "net.pt"
    network = checkpoint(path, input_format="coco")
    export.main([str(path), "--upsample"])
    return network, path, path.with_suffix(".onnx")


def logits_of(network, images, upsampled):
    with torch.inference_mode():
        logits = network(images)
        return upsample(logits, images.shape[2:]) if upsampled else logits


SIZES = [(1, 9, 9), (3, 33, 50), (2, 100, 64), (1, 1, 7)]  # torch.export takes no smaller than 9; ONNX does


@pytest.mark.parametrize("count, height, width", SIZES)
def test_onnx_gives_the_networks_logits_at_any_size(upsampling, count, height, width):
    network, _, path = upsampling
    images = COCO.normalize(torch.randint(256, (count, height, width, 3), dtype=torch.uint8))
    expected, found = logits_of(network, images, True), OnnxNetwork(path)(images)
    assert found.dtype == torch.float32 and found.shape == (count, 3, height, width)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_an_onnx_network_knows_what_it_is(upsampling):
    _, path, file = upsampling
    described = describe(OnnxNetwork(file).values)
    assert described.num_classes == 3 and described.class_names == tuple(NAMES)
    assert described.palette == ((0, 0, 0), (0, 160, 0), (200, 0, 0)) and described.input_format == COCO
    assert described.test_size == (65, 81) and described.facts["recipe"] == {"lr": 0.002}
    metadata = {entry.key: json.loads(entry.value) for entry in onnx.load(file).metadata_props}
    assert metadata["checkpoint"] == "net.pt" and metadata["checkpoint_sha256"] == sha256(path)
    how = metadata["preprocessing"]
    assert (how["channels"], how["range"], how["std"]) == ("BGR", 255, [1, 1, 1])
    assert how["mean"] == [104.008, 116.669, 122.675] and "padded" in how["size"]
    assert metadata["postprocessing"]["stride"] == 1


def test_the_file_is_plain_onnx_without_traces_of_this_machine(upsampling):
    model = onnx.load(upsampling[2])
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain: entry.version for entry in model.opset_import}[""] >= 17
    shapes = [[dim.dim_param or dim.dim_value for dim in part.type.tensor_type.shape.dim]
              for part in (model.graph.input[0], model.graph.output[0])]
    assert shapes == [["batch", 3, "height", "width"], ["batch", 3, "height", "width"]]
    content = upsampling[2].read_bytes()
    assert str(REPOSITORY).encode() not in content and b".py" not in content
    assert not any(tensor.external_data for tensor in model.graph.initializer)


def test_onnx_at_an_eighth_with_all_branches(tmp_path, run):
    network = checkpoint(tmp_path / "net.pt", branches=4, input_format="imagenet")
    status, printed, errors = run(tmp_path / "net.pt", "--out", tmp_path / "new" / "other.onnx")
    assert status == 0 and errors == "", errors
    assert "4 ASPP branches, 3 classes, input format imagenet, dataset weeds" in printed
    assert f"checked with onnxruntime {onnxruntime.__version__} on 5 sizes" in printed
    file = tmp_path / "new" / "other.onnx"
    exported, images = OnnxNetwork(file), torch.randn(2, 3, 70, 41)
    expected, found = logits_of(network, images, False), exported(images)
    assert found.shape == (2, 3, 9, 6) and exported.values["input_format"] == IMAGENET
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    metadata = {entry.key: json.loads(entry.value) for entry in onnx.load(file).metadata_props}
    assert metadata["postprocessing"]["stride"] == 8 and "aligned corners" in metadata["postprocessing"]["upsample"]


def test_torch_export(upsampling, tmp_path, run):
    network, path, _ = upsampling
    status, printed, errors = run(path, "--out", tmp_path / "net.pt2")
    assert status == 0 and "checked with torch" in printed, errors
    program, metadata = read_program(tmp_path / "net.pt2")
    for count, height, width in SIZES[:3]:
        images = torch.randn(count, 3, height, width)
        assert torch.allclose(program(images), logits_of(network, images, False), rtol=1e-4, atol=1e-5)
    assert metadata["class_names"] == NAMES and metadata["preprocessing"]["channels"] == "BGR"
    assert str(REPOSITORY).encode() not in (tmp_path / "net.pt2").read_bytes()


def test_safetensors(upsampling, tmp_path, run):
    _, path, _ = upsampling
    status, printed, errors = run(path, "--to=safetensors", "--out", tmp_path / "net.safetensors")
    assert status == 0 and "wrote" in printed, errors
    expected, found = torch.load(path, weights_only=True), load(tmp_path / "net.safetensors")
    assert all(torch.equal(value, found["model"][name]) for name, value in expected["model"].items())
    assert found["palette"] == COLORS and found["recipe"] == {"lr": 0.002} and found["miou"] == 0.5
    assert found["checkpoint_sha256"] == sha256(path)


def test_nothing_is_overwritten_unasked(upsampling, tmp_path, run):
    _, path, _ = upsampling
    target = tmp_path / "net.safetensors"
    target.write_text("mine")
    status, _, errors = run(path, "--out", target)
    assert status == 2 and "--force" in errors and target.read_text() == "mine"
    assert run(path, "--out", target, "--force")[0] == 0 and load(target)["class_names"] == NAMES


@pytest.mark.parametrize("words, said", [
    (["--out", "net.bin"], "must end in .onnx"), (["--out", "new.onnx", "--to", "torch-export"], "must end in .pt2"),
    (["--to", "safetensors", "--upsample"], "leave it out"), (["--coco=1"], "--help"),
    (["other.pt", "--force"], "other.pt is missing"),
    (["more.pt", "--out=new.onnx"], "several checkpoints"),
    (["net.onnx", "--force"], "exported network already"),
    (["--dataset=voc", "--force"], "trained for 3 classes, but voc has 21")])
def test_mistakes_end_in_one_line(tmp_path, run, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    checkpoint("net.pt")
    (tmp_path / "net.onnx").touch()
    (tmp_path / "more.pt").touch()
    before = sorted(tmp_path.iterdir())
    status, _, errors = run("net.pt", *words)
    assert status == 2 and said in errors and len(errors.splitlines()) == 1, errors
    assert sorted(tmp_path.iterdir()) == before


def test_old_checkpoints_are_exported_with_a_note(tmp_path, run):
    network = checkpoint(tmp_path / "net.pt")
    torch.save({"model": network.state_dict(), "optimizer": None, "lr_scheduler": None}, tmp_path / "old.pt")
    status, _, errors = run(tmp_path / "old.pt", "--to=safetensors", "--coco")
    assert status == 0 and len(errors.splitlines()) == 1 and "names of the classes" in errors
    found = load(tmp_path / "old.safetensors")
    assert found["class_names"] == ["class 0", "class 1", "class 2"] and found["input_format"] == "coco"


def test_a_dataset_names_the_classes_of_an_old_checkpoint(tmp_path, run):
    first_weights(tmp_path / "old.pt", 8)
    assert run(tmp_path / "old.pt", "--to=safetensors", "--dataset=shapes")[0] == 0
    found, spec = load(tmp_path / "old.safetensors"), load_spec("shapes")
    assert found["class_names"] == list(spec.class_names) and found["test_size"] == list(spec.test_size)
    assert (found["dataset"], found["background"], found["ignore"]) == ("shapes", spec.background, 255)
    assert found["palette"] == [list(color) for color in spec.palette]


def test_a_file_that_differs_gets_no_name(tmp_path, run):
    """A negative variance is finite, but its root is not, so nothing can be equal."""
    network = checkpoint(tmp_path / "net.pt")
    state = network.state_dict()
    state["backbone.bn1.running_var"][0] = -1
    torch.save({"model": state}, tmp_path / "bad.pt")
    status, _, errors = run(tmp_path / "bad.pt", "--to=torch-export")
    assert status == 2 and "differs" in errors.splitlines()[-1] and "nothing was written" in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.pt", "net.pt"]


def test_largest_difference_finds_it():
    def double(images):
        return 2 * images.mean(dim=1, keepdim=True)

    def with_error(images):  # in one image of one size only
        logits = double(images)
        if len(images) == 3:
            logits[1, 0, 5, 7] += 0.5
        return logits

    difference, largest = largest_difference(double, with_error, IMAGENET, traits("small"))
    assert difference == pytest.approx(0.5, rel=1e-5) and 1 < largest < 2 * 2.7
    assert largest_difference(double, double, IMAGENET, traits("small"))[0] == 0
    shorter = largest_difference(double, lambda images: double(images)[:, :, :-1], IMAGENET, traits("small"))
    assert shorter[0] == float("inf")


# --- ONNX files of others ---------------------------------------------------------------------------------------------


def network_file(path, metadata, shape=(None, 3, None, None), kind=onnx.TensorProto.FLOAT):
    """An ONNX file that gives its input back; ``metadata`` as in exported files."""
    values = [onnx.helper.make_tensor_value_info(name, kind, shape) for name in ("images", "logits")]
    node = onnx.helper.make_node("Identity", ["images"], ["logits"])
    graph = onnx.helper.make_graph([node], "network", values[:1], values[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata.items()})
    onnx.save(model, path)


@pytest.fixture
def metadata(tmp_path):
    """The metadata of a network of three classes."""
    checkpoint(tmp_path / "net.pt")
    description = describe(said_by_checkpoint(load(tmp_path / "net.pt"), "net.pt"))
    return {**description.values(), **how_to_use(description, upsampled=False)}


def refuse(path, images=None):
    """The line with which the file is refused, when it is opened or when it is run on ``images``."""
    with pytest.raises(UserError) as caught:
        network = OnnxNetwork(path)
        assert images is not None, "opened"
        network(images)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_any_onnx_file_that_describes_itself_is_run(tmp_path, metadata):
    network_file(tmp_path / "own.onnx", {**metadata, "input_format": "mine", "preprocessing": {
        "channels": "RGB", "range": 2.0, "mean": [1, 1, 1], "std": [1, 2, 4]}})
    network = OnnxNetwork(tmp_path / "own.onnx")
    normalized = network.values["input_format"].normalize(torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8))
    assert network(normalized).flatten().tolist() == pytest.approx([1, -0.3, -0.25])  # red is 255, then (2 - 1) / 1


def test_onnx_files_that_say_too_little_or_nonsense(tmp_path, metadata):
    path = tmp_path / "x.onnx"
    for lacking in ("class_names", "palette", "num_classes", "preprocessing"):
        network_file(path, {key: value for key, value in metadata.items() if key != lacking})
        assert lacking in refuse(path)
    how = metadata["preprocessing"]
    for key, value in (("class_names", ["a", "b"]), ("palette", 3), ("num_classes", 0), ("preprocessing", []),
                       ("preprocessing", {**how, "std": [1, 0, 1]}), ("preprocessing", {**how, "channels": "LAB"}),
                       ("preprocessing", {**how, "mean": [1e999, 0, 0]}), ("test_size", "large")):
        network_file(path, {**metadata, key: value})
        refuse(path)
    network_file(path, metadata)
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {"class_names": "soil,crop"})
    onnx.save(model, path)
    assert "metadata" in refuse(path)


def test_onnx_files_that_take_or_give_something_else(tmp_path, metadata):
    path = tmp_path / "x.onnx"
    network_file(path, metadata, kind=onnx.TensorProto.DOUBLE)
    refuse(path)
    network_file(path, metadata, shape=(None, 4, None, None))
    refuse(path)
    network_file(path, metadata, shape=(1, 3, 32, 32))
    assert "33 x 32 pixels, 2 at once" in refuse(path, torch.zeros(2, 3, 32, 33))
    network_file(path, {**metadata, "num_classes": 2, "class_names": ["a", "b"], "palette": COLORS[:2]})
    assert "2 classes" in refuse(path, torch.zeros(1, 3, 8, 8))


def test_files_that_are_no_onnx(upsampling, tmp_path):
    path, whole = tmp_path / "x.onnx", upsampling[2].read_bytes()
    refuse(path)  # not there
    for content in (b"", b"onnx", whole[: len(whole) // 2], whole[100:], b"\0" * 5000,
                    whole.replace(b"class_names", b"class_nam\xff\xff")):
        path.write_bytes(content)
        refuse(path)


# --- without this software --------------------------------------------------------------------------------------------


def test_the_documented_example_runs_without_this_software(upsampling, tmp_path):
    network, _, path = upsampling
    text = (REPOSITORY / "docs" / "predicting.md").read_text(encoding="utf-8")
    example, = [code for code in re.findall(r"```python\n(.*?)```", text, re.S) if "onnxruntime" in code]
    assert len(example.splitlines()) <= 15
    (tmp_path / "run_onnx.py").write_text(example)
    pixels = np.random.default_rng(0).integers(0, 256, (45, 70, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    done = subprocess.run([sys.executable, "-X", "importtime", "run_onnx.py", path, "photo.png", "classes.png"],
                          cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    modules = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert not modules & {"torch", "cv2", "models", "utils"} and "numpy" in modules
    images = COCO.normalize(torch.from_numpy(pixels[None, :, :, ::-1].copy()))
    expected = logits_of(network, images, True)[0].argmax(0).numpy()
    found = Image.open(tmp_path / "classes.png")
    assert (np.asarray(found) != expected).mean() < 0.001  # a tie may fall to the other side
    assert found.mode == "P" and found.getpalette()[:9] == sum(COLORS, [])


def test_help_is_quick_and_says_what_to_do(script):
    for words in (["tools/export.py"], ["-m", "tools.export"]):
        done = script("-X", "importtime", *words, "--help")
        assert done.returncode == 0 and "runs/demo/demo__p2--l.pt" in done.stdout and "--upsample" in done.stdout
        assert not {"torch", "onnx", "numpy"} & {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
