"""The files of a dataset in an archive (tar, packed or not, or zip) or in its unpacked folder, and unpacking them.

An archive is read to its end before anything is written: what is damaged, cut off or hostile is refused as a whole.
Only files that a pattern asks for are ever written, under names of our own making, each beside its place and renamed.
"""

import fnmatch
import functools
import os
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

from utils.console import progress_bar
from utils.errors import UserError
from utils.files import sync, write_bytes

LARGEST = 1 << 28  # bytes of one file; those of the datasets have a few million at most


def open_files(path, patterns, places=(".",)):
    """The files at ``path`` (an archive or a folder) that match ``patterns``, as ``ArchiveFiles`` or ``FolderFiles``.

    A pattern such as "JPEGImages/*.jpg" gives the last components of a file's path; what stands before them, such as
    VOCdevkit/VOC2012, must be the same for all. A folder is searched for it at ``places`` (relative paths).
    Raises ``UserError`` when ``path`` is missing, damaged or hostile or holds none of the files.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return FolderFiles(path, patterns, places)
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the archive or the folder that it was unpacked to")
    return ArchiveFiles(path, patterns)


class FolderFiles:
    """Files in a folder. ``sizes``: dict from key, the path that matches a pattern, to bytes."""

    def __init__(self, path, patterns, places):
        self.path = path
        folders = [path / place for place in places]
        data = _without_lists(patterns)
        self.folder = next((folder for folder in folders if any(_matching(folder, data))), None)
        if self.folder is None:
            raise UserError(f"the folder {path} has no {' or '.join(data)}; give the folder that has, or the archive")
        try:
            self.sizes = {key: os.path.getsize(self.folder / key) for key in _matching(self.folder, patterns)}
        except OSError as error:
            raise _unreadable(error, self.folder) from error

    def where(self, key):
        """How to name the file in an error."""
        return str(self.folder / key)

    def contents(self, keys):
        """Yield (key, content in bytes) for each of ``keys``."""
        for key in keys:
            try:
                yield key, (self.folder / key).read_bytes()
            except OSError as error:
                raise _unreadable(error, self.folder / key) from error

    def text(self, key):
        """The content of a small file in bytes. Raises ``UserError`` when it is not there."""
        _check_there(self, key)
        return next(self.contents([key]))[1]


class ArchiveFiles:
    """Files in an archive. ``sizes``: dict from key, the part of a member's name that matches a pattern, to bytes."""

    folder = None  # nothing lies unpacked

    def __init__(self, path, patterns):
        self.path = path
        found = {}  # what stands before the key -> {key: (member's name, bytes)}
        self._texts = {}
        self._members = _members_of(path)
        for name, size, read in self._members(path):
            prefix, key = _matched(name, patterns)
            if key is None:
                continue
            if size > LARGEST:
                raise UserError(f"the archive {path} claims {size} bytes for {_shown(name)}, more than any file of the "
                                "dataset has; download it again")
            if key in found.setdefault(prefix, {}):
                raise UserError(f"the archive {path} holds {_shown(name)} twice; download it again")
            found[prefix][key] = name, size
            if key.endswith(".txt"):  # lists decide what else is needed, and a packed archive is slow to read again
                self._texts[prefix, key] = read()
        self._prefix = self._chosen(found, patterns)
        self._names = {name: key for key, (name, _) in found[self._prefix].items()}
        self.sizes = {key: size for key, (_, size) in found[self._prefix].items()}

    def _chosen(self, found, patterns):
        data = _without_lists(patterns)
        chosen = [prefix for prefix, files in found.items() if any(_matched(key, data)[1] for key in files)]
        if not chosen:
            raise UserError(f"the archive {self.path} holds no {' or '.join(data)}; it is another archive, or cut off")
        if len(chosen) > 1:
            raise UserError(f"the archive {self.path} holds two datasets, {_shown(chosen[0])} and {_shown(chosen[1])}; "
                            "unpack it and give the folder of one")
        return chosen[0]

    def where(self, key):
        """How to name the file in an error."""
        return f"{self._prefix}{key} in {self.path}"

    def contents(self, keys):
        """Yield (key, content in bytes) for each of ``keys``, in the archive's order."""
        wanted = set(keys)
        if not wanted:
            return
        for name, size, read in self._members(self.path):
            key = self._names.get(name)
            if key not in wanted:
                continue
            content = read()
            if len(content) != size:
                raise _damaged(self.path, f"{_shown(name)} is cut off")
            yield key, content
            wanted.discard(key)
            if not wanted:
                return

    def text(self, key):
        """The content of a .txt file in bytes. Raises ``UserError`` when it is not there."""
        _check_there(self, key)
        return self._texts[self._prefix, key]


