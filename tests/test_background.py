"""Saving goes on beside the training, with what was there when it began; its errors are not lost."""

import io
import threading

import pytest
import torch

from models import deeplab_v2
from tests.test_stages import SMALL
from utils.background import Background
from utils.runs import Stage
from utils.transfer import snapshot

GPU = pytest.param("cuda", marks=pytest.mark.gpu)


def test_one_at_a_time_and_errors_come_later():
    done, background = [], Background()
    background.start(done.append, 1)
    background.start(done.append, 2)
    background.wait()
    assert done == [1, 2]
    background.start(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        background.start(done.append, 3)
    background.wait()  # told once
    assert done == [1, 2]


def test_a_context_waits_and_does_not_hide_what_went_wrong_within():
    done, released = [], threading.Event()
    with Background() as background:
        background.start(lambda: (released.wait(10), done.append(1)))
        released.set()
    assert done == [1]
    with pytest.raises(ZeroDivisionError), Background() as background:
        background.start(lambda: 1 / 0)
    with pytest.raises(KeyError), Background() as background:
        background.start(lambda: 1 / 0)
        raise KeyError


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


def test_training_goes_on_while_a_state_is_written(shapes_root, tmp_path, command, monkeypatch):
    """The first state, after the second step, is only written when the metrics of the third are."""
    original, third, waited = Stage.save_state, threading.Event(), []
    log = Stage.log_metrics

    def log_metrics(self, **values):
        log(self, **values)
        if values["kind"] == "train" and values["step"] >= 3:
            third.set()

    def save_state(self, state, best_step):
        waited.append((third.wait(60), state["step"]))
        original(self, state, best_step)

    monkeypatch.setattr(Stage, "log_metrics", log_metrics)
    monkeypatch.setattr(Stage, "save_state", save_state)
    status, _, errors = command("--state=2", "--dataset=shapes", f"--data-root={shapes_root}", "--train-set=8",
                                "--epochs=3", "--batch-size-labeled=4", "--val-num-steps=2", "--log-num-steps=1",
                                f"--output-dir={tmp_path}", "--test-size", 65, 65, *SMALL)
    assert status == 0, errors
    assert waited == [(True, 2), (True, 4), (True, 6)]
