"""Batches computed in parts: the same training but for batch normalization, and in how many parts they fit."""

import copy
import dataclasses
import json
import signal

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from data.batches import Steps
from data.specs import load_spec
from data.confidence import GREY_LEVELS
from dmt import memory
from dmt.training import train as run_training
from dmt.memory import Workload
from dmt.live_view import LiveView
from dmt.records import Counts, Records
from dmt.session import Machine
from dmt.training import Recipe, Trainer
from models import deeplab, deeplab_v2
from models.deeplab import IMAGENET
from tests.test_distributed import metrics
from tests.test_stages import SMALL, first_weights, tensors
from tests.test_sync import HostReads
from utils.errors import UserError
from utils.files import write_json
from utils.metrics import ConfusionMatrix
from utils.precision import Precision
from utils.runs import known_parts

CLASSES, SIZE = 4, 17


class Stage:
    """Takes what a training logs."""

    name = "parts"

    def __init__(self):
        self.lines = []

    def log_metrics(self, values):
        self.lines.append(values)


class Plain(nn.Module):
    """A network without batch normalization: a convolution over points 8 pixels apart."""

    num_classes = CLASSES

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, CLASSES, 3, stride=8, padding=1)

    def forward(self, images):
        return self.conv(images)

    def active_parameters(self):
        return list(self.parameters())


def batch(pseudo, labeled, unlabelled=()):
    """Images (N, h, w, 3) and labels (N, h, w) uint8 with confidences, ``unlabelled`` samples all ignored."""
    rng = torch.Generator().manual_seed(7)
    count = pseudo + labeled
    images = torch.randint(0, 256, (count, SIZE, SIZE, 3), generator=rng, dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (count, SIZE, SIZE), generator=rng, dtype=torch.uint8)
    labels[torch.rand(labels.shape, generator=rng) < torch.linspace(0, 0.9, count)[:, None, None]] = 255  # unevenly
    for index in unlabelled:
        labels[index] = 255
    grey = torch.randint(1, 256, labels.shape, generator=rng, dtype=torch.uint8)
    grey[pseudo:] = 255
    return images, labels, grey


def order(pseudo, labeled, parts):
    """The positions of a batch's samples as ``Steps`` deals them out, pseudo-labelled ones first in the batch."""
    positions = range(pseudo + labeled)
    return [position for number in range(parts) for position in positions[number::parts]]


def train(parts, pseudo, labeled, data, steps=3, online=None, model=None):
    """(logged lines, parameters) after some steps on one batch, as in all of them, by the trainer."""
    streams = [(kind, count, count) for kind, count in (("pseudo", pseudo), ("labeled", labeled)) if count]
    model, stage = model or Plain(), Stage()
    recipe = Recipe(0.05, gamma1=2.0, gamma2=3.0, online=online, log_num_steps=1, val_num_steps=100)
    machine, order_of = Machine(torch.device("cpu"), Precision("fp32", "cpu"), 0, 8), Steps(streams, 0, steps, parts)
    trainer = Trainer(model, recipe, machine, IMAGENET, Counts(CLASSES, "cpu"))
    shapes = load_spec("shapes")
    view = LiveView(None, 0, dataclasses.replace(shapes, class_names=shapes.class_names[:CLASSES]), ())
    records = Records(trainer, order_of, stage, {}, {}, view, "stop", save=False)
    dealt = order(pseudo, labeled, parts)
    run_training(trainer, order_of, [tuple(tensor[dealt] for tensor in data)] * steps, records,
                 lambda: ConfusionMatrix(CLASSES))
    return [line for line in stage.lines if line["kind"] == "train"], [value.detach() for value in model.parameters()]


