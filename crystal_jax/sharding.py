"""The device mesh, and the table of rules that assigns a sharding to every array of a run."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from crystal_jax.config import MeshConfig
from crystal_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))
HEADS = P(("data", "fsdp"), "tensor")  # rows, then the axis of heads of q, k and v
Platform = Literal["cpu", "gpu", "tpu"]
# The layouts of a KV cache: see model/attention/kv_cache.py.
Layout = Literal["head_major", "stacked", "position_major"]
LAYOUTS: dict[Platform, Layout] = {"cpu": "head_major", "tpu": "stacked", "gpu": "position_major"}

# The first match wins. The leading None of a block's arrays is the layer axis. A quantised kernel is stored as codes
# and scales with its axes (model/frozen_base/quantize.py), so one rule holds for all three. Adapters are replicated,
# except the output side of q, k and v: if A were sharded over fsdp, the compiler would split its small products into
# many loops.
RULES: tuple[tuple[str, P], ...] = (
    (r"position_embedding$", P(None, "fsdp")),
    (r"embedding$", P("tensor", "fsdp")),
    (r"lm_head$", P("fsdp", "tensor")),
    (r"blocks/(q|k|v)/(kernel|codes|scales)$", P(None, "fsdp", "tensor")),
    (r"blocks/o/(kernel|codes|scales)$", P(None, "tensor", None, "fsdp")),
    (r"blocks/(gate|up)/(kernel|codes|scales)$", P(None, "fsdp", "tensor")),
    (r"blocks/down/(kernel|codes|scales)$", P(None, "tensor", "fsdp")),
    (r"blocks/(q|k|v)/lora_b$", P(None, None, "tensor")),
    (r"blocks/\w+/lora_[ab]$", P()),
    (r"blocks/(q|k|v|up)/bias$", P(None, "tensor")),
    (r"blocks/(o|down)/bias$", P()),
    (r"norm/bias$", P()),
    (r"norm/scale$", P()),
    (r"ns_coeffs$", P()),  # Muon keeps the coefficients of its iteration in its state
    (r"guard/(losses|norms)$", P()),
)
# Rules that may match nothing: LLaMA-2 has no biases and no position embedding, tied embeddings have no head, full
# training has no adapters, AdamW no coefficients, and sampling no guard.
_OPTIONAL = (r"/bias$", r"position_embedding$", r"lm_head$", r"lora_", r"ns_coeffs", r"guard/", r"cache/")


def cache_spec(layout: Layout) -> P:
    """Returns the partition of a KV cache's keys or values: rows over data and fsdp, heads over tensor."""
    return {"head_major": HEADS, "stacked": P(None, *HEADS), "position_major": P(HEADS[0], None, HEADS[1])}[layout]


def cache_rules(layout: Layout) -> tuple[tuple[str, P], ...]:
    """Returns the sharding rules of a KV cache."""
    return (r"cache/(keys|values)(/\d+)?(/(codes|scales))?$", cache_spec(layout)), (r"cache/length$", BATCH)


