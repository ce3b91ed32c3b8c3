"""The classes of a dataset: as a person writes them down, as masks hold them, and as a spec has them.

Taken without being told is only what is certain: values that count 0, 1, 2, ..., with 255 for "no label"; 0 and 255
alone; exact colours. Everything else is refused with the values, their shares, and the options that say what is meant.
"""

import collections
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from data import masks
from utils.errors import UserError

VOID_VALUES = (255, 65535)  # what masks of 8 and 16 bits use for "no label" as a rule
VOID_COLORS = ((224, 224, 192),)  # VOC's cream
_BACKGROUNDS = ("background", "_background_", "bg", "back ground", "hintergrund")
_LINE = re.compile(r"(?P<name>.*?)[\s:=,]+(?P<numbers>\d+(?:[\s,]+\d+)*)")
_CVAT = re.compile(r"(?P<name>[^:]*):(?P<numbers>\d+,\d+,\d+)?:[^:]*:[^:]*")  # label:color_rgb:parts:actions
_LARGEST = 65535


@dataclass
class Class:
    """A class of a spec: ``ids`` are its mask values, ``colors`` its mask colours; empty where nothing need be said."""

    name: str
    color: tuple
    ids: tuple = ()
    colors: tuple = ()


@dataclass
class Choice:
    """``class_of`` maps mask values, or packed colours, to classes, 255 where ignored; ``pixels`` counts them."""

    classes: list
    class_of: dict
    pixels: collections.Counter
    warnings: list
    by_color: bool = False
    ignore: int | None = 255
    ignore_colors: list = field(default_factory=list)
    background: int | None = None

    def __post_init__(self):
        self.background = next((index for index, entry in enumerate(self.classes)
                                if entry.name.lower() in _BACKGROUNDS), None)
        self.warnings += _suspicions(self.pixels, self.class_of, self.classes)


# --- as a person writes them ------------------------------------------------------------------------------------------


def read_classes(text):
    """List of (name, numbers) from "soil,crop,weed" or from a file of that name with one class a line.

    A line is a name, and behind it numbers, if masks need them: values ("weed 17 18") or one colour ("weed 200 0 0");
    or it is one of CVAT's labelmap.txt. Blank lines and those that begin with # are skipped. Raises ``UserError``
    naming the line.
    """
    path = Path(text)
    if not path.is_file():
        if "," not in text:
            raise UserError(f"{text}: there is no such file of classes; give a file with one class a line, or the "
                            "names with commas between, as in soil,crop,weed")
        entries = [(f"--classes, name {number}", part, None) for number, part in enumerate(text.split(","), 1)]
    else:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{path} cannot be read as UTF-8 text ({reason})") from error
        entries = [(f"{path}, line {number}", line, _CVAT.fullmatch(line.strip()) or _LINE.fullmatch(line.strip()))
                   for number, line in enumerate(lines, 1) if line.strip() and not line.lstrip().startswith("#")]
    classes = []
    for where, entry, match in entries:
        name = (match["name"] if match else entry).strip()
        numbers = tuple(int(number) for number in re.findall(r"\d+", match["numbers"] or "")) if match else ()
        if not name or not name.isprintable() or path.is_file() and re.search(r"[:;\t{}\[\]\"]|^\d+\b", name):
            raise UserError(f"{where}: {entry.strip()[:80]!r} is not understood; a line looks like 'weed', 'weed 17' "
                            "or 'weed 200 0 0', in letters of this locale")
        if name in (known for known, _ in classes):
            raise UserError(f"{where}: the class {name!r} stands there twice; delete one")
        if max(numbers, default=0) > _LARGEST:
            raise UserError(f"{where}: {max(numbers)} is no mask value; they go from 0 to {_LARGEST}")
        classes.append((name, numbers))
    return classes


def read_colors(path):
    """List of ``Class`` from such a file in which every class has a colour."""
    classes = []
    for name, numbers in read_classes(str(path)):
        if len(numbers) != 3 or max(numbers) > 255:
            raise UserError(f"{path}: the class {name!r} has {'no' if not numbers else 'not a'} colour; the masks are "
                            f"RGB, so its line must look like '{name} 200 0 0', with three numbers from 0 to 255")
        if numbers in (entry.color for entry in classes):
            raise UserError(f"{path}: the colour {list(numbers)} stands there twice; a colour is one class")
        classes.append(Class(name, numbers, colors=(numbers,)))
    return classes


def color_of(index):
    """The colour (red, green, blue) of a class that has none: that of VOC's palette."""
    return tuple(sum((index >> 3 * bit + channel & 1) << 7 - bit for bit in range(8)) for channel in range(3))


def lines(classes):
    """The lines of the block ``classes:`` of a spec."""
    result = ["classes:"]
    for entry in classes:
        ids = f", ids: {list(entry.ids)}" if entry.ids else ""
        result.append(f"  - {{name: {quoted(entry.name)}, color: {list(entry.color)}{ids}}}")
    return result


