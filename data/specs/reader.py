"""The reader of dataset specs: every value of the YAML file is checked, and an error names its line and the mend."""

import difflib
import os
from pathlib import Path

from data import patterns
from data.specs.document import Document, shown

REQUIRED = ("name", "classes", "images", "labels", "crop", "test_size")
OPTIONAL = {
    "background": None, "ignore": 255, "lists": "ImageSets/Segmentation", "train_list": ["trainaug.txt"],
    "val_list": ["val.txt"], "test_by": "pad", "root": None, "root_variable": None,
    "divisors": {2: 2, 4: 4, 8: 8, 20: 20}, "dms_splits": [8, 20],
    "unlabeled_images": None, "masks": "values", "ignore_colors": [], "lists_root": None,
}
LARGEST_VALUE = 65535  # of a 16-bit mask
_EXAMPLES = {"name": "weeds", "classes": "[{name: soil, color: [0, 0, 0]}, {name: weed, color: [200, 0, 0]}]",
             "images": "images/{name}.*", "labels": "masks/{name}.png", "crop": "[321, 321]", "test_size": "largest"}
_NONE = (None, "none", "None")


def read(path):
    """The checked values of the spec in the YAML file ``path``, a dict with the fields of ``DatasetSpec``.

    Raises ``UserError`` naming the file, the line, the key and the fix.
    """
    return _Reader(Document(path)).fields()


