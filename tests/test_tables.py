"""Tables over runs: means, deviations, published numbers, and the refusal to average what does not belong together."""

import copy
import csv
import io
import json
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from report.run import read_run
from report.summary import RECIPE_KEYS, outcome, summarize
from report.tables import published
from tools import tables

ROOT = Path(__file__).resolve().parents[1]
RECIPE = {"state": 1, "epochs": 4, "lr": 0.001, "gamma1": 5, "gamma2": 5, "backbone": "resnet101", "dataset": "voc"}


def stage(exp, number, arm, miou, split_id, iou=None, split="20", **changes):
    recipe = {**RECIPE, **({"state": 2, "first_weights": "abc", "epochs": 134} if number == 0 else {}), **changes}
    return {"name": f"{exp}__p{number}--{arm}", "round": number, "arm": arm, "miou": miou, "iou": iou, "step": 1,
            "steps": 10, "seconds": None, "checkpoint_sha256": f"{exp}{number}{arm}{split_id}{miou}", "split": split,
            "split_id": str(split_id), "seed": split_id, "recipe": recipe}


def labelling(row, **values):
    return {"name": row["name"], "round": row["round"], "arm": row["arm"], "ratio": 0.2, "enhanced": False,
            "images": 5, "pruned": False, "labeled_before": 0.2, "labeled_after": 0.3, "changed": 0.1,
            "right_before": None, "right_after": None, **values}


def run_file(folder, name, final, split_id, zero=(0.6, 0.5), baseline=None, labels=(), parent="runs", **changes):
    """A summary as --summary writes it, of one round of the arms c and i, and with the baseline b if it has a number."""
    stages = [stage(name, 0, arm, value, split_id) for arm, value in zip("ci", zero)]
    if baseline is not None:
        stages.append(stage(name, 0, "b", baseline, split_id))
    stages += [stage(name, 1, arm, value, split_id, **changes) for arm, value in zip("ci", final)]
    summary = {"format": 1, "run": name, "parent": parent, "dataset": "voc", "classes": ["x", "y"], "environment": {},
               "stages": stages, "labellings": list(labels), "agreement": {}, **outcome(stages)}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(summary))
    return str(path)


def printed(capsys, *words):
    capsys.readouterr()
    tables.main([str(word) for word in words])
    return capsys.readouterr().out


def row_of(text, method):
    line = next(line for line in text.splitlines() if f"| {method} |" in line)
    return [cell.strip() for cell in line.strip("|").split("|")]