def unpack(files, keys, root, what):
    """Write the files ``keys`` below ``root``, those left out that are there with their size. Returns how many."""
    missing = missing_files(files, keys, root)
    for key, content in progress_bar(f"unpacking {what}", "file", len(missing))(files.contents(missing)):
        write_bytes(Path(root, key), content, durable=False)
    if missing:
        sync()
    return len(missing)


def missing_files(files, keys, root):
    """Those of ``keys`` that are not below ``root`` with the size that they have in ``files``, in order."""
    return [key for key in keys if _size_of(os.path.join(root, key)) != files.sizes[key]]


def check_all_there(files, keys):
    """Raise ``UserError`` when ``files`` lacks some of ``keys``, with their number and the first."""
    lacking = [key for key in keys if key not in files.sizes]
    if lacking:
        raise UserError(f"{len(lacking)} of {len(keys)} files that the lists name are missing, the first is "
                        f"{files.where(lacking[0])}; download or unpack it again")


def _check_there(files, key):
    if key not in files.sizes:
        raise UserError(f"{files.where(key)} is missing; download or unpack it again")


def _without_lists(patterns):
    return [pattern for pattern in patterns if not pattern.endswith(".txt")]


# --- folders ----------------------------------------------------------------------------------------------------------


def _matching(folder, patterns):
    """Keys of the files in ``folder`` that match, sorted."""
    for pattern in patterns:
        for path in sorted(folder.glob(pattern)):
            if not path.name.startswith("."):
                yield path.relative_to(folder).as_posix()


def _unreadable(error, path):
    return UserError(f"{error.filename or path} cannot be read: {error.strerror or error}; check its permissions")


def _size_of(path):
    try:
        return os.path.getsize(path)
    except OSError:
        return None


# --- archives ---------------------------------------------------------------------------------------------------------


def _members_of(path):
    """The function that lists the members of the archive: it yields (name, bytes, function that reads them)."""
    try:
        with tarfile.open(path):
            return _tar_members
    except OSError as error:
        raise _unreadable(error, path) from error
    except Exception as error:
        if zipfile.is_zipfile(path):
            return _zip_members
        raise _damaged(path, "it is neither tar nor zip") from error


def _tar_members(path):
    nowhere = os.path.join(os.path.abspath(path), "unpacked")  # where no link of the machine can stand
    with _Guard(path), tarfile.open(path, tarinfo=_Member) as tar:
        for member in tar:
            _check_name(path, member.name)
            if not member.isreg() and not member.isdir():  # links and devices; the name above says it all of the others
                try:
                    tarfile.data_filter(member, nowhere)
                except tarfile.FilterError as error:
                    raise _hostile(path, member.name) from error
            if member.isreg():
                yield member.name, member.size, functools.partial(_read_tar, path, tar, member)
        while tar.fileobj.read(1 << 20):  # the checksum of a packed archive stands at its very end
            pass


def _zip_members(path):
    with _Guard(path), zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            _check_name(path, info.filename)
            if not info.is_dir():
                yield info.filename, info.file_size, functools.partial(_read_zip, path, archive, info)


def _read_tar(path, tar, member):
    with _Guard(path):
        return tar.extractfile(member).read()


def _read_zip(path, archive, info):
    with _Guard(path):
        return archive.read(info)


class _Member(tarfile.TarInfo):
    """A member's header. Python's reader takes a damaged one behind the first for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive):
        """The next header. Raises ``tarfile.ReadError`` for a damaged one, wherever it stands."""
        try:
            return super().fromtarfile(archive)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:
            raise tarfile.ReadError(f"{error} at byte {archive.offset}") from error


class _Guard:
    """Whatever a reader of archives raises on damaged bytes becomes a ``UserError``."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, Exception) and not isinstance(error, UserError):
            raise _damaged(self.path, error) from error


def _check_name(path, name):
    if name.startswith("/") or ".." in name.split("/") or "\\" in name:
        raise _hostile(path, name)


def _matched(name, patterns):
    """(what stands before the key, key) of the first pattern that the end of ``name`` matches, else (None, None)."""
    parts = PurePosixPath(name).parts
    for pattern in patterns:
        depth = pattern.count("/") + 1
        key = "/".join(parts[-depth:])
        if len(parts) >= depth and not parts[-1].startswith(".") and fnmatch.fnmatchcase(key, pattern):
            return "".join(f"{part}/" for part in parts[:-depth]), key
    return None, None


def _damaged(path, why):
    return UserError(f"the archive {path} is damaged or not whole ({why}); download it again")


def _hostile(path, name):
    return UserError(f"the archive {path} holds {_shown(name)}, which leads out of the folder it is unpacked to or is "
                     "no plain file; nothing was unpacked: download the official archive")


def _shown(name):
    return repr(name if len(name) <= 80 else name[:77] + "...")
