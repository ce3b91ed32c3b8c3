"""The house keeps its shape: imports point one way, and asking for help is cheap."""

import ast
import inspect
import time
from pathlib import Path

import pytest

from dmt.enhancement import enhance
from dmt.loss import DynamicMutualLoss
from dmt.thresholds import ConfidenceHistogram
from models import deeplab_v2
from utils.metrics import ConfusionMatrix

REPOSITORY = Path(__file__).resolve().parents[1]
ROOMS = {"predict", "report", "prepare"}
OWN = {"main", "jobs", "tools", "dmt", "models", "data", "utils", "scripts", "benchmarks", "tests", *ROOMS}
BELOW = {"dmt", "models", "data", "utils"}
MAY_IMPORT = {  # package, or script of the root -> other packages of ours; beside itself
    "utils": set(), "models": {"utils"}, "data": {"utils"}, "dmt": BELOW - {"dmt"}, "predict": BELOW, "prepare": BELOW,
    "report": BELOW | {"predict"}, "tools": BELOW | ROOMS, "jobs": BELOW | ROOMS,
    **{path.stem: BELOW | ROOMS | {"jobs"} for path in REPOSITORY.glob("*.py")},
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_imports_point_one_way(package):
    files = [*(REPOSITORY / package).rglob("*.py"), *REPOSITORY.glob(f"{package}.py")]
    assert files or package in ROOMS
    for path in files:
        for name in imports(path):
            top = name.split(".")[0]
            if top in OWN and top != package and top not in MAY_IMPORT[package]:
                raise AssertionError(f"{path.relative_to(REPOSITORY)} imports {name}")


def test_nothing_below_main_sees_its_options():
    for package in ("dmt", "models", "data", "predict"):
        for path in (REPOSITORY / package).rglob("*.py"):
            assert "utils.options" not in set(imports(path)), path


def test_help_does_not_load_torch(script):
    start = time.monotonic()
    done = script("-X", "importtime", "main.py", "--help")
    assert done.returncode == 0 and "--continue-from" in done.stdout
    assert not {"torch", "timm"} & {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert time.monotonic() - start < 30  # a hang, not a measurement


def test_the_built_in_networks_do_not_load_timm(script):
    done = script("-c", "import sys; from models import deeplab_v2; deeplab_v2(2, 'small'); print('timm' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


def test_names_that_notebooks_and_others_import_stay():
    assert list(inspect.signature(deeplab_v2).parameters)[:3] == ["num_classes", "backbone", "aspp_branches"]
    assert list(inspect.signature(DynamicMutualLoss).parameters)[:3] == ["gamma1", "gamma2", "ignore_index"]
    assert list(inspect.signature(enhance).parameters) == [
        "current", "previous", "beta", "background", "conflict_reduction"]
    for kind, methods in ((ConfidenceHistogram, {"update", "merge", "thresholds"}),
                          (ConfusionMatrix, {"update", "merge", "compute"})):
        assert list(inspect.signature(kind).parameters)[0] == "num_classes" and methods <= set(dir(kind))
