"""Computes fingerprints of structures (61 numbers) and compositions (132 numbers), with a cache.

A structure's fingerprint takes some 10 ms per atom. It is computed on all cores and cached by CIF text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from tqdm import tqdm

from crystal_jax.evaluate.fingerprints import coordination
from crystal_jax.evaluate.fingerprints.coordination import NoFingerprint, structure_fingerprint
from crystal_jax.evaluate.fingerprints.magpie import composition_fingerprints
from crystal_jax.storage.content_cache import Cache
from crystal_jax.storage.worker_pool import map_in_order
from crystal_jax.structures import Entry, Sample, parse

CACHE = "structure_fingerprints_2"  # increase the number when `coordination` or `order_parameters` change their results
_SAVE_EVERY = 100  # crystals


@dataclasses.dataclass(frozen=True)
class Fingerprints:
    """Fingerprints of the n crystals that have both.

    Attributes:
        structure: (n, 61), not scaled.
        composition: (n, 132), scaled.
        places: index of each crystal in the input.
        failures: reason by input index, for each crystal without fingerprints.
    """

    structure: np.ndarray
    composition: np.ndarray
    places: np.ndarray
    failures: dict[int, str]

    def __len__(self) -> int:
        """Returns the number of crystals with fingerprints."""
        return len(self.places)

    def at(self, places: Iterable[int]) -> Fingerprints:
        """Selects the crystals with these input indices, repeats included; indices without fingerprints are skipped."""
        rows = {int(place): row for row, place in enumerate(self.places)}
        keep = [rows[place] for place in places if place in rows]
        return Fingerprints(self.structure[keep], self.composition[keep], self.places[keep], self.failures)


def fingerprints(
    samples: Sequence[Sample], *, what: str = "fingerprints", progress: bool = False, workers: int | None = None
) -> Fingerprints:
    """Computes fingerprints of all samples with a structure; `failures` names the others and those that fail."""
    failures = {i: sample.failure or "no structure" for i, sample in enumerate(samples) if sample.structure is None}
    found = _structure_fingerprints(
        [sample.cif for sample in samples if sample.structure], what=what, progress=progress, workers=workers
    )
    places, rows, compositions = [], [], []
    for i, sample in enumerate(samples):
        if sample.structure is None:
            continue
        result = found[sample.cif]
        if isinstance(result, str):
            failures[i] = f"no fingerprint: {result}"
            continue
        places.append(i)
        rows.append(result)
        compositions.append(sample.structure.composition.get_el_amt_dict())
    return Fingerprints(
        structure=np.array(rows).reshape(-1, coordination.LENGTH),
        composition=composition_fingerprints(compositions),
        places=np.array(places, int),
        failures=failures,
    )


def _structure_fingerprints(
    cifs: Sequence[str], *, what: str, progress: bool, workers: int | None
) -> dict[str, np.ndarray | str]:
    """Returns, for each CIF text, its fingerprint or the reason why it has none."""
    cache = Cache(CACHE)
    try:
        known = cache.get(cifs)
        missing = [cif for cif in dict.fromkeys(cifs) if cif not in known]
        fresh: dict[str, bytes] = {}
        results = map_in_order(_compute, missing, workers=workers, lost=_lost)
        bar = tqdm(results, what, total=len(missing), unit="crystal", disable=not progress)
        try:
            for cif, result in zip(missing, bar, strict=True):
                fresh[cif] = result
                if len(fresh) >= _SAVE_EVERY:
                    cache.put(fresh)
                    known, fresh = known | fresh, {}
        finally:  # keep computed results even after an error
            cache.put(fresh)
        return {cif: _read(value) for cif, value in (known | fresh).items()}
    finally:
        cache.close()


def _lost(cif: str) -> bytes:
    return b"!the process that computed it died"


def _compute(cif: str) -> bytes:
    """Returns the value for the cache: the encoded numbers, or a reason."""
    sample = parse(Entry("", cif))
    try:
        if sample.structure is None:
            raise NoFingerprint(sample.failure or "no structure")
        return b"=" + structure_fingerprint(sample.structure).astype("<f8").tobytes()
    except NoFingerprint as reason:
        return b"!" + str(reason).encode()


def _read(value: bytes) -> np.ndarray | str:
    return np.frombuffer(value[1:], "<f8").copy() if value[:1] == b"=" else value[1:].decode()