def refused(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        tables.main([str(word) for word in words])
    errors = capsys.readouterr()
    assert stop.value.code == 2 and errors.out == "" and errors.err.count("\n") == 1, errors
    return errors.err


@pytest.fixture
def three(tmp_path):
    return [run_file(tmp_path, f"d{number}", final, number)
            for number, final in enumerate([(0.70, 0.68), (0.71, 0.69), (0.73, 0.72)])]


def test_mean_deviation_and_difference_by_hand(three, capsys):
    text = printed(capsys, *three)
    # runs: 69, 70, 72.5 -> mean 70.5, deviation sqrt((1.5² + 0.5² + 2²) / 2) = sqrt(3.25)
    assert row_of(text, "DMT") == ["voc", "20", "DMT", "70.50 ± 1.80",
                                   "c 71.33 ± 1.53, i 69.67 ± 2.08", "3", "0, 1, 2", "69.92", "+0.58"]
    assert row_of(text, "supervised")[3:5] == ["55.00 ± 0.00", "c 60.00 ± 0.00, i 50.00 ± 0.00"]
    assert row_of(text, "supervised")[-2:] == ["62.29", "-7.29"]
    assert "sample standard deviation (n - 1)" in text


def test_what_counts_for_a_run_can_be_chosen(three, capsys):
    best, of_c = (row_of(printed(capsys, *three, "--arm", arm), "DMT") for arm in ("best", "c"))
    assert best[3] == of_c[3] == "71.33 ± 1.53" and best[4] == "3"
    assert row_of(printed(capsys, *three, "--arm", "i"), "DMT")[3] == "69.67 ± 2.08"
    assert "no arm z" in refused(capsys, *three, "--arm", "z")


@pytest.mark.parametrize("key, value, usual", [("epochs", 5, "4"), ("lr", 0.002, "0.001"), ("no_aug", True, "none")])
def test_differing_recipes_are_refused_by_name(key, value, usual, three, tmp_path, capsys):
    other, words = run_file(tmp_path, "other", (0.7, 0.7), 3, **{key: value}), key.replace("_", " ")
    error = refused(capsys, *three, other)
    assert three[0] in error and other in error and f"in round 1 of arm c, {words} is" in error and str(value) in error
    text = printed(capsys, *three, other, "--by", key)
    assert row_of(text, f"DMT, {words} {usual}")[5] == "3" and row_of(text, f"DMT, {words} {value}")[5] == "1"


def test_another_method_is_a_row_of_its_own(three, tmp_path, capsys):
    other = run_file(tmp_path, "other", (0.7, 0.7), 3, on_student_win="flip")
    text = printed(capsys, *three, other)
    assert row_of(text, "flip")[3] == "70.00" and row_of(text, "DMT")[5] == "3"


def test_a_run_that_lacks_a_stage_is_refused(three, tmp_path, capsys):
    summary = json.loads(Path(three[0]).read_text())
    summary["stages"].append(stage("d0", 2, "c", 0.7, 0))
    summary["stages"].append(stage("d0", 2, "i", 0.7, 0))
    longer = tmp_path / "longer.json"
    longer.write_text(json.dumps(summary))
    assert "has no round 2 of arm c" in refused(capsys, longer, three[1])


def test_ple_stands_beside_dmt(tmp_path, three, capsys):
    ple = [run_file(tmp_path, f"p{number}", (0.72, 0.72), number, ple=True, beta=beta)
           for number, beta in enumerate((0.15, 0.15))]
    text = printed(capsys, *three, *ple)
    assert row_of(text, "DMT+PLE")[-2:] == ["69.92 (DMT)", "+2.08"] and "3.31" in text
    variants = [run_file(tmp_path, f"v{number}", (0.7, 0.7), 0, ple=True, beta=0.15, **values) for number, values in (
        enumerate(({"no_conflict_reduction": True}, {"previous_statistics": "batch"})))]
    text = printed(capsys, *ple, *variants)  # each has a row of its own
    assert [row_of(text, f"DMT+PLE{more}")[3] for more in ("", " without conflict reduction", " with batch statistics")
            ] == ["72.00 ± 0.00", "70.00", "70.00"]
    assert row_of(text, "DMT+PLE with batch statistics")[-2:] == ["69.92 (DMT)", "+0.08"]  # as the published one
    lower = run_file(tmp_path, "lower", (0.6, 0.6), 0, ple=True, beta=0.0)
    assert "beta is 0.15 in the first and 0.0 in the second" in refused(capsys, *ple, lower)
    text = printed(capsys, *ple, lower, "--by", "beta")
    assert [line.split(" | ")[2] for line in text.splitlines() if line.startswith("| voc")] == [
        "supervised", "DMT+PLE, beta 0", "DMT+PLE, beta 0.15"]


def test_published_numbers_are_those_of_the_readme():
    results = published()["results"]
    lines = (ROOT / "README.md").read_text().splitlines()
    for label, method in (("supervised baseline", "supervised"), ("DMT", "DMT")):
        values = [float(cell) for cell in next(line for line in lines if line.startswith(f"| {label} |")).split("|")[2:-1]]
        columns = [("voc", "106"), ("voc", "50"), ("voc", "20"), ("voc", "8"), ("voc", "1"), ("city", "30"),
                   ("city", "8"), ("city", "1")]
        assert [results[dataset][split][method] for dataset, split in columns] == values
    assert results["voc"]["train"] == {"supervised": 72.10, "DMT": 74.85}


def test_latex_and_csv_hold_the_same_numbers(three, tmp_path, capsys):
    latex = printed(capsys, *three, "--format", "latex")
    assert r"& DMT & $70.50 \pm 1.80$ &" in latex and r"$+0.58$ \\" in latex
    body = [line for line in latex.splitlines() if not line.startswith(("%", "\\")) and line]
    assert len({line.count("&") for line in body}) == 1 and all(line.endswith(r"\\") for line in body)
    odd = Path(run_file(tmp_path, "odd", (0.7, 0.7), 0))
    odd.write_text(json.dumps({**json.loads(odd.read_text()), "dataset": "a_b$&%#{}"}))
    assert r"a\_b\$\&\%\#\{\} & 20 & DMT & $70.00$ &" in printed(capsys, odd, "--format", "latex")  # one run
    rows = list(csv.DictReader(io.StringIO(printed(capsys, *three, "--format", "csv"))))
    dmt = next(row for row in rows if row["method"] == "DMT")
    assert float(dmt["miou_sd"]) == pytest.approx(3.25 ** 0.5, abs=1e-4) and dmt["runs"] == "3"
    assert (dmt["arms"], dmt["arm1_mean"], dmt["published"], dmt["difference"]) == ("c i", "71.3333", "69.9200", "0.5800")


def test_differences_within_pairs(tmp_path, three, capsys):
    ple = [run_file(tmp_path, f"p{number}", final, number, ple=True, beta=0.15)
           for number, final in enumerate([(0.72, 0.68), (0.75, 0.69), (0.75, 0.76)])]
    row = row_of(printed(capsys, *three, *ple, "--against", "DMT"), "DMT+PLE")  # 70, 72, 75.5 -> +1, +2, +3
    assert row[7] == "+2.00 ± 1.00"
    assert row_of(printed(capsys, *three, *ple[:2], "--against", "DMT"), "DMT+PLE")[7] == "+1.50 ± 0.71"
    assert "no such row; the rows are DMT, supervised" in refused(capsys, *three, "--against", "PLE")


def test_forgetting_and_what_the_report_counted(tmp_path, capsys):
    name = "m"
    zero = [stage(name, 0, arm, 0.5, 0, iou=[0.6, 0.4]) for arm in "ci"]
    rows = zero + [stage(name, 1, arm, 0.5, 0, iou=iou) for arm, iou in zip("ci", [[0.5, 0.4], [0.7, 0.2]])]
    labels = [labelling(row, right_after=right, forgotten=share)
              for row, right, share in zip(zero, (0.9, 0.8), (0.02, 0.04))]
    path = Path(run_file(tmp_path, name, (0.5, 0.5), 0))
    summary = {**json.loads(path.read_text()), "stages": rows, "labellings": labels, "agreement": {"1": 0.75}}
    path.write_text(json.dumps(summary))
    text = printed(capsys, path, "--measures", "miou", "forgetting", "forgotten", "accuracy", "coverage", "agreement")
    # arm c: (0.1 + 0) / 2, arm i: (-0.1 + 0.2) / 2; in points
    assert row_of(text, "DMT")[3:] == ["50.00", "5.00", "3.00", "85.00", "30.00", "75.00", "1", "0", "69.92", "-19.92"]


def test_classes_and_what_ple_did(tmp_path, capsys):
    iou = {"c": [0.5, None], "i": [0.7, 0.2]}
    rows = [stage("m", 0, arm, 0.5, 0, iou=[0.1, 0.1], ple=True) for arm in "ci"]
    rows += [stage("m", 1, arm, 0.5, 0, iou=iou[arm], ple=True) for arm in "ci"]
    shares = dict.fromkeys(("kept", "mended", "newly right", "error removed", "spoilt", "newly wrong", "dropped"), 0.01)
    labels = [labelling(row, enhanced=True, outcomes={**shares, "dropped": drop}) for row, drop in zip(rows, (0.1, 0.3))]
    path = Path(run_file(tmp_path, "m", (0.5, 0.5), 0))
    path.write_text(json.dumps({**json.loads(path.read_text()), "classes": ["x", "runs_#"], "stages": rows,
                                "labellings": labels}))
    text = printed(capsys, path, "--measures", "miou", "mended", "spoilt", "--classes")
    assert "| PLE mended | PLE spoilt | x | runs_# | runs |" in text
    assert row_of(text, "DMT+PLE")[3:9] == ["50.00", "3.00", "22.00", "60.00", "-", "1"]
    assert row_of(printed(capsys, path, "--classes", "--arm", "i"), "DMT+PLE")[3:6] == ["50.00", "70.00", "20.00"]
    assert r"runs\_\#" in printed(capsys, path, "--classes", "--format", "latex")
    assert "iou_x_mean,iou_x_sd" in printed(capsys, path, "--classes", "--format", "csv")


def test_the_figure_has_a_line_for_each_method_and_a_level_one(tmp_path, capsys):
    """Rounds of d0 and d1: 55 to 69 and 55 to 71; the baseline b of both is 62."""
    runs = [run_file(tmp_path, f"d{number}", (final, final), number, baseline=0.62)
            for number, final in enumerate((0.69, 0.71))]
    assert list(tables.tables.rows_of(tables.read_runs(runs)).rounds) == [
        {}, {}, {0: pytest.approx(55), 1: pytest.approx(69)}, {0: pytest.approx(55), 1: pytest.approx(71)}]
    path = tmp_path / "miou.svg"
    assert printed(capsys, *runs, "--figure", path) == f"{path}\n"
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())
    assert {"DMT", "supervised", "0", "1", "mIoU after each round, in percent"} <= set(texts)
    before = path.read_bytes()
    printed(capsys, *runs, "--figure", path)
    assert path.read_bytes() == before
    alone = Path(runs[0])
    summary = json.loads(alone.read_text())
    alone.write_text(json.dumps({**summary, "stages": [row for row in summary["stages"] if row["arm"] == "b"]}))
    assert "none of these runs has rounds" in refused(capsys, alone, "--figure", path)
    assert "ends in .svg" in refused(capsys, runs[1], "--figure", "x.png")


