"""Files of JSON lines that survive a crash: a line is whole, or it is noticed and left out."""

import json
import zlib
from pathlib import Path

from utils.errors import UserError


def append(path, values):
    """Append the dict ``values`` as one line; ``crc`` at its end is the CRC-32 of the line without it."""
    line = json.dumps(values)
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(f'{line[:-1]}, "crc": {zlib.crc32(line.encode())}}}\n')
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def read(path):
    """(number from 1, text, values) of every line of ``path``; values is None for a damaged line. No file: no lines."""
    path = Path(path)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return [(number, line, _values(line)) for number, line in enumerate(lines, 1)]


def _values(line):
    try:
        values = json.loads(line)
        crc = values.pop("crc")
        return values if crc == zlib.crc32(json.dumps(values).encode()) and isinstance(values["step"], int) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
