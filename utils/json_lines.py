"""Files of JSON lines that survive a crash: a line that was cut off is noticed and left out."""

import json
from pathlib import Path

from utils.errors import UserError


def append(path, values):
    """Append the dict ``values`` as one line."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
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
        return values if isinstance(values["step"], int) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
