"""Saving goes on beside the training, with what was there when it began; its errors are not lost."""

import errno
import io
import threading

import pytest
import torch

from dmt.loss import DynamicMutualLoss
from models import deeplab_v2
from tests.test_stages import SMALL
from utils.runs import Stage
from utils.tensors import snapshot

GPU = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_a_snapshot_is_of_now_and_saved_as_the_original_is(device):
    def saved(value):
        content = io.BytesIO()
        torch.save(value, content)
        return content.getvalue()

    model = deeplab_v2(3, "small").to(device, memory_format=torch.channels_last)
    value = {"model": model.state_dict(), "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3, device=device)}},
                                                        "groups": [{"lr": 0.1, "params": [0]}]}, "step": 3, "none": None}
    expected = saved(value)
    copied, wait = snapshot(value)
    with torch.no_grad():
        for tensor in value["model"].values():
            tensor.zero_()
    wait()
    assert all(tensor.device.type == "cpu" for tensor in copied["model"].values())
    if device == "cpu":
        assert saved(copied) == expected
    else:
        found = torch.load(io.BytesIO(expected), map_location="cpu")["model"]
        assert all(torch.equal(tensor, copied["model"][name]) for name, tensor in found.items())
    assert copied["model"]._metadata == value["model"]._metadata


def train(command, root, out, monkeypatch):
    """Train 8 steps, validating every second; a state is only written when the training has gone on by a step.

    Returns the command's outcome, and the (step of the state, best step) that were written.
    """
    original, gone_on, written = Stage.save_state, threading.Condition(), []
    log, trained = Stage.log_metrics, [0]

    def log_metrics(self, values):
        log(self, values)
        if values["kind"] == "train":
            with gone_on:
                trained[0] = values["step"]
                gone_on.notify()

    def save_state(self, state, best_step):
        with gone_on:
            assert gone_on.wait_for(lambda: trained[0] > state["step"] or state["step"] == 8, 60)
        assert self.best(best_step).is_file()
        written.append((state["step"], best_step))
        original(self, state, best_step)

    monkeypatch.setattr(Stage, "log_metrics", log_metrics)
    monkeypatch.setattr(Stage, "save_state", save_state)
    return command("--state=2", "--dataset=shapes", f"--data-root={root}", "--train-set=8", "--epochs=4",
                   "--batch-size-labeled=4", "--val-num-steps=2", "--log-num-steps=1", f"--output-dir={out}",
                   "--exp-name=slow", "--test-size", 65, 65, *SMALL), written


def test_training_goes_on_while_a_state_is_written(shapes_root, tmp_path, command, monkeypatch):
    (status, _, errors), written = train(command, shapes_root, tmp_path, monkeypatch)
    assert status == 0, errors
    assert [step for step, _ in written] == [2, 4, 6, 8]
    monkeypatch.undo()
    status, _, errors = command("--state=2", "--dataset=shapes", f"--data-root={shapes_root}", "--train-set=8",
                                "--epochs=4", "--batch-size-labeled=4", "--val-num-steps=2", "--exp-name=slow",
                                f"--output-dir={tmp_path / 'as-ever'}", "--test-size", 65, 65, *SMALL)
    assert status == 0, errors
    assert (tmp_path / "slow.pt").read_bytes() == (tmp_path / "as-ever" / "slow.pt").read_bytes()


def test_a_best_model_that_is_being_written_outlives_a_collapse(shapes_root, tmp_path, command, monkeypatch):
    forward, count = DynamicMutualLoss.forward, [0]

    def broken(self, *batch):
        count[0] += 1
        loss, statistics = forward(self, *batch)
        return loss * (float("nan") if count[0] == 4 else 1), statistics

    monkeypatch.setattr(DynamicMutualLoss, "forward", broken)
    (status, _, errors), written = train(command, shapes_root, tmp_path, monkeypatch)
    assert status == 2 and "best-00000002.pt" in errors and written == [(2, 2)]
    assert (tmp_path / "slow" / "best-00000002.pt").is_file()


def test_a_state_that_cannot_be_written_ends_the_training_in_one_line(shapes_root, tmp_path, command, monkeypatch):
    """Whether the training goes on meanwhile or waits for the last one."""
    def full(self, state, best_step):
        if state["step"] >= first:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.state))

    monkeypatch.setattr(Stage, "save_state", full)
    for first in (2, 8):
        status, _, errors = command("--state=2", "--dataset=shapes", f"--data-root={shapes_root}", "--train-set=8",
                                    "--epochs=4", "--batch-size-labeled=4", "--val-num-steps=2", "--log-num-steps=1",
                                    f"--output-dir={tmp_path}", "--exp-name=full", "--test-size", 65, 65, *SMALL)
        assert status == 2 and "full/state.pt cannot be written: No space left" in errors, errors
        assert not (tmp_path / "full.pt").exists()
