"""A checkpoint can be used alone: what it says of itself, what old ones leave open, and the same as safetensors."""

import contextlib
import io
import json

import pytest
import torch

from data.specs import BUILT_IN as SPECS, load_spec
from models import deeplab_v2
from models.description import describe, said_by_checkpoint, voc_colors
from models.deeplab import COCO, IMAGENET
from predict import load as load_networks
from tests.test_stages import SMALL, first_weights
from utils.checkpoints import load, save, save_safetensors
from utils.errors import UserError

TEST_SIZE = ["--test-size", 65, 65]


def stage(root, out, name, *more):
    """The command line of a short training on the generated shapes."""
    return ["--dataset=shapes", f"--data-root={root}", f"--output-dir={out}", "--train-set=8", "--epochs=1",
            "--val-num-steps=3", f"--exp-name={name}", *SMALL, *TEST_SIZE, *more]


@pytest.fixture(scope="module")
def trained(shapes_root, tmp_path_factory):
    """The output folder of a supervised stage ``first`` and a mutual one, ``second``, that starts from it."""
    import main
    out = tmp_path_factory.mktemp("trained")
    with contextlib.redirect_stdout(io.StringIO()):
        main.main(list(map(str, stage(shapes_root, out, "first", "--state=2", "--batch-size-labeled=4", "--coco"))))
        main.main(list(map(str, stage(shapes_root, out, "labels", "--labeling", "--continue-from=first.pt", "--coco"))))
        main.main(list(map(str, stage(shapes_root, out, "second", "--continue-from=first.pt", "--coco", "--gamma1=2",
                                      "--batch-size-labeled=1", "--batch-size-pseudo=8", "--seed=5"))))
    return out


def alone(path, **answers):
    """The ``predict.network.Member`` of the checkpoint ``path``, from the file alone."""
    return load_networks(path, device="cpu", **answers).members[0]


def content(path):
    return torch.load(path, weights_only=True)


def test_a_checkpoint_carries_what_is_needed_to_use_it_alone(trained, shapes_root):
    spec, carried = load_spec("shapes"), content(trained / "second.pt")
    assert carried["class_names"] == list(spec.class_names) and carried["num_classes"] == 8
    assert carried["palette"] == [list(color) for color in spec.palette]
    assert (carried["background"], carried["ignore"], carried["dataset"]) == (spec.background, 255, "shapes")
    assert (carried["backbone"], carried["aspp_branches"], carried["input_format"]) == ("small", 2, "coco")
    assert (carried["test_size"], carried["test_by"]) == ([65, 65], spec.test_by)
    recipe = carried["recipe"]
    assert (recipe["gamma1"], recipe["seed"], recipe["epochs"], recipe["crop"]) == (2, 5, 1, [33, 33])
    assert (recipe["batch_size_labeled"], recipe["batch_size_pseudo"], recipe["lr"]) == (1, 8, 0.002)
    assert carried["software"]["torch"] == torch.__version__
    assert carried["step"] == 2 and 0 <= carried["miou"] <= 1 and len(carried["iou"]) == 8
    from data.lists import read_list
    from data.lists import names_digest
    from utils.files import sha256
    lists = shapes_root / "ImageSets/Segmentation"
    assert carried["lists"]["labeled_names"] == names_digest(read_list(lists / "8_labeled_0.txt"))
    assert carried["lists"]["unlabeled_names"] == names_digest(read_list(lists / "8_unlabeled_0.txt"))
    assert carried["lists"]["validation_names"] == names_digest(read_list(lists / "val.txt"))
    assert len(carried["lists"]["pseudo_labels"]) == 64
    assert "pseudo_labels" not in content(trained / "first.pt")["lists"]
    assert recipe["start"] == sha256(trained / "first.pt")


def test_what_it_carries_depends_on_neither_time_nor_place(trained, shapes_root, tmp_path, command):
    line = stage(shapes_root, tmp_path / "elsewhere", "first", "--state=2", "--batch-size-labeled=4", "--coco")
    assert command(*line)[0] == 0
    assert (tmp_path / "elsewhere" / "first.pt").read_bytes() == (trained / "first.pt").read_bytes()


def test_the_network_is_built_from_the_file_alone(trained):
    arm, spec = alone(trained / "second.pt"), load_spec("shapes")
    assert (arm.description.class_names, arm.description.palette) == (spec.class_names, spec.palette)
    assert arm.description.input_format == COCO and arm.description.test_size == (65, 65)
    assert arm.description.assumed == () and arm.network.backbone_name == "small"
    for name, value in content(trained / "second.pt")["model"].items():
        assert torch.equal(arm.network.state_dict()[name], value), name


@pytest.mark.parametrize("backbone, counters, extra", [
    ("resnet101", True, {}), ("resnet50", True, {"optimizer": None, "lr_scheduler": None}),
    ("small", False, {"amp": {"loss_scaler0": {"loss_scale": 65536.0}}})])