def by_hand(data, pseudo, steps=3):
    """The same in plain torch, on the whole batch: (losses, parameters)."""
    model = Plain()
    images, labels, grey = data
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=0.0005)
    losses = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / steps) ** 0.9
        logits = F.interpolate(model(IMAGENET.normalize(images)), (SIZE, SIZE), mode="bilinear",
                               align_corners=True)
        q, y = logits.detach().softmax(1), labels.long()
        label = q.gather(1, y.where(y != 255, 0)[:, None])[:, 0]
        top, decision = q.max(1)
        surer = top > GREY_LEVELS[grey.int()]
        weight = torch.where(decision == y, label**2, torch.where(surer, 0, label**3))
        weight[pseudo:] = 1
        each = F.cross_entropy(logits, y, ignore_index=255, reduction="none")
        loss = (weight * each).sum() / (y != 255).sum().clamp(min=1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [value.detach() for value in model.parameters()]


# --- the same loss and gradients --------------------------------------------------------------------------------------


@pytest.mark.parametrize("pseudo, labeled, parts", [
    (0, 7, 1), (0, 7, 2), (0, 7, 3), (7, 1, 1), (7, 1, 2), (7, 1, 3), (7, 1, 8), (4, 4, 4), (2, 2, 3)])
def test_parts_learn_what_plain_torch_learns_from_the_whole_batch(pseudo, labeled, parts):
    """Uneven parts, parts of one kind of image only, one image at a time, and samples without a labelled pixel."""
    data = batch(pseudo, labeled, unlabelled=(1,))
    losses, expected = by_hand(data, pseudo)
    lines, found = train(parts, pseudo, labeled, data)
    assert [line["loss"] for line in lines] == pytest.approx(losses, rel=2e-6)
    for one, other in zip(expected, found):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_what_is_logged_is_the_batchs(parts):
    data = batch(7, 1)
    whole, split = train(1, 7, 1, data)[0], train(parts, 7, 1, data)[0]
    assert len(whole) == 3 and 0 < whole[0]["disagreeing_share"] and 0 < whole[0]["student_wins_share"] < 1
    for one, other in zip(whole, split):
        for name in ("loss", "unweighted_loss", "mean_weight", "disagreeing_share", "student_wins_share", "lr"):
            assert other[name] == pytest.approx(one[name], rel=2e-6), name


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_labels_made_on_the_fly(parts):
    """How many pixels have one is known only after the forward passes of all parts."""
    data = batch(7, 1)
    whole, split = (train(count, 7, 1, data, online=0.4) for count in (1, parts))
    assert [line["loss"] for line in split[0]] == pytest.approx([line["loss"] for line in whole[0]], rel=2e-6)
    for one, other in zip(whole[1], split[1]):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_batch_without_any_labelled_pixel_teaches_nothing():
    lines, found = train(3, 0, 4, batch(0, 4, unlabelled=range(4)), steps=1)
    assert lines[0]["loss"] == 0
    for start, value in zip(Plain().parameters(), found):
        assert torch.allclose(value, start * (1 - 0.05 * 0.0005))  # weight decay


@pytest.mark.parametrize("parts", [2, 3])
def test_with_fixed_statistics_deeplab_learns_the_same(parts):
    class Fixed(Plain):
        """DeepLab whose batch normalization stays in eval mode."""

        def __init__(self):
            nn.Module.__init__(self)
            torch.manual_seed(2)
            self.net = deeplab_v2(CLASSES, "small")

        def forward(self, images):
            return self.net(images)

        def active_parameters(self):
            return self.net.active_parameters()

        def train(self, mode=True):
            return super().train(False)

    data = batch(0, 7)
    whole, split = (train(count, 0, 7, data, model=Fixed(), steps=2) for count in (1, parts))
    assert [line["loss"] for line in split[0]] == pytest.approx([line["loss"] for line in whole[0]], rel=1e-5)
    start = list(Fixed().parameters())
    learnt = [torch.cat([(value - begin).flatten() for begin, value in zip(start, run[1])]) for run in (whole, split)]
    assert learnt[0].norm() > 0 and (learnt[0] - learnt[1]).norm() < 1e-3 * learnt[0].norm()


# --- batch normalization ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_running_statistics_forget_as_slowly_in_parts(parts):
    """After all parts a share (1 - 0.1) of the old value is left; parts of equal means then give the batch's mean."""
    whole = nn.BatchNorm2d(3)
    split = copy.deepcopy(whole)
    deeplab.average_parts(split, parts)
    assert split.momentum == pytest.approx(1 - 0.9 ** (1 / parts))
    image = torch.randn(1, 3, 5, 5)
    whole(image.repeat(8, 1, 1, 1))
    for part in image.repeat(8, 1, 1, 1).chunk(parts):
        split(part)
    assert torch.allclose(split.running_mean, whole.running_mean, rtol=1e-5)
    assert torch.allclose(split.running_mean, 0.1 * image.mean((0, 2, 3)), rtol=1e-5)
    split.running_mean.fill_(1)
    for _ in range(parts):
        split(torch.zeros(2, 3, 5, 5))
    assert torch.allclose(split.running_mean, torch.full((3,), 0.9))


# --- the command line -------------------------------------------------------------------------------------------------


def stage(command, root, out, name, *more):
    return command("--state=2", "--dataset=shapes", f"--data-root={root}", "--train-set=8", "--epochs=2",
                   "--batch-size-labeled=3", "--val-num-steps=3", "--log-num-steps=1", f"--output-dir={out}",
                   f"--exp-name={name}", "--test-size", 65, 65, "--batch-size-labeling=2", *SMALL, *more)


def test_an_interrupted_training_in_parts_ends_with_the_same_bits(shapes_root, tmp_path, command, monkeypatch):
    assert stage(command, shapes_root, tmp_path, "whole", "--accumulate=2")[0] == 0
    original, done = Trainer.step, []

    def step(self, *data):
        original(self, *data)
        done.append(len(done) + 1)
        if len(done) == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Trainer, "step", step)
    status, printed, errors = stage(command, shapes_root, tmp_path, "stopped", "--accumulate=2")
    assert status == 128 + signal.SIGTERM and "stopped at step 2" in errors and "batches in 2 parts" in printed
    status, printed, _ = stage(command, shapes_root, tmp_path, "stopped", "--accumulate=2")
    assert status == 0 and "going on from step 2" in printed and done == [1, 2, 3, 4, 5, 6]
    whole, stopped = tensors(tmp_path / "whole.pt"), tensors(tmp_path / "stopped.pt")
    assert all(torch.equal(value, stopped[name]) for name, value in whole.items())
    for one, other in zip(*(metrics(tmp_path / name, "train") for name in ("whole", "stopped"))):
        assert one["loss"] == other["loss"]