def test_the_same_training_counts_once(tmp_path, capsys, three):
    """The rows of an ablation share their baseline."""
    shared = [run_file(tmp_path, f"s{number}", (0.7, 0.7), 0, baseline=0.62) for number in range(2)]
    summaries = [json.loads(Path(path).read_text()) for path in shared]
    summaries[1]["stages"][2] = copy.deepcopy(summaries[0]["stages"][2])
    Path(shared[1]).write_text(json.dumps(summaries[1]))
    row = row_of(printed(capsys, *shared), "supervised")
    assert row[3:6] == ["62.00", "b 62.00", "1"]


def test_a_shared_baseline_is_one_row(tmp_path, capsys):
    """The whole-split arm of an ablation's baseline is also the round 0 of the rows with that arm: named once."""
    zero = [stage("x", 0, arm, value, 0, split=split) for arm, value, split in
            (("b", 0.6, "20"), ("c", 0.55, "20"), ("l", 0.5, "20-l"))]
    labels = [labelling(zero[1], right_after=0.97)]
    for name, stages in (("baseline", zero), ("cbst", [zero[1], stage("x", 1, "c", 0.58, 0, gamma1=0, gamma2=0)])):
        path = Path(run_file(tmp_path, name, (0.5, 0.5), 0))
        summary = {**json.loads(path.read_text()), "stages": stages, "labellings": labels, **outcome(stages)}
        path.write_text(json.dumps(summary))
    text = printed(capsys, tmp_path / "baseline.json", tmp_path / "cbst.json", "--measures", "miou", "accuracy")
    assert [line.split(" | ")[2] for line in text.splitlines() if line.startswith("| voc")] == [
        "supervised (b)", "supervised (c)", "CBST", "supervised (l)"]
    assert row_of(text, "supervised (c)")[3:5] == ["55.00", "-"] and row_of(text, "CBST")[3:5] == ["58.00", "97.00"]


