"""Iterates over the files of a folder or of an archive; archives are not unpacked to disk."""

from __future__ import annotations

import dataclasses
import gzip
import io
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from crystal_jax.errors import UserError
from crystal_jax.tables import check_is_file, read_bytes

MAX_FILES = 500_000
MAX_FILE = 64 * 2**20  # bytes of a crystal file, decompressed
MAX_TOTAL = 2**30  # bytes of all files of an archive, decompressed
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_JUNK = {".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX"}  # written by file managers
_DAMAGE = (OSError, EOFError, ValueError, RuntimeError, zlib.error, tarfile.TarError, zipfile.BadZipFile)


@dataclasses.dataclass(frozen=True)
class Member:
    """File of a folder or of an archive.

    Attributes:
        path: path below the folder or within the archive; it must not be opened.
        read: function that returns the file's bytes, decompressed if the name ends in `.gz`.
        is_file: whether it is a regular file; links, pipes and devices are not read.
    """

    path: PurePosixPath
    read: Callable[[], bytes]
    is_file: bool = True


def is_archive(path: Path) -> bool:
    """Whether a file name is an archive's."""
    return path.name.lower().endswith(ARCHIVES)


def members(path: Path) -> Iterator[Member]:
    """Yields the files of a folder or of an archive, including nested ones; in a folder, ordered by path.

    Files written by file managers (`._NAME`, `__MACOSX`) are skipped.

    Raises:
        UserError: the path cannot be read, or has too many files or bytes.
    """
    found = _in_folder(path) if path.is_dir() else _in_archive(path)
    for number, member in enumerate(found):
        if number >= MAX_FILES:
            raise UserError(f"{path} holds more than {MAX_FILES:,} files; give a folder of crystals")
        if not _is_junk(member.path):
            yield member


def _is_junk(path: PurePosixPath) -> bool:
    return any(part in _JUNK or part.startswith("._") for part in path.parts)


def _in_folder(folder: Path) -> Iterator[Member]:
    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}")

    found: list[Path] = []
    for root, folders, files in os.walk(folder, onerror=refuse):
        linked = [name for name in folders if (Path(root) / name).is_symlink()]  # not followed: links can form cycles
        found += [Path(root) / name for name in (*files, *linked)]
        if len(found) > MAX_FILES:
            break
    for path in sorted(found):
        relative = PurePosixPath(*path.relative_to(folder).parts)
        yield Member(relative, partial(read_bytes, path, limit=MAX_FILE), is_file=_is_regular(path))


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:  # a broken link
        return False


def _in_archive(path: Path) -> Iterator[Member]:
    check_is_file(path)
    try:
        yield from _in_zip(path) if path.name.lower().endswith(".zip") else _in_tar(path)
    except _DAMAGE as error:
        raise UserError(f"{path} cannot be read ({error}); copy or download it again") from error


def _in_zip(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        total = 0
        for info in archive.infolist():
            total = _total(total, info.file_size, path)
            if not info.is_dir():
                yield Member(PurePosixPath(info.filename), _reader(path, info.filename, partial(archive.open, info)))


def _in_tar(path: Path) -> Iterator[Member]:
    with tarfile.open(path) as archive:
        total = 0
        for info in archive:
            total = _total(total, info.size, path)
            if not info.isdir():
                read = _reader(path, info.name, partial(archive.extractfile, info))
                yield Member(PurePosixPath(info.name), read, is_file=info.isreg())


def _total(before: int, size: int, path: Path) -> int:
    if before + size > MAX_TOTAL:
        raise UserError(f"{path} holds more than {MAX_TOTAL:,} bytes, unpacked; give a folder of its files")
    return before + size


def _reader(path: Path, name: str, open_member: Callable[[], IO[bytes] | None]) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            with open_member() or io.BytesIO() as file:
                content = file.read(MAX_FILE + 1)
            if name.lower().endswith(".gz"):
                content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(MAX_FILE + 1)
        except _DAMAGE as error:
            raise UserError(f"{path}: {name} cannot be read ({error}); copy or download it again") from error
        if len(content) > MAX_FILE:
            raise UserError(f"{path}: {name} has more than {MAX_FILE:,} bytes")
        return content

    return read