def test_a_number_picked_is_the_number_given_by_hand(shapes_root, tmp_path, command):
    """... so the stage counts as finished; another number does not."""
    spec = dataclasses.replace(load_spec("shapes"), crop=(97, 97), test_size=(65, 65))
    plan = Workload("runs", backbone="small", batch_size=3, batch_size_labeling=1)
    one, two = (memory.memory_bytes(spec, dataclasses.replace(plan, accumulate=number))[0] for number in (1, 2))
    assert two < one
    limit, sizes = (one + two) / 2e9, ["--crop-size", 97, 97, "--batch-size-labeling=1"]
    status, printed, errors = stage(command, shapes_root, tmp_path, "picked", *sizes, f"--max-memory={limit}")
    assert status == 0, errors
    assert (f"memory: about {two / 1e9:.2f} GB for training 2 x 97 x 97 pixels at once (batches of 3 in 2 parts; "
            in printed)
    assert f"whole: about {one / 1e9:.2f} GB)" in printed and "batches in 2 parts" in printed
    config = json.loads((tmp_path / "picked" / "config.json").read_text())
    assert config["accumulate"] == 2 and config["fingerprint"]["options"]["accumulate"] == 2
    for more, finished in ((["--accumulate=2"], True), ([f"--max-memory={limit}"], True), ([], False)):
        printed = stage(command, shapes_root, tmp_path, "picked", *sizes, *more)[1]
        assert ("already finished" in printed) == finished


