"""The GPU benchmarks' own paths on a CPU: every topic runs, and what they compute from times is right."""

import json
import os

import pytest
import torch

from benchmarks import measure
from benchmarks.gpu_clock import Clock, share_outside, synchronizations, waiting_share
from benchmarks.gpu_subjects import TINY, Variant


def test_every_topic_runs_and_its_results_are_kept(script, tmp_path):
    """Tiny sizes; bf16 in the place of fp16. Whether aims are met means nothing here."""
    done = script("-m", "benchmarks.gpu", "--quick", "--device", "cpu", "--work", tmp_path / "work",
                  env={**os.environ, "OUT": str(tmp_path / "out")})
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert result["quick"] and result["failed"] == {} and result["left_out"] == []
    rows = {row["what"]: row for row in result["rows"]}
    for beginning in ("logits in bf16", "mutual loss in bf16", "loss curve: bf16", "pixels labelled otherwise in bf16",
                      "training, batch 2: without channels_last", "training, batch 3: as a launcher", "part of a step: loss",
                      "labelling, first pass", "labelling, second pass with PLE", "validation from files",
                      "training crops from files, the loader alone", "training at batch 2, the best"):
        (row,) = [row for what, row in rows.items() if what.startswith(beginning) and not what.endswith("rate")] or [
            row for what, row in rows.items() if what.startswith(beginning)]
        assert row["ours"] >= 0, row
        assert row["what"] in done.stdout
    assert rows["loss curve: float32 again against float32, second half of 2 steps"]["ours"] == 0  # the same bits here
    assert len(result["figures"]["loss curves"]["bf16"]) == TINY.curve
    assert result["settings"]["device"] == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_says_so(script, tmp_path):
    done = script("-m", "benchmarks.gpu", "--results", tmp_path)
    assert done.returncode == 2 and "no GPU" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_the_share_of_waiting_by_hand():
    assert share_outside([(0, 2), (1, 3), (4, 5), (9, 10)]) == pytest.approx(5 / 10)
    assert share_outside([(3, 4), (0, 10)]) == 0
    assert share_outside([]) is None


def test_what_means_nothing_on_a_cpu_is_left_out():
    calls = []
    assert waiting_share(lambda: calls.append(1), "cpu") is synchronizations(lambda: calls.append(1), "cpu") is None
    assert Clock("cpu").peak(lambda: calls.append(1)) is None and len(calls) == 3


def test_features_and_flags_of_a_variant():
    assert Variant("bf16", graphs=True, compiled=True).features == {"bf16", "graphs", "compiled"}
    assert Variant("bf16", graphs=True).flags == "--mixed-precision --amp-dtype=bf16 --cuda-graphs"
    assert (Variant("fp32").features, Variant("fp32").flags) == ({"fp32"}, "")


def test_aims_from_above_and_from_below():
    assert measure.row("x", "%", None, 44.9, target=(">=", 45))["met"] is False
    assert measure.row("x", "%", None, 45.1, target=(">=", 45))["met"] is True
    assert measure.row("x", "%", None, float("nan"), target=("<=", 1))["met"] is False
    assert "nan" in measure.table([measure.row("x", "%", None, float("nan"), target=("<=", 1))])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_synchronization_is_counted_and_waiting_is_seen():
    values = torch.ones(1000, device="cuda")
    assert synchronizations(lambda: [values.sum().item() for _ in range(3)], "cuda") == 3
    assert synchronizations(lambda: values.add_(1), "cuda") == 0
    assert 0 <= waiting_share(lambda: [values.add_(1) for _ in range(10)], "cuda") <= 1
    assert Clock("cuda").peak(lambda: torch.ones(2**20, device="cuda")) >= 2**22
