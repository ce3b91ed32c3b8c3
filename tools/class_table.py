"""Classes as a person writes them down: read from a comma list or a file, written as the block of a spec."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from utils.errors import UserError

_LINE = re.compile(r"(?P<name>.*?)[\s:=,]+(?P<numbers>\d+(?:[\s,]+\d+)*)")
_LARGEST = 65535


@dataclass
class Class:
    """A class of a spec: ``ids`` are its mask values, ``colors`` its mask colours; empty where nothing need be said."""

    name: str
    color: tuple
    ids: tuple = ()
    colors: tuple = ()


def read_classes(text):
    """List of (name, numbers) from "soil,crop,weed" or from a file of that name with one class a line.

    A line is a name, and behind it numbers, if masks need them: values ("weed 17 18") or one colour ("weed 200 0 0").
    Blank lines and those that begin with # are skipped. Raises ``UserError`` naming the line.
    """
    path = Path(text)
    if not path.is_file():
        if "," not in text:
            raise UserError(f"--classes {text}: there is no such file; give a file with one class a line, or the names "
                            "with commas between, as in soil,crop,weed")
        entries = [(f"--classes, name {number}", part) for number, part in enumerate(text.split(","), 1)]
    else:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read as UTF-8 text ({getattr(error, 'strerror', None) or error})"
                            "") from error
        entries = [(f"{path}, line {number}", line) for number, line in enumerate(lines, 1)
                   if line.strip() and not line.lstrip().startswith("#")]
    classes = []
    for where, entry in entries:
        match = _LINE.fullmatch(entry.strip()) if path.is_file() else None
        name = (match["name"] if match else entry).strip()
        numbers = tuple(int(number) for number in re.findall(r"\d+", match["numbers"])) if match else ()
        if not name or not name.isprintable():
            raise UserError(f"{where}: {entry.strip()[:80]!r} has no name; a line looks like 'weed', 'weed 17' or "
                            "'weed 200 0 0'")
        if name in (known for known, _ in classes):
            raise UserError(f"{where}: the class {name!r} stands there twice; delete one")
        if max(numbers, default=0) > _LARGEST:
            raise UserError(f"{where}: {max(numbers)} is no mask value; they go from 0 to {_LARGEST}")
        classes.append((name, numbers))
    return classes


def color_of(index):
    """The colour (red, green, blue) of a class that has none: that of VOC's palette."""
    return tuple(sum((index >> 3 * bit + channel & 1) << 7 - bit for bit in range(8)) for channel in range(3))


def lines(classes):
    """The lines of the block ``classes:`` of a spec."""
    result = ["classes:"]
    for entry in classes:
        line = f"  - {{name: {quoted(entry.name)}, color: {list(entry.color)}"
        if entry.ids:
            line += f", ids: {list(entry.ids)}"
        if entry.colors and tuple(entry.colors) != (tuple(entry.color),):
            line += f", colors: {[list(color) for color in entry.colors]}"
        result.append(line + "}")
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
