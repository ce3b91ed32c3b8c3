"""Files that are whole or not there: every one is written beside its place, flushed, and renamed.

What is read from one is checked with ``fits``, and compared with ``difference``.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
from pathlib import Path

from utils.errors import UserError, not_written


@contextlib.contextmanager
def replacing(path, durable=True):
    """Yield a temporary path in the folder of ``path``; on a clean exit flush it and rename it to ``path``.

    With ``durable`` false the disk may take its time: for many small files that ``os.sync`` flushes together.
    On an exception the temporary file is removed and ``path`` stays as it was.
    Raises ``UserError`` when the folder cannot be written or the disk is full.
    """
    path = Path(path)
    # The suffix stays last: image libraries choose the format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable:
            _flush(temporary)
        os.replace(temporary, path)
        if durable:
            _flush(path.parent)  # the new name, too, has to survive a power cut
    except OSError as error:
        raise UserError(not_written(path, error)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _flush(path):
    """Write a file, or what a folder lists, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path, content, durable=True):
    """Write ``content`` (bytes) to ``path`` atomically; ``durable`` as in ``replacing``."""
    with replacing(path, durable) as temporary:
        temporary.write_bytes(content)


def write_text(path, text):
    """Write ``text`` to ``path`` atomically, UTF-8."""
    write_bytes(path, text.encode())


def write_json(path, value):
    """Write ``value`` to ``path`` as indented JSON, atomically."""
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def read_json(path):
    """The JSON value in ``path``. Raises ``UserError`` when it is missing or broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); it is damaged: delete it and make it again") from error


def fits(value, kind):
    """Whether ``value``, as YAML or JSON gives it, is of ``kind``.

    A kind is ``str`` (a text of one line), ``float`` (a finite number), ``dict`` (any), a range (a whole number in it),
    a list (of one kind: a list of such values, not empty; else: a list of values of these kinds), a tuple (one of these
    kinds), or the value itself.
    """
    if isinstance(kind, tuple):
        return any(fits(value, one) for one in kind)
    if isinstance(kind, list):
        return isinstance(value, (list, tuple)) and bool(value) == bool(kind) and (
            len(kind) in (1, len(value)) and all(map(fits, value, kind * len(value) if len(kind) == 1 else kind)))
    if isinstance(kind, range):
        return type(value) is int and value in kind
    if kind is str:
        return isinstance(value, str) and value.isprintable() and bool(value.strip())
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    if kind is dict:
        return isinstance(value, dict)
    return type(value) is type(kind) and value == kind


def difference(before, now, name=""):
    """In words, the first difference between two nested dicts of plain values, or None when they are equal."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*now, *(key for key in before if key not in now)]:
            found = difference(before.get(key), now.get(key), key)
            if found:
                return found
        return None
    return None if before == now else f"{name.replace('_', ' ')} was {before}, now it is {now}"


def sha256(path):
    """Hexadecimal SHA-256 of the file at ``path``."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def remove_left_overs(folder, name="*"):
    """Delete the temporary files that killed processes left in ``folder`` for files called ``name`` (a pattern).

    ``name`` may begin with ``**/`` to look in the folders beneath, too.
    """
    *parents, name = name.split("/")
    for path in Path(folder).glob("/".join([*parents, f".{name}.*.tmp*"])):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path, what, wait=False):
    """Hold the lock file ``path`` while inside. Raises ``UserError`` when another process holds it, or waits for it.

    The system frees the lock when its process ends, however it ends, so there are no stale locks.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8")
    except OSError as error:
        raise UserError(not_written(path, error)) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise UserError(f"{what} is in use by {owner}; wait for it to end, or stop it, or choose "
                            "another --output-dir or --exp-name") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        yield


def make_folder(path, option="--output-dir"):
    """Create the folder ``path`` with its parents and check that a file can be written there; ``option`` names it."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"the folder {path} cannot be written: {error.strerror or error}; "
                        f"choose another one with {option}") from error
    return path
