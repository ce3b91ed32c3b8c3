"""The variants of the papers' ablations: hand-computed weights, labels and gradients, and the real command line."""

import dataclasses
import json
import math
import os
import signal
import threading
import time

import pytest
import torch

from data.lists import Sample
from data.batches import TrainingImages
from data.specs import load_spec
from dmt.loss import ON_STUDENT_WIN, DynamicMutualLoss, label_online, pixel_weights
from utils.options import parse_options

SMALL = ["--backbone=small", "--weights=none", "--crop-size", 33, 33, "--test-size", 65, 65, "--workers=0"]


def logits_of(*probabilities):
    """Logits (1, C, 1, pixels) whose softmax is the given probabilities."""
    return torch.tensor(probabilities, dtype=torch.float64).log().T[None, :, None, :].requires_grad_()


# q = (0.5, 0.25, 0.25) at five pixels, so a = 0 and max q = 0.5; gamma1 = 2, gamma2 = 3. The labels agree, lose to the
# student, beat it, tie with it (which is no win), and are ignored.
LABELS = torch.tensor([[[0, 1, 1, 2, 255]]])
CONFIDENCE = torch.tensor([[[0.1, 0.4, 0.9, 0.5, math.nan]]], dtype=torch.float64)  # nobody reads the last
LOG2 = math.log(2)


@pytest.mark.parametrize("on_student_win, weights, learnt", [
    ("stop", (1 / 4, 0, 1 / 64, 1 / 64, 0), (0, 1, 1, 2, 0)),
    ("naive", (1 / 4, 1 / 64, 1 / 64, 1 / 64, 0), (0, 1, 1, 2, 0)),
    ("flip", (1 / 4, 0.6**3, 1 / 64, 1 / 64, 0), (0, 0, 1, 2, 0)),  # the winner learns class 0 with (1 - 0.4)^3
])
def test_hand_computed_values_and_gradients(on_student_win, weights, learnt):
    logits = logits_of(*[(0.5, 0.25, 0.25)] * 5)
    loss, statistics = DynamicMutualLoss(2, 3, on_student_win=on_student_win)(logits, LABELS, CONFIDENCE, 1)
    cross_entropy = [LOG2 if label == 0 else 2 * LOG2 for label in learnt]
    assert loss.item() == pytest.approx(sum(w * ce for w, ce in zip(weights, cross_entropy)) / 4, rel=1e-12)
    loss.backward()
    for pixel, (weight, label) in enumerate(zip(weights, learnt)):
        onehot = [float(label == c) for c in range(3)]
        expected = [weight * (q - y) / 4 for q, y in zip((0.5, 0.25, 0.25), onehot)]
        assert logits.grad[0, :, 0, pixel].tolist() == pytest.approx(expected, abs=1e-15)
    assert (statistics["disagreements"].item(), statistics["student_wins"].item()) == (3, 1)
    assert statistics["mean_weight"].item() == pytest.approx(sum(weights) / 4)
    assert statistics["unweighted_loss"].item() == pytest.approx(sum(cross_entropy[:4]) / 4)
    assert statistics["valid_pixels"].item() == 4


@pytest.mark.parametrize("on_student_win", ON_STUDENT_WIN)
def test_labelled_samples_and_batches_without_labels_are_as_ever(on_student_win):
    # Sample 0 is ignored altogether, sample 1 labelled against the student, which nothing stops or flips: log 4.
    logits = logits_of((0.75, 0.25)).detach().repeat(2, 1, 1, 1).requires_grad_()
    labels = torch.tensor([[[255]], [[1]]])
    criterion = DynamicMutualLoss(5, 5, on_student_win=on_student_win)
    loss, _ = criterion(logits, labels, torch.full((2, 1, 1), 0.1), 1)
    loss.backward()
    assert loss.item() == pytest.approx(2 * LOG2)
    assert logits.grad.flatten().tolist() == pytest.approx([0, 0, 0.75, -0.75])
    none, statistics = criterion(logits, torch.full_like(labels, 255), torch.full((2, 1, 1), 0.1), 2)
    assert none.item() == 0 and statistics["mean_weight"].item() == 0
    assert not torch.autograd.grad(none, logits)[0].any()


