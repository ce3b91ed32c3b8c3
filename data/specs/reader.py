"""The reader of dataset specs: every value of the YAML file is checked, and an error names its line and the mend."""

import difflib
import os
from functools import partial
from pathlib import Path
from reprlib import repr as shown  # a few lines of YAML can stand for a text without end
from typing import Callable, NamedTuple

import yaml

from data import patterns
from utils.errors import UserError

_NONE = (None, "none", "None")


def read(path):
    """The checked values of the spec in the YAML file ``path``, a dict with the fields of ``DatasetSpec``.

    Raises ``UserError`` naming the file, the line, the key and the fix.
    """
    document = _parse(path)
    try:
        return _fields(document, Path(path).parent)
    except _Wrong as wrong:
        line, value = getattr(document, "line", 1), document
        for key in wrong.where:  # as far as there are lines: a key may be missing
            if key not in getattr(value, "lines", ()):
                break
            line, value = value.lines[key], value[key]
        raise UserError(f"{path}, line {line}: {wrong}") from wrong


# --- YAML that knows its lines ----------------------------------------------------------------------------------------


class _Map(dict):
    """A mapping with the ``line`` it begins in and the ``lines`` of its values, by key."""


class _List(list):
    """A list with the ``line`` it begins in and the ``lines`` of its items, by index."""


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which gives ``_Map`` and ``_List`` and refuses a key that stands twice."""

    def compose_mapping_node(self, anchor):
        """Of two equal keys YAML would take the last, silently."""
        node, lines = super().compose_mapping_node(anchor), {}
        for key, _ in node.value:
            line = lines.setdefault(str(key.value), key.start_mark.line)
            if line != key.start_mark.line:
                raise yaml.MarkedYAMLError(problem=f"the key {shown(str(key.value))} already stands in line {line + 1}",
                                           problem_mark=key.start_mark, note="delete one of the two")
        return node

    def list_with_lines(self, node):
        """The ``_List`` of a node."""
        values = _List(self.construct_sequence(node, deep=True))
        values.line = node.start_mark.line + 1
        values.lines = {index: item.start_mark.line + 1 for index, item in enumerate(node.value)}
        return values

    def map_with_lines(self, node):
        """The ``_Map`` of a node."""
        values = _Map(self.construct_mapping(node, deep=True))
        values.line = node.start_mark.line + 1
        values.lines = {self.construct_object(key): value.start_mark.line + 1 for key, value in node.value}
        return values


_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.map_with_lines)
_Loader.add_constructor("tag:yaml.org,2002:seq", _Loader.list_with_lines)


def _parse(path):
    """What the YAML file ``path`` holds. Raises ``UserError`` naming the line."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(filter(None, (error.context, error.problem)))
        mend = error.note or (
            "indent with blanks, not with tabs" if "'\\t'" in what else
            "look at this line and the one before it: brackets, a blank after each colon, quotes (a text that begins "
            "with { or stands in brackets needs them, as in '{name}.jpg')")
        raise UserError(f"{path}, line {mark.line + 1 if mark else 1}: not valid YAML: {what}; {mend}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{path}, line {line}: not valid YAML: a control character; delete it") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: the file is not UTF-8 text; save it as UTF-8") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}, line 1: not valid YAML: {error!s:.200}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


# --- what a value must be ---------------------------------------------------------------------------------------------


class _Wrong(ValueError):
    """What is wrong with the value at ``where``, a tuple of keys and indices, () for the whole file."""

    def __init__(self, where, what):
        super().__init__(what)
        self.where = where


def _is_text(value):
    return isinstance(value, (str, int)) and not isinstance(value, bool) and bool(str(value).strip()) and (
        str(value).isprintable())


def _is_whole(value, low=0, high=65535):
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_list(value, valid, low=1, high=1 << 16):
    return isinstance(value, list) and low <= len(value) <= high and all(map(valid, value))


def _is_color(value):
    return _is_list(value, partial(_is_whole, high=255), 3, 3)


def _is_size(value):
    return _is_list(value, partial(_is_whole, low=1, high=1 << 16), 2, 2)


def _is_file_name(value):
    return _is_text(value) and Path(value).name == value


def _are_divisors(value):
    return isinstance(value, dict) and all(
        isinstance(divisor, (int, float)) and 1 < divisor < float("inf") for divisor in value.values())


class _Key(NamedTuple):
    valid: Callable
    must: str  # what it must be, in words
    usual: object = None  # where it is not given; required keys have none


_TEXT = (_is_text, "a text of one line (yes, no, on and off stand for others: put them in quotes)")
_PATTERN = (lambda value: _is_text(value) or _is_list(value, _is_text), "a pattern, or a list of them, as in 'images/{name}.*'")
_FILES = (lambda value: _is_file_name(value) or _is_list(value, _is_file_name),
          "the name of a file in the folder 'lists', or a list of them, as in [trainaug.txt]")