def test_summaries_of_one_name_do_not_replace_each_other(tmp_path, capsys):
    """One call a seed, as much as one call for all: seed-0/dmt and seed-1/dmt are two files."""
    for seed in range(2):
        folder = tmp_path / f"seed-{seed}"
        folder.mkdir()
        run = run_file(folder, "dmt", (0.7, 0.7), seed, parent=folder.name)
        for _ in range(2):  # again: the same file
            printed(capsys, run, "--summary", tmp_path / "out")
    files = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in files] == ["dmt.json", "seed-1-dmt.json"]
    assert [json.loads(path.read_text())["parent"] for path in files] == ["seed-0", "seed-1"]


def test_keys_of_recipes_are_all_known(tiny_run):
    for row in summarize(read_run(tiny_run))["stages"]:
        assert set(row["recipe"]) <= set(RECIPE_KEYS)
        recorded = json.loads((tiny_run / row["name"] / "result.json").read_text())["fingerprint"]["options"]
        assert set(recorded) - {"sets_id", "seed"} <= set(RECIPE_KEYS)  # what a result depends on is compared


@pytest.mark.parametrize("words, message", [
    (["--by", "colour"], "--by colour: recipes have no such key; they have state, train_set"),
    (["--table", "rounds", "--format", "csv"], "in Markdown only")])
