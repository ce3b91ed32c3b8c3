"""The table and the panel of a run, from a tiny chain made by the real command line."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from data.lists import evenly_spaced
from report import panel, pixels
from report.run import read_run
from report.summary import summarize as summary_of
from tools import summarize

EXP = "tiny"


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    """Two rounds of the arms l and r and a baseline b. Do not change it."""
    return shutil.copytree(tiny_run, tmp_path_factory.mktemp("summarized") / "tiny")


def counted_by_hand(run, shapes_root, stage):
    """Share of right pseudo labels and of labelled pixels of a stored labelling, from the PNGs alone."""
    right = labeled = compared = pixels = 0
    for path in (run / "pseudo" / stage / "labels").glob("*.png"):
        label = np.array(Image.open(path))
        truth = np.array(Image.open(shapes_root / "SegmentationClassAug" / path.name))
        both = (label != 255) & (truth != 255)
        right, compared = right + (label == truth)[both].sum(), compared + both.sum()
        labeled, pixels = labeled + (label != 255).sum(), pixels + label.size
    return right / compared, labeled / pixels


def test_summary_holds_what_the_run_folder_holds(run, shapes_root, capsys):
    summarize.main([str(run), "--images", "3"])
    printed = capsys.readouterr().out
    summary = json.loads((run / "summary.json").read_text())
    rows = {(row["round"], row["arm"]): row for row in summary["stages"]}
    assert list(rows) == [(0, "b"), (0, "l"), (0, "r"), (1, "l"), (1, "r"), (2, "l"), (2, "r")]
    for line in (run / "log.txt").read_text().splitlines():
        name, miou = line.split(": ")
        row = next(row for row in summary["stages"] if row["name"] == name)
        assert abs(100 * row["miou"] - float(miou)) < 1e-3
        assert f"{float(miou):.2f}" in printed
    made = {(row["round"], row["arm"]): row for row in summary["labellings"]}
    for arm in "lr":
        first, second = made[0, arm], made[1, arm]
        assert (first["ratio"], first["enhanced"], second["ratio"], second["enhanced"]) == (0.5, False, 0.8, True)
        assert first["right_before"] == first["right_after"] and (2, arm) not in made
        for number, labels in enumerate((first, second)):
            by_hand = counted_by_hand(run, shapes_root, f"{EXP}__p{number}--{arm}")
            assert by_hand == pytest.approx((labels["right_after"], labels["labeled_after"]), abs=1e-12)
    mean = (rows[2, "l"]["miou"] + rows[2, "r"]["miou"]) / 2
    assert summary["final"]["mean"] == pytest.approx(mean)
    assert summary["gain"] == pytest.approx(mean - rows[0, "b"]["miou"])
    assert summary["final"]["steps"]["l"] == sum(rows[number, "l"]["steps"] for number in range(3))


def test_label_before_enhancement_is_the_share_the_labelling_reported(run):
    read = read_run(run)
    labels = pixels.Labels(read.labels()[2][0], pixels.data_of(read)[0])
    labeled = size = changed = 0
    for name in labels.names:
        after, before = (labels.maps(name)[kind] for kind in ("label", "before"))
        labeled, size = labeled + (before != 255).sum(), size + before.size
        changed += (before != after).sum()
    assert labeled / size == labels.manifest["labeled_share"]["before"]
    assert changed / size == labels.manifest["labeled_share"]["changed"]


def test_panel_has_a_column_for_every_kind_and_its_prediction_is_the_networks(run, tmp_path):
    read = read_run(run)
    data, summary, shown = pixels.data_of(read)[0], summary_of(read), panel.labelling_to_show(read)
    assert (shown.round, shown.arm) == (1, "r")
    columns = panel.columns_of(read, data, shown, 3)
    assert [title.split("\n")[-1] for title in columns] == [
        "image", "truth", "before PLE", "after PLE", summary["final"]["best_stage"], f"{EXP}__p0--b"]
    assert {len(column) for column in columns.values()} == {3}
    assert all(picture.dtype == np.uint8 and picture.shape[2] == 3 for column in columns.values() for picture in column)
    labels = pixels.Labels(shown, data)
    names = evenly_spaced(labels.names, 3)
    label = np.array(Image.open(run / "pseudo" / shown.name / "labels" / f"{names[0]}.png").convert("RGB"))
    assert (list(columns.values())[3][0] == label).all()
    # A network's own labelling with ratio 1 would be its prediction; thresholds only remove pixels from it.
    for name, classes in zip(names, panel.predictions(run / f"{shown.name}.pt", data, columns["image"], (65, 65))):
        before = labels.maps(name)["before"]
        kept = before != 255
        assert kept.any() and (before[kept] == classes[kept]).mean() > 0.999  # stored logits are quantized
    panel.draw(read, data, 3, tmp_path / "panel.png")
    assert Image.open(tmp_path / "panel.png").width > 500


def test_without_truth_or_data_there_are_dashes(run, shapes_root, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("SHAPES_ROOT", raising=False)
    copy = shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("panel.png", "report"))
    config = copy / f"{EXP}__p0--b" / "config.json"
    config.write_text(config.read_text().replace(str(shapes_root), str(tmp_path / "gone")))
    summarize.main([str(copy)])
    captured = capsys.readouterr()
    assert "neither accuracy nor panel" in captured.err and not (copy / "panel.png").exists()
    row = next(line for line in captured.out.splitlines() if line.split()[:2] == ["1", "l"])
    assert row.split()[-2:] == ["-", "-"] and "-" not in row.split()[4:7]


def test_what_was_counted_outlives_the_labels(run, tmp_path, capsys):
    summarize.main([str(run), "--images", "0"])
    whole = capsys.readouterr().out
    copy = shutil.copytree(run, tmp_path / "tiny", ignore=shutil.ignore_patterns("panel.png"))
    for folder in (copy / "pseudo").iterdir():
        shutil.rmtree(folder / "labels")
        shutil.rmtree(folder / "logits")
    summarize.main([str(copy)])
    assert capsys.readouterr().out == whole.replace(str(run), str(copy)) and not (copy / "panel.png").exists()
    shutil.rmtree(copy / "report")
    summarize.main([str(copy)])
    row = next(line for line in capsys.readouterr().out.splitlines() if line.split()[:2] == ["1", "l"])
    assert row.split()[-2:] == ["-", "-"] and "-" not in row.split()[4:7]


def test_markdown_and_several_runs(run, tmp_path, capsys):
    other = shutil.copytree(run, tmp_path / "other")
    summarize.main([str(run), str(other), "--markdown", "--images", "0"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert lines[0].startswith("| round | arm | steps | mIoU |") and set(lines[1]) == set("|-:")
    assert len(lines) == 2 * 9 and lines[:9] == lines[9:]


@pytest.mark.parametrize("arguments, message", [
    (["nowhere"], "the run folder nowhere is missing"),
    (["."], "holds no finished stage"),
    ([".", ".", "--out", "x.png"], "several runs"),
])
def test_mistakes_end_in_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        summarize.main(arguments)
    errors = capsys.readouterr().err
    assert stop.value.code == 2 and message in errors and errors.count("\n") == 1
