"""The pages: what they link to and what they name is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("dmt", "models", "data", "utils", "predict", "report", "prepare", "tools", "scripts", "benchmarks", "tests")
FILE = re.compile(rf"\b(?:{'|'.join(FOLDERS)})/[\w./-]*\.(?:py|sh|yaml)\b")
OPTION = re.compile(r"(?<![\w-])--[A-Za-z][\w-]*")
OTHERS = set("--standalone --nproc-per-node --nnodes --rdzv-backend --rdzv-endpoint --rdzv-id --host --kill-on-bad-exit "
             "--job-name --nodes --ntasks-per-node --gpus-per-node --cpus-per-task --time --signal --logdir "
             "--mixed-precision--epochs".split())  # torchrun's, Slurm's, TensorBoard's, and a fault of the released code


def source(*folders):
    files = [path for folder in folders for suffix in ("py", "sh") for path in (ROOT / folder).rglob(f"*.{suffix}")]
    return "\n".join(path.read_text(encoding="utf-8") for path in [*files, *ROOT.glob("*.py")])


CODE, TESTS = source(*FOLDERS[:-1]), source("tests")


def test_pages_that_the_code_names_are_there():
    assert not [name for name in re.findall(r"docs/\w+\.md", CODE) if not (ROOT / name).is_file()]


def anchors(page):
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^()\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, place = link.partition("#")
        target = page.parent / path if path else page
        assert "://" in link or target.exists() and (not place or place in anchors(target)), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_options_and_tests_that_a_page_names_are_there(page):
    text = page.read_text(encoding="utf-8")
    modules = [f"{name.replace('.', '/')}.py" for name in re.findall(r"-m ((?:tools|benchmarks|data|models)\.\w+)", text)]
    missing = [name for name in [*FILE.findall(text), *modules] if not (ROOT / name).is_file()]
    missing += [name for name in set(OPTION.findall(text)) - OTHERS
                if f'"{name}"' not in CODE and f'"{name.replace("--no-", "--")}"' not in CODE and f"{name})" not in CODE]
    missing += [name for name in set(re.findall(r"`(test_\w+)`", text)) - {"test_size", "test_by"}
                if f"def {name}(" not in TESTS]
    assert not missing
