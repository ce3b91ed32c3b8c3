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
_AS_GIVEN = ("images", "labels", "unlabeled_images", "lists", "lists_root", "root", "root_variable", "crop", "test_by")


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
    given, node = _parse(path)
    for where, what in _faults(given):
        raise UserError(f"{path}, line {_line(node, where)}: {what}")
    return _fields(given, Path(path).parent)


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


def _line(node, where):
    """The line of the value at ``where``, keys and indices; of what is missing, the line of where it is missing."""
    line = node.start_mark.line + 1 if node else 1
    for key in where:
        inner = enumerate(node.value) if isinstance(node, yaml.SequenceNode) else (
            (name.value, value) for name, value in node.value)
        node = {str(name): value for name, value in inner}.get(str(key))
        if node is None:
            break
        line = node.start_mark.line + 1
    return line


# --- what is wrong ----------------------------------------------------------------------------------------------------


def _faults(given):
    """Yield (where, what is wrong): keys and indices, () for the whole file. Each relies on there being none before."""
    if not isinstance(given, dict):
        yield (), "a dataset spec is a mapping of keys to values, as in 'name: weeds'; see docs/own_data.md"
    yield from _misfits(given, KEYS)
    for index, entry in enumerate(given["classes"]):
        yield from _misfits(entry, _CLASS_KEYS, ("classes", index))
    values, classes, names = _said(given)
    most = 254 if values["masks"] == "color" else 255
    if not 2 <= len(names) <= most:
        yield ("classes",), f"classes lists {len(names)} class{'es' * (len(names) != 1)}; 2 to {most} are possible"
    for index, name in enumerate(names):
        if name in names[:index]:
            yield ("classes", index, "name"), f"two classes have the name {name!r}; rename one"
    if not fits(values["background"], (*_NONE, *names, range(len(names)))):
        yield ("background",), (f"background is {shown(values['background'])}; it must be a whole number from 0 to "
                                f"{len(names) - 1}, the name of a class, or none")
    for key in ("images", "labels", "unlabeled_images"):
        for pattern in values[key] if isinstance(values[key], tuple) else filter(None, [values[key]]):
            fault = patterns.fault(pattern)
            if key == "unlabeled_images" and "{subset}" in pattern:
                fault = "may have no {subset}: unlabelled images have none"
            if fault:
                yield (key,), f"{key} is {shown(pattern)}; it {fault}"
    if patterns.leaves_root(values["lists"]):
        yield ("lists",), (f"lists is {shown(values['lists'])}; it must stay inside the dataset root (or inside "
                           "lists_root, which may be anywhere)")
    for split, divisor in values["divisors"].items():
        if not fits(divisor, float) or divisor <= 1:
            yield ("divisors", split), f"the divisor of split {split} is {shown(divisor)}; it must be a number above 1"
    if values["test_size"] == "largest" and values["test_by"] == "resize":
        yield ("test_size",), ("test_size is 'largest', but 'test_by: resize' needs one size for all images; give "
                               "[height, width], or 'test_by: pad'")
    yield from _mask_faults(given, values, classes, names)


def _misfits(given, keys, where=()):
    """Yield the faults of a mapping by itself: ``keys`` that are unknown or missing, and values of another kind."""
    for key in given:
        if key not in keys:
            near = difflib.get_close_matches(str(key), keys, 1)
            meant = f"; did you mean {near[0]!r}" if near else ""
            yield (*where, key), f"unknown key {shown(str(key))}{meant}; known keys are {', '.join(keys)}"
    for key, (kind, words, *usual) in keys.items():
        if key not in given and not usual:
            yield where, f"the key {key!r} is missing; it must be {words} (docs/own_data.md explains every key)"
        if key in given and not fits(given[key], kind):
            yield (*where, key), f"{_name((*where, key))} is {shown(given[key])}; it must be {words}"


