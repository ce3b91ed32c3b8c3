"""The benchmarks' own paths, tiny and on a CPU: every part runs, and what is computed from times is right."""

import json
import os

import pytest
import torch

from benchmarks import gpu


def test_parts_run_one_by_one_and_what_fails_is_named(script, tmp_path):
    """Whole stages of the real command line, a round of the launcher, and a command that fails at the end."""
    done = script("-m", "benchmarks.gpu", "--quick", "--device", "cpu", "--parts", "training", "labelling", "chain",
                  "--table", "bash -c 'echo started; exit 3'", "--work", tmp_path / "work",
                  env={**os.environ, "OUT": str(tmp_path / "out")})
    result = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert done.returncode == 1 and list(result["failed"]) == ["table"] and "started" in result["failed"]["table"], done.stderr
    found = result["found"]
    assert found["training-4"]["crops a second"] > 0 and found["training-4"]["seconds of a validation"] > 0
    assert found["labelling"]["images"] == found["labelling with PLE"]["images"] == 16
    chain = found["chain"]
    price = chain["seconds of a stage"]
    kinds = {"supervised training": 2, "labelling": 2, "labelling with PLE": 8, "training on pseudo labels": 10}
    assert price.keys() == kinds.keys()
    assert chain["minutes of the 22 stages, computed from these"] == pytest.approx(
        sum(count * price[kind] for kind, count in kinds.items()) / 60, abs=0.05)


def test_times_of_a_training_by_hand():
    """A validation lasts from the log entry of its step."""
    lines = [{"kind": "start", "step": 0, "time": 100.0}, {"kind": "train", "step": 20, "time": 106.0},
             {"kind": "validation", "step": 20, "time": 110.5}, {"kind": "train", "step": 40, "time": 113.0},
             {"kind": "validation", "step": 40, "time": 114.9}, {"kind": "end", "step": 40, "time": 115.0, "seconds": 15.0}]
    assert gpu.validations_of(lines) == [4.5, pytest.approx(1.9)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("words, said", [([], "there is no GPU here"), (["--device=cpu"], "would take hours"),
                                         (["--device=cpu", "--quick", "--parts", "table"], "by --table COMMAND")])
def test_what_cannot_be_measured_is_said(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmark", f"--results={tmp_path}", *words])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    errors = capsys.readouterr().err
    assert ended.value.code == 2 and said in errors and len(errors.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_both_procedures_find_the_same_thresholds(script, tmp_path):
    done = script("-m", "benchmarks.cpu", "--quick", "--results", tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "cpu.json").read_text())["found"]
    assert found["thresholds that differ"] == 0
    timed = {what: value for what, value in found.items() if isinstance(value, dict) and "ratio" in value}
    assert len(timed) == 6 and all(value["ours"] > 0 and value["ratio"] > 0 for value in timed.values())
