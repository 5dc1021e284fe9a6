"""Parses entries into samples."""

from __future__ import annotations

from crystal_jax.structures.entry import Entry, Sample
from crystal_jax.structures.formats.cif import read_cif, write_cif


def parse(entry: Entry) -> Sample:
    """Builds the structure of an entry; any problem with its CIF becomes the sample's `failure`."""
    if not entry.cif.strip():
        return failed(entry, entry.fault or "no CIF: the sample forms no cell")
    try:
        read = read_cif(entry.cif, formula=entry.formula, strict=False)
    except ValueError as error:
        return failed(entry, str(error))
    cif = write_cif(read.structure) if read.expanded else entry.cif
    return Sample(entry.name, cif, read.structure, read.structure.composition, None, read.remark)


def failed(entry: Entry, reason: str) -> Sample:
    """Returns the sample of an entry that cannot be read."""
    return Sample(entry.name, entry.cif, None, entry.stated_composition(), reason)


def died(entry: Entry) -> Sample:
    """Returns the sample of an entry whose process died while reading it."""
    return failed(entry, "the process that read it died")
