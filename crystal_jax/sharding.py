"""The device mesh and the table that says where every array of a run lives."""

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
HEADS = P(("data", "fsdp"), "tensor")  # rows, then heads where q, k and v have theirs
Platform = Literal["cpu", "gpu", "tpu"]
Layout = Literal["head_major", "stacked", "position_major"]  # of a KV cache: model/kv_cache.py
LAYOUTS: dict[Platform, Layout] = {"cpu": "head_major", "tpu": "stacked", "gpu": "position_major"}

# First match wins. The leading None of a block's arrays is the layer axis. A quantised kernel is kept as codes and
# scales that have its axes (model/quantize.py), so one row holds for all three. Adapters are replicated but for the
# output side of q, k and v: sharding A over fsdp makes the compiler split its small products into many loops.
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
# Rows that a run may do without: LLaMA-2 has no biases and no position embedding, tied embeddings have no head, full
# training no adapters, AdamW no coefficients, sampling no guard.
_OPTIONAL = (r"/bias$", r"position_embedding$", r"lm_head$", r"lora_", r"ns_coeffs", r"guard/", r"cache/")


def cache_spec(layout: Layout) -> P:
    """Where the keys or values of a KV cache live: rows over data and fsdp, heads over tensor."""
    return {"head_major": HEADS, "stacked": P(None, *HEADS), "position_major": P(HEADS[0], None, HEADS[1])}[layout]


def cache_rules(layout: Layout) -> tuple[tuple[str, P], ...]:
    """The table for what reading a text token by token carries on."""
    return (r"cache/(keys|values)(/\d+)?(/(codes|scales))?$", cache_spec(layout)), (r"cache/length$", BATCH)


def decode_rules(layout: Layout) -> tuple[tuple[str, P], ...]:
    """And for what sampling does."""
    return (
        *cache_rules(layout),
        (r"(logits|state|written|columns|log_probs|log_allowed_mass|rejected)$", BATCH),
        (r"progress/(counts|least|site)$", BATCH),
        (r"sampling/(key|temperature|top_p|reject_on_violation)$", BATCH),
        (r"limits/(elements|required|formula|m(in|ax)_elements|m(in|ax)_atoms)$", BATCH),
    )


def make_mesh(cfg: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh (data, fsdp, tensor) over all devices; one size may be -1.

    TPU slices talk to each other over the data centre's network, which is slow. So only the data axis crosses from one
    to another: there, gradients are added once a step.

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
    # An axis of the mesh may take part of an axis of the torus: 8 x 8 in a cube of 4 x 4 x 4.
    if slices > 1:
        inner, outer = (data // slices, *others), (slices, 1, 1)
        grid = mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=types)


def tree_shardings(tree: Any, mesh: Mesh, rules: Sequence[tuple[str, P]] = RULES) -> Any:
    """Maps each array of a tree to the sharding of the first rule that matches its path; scalars are replicated.

    Optimizer moments end in their parameter's path, so one table covers a whole train state.

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
    """The pattern of the first rule that matches a path, and what it means for an array of this shape.

    An axis of length one is not split: int8 has one scale for all inputs of a kernel.

    Raises:
        ValueError: no rule matches.
    """
    for pattern, spec in rules:
        if re.search(pattern, path):
            return pattern, P(*(name if size > 1 else None for name, size in zip(spec, shape, strict=False)))
    raise ValueError(f"No sharding rule matches {path} of shape {tuple(shape)}")


def abstract(tree: Any, shardings: Any) -> Any:
    """The tree with shapes, types and these shardings in place of its arrays, which need not exist."""
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
    """The mesh axes that one axis of an array is split over."""
    return (names,) if isinstance(names, str) else names or ()


def _parts(names: str | tuple[str, ...] | None, mesh: Mesh) -> int:
    return math.prod(mesh.shape[name] for name in _names(names))


def row_parts(mesh: Mesh | jax.sharding.AbstractMesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def on_mesh(mesh: Mesh) -> contextlib.AbstractContextManager:
    """Within a step that is being traced: `split_rows` means this mesh."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def platform_of(mesh: Mesh) -> Platform:
    """What kind of devices a mesh has; GPUs of all makers are one kind."""
    return _platform(mesh.devices.flat[0].platform)


def target_platform() -> Platform:
    """What is being traced is for these devices: those of `on_mesh`, there or not; without one, JAX's own."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return _platform(jax.default_backend() if device is None else device.platform)


def _platform(name: str) -> Platform:
    return "gpu" if name in ("gpu", "cuda", "rocm") else "tpu" if name == "tpu" else "cpu"


def split_rows(x: jax.Array) -> jax.Array:
    """Keeps the first axis of an activation, the rows of the batch, split over data and fsdp; nothing without a mesh.

    Left to the compiler, activations take over the embedding table's split of the width, and instead of a layer's
    weights being gathered, which is what fsdp means, its far larger outputs are summed over all devices.
    """
    return x if jax.sharding.get_abstract_mesh().empty else jax.lax.with_sharding_constraint(x, BATCH)


def split_width(x: jax.Array) -> jax.Array:
    """As `split_rows` for the few tokens of a decode step, whose activations are far smaller than the weights.

    Their width is split as the inputs of the weights are, so that the weights stay where they are. A prompt that all
    rows share is one row, and not split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(
        x, P("data" if x.shape[0] % mesh.shape["data"] == 0 else None, None, "fsdp")
    )


def on_each_device(function: Callable, *, in_specs: Any, out_specs: Any, check: bool = True) -> Callable:
    """The function, run by each device on its own parts of the arrays; without a mesh, the function as it is.

    JAX can check over which axes results differ, but not through a hand-written kernel that does not say it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=check)


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Joins the rows that each host has read into global arrays, split over data and fsdp."""
    where = NamedSharding(mesh, BATCH)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(where, x), batch)


def rows_by_process(batch_size: int, mesh: Mesh) -> list[tuple[int, ...]]:
    """The rows of a global batch that each process feeds, in their order: those that its devices hold."""
    rows: list[set[int]] = [set() for _ in range(jax.process_count())]
    held = NamedSharding(mesh, BATCH).devices_indices_map((batch_size,))
    for device in mesh.devices.flat:
        rows[device.process_index].update(range(*held[device][0].indices(batch_size)))
    return [tuple(sorted(theirs)) for theirs in rows]
