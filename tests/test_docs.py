"""The pages: what they link to is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^()\s]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_files_are_there(page):
    links = {link.partition("#")[0] for link in LINK.findall(page.read_text(encoding="utf-8"))}
    missing = [link for link in links if link and "://" not in link and not (page.parent / link).exists()]
    assert not missing
