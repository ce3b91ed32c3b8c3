"""Mixed precision: skipped steps leave no trace, bf16 runs on a CPU, and checkpoints stay float32."""

import math

import pytest
import torch

from tests.test_stages import SMALL, tensors
from utils.precision import Precision, choose_precision

GPU = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_a_skipped_first_step_changes_nothing(device):
    """The fused optimizer would take its first momentum from memory that nobody wrote to."""
    start = torch.arange(1.0, 9.0, device=device)
    parameter = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.SGD([parameter], lr=0.5, momentum=0.5, fused=True)
    precision = Precision("fp16", device)
    _, optimizer = precision.prepare(torch.nn.Identity(), optimizer)
    precision.scaler.scale(torch.zeros((), device=device))  # creates the scale
    precision.scaler._scale.fill_(2.0**127)
    expected = start.clone()
    for velocity in (None, 3.0, 4.5):  # overflow; then g = 3 and v = 0.5 v + g
        optimizer.zero_grad()
        precision.backward((parameter * 3).sum(), optimizer)
        precision.step(optimizer)
        expected -= 0.5 * (velocity or 0)
        assert torch.equal(parameter.detach(), expected)
        precision.scaler._scale.fill_(1024.0)
    assert precision.skipped.item() == 1
    assert torch.equal(optimizer.state[parameter]["momentum_buffer"], torch.full_like(start, 4.5))


def test_bf16_is_taken_on_a_cpu_when_asked_for_and_fp16_is_not(capsys):
    assert choose_precision(True, "torch", "bf16", "cpu").kind == "bf16"
    assert capsys.readouterr().err == ""
    assert choose_precision(True, "torch", "fp16", "cpu").kind == "fp32"
    assert "notice" in capsys.readouterr().err


def test_a_stage_in_bf16_learns_about_what_it_learns_in_float32(shapes_root, tmp_path, command):
    found = {}
    for kind, more in {"float32": [], "bf16": ["--mixed-precision", "--amp-dtype=bf16"]}.items():
        status, out, errors = command("--state=2", "--dataset=shapes", f"--data-root={shapes_root}", "--train-set=8",
                                      "--epochs=2", "--batch-size-labeled=4", f"--output-dir={tmp_path}",
                                      "--test-size", 65, 65, f"--exp-name={kind}", *SMALL, *more)
        assert status == 0 and f"on cpu in {'bf16' if more else 'fp32'}" in out, errors
        found[kind] = tensors(tmp_path / f"{kind}.pt")
    distance = size = 0
    for name, value in found["float32"].items():
        other = found["bf16"][name]
        assert other.dtype == value.dtype, name  # the weights stay float32
        if name.endswith("weight"):
            distance += (value - other).square().sum().item()
            size += value.square().sum().item()
    assert 0 < math.sqrt(distance / size) < 0.01
