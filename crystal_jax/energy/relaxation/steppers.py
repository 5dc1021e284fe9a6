"""Takes steps of relaxations: on the devices, for potentials in JAX; through the host, for all other models."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float
from pymatgen.core import Element

from crystal_jax.energy.model import Cell, EnergyModel
from crystal_jax.energy.potentials.graph import AnyArray, Bucket, Graph, Packing, choose_bucket, find_neighbours, pack
from crystal_jax.energy.potentials.jax_model import JaxModel, buckets
from crystal_jax.energy.potentials.jax_potential import evaluate
from crystal_jax.energy.relaxation.batch import Bonds, Trajectory, pack_crystals, unpack_state
from crystal_jax.energy.relaxation.fire import Code, Crystals, FireState, Limits, advance, geometry, inverse
from crystal_jax.energy.settings import RelaxSettings

_CALLS = 32  # evaluations before the host looks at time-outs
# The host takes over when this share of the atoms has ended or needs new bonds: until then those only take up room.
_MAX_SHARE_IDLE = {"cpu": 0.02}
_DEFAULT_MAX_SHARE_IDLE = 0.15
# How much longer than the cut-off listed bonds are, Å. On CPUs finding bonds costs less than computing more of them.
SKIN = {"cpu": 0.1}
DEFAULT_SKIN = 0.5


class Room:
    """The room that is left in a batch. An empty batch takes a crystal of any size.

    Args:
        trajectories: the crystals in the batch. If one of them has no place, because others have got more bonds, it
            waits, and no further crystal is taken.
        place: puts a crystal into the batch; returns whether it fits.
    """

    def __init__(self, trajectories: Sequence[Trajectory], place: Callable[[Trajectory], bool]):
        self._place = place
        self._is_empty = not trajectories
        self._is_full = not all(place(trajectory) for trajectory in trajectories)

    def take(self, trajectory: Trajectory) -> bool:
        """Puts a crystal into the batch; returns whether it fits."""
        if self._is_full:
            return False
        fits = self._place(trajectory)
        if self._is_empty and not fits:
            self._is_full = fits = True  # it is alone
        self._is_empty &= not fits
        return fits


class Stepper(Protocol):
    """Something that takes steps of many relaxations.

    Attributes:
        references: energy of each atom by atomic number in eV, which is added to the energies of the steps.
    """

    references: Float[np.ndarray, " z"]

    def refusal(self, cell: Cell) -> str:
        """Returns why the model cannot relax a crystal of its elements, or ""."""
        ...

    def room(self, trajectories: Sequence[Trajectory]) -> Room:
        """Returns the room that a batch of these crystals leaves."""
        ...

    def step(self, trajectories: Sequence[Trajectory], settings: RelaxSettings) -> None:
        """Takes one or more steps of all relaxations, in place, and adds the time to them.

        Args:
            trajectories: the relaxations.
            settings: when they end.

        Raises:
            Exception: the model failed, perhaps because of only one of the crystals. No state has changed.
        """
        ...


class HostStepper:
    """Takes single steps with a model that is called on the host."""

    def __init__(self, model: EnergyModel, batch_atoms: int):
        self.references = np.zeros(len(Element) + 2)
        self._model, self._batch_atoms = model, batch_atoms

    def refusal(self, cell: Cell) -> str:
        """See `Stepper`."""
        return ""

    def room(self, trajectories: Sequence[Trajectory]) -> Room:
        """See `Stepper`."""
        packing = Packing(Bucket(self._batch_atoms + 1, 0, self._batch_atoms + 2))
        return Room(trajectories, lambda trajectory: packing.place(trajectory.num_atoms, 0) is not None)

    def step(self, trajectories: Sequence[Trajectory], settings: RelaxSettings) -> None:
        """See `Stepper`."""
        begin = time.monotonic()
        predictions = self._model.predict([trajectory.cell for trajectory in trajectories])
        bucket = Bucket(
            _round_up(sum(trajectory.num_atoms for trajectory in trajectories) + 1), 0, _round_up(len(trajectories) + 1)
        )
        state, crystals = pack_crystals(trajectories, bucket, np.float64)
        energy = np.zeros(bucket.crystals)
        forces, virial = np.zeros((bucket.atoms, 3)), np.zeros((bucket.crystals, 3, 3))
        energy[: len(trajectories)] = [prediction.energy for prediction in predictions]
        forces[: sum(trajectory.num_atoms for trajectory in trajectories)] = np.concatenate(
            [each.forces for each in predictions]
        )
        virial[: len(trajectories)] = [
            each.stress * trajectory.cell.volume for each, trajectory in zip(predictions, trajectories, strict=True)
        ]
        limits = _limits(settings, np.float64)
        with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
            moved = _advance()(state, crystals, energy, forces, virial, limits)
            unpack_state(moved, trajectories)
        _share_time(trajectories, time.monotonic() - begin)


@functools.cache
def _advance() -> Any:
    return jax.jit(advance)


def _round_up(number: int) -> int:
    """Returns the next power of two, so that few sizes are compiled."""
    return 1 << (number - 1).bit_length()


class Built(NamedTuple):
    """Geometry for which the bonds were found: positions in the frame of the initial cell, inverse deformation."""

    positions: Float[AnyArray, "a 3"]
    inverse_deformation: Float[AnyArray, "c 3 3"]


class Batch(NamedTuple):
    """Crystals of one device, as arrays."""

    graph: Graph
    state: FireState
    crystals: Crystals
    built: Built


class DeviceStepper:
    """Takes steps with a potential in JAX on all local devices: each has a batch of its own."""

    def __init__(self, model: JaxModel, batch_atoms: int | None):
        self._model = model
        self.references = model.potential.references
        devices = jax.local_devices()
        self._mesh = Mesh(np.array(devices), ("batch",))
        platform = devices[0].platform
        self._skin = SKIN.get(platform, DEFAULT_SKIN)
        self._max_share_idle = _MAX_SHARE_IDLE.get(platform, _DEFAULT_MAX_SHARE_IDLE)
        self._buckets = buckets(batch_atoms, platform)
        self._programs: dict[Bucket, Any] = {}

    def refusal(self, cell: Cell) -> str:
        """See `Stepper`."""
        cutoff = self._model.potential.cutoff
        if len(find_neighbours(cell, cutoff).source):
            return ""
        return f"no atom has a neighbour within {cutoff:g} Å, so the model sees no crystal"

    def room(self, trajectories: Sequence[Trajectory]) -> Room:
        """See `Stepper`."""
        packing = Packing(self._buckets[-1], self._mesh.size)
        return Room(trajectories, lambda trajectory: packing.place(*self._size(trajectory)) is not None)

    def step(self, trajectories: Sequence[Trajectory], settings: RelaxSettings) -> None:
        """See `Stepper`."""
        begin = time.monotonic()
        for trajectory in trajectories:
            if trajectory.code == Code.STALE:
                trajectory.bonds = None
                trajectory.state = trajectory.state._replace(code=np.full(1, Code.ACTIVE, np.int32))
        bucket, batches = choose_bucket(
            [self._size(trajectory) for trajectory in trajectories], self._buckets, self._mesh.size
        )
        groups = [
            [trajectory for trajectory, batch in zip(trajectories, batches, strict=True) if batch == device]
            for device in range(self._mesh.size)
        ]
        packed = [self._pack(group, bucket) for group in groups]
        batch = jax.tree.map(lambda *arrays: np.stack(arrays), *packed)
        limits = _limits(settings, self._model.dtype)
        advanced = self._program(bucket)(self._model.params, batch, limits, np.float32(self._max_share_idle))
        state = jax.device_get(advanced)
        for row, group in enumerate(groups):
            unpack_state(jax.tree.map(lambda array, row=row: array[row], state), group)
        _share_time([trajectory for group in groups for trajectory in group], time.monotonic() - begin)

    def _bonds(self, trajectory: Trajectory) -> Bonds:
        """Returns the bonds of a crystal, found now if it has none."""
        if trajectory.bonds is None:
            neighbours = find_neighbours(trajectory.cell, self._model.potential.cutoff + self._skin)
            trajectory.bonds = Bonds(neighbours, np.array(trajectory.state.positions), trajectory.deformation)
        return trajectory.bonds

    def _size(self, trajectory: Trajectory) -> tuple[int, int]:
        """Returns the numbers of atoms and bonds."""
        return trajectory.num_atoms, len(self._bonds(trajectory).neighbours.source)

    def _pack(self, trajectories: Sequence[Trajectory], bucket: Bucket) -> Batch:
        dtype = self._model.dtype
        state, crystals = pack_crystals(trajectories, bucket, dtype)
        listed = [self._bonds(trajectory) for trajectory in trajectories]
        graph = pack(
            [trajectory.initial.numbers for trajectory in trajectories], [each.neighbours for each in listed], bucket
        )
        positions = np.zeros((bucket.atoms, 3), dtype)
        inverses = np.tile(np.eye(3, dtype=dtype), (bucket.crystals, 1, 1))
        if trajectories:
            positions[: sum(trajectory.num_atoms for trajectory in trajectories)] = np.concatenate(
                [each.positions for each in listed]
            )
            inverses[: len(trajectories)] = np.linalg.inv(np.stack([each.deformation for each in listed]))
        return Batch(graph, state, crystals, Built(positions, inverses))

    def _program(self, bucket: Bucket) -> Any:
        if bucket not in self._programs:
            split, whole = PartitionSpec("batch"), PartitionSpec()
            run = functools.partial(
                relax_batch, self._model.potential.energies, self._model.potential.cutoff, self._skin
            )

            def on_device(params: Any, batch: Batch, limits: Limits, max_idle: Array) -> FireState:
                own = jax.tree.map(lambda array: array[0], batch)
                return jax.tree.map(lambda array: array[None], run(params, own, limits, max_idle))

            sharded = jax.shard_map(
                on_device,
                mesh=self._mesh,
                in_specs=(whole, split, whole, whole),
                out_specs=split,
                check_vma=False,
            )
            shardings = [NamedSharding(self._mesh, spec) for spec in (whole, split, whole, whole)]
            jitted = jax.jit(sharded, in_shardings=tuple(shardings), out_shardings=shardings[1])
            cache = self._model.program_cache(self._mesh, cutoff=self._model.potential.cutoff, skin=self._skin)
            self._programs[bucket] = cache.program(f"relax {bucket.atoms} atoms", jitted)
        return self._programs[bucket]


def relax_batch(
    energies: Any,
    cutoff: float,
    skin: float,
    params: Any,
    batch: Batch,
    limits: Limits,
    max_share_idle: Float[Array, ""],
) -> FireState:
    """Takes steps until a share of the atoms has ended or needs new bonds, or for `_CALLS` evaluations.

    Args:
        energies: see `Potential.energies`.
        cutoff: see `Potential.cutoff`.
        skin: how much longer than the cut-off listed bonds are, Å.
        params: see `Potential.params`.
        batch: the crystals of one device.
        limits: when relaxations end.
        max_share_idle: share of the atoms that may wait.
    """
    graph, state, crystals, built = batch
    # The last crystal is padding.
    size = jnp.asarray(crystals.num_atoms).at[-1].set(0)
    at_first = jnp.sum(jnp.where(state.code == Code.ACTIVE, size, 0))

    def goes_on(carry: tuple[Array, FireState]) -> Array:
        calls, state = carry
        active = jnp.sum(jnp.where(state.code == Code.ACTIVE, size, 0))
        return (calls < _CALLS) & (active > 0) & (active >= (1 - max_share_idle) * at_first)

    def call(carry: tuple[Array, FireState]) -> tuple[Array, FireState]:
        calls, state = carry
        positions, lattices = geometry(state, crystals)
        found = evaluate(energies, params, graph, positions, lattices)
        state = advance(state, crystals, found.energies, found.forces, found.virials, limits)
        stale = (state.code == Code.ACTIVE) & _is_stale(state, crystals, built, cutoff, skin)
        return calls + 1, state._replace(code=jnp.where(stale, Code.STALE, state.code).astype(state.code.dtype))

    return jax.lax.while_loop(goes_on, call, (jnp.int32(0), state))[1]


def _is_stale(state: FireState, crystals: Crystals, built: Built, cutoff: float, skin: float) -> Array:
    """Whether atoms may have come within the cut-off whose bond is not listed.

    With F the deformation since the bonds were found and d the largest move of an atom besides it, a bond of length r
    was at most |F^-1| (r + 2 d) long then.
    """
    deformation = state.deformation / crystals.num_atoms[:, None, None]
    moves = jnp.einsum("ax,ayx->ay", state.positions - built.positions, deformation[crystals.crystal])
    largest = jax.ops.segment_max(
        jnp.sum(moves**2, axis=1), crystals.crystal, len(crystals.num_atoms), indices_are_sorted=True
    )
    back = inverse(jnp.einsum("cxy,cyz->cxz", deformation, built.inverse_deformation))
    norm = 1 + jnp.sqrt(jnp.sum((back - jnp.eye(3, dtype=back.dtype)) ** 2, axis=(1, 2)))
    return norm * (cutoff + 2 * jnp.sqrt(jnp.maximum(largest, 0))) > cutoff + skin


def _limits(settings: RelaxSettings, dtype: type) -> Limits:
    return Limits(np.array(settings.fmax, dtype), np.array(settings.max_steps, np.int32))


def _share_time(trajectories: Sequence[Trajectory], seconds: float) -> None:
    """Adds to each crystal its share, by atoms, of the time of its batch."""
    share = seconds / sum(trajectory.num_atoms for trajectory in trajectories)
    for trajectory in trajectories:
        trajectory.seconds += share * trajectory.num_atoms