@pytest.mark.parametrize("on_student_win", ON_STUDENT_WIN)
def test_gammas_of_zero_weigh_nothing_and_flip_nothing(on_student_win):
    logits, labels, confidence = logits_of((0.75, 0.25)), torch.tensor([[[1]]]), torch.tensor([[[0.5]]])
    loss, statistics = DynamicMutualLoss(0, 0, on_student_win=on_student_win)(logits, labels, confidence, 1)
    loss.backward()
    assert loss.item() == pytest.approx(2 * LOG2) and statistics["mean_weight"].item() == 1
    assert logits.grad.flatten().tolist() == pytest.approx([0.75, -0.75])  # q - onehot of the teacher's label


def test_weights_of_gamma1_and_gamma2_do_not_mix():
    q_label, q_max = torch.tensor([0.8, 0.1, 0.1]), torch.tensor([0.8, 0.8, 0.8])
    agrees, p = torch.tensor([True, False, False]), torch.tensor([0.1, 0.7, 0.9])
    assert pixel_weights(q_label, q_max, agrees, p, 1, 2, "naive").tolist() == pytest.approx([0.8, 0.01, 0.01])
    assert pixel_weights(q_label, q_max, agrees, p, 1, 2, "flip").tolist() == pytest.approx([0.8, 0.09, 0.01])


def test_unknown_variants_are_refused():
    with pytest.raises(ValueError, match="stop, naive, flip"):
        DynamicMutualLoss(5, 5, on_student_win="mutual")


# --- online ----------------------------------------------------------------------------------------------------------


def test_online_labels_are_own_decisions_above_the_threshold():
    # Unlabelled: sure, exactly at the threshold (not above), unsure, sure but padding. Then a labelled sample.
    logits = torch.cat([logits_of((0.05, 0.95), (0.9, 0.1), (0.6, 0.4), (0.99, 0.01)),
                        logits_of(*[(0.99, 0.01)] * 4)]).detach()
    threshold = logits.softmax(1)[0, 0, 0, 1].item()
    assert threshold == pytest.approx(0.9)
    labels = torch.tensor([[[0, 0, 0, 255]], [[1, 0, 255, 1]]], dtype=torch.uint8)
    made = label_online(logits, labels, 1, threshold)
    assert made.tolist() == [[[1, 255, 255, 255]], [[1, 0, 255, 1]]] and made.dtype == torch.uint8
    assert labels.tolist() == [[[0, 0, 0, 255]], [[1, 0, 255, 1]]]  # left as they were
    assert label_online(logits, labels, 0, threshold).tolist() == labels.tolist()
    assert label_online(logits, labels, 2, 0.995).eq(255).all()


def test_online_labels_have_no_gradient_and_count_fully():
    logits = logits_of((0.05, 0.95), (0.6, 0.4))
    labels = label_online(logits, torch.zeros(1, 1, 2, dtype=torch.uint8), 1, 0.9)
    loss, statistics = DynamicMutualLoss(0, 0)(logits, labels)
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(0.95)) and statistics["valid_pixels"].item() == 1
    assert logits.grad.flatten().tolist() == pytest.approx([0.05, 0, -0.05, 0])  # q - onehot, for one pixel of one


def test_half_precision_is_compared_in_float32():
    logits = torch.tensor([5.0, 0.0], dtype=torch.float16).reshape(1, 2, 1, 1)  # q = 0.993307, in half 0.9932
    labels = torch.zeros(1, 1, 1, dtype=torch.int64)
    assert label_online(logits, labels, 1, 0.99325).item() == 0
    assert label_online(logits, labels, 1, 0.9934).item() == 255


def test_unlabelled_images_are_read_without_masks(own_shapes):
    spec = load_spec("shapes")
    for mask in (own_shapes / "SegmentationClassAug").iterdir():
        mask.unlink()
    name = next((own_shapes / "JPEGImages").iterdir()).stem
    crop = (129, 129)  # larger than any scaled image, so that there is padding
    sample = Sample(name, spec.image_path(own_shapes, name), None)
    image, label, grey = TrainingImages(dataclasses.replace(spec, crop=crop), 1, [], [sample])["pseudo", 0, 0]
    padding = label == 255
    assert set(label[~padding].tolist()) == {0} and padding.any() and not padding.all() and not grey.any()
    assert not image[padding].any() and image.shape == (*crop, 3)