def quoted(text):
    """``text`` for YAML, in quotes where it needs them, be it in brackets or not."""
    for sample in (f"x: {text}", f"{{x: {text}, y: 1}}"):
        try:
            plain = yaml.safe_load(sample)["x"] == text
        except (yaml.YAMLError, KeyError, TypeError, ValueError):
            plain = False
        if not plain:
            return json.dumps(text, ensure_ascii=False)
    return text


# --- as masks hold them -----------------------------------------------------------------------------------------------


def by_value(pixels, areas, palette, given, ignore, folder):
    """The ``Choice`` for masks of values in ``folder``. ``pixels`` is a Counter of the values, ``palette`` a dict value
    -> colour; ``areas`` are the values that fill a square of 2 x 2 pixels in some mask.

    ``given`` are (name, values) of the user's, or (). ``ignore`` is a value, None for none, or "unsaid".
    Raises ``UserError`` where it is not certain which values are classes.
    """
    warnings, numbered = [], any(numbers for _, numbers in given)
    if not numbered:
        _refuse_soft_edges(pixels, areas, folder, "values")
    if ignore == "unsaid":
        ignore = _void(pixels, areas, given, folder)
        if ignore in pixels:
            warnings.append(f"the value {ignore} ({_share(pixels, ignore)} of the pixels) is taken for pixels without "
                            "a label; if it is a class, give --ignore none")
    values = sorted(value for value in pixels if value != ignore)
    if len(values) > 255:
        raise UserError(f"the masks hold {len(values)} values, more than the 255 classes that are possible: they are "
                        "no class numbers (instances, perhaps); give the folder of the class masks")
    if not values:
        raise UserError(f"all pixels of the masks of {folder} have the value {ignore}, which means no label; correct "
                        "the masks, or --ignore")
    if given:
        classes = _named_by_value(values, given, warnings)
    else:
        names = {0: "background", values[-1]: "foreground"} if values in ([0, 1], [0, 255], [0, 65535]) else {}
        dense = _are_numbers(values) and (ignore is None or ignore > values[-1])
        shown = range(max(values[-1] + 1, 2)) if dense else values
        classes = [Class(names.get(value, f"class_{value}"), (), () if dense else (value,)) for value in shown]
        if len(classes) < 2:
            classes.append(Class("other", (), ids=(int(values == [0]),)))
    for index, entry in enumerate(classes):
        entry.color = palette.get(entry.ids[0] if entry.ids else index, color_of(index))
    if len({entry.color for entry in classes}) < len(classes):  # an empty palette, say
        for index, entry in enumerate(classes):
            entry.color = color_of(index)
    if ignore is not None and not any(entry.ids for entry in classes) and ignore < len(classes):
        raise UserError(f"--ignore {ignore} is a class: there are {len(classes)} of them; give --ignore none, or the "
                        "value of pixels without a label")
    class_of = {value: index for index, entry in enumerate(classes) for value in entry.ids or (index,)}
    lost = [value for value in values if value not in class_of]
    if lost:
        warnings.append(f"no class has the values {_listed(pixels, lost)}: their pixels are ignored")
    class_of = {value: class_of.get(value, 255) for value in pixels}
    return Choice(classes, class_of, pixels, warnings, ignore=ignore)


def by_color(pixels, areas, given, ignored, folder):
    """The ``Choice`` for masks of colours. ``pixels`` is a Counter of packed colours, ``areas`` as in ``by_value``.

    ``given`` are (name, (r, g, b)), or names with (), of the user's; ``ignored`` are colours that mean "no label".
    """
    warnings = []
    _refuse_soft_edges(pixels, areas, folder, "colours")
    ignored = [tuple(color) for color in ignored] + [color for color in VOID_COLORS
                                                     if masks.pack(color) in pixels and color not in ignored]
    void = {masks.pack(color) for color in ignored}
    found = [color for color in pixels if color not in void]
    found.sort(key=lambda color: (color != 0, -pixels[color], color))
    if len(found) > 254:
        raise _soft(pixels, folder, "colours")
    if any(numbers for _, numbers in given):
        wrong = next((name for name, numbers in given if len(numbers) != 3 or max(numbers) > 255), None)
        if wrong is not None:
            raise UserError(f"the masks are RGB, but the class {wrong!r} has no colour in --classes; its line must "
                            f"look like '{wrong} 200 0 0'")
        classes = [Class(name, tuple(numbers)) for name, numbers in given]
    elif given and len(given) != len(found):
        raise UserError(f"--classes lists {len(given)} names, but the masks hold {len(found)} colours; give a file "
                        "with lines such as 'weed 200 0 0'")
    else:
        names = [name for name, _ in given] or [f"class_{index}" for index in range(len(found))]
        classes = [Class(name, tuple(masks.unpack(color))) for name, color in zip(names, found)]
        if given:
            warnings.append("the names were given to the colours in the order of the table above; check them")
    if len(classes) < 2:
        classes += [Class(f"other_{index}", color_of(index)) for index in (1, 2)
                    if masks.pack(color_of(index)) not in found]
    class_of = {masks.pack(entry.color): index for index, entry in enumerate(classes)}
    lost = [color for color in found if color not in class_of]
    if lost:
        raise UserError(f"the masks hold the colour {masks.unpack(lost[0])} ({_share(pixels, lost[0])} of the pixels)"
                        + (f" and {len(lost) - 1} more" if lost[1:] else "")
                        + " that --classes does not list; add it, or give it with --ignore, as in --ignore 255,255,255")
    class_of.update(dict.fromkeys(void, 255))
    return Choice(classes, class_of, pixels, warnings, True, 255, ignored)