def test_an_old_checkpoint_is_told_by_its_shapes(backbone, counters, extra):
    with torch.device("meta"):
        shapes = deeplab_v2(5, backbone).state_dict()
    state = {name: torch.zeros(value.shape) for name, value in shapes.items() if counters or "num_batches" not in name}
    description = describe(said_by_checkpoint({"model": state, **extra}, "old.pt"))
    assert (description.backbone, description.num_classes, description.aspp_branches) == (backbone, 5, 2)
    assert description.class_names == ("class 0", "class 1", "class 2", "class 3", "class 4")
    assert description.input_format == IMAGENET and len(description.assumed) == 4 and description.test_size is None


def test_what_an_old_checkpoint_does_not_say_is_asked_for(tmp_path):
    first_weights(tmp_path / "old.pt", 4)
    old = content(tmp_path / "old.pt")
    description = describe(said_by_checkpoint(old, "old.pt"), coco=True, aspp_branches=4)
    assert description.input_format == COCO and description.aspp_branches == 4
    assert [words.split()[0] for words in description.assumed] == ["names", "colours"]
    says = said_by_checkpoint({**old, "input_format": "imagenet"}, "old.pt")
    assert describe(says, coco=True).input_format == IMAGENET


def test_colours_of_classes_without_a_palette_are_vocs():
    spec = load_spec("voc")
    assert voc_colors(21) == [list(color) for color in spec.palette]


WRONG = [("class_names", ["a", "b", "c"]), ("class_names", "abcd"), ("class_names", [1, 2, 3, 4]), ("num_classes", 5),
         ("palette", [[0, 0, 0]]), ("palette", [[0, 0, 300]] * 4), ("backbone", "resnet9"),
         ("backbone", [torch.ones(2)]),
         ("aspp_branches", torch.ones(2)), ("aspp_branches", 3), ("input_format", "hsv"), ("input_format", ["coco"]),
         ("test_size", [65]), ("test_size", [0, 9]), ("recipe", []),
         ("miou", torch.ones(1)), ("background", 2.5)]


@pytest.mark.parametrize("key, value", WRONG, ids=lambda value: str(value)[:20])
def test_descriptions_that_cannot_be(tmp_path, command, shapes_root, key, value):
    """Of the file alone, and through the command line of a stage."""
    first_weights(tmp_path / "odd.pt", 4)
    torch.save({**content(tmp_path / "odd.pt"), key: value}, tmp_path / "odd.pt")
    with pytest.raises(UserError, match="odd.pt") as caught:
        alone(tmp_path / "odd.pt")
    assert key in str(caught.value) or "classes" in str(caught.value)
    assert len(str(caught.value)) < 500


def odd_tensors():
    """Tensors that torch's reader accepts and that no weights can be copied from."""
    yield torch.zeros(4).to(torch.float8_e4m3fn)
    yield torch.zeros(4).to_sparse()
    yield torch.empty(4, device="meta")
    yield torch.zeros(4, dtype=torch.complex64)
    yield torch.tensor(4.0)
    yield torch.zeros(2, 4)
    yield [1, 2]


def test_tensors_of_other_kinds_are_refused_in_one_line(tmp_path, command, shapes_root):
    path = tmp_path / "odd.pt"
    first_weights(path, 8)
    whole = content(path)
    for odd in odd_tensors():
        whole["model"]["classifier.0.convs.0.bias"] = odd
        torch.save(whole, path)
        status, _, errors = command("--state=3", "--dataset=shapes", f"--data-root={shapes_root}", *SMALL, *TEST_SIZE,
                                    f"--continue-from={path}")
        assert status == 2 and str(path) in errors and len(errors.splitlines()) == 1, errors
        with pytest.raises(UserError):
            alone(path)


def test_other_classes_are_refused_and_another_dataset_with_the_same_classes_is_fine(trained, tmp_path, shapes_root,
                                                                                     command):
    from data.specs import BUILT_IN
    text = (BUILT_IN / "shapes.yaml").read_text()
    (tmp_path / "same.yaml").write_text(text.replace("name: shapes", "name: same"))
    first = load_spec("shapes").class_names[1]
    (tmp_path / "other.yaml").write_text(text.replace(f"name: {first}", "name: something"))
    line = ["--state=3", f"--data-root={shapes_root}", "--coco", *SMALL, *TEST_SIZE,
            f"--continue-from={trained / 'first.pt'}"]
    assert command(*line, f"--dataset={tmp_path / 'same.yaml'}")[0] == 0
    status, _, errors = command(*line, f"--dataset={tmp_path / 'other.yaml'}")
    assert status == 2 and "other classes" in errors


# --- safetensors ------------------------------------------------------------------------------------------------------


@pytest.fixture
def safe(trained, tmp_path):
    """The checkpoint ``first`` as a safetensors file."""
    description = alone(trained / "first.pt").description
    path = tmp_path / "first.safetensors"
    save_safetensors(path, content(trained / "first.pt")["model"], description.values())
    return path


