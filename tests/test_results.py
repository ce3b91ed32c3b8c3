"""docs/results.md: its tables are those that tools.tables makes of the summaries in the repository, and nothing else."""

import json
import re
from pathlib import Path

from tools import tables

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results.md"
MADE = re.compile(r"<!-- tables: begin .*? -->.*?<!-- tables: end -->", re.S)


def test_making_the_tables_again_changes_nothing():
    assert tables.update(PAGE) == PAGE.read_text(encoding="utf-8")


def test_no_table_is_typed():
    text = PAGE.read_text(encoding="utf-8")
    assert MADE.findall(text)
    assert not [line for line in MADE.sub("", text).splitlines() if line.startswith("|")]


def test_summaries_are_all_shown_and_name_no_folder_of_a_machine():
    text, files = PAGE.read_text(encoding="utf-8"), sorted((ROOT / "benchmarks" / "results" / "runs").rglob("*.json"))
    patterns = [word for mark in re.findall(r"tables: begin (.*?) -->", text) for word in mark.split() if "json" in word]
    shown = {path for pattern in patterns for path in ROOT.glob(pattern)}
    assert files and set(files) == shown
    for path in files:
        summary = json.loads(path.read_text(encoding="utf-8"))
        assert not re.search(r"/(home|tmp|root|work|mnt|Users)/", json.dumps(summary)), path


def test_the_figure_is_drawn_from_the_summaries(tmp_path):
    pattern, figure = re.search(r"tools\.tables (\S+) --figure (\S+)", PAGE.read_text(encoding="utf-8")).groups()
    tables.main([*map(str, sorted(ROOT.glob(pattern))), "--figure", str(tmp_path / "figure.svg")])
    assert (tmp_path / "figure.svg").read_bytes() == (ROOT / figure).read_bytes()


def test_the_readme_repeats_the_table():
    def cells(row):
        return [cell.strip() for cell in row.strip("|").split("|")]

    text = PAGE.read_text(encoding="utf-8")
    table = text[text.index("## Real photographs"):].split("tables: end")[0]
    made = {row[2].removesuffix(" (b)"): [row[3], row[7], row[8]]
            for row in map(cells, re.findall(r"^\| voc-animals \| 31 \| .*", table, re.M))}
    readme = re.search(r"\| VOC's animals .*?\n\n", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)[0]
    rows = [cells(row) for row in readme.splitlines()[2:] if row]
    assert [row[0] for row in rows] == ["supervised", "DMT", "DMT+PLE"]
    assert all(row[1:] == made[row[0]] for row in rows)
