"""What a dataset is: one small declarative spec, built in (VOC, Cityscapes, ...) or a user's own YAML file."""

import os
import reprlib
from dataclasses import dataclass
from pathlib import Path

import yaml

from utils.errors import UserError

BUILT_IN = Path(__file__).parent
_REQUIRED = ("name", "classes", "images", "labels", "crop", "test_size")
_OPTIONAL = {
    "background": None, "ignore": 255, "lists": "ImageSets/Segmentation", "train_list": ["trainaug.txt"],
    "val_list": ["val.txt"], "test_by": "pad", "root": None, "root_variable": None,
    "divisors": {2: 2, 4: 4, 8: 8, 20: 20}, "dms_splits": [8, 20],
}


@dataclass(frozen=True)
class DatasetSpec:
    """One dataset. Sizes are (height, width) in pixels; colours are RGB, 0 to 255.

    ``background`` is the class that PLE treats as background, or ``None`` when there is none.
    ``label_ids[v]`` is the class of the mask value v (``ignore`` where a value belongs to no class),
    or ``None`` when mask values are classes already.
    ``test_by`` is "pad" (zero-pad bottom and right to ``test_size``) or "resize" (images and masks are resized
    to ``test_size`` before anything else, in training too).
    ``images`` and ``labels`` are patterns relative to the root with {name} and, where the dataset has one folder
    per subset, {subset} (train, val or test).
    """

    name: str
    class_names: tuple
    palette: tuple
    background: int | None
    ignore: int
    label_ids: tuple | None
    images: str
    labels: str
    lists: str
    train_lists: tuple
    val_lists: tuple
    crop: tuple
    test_size: tuple
    test_by: str
    root: str | None
    root_variable: str | None
    divisors: tuple  # pairs (name of the split, divisor)
    dms_splits: tuple

    @property
    def num_classes(self):
        """Number of classes, the background included, the ignore value not."""
        return len(self.class_names)

    def image_path(self, root, name, subset="train"):
        """Path of the image ``name``; ``subset`` is train, val or test."""
        return Path(root, self.images.format(name=name, subset=subset))

    def label_path(self, root, name, subset="train"):
        """Path of the mask of ``name``."""
        return Path(root, self.labels.format(name=name, subset=subset))

    def list_path(self, root, file_name):
        """Path of a name list."""
        return Path(root) / self.lists / file_name


def load_spec(name_or_file):
    """The built-in spec of that name (voc, city, camvid, shapes) or the one in the given YAML file.

    Raises ``UserError`` naming the file, the key and the fix.
    """
    text = str(name_or_file)
    built_in = BUILT_IN / f"{text}.yaml"
    path = built_in if text.isidentifier() and built_in.is_file() else Path(text)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in BUILT_IN.glob("*.yaml")))
        raise UserError(f"--dataset {text}: no such dataset; use one of {known}, or the path of a YAML spec")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    return _spec_from(values, path)


def resolve_root(spec, data_root=None):
    """The dataset's root folder: ``data_root``, else the spec's environment variable, else the spec's own root."""
    variable = spec.root_variable
    root = data_root or (os.environ.get(variable) if variable else None) or spec.root
    if not root:
        also = f" or set {variable}" if variable else ""
        raise UserError(f"where is the dataset {spec.name}? Give its root folder with --data-root{also}")
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"the dataset root {root} is not a folder; correct --data-root"
                        + (f" or {variable}" if variable else ""))
    return root


def _spec_from(values, path):
    if not isinstance(values, dict):
        raise UserError(f"{path}: a dataset spec is a mapping of keys to values; see data/specs/voc.yaml")
    unknown = [str(key) for key in values if key not in _REQUIRED and key not in _OPTIONAL]
    if unknown:
        raise UserError(f"{path}: unknown key {unknown[0]!r}; known keys are {', '.join((*_REQUIRED, *_OPTIONAL))}")
    missing = [key for key in _REQUIRED if key not in values]
    if missing:
        raise UserError(f"{path}: the key {missing[0]!r} is missing; see data/specs/voc.yaml for an example")
    values = {**_OPTIONAL, **values}
    ignore = _integer(values["ignore"], path, "ignore", 0, 255)
    names, palette, label_ids = _classes(values["classes"], ignore, path)
    background = values["background"]
    if background in ("none", "None"):
        background = None
    if background is not None:
        background = _integer(background, path, "background", 0, len(names) - 1)
    if values["test_by"] not in ("pad", "resize"):
        raise UserError(f"{path}: test_by is {_shown(values['test_by'])}; use 'pad' or 'resize'")
    for key in ("images", "labels", "lists"):
        _pattern(values[key], path, key)
    root = values["root"]
    if root is not None:  # a relative root is meant from the spec's own folder
        root = str((path.parent / Path(_text(root, path, "root")).expanduser()).absolute())
    return DatasetSpec(
        name=_text(values["name"], path, "name"), class_names=names, palette=palette, background=background,
        ignore=ignore, label_ids=label_ids, images=values["images"], labels=values["labels"], lists=values["lists"],
        train_lists=_file_names(values["train_list"], path, "train_list"),
        val_lists=_file_names(values["val_list"], path, "val_list"),
        crop=_size(values["crop"], path, "crop"), test_size=_size(values["test_size"], path, "test_size"),
        test_by=values["test_by"], root=root,
        root_variable=None if values["root_variable"] is None else _text(values["root_variable"], path, "root_variable"),
        divisors=_divisors(values["divisors"], path),
        dms_splits=tuple(str(split) for split in _list(values["dms_splits"], path, "dms_splits")))


