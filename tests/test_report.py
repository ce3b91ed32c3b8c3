"""The report of a run: its numbers against counts made by hand, its page in a browser, what it says of a chain."""

import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.specs import load_spec
from data.store import PseudoLabelStore
from data.masks import color_table
from tests.browser import browser, look
from report import figures
from report.colors import SERIES
from report.run import Labelling, Run, Stage, read_run
from tools import report
from utils.files import locked, write_json

ROOT = Path(__file__).resolve().parents[1]
ARMS = ("l", "r")


@pytest.fixture(scope="module")
def reported(tiny_run, tmp_path_factory):
    """A finished chain of two rounds with its report. Do not change it."""
    run = shutil.copytree(tiny_run, tmp_path_factory.mktemp("reported") / "tiny")
    report.main([str(run), "--images", "0", "--rounds", "2", "--arms", *ARMS])
    return run


@pytest.fixture
def run(reported, tmp_path):
    """A copy that a test may change."""
    return Path(shutil.copytree(reported, tmp_path / "tiny"))


def html(run):
    return (run / "report" / "index.html").read_text(encoding="utf-8")


def counted(run, number):
    return json.loads((run / "report" / f"round-{number}.json").read_text())


def labels(run, stage, kind="labels"):
    return {path.stem: np.array(Image.open(path)) for path in sorted((run / "pseudo" / stage / kind).glob("*.png"))}


def truths(root, names):
    return {name: np.array(Image.open(root / "SegmentationClassAug" / f"{name}.png")) for name in names}


def thresholded(run, stage, name):
    """(predicted classes, label by thresholds alone), from the stored logits with torch's own softmax."""
    import torch
    manifest = json.loads((run / "pseudo" / stage / "manifest.json").read_text())
    steps, size = PseudoLabelStore(run / "pseudo" / stage).read_logits(name)
    logits = -torch.from_numpy(steps.astype(np.float32)) / 2048
    grown = [(points - 1) * 8 + 1 for points in logits.shape[1:]]  # of the test size, 65, what covers the image
    grown = torch.nn.functional.interpolate(logits[None], grown, mode="bilinear", align_corners=True)
    confidence, classes = grown.softmax(1)[0, :, : size[0], : size[1]].max(0)
    kept = confidence.numpy() >= np.array(manifest["thresholds"])[classes.numpy()]
    return classes.numpy(), np.where(kept, classes.numpy(), 255)


def test_figures_of_labels_are_those_counted_from_the_files(reported, shapes_root):
    """After PLE exactly, from the PNGs; before it but for the 16-bit confidences, from the logits."""
    look_ = counted(reported, 2)
    assert (look_["images"], look_["of"], look_["truth"]) == (16, 16, True)
    for arm in ARMS:
        after = labels(reported, f"tiny__p1--{arm}")
        truth = truths(shapes_root, after)
        all_truth = np.concatenate([truth[name].ravel() for name in after])
        all_after = np.concatenate([after[name].ravel() for name in after])
        known = all_truth != 255
        values = look_["arms"][arm]
        assert values["after"]["labelled"] == [int((all_after == c).sum()) for c in range(8)]
        assert values["after"]["compared"] == [int((known & (all_after == c)).sum()) for c in range(8)]
        assert values["after"]["right"] == [int(((all_truth == c) & (all_after == c)).sum()) for c in range(8)]
        plain = [thresholded(reported, f"tiny__p1--{arm}", name) for name in after]
        predicted = np.concatenate([classes.ravel() for classes, _ in plain])
        before = np.concatenate([label.ravel() for _, label in plain])
        tolerance = 0.002 * all_truth.size  # pixels at the threshold or on a tie
        assert np.abs(np.array(values["predicted"]) - np.bincount(predicted, minlength=8)).sum() <= tolerance
        changes = np.array(values["changes"]).sum(axis=0)
        right = known & (before == all_truth)
        wrong = known & ~right & (before != 255)
        for cell, mask in (((0, 0), right & (all_after == all_truth)), ((1, 0), wrong & (all_after == all_truth)),
                           ((0, 1), right & (all_after != all_truth) & (all_after != 255)),
                           ((2, 0), known & (before == 255) & (all_after == all_truth))):
            assert abs(changes[cell] - mask.sum()) <= tolerance, cell
        assert changes.sum() == known.sum()
        old = np.concatenate([thresholded(reported, f"tiny__p0--{arm}", name)[0].ravel() for name in after])
        memory = np.array(values["memory"]).sum(axis=0)
        assert abs(memory[0, 1] - (known & (old == all_truth) & (predicted != all_truth)).sum()) <= tolerance
    first, second = (np.concatenate([thresholded(reported, f"tiny__p1--{arm}", name)[0].ravel() for name in after])
                     for arm in ARMS)
    assert abs(look_["agreement"] - (first == second).mean()) <= 0.002