def test_all_stages_take_the_options_and_steps_in_parts_wait_for_nothing(shapes_root, tmp_path, command, monkeypatch):
    """EXTRA of a launcher goes to every stage: labelling and testing take both options."""
    first_weights(tmp_path / "net.pt", 8)
    common = ["--dataset=shapes", f"--data-root={shapes_root}", "--train-set=8", f"--output-dir={tmp_path}",
              "--continue-from=net.pt", "--test-size", 65, 65, *SMALL]
    for more in (["--accumulate=8"], ["--max-memory=100"]):
        for what in (["--labeling", "--label-ratio=0.5"], ["--state=3"]):
            status, printed, errors = command(*what, *common, *more)
            assert status == 0 and ("for labelling 8 x 65 x 65 pixels" in printed) == ("max" in more[0]), errors
    original, seen = Trainer.step, []

    def step(self, *data):
        with pytest.MonkeyPatch.context() as patch:
            reads = HostReads()
            with reads.methods(patch):
                original(self, *data)
        kept = [self.counts._sums, *self.model.state_dict().values(),
                *(value["momentum_buffer"] for value in self.optimizer.state.values())]
        seen.append((data[3], [tensor.data_ptr() for tensor in kept]))
        assert reads.found == []  # the host does not wait for the parts, either

    monkeypatch.setattr(Trainer, "step", step)
    status, printed, errors = command("--epochs=1", "--batch-size-pseudo=3", "--accumulate=4", *common)
    assert status == 0, errors
    assert seen[0][0] == ((1, 1), (1, 1), (1, 1), (1, 0))
    assert all(places == seen[0][1] for _, places in seen)  # where a graph would write


@pytest.mark.parametrize("words, said", [
    (["--accumulate=4"], "a batch of 3 images"),
    (["--accumulate=0"], "'0' is not a positive whole number"),
    (["--max-memory=0"], "'0' is not a number above 0"),
    (["--max-memory=nan"], "'nan' is not a number above 0"),
    (["--max-memory=6", "--accumulate=1"], "give N yourself, or have it picked"),
    (["--max-memory=0.1"], "even --batch-size-labeling 1 needs about"),
])
def test_what_cannot_be_is_one_line(words, said, shapes_root, tmp_path, command):
    status, _, errors = stage(command, shapes_root, tmp_path, "wrong", *words)
    assert status == 2 and len(errors.splitlines()) == 1 and errors.startswith("error: ") and said in errors
    assert not (tmp_path / "wrong.pt").exists()


def test_the_check_says_what_will_be_picked(shapes_root, tmp_path, command):
    words = ["--check", "--weights=none"]
    status, printed, errors = stage(command, shapes_root, tmp_path, "checked", *words, "--max-memory=100")
    assert status == 0 and "for training 3 x 33 x 33 pixels, about" in printed, errors
    assert "within --max-memory 100 GB; not judged on cpu" in printed
    status, _, errors = stage(command, shapes_root, tmp_path, "checked", *words, "--accumulate=9")
    assert status == 2 and [line for line in errors.splitlines() if line.startswith("error")] == [
        line for line in errors.splitlines() if "--accumulate 9: a batch of 3 images" in line]
    status, printed, errors = stage(command, shapes_root, tmp_path, "checked", *words, "--max-memory=0.1")
    assert status == 2 and "--max-memory 0.1: labelling and validation" in errors and "memory: about" in printed


# --- what fits --------------------------------------------------------------------------------------------------------

SPEC = dataclasses.replace(load_spec("voc"), crop=(161, 161), test_size=(33, 33))
PLAN = Workload("runs", backbone="small", batch_size=8, batch_size_labeling=1)


def picked(limit, **changes):
    return memory.fit(SPEC, dataclasses.replace(PLAN, max_memory=limit / 1e9, **changes)).accumulate


def training(**changes):
    return memory.memory_bytes(SPEC, dataclasses.replace(PLAN, **changes))[0]


def test_the_smallest_number_that_fits_is_picked():
    for number in (1, 2, 3, 4, 8):
        assert picked(training(accumulate=number)) == number  # 8, 4, 3, 2, 1 images at once
        assert picked(training(accumulate=number) + 1) == number
    for number, images in ((5, 2), (6, 2), (7, 2)):
        assert training(accumulate=number) == training(accumulate=1, batch_size=images) == training(accumulate=4)
    with pytest.raises(UserError, match=r"even with 1 x 161 x 161 pixels at once \(--accumulate 8\).*--mixed-prec"):
        picked(training(accumulate=8) - 1)