def test_choices_that_choose_nothing_are_refused(words, message, three, capsys):
    assert message in refused(capsys, *three, *words)


def test_a_run_whose_stages_do_not_belong_together_is_refused(tiny_run, tmp_path, capsys):
    run = shutil.copytree(tiny_run, tmp_path / "tiny", ignore=shutil.ignore_patterns("pseudo"))
    path = run / "tiny__p1--l" / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "checkpoint_sha256": "0" * 64}))
    assert "tiny__p2--l did not start from the present tiny__p1--l.pt" in refused(capsys, run)
    printed(capsys, run, "--summary", tmp_path / "out")
    assert "do not belong together" in refused(capsys, tmp_path / "out" / "tiny.json")


def test_a_real_run_and_its_summary_give_the_same_table(tiny_run, tmp_path, capsys):
    whole = printed(capsys, tiny_run)
    (path,) = printed(capsys, tiny_run, "--summary", tmp_path).split()
    assert printed(capsys, path) == whole
    assert len(Path(path).read_bytes()) < 20_000 and str(tiny_run) not in Path(path).read_text()
    summary = summarize(read_run(tiny_run))
    finals = [100 * row["miou"] for row in summary["stages"] if row["round"] == 2]
    row = row_of(whole, "DMT+PLE")
    assert row[0:2] == ["shapes", "8"] and row[3] == f"{statistics.mean(finals):.2f}" and row[5:] == ["1", "1"]
    rounds = printed(capsys, tiny_run, "--table", "rounds")
    assert len([line for line in rounds.splitlines() if re.match(r"\| [012] \| [blr] \|", line)]) == 7


def test_the_ensemble_of_both_arms_where_it_was_tested(tiny_run, shapes_root, tmp_path, command, capsys):
    run = tmp_path / "tiny"
    run.mkdir()
    for path in tiny_run.iterdir():
        (run / path.name).symlink_to(path)
    arms = [f"--continue-from={run}/tiny__p2--l.pt", f"--second-arm={run}/tiny__p2--r.pt"]
    status, _, errors = command("--state=3", *arms, "--dataset=shapes", f"--data-root={shapes_root}", "--test-size", 65,
                                65, f"--output-dir={run}", "--workers=0")
    assert status == 0, errors
    tested = json.loads(next(run.glob("*-test.json")).read_text())["results"]["A+B"]["miou"]
    text = printed(capsys, run)
    assert "| both together |" in text.splitlines()[0]
    assert row_of(text, "DMT+PLE")[4] == f"{100 * tested:.2f}" and row_of(text, "supervised")[4] == "-"
    assert "both together" not in printed(capsys, run, "--measures", "miou").splitlines()[0]


