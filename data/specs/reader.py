"""The reader of dataset specs: every value of the YAML file is checked, and an error names its line and the mend."""

import difflib
import os
from pathlib import Path
from reprlib import repr as shown  # a few lines of YAML can stand for a text without end

import yaml

from data import patterns
from utils.errors import UserError
from utils.files import fits

_TEXT, _VALUE, _COLOR, _SIDE = (str, range(1 << 32)), range(1 << 16), [range(256)] * 3, range(1, (1 << 16) + 1)
_NONE = (None, "none", "None")
_SIZE, _PATTERN = "[height, width] in pixels, as in [321, 321]", "a pattern, or a list of them, as in 'images/{name}.*'"
_ONE_LINE = "a text of one line (yes, no, on and off stand for others: put them in quotes)"
_FILES = "the name of a file in the folder 'lists', or a list of them, as in [trainaug.txt]"
KEYS = {  # key -> (kind, as in utils.files.fits; what it must be in words; what it is where it need not be given)
    "name": (_TEXT, _ONE_LINE),
    "classes": ([dict], "a list of classes, as in [{name: soil, color: [0, 0, 0]}, {name: weed, color: [200, 0, 0]}]"),
    "images": ((str, [str]), _PATTERN), "labels": ((str, [str]), _PATTERN),
    "crop": ([_SIDE, _SIDE], _SIZE), "test_size": (("largest", [_SIDE, _SIDE]), f"{_SIZE}, or 'largest'"),
    "background": ((*_NONE, *_TEXT), "the name or number of a class, or none", None),
    "ignore": ((*_NONE, _VALUE), "a whole number from 0 to 65535, or none", 255),
    "lists": (str, _ONE_LINE, "ImageSets/Segmentation"),
    "train_list": ((str, [str]), _FILES, "trainaug.txt"), "val_list": ((str, [str]), _FILES, "val.txt"),
    "test_by": (("pad", "resize"), "'pad' or 'resize'", "pad"),
    "root": ((None, str), _ONE_LINE, None), "root_variable": ((None, str), _ONE_LINE, None),
    "divisors": (dict, "a mapping from names of splits to numbers above 1, as in {8: 8, 106: 105.82}",
                 {2: 2, 4: 4, 8: 8, 20: 20}),
    "dms_splits": (([], [_TEXT]), "a list of splits, as in [8, 20]", [8, 20]),
    "unlabeled_images": ((None, str, [str]), _PATTERN, None),
    "masks": (("values", "color"), "'values' or 'color'", "values"),
    "ignore_colors": (("others", [], [_COLOR]),
                      "a list of colours, as in [[255, 255, 255]], or 'others' for every colour of no class", []),
    "lists_root": ((None, str), _ONE_LINE, None)}
_CLASS_KEYS = {
    "name": (_TEXT, _ONE_LINE),
    "color": (_COLOR, "three numbers from 0 to 255 (red, green, blue), as in [200, 0, 0]"),
    "ids": ([_VALUE], "a list of mask values from 0 to 65535, as in [26]", None),
    "colors": ([_COLOR], "a list of colours, as in [[0, 0, 142]]", None)}


class _Wrong(ValueError):
    """What is wrong with the value at ``where``, a tuple of keys and indices, () for the whole file."""

    def __init__(self, where, what):
        super().__init__(what)
        self.where = where


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor):
        """Refuses a key that stands twice: YAML would take the last one, silently."""
        node, lines = super().compose_mapping_node(anchor), {}
        for key, _ in node.value:
            line = lines.setdefault(str(key.value), key.start_mark.line)
            if line != key.start_mark.line:
                raise yaml.MarkedYAMLError(problem=f"the key {shown(str(key.value))} already stands in line {line + 1}",
                                           problem_mark=key.start_mark, note="delete one of the two")
        return node


