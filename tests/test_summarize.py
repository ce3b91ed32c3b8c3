"""The table and the panel of a run, from a tiny chain made by the real command line."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from data.store import PseudoLabelStore
from tools import summarize
from tools.run_folder import RunData, find_stages
from tools.run_summary import summarize as summary_of

EXP = "tiny"


@pytest.fixture
def run(tiny_run):
    """Two rounds of the arms l and r and a baseline b. Do not change it."""
    return tiny_run


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
    summarize.main([str(run), "--images", "3", "--sample", "0"])
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
    store = PseudoLabelStore(run / "pseudo" / f"{EXP}__p1--l")
    manifest = store.read_manifest()
    labeled = pixels = changed = 0
    for path in (store.folder / "labels").glob("*.png"):
        after = np.array(Image.open(path))
        before = summarize.before_enhancement(store, manifest, path.stem)
        labeled, pixels = labeled + (before != 255).sum(), pixels + before.size
        changed += (before != after).sum()
    assert labeled / pixels == manifest["labeled_share"]["before"]
    assert changed / pixels == manifest["labeled_share"]["changed"]


def test_panel_has_a_column_for_every_kind_and_its_prediction_is_the_networks(run, shapes_root, tmp_path):
    data = RunData(find_stages(run)[0])
    summary = summary_of(run)
    stage = summarize.panel_labelling(summary)
    assert (stage["round"], stage["arm"]) == (1, "r")
    titles, columns = summarize.panel_columns(run, data, summary, stage, 3)
    assert [title.split("\n")[-1] for title in titles] == [
        "image", "truth", "before PLE", "after PLE", summary["final"]["best_stage"], f"{EXP}__p0--b"]
    assert {len(column) for column in columns} == {3}
    assert all(picture.dtype == np.uint8 and picture.shape[2] == 3 for column in columns for picture in column)
    names = summarize.evenly_spaced(summarize.names_of(summarize.store_of(run, stage), data), 3)
    label = np.array(Image.open(run / "pseudo" / stage["name"] / "labels" / f"{names[0]}.png").convert("RGB"))
    assert (columns[3][0] == label).all()
    # A network's own labelling with ratio 1 would be its prediction; thresholds only remove pixels from it.
    teacher = summarize.predictions(run / f"{stage['name']}.pt", data, names, (65, 65))
    store = PseudoLabelStore(run / "pseudo" / stage["name"])
    for name, classes in zip(names, teacher):
        before = summarize.before_enhancement(store, store.read_manifest(), name)
        kept = before != 255
        assert kept.any() and (before[kept] == classes[kept]).mean() > 0.999  # stored logits are quantized
    summarize.write_panel(tmp_path / "panel.png", titles, columns, data.spec)
    assert Image.open(tmp_path / "panel.png").width > 500


def test_without_truth_or_data_there_are_dashes(run, shapes_root, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("SHAPES_ROOT", raising=False)
    copy = shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("panel.png"))
    config = copy / f"{EXP}__p0--b" / "config.json"
    config.write_text(config.read_text().replace(str(shapes_root), str(tmp_path / "gone")))
    summarize.main([str(copy)])
    captured = capsys.readouterr()
    assert "neither accuracy nor panel" in captured.err and not (copy / "panel.png").exists()
    row = next(line for line in captured.out.splitlines() if line.split()[:2] == ["1", "l"])
    assert row.split()[-2:] == ["-", "-"] and "-" not in row.split()[4:7]
    data = RunData(find_stages(run)[0])
    unseen = replace(data.spec, labels="nowhere/{name}.png")
    data.spec = unseen
    store = PseudoLabelStore(run / "pseudo" / f"{EXP}__p0--l")
    assert summarize.accuracy(store, data, summarize.names_of(store, data)[:2]) == {"before": None, "after": None}


def test_labels_removed_after_their_round_leave_their_share(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("panel.png"))
    for folder in (copy / "pseudo").iterdir():
        shutil.rmtree(folder / "labels")
        (folder / "pruned").touch()
    summarize.main([str(copy)])
    row = next(line for line in capsys.readouterr().out.splitlines() if line.split()[:2] == ["1", "l"])
    assert row.split()[-2:] == ["-", "-"] and "-" not in row.split()[4:7]
    assert not (copy / "panel.png").exists()


def test_markdown_and_several_runs(run, tmp_path, capsys):
    other = shutil.copytree(run, tmp_path / "other")
    summarize.main([str(run), str(other), "--markdown", "--images", "0", "--sample", "2"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert lines[0].startswith("| round | arm | steps | mIoU |") and lines[1] == "|" + "---|" * 9
    assert lines[-1].startswith("| mean | ") and lines[-1].split(" | ")[1:] == lines[-2].split(" | ")[1:]


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


def test_names_at_even_distances():
    assert summarize.evenly_spaced("abcdefghi", 3) == ["b", "e", "h"]
    assert summarize.evenly_spaced("abc", 5) == summarize.evenly_spaced("abc", 0) == ["a", "b", "c"]
