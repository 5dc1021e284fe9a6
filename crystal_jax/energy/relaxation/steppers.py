"""Takes steps of relaxations: on the devices, for potentials in JAX; through the host, for all other models."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from crystal_jax.energy.model import EnergyModel
from crystal_jax.energy.potentials.graph import AnyArray, Bucket, Graph, Neighbours, find_neighbours, pack
from crystal_jax.energy.potentials.jax_model import JaxModel, buckets, smallest_bucket
from crystal_jax.energy.potentials.jax_potential import evaluate
from crystal_jax.energy.relaxation.batch import Path, pack_crystals, unpack_state
from crystal_jax.energy.relaxation.fire import Code, Crystals, FireState, Limits, advance, geometry, inverse
from crystal_jax.energy.settings import RelaxSettings

_CALLS = 32  # evaluations before the host looks at time-outs
# The host takes over when this share of the atoms has ended or needs new bonds: until then those only take up room.
_MAX_SHARE_IDLE = {"cpu": 0.02}
_DEFAULT_MAX_SHARE_IDLE = 0.15
# How much longer than the cut-off listed bonds are, Å. On CPUs finding bonds costs less than computing more of them.
SKIN = {"cpu": 0.1}
DEFAULT_SKIN = 0.5


class Stepper(Protocol):
    """Something that takes steps of many relaxations."""

    def fits(self, paths: Sequence[Path], path: Path) -> bool:
        """Whether a batch has room for one more; always true of an empty batch."""
        ...

    def step(self, paths: Sequence[Path], settings: RelaxSettings) -> None:
        """Takes one or more steps of all relaxations, in place, and adds the time to them.

        Args:
            paths: the relaxations.
            settings: when they end.

        Raises:
            Exception: the model failed, perhaps because of only one of the crystals. No state has changed.
        """
        ...


class HostStepper:
    """Takes single steps with a model that is called on the host."""

    def __init__(self, model: EnergyModel, batch_atoms: int):
        self._model, self._batch_atoms = model, batch_atoms

    def fits(self, paths: Sequence[Path], path: Path) -> bool:
        """See `Stepper`."""
        return not paths or sum(each.num_atoms for each in paths) + path.num_atoms <= self._batch_atoms

    def step(self, paths: Sequence[Path], settings: RelaxSettings) -> None:
        """See `Stepper`."""
        begin = time.monotonic()
        predictions = self._model.predict([path.cell for path in paths])
        bucket = Bucket(_round_up(sum(path.num_atoms for path in paths) + 1), 0, _round_up(len(paths) + 1))
        state, crystals = pack_crystals(paths, bucket, np.float64)
        energy = np.zeros(bucket.crystals)
        forces, virial = np.zeros((bucket.atoms, 3)), np.zeros((bucket.crystals, 3, 3))
        energy[: len(paths)] = [prediction.energy for prediction in predictions]
        forces[: sum(path.num_atoms for path in paths)] = np.concatenate([each.forces for each in predictions])
        virial[: len(paths)] = [each.stress * path.cell.volume for each, path in zip(predictions, paths, strict=True)]
        limits = _limits(settings, np.float64)
        with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
            moved = _advance()(state, crystals, energy, forces, virial, limits)
            unpack_state(moved, paths)
        _share_time(paths, time.monotonic() - begin)


@functools.cache
def _advance() -> Any:
    return jax.jit(advance)


def _round_up(number: int) -> int:
    """Returns the next power of two, so that few sizes are compiled."""
    return 1 << (number - 1).bit_length()


class _Listed(NamedTuple):
    """Bonds of a crystal, and the geometry for which they were found."""

    neighbours: Neighbours
    positions: Float[np.ndarray, "a 3"]
    deformation: Float[np.ndarray, "3 3"]


class Built(NamedTuple):
    """Geometry for which the bonds were found: positions in the frame of the initial cell, inverse deformation."""

    positions: Float[AnyArray, "a 3"]
    inverse_deformation: Float[AnyArray, "c 3 3"]


class Batch(NamedTuple):
    """What a device works on."""

    graph: Graph
    state: FireState
    crystals: Crystals
    built: Built


class DeviceStepper:
    """Takes steps with a potential in JAX on all local devices: each has a batch of its own."""

    def __init__(self, model: JaxModel, batch_atoms: int | None):
        self._model = model
        devices = jax.local_devices()
        self._mesh = Mesh(np.array(devices), ("batch",))
        platform = devices[0].platform
        self._skin = SKIN.get(platform, DEFAULT_SKIN)
        self._max_share_idle = _MAX_SHARE_IDLE.get(platform, _DEFAULT_MAX_SHARE_IDLE)
        self._buckets = buckets(batch_atoms, platform)
        self._listed: dict[str, _Listed] = {}
        self._programs: dict[Bucket, Any] = {}

    def fits(self, paths: Sequence[Path], path: Path) -> bool:
        """See `Stepper`."""
        return not paths or not self._assign([*paths, path], self._buckets[-1])[1]

    def step(self, paths: Sequence[Path], settings: RelaxSettings) -> None:
        """See `Stepper`."""
        begin = time.monotonic()
        for path in paths:
            if path.code == Code.STALE:
                self._listed.pop(path.key, None)
                path.state = path.state._replace(code=np.full(1, Code.ACTIVE, np.int32))
        bucket, groups = self._choose_bucket(paths)
        packed = [self._pack(group, bucket) for group in groups]
        batch = jax.tree.map(lambda *arrays: np.stack(arrays), *packed)
        limits = _limits(settings, self._model.dtype)
        advanced = self._program(bucket)(self._model.params, batch, limits, np.float32(self._max_share_idle))
        state = jax.device_get(advanced)
        for row, group in enumerate(groups):
            unpack_state(jax.tree.map(lambda array, row=row: array[row], state), group)
        for path in paths:
            if path.code not in (Code.ACTIVE, Code.STALE):
                self._listed.pop(path.key, None)
        _share_time([path for group in groups for path in group], time.monotonic() - begin)

    def _list(self, path: Path) -> _Listed:
        """Returns the bonds of a crystal, found now if it has none."""
        if path.key not in self._listed:
            neighbours = find_neighbours(path.cell, self._model.potential.cutoff + self._skin)
            self._listed[path.key] = _Listed(neighbours, np.array(path.state.positions), path.deformation)
        return self._listed[path.key]

    def _choose_bucket(self, paths: Sequence[Path]) -> tuple[Bucket, list[list[Path]]]:
        """Returns the smallest bucket that holds all crystals, and the crystals of each device.

        Crystals that no longer fit into the largest one, because others have got more bonds, wait for the next call.
        """
        for bucket in self._buckets:
            groups, left = self._assign(paths, bucket)
            if not left:
                return bucket, groups
        if not any(groups):  # the first crystal is too large for the usual buckets
            path = paths[0]
            bucket = smallest_bucket(path.num_atoms, len(self._list(path).neighbours.source), bucket)
            groups[0] = [path]
        return bucket, groups

    def _assign(self, paths: Sequence[Path], bucket: Bucket) -> tuple[list[list[Path]], list[Path]]:
        """Distributes crystals over the devices; returns those of each device, and those that do not fit."""
        groups: list[list[Path]] = [[] for _ in range(self._mesh.size)]
        left: list[Path] = []
        used = np.zeros((self._mesh.size, 3), np.int64)
        room = (bucket.atoms - 1, bucket.bonds, bucket.crystals - 1)
        for path in paths:
            needed = (path.num_atoms, len(self._list(path).neighbours.source), 1)
            device = int(used[:, 1].argmin())
            if (used[device] + needed > room).any():
                left.append(path)
                continue
            used[device] += needed
            groups[device].append(path)
        return groups, left

    def _pack(self, paths: Sequence[Path], bucket: Bucket) -> Batch:
        dtype = self._model.dtype
        state, crystals = pack_crystals(paths, bucket, dtype)
        listed = [self._list(path) for path in paths]
        graph = pack([path.initial.numbers for path in paths], [each.neighbours for each in listed], bucket)
        positions = np.zeros((bucket.atoms, 3), dtype)
        inverses = np.tile(np.eye(3, dtype=dtype), (bucket.crystals, 1, 1))
        if paths:
            positions[: sum(path.num_atoms for path in paths)] = np.concatenate([each.positions for each in listed])
            inverses[: len(paths)] = np.linalg.inv(np.stack([each.deformation for each in listed]))
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


def _share_time(paths: Sequence[Path], seconds: float) -> None:
    """Adds to each crystal its share, by atoms, of the time of its batch."""
    share = seconds / sum(path.num_atoms for path in paths)
    for path in paths:
        path.seconds += share * path.num_atoms