def test_pictures_show_where_it_was_worst_and_best(reported, shapes_root):
    panels = counted(reported, 2)["panels"]
    assert {panel["kind"] for panel in panels} == {"disagree", "mended", "spoilt"}
    for kind in ("disagree", "mended", "spoilt"):
        shares = [panel["share"] for panel in panels if panel["kind"] == kind]
        assert shares == sorted(shares, reverse=True) and all(share > 0 for share in shares)
    panel = panels[0]
    assert [title for title, _ in panel["files"]] == [
        "image", "truth", "arm l", "arm r", "label of l before PLE", "label of l after PLE", "confidence"]
    name = dict(panel["files"])["label of l after PLE"]
    shown = np.array(Image.open(reported / "report" / "figures" / name))
    assert (shown == color_table(load_spec("shapes").palette)[labels(reported, "tiny__p1--l")[panel["image"]]]).all()


def test_the_page_says_what_the_run_came_to(reported):
    page = html(reported)
    results = {path.parent.name: json.loads(path.read_text())["miou"] for path in reported.glob("*/result.json")}
    finals = [100 * results[f"tiny__p2--{arm}"] for arm in ARMS]
    gain = sum(finals) / 2 - 100 * results["tiny__p0--b"]
    baseline = 100 * results["tiny__p0--b"]
    assert f"arm l {finals[0]:.2f} and arm r {finals[1]:.2f}" in page and f"alone: {baseline:.2f} (arm b)" in page
    assert f"{abs(gain):.2f} points {'above' if gain >= 0 else 'below'}" in page
    for section in ("classes", "training", "pseudo-labels", "ple", "forgetting", "arms", "pictures", "stages",
                    "configuration"):
        assert f'<h2 id="{section}">' in page and f'<a href="#{section}">' in page
    for name, miou in results.items():
        assert f'<td>{name}</td><td class="n">{100 * miou:.2f}</td>' in page
    environment = json.loads((reported / "tiny__p2--l" / "environment.json").read_text())
    assert environment["torch"] in page and environment["commit"] in page and "weight decay" in page
    assert "This chain" not in page and "http-equiv" not in page  # it has finished


def test_the_page_needs_nothing_else(reported):
    page = html(reported)
    assert not re.findall(r'(?:src|href)="(?!data:|#)|url\((?!#)', page) and "@import" not in page
    assert "<script" not in page and len(page) < 3_000_000
    assert '<meta name="viewport" content="width=device-width' in page and "prefers-color-scheme: dark" in page
    assert "@media print" in page
    svgs = re.findall(r"<svg.*?</svg>", page, re.S)
    assert len(svgs) == 18 and all('role="img"' in svg and "aria-label=" in svg for svg in svgs)
    assert all(re.search(r'alt="[^"]+"', image) for image in re.findall(r"<img[^>]*>", page))


