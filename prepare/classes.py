"""The classes of a dataset: as a person writes them down, and as masks hold them.

Taken without being told is only what is certain: values that count 0, 1, 2, ..., with 255 for "no label"; 0 and 255
alone; exact colours. Everything else is refused with the values, their shares, and the options that say what is meant.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from data import masks
from utils.errors import UserError

VOID_VALUES = (255, 65535)  # what masks of 8 and 16 bits use for "no label" as a rule
_BACKGROUNDS = ("background", "_background_", "bg", "hintergrund")
_LINE = re.compile(r"(?P<name>.*?)[\s:=,]+(?P<numbers>\d+(?:[\s,]+\d+)*)")
_CVAT = re.compile(r"(?P<name>[^:]*):(?P<numbers>\d+,\d+,\d+)?:[^:]*:[^:]*")  # label:color_rgb:parts:actions
_LARGEST = 65535


class Class(NamedTuple):
    """A class of a spec; ``ids`` are its mask values, empty where they are the class numbers."""

    name: str
    color: tuple
    ids: tuple = ()


@dataclass
class Choice:
    """``class_of`` maps mask values, or packed colours, to classes, 255 where ignored. Masks hold colours where
    ``ignore_colors`` is a list, else values, of which ``ignore`` (or None) means "no label"."""

    classes: list
    class_of: dict
    ignore: int | None = 255
    ignore_colors: list | None = None

    @property
    def background(self):
        """The name of the class that is called so, or "none"."""
        return next((entry.name for entry in self.classes if entry.name.lower() in _BACKGROUNDS), "none")


def read_classes(text):
    """List of (name, numbers) from "soil,crop,weed" or from a file of that name with one class a line.

    A line is a name, and behind it numbers, if masks need them: values ("weed 17 18") or one colour ("weed 200 0 0");
    or it is one of CVAT's labelmap.txt. Blank lines and those that begin with # are skipped. Raises ``UserError``
    naming the line.
    """
    path = Path(text)
    if path.is_file():
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read as UTF-8 text ({error})") from error
        entries = [(f"{path}, line {number}", line.strip()) for number, line in enumerate(lines, 1)
                   if line.strip() and not line.lstrip().startswith("#")]
    elif "," in text:
        entries = [(f"--classes, name {number}", part.strip()) for number, part in enumerate(text.split(","), 1)]
    else:
        raise UserError(f"{text}: there is no such file of classes; give a file with one class a line, or the names "
                        "with commas between, as in soil,crop,weed")
    classes = {}
    for where, entry in entries:
        match = path.is_file() and (_CVAT.fullmatch(entry) or _LINE.fullmatch(entry))
        name = (match["name"] if match else entry).strip()
        numbers = tuple(int(number) for number in re.findall(r"\d+", match["numbers"] or "")) if match else ()
        if not name or not name.isprintable() or path.is_file() and re.search(r"[:;\t{}\[\]\"]|^(\d+\b|[-*] )", name):
            raise UserError(f"{where}: {entry[:80]!r} is not understood; a line looks like 'weed', 'weed 17' or "
                            "'weed 200 0 0', the name first, in letters of this locale")
        if name in classes:
            raise UserError(f"{where}: the class {name!r} stands there twice; delete one")
        if max(numbers, default=0) > _LARGEST:
            raise UserError(f"{where}: {max(numbers)} is no mask value; they go from 0 to {_LARGEST}")
        classes[name] = numbers
    if not classes:
        raise UserError(f"{path} lists no class; give a file with one class a line")
    return list(classes.items())


def colors_of(classes, source):
    """List of ``Class`` from what ``read_classes`` gives, of which each must have a colour. Raises ``UserError``."""
    result = []
    for name, numbers in classes:
        if len(numbers) != 3 or max(numbers) > 255:
            raise UserError(f"{source}: the class {name!r} has no colour; the masks are RGB, so its line must look "
                            f"like '{name} 200 0 0', with three numbers from 0 to 255")
        if numbers in (entry.color for entry in result):
            raise UserError(f"{source}: the colour {list(numbers)} stands there twice; a colour is one class")
        result.append(Class(name, numbers))
    return result


def color_of(index):
    """The colour (red, green, blue) of a class that has none: that of VOC's palette."""
    return tuple(sum((index >> 3 * bit + channel & 1) << 7 - bit for bit in range(8)) for channel in range(3))


def read_color(text, option):
    """The colour (r, g, b) of an option's ``text``, as in 255,255,255. Raises ``UserError``."""
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) <= 255 for part in parts):
        raise UserError(f"{option} {text}: the masks are RGB, so give colours, as in 255,255,255")
    return tuple(int(part) for part in parts)


