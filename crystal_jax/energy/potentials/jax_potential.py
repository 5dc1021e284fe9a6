"""Potentials written in JAX: energies, forces and stresses of a padded batch of crystals."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from crystal_jax.energy.potentials.graph import AnyArray, Graph


class AtomicEnergies(Protocol):
    """Function that computes the energy of each atom in eV from the vectors of the bonds in Å."""

    def __call__(self, params: Any, graph: Graph, vectors: Float[Array, "e 3"]) -> Float[Array, " a"]:
        """Computes the energies."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Potential:
    """Interatomic potential in JAX.

    Attributes:
        name: name of the model, with its version.
        corrected: whether the MP2020 corrections are already part of its energies.
        elements: atomic numbers of the elements that the model covers.
        cutoff: longest bond that contributes, Å.
        params: parameters, as a tree of arrays.
        energies: function of the parameters, the graph and the vectors of the bonds. Bonds that are as long as the
            cut-off or longer contribute nothing.
        references: energy of each atom by atomic number in eV, added to the network's. They are added in float64 on
            the host, because they are far larger than the differences that matter.
    """

    name: str
    corrected: bool
    elements: frozenset[int]
    cutoff: float
    params: Any
    energies: AtomicEnergies
    references: Float[np.ndarray, " z"]


class Evaluated(NamedTuple):
    """Energies without references in eV, forces in eV/Å, and virials ∂E/∂ε in eV: the stress times the volume."""

    energies: Float[Array, " c"]
    forces: Float[Array, "a 3"]
    virials: Float[Array, "c 3 3"]


def evaluate(
    energies: AtomicEnergies,
    params: Any,
    graph: Graph,
    positions: Float[AnyArray, "a 3"],
    lattices: Float[AnyArray, "c 3 3"],
) -> Evaluated:
    """Computes energies, forces and virials by one reverse pass.

    Args:
        energies: see `Potential.energies`.
        params: see `Potential.params`.
        graph: the atoms and bonds.
        positions: Cartesian coordinates, Å.
        lattices: lattice vectors as rows, Å.
    """
    num_atoms, num_crystals = len(positions), len(lattices)
    crystal = jnp.asarray(graph.crystal)[graph.source]
    shift = jnp.einsum("en,enx->ex", graph.shift.astype(positions.dtype), lattices[crystal])
    vectors = positions[graph.target] - positions[graph.source] + shift

    def total(vectors: Float[Array, "e 3"]) -> tuple[Float[Array, ""], Float[Array, " a"]]:
        atomic = energies(params, graph, vectors)
        return atomic.sum(), atomic

    # By default, accelerators multiply in fewer bits, which is too coarse for energies.
    with jax.default_matmul_precision("highest"):
        (_, atomic), gradient = jax.value_and_grad(total, has_aux=True)(vectors)
    pulled = jax.ops.segment_sum(gradient, graph.source, num_atoms, indices_are_sorted=True)
    pushed = jax.ops.segment_sum(gradient, graph.target, num_atoms)
    outer = (vectors[:, :, None] * gradient[:, None, :]).reshape(-1, 9)
    virials = jax.ops.segment_sum(outer, crystal, num_crystals, indices_are_sorted=True).reshape(-1, 3, 3)
    return Evaluated(
        energies=jax.ops.segment_sum(atomic, graph.crystal, num_crystals, indices_are_sorted=True),
        forces=pulled - pushed,
        virials=0.5 * (virials + virials.swapaxes(1, 2)),
    )
