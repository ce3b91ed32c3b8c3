"""Files that are whole or not there: every one is written beside its place, flushed, and renamed."""

import contextlib
import errno
import hashlib
import json
import os
from pathlib import Path

from utils.errors import UserError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def replacing(path):
    """Yield a temporary path in the folder of ``path``; on a clean exit flush it and rename it to ``path``.

    On an exception the temporary file is removed and ``path`` stays as it was.
    Raises ``UserError`` when the folder cannot be written or the disk is full.
    """
    path = Path(path)
    # The suffix stays last: image libraries choose the format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(_why_not_written(path, error)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _why_not_written(path, error):
    if error.errno in _NO_ROOM:
        return f"{path} cannot be written: {error.strerror}; make room and start the same command again"
    return f"{path} cannot be written: {error.strerror or error}; check the folder and its permissions"


def write_bytes(path, content):
    """Write ``content`` (bytes) to ``path`` atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path, text):
    """Write ``text`` to ``path`` atomically, UTF-8."""
    write_bytes(path, text.encode())


def write_json(path, value):
    """Write ``value`` to ``path`` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path):
    """The JSON value in ``path``. Raises ``UserError`` when it is missing or broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); it is damaged: delete it and make it again") from error


def sha256(path):
    """Hexadecimal SHA-256 of the file at ``path``."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def make_folder(path):
    """Create the folder ``path`` with its parents and check that a file can be written there."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"the folder {path} cannot be written: {error.strerror or error}; "
                        "choose another one with --output-dir") from error
    return path
