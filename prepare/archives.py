"""Files of a dataset in an archive (tar, packed or not, or zip) or in a folder, and bringing them to their place."""

import fnmatch
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from utils.console import progress_bar
from utils.errors import UserError
from utils.files import sync

LARGEST = 1 << 28  # bytes of one file; those of the datasets have a few million at most
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError)


class Files:
    """The files of ``path`` (an archive or a folder) that match ``patterns``: ``sizes`` maps keys to bytes.

    A pattern such as "JPEGImages/*.jpg" gives the last components of a file's path, and they are its key; a folder is
    searched at the relative ``places``, and of an archive what lies in a folder called ``within`` counts. An archive is
    listed to its end, so that one that is cut off is found before anything is written. Raises ``UserError`` when
    ``path`` is missing or damaged, or has no file for the first pattern.
    """

    def __init__(self, path, patterns, places=(".",), within=""):
        self.path, self.folder, self._within = Path(path).expanduser(), None, f"/{within}/"
        self.sizes, self._members, self._texts = {}, {}, {}
        if self.path.is_dir():
            self.folder = next((folder for folder in map(self.path.joinpath, places)
                                if any(folder.glob(patterns[0]))), self.path)
            for pattern in patterns:
                for file in sorted(self.folder.glob(pattern)):
                    name = file.relative_to(self.folder).as_posix()
                    self._add(f"{self._within}{name}", [pattern], file.stat().st_size, file)
        elif self.path.is_file():
            self._list(patterns)
        else:
            raise UserError(f"{self.path} does not exist; give the archive or the folder that it was unpacked to")
        if not any(fnmatch.fnmatchcase(key, patterns[0]) for key in self.sizes):
            raise UserError(f"{self.path} holds no {patterns[0]}; give the official archive, or the folder it was "
                            "unpacked to")

    def where(self, key):
        """How to name a file in an error."""
        return f"{key} in {self.path}" if self.folder is None else str(self.folder / key)

    def text(self, key):
        """The content of a small file in bytes. Raises ``UserError`` when it is not there."""
        self.check_there([key])
        return self._texts[key] if self.folder is None else self._members[key].read_bytes()

    def check_there(self, keys):
        """Raise ``UserError`` when some of ``keys`` are lacking, with their number and the first."""
        lacking = [key for key in keys if key not in self.sizes]
        if lacking:
            raise UserError(f"{len(lacking)} of {len(keys)} files that are needed are missing, the first is "
                            f"{self.where(lacking[0])}; download or unpack it again")

    def missing(self, keys, folder):
        """Those of ``keys`` that are not in ``folder`` with the size that they have here, in order."""
        return [key for key in keys
                if not (path := Path(folder, key)).is_file() or path.stat().st_size != self.sizes[key]]

    def unpack(self, keys, folder):
        """Bring those of ``keys`` that are ``missing`` in ``folder`` there. Returns how many."""
        missing = self.missing(keys, folder)
        for key in missing:
            Path(folder, key).parent.mkdir(parents=True, exist_ok=True)
        for _ in progress_bar(f"unpacking {self.path.name}", "file", len(missing))(self._extract(missing, folder)):
            pass
        sync()
        return len(missing)

    def _add(self, name, patterns, size, member):
        parts = PurePosixPath(name).parts
        for pattern in patterns:
            key = "/".join(parts[-1 - pattern.count("/"):])
            if self._within in f"//{name}" and not parts[-1].startswith(".") and fnmatch.fnmatchcase(key, pattern):
                if key in self.sizes or size > LARGEST:
                    how = "twice" if key in self.sizes else "with too many bytes"
                    raise UserError(f"{self.path} holds {key!r} {how}; "
                                    "get the official archive")
                self.sizes[key], self._members[key] = size, member
                return key
        return None

    def _list(self, patterns):
        try:
            if zipfile.is_zipfile(self.path):
                with zipfile.ZipFile(self.path) as archive:
                    for info in archive.infolist():
                        key = self._add(info.filename, patterns, info.file_size, info)
                        if key and key.endswith(".txt"):
                            self._texts[key] = archive.read(info)
                return
            with tarfile.open(self.path) as archive:
                for member in archive:
                    key = self._add(member.name, patterns, member.size, member) if member.isreg() else None
                    if key and key.endswith(".txt"):  # a packed archive is slow to read again
                        self._texts[key] = archive.extractfile(member).read()
                while archive.fileobj.read(1 << 20):  # the checksum of a packed archive stands at its very end
                    pass
        except _DAMAGE as error:
            raise self._damaged(error) from error

    def _extract(self, keys, folder):
        """Write the files, under their keys and nothing else. One that a killed process left differs in size."""
        key = None
        try:
            if self.folder is not None:
                for key in keys:
                    yield shutil.copyfile(self._members[key], Path(folder, key))
            elif zipfile.is_zipfile(self.path):
                with zipfile.ZipFile(self.path) as archive:
                    for key in keys:
                        self._members[key].filename = key
                        yield archive.extract(self._members[key], folder)
            else:
                names = {self._members[key].name: key for key in keys}
                with tarfile.open(self.path) as archive:
                    for member in archive:  # in its own order: a packed archive cannot be searched
                        if member.name in names:
                            key = member.name = names[member.name]
                            yield archive.extract(member, folder, filter="data")
        except _DAMAGE as error:
            if key is not None:  # its bytes may be wrong ones
                Path(folder, key).unlink(missing_ok=True)
            if isinstance(error, OSError) and error.filename:
                raise UserError(f"{error.filename} cannot be written or read: {error.strerror}; make room, or check "
                                "its permissions") from error
            raise self._damaged(error) from error

    def _damaged(self, error):
        return UserError(f"the archive {self.path} is damaged or not whole ({error}); nothing more was unpacked: "
                         "download it again")