class _Reader:
    def __init__(self, document):
        self._document = document
        given = document.values
        if not isinstance(given, dict):
            raise self._error((), "a dataset spec is a mapping of keys to values, as in 'name: weeds'; see "
                              "docs/own_data.md")
        for key in given:
            if key not in REQUIRED and key not in OPTIONAL:
                near = difflib.get_close_matches(str(key), (*REQUIRED, *OPTIONAL), 1)
                meant = f"; did you mean {near[0]!r}" if near else ""
                raise self._error((key,), f"unknown key {shown(str(key))}{meant}; known keys are "
                                  f"{', '.join((*REQUIRED, *OPTIONAL))}")
        for key in REQUIRED:
            if key not in given:
                raise self._error((), f"the key {key!r} is missing; add it, as in '{key}: {_EXAMPLES[key]}' "
                                  "(docs/own_data.md explains every key)")
        self._given, self._values = given, {**OPTIONAL, **given}

    def fields(self):
        """Dict of the fields of a ``DatasetSpec``."""
        values = self._values
        masks = self._one_of("masks", ("values", "color"))
        names, palette, classes = self._classes(masks == "color")
        ignore = None
        if values["ignore"] not in _NONE:
            ignore = self._integer(("ignore",), values["ignore"], 0, LARGEST_VALUE, "or none")
        ids = {value: index for index, own in enumerate(classes) for value in own}
        if masks == "values":
            ignore = self._without_conflict(ignore, ids, names)
            mask_colors = others = None
        else:
            mask_colors, others = self._mask_colors(classes)
            ids = {}
        background = None if values["background"] in _NONE else self._background(names)
        test_by = self._one_of("test_by", ("pad", "resize"))
        return dict(
            name=self._text(("name",), values["name"]), class_names=names, palette=palette, background=background,
            ignore=ignore, label_ids=_label_ids(ids, ignore, len(names)), images=self._pattern("images"),
            labels=self._pattern("labels"), lists=self._folder("lists"), train_lists=self._file_names("train_list"),
            val_lists=self._file_names("val_list"), crop=self._size("crop"), test_size=self._test_size(test_by),
            test_by=test_by, root=self._place("root"), root_variable=self._optional_text("root_variable"),
            divisors=self._divisors(), dms_splits=self._splits(), unlabeled_images=self._pattern("unlabeled_images"),
            mask_colors=mask_colors, ignore_other_colors=others, lists_root=self._place("lists_root"))

    # --- classes ------------------------------------------------------------------------------------------------------

    def _classes(self, by_color):
        """Names, palette, and for each class what masks hold of it: values, or colours where ``by_color``."""
        entries = self._list(("classes",), self._values["classes"],
                             "as in [{name: soil, color: [0, 0, 0]}, {name: weed, color: [200, 0, 0]}]")
        most = 254 if by_color else 255
        if not 2 <= len(entries) <= most:
            raise self._error(("classes",), f"classes lists {len(entries)} class{'es' * (len(entries) != 1)}; "
                              f"2 to {most} are possible")
        names, palette, contents = [], [], []
        for index, entry in enumerate(entries):
            keys = ("classes", index)
            where = f"classes[{index}]"
            if not isinstance(entry, dict) or not {"name", "color"} <= set(entry):
                raise self._error(keys, f"{where} must look like {{name: car, color: [0, 0, 142]}} "
                                  "with, if mask values are not class numbers, ids: [26]")
            for key in entry:
                if key not in ("name", "color", "ids", "colors"):
                    raise self._error((*keys, key), f"{where} has the unknown key {shown(str(key))}; a class has name, "
                                      "color and, as masks need it, ids or colors")
            names.append(self._text((*keys, "name"), entry["name"], f"{where}.name"))
            if names[-1] in names[:-1]:
                raise self._error((*keys, "name"), f"two classes have the name {names[-1]!r}; rename one")
            palette.append(self._color((*keys, "color"), entry["color"], f"{where}.color"))
            read_own = self._class_colors if by_color else self._class_ids
            contents.append(read_own(keys, entry, where))
        self._refuse_shared(contents, names, "colors" if by_color else "ids")
        if any(contents) and not all(contents):
            lacking = next(index for index, own in enumerate(contents) if not own)
            raise self._error(("classes", lacking), f"the class {names[lacking]!r} has no 'ids' while others do; "
                              "give every class its mask values")
        return tuple(names), tuple(palette), contents

    def _class_ids(self, keys, entry, where):
        """The mask values of a class; () where it has none of its own."""
        if "colors" in entry:
            raise self._error((*keys, "colors"), f"{where}.colors is for masks whose colours say the class; add the "
                                                 "line 'masks: color' to the spec, or delete it here")
        values = self._list((*keys, "ids"), entry.get("ids", []), "as in ids: [26]", f"{where}.ids")
        return [self._integer((*keys, "ids", place), value, 0, LARGEST_VALUE, name=f"{where}.ids")
                for place, value in enumerate(values)]

    def _class_colors(self, keys, entry, where):
        """The mask colours of a class: its 'colors', else its 'color'."""
        if "ids" in entry:
            raise self._error((*keys, "ids"), f"{where}.ids is for masks of values, but the spec says 'masks: color'; "
                              "delete one of the two")
        if "colors" not in entry:
            return [tuple(entry["color"])]
        colors = self._list((*keys, "colors"), entry["colors"], "of colours, as in [[0, 0, 142]]", f"{where}.colors")
        if not colors:
            raise self._error((*keys, "colors"), f"{where}.colors is empty; list at least one colour, or delete it")
        return [self._color((*keys, "colors", place), color, f"{where}.colors") for place, color in enumerate(colors)]

    def _refuse_shared(self, contents, names, key):
        seen = {}
        for index, own in enumerate(contents):
            for value in own:
                if seen.setdefault(value, index) != index:
                    place = ("classes", index, key if key in self._values["classes"][index] else "color")
                    what = f"colour {list(value)}" if key == "colors" else f"value {value}"
                    raise self._error(place, f"the mask {what} belongs to two classes, {names[seen[value]]!r} and "
                                      f"{names[index]!r}; keep it in one")

    def _mask_colors(self, classes):
        """Pairs (colour, class), 255 where it is ignored; and whether all other colours are ignored (True or None)."""
        colors = {color: index for index, own in enumerate(classes) for color in own}
        given = self._values["ignore_colors"]
        if given == "others":
            return tuple(sorted(colors.items())), True
        given = self._list(("ignore_colors",), given, "of colours, as in [[255, 255, 255]], or 'others' for every "
                                                      "colour of no class")
        for place, color in enumerate(given):
            keys = ("ignore_colors", place)
            color = self._color(keys, color, "ignore_colors")
            if colors.get(color, 255) != 255:
                raise self._error(keys, f"the colour {list(color)} is that of a class, too; take it out of one of the "
                                        "two")
            colors[color] = 255
        return tuple(sorted(colors.items())), None

    def _without_conflict(self, ignore, ids, names):
        """The ignore value, which must not mean a class, too; a default that does is none."""
        if self._given.get("ignore_colors"):
            raise self._error(("ignore_colors",), "ignore_colors is for masks whose colours say the class; add the "
                                                  "line 'masks: color' to the spec, or delete it")
        if ignore is not None and ignore < len(names) and not ids:
            raise self._error(("ignore",), f"ignore is {ignore}, which is also the number of a class; use 255, or none")
        if ignore in ids:
            if "ignore" in self._given:
                raise self._error(("ignore",), f"ignore is {ignore}, which is also an id of the class "
                                  f"{names[ids[ignore]]!r}; use another value, or none")
            return None
        return ignore

    def _background(self, names):
        value = self._values["background"]
        if value in names:
            return names.index(value)
        return self._integer(("background",), value, 0, len(names) - 1, "the name of a class, or none")

    # --- the other keys -----------------------------------------------------------------------------------------------

    def _pattern(self, key):
        """A pattern as str, several as a tuple, None where there is none."""
        value = self._values[key]
        if value is None and key not in REQUIRED:
            return None
        several = value if isinstance(value, list) else [value]
        if not several:
            raise self._error((key,), f"{key} is empty; give a pattern, as in 'images/{{name}}.*'")
        for place, pattern in enumerate(several):
            keys = (key, place) if isinstance(value, list) else (key,)
            fault = patterns.fault(self._text(keys, pattern, key))
            if fault is None and key == "unlabeled_images" and "{subset}" in pattern:
                fault = "may have no {subset}: unlabelled images have none"
            if fault:
                raise self._error(keys, f"{key} is {shown(pattern)}; it {fault}")
        return several[0] if len(several) == 1 else tuple(several)

    def _folder(self, key):
        text = self._text((key,), self._values[key])
        if Path(text).is_absolute() or ".." in Path(text).parts:
            raise self._error((key,), f"{key} is {shown(text)}; it must stay inside the dataset root (or inside "
                                      "lists_root, which may be anywhere)")
        return text

    def _place(self, key):
        """An absolute folder; a relative one is meant from the spec's own folder."""
        text = self._optional_text(key)
        return None if text is None else os.path.abspath(self._document.path.parent / Path(text).expanduser())

    def _file_names(self, key):
        value = self._values[key]
        names = tuple(self._text((key,), name) for name in (value if isinstance(value, list) else [value]))
        if not names or any(Path(name).name != name for name in names):
            raise self._error((key,), f"{key} must be file names in the folder 'lists', as in [trainaug.txt]")
        return names

    def _size(self, key):
        value = self._values[key]
        if not isinstance(value, list) or len(value) != 2:
            raise self._error((key,), f"{key} is {shown(value)}; it must be [height, width] in pixels, as in [321, 321]"
                              + (", or 'largest'" if key == "test_size" else ""))
        return tuple(self._integer((key, place), side, 1, 1 << 16, name=key) for place, side in enumerate(value))

    def _test_size(self, test_by):
        if self._values["test_size"] != "largest":
            return self._size("test_size")
        if test_by == "resize":
            raise self._error(("test_size",), "test_size is 'largest', but 'test_by: resize' needs one size for all "
                              "images; give [height, width], or 'test_by: pad'")
        return None

    def _divisors(self):
        value = self._values["divisors"]
        if not isinstance(value, dict):
            raise self._error(("divisors",), "divisors must map names of splits to divisors, as in {8: 8, 106: 105.82}")
        for split, divisor in value.items():
            if isinstance(divisor, bool) or not isinstance(divisor, (int, float)) or not 1 < divisor < float("inf"):
                raise self._error(("divisors", split), f"the divisor of split {split} is {shown(divisor)}; it must be "
                                                       "a number above 1")
        return tuple((str(split), divisor) for split, divisor in value.items())

    def _splits(self):
        return tuple(str(split) for split in self._list(("dms_splits",), self._values["dms_splits"], "as in [8, 20]"))

    # --- kinds of values ----------------------------------------------------------------------------------------------

    def _error(self, keys, what):
        return self._document.error(keys, what)

    def _one_of(self, key, choices):
        value = self._values[key]
        if value not in choices:
            raise self._error((key,), f"{key} is {shown(value)}; use {' or '.join(map(repr, choices))}")
        return value

    def _list(self, keys, value, example, name=None):
        if not isinstance(value, list):
            raise self._error(keys, f"{name or keys[0]} is {shown(value)}; it must be a list {example}")
        return value

    def _color(self, keys, value, name):
        if not isinstance(value, list) or len(value) != 3:
            raise self._error(keys, f"{name} is {shown(value)}; it must be three numbers from 0 to 255 "
                              "(red, green, blue), as in [200, 0, 0]")
        return tuple(self._integer(keys, channel, 0, 255, name=name) for channel in value)

    def _text(self, keys, value, name=None):
        name = name or keys[0]
        if isinstance(value, bool):
            raise self._error(keys, f"{name} is {str(value).lower()}, since YAML reads yes, no, on and off so; put it "
                                    "in quotes")
        if not isinstance(value, (str, int)) or str(value).strip() == "" or not str(value).isprintable():
            raise self._error(keys, f"{name} is {shown(value)}; it must be a text of one line")
        return str(value)

    def _optional_text(self, key):
        return None if self._values[key] is None else self._text((key,), self._values[key])

    def _integer(self, keys, value, low, high, also="", name=None):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._error(keys, f"{name or keys[0]} is {shown(value)}; it must be a whole number from "
                              f"{low} to {high}" + (f", {also}" if also else ""))
        return value


def _label_ids(ids, ignore, classes):
    """The class of every mask value that may occur, ``ignore`` or 255 for none; None when values are classes already."""
    rest = 255 if ignore is None or ignore < classes else ignore  # finished stages are compared by this
    return tuple(ids.get(value, rest) for value in range(max(256, max(ids) + 1))) if ids else None
