"""Reading a run folder: what every stage and labelling left, finished or not. Imports neither torch nor OpenCV."""

import os
import re
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from data.lists import unlabeled_names
from data.specs import UNLABELED, load_spec, resolve_root
from utils import json_lines
from utils.errors import UserError
from utils.files import read_json, sha256
from utils.options import parse_options

_NAME = re.compile(r"(?P<exp>.+)__p(?P<round>\d{1,6})--(?P<arm>[^/]+)")
_SILENCE = 600  # seconds after which a stage on another machine that wrote nothing counts as stopped


@dataclass
class Stage:
    """A training stage NAME of a run: what its folder holds. ``result`` is None until it has finished.

    ``exp``, ``round`` and ``arm`` are the parts of its name, or None where it has another form (the SBD oracle).
    """

    name: str
    folder: Path
    exp: str | None = None
    round: int | None = None
    arm: str | None = None
    result: dict | None = None
    config: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)
    metrics: list = field(default_factory=list)

    @property
    def checkpoint(self):
        """Path of the checkpoint ``NAME.pt``."""
        return self.folder.parent / f"{self.name}.pt"

    @property
    def fingerprint(self):
        """Everything that the result depends on, as nested plain values; {} where nothing is recorded."""
        return (self.result or {}).get("fingerprint") or self.config.get("fingerprint") or {}

    @property
    def options(self):
        """The options that the result depends on."""
        return self.fingerprint.get("options") or {key: value for key, value in self.config.items()
                                                   if key != "fingerprint"}

    def lines(self, kind):
        """The lines of metrics.jsonl of one kind."""
        return [line for line in self.metrics if line.get("kind") == kind]

    @property
    def miou(self):
        """The stage's result, or its best validation so far: a fraction, or None before the first."""
        best = self._best()
        return self.result["miou"] if self.result else best and best.get("miou")

    @property
    def iou(self):
        """IoU of each class at the result, fractions or None; None where it is not recorded."""
        return (self._best() or {}).get("iou")

    def _best(self):
        validations = [line for line in self.lines("validation") if isinstance(line.get("miou"), (int, float))]
        if self.result:
            return next((line for line in validations if line["step"] == self.result.get("step")), None)
        return max(validations, key=lambda line: line["miou"], default=None)

    @property
    def steps(self):
        """Steps done, or None when nothing was logged yet."""
        return max((line["step"] for line in self.metrics), default=None)

    @property
    def total_steps(self):
        """Steps of the whole training, or None where it is not recorded."""
        return next((line.get("total_steps") for line in reversed(self.lines("start"))), None)

    @property
    def seconds(self):
        """Time in the training loop, validations included, over all starts; None where it is not recorded.

        What a killed start did after its last saved state is not counted, since it is done again.
        """
        total, start, last = 0.0, None, None
        for line in self.metrics:
            if line.get("kind") == "start":
                total += last - start if start is not None else 0
                start = line["time"]
            last = line["time"]
        return None if start is None else total + last - start

    @property
    def running(self):
        """Whether a process works on the stage now."""
        return self.result is None and _in_use(self.folder)


@dataclass
class Labelling:
    """Pseudo labels made by the checkpoint NAME. ``manifest`` is None until they are whole."""

    name: str
    folder: Path
    exp: str
    round: int
    arm: str
    manifest: dict | None
    timing: dict

    @property
    def pruned(self):
        """Whether the labels were removed after they had served."""
        return (self.folder / "pruned").exists()

    @property
    def digest(self):
        """SHA-256 of the manifest file: tells labellings apart."""
        return sha256(self.folder / "manifest.json")

    @property
    def running(self):
        """Whether a process works on it now."""
        return self.manifest is None and _in_use(self.folder)

    def done(self):
        """How many images have been predicted and how many labelled so far."""
        return tuple(sum(1 for path in (self.folder / kind).rglob("*") if path.suffix and path.name[0] != ".")
                     for kind in ("logits", "labels"))


def find_stages(run, unfinished=False, needed=True):
    """The stages of the run folder by round and arm, those with other names last; only finished ones unless asked.

    Raises ``UserError`` when there are none (unless they are not ``needed``), and for files that are damaged.
    """
    run = Path(run)
    if not run.is_dir():
        raise UserError(f"the run folder {run} is missing; give the output folder of a launcher, such as runs/NAME")
    found = []
    for folder in sorted(run.iterdir()):
        if (folder / "result.json").is_file() or unfinished and (folder / "config.json").is_file():
            found.append(_read_stage(folder))
    if not found and needed:
        what = "stage" if unfinished else "finished stage"
        raise UserError(f"{run} holds no {what}; give the output folder of a launcher, such as runs/NAME")
    return sorted(found, key=lambda stage: (stage.round is None, stage.round or 0, stage.name))


