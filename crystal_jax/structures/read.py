"""Reads crystals from files of any kind as CIF text, for samples, references, targets and training sets.

`read_entries` collects CIF texts, which is fast; `parse` builds a structure from one, in milliseconds.

    .csv, .csv.gz                a crystal per row, as CIF or as the dictionary of a pymatgen structure
    .cif                         each data_ block with a crystal
    POSCAR, CONTCAR, .vasp       VASP
    .extxyz, .xyz                each frame
    .json                        pymatgen's structures
    .pt                          tensors of CDVAE, DiffCSP, FlowMM
    a folder, .zip, .tar[.gz]    all of these except tables and tensors, nested ones too; or a folder's only table
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pymatgen.core import Structure

from crystal_jax import arguments
from crystal_jax.errors import UserError
from crystal_jax.structures import bundle
from crystal_jax.structures.build import entry_of_structure
from crystal_jax.structures.entry import Entry
from crystal_jax.structures.formats.cif import blocks
from crystal_jax.structures.formats.csv_table import entries_of_table
from crystal_jax.structures.formats.extxyz import read_extxyz
from crystal_jax.structures.formats.plain_json import read_json
from crystal_jax.structures.formats.poscar import is_poscar, read_poscar
from crystal_jax.structures.formats.tensors import read_tensors
from crystal_jax.tables import check_is_file, parse_rows, read_bytes

KINDS = ".csv, .cif, POSCAR, .vasp, .extxyz, .xyz or .json file (or .gz of one), a .pt file, a .zip or .tar.gz archive"
_DATASET = "dataset_info.json"  # in the folder of each version of a prepared data set
_SHOWN = 3  # names shown in a message


@dataclasses.dataclass(frozen=True)
class Collected:
    """Crystals found at a path.

    Attributes:
        entries: the crystals, with unique names.
        not_read: files of a folder or of an archive that are not crystals.
        table: the CSV table that contains the crystals, if there is one.
    """

    entries: list[Entry]
    not_read: list[str] = dataclasses.field(default_factory=list)
    table: Path | None = None

    def name_what_is_not_read(self, path: Path) -> None:
        """Prints a line on stderr that names the skipped files."""
        if self.not_read:
            shown = ", ".join(self.not_read[:_SHOWN]) + (", ..." if len(self.not_read) > _SHOWN else "")
            files = "file is" if len(self.not_read) == 1 else "files are"
            print(f"{path}: {len(self.not_read)} {files} no crystals: {shown}", file=sys.stderr)


def entries_of(source: str | Path | Sequence[Structure], *, name: str) -> list[Entry]:
    """Returns the crystals of a path, or structures in memory, named by their numbers.

    Args:
        source: a path that `read_entries` reads, or structures.
        name: name of the argument, for error messages.

    Raises:
        UserError: the path holds no crystals, or something in memory is not a structure.
    """
    if not isinstance(source, Sequence) or isinstance(source, str):
        return read_entries(arguments.path(name, source))
    for i, structure in enumerate(source):
        if not isinstance(structure, Structure):
            raise UserError(f"{name}[{i}] is {type(structure).__name__}; give a path or pymatgen's structures")
    return [entry_of_structure(structure, name=f"{i:06d}") for i, structure in enumerate(source)]


def read_entries(path: Path) -> list[Entry]:
    """Reads the crystals of a file, a folder or an archive; skipped files of a folder are named on stderr.

    Raises:
        UserError: the path is missing, of another kind, or has no crystals.
    """
    found = collect(path)
    found.name_what_is_not_read(path)
    return found.entries


def collect(path: Path) -> Collected:
    """Reads the crystals of a file, a folder or an archive, without messages; see `read_entries`."""
    if _is_there(path) and (path.is_dir() or bundle.is_archive(path)):
        return _of_bundle(path)
    return Collected(_named(_of_file(path)), table=path if _is_table(path.name) else None)


def read_reference(reference: str, *, default_split: str) -> list[Entry]:
    """Reads reference crystals: any path that `read_entries` reads, or a prepared data set as `DIR` or `DIR:split`.

    Raises:
        UserError: see `read_entries`; or the data set has no such split.
    """
    path = Path(reference)
    there = _is_there(path)
    if there and not _is_prepared(path):
        return read_entries(path)
    directory, _, split = (reference, "", "") if there else reference.rpartition(":")
    if not directory or not Path(directory).is_dir():
        raise UserError(f"{reference}: no such reference; give a {KINDS}, a folder of them, or a data set as DIR:split")

    from crystal_jax.data import mp20  # imported here, because only this case needs TensorFlow Datasets

    records = mp20.open_split(Path(directory), split or default_split)
    return [Entry(record.material_id, record.cif, formula=record.formula) for record in records]


def decode(content: bytes) -> str:
    """Decodes UTF-8, or UTF-16 if there is a byte order mark; invalid bytes become replacement characters."""
    marked = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    return content.decode("utf-16" if marked else "utf-8-sig", errors="replace")


def clean_name(name: str) -> str:
    """Returns a name on one line that can be encoded as UTF-8."""
    return re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]+", " ", name.encode("utf-8", "replace").decode())


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # the name is too long, or a folder may not be read
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _is_prepared(path: Path) -> bool:
    return path.is_dir() and ((path / _DATASET).is_file() or any(path.glob(f"*/{_DATASET}")))


def _of_file(path: Path) -> list[Entry]:
    if not _is_there(path):
        raise UserError(f"{path}: no such file or folder of crystals")
    lower = path.name.lower()
    if lower.endswith(".pt"):
        check_is_file(path)
        return read_tensors(path)
    if _is_table(path.name):
        return entries_of_table(parse_rows(read_bytes(path), name=str(path)), name=str(path))
    check_is_file(path)
    if not _is_read(path.name):
        raise UserError(f"{path}: crystals are read from a {KINDS}, or a folder of crystal files")
    content = read_bytes(path)
    return _of_content(content, PurePosixPath(path.name), where=str(path), single=True)


def _of_bundle(path: Path) -> Collected:
    entries: list[Entry] = []
    not_read: list[str] = []
    for member in bundle.members(path):
        name = clean_name(str(member.path))
        if not member.is_file or not _is_read(member.path.name):
            not_read.append(name)
            continue
        content = member.read()
        try:
            entries += _of_content(content, member.path, where=name)
        except UserError as error:
            if member.path.name.lower().removesuffix(".gz").endswith(".json"):  # JSON of another kind
                not_read.append(name)
            else:
                stem = _stem(member.path)
                entries.append(Entry(stem, "", fault=str(error).removeprefix(f"{name}: "), where=name))
    if path.is_dir() and entries and (path / "samples.csv").is_file():
        raise UserError(
            f"{path} holds samples.csv beside crystal files; give {path / 'samples.csv'}, which has them all"
        )
    tables = [name for name in not_read if _is_table(name)]
    if not entries and len(tables) == 1 and path.is_dir():
        not_read.remove(tables[0])
        return Collected(_named(_of_file(path / tables[0])), not_read, path / tables[0])
    if not entries:
        held = f"only {', '.join(not_read[:_SHOWN])}" if not_read else "nothing"
        raise UserError(f"{path} holds no crystal files (*.cif, POSCAR, *.vasp, *.extxyz, *.json), {held}")
    return Collected(_unique(entries), not_read)


def _is_table(name: str) -> bool:
    return name.lower().endswith((".csv", ".csv.gz"))


def _is_read(name: str) -> bool:
    lower = name.lower().removesuffix(".gz")
    return lower.endswith((".cif", ".extxyz", ".xyz", ".json")) or is_poscar(lower)


def _of_content(content: bytes, path: PurePosixPath, *, where: str, single: bool = False) -> list[Entry]:
    """Returns the crystals of a file, according to its name; with `single`, they keep the names in the file."""
    lower = path.name.lower().removesuffix(".gz")
    text, stem = decode(content), _stem(path)
    if lower.endswith(".cif"):
        found = blocks(text)
        names = [stem] if len(found) == 1 else [f"{stem}_{name}" if name else stem for name, _ in found]
        return [Entry(name, cif, where=where) for name, (_, cif) in zip(names, found, strict=True)]
    if is_poscar(lower):
        return [dataclasses.replace(read_poscar(text, name=stem), where=where)]
    entries = (read_extxyz if lower.endswith("xyz") else read_json)(text, name=where)
    if single and len(entries) > 1:
        return [dataclasses.replace(entry, where=f"{where}, crystal {i}") for i, entry in enumerate(entries, start=1)]
    return [
        dataclasses.replace(entry, name=entry.name or (stem if len(entries) == 1 else f"{stem}_{i}"), where=where)
        for i, entry in enumerate(entries)
    ]


def _stem(path: PurePosixPath) -> str:
    """Returns a name for a file's crystal: its path without suffixes, in one word."""
    name = re.sub(r"\.(cif|vasp|poscar|extxyz|xyz|json)$", "", re.sub(r"(?i)\.gz$", "", path.name), flags=re.IGNORECASE)
    parts = [part for part in (*path.parts[:-1], name) if part not in ("", "/", ".", "..")]
    return clean_name("_".join(parts)) or "crystal"


def _named(entries: list[Entry]) -> list[Entry]:
    """Names entries as in their file if all names are present and unique; otherwise numbers them."""
    names = [clean_name(entry.name) for entry in entries]
    if not all(names):
        names = [f"{i:06d}" for i in range(len(entries))]
    return _unique([dataclasses.replace(entry, name=name) for entry, name in zip(entries, names, strict=True)])


def _unique(entries: Sequence[Entry]) -> list[Entry]:
    """Makes names unique: the second entry of a name becomes NAME_2, and so on."""
    times: Counter[str] = Counter()
    taken = {entry.name for entry in entries}
    found = []
    for entry in entries:
        times[entry.name] += 1
        name = entry.name
        while times[entry.name] > 1 and name in taken:
            name = f"{entry.name}_{times[entry.name]}"
            times[entry.name] += name in taken
        taken.add(name)
        found.append(entry if name == entry.name else dataclasses.replace(entry, name=name))
    return found