def test_a_new_head_on_the_encoder_of_a_checkpoint(trained, tmp_path, shapes_root, command):
    text = (SPECS / "shapes.yaml").read_text().replace("  - {name: star, color: [70, 240, 240]}\n", "")
    (tmp_path / "seven.yaml").write_text(text.replace("ignore: 255", "masks: color\nignore_colors: others"))
    words = stage(shapes_root, tmp_path, "new", "--state=2", f"--continue-from={trained / 'first.pt'}", "--lr=1e-9")
    words[0] = f"--dataset={tmp_path / 'seven.yaml'}"
    words.remove("--weights=none")
    status, _, errors = command(*words)
    assert status == 2 and "--new-head" in errors
    assert command("--check", "--new-head", *words)[0] == 0
    status, _, errors = command("--new-head", *words)
    assert status == 0, errors
    first, new = (load(folder / f"{name}.pt")["model"] for folder, name in ((trained, "first"), (tmp_path, "new")))
    assert torch.allclose(first["backbone.conv1.weight"], new["backbone.conv1.weight"], atol=1e-6)
    assert new["classifier.0.convs.0.bias"].shape == (7,)
    status, _, errors = command("--new-head", "--labeling", *words)
    assert status == 2 and "--new-head" in errors and len(errors.splitlines()) == 1


def test_foreign_wrappers_of_a_checkpoint_are_taken_off(trained, tmp_path, shapes_root, command):
    content = load(trained / "first.pt")
    state = {f"module.{name}": tensor for name, tensor in content["model"].items()}
    torch.save({**content, "model": state}, tmp_path / "a.pt")
    torch.save({"state_dict": state}, tmp_path / "b.pt")
    results = []
    for path in (trained / "first.pt", tmp_path / "a.pt", tmp_path / "b.pt"):
        status, out, errors = command("--state=3", "--dataset=shapes", f"--data-root={shapes_root}", "--coco",
                                      f"--continue-from={path}", f"--output-dir={tmp_path}", *SMALL[:1], *TEST_SIZE)
        assert status == 0, errors
        results.append([line for line in out.splitlines() if "." in line and "written" not in line and ".pt" not in line])
    assert results[0] == results[1] == results[2] and len(results[0]) > 7


def test_safetensors_hold_the_same_and_equal_ones_equal_bytes(trained, safe):
    expected, found = content(trained / "first.pt"), load(safe)
    assert {key: value for key, value in found.items() if key != "model"} == {
        key: value for key, value in expected.items() if key not in ("model", "optimizer", "lr_scheduler")}
    assert expected["model"].keys() == found["model"].keys()
    assert all(torch.equal(value, found["model"][name]) for name, value in expected["model"].items())
    assert alone(safe).description == alone(trained / "first.pt").description
    again = safe.with_name("again.safetensors")
    save_safetensors(again, found["model"], {key: value for key, value in found.items() if key != "model"})
    assert again.read_bytes() == safe.read_bytes()


def test_stages_take_safetensors_wherever_they_take_a_checkpoint(trained, safe, shapes_root, tmp_path, command):
    common = ["--dataset=shapes", f"--data-root={shapes_root}", f"--output-dir={tmp_path}", "--coco", *SMALL,
              *TEST_SIZE]
    _, expected, _ = command("--state=3", *common, f"--continue-from={trained / 'first.pt'}")
    status, printed, errors = command("--state=3", *common, f"--continue-from={safe}")
    table = [[line for line in text.splitlines() if "first" not in line] for text in (printed, expected)]
    assert status == 0 and table[0] == table[1] and any("mIoU" in line for line in table[0]), errors
    status, printed, errors = command("--labeling", *common, "--train-set=8", f"--continue-from={safe.name}",
                                      f"--oldfilename={safe}", f"--pseudo-dir={tmp_path / 'labels'}")
    assert status == 0 and "after PLE" in printed, errors


def test_damaged_and_hostile_safetensors(safe, shapes_root, command):
    whole = safe.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    claimed = json.loads(whole[8:8 + header])
    claimed["classifier.0.convs.0.bias"]["shape"] = [1 << 40]
    text = json.dumps(claimed).encode()
    # Cut, a header that claims 2^60 bytes, a tensor that claims 2^40 numbers, no header, and a zip
    for damaged in (whole[:1000], whole[:-1], (1 << 60).to_bytes(8, "little") + whole[8:],
                    len(text).to_bytes(8, "little") + text + whole[8 + header:], b"", b"PK\3\4" + whole):
        safe.write_bytes(damaged)
        status, _, errors = command("--state=3", "--dataset=shapes", f"--data-root={shapes_root}", *SMALL, *TEST_SIZE,
                                    f"--continue-from={safe}", "--coco")
        assert status == 2 and str(safe) in errors and len(errors.splitlines()) == 1, errors


def test_safetensors_of_others_say_what_they_lack(tmp_path):
    from safetensors.torch import save_file
    save_file({"layer.weight": torch.zeros(3)}, tmp_path / "other.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="no checkpoint of this software"):
        alone(tmp_path / "other.safetensors")


def test_half_precision_weights_load(tmp_path):
    model = deeplab_v2(3, "small")
    halves = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    torch.save({"model": halves}, tmp_path / "half.pt")
    save(tmp_path / "whole.pt", {"model": model.state_dict()})
    loaded = alone(tmp_path / "half.pt").network
    weight = "classifier.0.convs.0.weight"
    assert torch.equal(loaded.state_dict()[weight], halves[weight].float())