def find_labellings(run):
    """The ``Labelling`` of every folder in ``pseudo/`` that has begun, by round and arm."""
    found = []
    for folder in sorted(Path(run).glob("pseudo/*")):
        parts = _parts(folder.name)
        if parts["round"] is None or not (folder / "predictions.json").is_file():
            continue
        manifest = folder / "manifest.json"
        found.append(Labelling(folder.name, folder, **parts,
                               manifest=_dict_in(manifest) if manifest.is_file() else None,
                               timing=_dict_in(folder / "timing.json")))
    return sorted(found, key=lambda labelling: (labelling.round, labelling.name))


class RunData:
    """The dataset of a run, as far as it is there: its spec, and its root or None.

    Dataset, root and folder of lists are those of ``stage`` unless they are given. ``note`` says what is missing.
    """

    def __init__(self, stage, dataset=None, data_root=None):
        started_in = Path(stage.environment.get("directory") or ".")

        def path(value):  # relative ones are meant from where the stage was started
            value = Path(value).expanduser()
            return str(value if value.exists() or value.is_absolute() else started_in / value)

        options = {**vars(parse_options([])), **stage.config}
        name = options["dataset"]
        self.spec = load_spec(dataset or (path(name) if "." in name or "/" in name else name))
        self.note, self.root, self._lists = None, None, options["lists_dir"] and path(options["lists_dir"])
        try:
            self.root = resolve_root(self.spec, data_root or (options["data_root"] and path(options["data_root"])))
        except UserError as error:
            if data_root:
                raise
            self.note = str(error)

    def unlabeled(self, split, split_id):
        """Names of the unlabelled images of a split."""
        listed = replace(self.spec, lists=str(Path(self._lists).absolute())) if self._lists else self.spec
        return unlabeled_names(listed, self.root, split, split_id)

    def has_masks(self, labelling):
        """Whether any of a few images of the labelling has a mask."""
        names = self.unlabeled(labelling.manifest["split"], labelling.manifest["split_id"])
        return any(self._mask(name) is not None for name in names[:: max(1, len(names) // 20)])

    def truth(self, name, test_size):
        """The mask (H, W) uint8 of an unlabelled image in the geometry of its pseudo label, or None without one."""
        from data import images, transforms

        path = self._mask(name)
        if path is None:
            return None
        mask = images.read_mask(path, self.spec)
        return transforms.resize_nearest(mask, test_size) if self.spec.test_by == "resize" else mask

    def picture(self, name, test_size):
        """An unlabelled image (H, W, 3) uint8 RGB, in the geometry of its pseudo label."""
        from data import images, transforms

        image = images.read_image(self.spec.image_path(self.root, name, UNLABELED))[..., ::-1]
        return transforms.resize_image(image, test_size) if self.spec.test_by == "resize" else image

    def _mask(self, name):
        path = self.spec.label_path(self.root, name, UNLABELED)
        return path if path is not None and path.is_file() else None


def class_names(stages):
    """Names and colours (RGB) of the classes of a run: two lists, from what its first stage recorded."""
    for stage in stages:
        spec = stage.fingerprint.get("dataset") or {}
        if spec.get("class_names"):
            return list(spec["class_names"]), [tuple(color) for color in spec.get("palette", ())]
    spec = RunData(stages[0]).spec
    return list(spec.class_names), list(spec.palette)


def locked_by(path):
    """The process number in the lock file ``path`` if that process is alive on this machine, else None."""
    owner = _owner(path)
    return owner[0] if owner and owner[1] == os.uname().nodename and _alive(owner[0]) else None


def _in_use(folder):
    owner = _owner(folder / ".lock")
    if owner is None:
        return False
    if owner[1] == os.uname().nodename:
        return _alive(owner[0])
    newest = max((path.stat().st_mtime for path in folder.iterdir()), default=0)
    return time.time() - newest < _SILENCE


def _owner(path):
    try:
        found = re.match(r"process (\d+) on (\S+)", path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return (int(found[1]), found[2]) if found else None


def _alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _read_stage(folder):
    result = folder / "result.json"
    stage = Stage(folder.name, folder, **_parts(folder.name), config=_dict_in(folder / "config.json"),
                  environment=_dict_in(folder / "environment.json"),
                  metrics=[line for _, _, line in json_lines.read(folder / "metrics.jsonl") if line is not None])
    if result.is_file():
        stage.result = _dict_in(result)
        if not isinstance(stage.result.get("miou"), (int, float)):
            raise UserError(f"{result} holds no mIoU; train that stage again")
    return stage


def _dict_in(path):
    """The JSON object in the file, {} without a file."""
    value = read_json(path) if path.is_file() else {}
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object; it is damaged: delete it and run its stage again")
    return value


def _parts(name):
    match = _NAME.fullmatch(name)
    return {"exp": match and match["exp"], "round": match and int(match["round"]), "arm": match and match["arm"]}
