"""FIRE, the optimizer of relaxations, for all crystals of a batch at once.

Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006), with ASE's constants, applied to positions and deformation gradient
as in ASE's `UnitCellFilter`. Each crystal has its own velocities, time step and step count, so its path does not depend
on the others of its batch.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from crystal_jax.energy.potentials.graph import AnyArray

# FIRE's constants; names follow the paper where it has names.
_DT, _DT_MAX, _MAX_MOVE = 0.1, 1.0, 0.2  # time steps, in ASE's unit; largest move per step, Å (norm)
_N_MIN, _F_INC, _F_DEC, _ALPHA, _F_ALPHA = 5, 1.1, 0.5, 0.1, 0.99

# Limits that a relaxation towards a minimum never crosses.
VOLUME_RATIO = 5.0  # between current and initial cell volume
LEAST_VOLUME = 2.0  # Å^3/atom; the densest real crystals have 3 to 5
LOWEST_ENERGY = -25.0  # eV/atom; the lowest energy of an element is about -15


class Code(enum.IntEnum):
    """State of a relaxation, as a number that fits into an array."""

    ACTIVE = 0
    STALE = 1  # atoms moved so far that its bonds must be found again
    CONVERGED = 2
    STEPS = 3
    NOT_FINITE = 4
    TOO_LOW = 5
    NOT_FINITE_POSITIONS = 6
    TOO_DENSE = 7
    VOLUME = 8


class FireState(NamedTuple):
    """Relaxations in progress.

    Attributes:
        positions: Coordinates in the frame of the initial cell, Å.
        deformation: Deformation gradient of the cell, times the number of atoms, so that its rows move as atoms do.
        velocity: Velocities of `positions`.
        cell_velocity: Velocities of `deformation`.
        dt: Time steps.
        alpha: Shares of the velocity along the forces.
        num_downhill: Steps since the power was last not positive.
        steps: Steps taken.
        code: `Code` of each crystal.
        energy: Energy of the last evaluation without the elements' references, eV.
        first_energy: Energy of the first evaluation.
    """

    positions: Float[AnyArray, "a 3"]
    deformation: Float[AnyArray, "c 3 3"]
    velocity: Float[AnyArray, "a 3"]
    cell_velocity: Float[AnyArray, "c 3 3"]
    dt: Float[AnyArray, " c"]
    alpha: Float[AnyArray, " c"]
    num_downhill: Int[AnyArray, " c"]
    steps: Int[AnyArray, " c"]
    code: Int[AnyArray, " c"]
    energy: Float[AnyArray, " c"]
    first_energy: Float[AnyArray, " c"]


class Crystals(NamedTuple):
    """Constants of the relaxation of a batch.

    Attributes:
        crystal: Crystal of each atom, sorted.
        num_atoms: Number of atoms.
        lattice: Initial lattice vectors as rows, Å.
        reference: Sum of the elements' reference energies, eV.
    """

    crystal: Int[AnyArray, " a"]
    num_atoms: Float[AnyArray, " c"]
    lattice: Float[AnyArray, "c 3 3"]
    reference: Float[AnyArray, " c"]


class Limits(NamedTuple):
    """`RelaxSettings.fmax` and `.max_steps`."""

    fmax: Float[AnyArray, ""]
    max_steps: Int[AnyArray, ""]


def begin(positions: Float[np.ndarray, "a 3"]) -> FireState:
    """Returns the state of one crystal before its first step, as NumPy arrays."""
    count = len(positions)
    return FireState(
        positions=np.array(positions, np.float64),
        deformation=count * np.eye(3)[None],
        velocity=np.zeros_like(positions, np.float64),
        cell_velocity=np.zeros((1, 3, 3)),
        dt=np.full(1, _DT),
        alpha=np.full(1, _ALPHA),
        num_downhill=np.zeros(1, np.int32),
        steps=np.zeros(1, np.int32),
        code=np.full(1, Code.ACTIVE, np.int32),
        energy=np.full(1, np.nan),
        first_energy=np.full(1, np.nan),
    )


def geometry(state: FireState, crystals: Crystals) -> tuple[Float[Array, "a 3"], Float[AnyArray, "c 3 3"]]:
    """Returns Cartesian coordinates and lattice vectors, Å."""
    deformation = state.deformation / crystals.num_atoms[:, None, None]
    positions = jnp.einsum("ax,ayx->ay", state.positions, deformation[crystals.crystal])
    return positions, jnp.einsum("cnx,cyx->cny", crystals.lattice, deformation)


def advance(
    state: FireState,
    crystals: Crystals,
    energy: Float[AnyArray, " c"],
    forces: Float[AnyArray, "a 3"],
    virial: Float[AnyArray, "c 3 3"],
    limits: Limits,
) -> FireState:
    """Decides, from the evaluation of the present geometry, which active crystals end, and moves the others.

    Args:
        state: The relaxations.
        crystals: The crystals.
        energy: Energies without the elements' references, eV.
        forces: Forces, eV/Å.
        virial: Stress times volume, eV.
        limits: When relaxations end.
    """
    deformation = state.deformation / crystals.num_atoms[:, None, None]
    on_atoms = jnp.einsum("ax,axy->ay", forces, deformation[crystals.crystal])
    on_cell = -_solve_transposed(deformation, virial) / crystals.num_atoms[:, None, None]
    largest = jnp.maximum(
        _per_crystal_max(jnp.sum(on_atoms**2, axis=1), crystals), jnp.max(jnp.sum(on_cell**2, axis=2), axis=1)
    )
    finite = jnp.isfinite(energy) & jnp.isfinite(largest) & jnp.isfinite(virial).all(axis=(1, 2))
    code = jnp.select(
        [
            ~finite,
            energy + crystals.reference < LOWEST_ENERGY * crystals.num_atoms,
            largest < limits.fmax**2,
            state.steps >= limits.max_steps,
        ],
        [Code.NOT_FINITE, Code.TOO_LOW, Code.CONVERGED, Code.STEPS],
        Code.ACTIVE,
    ).astype(state.code.dtype)
    active = state.code == Code.ACTIVE
    evaluated = state._replace(
        code=jnp.where(active, code, state.code),
        energy=jnp.where(active & finite, energy, state.energy),
        first_energy=jnp.where(active & finite & jnp.isnan(state.first_energy), energy, state.first_energy),
    )
    moved = _move(evaluated, crystals, on_atoms, on_cell)
    going = evaluated.code == Code.ACTIVE
    moved = moved._replace(code=jnp.where(going, _impossible(moved, crystals), evaluated.code))
    return _choose(going, crystals.crystal, moved, evaluated)


def _move(
    state: FireState, crystals: Crystals, on_atoms: Float[AnyArray, "a 3"], on_cell: Float[AnyArray, "c 3 3"]
) -> FireState:
    """Takes a step of FIRE."""

    def dot(atoms: Float[AnyArray, "a 3"], cell: Float[AnyArray, "c 3 3"]) -> Float[Array, " c"]:
        per_atom = jax.ops.segment_sum(
            atoms.sum(axis=1), crystals.crystal, len(crystals.num_atoms), indices_are_sorted=True
        )
        return per_atom + cell.sum(axis=(1, 2))

    def spread(values: Float[Array, " c"]) -> tuple[Float[Array, "a 1"], Float[Array, "c 1 1"]]:
        return values[crystals.crystal][:, None], values[:, None, None]

    power = dot(on_atoms * state.velocity, on_cell * state.cell_velocity)
    downhill, first = power > 0, state.steps == 0
    force_norm = jnp.sqrt(dot(on_atoms**2, on_cell**2))
    speed = jnp.sqrt(dot(state.velocity**2, state.cell_velocity**2))
    kept = jnp.where(downhill, 1 - state.alpha, jnp.where(first, 1.0, 0.0))
    along = jnp.where(downhill, state.alpha * speed / jnp.where(force_norm > 0, force_norm, 1), 0)
    faster = downhill & (state.num_downhill > _N_MIN)
    slower = ~downhill & ~first
    dt = jnp.where(faster, jnp.minimum(state.dt * _F_INC, _DT_MAX), jnp.where(slower, state.dt * _F_DEC, state.dt))
    push = along + dt
    (kept_a, kept_c), (push_a, push_c), (dt_a, dt_c) = spread(kept), spread(push), spread(dt)
    velocity = kept_a * state.velocity + push_a * on_atoms
    cell_velocity = kept_c * state.cell_velocity + push_c * on_cell
    length = jnp.sqrt(dot((dt_a * velocity) ** 2, (dt_c * cell_velocity) ** 2))
    scale_a, scale_c = spread(dt * jnp.minimum(1.0, _MAX_MOVE / jnp.where(length > 0, length, 1)))
    return state._replace(
        positions=state.positions + scale_a * velocity,
        deformation=state.deformation + scale_c * cell_velocity,
        velocity=velocity,
        cell_velocity=cell_velocity,
        dt=dt,
        alpha=jnp.where(faster, state.alpha * _F_ALPHA, jnp.where(slower, _ALPHA, state.alpha)),
        num_downhill=jnp.where(downhill, state.num_downhill + 1, jnp.where(slower, 0, state.num_downhill)),
        steps=state.steps + 1,
    )


def _impossible(state: FireState, crystals: Crystals) -> Int[Array, " c"]:
    """Returns the codes of crystals whose geometry no relaxation reaches; `Code.ACTIVE` for the others."""
    deformation = state.deformation / crystals.num_atoms[:, None, None]
    ratio = jnp.abs(_determinant(deformation))
    volume = ratio * jnp.abs(_determinant(crystals.lattice))
    finite = jnp.isfinite(volume) & jnp.isfinite(
        jax.ops.segment_sum(state.positions.sum(axis=1), crystals.crystal, len(volume), indices_are_sorted=True)
    )
    return jnp.select(
        [~finite, volume < LEAST_VOLUME * crystals.num_atoms, (ratio < 1 / VOLUME_RATIO) | (ratio > VOLUME_RATIO)],
        [Code.NOT_FINITE_POSITIONS, Code.TOO_DENSE, Code.VOLUME],
        Code.ACTIVE,
    ).astype(state.code.dtype)


def _choose(chosen: Array, crystal: Int[AnyArray, " a"], new: FireState, old: FireState) -> FireState:
    """Returns the new state of the chosen crystals, the old state of the others."""
    per_atom = ("positions", "velocity")

    def pick(name: str, ours: AnyArray, theirs: AnyArray) -> Array:
        condition = chosen[crystal] if name in per_atom else chosen
        return jnp.where(condition.reshape(-1, *(1,) * (ours.ndim - 1)), ours, theirs)

    return FireState(*map(pick, FireState._fields, new, old))


def _per_crystal_max(values: Float[AnyArray, " a"], crystals: Crystals) -> Float[Array, " c"]:
    return jax.ops.segment_max(values, crystals.crystal, len(crystals.num_atoms), indices_are_sorted=True)


def _determinant(matrix: Float[AnyArray, "c 3 3"]) -> Float[Array, " c"]:
    return jnp.sum(matrix[:, 0] * jnp.cross(matrix[:, 1], matrix[:, 2]), axis=1)


def inverse(matrix: Float[AnyArray, "c 3 3"]) -> Float[Array, "c 3 3"]:
    """Inverts 3 x 3 matrices by cofactors, which compiles to plain arithmetic on every device."""
    rows = [jnp.cross(matrix[:, (i + 1) % 3], matrix[:, (i + 2) % 3]) for i in range(3)]
    return jnp.stack(rows, axis=2) / _determinant(matrix)[:, None, None]


def _solve_transposed(deformation: Float[AnyArray, "c 3 3"], virial: Float[AnyArray, "c 3 3"]) -> Float[Array, "c 3 3"]:
    """Returns (F^-1 W^T)^T, the virial in the frame of the initial cell."""
    return jnp.einsum("cxy,czy->czx", inverse(deformation), virial)
