"""Finds space groups of many crystals on all cores, with a cache."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from pymatgen.core import Structure
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from crystal_jax.storage.content_cache import Cache
from crystal_jax.storage.worker_pool import map_in_order
from crystal_jax.structures import Entry, Sample, parse
from crystal_jax.suppress_warnings import quiet

PRECISION = 0.1  # Å; the value the Materials Project uses
CACHE = "spacegroups_1"  # increase the number when the precision changes
SHOWN = 12  # space groups shown in the comparison


@quiet()
def spacegroup(structure: Structure) -> int | None:
    """Returns the number of the space group, or None if spglib finds none."""
    try:
        return SpacegroupAnalyzer(structure, symprec=PRECISION).get_space_group_number()
    except Exception:  # spglib's error types change between versions; a missing number is not a failure
        return None


def spacegroups(samples: Sequence[Sample], *, workers: int | None = None) -> list[int | None]:
    """Returns the space group of every sample with a structure."""
    cifs = [sample.cif for sample in samples if sample.structure]
    cache = Cache(CACHE)
    try:
        known = cache.get(cifs)
        missing = [cif for cif in dict.fromkeys(cifs) if cif not in known]
        results = map_in_order(_of_text, missing, workers=workers, lost=lambda _: b"0")
        fresh = dict(zip(missing, results, strict=True))
        cache.put(fresh)
    finally:
        cache.close()
    found = known | fresh
    return [int(found[cif]) or None for cif in cifs]


def comparison(samples: Sequence[int | None], reference: Sequence[int | None]) -> dict[str, Any]:
    """Returns counts of the most frequent space groups in both sets, the sizes of the sets, and their counts of P1."""
    counts = {name: Counter(x for x in some if x) for name, some in (("samples", samples), ("reference", reference))}
    sizes = {name: sum(of.values()) for name, of in counts.items()}
    shares: dict[int, float] = defaultdict(float)
    for name, of in counts.items():
        for number, count in of.items():
            shares[number] += count / sizes[name]
    shown = sorted(shares, key=lambda number: (-shares[number], number))[:SHOWN]
    return {
        "numbers": shown,
        **{name: [of[number] for number in shown] for name, of in counts.items()},
        "sizes": sizes,
        "p1": {name: of[1] for name, of in counts.items()},
    }


def _of_text(cif: str) -> bytes:
    structure = parse(Entry("", cif)).structure
    return str((structure and spacegroup(structure)) or 0).encode()