def test_every_figure_is_a_file_of_its_own_and_the_same_bytes_again(reported, tmp_path):
    files = {path.stem: path.read_bytes() for path in (reported / "report" / "figures").glob("*.svg")}
    assert set(files) == set(re.findall(r'<figure id="figure-([\w-]+)">', html(reported)))
    for content in files.values():
        root = ElementTree.fromstring(content)
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and b"var(" not in content and b"<text" in content
        assert root.find("{http://www.w3.org/2000/svg}title").text
    again = shutil.copytree(reported, tmp_path / "tiny")
    report.main([str(again), "--images", "0"])
    assert {path.stem: path.read_bytes() for path in (again / "report" / "figures").glob("*.svg")} == files


def texts(svg):
    return [text.text for text in ElementTree.parse(svg).getroot().iter("{http://www.w3.org/2000/svg}text")]


def points(svg, color):
    """Marks of a colour, without the one in the legend."""
    return len(re.findall(rf"<use [^>]*fill: {color}", svg.read_text())) - 1


def test_figures_hold_the_numbers(reported):
    folder, arm = reported / "report" / "figures", read_run(reported).of_arm("l")
    assert points(folder / "miou.svg", SERIES[0]) == len(arm) == 3
    rows = [[f"{100 * value:.0f}" for value in stage.iou] for stage in (*arm, *read_run(reported).of_arm("b"))]
    cells = texts(folder / "classes-l.svg")
    assert {"arm l, after round", "alone", *read_run(reported).classes} <= set(cells)
    numbers = [cell for cell in cells if cell.isdigit()]
    assert numbers == ["0", "1", "2", *(cell for row in zip(*rows[:3]) for cell in row), *rows[3]]


def test_a_curve_of_one_validation_has_its_point_and_names_are_no_formulas(tmp_path):
    lines = [{"kind": "validation", "step": 4, "time": 0.0, "miou": 0.25, "iou": [0.5, None]}]
    stage = Stage("x__p0--a$b$", tmp_path, "x", 0, "a$b$", {"miou": 0.25, "step": 4}, {}, {}, lines)
    figures.draw(Run(tmp_path, [stage], []), tmp_path)
    assert points(tmp_path / "validation.svg", SERIES[0]) == 1 and "arm a$b$" in texts(tmp_path / "validation.svg")
    assert {"arm a$b$, after round", "50", "–"} <= set(texts(tmp_path / "classes-a$b$.svg"))
    assert not (tmp_path / "loss.svg").exists()


@pytest.mark.skipif(browser() is None, reason="no Chromium or Chrome is installed (Debian: apt-get install chromium)")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_browser_draws_every_figure_and_nothing_overflows(reported, tmp_path, dark):
    found = look(reported / "report" / "index.html", tmp_path, (390, 1400), dark)
    assert [result["width"] for result in found] == [390, 1400]
    page = html(reported)
    for result in found:
        assert result["dark"] is dark and result["scrollWidth"] <= result["width"]
        assert result["overflowing"] == []
        assert len(result["charts"]) == page.count("<svg ") and len(result["pictures"]) == page.count("<img")
        for chart in result["charts"]:
            assert chart["drawn"] > 0 and chart["marks"] > 0 and chart["width"] > 50, chart
            assert chart["cut"] == [] and chart["contrast"] >= 4.5, chart
        assert all(width > 0 and height > 0 for _, width, height in result["pictures"])
    assert found[0]["paper"] == found[1]["paper"] == ("rgb(18, 22, 29)" if dark else "rgb(255, 255, 255)")


@pytest.mark.skipif(browser() is None, reason="no Chromium or Chrome is installed (Debian: apt-get install chromium)")
def test_the_browser_test_sees_what_is_wrong(tmp_path):
    page = tmp_path / "wrong.html"
    page.write_text('<!doctype html><html><body style="margin:0;background:#fff"><div style="width:500px">wide</div>'
                    '<figure id="f"><svg viewBox="0 0 50 20" width="50" height="20"><text x="30" y="10" '
                    'style="fill: var(--soft, #eee)">cut off at the end</text></svg></figure>'
                    '<img src="data:image/png;base64,AAAA" alt="x">'
                    "</body></html>")
    (found,) = look(page, tmp_path, (390,))
    assert found["scrollWidth"] == 500 and found["overflowing"]
    assert found["charts"][0]["marks"] == 0 and found["charts"][0]["cut"] and found["charts"][0]["contrast"] < 2
    assert found["pictures"] == [["x", 0, 0]]


