"""Which classes a spec should have, judged by the values or colours that masks hold. What is guessed is said."""

from dataclasses import dataclass, field

from data import masks
from tools.class_table import Class, color_of
from utils.errors import UserError

VOID_VALUES = (255, 65535)  # what masks of 8 and 16 bits use for "no label" as a rule
VOID_COLORS = ((224, 224, 192),)  # VOC's cream
_BACKGROUNDS = ("background", "_background_", "bg", "back ground", "hintergrund")
_MANY = 64
_EDGE = 0.1  # share of the pixels below which white lines may be the edges of objects


@dataclass
class Choice:
    """``class_of`` maps mask values, or packed colours, to classes, 255 where they are ignored.

    ``warnings`` are lines.
    """

    classes: list
    class_of: dict
    by_color: bool = False
    ignore: int | None = 255
    ignore_colors: list = field(default_factory=list)
    background: int | None = None
    warnings: list = field(default_factory=list)


def by_value(pixels, palette, given=(), ignore="guess"):
    """The ``Choice`` for masks of values. ``pixels`` is a Counter of them, ``palette`` a dict value -> colour.

    ``given`` are (name, values) of the user's, or (). ``ignore`` is a value, None for none, or "guess".
    """
    warnings = []
    binary = set(pixels) - {0} <= set(VOID_VALUES) and len(pixels) == 2
    if ignore == "guess":
        void = [value for value in VOID_VALUES if value in pixels]
        ignore = None if binary else void[0] if void else 255
        if void and not binary:
            warnings.append(f"the value {ignore} ({_share(pixels, ignore)} of the pixels) is taken for pixels without "
                            "a label; if it is a class, give --ignore none")
    values = sorted(value for value in pixels if value != ignore)
    if len(values) > 255:
        raise UserError(f"the masks hold {len(values)} values, more than the 255 classes that are possible: they are "
                        "no class numbers (instances, perhaps, or JPEG); give the folder of the class masks")
    classes = _named_by_value(values, given) if given else _unnamed(values, binary)
    for index, entry in enumerate(classes):
        own = entry.ids or (index,)
        entry.color = palette.get(own[0], color_of(index))
    if len({entry.color for entry in classes}) < len(classes):  # an empty palette, say
        for index, entry in enumerate(classes):
            entry.color = color_of(index)
    if ignore is not None and not any(entry.ids for entry in classes) and ignore < len(classes):
        raise UserError(f"--ignore {ignore} is a class: there are {len(classes)} of them; give --ignore none, or the "
                        "value of pixels without a label")
    class_of = {value: index for index, entry in enumerate(classes) for value in entry.ids or (index,)}
    lost = [value for value in values if value not in class_of]
    if lost:
        warnings.append(f"no class has the values {', '.join(map(str, lost[:12]))}{', ...' if lost[12:] else ''}: "
                        "their pixels are ignored")
    class_of = {value: class_of.get(value, 255) for value in pixels}
    warnings += _suspicions(pixels, class_of, classes)
    if max(values, default=0) > 254 and not binary:
        warnings.append(f"values up to {max(values)} are more than 254; they are listed as ids of their classes")
    return Choice(classes, class_of, ignore=ignore, background=_background(classes), warnings=warnings)


def by_color(pixels, given=(), ignored=()):
    """The ``Choice`` for masks of colours. ``pixels`` is a Counter of packed colours.

    ``given`` are (name, (r, g, b)), or names with (), of the user's; ``ignored`` are colours that mean "no label".
    """
    warnings = []
    ignored = [tuple(color) for color in ignored] + [color for color in VOID_COLORS
                                                     if masks.pack(color) in pixels and color not in ignored]
    void = {masks.pack(color) for color in ignored}
    found = [color for color in pixels if color not in void]
    found.sort(key=lambda color: (color != 0, -pixels[color], color))
    if len(found) > 254:
        raise UserError(f"the masks hold {len(found)} colours, more than the 254 classes that are possible: they are "
                        "blurred, or JPEG; tools/convert_rgb.py --tolerance takes the nearest colour of a class")
    if len(found) > _MANY:
        warnings.append(f"{len(found)} colours are many; if edges are blurred or masks are JPEG, convert them with "
                        "tools/convert_rgb.py --tolerance first")
    classes = _named_by_color(found, given) if given else [
        Class(f"class_{index}", tuple(masks.unpack(color))) for index, color in enumerate(found)]
    if given and not any(numbers for _, numbers in given):
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
    white = masks.pack((255, 255, 255))
    if white in found and white != found[0] and pixels[white] < _EDGE * sum(pixels.values()) and len(found) > 2:
        warnings.append(f"the colour [255, 255, 255] ({_share(pixels, white)} of the pixels) may mean 'no label'; if "
                        "so, give --ignore 255,255,255")
    warnings += _suspicions(pixels, class_of, classes)
    return Choice(classes, class_of, True, 255, ignored, _background(classes), warnings)


def _unnamed(values, binary):
    """Classes without names: the values themselves where they are (nearly) 0, 1, 2, ..., else with ids."""
    two = binary or values == [0, 1]
    names = ["background", "foreground"] if two else None
    highest = max(values, default=0)
    if not binary and len(values) >= (highest + 1) / 2 and highest < 255:
        count = max(highest + 1, 2)
        return [Class(names[index] if names else f"class_{index}", ()) for index in range(count)]
    classes = [Class(names[index] if names else f"class_{value}", (), ids=(value,))
               for index, value in enumerate(values)]
    return classes if len(classes) > 1 else [*classes, Class("other", (), ids=(int(values[0] == 0),))]


def _named_by_value(values, given):
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
        return [Class(name, (), ids=(value,)) for (name, _), value in zip(given, values)]
    raise UserError(f"--classes lists {len(given)} names, but the masks hold {len(values)} values, "
                    f"{', '.join(map(str, values[:12]))}{', ...' if values[12:] else ''}; give a file that says which "
                    "values each class has, in lines such as 'weed 17 18'")


def _named_by_color(found, given):
    if any(numbers for _, numbers in given):
        wrong = next((name for name, numbers in given if len(numbers) != 3 or max(numbers) > 255), None)
        if wrong is not None:
            raise UserError(f"the masks are RGB, but the class {wrong!r} has no colour in --classes; its line must "
                            f"look like '{wrong} 200 0 0'")
        return [Class(name, tuple(numbers)) for name, numbers in given]
    if len(given) != len(found):
        raise UserError(f"--classes lists {len(given)} names, but the masks hold {len(found)} colours; give a file "
                        "with lines such as 'weed 200 0 0'")
    return [Class(name, tuple(masks.unpack(color))) for (name, _), color in zip(given, found)]


def _background(classes):
    return next((index for index, entry in enumerate(classes) if entry.name.lower() in _BACKGROUNDS), None)


def _suspicions(pixels, class_of, classes):
    found = {index for index in class_of.values() if index != 255}
    if len(found) < 2:
        yield "the masks hold one class only: nothing can be told apart" if found else "the masks hold no class"
    absent = [entry.name for index, entry in enumerate(classes) if index not in found]
    if absent and len(found) > 1:
        yield f"no mask has a pixel of {', '.join(absent)}"
    ignored = [value for value, index in class_of.items() if index == 255]
    share = sum(pixels[value] for value in ignored) / max(sum(pixels.values()), 1)
    if share > 0.5:
        yield f"{100 * share:.1f} % of the pixels of the masks have no label"


def _share(pixels, value):
    return f"{100 * pixels[value] / sum(pixels.values()):.2f} %"