def test_other_seeds_and_places_are_no_other_recipe(tiny_run, tmp_path, capsys):
    """Every stage recorded with another split id, seed, list and weights of its own; then with other epochs."""
    from utils.files import write_json
    folder = tmp_path / "copy"
    for stage_ in tiny_run.glob("*/result.json"):
        result = json.loads(stage_.read_text())
        fingerprint = result["fingerprint"]
        fingerprint["options"].update(sets_id="2", seed=fingerprint["options"]["seed"] + 7)
        fingerprint["lists"]["labeled_names"] = "0" * 64
        result["miou"] += 0.01
        write_json(folder / stage_.parent.name / "result.json", result)
        (folder / stage_.parent.name / "config.json").write_bytes((stage_.parent / "config.json").read_bytes())
    row = row_of(printed(capsys, tiny_run, folder), "DMT+PLE")
    assert row[3].endswith("± 0.71") and row[5:] == ["2", "1, 2"]
    path = folder / "tiny__p1--l" / "result.json"
    result = json.loads(path.read_text())
    result["fingerprint"]["options"]["epochs"] = 9
    write_json(path, result)
    assert "in round 1 of arm l, epochs is 1 in the first and 9 in the second" in refused(capsys, tiny_run, folder)


def test_update_makes_what_is_between_the_marks(three, tmp_path, capsys):
    document = tmp_path / "docs" / "page.md"
    document.parent.mkdir()
    document.write_text("before\n\n<!-- tables: begin d*.json -->\nold\n<!-- tables: end -->\n\nafter\n")
    printed(capsys, "--update", document)
    text = document.read_text()
    assert "70.50 ± 1.80" in text and "old" not in text and text.startswith("before\n") and text.endswith("\nafter\n")
    printed(capsys, "--update", document)
    assert document.read_text() == text
    document.write_text("<!-- tables: begin d*.json -->\n")
    assert "after it" in refused(capsys, "--update", document)
    document.write_text("<!-- tables: begin nothing*.json -->\n<!-- tables: end -->")
    assert "no run matches" in refused(capsys, "--update", document)


@pytest.mark.parametrize("words, message", [
    ([], "which runs?"), (["nowhere"], "the run folder nowhere is missing"), (["--update", "no.md"], "cannot be read"),
    (["setup.json"], "no summary of a run"), (["words.txt"], "no summary of a run"),
    (["--measures", "speed", "x"], "invalid choice")])
def test_mistakes_end_in_one_line(words, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "setup.json").write_text("{}")
    (tmp_path / "words.txt").write_text("not JSON, and nothing to be deleted")
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *words)


@pytest.mark.parametrize("words", [["-m", "tools.tables"], [str(ROOT / "tools" / "tables.py")]])
def test_help_does_without_torch(words, tmp_path):
    done = subprocess.run([sys.executable, "-X", "importtime", *words, "--help"], capture_output=True, text=True,
                          cwd=ROOT if words[0] == "-m" else tmp_path, timeout=60)
    assert done.returncode == 0 and "--against" in done.stdout
    assert "torch" not in {line.split("|")[-1].strip() for line in done.stderr.splitlines()}


def test_a_chain_that_is_not_at_its_end_is_warned_of(tiny_run, tmp_path, capsys):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    tables.read_runs([run])
    assert capsys.readouterr().err == ""
    (run / "report").mkdir(exist_ok=True)
    (run / "report" / "plan.json").write_text('{"rounds": 5, "arms": ["l", "r"]}')
    tables.read_runs([run])
    assert capsys.readouterr().err == f"warning: {run} has finished 2 of 5 rounds\n"
