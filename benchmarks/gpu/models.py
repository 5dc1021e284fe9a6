"""Models of LLaMA-2's shapes with random weights, made on the device leaf by leaf."""

from __future__ import annotations

import importlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from crystal_jax.config import Experiment, from_config_dict
from crystal_jax.sharding import make_mesh

_TOY: dict[str, Any] = dict(embed_dim=64, mlp_dim=96, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16)
# A normal weight of LLaMA-2 is about this large; a scale of nf4 is that of the largest of a block of 64.
_WEIGHT, _SCALE = 0.02, {"int8": 0.0005, "nf4": 0.05}


def experiment_of(
    size: str,
    *,
    dry_run: bool,
    base: str = "none",
    targets: str = "q,v",
    attention: str = "einsum",
    keep_products: bool = False,
    rows: int = 0,
) -> Experiment:
    """The shipped configuration for one GPU, `configs/llama2_*.py:gpu`, with other choices.

    Args:
        size: 7b, 13b or 70b.
        dry_run: A toy in place of the model.
        base: How frozen kernels are kept: none (bf16), int8, nf4.
        targets: Projections with adapters.
        attention: `execution.attention`.
        keep_products: `execution.keep_products`.
        rows: Rows of a micro-batch; those of the configuration by default.
    """
    config = importlib.import_module(f"configs.llama2_{size}").get_config("gpu").to_dict()
    config["base"] = ""
    config["lora"] |= {"targets": tuple(targets.split(","))}
    config["execution"] |= {"attention": attention, "keep_products": keep_products}
    config["quantize"] = {"kind": base}
    if rows:
        config["optimizer"]["accumulate"] = config["data"]["batch_size"] // rows
    if dry_run:
        config["model"] |= _TOY
        config["data"]["batch_size"], config["data"]["shards"], config["optimizer"]["accumulate"] = 2, 1, 1
    return from_config_dict(config, vocab_size=0)


def one_device(experiment: Experiment) -> jax.sharding.Mesh:
    """The first device."""
    return make_mesh(experiment.mesh, jax.devices()[:1])


def random_like(tree: nnx.State, *, quantization: str = "none") -> nnx.State:
    """Random weights of these shapes and types, layer by layer, so that no more than one layer is ever held twice."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    keys = jax.random.split(jax.random.key(0), len(leaves))

    def make(path: tuple[Any, ...], leaf: Any, key: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")

        def fill(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            if "norm" in name:
                return jnp.ones(shape, leaf.dtype)
            if name.endswith("lora_b"):
                return jnp.zeros(shape, leaf.dtype)
            if name.endswith("scales"):
                return jnp.full(shape, _SCALE.get(quantization, _WEIGHT), leaf.dtype)
            if jnp.issubdtype(leaf.dtype, jnp.integer):
                return jax.random.bits(key, shape, jnp.uint8).astype(leaf.dtype)
            return (_WEIGHT * jax.random.normal(key, shape, jnp.bfloat16)).astype(leaf.dtype)

        def build(key: jax.Array) -> jax.Array:
            if leaf.ndim < 3:
                return fill(key, leaf.shape)
            return jax.lax.map(lambda one: fill(one, leaf.shape[1:]), jax.random.split(key, leaf.shape[0]))

        return jax.jit(build, out_shardings=leaf.sharding)(key)

    return jax.tree.unflatten(structure, [make(*item, key) for item, key in zip(leaves, keys, strict=True)])


def peak_memory(device: jax.Device) -> float | None:
    """GiB of device memory in use at most so far; None where the device does not count."""
    stats = device.memory_stats() or {}
    return stats["peak_bytes_in_use"] / 2**30 if "peak_bytes_in_use" in stats else None
