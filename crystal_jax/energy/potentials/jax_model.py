"""Energy model made of a potential in JAX: predictions of batches by one compiled program a bucket."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from crystal_jax.energy.model import Cell, Prediction
from crystal_jax.energy.potentials.graph import Bucket, Neighbours, choose_bucket, find_neighbours, pack
from crystal_jax.energy.potentials.jax_potential import Potential, evaluate
from crystal_jax.program_cache import ProgramCache

BATCH_ATOMS = {"cpu": 128}  # by platform; on CPUs larger batches are slower, because they leave the processor's cache
DEFAULT_BATCH_ATOMS = 8192
_BONDS_PER_ATOM = 20  # room for bonds. Most crystals have more, so bonds fill a batch, and they take its time
_SMALLER = (9, 3, 1)  # a full batch over the size of each bucket; the smaller ones are for few crystals
_LEAST = (16, 768, 4)  # atoms, bonds and crystals of a bucket, at least


class JaxModel:
    """Energy model made of a potential in JAX; implements the protocol `EnergyModel`.

    Args:
        potential: the potential.
    """

    def __init__(self, potential: Potential):
        self.potential = potential
        self.name, self.corrected, self.elements = potential.name, potential.corrected, potential.elements
        self.params = jax.device_put(potential.params)
        self.dtype = np.dtype(jax.tree.leaves(potential.params)[0].dtype).type

    def program_cache(self, mesh: Mesh, **settings: Any) -> ProgramCache:
        """Returns the cache of compiled programs of this potential."""
        return ProgramCache(mesh, {"potential": self.name, "dtype": np.dtype(self.dtype).name, **settings})

    def predict(self, cells: Sequence[Cell]) -> list[Prediction]:
        """Predicts crystals in batches; see `EnergyModel`. A crystal without bonds has the energy of its isolated
        atoms.
        """
        listed = [find_neighbours(cell, self.potential.cutoff) for cell in cells]
        sizes = [(len(cell.numbers), len(neighbours.source)) for cell, neighbours in zip(cells, listed, strict=True)]
        sizes_of_batches = buckets(None, jax.local_devices()[0].platform)
        found: dict[int, Prediction] = {}
        while waiting := [i for i in range(len(cells)) if i not in found]:
            bucket, batches = choose_bucket([sizes[i] for i in waiting], sizes_of_batches)
            chosen = [i for i, batch in zip(waiting, batches, strict=True) if batch is not None]
            predictions = self._predict_batch([cells[i] for i in chosen], [listed[i] for i in chosen], bucket)
            found |= dict(zip(chosen, predictions, strict=True))
        return [found[i] for i in range(len(cells))]

    def _predict_batch(self, cells: Sequence[Cell], listed: Sequence[Neighbours], bucket: Bucket) -> list[Prediction]:
        sizes = [len(cell.numbers) for cell in cells]
        positions = np.zeros((bucket.atoms, 3), self.dtype)
        lattices = np.tile(10 * np.eye(3, dtype=self.dtype), (bucket.crystals, 1, 1))
        positions[: sum(sizes)] = np.concatenate([cell.positions for cell in cells])
        lattices[: len(cells)] = [cell.lattice for cell in cells]
        graph = pack([cell.numbers for cell in cells], listed, bucket)
        result = jax.device_get(self._program(bucket)(self.params, graph, positions, lattices))
        split = np.split(result.forces.astype(np.float64), np.cumsum(sizes))
        return [
            Prediction(
                energy=float(result.energies[row]) + float(self.potential.references[cell.numbers].sum()),
                forces=split[row],
                stress=result.virials[row].astype(np.float64) / cell.volume,
            )
            for row, cell in enumerate(cells)
        ]

    @functools.cache  # noqa: B019 - a model lives as long as its process
    def _program(self, bucket: Bucket) -> Any:
        mesh = Mesh(np.array(jax.local_devices()[:1]), ("batch",))
        jitted = jax.jit(functools.partial(evaluate, self.potential.energies))
        return self.program_cache(mesh).program(f"energies of {bucket.atoms} atoms", jitted)


def buckets(batch_atoms: int | None, platform: str) -> tuple[Bucket, ...]:
    """Returns the sizes of batches, ascending: smaller ones for few crystals, and one for full batches.

    Args:
        batch_atoms: number of atoms of a full batch; by default what suits the platform.
        platform: JAX's name of the kind of device.
    """
    atoms = batch_atoms or BATCH_ATOMS.get(platform, DEFAULT_BATCH_ATOMS)
    full = (atoms, atoms * _BONDS_PER_ATOM, atoms // 4)
    sizes = [[max(size // share, least) for size, least in zip(full, _LEAST, strict=True)] for share in _SMALLER]
    return tuple(sorted({Bucket(*each) for each in sizes}))
