"""The GPU benchmarks' own paths on a CPU: every topic runs, and what they compute from times is right."""

import json
import os
import subprocess

import pytest
import torch

from benchmarks import gpu, measure, voc_chain
from benchmarks.gpu_clock import Clock, busy_time, profiled, synchronizations
from benchmarks.gpu_subjects import TINY, Variant
from benchmarks.voc_chain import Price, Stage, training_price


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


def test_the_time_in_which_something_runs_by_hand():
    assert busy_time([(4, 5), (0, 2), (1, 3), (9, 10)]) == 5
    assert busy_time([(3, 4), (0, 10)]) == 10
    assert busy_time([]) == 0


def test_what_means_nothing_on_a_cpu_is_left_out():
    calls = []
    assert profiled(lambda: calls.append(1), "cpu") is synchronizations(lambda: calls.append(1), "cpu") is None
    assert Clock("cpu").peak(lambda: calls.append(1)) is None and len(calls) == 3


def test_features_and_flags_of_a_variant():
    assert Variant("bf16", compiled=True).features == {"bf16", "graphs", "compiled"}
    assert Variant("bf16", graphs=False).flags == "--mixed-precision --amp-dtype=bf16 --no-cuda-graphs"
    assert (Variant("fp32", graphs=False).features, Variant("fp32").flags) == ({"fp32"}, "")


def test_aims_from_above_and_from_below():
    assert measure.row("x", "%", None, 44.9, target=(">=", 45))["met"] is False
    assert measure.row("x", "%", None, 45.1, target=(">=", 45))["met"] is True
    assert measure.row("x", "%", None, float("nan"), target=("<=", 1))["met"] is False
    assert "nan" in measure.table([measure.row("x", "%", None, float("nan"), target=("<=", 1))])


def test_the_chain_is_computed_from_its_stages(script, tmp_path):
    """Two rounds on 24 images, 8 of them labelled; every kind of stage is run by the real command line."""
    done = script("-m", "benchmarks.voc_chain", "--quick", "--device", "cpu", "--work", tmp_path / "work",
                  "--results", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "voc_chain.json").read_text())
    stages = result["figures"]["stages"]
    kinds = ["supervised training"] * 2 + ["labelling", "training on pseudo labels"] * 2
    kinds += ["labelling with PLE", "training on pseudo labels"] * 2
    assert [stage["kind"] for stage in stages] == kinds
    sizes = {stage["kind"]: (stage["steps"], stage["validations"], stage["images"]) for stage in stages}
    assert sizes == {"supervised training": (4, 2, 0),  # 4 epochs of ceil(6 / 8) steps, validated after 2 and 4
                     "training on pseudo labels": (6, 2, 0),  # 2 epochs of ceil(16 / 7), after 3 and 6
                     "labelling": (0, 0, 16), "labelling with PLE": (0, 0, 16)}
    rows = {row["what"]: row["ours"] for row in result["rows"]}
    assert rows["the complete chain of 10 stages"] * 60 == pytest.approx(
        rows["check before the first stage"] + sum(stage["seconds"] for stage in stages))
    prices = result["figures"]["prices"]
    assert prices["training on pseudo labels"]["step"] > 0 and prices["labelling"]["image"] > 0
    assert "the complete chain" in done.stdout


def test_prices_of_a_training_by_hand():
    """0.1 s a step after a slow begin; validations of 5 s (the first) and 2 s."""
    lines = [{"kind": "start", "step": 0, "time": 100.0},
             {"kind": "train", "step": 10, "time": 104.0, "seconds": 4.0},
             {"kind": "train", "step": 20, "time": 106.0, "seconds": 2.0},
             {"kind": "validation", "step": 20, "time": 110.5}, {"kind": "train", "step": 30, "time": 112.0, "seconds": 1.0},
             {"kind": "train", "step": 40, "time": 113.0, "seconds": 1.0},
             {"kind": "validation", "step": 40, "time": 114.9}, {"kind": "end", "step": 40, "time": 115.0}]
    price = training_price(lines, wall=20.0)
    assert (price.step, price.validation) == (pytest.approx(0.1), pytest.approx(2))
    assert price.start == pytest.approx(20 - 40 * 0.1 - 2 * 2)
    assert price.of(Stage((), "", steps=100, validations=3)) == pytest.approx(12 + 10 + 6)
    assert Price(3, image=0.5).of(Stage((), "", images=4)) == 5


def test_a_stage_with_other_values():
    stage = Stage(("python", "main.py", "--epochs=4", "--labeling", "--lr=0.1"), "")
    assert stage.but(epochs=1, val_num_steps=5) == ["python", "main.py", "--labeling", "--lr=0.1", "--epochs=1",
                                                    "--val-num-steps=5"]
    assert stage.but(lr=None) == ["python", "main.py", "--epochs=4", "--labeling"]
    assert stage.option("epochs") == "4"


@pytest.mark.parametrize("benchmark", [gpu, voc_chain])
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_says_so(benchmark, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmark", f"--results={tmp_path}"])
    with pytest.raises(SystemExit) as ended:
        benchmark.main()
    errors = capsys.readouterr().err
    assert ended.value.code == 2 and "no GPU" in errors and len(errors.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_the_session_refuses_what_it_does_not_know():
    done = subprocess.run(["benchmarks/gpu_session.sh", "everything"], cwd=measure.REPOSITORY, capture_output=True,
                          text=True)
    assert done.returncode == 2 and "unknown word 'everything'" in done.stderr


@pytest.mark.gpu
def test_a_synchronization_is_counted_and_waiting_is_seen():
    values = torch.ones(1000, device="cuda")
    assert synchronizations(lambda: [values.sum().item() for _ in range(3)], "cuda") == 3
    assert synchronizations(lambda: values.add_(1), "cuda") == 0
    share, kernels = profiled(lambda: [values.add_(1) for _ in range(10)], "cuda")
    assert 0 <= share <= 1 and 0 < sum(kernels.values()) < 1
    assert Clock("cuda").peak(lambda: torch.ones(2**20, device="cuda")) >= 2**22
