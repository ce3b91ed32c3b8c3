"""Killed anywhere and started again, a chain ends with the same bytes; damage is noticed, named and mended."""

import json
import multiprocessing
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest

from benchmarks.crash import crash, digests, tiny_chain

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="fork and SIGKILL")


def test_a_chain_killed_twenty_times_ends_with_the_same_bytes(shapes_root, tmp_path):
    # In a process that has done nothing yet: after some of what other tests do, torch refuses to run in forked ones.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        figures = pool.submit(crash, shapes_root, tmp_path, kills=24).result()
    assert figures["files_that_differ"] == []
    assert figures["kills"] >= 20 and figures["of_them_sigterm"] >= 2
    assert len(figures["kills_by_finished_stages"]) >= 5  # across the stages, not only in the first
    assert figures["files_compared"] == 6 + 1 + 4 * (3 * 16 + 1)


@pytest.fixture(scope="module")
def finished(shapes_root, tmp_path_factory):
    """A finished chain; the tests damage copies of it."""
    import main
    out = tmp_path_factory.mktemp("finished") / "run"
    for stage in tiny_chain(shapes_root, out):
        main.main(stage)
    return out


@pytest.fixture
def run(finished, shapes_root, tmp_path):
    """A copy of the finished chain and its stages."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    return out, tiny_chain(shapes_root, out)


def again(command, stages):
    printed = ""
    for stage in stages:
        status, out, errors = command(*stage)
        assert status == 0, errors
        printed += out + errors
    return printed


def test_a_finished_chain_is_skipped_and_stays_as_it_is(run, command):
    out, stages = run
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and not path.name.endswith(".lock")}
    printed = again(command, stages)
    assert printed.count("already finished") == 6 and printed.count("already labelled") == 4
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("pattern", ["p1-r.pt", "pseudo/p1-l/labels/*.png", "pseudo/p1-l/confidence/*.png",
                                     "pseudo/p1-l/manifest.json", "p1-r/result.json", "log.txt"])
@pytest.mark.parametrize("how", ["cut", "flip"])
def test_damage_is_named_and_mended(run, command, pattern, how):
    if how == "flip" and pattern.endswith((".json", ".txt")):
        pytest.skip("plain text carries no digest of itself")
    out, stages = run
    expected = digests(out)
    path = sorted(out.glob(pattern))[0]
    whole = path.read_bytes()
    content, middle = bytearray(whole), len(whole) // 2
    content[middle] ^= 1
    path.write_bytes(content if how == "flip" else content[:middle])
    printed = again(command, stages)
    found = digests(out)
    if pattern == "log.txt":  # its lines are made anew from the results, those with a damaged name at the end
        del found["log.txt"], expected["log.txt"]
        assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())
    else:
        assert str(path) in printed and "anew" in printed
    assert found == expected


def test_a_changed_number_redoes_its_stage_and_what_follows_from_it(run, command):
    out, stages = run
    changed = [["--lr=0.015" if word == "--lr=0.01" and "--exp-name=p1-r" in stage else word for word in stage]
               for stage in stages]
    printed = again(command, changed)
    assert "p1-r: done anew, since lr was 0.01, now it is 0.015" in printed
    assert "p2-r: done anew" in printed  # it started from p1-r
    assert "p1-l: already finished" in printed and "p0-l: already finished" in printed


def test_predictions_that_are_gone_or_damaged(run, command):
    out, stages = run
    expected, logits = digests(out), out / "pseudo" / "p0-l" / "logits"
    shutil.rmtree(out / "pseudo" / "p1-l" / "labels")
    damaged = sorted(logits.glob("*.npz"))[3]
    damaged.write_bytes(damaged.read_bytes()[:50])
    status, _, errors = command(*next(stage for stage in stages if "--oldfilename=p0-l.pt" in stage))
    assert status == 2 and str(damaged) in errors.splitlines()[-1] and not damaged.exists()
    again(command, stages)  # as the line says
    assert digests(out) == expected
    shutil.rmtree(logits)  # the launchers do it after a round, too
    shutil.rmtree(out / "pseudo" / "p1-l" / "labels")
    again(command, stages)
    assert {**digests(out), **{name: value for name, value in expected.items() if "p0-l/logits" in name}} == expected


@pytest.mark.parametrize("file, key", [("p1-r/result.json", "miou"), ("p1-r/result.json", "start_miou"),
                                       ("pseudo/p1-l/manifest.json", "labeled_share")])
def test_a_record_that_lacks_a_key_is_made_anew(run, command, file, key):
    out, stages = run
    expected, record = digests(out), json.loads((out / file).read_text())
    del record[key]
    (out / file).write_text(json.dumps(record))
    assert f"anew, since {out / file} is damaged" in again(command, stages)
    assert digests(out) == expected


def test_a_start_that_is_refused_leaves_a_finished_stage_as_it_is(run, command):
    out, stages = run
    expected = digests(out)
    status, _, errors = command(*stages[0], "--lr=0.5", "--max-pixels=100")
    assert status == 2 and "limit of 100" in errors
    assert digests(out) == expected and "already finished" in again(command, stages[:1])


def test_a_changed_pseudo_label_is_refused_by_training(run, command):
    out, stages = run
    path = sorted(out.glob("pseudo/p0-l/confidence/*.png"))[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)
    training = next(stage for stage in stages if "--exp-name=p1-r" in stage)
    status, _, errors = command(*training, "--redo")
    assert status == 2 and str(path) in errors and len(errors.splitlines()) <= 2


def test_two_processes_on_one_stage(run, command):
    from utils.files import locked
    out, stages = run
    with locked(out / "p0-l" / ".lock", "it"):
        status, _, errors = command(*stages[0], "--redo")
    assert status == 2 and "in use by process" in errors
    assert command(*stages[0])[0] == 0  # the lock is gone with its owner


def test_metrics_survive_an_interruption_without_gaps_or_doubles(run, command):
    out, stages = run
    lines = [json.loads(line) for line in (out / "p1-r" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["kind"] == "validation"]
    assert steps == [3, 6]