def by_value(pixels, areas, palette, given, ignore, folder, warnings):
    """The ``Choice`` for masks of values in ``folder``. ``pixels`` is a Counter of the values, ``palette`` a dict value
    -> colour; ``areas`` are the values that fill a square of 2 x 2 pixels in some mask.

    ``given`` are (name, values) of the user's, or (). ``ignore`` is a value, None for none, or "unsaid". What looks
    wrong is added to ``warnings``. Raises ``UserError`` where it is not certain which values are classes.
    """
    numbered = any(numbers for _, numbers in given)
    if not numbered:
        _refuse_soft_edges(pixels, areas, folder, "values")
    if ignore == "unsaid":
        ignore = _void(pixels, areas, given, folder)
        if ignore in pixels:
            warnings.append(f"the value {ignore} ({_share(pixels, ignore)} of the pixels) is taken for pixels without "
                            "a label; if it is a class, give --ignore none")
    values = sorted(value for value in pixels if value != ignore)
    if not 0 < len(values) < 256:
        raise UserError(f"the masks of {folder} hold {len(values)} values beside the one that means no label: all is "
                        "without a label (correct --ignore), or these are no class numbers (give the class masks)")
    lacking = next((name for name, numbers in given if numbered and not numbers), None)
    if lacking is not None:
        raise UserError(f"--classes gives values for some classes, but none for {lacking!r}; give all or none")
    if numbered:
        found = given
    elif given and values[-1] < len(given):
        found = [(name, (index,)) for index, (name, _) in enumerate(given)]
    elif len(given) == len(values):
        warnings.append("the names were given to the values in the order of the table above; check them")
        found = [(name, (value,)) for (name, _), value in zip(given, values)]
    elif given:
        raise UserError(f"--classes lists {len(given)} names, but the masks hold {len(values)} values, "
                        f"{', '.join(map(str, values[:12]))}{', ...' if values[12:] else ''}; give a file that says "
                        "which values each class has, in lines such as 'weed 17 18'")
    else:
        names = {0: "background", values[-1]: "foreground"} if values in ([0, 1], [0, 255], [0, 65535]) else {}
        dense = _are_numbers(values) and (ignore is None or ignore > values[-1])
        found = [(names.get(value, f"class_{value}"), (value,))
                 for value in (range(values[-1] + 1) if dense else values)]
    class_of = {}
    for index, (name, ids) in enumerate(found):
        for value in ids:
            if value in class_of:
                raise UserError(f"--classes gives the mask value {value} to {found[class_of[value]][0]!r} and to "
                                f"{name!r}; a value stands once (these masks hold values, no colours)")
            class_of[value] = index
    if ignore in class_of:
        raise UserError(f"--ignore {ignore} is the class {found[class_of[ignore]][0]!r}, too; correct one of them")
    if lost := [value for value in values if value not in class_of]:
        warnings.append(f"no class has the values {_listed(pixels, lost)}: their pixels are ignored")
    plain = not lost and all(ids == (index,) for index, (_, ids) in enumerate(found))
    colors = [palette.get(ids[0], color_of(index)) for index, (_, ids) in enumerate(found)]
    if len({*colors}) < len(colors):  # an empty palette, say
        colors = [color_of(index) for index in range(len(found))]
    classes = [Class(name, color, () if plain else ids) for (name, ids), color in zip(found, colors)]
    return Choice(classes, {value: class_of.get(value, 255) for value in pixels}, ignore)


def by_color(pixels, areas, given, ignored, folder):
    """The ``Choice`` for masks of colours. ``pixels`` is a Counter of packed colours, ``areas`` as in ``by_value``.

    ``given`` are (name, (r, g, b)) of the user's, or (); ``ignored`` are colours that mean "no label".
    """
    _refuse_soft_edges(pixels, areas, folder, "colours")
    if masks.pack(masks.CREAM) in pixels and masks.CREAM not in ignored:
        ignored = [*ignored, masks.CREAM]
    void = {masks.pack(color) for color in ignored}
    found = sorted(pixels.keys() - void, key=lambda color: (color != 0, -pixels[color], color))
    classes = colors_of(given, "--classes") or [Class(f"class_{index}", tuple(masks.unpack(color)))
                                                for index, color in enumerate(found)]
    class_of = {masks.pack(entry.color): index for index, entry in enumerate(classes)}
    if lost := [color for color in found if color not in class_of]:
        raise UserError(f"the masks hold the colour {masks.unpack(lost[0])} ({_share(pixels, lost[0])} of the pixels)"
                        + (f" and {len(lost) - 1} more" if lost[1:] else "")
                        + " that --classes does not list; add it, or give it with --ignore, as in --ignore 255,255,255")
    return Choice(classes, {**class_of, **dict.fromkeys(void, 255)}, ignore_colors=ignored)


def _are_numbers(values):
    """Whether these are class numbers: 0, 1, 2, ..., of which masks may lack some."""
    return max(values, default=255) < 255 and len(values) >= (max(values) + 1) / 2


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
        raise UserError(f"the masks of {folder} hold {len(pixels)} {what}, most of them in single pixels only: their "
                        f"edges are soft, or they were JPEG once; {nearest(folder)}")


def nearest(folder):
    """The command that mends masks with soft edges, for an error."""
    return (f"give each pixel the nearest class: python -m tools.convert_rgb {folder} NEW --colors FILE --tolerance "
            "221 (FILE has lines such as 'thing 255 255 255')")


def _listed(pixels, values):
    shown = ", ".join(f"{value} ({_share(pixels, value)})" for value in values[:12])
    return shown + (f" and {len(values) - 12} more" if values[12:] else "")


def _share(pixels, value):
    return f"{100 * pixels[value] / pixels.total():.2f} %"