def read(path):
    """The checked values of the spec in the YAML file ``path``, a dict with the fields of ``DatasetSpec``.

    Raises ``UserError`` naming the file, the line, the key and the fix.
    """
    values, node = _parse(path)
    try:
        return _fields(values, Path(path).parent)
    except _Wrong as wrong:
        line = node.start_mark.line + 1 if node else 1
        for key in wrong.where:  # as far as the file goes: what is missing has the line of where it is missing
            inner = enumerate(node.value) if isinstance(node, yaml.SequenceNode) else (
                (name.value, value) for name, value in node.value)
            node = {str(name): value for name, value in inner}.get(str(key))
            if node is None:
                break
            line = node.start_mark.line + 1
        raise UserError(f"{path}, line {line}: {wrong}") from wrong


def _parse(path):
    """(what the YAML file ``path`` holds, its node, which knows the lines). Raises ``UserError`` naming the line."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else loader.construct_document(node), node
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


def _checked(given, keys, where=()):
    """The values of all ``keys`` (a table as ``KEYS``) in the mapping ``given``, lists as tuples."""
    for key in given:
        if key not in keys:
            near = difflib.get_close_matches(str(key), keys, 1)
            meant = f"; did you mean {near[0]!r}" if near else ""
            raise _Wrong((*where, key), f"unknown key {shown(str(key))}{meant}; known keys are {', '.join(keys)}")
    values = {}
    for key, (kind, words, *usual) in keys.items():
        if key not in given and not usual:
            raise _Wrong(where, f"the key {key!r} is missing; it must be {words} (docs/own_data.md explains every key)")
        if key in given and not fits(given[key], kind):
            raise _Wrong((*where, key), f"{_name((*where, key))} is {shown(given[key])}; it must be {words}")
        values[key] = _frozen(given.get(key, *usual))
    return values


def _name(where):
    """How errors call a value: crop, classes[2].ids."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in where).lstrip(".")


def _frozen(value):
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _fields(given, folder):
    """Dict of the fields of a ``DatasetSpec`` for what the file in ``folder`` holds."""
    if not isinstance(given, dict):
        raise _Wrong((), "a dataset spec is a mapping of keys to values, as in 'name: weeds'; see docs/own_data.md")
    values = _checked(given, KEYS)
    classes = [_checked(entry, _CLASS_KEYS, ("classes", index)) for index, entry in enumerate(given["classes"])]
    names = [str(entry["name"]) for entry in classes]
    _check_meaning(values, classes, names)
    fields = {key: values[key] for key in ("lists", "crop", "test_by", "root_variable")}
    for key in ("images", "labels", "unlabeled_images"):  # several as a tuple
        fields[key] = values[key][0] if isinstance(values[key], tuple) and len(values[key]) == 1 else values[key]
    for key in ("train_list", "val_list"):
        fields[f"{key}s"] = values[key] if isinstance(values[key], tuple) else (values[key],)
    for key in ("root", "lists_root"):
        fields[key] = values[key] and os.path.abspath(folder / Path(values[key]).expanduser())
    background = names.index(values["background"]) if values["background"] in names else values["background"]
    return {**fields, "name": str(values["name"]), "class_names": tuple(names),
            "palette": tuple(entry["color"] for entry in classes),
            "background": None if background in _NONE else background,
            "test_size": None if values["test_size"] == "largest" else values["test_size"],
            "divisors": tuple((str(split), divisor) for split, divisor in values["divisors"].items()),
            "dms_splits": tuple(map(str, values["dms_splits"])),
            "ignore": None if values["ignore"] in _NONE else values["ignore"], "label_ids": None, "mask_colors": None,
            "ignore_other_colors": True if values["ignore_colors"] == "others" else None,
            **(_by_color if values["masks"] == "color" else _by_value)(given, values, classes, names)}