def make_mesh(cfg: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh (data, fsdp, tensor) over all devices; one size may be -1.

    TPU slices are connected by the data centre's network, which is slow. So only the data axis crosses between slices,
    where gradients are summed once per step.

    Raises:
        UserError: the sizes do not multiply to the number of devices, or the data axis does not divide over the slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [cfg.data, cfg.fsdp, cfg.tensor]
    if any(size == 0 or size < -1 for size in sizes) or sizes.count(-1) > 1:
        raise UserError(f"mesh {dict(zip(AXES, sizes, strict=True))}: sizes are positive, and at most one is -1")
    known = int(np.prod([size for size in sizes if size != -1]))
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if int(np.prod(sizes)) != len(devices):
        raise UserError(f"mesh {dict(zip(AXES, sizes, strict=True))} does not fit {len(devices)} devices")
    types = (AxisType.Auto,) * len(AXES)
    if _platform(devices[0].platform) != "tpu":
        return jax.make_mesh(tuple(sizes), AXES, devices=devices, axis_types=types)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    data, *others = sizes
    if data % slices:
        raise UserError(
            f"mesh data={data} is no multiple of the {slices} slices; only that axis may cross between them"
        )
    # One axis of the mesh may take part of an axis of the torus: 8 x 8 in a cube of 4 x 4 x 4.
    if slices > 1:
        inner, outer = (data // slices, *others), (slices, 1, 1)
        grid = mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=types)


def tree_shardings(tree: Any, mesh: Mesh, rules: Sequence[tuple[str, P]] = RULES) -> Any:
    """Returns the sharding of each array of a tree, by the first rule that matches its path; scalars are replicated.

    The path of an optimizer moment ends in its parameter's path, so one table covers a whole train state.

    Raises:
        ValueError: a path matches no rule, or a rule matches no path.
        UserError: an axis does not divide over the mesh.
    """
    unused = {pattern for pattern, _ in rules if not any(part in pattern for part in _OPTIONAL)}

    def sharding(key_path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        if not leaf.ndim:
            return NamedSharding(mesh, P())
        path = jax.tree_util.keystr(key_path, simple=True, separator="/").removesuffix("/value")
        pattern, spec = rule_for(path, leaf.shape, rules)
        unused.discard(pattern)
        _check_divides(path, leaf.shape, spec, mesh)
        return NamedSharding(mesh, spec)

    shardings = jax.tree_util.tree_map_with_path(sharding, tree)
    if unused:
        raise ValueError(f"Sharding rules that match no parameter: {sorted(unused)}")
    return shardings


def rule_for(path: str, shape: Sequence[int], rules: Sequence[tuple[str, P]] = RULES) -> tuple[str, P]:
    """Returns the pattern of the first rule that matches a path, and its partition for an array of this shape.

    An axis of length one is not split: int8 has one scale for all inputs of a kernel.

    Raises:
        ValueError: no rule matches.
    """
    for pattern, spec in rules:
        if re.search(pattern, path):
            return pattern, P(*(name if size > 1 else None for name, size in zip(spec, shape, strict=False)))
    raise ValueError(f"No sharding rule matches {path} of shape {tuple(shape)}")


def abstract(tree: Any, shardings: Any) -> Any:
    """Returns the tree with `ShapeDtypeStruct`s of these shardings in place of its arrays, which need not exist."""
    return jax.tree.map(lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to), tree, shardings)


def _check_divides(path: str, shape: tuple[int, ...], spec: P, mesh: Mesh) -> None:
    for axis, names in enumerate(spec):
        parts = _parts(names, mesh)
        if shape[axis] % parts:
            where = " x ".join(repr(name) for name in _names(names))
            raise UserError(
                f"{path} of shape {shape}: axis {axis} does not divide over the {parts} devices of {where}; choose "
                "another config.mesh, or, for the vocabulary, a larger config.model.vocab_size, for scales, a smaller "
                "config.quantize.block_size, for what is sampled, another batch size"
            )


def _names(names: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Returns the mesh axes that one axis of an array is split over."""
    return (names,) if isinstance(names, str) else names or ()


def _parts(names: str | tuple[str, ...] | None, mesh: Mesh) -> int:
    return math.prod(mesh.shape[name] for name in _names(names))


def row_parts(mesh: Mesh | jax.sharding.AbstractMesh) -> int:
    """Returns the number of parts into which the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def on_mesh(mesh: Mesh) -> contextlib.AbstractContextManager:
    """Returns a context in which traced functions such as `split_rows` use this mesh."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def platform_of(mesh: Mesh) -> Platform:
    """Returns the platform of a mesh's devices; GPUs of all vendors are one platform."""
    return _platform(mesh.devices.flat[0].platform)


def target_platform() -> Platform:
    """Returns the platform being traced for: that of `on_mesh`, which need not be present, or else JAX's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return _platform(jax.default_backend() if device is None else device.platform)


def _platform(name: str) -> Platform:
    return "gpu" if name in ("gpu", "cuda", "rocm") else "tpu" if name == "tpu" else "cpu"


def split_rows(x: jax.Array) -> jax.Array:
    """Constrains an activation's first axis, the rows of the batch, to be split over data and fsdp.

    Without a mesh, x is returned unchanged. If the choice is left to the compiler, activations take over the split of
    the embedding table's width: instead of gathering a layer's weights, which is the meaning of fsdp, the compiler sums
    the layer's far larger outputs over all devices.
    """
    return x if jax.sharding.get_abstract_mesh().empty else jax.lax.with_sharding_constraint(x, BATCH)


def split_width(x: jax.Array) -> jax.Array:
    """Constrains the activations of a decode step to be split by rows over data, and by width over fsdp.

    These activations are far smaller than the weights. Their width is split as the weights' inputs are, so that the
    weights stay where they are. A prompt that all rows share is one row, and its row axis is not split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(
        x, P("data" if x.shape[0] % mesh.shape["data"] == 0 else None, None, "fsdp")
    )


def on_each_device(function: Callable, *, in_specs: Any, out_specs: Any, check: bool = True) -> Callable:
    """Returns the function, run by each device on its own shards; without a mesh, the function unchanged.

    With `check`, JAX verifies over which axes results differ; it cannot do so through a hand-written kernel that does
    not declare it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=check)


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Assembles the rows that each host has read into global arrays, split over data and fsdp."""
    where = NamedSharding(mesh, BATCH)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(where, x), batch)


def rows_by_process(batch_size: int, mesh: Mesh) -> list[tuple[int, ...]]:
    """Returns, for each process, the rows of a global batch that its devices hold, in order."""
    rows: list[set[int]] = [set() for _ in range(jax.process_count())]
    held = NamedSharding(mesh, BATCH).devices_indices_map((batch_size,))
    for device in mesh.devices.flat:
        rows[device.process_index].update(range(*held[device][0].indices(batch_size)))
    return [tuple(sorted(theirs)) for theirs in rows]