def _classes(entries, ignore, path):
    """Names, palette and the map from mask values to classes."""
    entries = _list(entries, path, "classes")
    if not 2 <= len(entries) <= 255:
        raise UserError(f"{path}: classes lists {len(entries)} classes; 2 to 255 are possible")
    names, palette, ids = [], [], {}
    for index, entry in enumerate(entries):
        where = f"classes[{index}]"
        if not isinstance(entry, dict) or set(entry) - {"name", "color", "ids"} or not {"name", "color"} <= set(entry):
            raise UserError(f"{path}: {where} must look like {{name: car, color: [0, 0, 142]}} "
                            "with, if mask values are not class numbers, ids: [26]")
        names.append(_text(entry["name"], path, f"{where}.name"))
        color = _list(entry["color"], path, f"{where}.color")
        if len(color) != 3:
            raise UserError(f"{path}: {where}.color must be three numbers from 0 to 255 (red, green, blue)")
        palette.append(tuple(_integer(channel, path, f"{where}.color", 0, 255) for channel in color))
        for value in _list(entry.get("ids", []), path, f"{where}.ids"):
            value = _integer(value, path, f"{where}.ids", 0, 255)
            if value in ids:
                raise UserError(f"{path}: the mask value {value} belongs to two classes; keep it in one 'ids' list")
            ids[value] = index
    if ignore < len(names):
        raise UserError(f"{path}: ignore is {ignore}, which is also the number of a class; use 255")
    if len(set(names)) < len(names):
        raise UserError(f"{path}: two classes have the same name; rename one")
    if not ids:
        return tuple(names), tuple(palette), None
    if len(set(ids.values())) < len(names):
        lacking = next(name for index, name in enumerate(names) if index not in ids.values())
        raise UserError(f"{path}: the class {lacking!r} has no 'ids' while others do; give every class its mask values")
    return tuple(names), tuple(palette), tuple(ids.get(value, ignore) for value in range(256))


def _divisors(value, path):
    if not isinstance(value, dict):
        raise UserError(f"{path}: divisors must map names of splits to divisors, as in {{8: 8, 106: 105.82}}")
    for split, divisor in value.items():
        if isinstance(divisor, bool) or not isinstance(divisor, (int, float)) or not 1 < divisor < float("inf"):
            raise UserError(f"{path}: the divisor of split {split} is {_shown(divisor)}; it must be a number above 1")
    return tuple((str(split), divisor) for split, divisor in value.items())


def _pattern(value, path, key):
    text = _text(value, path, key)
    if Path(text).is_absolute() or ".." in Path(text).parts:
        raise UserError(f"{path}: {key} is {text!r}; it must stay inside the dataset root")
    if key != "lists":
        try:
            named = text.format(name="\0", subset="train")
        except (KeyError, IndexError, ValueError, AttributeError):
            named = ""
        if "\0" not in named:
            raise UserError(f"{path}: {key} is {text!r}; it needs {{name}}, as in 'JPEGImages/{{name}}.jpg'")


def _file_names(value, path, key):
    names = tuple(_text(name, path, key) for name in (value if isinstance(value, list) else [value]))
    if not names or any(Path(name).name != name for name in names):
        raise UserError(f"{path}: {key} must be file names in the folder 'lists', as in [trainaug.txt]")
    return names


def _size(value, path, key):
    value = _list(value, path, key)
    if len(value) != 2:
        raise UserError(f"{path}: {key} must be [height, width]")
    return tuple(_integer(side, path, key, 1, 1 << 16) for side in value)


def _list(value, path, key):
    if not isinstance(value, list):
        raise UserError(f"{path}: {key} must be a list, not {_shown(value)}")
    return value


def _text(value, path, key):
    if isinstance(value, bool) or not isinstance(value, (str, int)) or str(value) == "":
        raise UserError(f"{path}: {key} must be a text, not {_shown(value)}")
    return str(value)


_shown = reprlib.repr  # a few lines of YAML can stand for a text without end


def _integer(value, path, key, low, high):
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UserError(f"{path}: {key} is {_shown(value)}; it must be a whole number from {low} to {high}")
    return value