# --- while a chain runs -------------------------------------------------------------------------------------------


def unfinished(run):
    """The run as it was when arm l of round 2 was half done."""
    for path in (run / "tiny__p2--l" / "result.json", run / "tiny__p2--l.pt"):
        path.unlink()
    lines = (run / "tiny__p2--l" / "metrics.jsonl").read_text().splitlines()
    (run / "tiny__p2--l" / "metrics.jsonl").write_text(lines[0] + "\n" + '{"damaged\n')


def test_a_killed_chain_is_not_called_running(run):
    unfinished(run)
    for folder in (run, run / "tiny__p2--l"):  # what a killed process leaves: its lock file, which nobody holds
        (folder / ".lock").write_text("process 1 on somewhere\n")
    report.main([str(run), "--progress"])
    page = html(run)
    assert "This chain has stopped before its end" in page and "10 of 11 stages" in page
    assert "tiny__p2--l: step 0 of 3 (stopped)" in page and "http-equiv" not in page


def test_a_running_chain_shows_its_progress_without_drawing(run, capsys):
    drawn = {path: path.stat().st_mtime_ns for path in (run / "report" / "figures").iterdir()}
    unfinished(run)
    labelling = run / "pseudo" / "tiny__p1--r"
    (labelling / "manifest.json").unlink()
    with locked(run / ".lock", "it"), locked(run / "tiny__p2--l" / ".lock", "it"), locked(labelling / ".lock", "it"):
        report.main([str(run), "--progress"])
    page, said = html(run), capsys.readouterr().out
    assert "This chain is running" in page and '<progress max="11" value="9">' in page
    assert re.fullmatch(r"9 of 11 stages, about [\d.]+ s left\n", said) and said.strip() in page
    assert "tiny__p2--l: step 0 of 3" in page and "(stopped)" not in page and "As of 20" in page
    assert "arm r: labels the unlabelled images\n" in page
    assert '<meta http-equiv="refresh" content="60">' in page and 'id="figure-ple"' in page
    assert "After round 2 of 2: mIoU arm r" in page
    assert {path: path.stat().st_mtime_ns for path in (run / "report" / "figures").iterdir()} == drawn


def test_time_left_is_that_of_the_stages_that_are_missing():
    """Trainings of 10 s and labellings of 4 s; of 3 rounds 2 trainings and 2 labellings are done."""
    def stage(number, arm, start, seconds):
        lines = [{"kind": kind, "step": step, "time": start + step} for kind, step in (("start", 0), ("end", seconds))]
        return Stage(f"x__p{number}--{arm}", None, "x", number, arm, {"miou": 0.5}, {}, {}, lines)

    made = [Labelling(f"x__p0--{arm}", None, "x", 0, arm, {"previous": None}, {"seconds": 4}) for arm in "ab"]
    stages = [stage(0, "a", 0, 90), stage(0, "b", 90, 90), stage(1, "a", 200, 10), stage(1, "b", 214, 10)]
    run = Run(None, stages, made, plan={"rounds": 3, "arms": ["a", "b"]})
    done, due, left = run.progress()
    assert (done, due) == (6, 14) and left == pytest.approx((4 * 10 + 4 * 4) / (28 / 24))  # 28 s were done within 24
    assert Run(None, stages[:2], [], plan=run.plan).progress() == (2, 14, None)
    assert Run(None, stages, made, plan={**run.plan, "rounds": 0}).progress()[:2] == (2, 2)  # an earlier chain had more