def _mask_faults(given, values, classes, names):
    """Yield the faults of what says the classes in the masks, values or colours."""
    by_color = values["masks"] == "color"
    key, other, what = ("colors", "ids", "colour") if by_color else ("ids", "colors", "value")
    misplaced = [("ignore_colors",)] if values["ignore_colors"] and not by_color else []
    for where in (*misplaced, *(("classes", index, other) for index, entry in enumerate(classes) if entry[other])):
        yield where, f"{_name(where)} is for masks " + (
            "of values, but the spec says 'masks: color'; delete one of the two" if by_color else
            "whose colours say the class; add the line 'masks: color' to the spec, or delete it here")
    owners = {}
    for index, entry in enumerate(classes):
        for value in entry["in_masks"]:
            if owners.setdefault(value, index) != index:
                yield ("classes", index, key if entry[key] else "color"), (
                    f"the mask {what} {list(value) if by_color else value} belongs to two classes, "
                    f"{names[owners[value]]!r} and {names[index]!r}; keep it in one")
    if by_color:
        for place, color in enumerate(() if values["ignore_colors"] == "others" else values["ignore_colors"]):
            if color in owners:
                yield ("ignore_colors", place), (f"the colour {list(color)} is that of a class, too; take it out of "
                                                 "one of the two")
        return
    for index, entry in enumerate(classes):
        if owners and not entry["ids"]:
            yield ("classes", index), (f"the class {names[index]!r} has no 'ids' while others do; give every class its "
                                       "mask values")
    ignore = values["ignore"]
    if "ignore" in given and ignore in owners:
        yield ("ignore",), (f"ignore is {ignore}, which is also an id of the class {names[owners[ignore]]!r}; use "
                            "another value, or none")
    if not owners and ignore not in _NONE and ignore < len(names):
        yield ("ignore",), f"ignore is {ignore}, which is also the number of a class; use another value, or none"


# --- what it says -----------------------------------------------------------------------------------------------------


def _name(where):
    """How errors call a value: crop, classes[2].ids."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in where).lstrip(".")


def _values(given, keys):
    """What the mapping ``given`` says of all ``keys`` (a table as ``KEYS``), lists as tuples."""
    return {key: _frozen(given.get(key, *usual)) for key, (_, _, *usual) in keys.items()}


def _frozen(value):
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _said(given):
    """(values, those of every class, names of the classes); of a class ``in_masks`` are its colours or values there."""
    values, classes = _values(given, KEYS), [_values(entry, _CLASS_KEYS) for entry in given["classes"]]
    for entry in classes:
        entry["in_masks"] = (entry["colors"] or [entry["color"]]) if values["masks"] == "color" else entry["ids"] or []
    return values, classes, tuple(str(entry["name"]) for entry in classes)


def _fields(given, folder):
    """Dict of the fields of a ``DatasetSpec`` for what the file in ``folder`` holds, which has no faults."""
    values, classes, names = _said(given)
    for key in ("images", "labels", "unlabeled_images"):  # several as a tuple
        if isinstance(values[key], tuple) and len(values[key]) == 1:
            values[key] = values[key][0]
    for key in ("train_list", "val_list"):
        values[key] = values[key] if isinstance(values[key], tuple) else (values[key],)
    for key in ("root", "lists_root"):
        values[key] = values[key] and os.path.abspath(folder / Path(values[key]).expanduser())
    background = names.index(values["background"]) if values["background"] in names else values["background"]
    owners = {value: index for index, entry in enumerate(classes) for value in entry["in_masks"]}
    others, colors, table = values["ignore_colors"] == "others", None, None
    ignore = None if values["ignore"] in _NONE else values["ignore"]
    if values["masks"] == "color":
        colors = tuple(sorted({**owners, **dict.fromkeys(() if others else values["ignore_colors"], 255)}.items()))
    elif owners:
        ignore = None if ignore in owners else ignore  # nobody wrote it
        rest = 255 if ignore is None or ignore < len(names) else ignore  # finished stages are compared by this
        table = tuple(owners.get(value, rest) for value in range(max(256, max(owners) + 1)))
    return {"name": str(values["name"]), "class_names": names, "palette": tuple(entry["color"] for entry in classes),
            "background": None if background in _NONE else background, "ignore": ignore, "label_ids": table,
            "mask_colors": colors, "ignore_other_colors": others or None, "train_lists": values["train_list"],
            "val_lists": values["val_list"],
            "test_size": None if values["test_size"] == "largest" else values["test_size"],
            "divisors": tuple((str(split), divisor) for split, divisor in values["divisors"].items()),
            "dms_splits": tuple(map(str, values["dms_splits"])), **{key: values[key] for key in _AS_GIVEN}}