REQUIRED = {
    "name": _Key(*_TEXT),
    "classes": _Key(partial(_is_list, valid=lambda entry: True, low=2, high=255), "a list of 2 to 255 classes, as in "
                    "[{name: soil, color: [0, 0, 0]}, {name: weed, color: [200, 0, 0]}]"),
    "images": _Key(*_PATTERN), "labels": _Key(*_PATTERN),
    "crop": _Key(_is_size, "[height, width] in pixels, as in [321, 321]"),
    "test_size": _Key(lambda value: value == "largest" or _is_size(value),
                      "[height, width] in pixels, as in [321, 321], or 'largest'")}
OPTIONAL = {
    "background": _Key(lambda value: True, ""),  # its rule needs the classes
    "ignore": _Key(lambda value: value in _NONE or _is_whole(value), "a whole number from 0 to 65535, or none", 255),
    "lists": _Key(lambda value: _is_text(value) and not Path(value).is_absolute() and ".." not in Path(value).parts,
                  "a folder inside the dataset root (or inside lists_root, which may be anywhere)",
                  "ImageSets/Segmentation"),
    "train_list": _Key(*_FILES, "trainaug.txt"), "val_list": _Key(*_FILES, "val.txt"),
    "test_by": _Key(("pad", "resize").__contains__, "'pad' or 'resize'", "pad"),
    "root": _Key(*_TEXT), "root_variable": _Key(*_TEXT),
    "divisors": _Key(_are_divisors, "a mapping from names of splits to numbers above 1, as in {8: 8, 106: 105.82}",
                     {2: 2, 4: 4, 8: 8, 20: 20}),
    "dms_splits": _Key(partial(_is_list, valid=_is_text, low=0), "a list of splits, as in [8, 20]", [8, 20]),
    "unlabeled_images": _Key(*_PATTERN),
    "masks": _Key(("values", "color").__contains__, "'values' or 'color'", "values"),
    "ignore_colors": _Key(lambda value: value == "others" or _is_list(value, _is_color, 0),
                          "a list of colours, as in [[255, 255, 255]], or 'others' for every colour of no class", []),
    "lists_root": _Key(*_TEXT)}
_OF_A_CLASS = {
    "name": _Key(*_TEXT),
    "color": _Key(_is_color, "three numbers from 0 to 255 (red, green, blue), as in [200, 0, 0]"),
    "ids": _Key(partial(_is_list, valid=_is_whole), "a list of mask values from 0 to 65535, as in [26]"),
    "colors": _Key(partial(_is_list, valid=_is_color), "a list of colours, as in [[0, 0, 142]]")}


def _checked(given, keys, required, where=()):
    """The values of all ``keys`` in the mapping ``given``, lists as tuples."""
    if not isinstance(given, dict):
        raise _Wrong(where, f"{_name(where)} must be a mapping of keys to values, as in {{name: car, color: [0, 0, 142]}} "
                            "for a class; see docs/own_data.md")
    for key in given:
        if key not in keys:
            near = difflib.get_close_matches(str(key), keys, 1)
            meant = f"; did you mean {near[0]!r}" if near else ""
            raise _Wrong((*where, key), f"unknown key {shown(str(key))}{meant}; known keys are {', '.join(keys)}")
    values = {}
    for key, rule in keys.items():
        place, value = (*where, key), given.get(key, rule.usual)
        if key in required and key not in given:
            raise _Wrong(where, f"the key {key!r} is missing; it must be {rule.must} (docs/own_data.md explains every "
                                "key)")
        if not (value is rule.usual is None and key not in required or rule.valid(value)):
            raise _Wrong(place, f"{_name(place)} is {shown(value)}; it must be {rule.must}")
        values[key] = _frozen(value)
    return values