def _check_meaning(values, classes, names):
    """Raise ``_Wrong`` for values of the right kind that cannot be meant."""
    by_color = values["masks"] == "color"
    most = 254 if by_color else 255
    if not 2 <= len(names) <= most:
        raise _Wrong(("classes",), f"classes lists {len(names)} class{'es' * (len(names) != 1)}; 2 to {most} are "
                                   "possible")
    for index, name in enumerate(names):
        if name in names[:index]:
            raise _Wrong(("classes", index, "name"), f"two classes have the name {name!r}; rename one")
    if not fits(values["background"], (*_NONE, *names, range(len(names)))):
        raise _Wrong(("background",), f"background is {shown(values['background'])}; it must be a whole number from 0 "
                                      f"to {len(names) - 1}, the name of a class, or none")
    for key in ("images", "labels", "unlabeled_images"):
        for pattern in values[key] if isinstance(values[key], tuple) else filter(None, [values[key]]):
            fault = patterns.fault(pattern)
            if key == "unlabeled_images" and "{subset}" in pattern:
                fault = "may have no {subset}: unlabelled images have none"
            if fault:
                raise _Wrong((key,), f"{key} is {shown(pattern)}; it {fault}")
    if patterns.leaves_root(values["lists"]):
        raise _Wrong(("lists",), f"lists is {shown(values['lists'])}; it must stay inside the dataset root (or inside "
                                 "lists_root, which may be anywhere)")
    for split, divisor in values["divisors"].items():
        if not fits(divisor, float) or divisor <= 1:
            raise _Wrong(("divisors", split), f"the divisor of split {split} is {shown(divisor)}; it must be a number "
                                              "above 1")
    if values["test_size"] == "largest" and values["test_by"] == "resize":
        raise _Wrong(("test_size",), "test_size is 'largest', but 'test_by: resize' needs one size for all images; "
                                     "give [height, width], or 'test_by: pad'")
    if values["ignore_colors"] and not by_color:
        raise _misplaced(("ignore_colors",), by_color)
    for index, entry in enumerate(classes):
        key = "ids" if by_color else "colors"
        if entry[key]:
            raise _misplaced(("classes", index, key), by_color)


def _misplaced(where, by_color):
    return _Wrong(where, f"{_name(where)} is for masks " + (
        "of values, but the spec says 'masks: color'; delete one of the two" if by_color else
        "whose colours say the class; add the line 'masks: color' to the spec, or delete it here"))


def _class_of(classes, names, key, usual=None):
    """Dict from the mask values or colours that ``key`` gives the classes (else their ``usual``) to their numbers."""
    found = {}
    for index, entry in enumerate(classes):
        for value in entry[key] or ((entry[usual],) if usual else ()):
            if found.setdefault(value, index) != index:
                what = f"value {value}" if key == "ids" else f"colour {list(value)}"
                raise _Wrong(("classes", index, key if entry[key] else usual),
                             f"the mask {what} belongs to two classes, {names[found[value]]!r} and "
                             f"{names[index]!r}; keep it in one")
    return found


def _by_value(given, values, classes, names):
    """What mask values mean. An ignore value that nobody wrote gives way to a class."""
    ignore, ids = None if values["ignore"] in _NONE else values["ignore"], _class_of(classes, names, "ids")
    for index, entry in enumerate(classes):
        if ids and not entry["ids"]:
            raise _Wrong(("classes", index), f"the class {names[index]!r} has no 'ids' while others do; give every "
                                             "class its mask values")
    if ignore in ids and "ignore" not in given:
        ignore = None
    if ignore in ids or ignore is not None and not ids and ignore < len(names):
        what = f"an id of the class {names[ids[ignore]]!r}" if ids else "the number of a class"
        raise _Wrong(("ignore",), f"ignore is {ignore}, which is also {what}; use another value, or none")
    rest = 255 if ignore is None or ignore < len(names) else ignore  # finished stages are compared by this
    table = tuple(ids.get(value, rest) for value in range(max(256, max(ids) + 1))) if ids else None
    return {"ignore": ignore, "label_ids": table}


def _by_color(given, values, classes, names):
    """What mask colours mean: pairs (colour, class), 255 where it is ignored, sorted."""
    colors, ignored = _class_of(classes, names, "colors", "color"), values["ignore_colors"]
    for place, color in enumerate(() if ignored == "others" else ignored):
        if colors.setdefault(color, 255) != 255:
            raise _Wrong(("ignore_colors", place), f"the colour {list(color)} is that of a class, too; take it out of "
                                                   "one of the two")
    return {"mask_colors": tuple(sorted(colors.items()))}