def online(root, out, *more):
    return ["--dataset=shapes", f"--data-root={root}", f"--output-dir={out}", "--exp-name=e__p1--c", "--train-set=8",
            f"--continue-from={out}/start.pt", "--epochs=2", "--batch-size-labeled=1", "--batch-size-pseudo=4",
            "--lr=0.01", "--val-num-steps=3", "--log-num-steps=2", "--online=0.3", *SMALL, *more]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    from models import deeplab_v2
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("start") / "start.pt"
    torch.save({"model": deeplab_v2(8, "small").state_dict()}, path)
    return path


@pytest.fixture
def out(tmp_path, start):
    (tmp_path / "start.pt").write_bytes(start.read_bytes())
    return tmp_path


def test_online_trains_without_labelling(shapes_root, out, command):
    status, printed, errors = command(*online(shapes_root, out))
    assert status == 0, errors
    assert "e__p1--c: best validation mIoU" in printed and not list(out.rglob("manifest.json"))
    lines = [json.loads(line) for line in (out / "e__p1--c" / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    assert train and all(line["mean_weight"] == 1 and line["disagreeing_share"] == 0 for line in train)
    assert "already finished" in command(*online(shapes_root, out))[1]
    status, printed, _ = command(*online(shapes_root, out, "--online=0.4"))
    assert status == 0 and "done anew, since online was 0.3, now it is 0.4" in printed


def test_online_goes_on_with_the_same_bits(shapes_root, out, command):
    whole, parted = out / "whole.pt", out / "parted.pt"
    assert command(*online(shapes_root, out, "--exp-name=whole", "--epochs=6"))[0] == 0
    stop = ["--exp-name=parted", "--epochs=6", "--save-num-steps=1"]
    state = out / "parted" / "state.pt"

    def terminate():
        while not state.exists():
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=terminate)
    watcher.start()
    status, _, errors = command(*online(shapes_root, out, *stop))
    watcher.join()
    assert status == 128 + signal.SIGTERM and "goes on from there" in errors
    status, printed, errors = command(*online(shapes_root, out, *stop))
    assert status == 0 and "going on from step" in printed, errors
    first, second = (torch.load(path, weights_only=True)["model"] for path in (whole, parted))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


# --- the command line --------------------------------------------------------------------------------------------------


def test_options_and_their_defaults():
    options = parse_options([])
    assert (options.on_student_win, options.online, options.no_conflict_reduction) == ("stop", None, False)
    assert parse_options(["--online"]).online == 0.9 and parse_options(["--online", "0.8"]).online == 0.8
    for name in ON_STUDENT_WIN:
        options = parse_options([f"--on-student-win={name}", "--gamma2=0"])  # 0 may be meant
        assert (options.on_student_win, options.gamma1, options.gamma2) == (name, 0, 0)


@pytest.mark.parametrize("variant", ["naive", "flip"])
def test_a_variant_without_any_gamma_names_the_ones_to_give(variant, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_options([f"--on-student-win={variant}"])
    line = capsys.readouterr().err
    assert stop.value.code == 2 and line.count("\n") == 1
    assert f"--on-student-win {variant}" in line and "--gamma1=5 --gamma2=5" in line


@pytest.mark.parametrize("wrong", [["--online=1.5"], ["--online=-0.1"], ["--online=nan"], ["--on-student-win=lose"],
                                   ["--online", "--gamma1=5"], ["--online", "--on-student-win=flip"],
                                   ["--online", "--state=2"]])
def test_wrong_combinations_are_one_line(shapes_root, out, command, wrong):
    words = [word for word in online(shapes_root, out) if not str(word).startswith("--online")]
    status, _, errors = command(*words, *wrong)
    assert status == 2 and len(errors.splitlines()) == 1 and wrong[0].split("=")[0] in errors
    assert not (out / "e__p1--c").exists()


def test_the_variant_belongs_to_the_fingerprint_and_changes_the_result(shapes_root, out, command):
    folder = out / "pseudo"
    words = [word for word in online(shapes_root, out, f"--pseudo-dir={folder}") if word != "--online=0.3"]
    assert command(*words, "--labeling", "--label-ratio=0.5")[0] == 0
    digests = []
    for on_student_win in ON_STUDENT_WIN:
        status, printed, errors = command(*words, "--gamma1=5", "--gamma2=5", f"--on-student-win={on_student_win}")
        assert status == 0 and "already finished" not in printed, errors
        assert ("done anew, since on student win was" in printed) == bool(digests)
        digests.append((out / "e__p1--c.pt").read_bytes())
    assert len(set(digests)) == 3
    config = json.loads((out / "e__p1--c" / "config.json").read_text())
    assert config["on_student_win"] == "flip"