def test_a_chain_that_has_just_begun(run, capsys):
    shutil.rmtree(run / "report")
    for path in run.iterdir():
        if path.name not in ("tiny__p0--l", "tiny__p0--l.pt"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (run / "tiny__p0--l" / "result.json").unlink()
    (run / "tiny__p0--l" / "metrics.jsonl").unlink()
    report.main([str(run), "--progress", "--rounds", "2", "--arms", *ARMS])
    assert capsys.readouterr().out == "0 of 10 stages\n"
    assert "No stage has finished yet" in html(run) and "0 of 10 stages" in html(run)
    report.main([str(run)])
    assert "0 of 10 stages" in html(run)  # the plan is remembered


def test_stages_that_do_not_descend_from_each_other_are_marked(run):
    """As after a change of round 0 that the launcher has not followed up yet."""
    assert read_run(run).strangers() == [] and "do not belong together" not in html(run)
    result = run / "tiny__p0--l" / "result.json"
    result.write_text(json.dumps({**json.loads(result.read_text()), "checkpoint_sha256": "0" * 64}))
    report.main([str(run), "--progress"])
    page = html(run)
    assert "do not belong together" in page and "tiny__p1--l did not start from the present tiny__p0--l.pt" in page
    assert "tiny__p1--r learnt from labels of a checkpoint that is no longer in the run" in page and "tiny__p2" not in \
        "".join(read_run(run).strangers())


# --- what is no longer there, or never was ------------------------------------------------------------------------


def test_figures_outlive_the_labels(run, shapes_root):
    before = counted(run, 1)
    for folder in (run / "pseudo").iterdir():
        shutil.rmtree(folder / "labels")
        shutil.rmtree(folder / "logits")
        (folder / "pruned").touch()
    report.main([str(run), "--images", "0"])
    assert counted(run, 1) == before and "no figures of single pixels" not in html(run)
    (run / "report" / "round-1.json").unlink()
    report.main([str(run), "--images", "0"])
    page = html(run)
    assert "For round 1 there are no figures of single pixels: the labels in" in page and "removed" in page
    assert 'id="figure-ple"' in page  # round 2 is still known


def test_figures_of_other_labels_are_not_taken(run, shapes_root):
    path = run / "report" / "round-2.json"
    values = counted(run, 2)
    write_json(path, {**values, "labellings": {name: "0" * 64 for name in values["labellings"]}, "images": 99})
    report.main([str(run), "--images", "0"])
    assert counted(run, 2) == values
    report.main([str(run), "--images", "5"])
    assert counted(run, 1)["images"] == 5 and "counted on 5 evenly spaced ones of 16" in html(run)


def test_images_without_masks(run, own_shapes):
    shutil.rmtree(run / "report")
    for name in labels(run, "tiny__p0--l"):
        (own_shapes / "SegmentationClassAug" / f"{name}.png").unlink()
    report.main([str(run), "--data-root", str(own_shapes)])
    page = html(run)
    assert "have no masks" in page and 'id="figure-agreement"' in page and 'id="figure-ple"' not in page
    panels = counted(run, 2)["panels"]
    assert {panel["kind"] for panel in panels} == {"disagree", "changed"}
    assert "truth" not in dict(panels[0]["files"])


def test_a_dataset_that_is_gone(run, shapes_root, tmp_path):
    shutil.rmtree(run / "report")
    for path in run.glob("*/config.json"):
        path.write_text(path.read_text().replace(str(shapes_root), str(tmp_path / "gone")))
    report.main([str(run)])
    assert f"the dataset root {tmp_path / 'gone'} is not a folder" in html(run) and 'id="figure-miou"' in html(run)


def test_one_arm_and_names_that_are_html(run):
    """Self-training has one arm; what others wrote is shown, never run."""
    (run / "report" / "plan.json").unlink()
    for path in [*run.glob("*--r*"), *run.glob("pseudo/*--r")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in (*run.glob("*/config.json"), *run.glob("*/result.json")):
        path.write_text(path.read_text().replace('"disc"', '"<script>alert(1)</script>"'))
    report.main([str(run)])
    page = html(run)
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert "Self-training" in page and "Dynamic mutual" not in page
    assert 'id="figure-student-wins"' in page and 'id="figure-agreement"' not in page


def test_a_training_outside_a_chain(shapes_root, tmp_path, command):
    status, _, errors = command(
        "--state=2", "--dataset=shapes", f"--data-root={shapes_root}", "--train-set=8", "--epochs=2", "--weights=none",
        "--backbone=small", "--crop-size", 33, 33, "--test-size", 65, 65, f"--output-dir={tmp_path}", "--exp-name=mine",
        "--val-num-steps=1", "--log-num-steps=1")
    assert status == 0, errors
    report.main([str(tmp_path)])
    assert "mIoU arm mine" in html(tmp_path) and 'id="figure-loss"' in html(tmp_path)


def test_a_baseline_beside_the_run(run, tmp_path):
    """Ablations and reproduce.sh have the supervised arm in a folder of its own."""
    own = html(run)
    beside = tmp_path / "baseline"
    beside.mkdir()
    for path in run.glob("tiny__p0--b*"):
        path.rename(beside / path.name)
    for arm in ARMS:  # on its half of the labels
        path = run / f"tiny__p0--{arm}" / "result.json"
        result = json.loads(path.read_text())
        result["fingerprint"]["options"]["train_set"] += f"-{arm}"
        path.write_text(json.dumps(result))
    report.main([str(run), "--progress"])
    assert "on the labels alone:" not in html(run)
    report.main([str(run), "--progress", "--baseline", str(beside)])
    lead = re.search(r"Trained on the labels alone: [\d.]+ \(arm b\); .*?[\d.]+ points (above|below) it", own)
    assert lead and lead[0] in html(run)
    report.main([str(run)])
    assert "alone" in texts(run / "report" / "figures" / "classes-l.svg")  # its classes stand in the heat maps
    report.main([str(run), "--progress"])  # remembered
    assert lead[0] in html(run)
    shutil.rmtree(beside)
    report.main([str(run), "--progress"])
    assert "on the labels alone:" not in html(run)


def test_round_0_is_the_baseline_where_it_saw_all_labels(run):
    """The arms of voc-20 and city-8 differ by their first weights: round 0 is the supervised result."""
    for path in run.glob("tiny__p0--b*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    report.main([str(run), "--progress"])
    zero = [100 * json.loads((run / f"tiny__p0--{arm}" / "result.json").read_text())["miou"] for arm in ARMS]
    assert f"alone: {sum(zero) / 2:.2f} (round 0, mean of the arms)" in html(run)


def test_a_run_without_ple_says_nothing_of_it(run):
    for path in run.glob("pseudo/*/manifest.json"):
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps({**manifest, "previous": None}))
    shutil.rmtree(run / "report")
    report.main([str(run), "--progress"])
    page = html(run)
    assert "Dynamic mutual training on shapes" in page and 'id="ple"' not in page


@pytest.mark.parametrize("words, message", [
    (["nowhere"], "the run folder nowhere is missing"), (["empty"], "holds no stage"),
    (["tiny", "--images=-1"], "--images"),
    (["tiny", "--exp=tiny", "--baseline", "nowhere"], "the run folder nowhere is missing"),
    (["tiny"], "several experiments (other, tiny); choose one with --exp"), (["tiny", "--exp=x"], "no experiment x")])
def test_mistakes_end_in_one_line(words, message, run, monkeypatch, called):
    monkeypatch.chdir(run.parent)
    Path("empty").mkdir()
    shutil.copytree(run / "tiny__p1--l", run / "other__p1--l")
    before = html(run)
    status, _, errors = called(report.main, *words)
    assert status == 2 and message in errors and errors.count("\n") == 1
    assert html(run) == before and not list(Path("empty").iterdir())


@pytest.mark.parametrize("words", [["-m", "tools.report"], [str(ROOT / "tools" / "report.py")]])
def test_progress_does_without_what_takes_long_to_import(words, run, tmp_path):
    done = subprocess.run([sys.executable, "-X", "importtime", *words, run, "--progress"], capture_output=True,
                          text=True, cwd=ROOT if words[0] == "-m" else tmp_path, timeout=60)
    assert done.returncode == 0 and done.stdout == "11 of 11 stages\n"
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "cv2", "matplotlib", "pandas"}