@pytest.mark.parametrize("accumulate, processes, images", [
    (1, 2, 4), (2, 2, 2), (3, 2, 2), (1, 3, 3), (8, 2, 1), (4, 3, 1)])
def test_of_several_processes_the_share_of_one_counts(accumulate, processes, images):
    plan = dataclasses.replace(PLAN, accumulate=accumulate, processes=processes)
    assert memory.images_at_once(plan) == images
    steps = [Steps([("labeled", 8, 8)], 0, 1, accumulate, rank, processes) for rank in range(processes)]
    assert max(samples for own in steps for samples, _ in own.parts(0)) == images
    assert training(accumulate=accumulate, processes=processes) == training(batch_size=images)


def test_an_earlier_start_of_a_stage_has_picked_already(tmp_path):
    """With one process 4 parts were needed; with two 2 would do, but the stage goes on as it began. What does not fit: anew."""
    limit = training(batch_size=2)
    plan = dataclasses.replace(PLAN, max_memory=limit / 1e9, batch_size_labeling=1, processes=2)
    assert [memory.fit(SPEC, plan, known).accumulate for known in (None, 4, 1, 9)] == [2, 4, 2, 2]
    assert known_parts(tmp_path, "stage") is None
    write_json(tmp_path / "stage" / "config.json", {"accumulate": 4})
    assert known_parts(tmp_path, "stage") == 4
    (tmp_path / "stage" / "config.json").write_text("{")
    assert known_parts(tmp_path, "stage") is None


def test_several_processes_need_fewer_parts():
    assert picked(training(batch_size=2), processes=1) == 4
    assert picked(training(batch_size=2), processes=2) == 2
    assert picked(training(batch_size=2), processes=4) == 1


def test_the_largest_batch_for_labelling_is_named():
    plan = dataclasses.replace(PLAN, batch_size_labeling=40)
    estimates = [memory.memory_bytes(SPEC, dataclasses.replace(plan, batch_size_labeling=count))[1]
                 for count in range(1, 41)]
    assert estimates == sorted(set(estimates))
    limited = dataclasses.replace(plan, max_memory=estimates[9] / 1e9 + 1e-6)
    with pytest.raises(UserError, match="the largest batch that fits is --batch-size-labeling 10$"):
        memory.fit(SPEC, limited)
    assert memory.fit(SPEC, dataclasses.replace(limited, batch_size=0, batch_size_labeling=10)).accumulate == 1


@pytest.mark.parametrize("count", [1, 5])
def test_the_estimate_counts_what_backward_keeps(count):
    """The bytes that autograd keeps of real images, against the estimate, which grows by the same for each image."""
    network, kept = deeplab_v2(CLASSES, "small"), {}
    own = {tensor.untyped_storage().data_ptr() for tensor in network.state_dict().values()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.randn(count, 3, 65, 65))
    spec = dataclasses.replace(SPEC, crop=(65, 65), class_names=SPEC.class_names[:CLASSES])
    _, found, largest = memory._network_memory(spec, PLAN, count, (65, 65))
    sizes = [storage.nbytes() for storage in kept.values()]
    assert (found, largest) == (pytest.approx(sum(sizes), rel=0.01), max(sizes))


# --- with a GPU -------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_graphs_of_parts_train_as_well_as_steps_one_by_one(shapes_root, tmp_path, command):
    for name, more in {"eager": ["--no-cuda-graphs"], "graphs": []}.items():
        status, _, errors = stage(command, shapes_root, tmp_path, name, "--epochs=5", "--accumulate=2", "--device=cuda",
                                  *more)
        assert status == 0, errors
    eager, graphs = tensors(tmp_path / "eager.pt"), tensors(tmp_path / "graphs.pt")
    for name, value in eager.items():
        if value.is_floating_point():
            assert (value - graphs[name]).norm() <= 0.02 * value.norm() + 1e-3, name