def _name(where):
    """How errors call a value: crop, classes[2].ids."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in where).lstrip(".") or "a dataset spec"


def _frozen(value):
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


# --- what the values mean together ------------------------------------------------------------------------------------


def _fields(given, folder):
    """Dict of the fields of a ``DatasetSpec`` for what the file in ``folder`` holds."""
    values = _checked(given, {**REQUIRED, **OPTIONAL}, REQUIRED)
    classes = [_checked(entry, _OF_A_CLASS, ("name", "color"), ("classes", index))
               for index, entry in enumerate(given["classes"])]
    names = [str(entry["name"]) for entry in classes]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise _Wrong(("classes", index, "name"), f"two classes have the name {name!r}; rename one")
    background = values["background"]
    if background in names:
        background = names.index(background)
    elif background in _NONE:
        background = None
    elif not _is_whole(background, high=len(names) - 1):
        raise _Wrong(("background",), f"background is {shown(background)}; it must be a whole number from 0 to "
                                      f"{len(names) - 1}, the name of a class, or none")
    if values["test_size"] == "largest" and values["test_by"] == "resize":
        raise _Wrong(("test_size",), "test_size is 'largest', but 'test_by: resize' needs one size for all images; give "
                                     "[height, width], or 'test_by: pad'")
    places = {key: None if values[key] is None else os.path.abspath(folder / Path(str(values[key])).expanduser())
              for key in ("root", "lists_root")}
    unchanged = ("lists", "crop", "test_by", "root_variable")
    return {**{key: values[key] for key in unchanged}, **places, "name": str(values["name"]),
            **{key: _pattern(values[key], key) for key in ("images", "labels", "unlabeled_images")},
            "class_names": tuple(names), "palette": tuple(entry["color"] for entry in classes),
            "test_size": None if values["test_size"] == "largest" else values["test_size"], "background": background,
            "train_lists": _several(values["train_list"]), "val_lists": _several(values["val_list"]),
            "divisors": tuple((str(split), divisor) for split, divisor in values["divisors"].items()),
            "dms_splits": tuple(map(str, values["dms_splits"])),
            **(_by_color if values["masks"] == "color" else _by_value)(given, values, classes, names)}


def _several(value):
    return value if isinstance(value, tuple) else (value,)


def _pattern(value, key):
    """A checked pattern as str, several as a tuple, None where there is none."""
    for pattern in () if value is None else _several(value):
        fault = patterns.fault(str(pattern))
        if fault is None and key == "unlabeled_images" and "{subset}" in pattern:
            fault = "may have no {subset}: unlabelled images have none"
        if fault:
            raise _Wrong((key,), f"{key} is {shown(pattern)}; it {fault}")
    return value[0] if isinstance(value, tuple) and len(value) == 1 else value


def _class_of(classes, names, key, usual=None):
    """Dict from the mask values or colours that ``key`` gives the classes (else their ``usual``) to their numbers."""
    found = {}
    for index, entry in enumerate(classes):
        for value in entry[key] or ((entry[usual],) if usual else ()):
            if found.setdefault(value, index) != index:
                what = f"value {value}" if key == "ids" else f"colour {list(value)}"
                raise _Wrong(("classes", index, key if entry[key] else usual), f"the mask {what} belongs to two classes, "
                             f"{names[found[value]]!r} and {names[index]!r}; keep it in one")
    return found


def _by_value(given, values, classes, names):
    """The fields that say what mask values mean. An ignore value that nobody wrote gives way to a class."""
    ignore = None if values["ignore"] in _NONE else values["ignore"]
    for place, wrong in [(("ignore_colors",), values["ignore_colors"]),
                         *((("classes", index, "colors"), entry["colors"]) for index, entry in enumerate(classes))]:
        if wrong:
            raise _Wrong(place, f"{_name(place)} is for masks whose colours say the class; add the line 'masks: color' to "
                                "the spec, or delete it here")
    ids = _class_of(classes, names, "ids")
    for index, entry in enumerate(classes):
        if ids and not entry["ids"]:
            raise _Wrong(("classes", index), f"the class {names[index]!r} has no 'ids' while others do; give every class "
                                             "its mask values")
    if ignore in ids and "ignore" not in given:
        ignore = None
    if ignore in ids or ignore is not None and not ids and ignore < len(names):
        what = f"an id of the class {names[ids[ignore]]!r}" if ids else "the number of a class"
        raise _Wrong(("ignore",), f"ignore is {ignore}, which is also {what}; use another value, or none")
    rest = 255 if ignore is None or ignore < len(names) else ignore  # finished stages are compared by this
    return {"ignore": ignore, "mask_colors": None, "ignore_other_colors": None,
            "label_ids": tuple(ids.get(value, rest) for value in range(max(256, max(ids) + 1))) if ids else None}


def _by_color(given, values, classes, names):
    """The fields that say what mask colours mean: pairs (colour, class), 255 where it is ignored, sorted."""
    for index, entry in enumerate(classes):
        if entry["ids"]:
            raise _Wrong(("classes", index, "ids"), f"classes[{index}].ids is for masks of values, but the spec says "
                                                    "'masks: color'; delete one of the two")
    if len(names) > 254:
        raise _Wrong(("classes",), f"classes lists {len(names)} classes; with 'masks: color' 254 are possible")
    colors, ignored = _class_of(classes, names, "colors", "color"), values["ignore_colors"]
    for place, color in enumerate(() if ignored == "others" else ignored):
        if colors.setdefault(color, 255) != 255:
            raise _Wrong(("ignore_colors", place), f"the colour {list(color)} is that of a class, too; take it out of one "
                                                   "of the two")
    return {"ignore": None if values["ignore"] in _NONE else values["ignore"], "label_ids": None,
            "mask_colors": tuple(sorted(colors.items())), "ignore_other_colors": True if ignored == "others" else None}