def _are_numbers(values):
    """Whether these are class numbers: 0, 1, 2, ..., of which masks may lack some."""
    return bool(values) and max(values) < 255 and len(values) >= (max(values) + 1) / 2


def _void(pixels, areas, given, folder):
    """The value of pixels without a label, or None, where that is certain without a word."""
    void = next((value for value in VOID_VALUES if value in pixels), None)
    rest = sorted(value for value in pixels if value != void)
    own = {number for _, numbers in given for number in numbers}
    if void is None or void in own:
        if given or _are_numbers(rest):
            return None if void in own else 255
    elif rest == [0] and len(given) in (0, 2):  # a binary mask
        return None
    elif own or len(given) == len(rest) or given and max(rest, default=0) < len(given):
        return void
    elif len(given) == len(pixels):
        return None
    elif not given and _are_numbers(rest) and set(rest) <= {0, *areas}:
        return void
    raise UserError(f"the masks hold the values {_listed(pixels, sorted(pixels))}, and which are classes is not "
                    f"certain: say that {void or rest[-1]} means no label (--ignore {void or rest[-1]}), or that every "
                    "value is a class (--ignore none), or list the classes with their values (--classes FILE, in lines "
                    f"such as 'thing {void or rest[-1]}')"
                    + (f"; where edges are soft, {nearest(folder)}" if max(pixels) < 256 else ""))


def _refuse_soft_edges(pixels, areas, folder, what):
    edges = [value for value in pixels if value not in areas]
    if len(edges) > max(2, len(pixels) // 2):
        raise _soft(pixels, folder, what)


def _soft(pixels, folder, what):
    return UserError(f"the masks of {folder} hold {len(pixels)} {what}, most of them in single pixels only: their "
                     f"edges are soft, or they were JPEG once; {nearest(folder)}")


def nearest(folder):
    """The command that mends masks with soft edges, for an error."""
    return (f"give each pixel the nearest class: python tools/convert_rgb.py {folder} NEW --colors FILE --tolerance "
            "221 (FILE has lines such as 'thing 255 255 255')")


def _named_by_value(values, given, warnings):
    """Classes with the user's names: by their own values, or as numbers, or value by value in order."""
    if any(numbers for _, numbers in given):
        lacking = next((name for name, numbers in given if not numbers), None)
        if lacking is not None:
            raise UserError(f"--classes gives values for some classes, but none for {lacking!r}; give all or none")
        numbered = all(numbers == (index,) for index, (_, numbers) in enumerate(given))
        return [Class(name, (), ids=() if numbered else tuple(numbers)) for name, numbers in given]
    if max(values, default=0) < len(given):
        return [Class(name, ()) for name, _ in given]
    if len(values) == len(given):
        warnings.append("the names were given to the values in the order of the table above; check them")
        return [Class(name, (), ids=(value,)) for (name, _), value in zip(given, values)]
    raise UserError(f"--classes lists {len(given)} names, but the masks hold {len(values)} values, "
                    f"{', '.join(map(str, values[:12]))}{', ...' if values[12:] else ''}; give a file that says which "
                    "values each class has, in lines such as 'weed 17 18'")


def _suspicions(pixels, class_of, classes):
    found = {index for index in class_of.values() if index != 255}
    if len(found) < 2:
        yield "the masks hold one class only: nothing can be told apart" if found else "the masks hold no class"
    absent = [entry.name for index, entry in enumerate(classes) if index not in found]
    if absent and len(found) > 1:
        yield f"no mask has a pixel of {', '.join(absent)}"
    share = sum(count for value, count in pixels.items() if class_of[value] == 255) / max(sum(pixels.values()), 1)
    if share > 0.5:
        yield f"{100 * share:.1f} % of the pixels of the masks have no label"


def _listed(pixels, values):
    shown = ", ".join(f"{value} ({_share(pixels, value)})" for value in values[:12])
    return shown + (f" and {len(values) - 12} more" if values[12:] else "")


def _share(pixels, value):
    return f"{100 * pixels[value] / sum(pixels.values()):.2f} %"
