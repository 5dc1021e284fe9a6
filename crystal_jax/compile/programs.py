"""Lowers the programs of training and sampling for absent devices, from shapes alone."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from crystal_jax.checkpoint.models import abstract_parameters
from crystal_jax.compile import roofline
from crystal_jax.config import Experiment, MeshConfig, ModelConfig
from crystal_jax.sample.constraints.masks import AllowedValueMask, DeviceAutomaton
from crystal_jax.sample.engine.decode_step import (
    DecodeState,
    PrefillResult,
    decode_rules,
    decode_step,
    init_decode_state,
    max_batched_tokens,
    prefill,
)
from crystal_jax.sharding import (
    LAYOUTS,
    Platform,
    abstract,
    on_mesh,
    platform_of,
    row_parts,
    tree_shardings,
)
from crystal_jax.text.crystal_text import ELEMENTS
from crystal_jax.train.step import plan

WHATS = ("train", "prefill", "decode")
# LLaMA-2's grammar of crystals of at most 20 atoms (text/grammar/crystal.py), the generation prompt, and the mean
# completion of mp20_open. tests/compile checks them against the tokenizer if it is available.
STATES, COLUMNS, KINDS, VALUES = 1938, 97, 290, 1473
MAX_ATOMS, MAX_TOKENS, PROMPT_TOKENS = 20, 387, 38
FORCED = 4  # largest number of consecutive tokens that this grammar forces
MEAN_COMPLETION = 207
# Largest number of rows per part of the mesh. With more rows a TPU's step takes longer for hardly more yield. A GPU has
# several times the arithmetic per byte of memory bandwidth, and gains from more rows.
_ROWS_AT_MOST: dict[Platform, int] = {"tpu": 256, "gpu": 512, "cpu": 256}


@dataclasses.dataclass(frozen=True)
class Lowered:
    """Program before compilation.

    Attributes:
        program: result of `jax.jit(...).lower`.
        flops: operations of the model's equations, on all chips together.
        bytes: bytes that must be read on a chip, if known.
        arguments: size of the arguments on a chip, bytes.
        rows: rows of a batch, in training or sampling.
        length: tokens of a row, or positions of the cache.
        beside: bytes that sampling on a GPU holds on a chip in addition to the program's arguments.
    """

    program: jax.stages.Lowered
    flops: float
    bytes: float | None
    arguments: int
    rows: int
    length: int
    beside: int = 0


def lower(what: str, experiment: Experiment, mesh: Mesh, *, rows: int, coded: bool = False) -> Lowered:
    """Lowers one of `WHATS` without allocating arrays. Training has the rows of its configuration, sampling `rows`.

    `coded` makes the KV cache int8.

    Raises:
        UserError: an array does not divide over the mesh.
    """
    if what == "train":
        return lower_train(experiment, mesh)
    return lower_sampling(what, experiment, mesh, rows=rows, coded=coded)


def lower_train(experiment: Experiment, mesh: Mesh) -> Lowered:
    """Lowers the training step of `train/step.py`."""
    planned = plan(experiment, mesh)
    arguments = planned.state, planned.frozen, planned.batch
    return Lowered(
        planned.train_step.lower(*arguments),
        flops=roofline.train_flops(experiment),
        bytes=None,
        arguments=roofline.bytes_on_a_chip(arguments),
        rows=experiment.data.batch_size,
        length=experiment.data.seq_len,
    )


def sampling_mesh(model: ModelConfig, weights: int, *, devices: int, hbm: int) -> MeshConfig:
    """Returns the default mesh for sampling, which shards a model no further than its weights need.

    Weights are read for every token, independent of the batch, and chips that share them must communicate in every
    layer. So weights are sharded over tensor until they take a quarter of a chip's memory, at most over all key and
    value heads, and then over fsdp until they take 60 %. The other chips take rows of their own.
    """
    tensor = fsdp = 1
    while weights / tensor > hbm / 4 and devices % (2 * tensor) == 0 and model.num_kv_heads % (2 * tensor) == 0:
        tensor *= 2
    while weights / (tensor * fsdp) > 0.6 * hbm and devices % (2 * tensor * fsdp) == 0:
        fsdp *= 2
    return MeshConfig(data=devices // (tensor * fsdp), fsdp=fsdp, tensor=tensor)


def sampling_rows(
    model: ModelConfig, states: tuple[nnx.State, ...], mesh: Mesh, *, hbm: int, coded: bool = False
) -> int:
    """Returns the number of rows that leaves a tenth of the memory free, a power of two on each part of the mesh."""
    head = model.head_dim + 4 if coded else model.head_dim * jnp.dtype(model.dtype).itemsize
    position = 2 * model.num_layers * model.num_kv_heads * head
    row = position * (PROMPT_TOKENS + MAX_TOKENS) / mesh.shape["tensor"]
    platform = platform_of(mesh)
    free = 0.9 * hbm - roofline.bytes_on_a_chip(states)
    if LAYOUTS[platform] != "stacked":
        free -= roofline.bytes_on_a_chip([state["blocks"] for state in states])  # the sampler's copy, layer by layer
    each = min(max(int(free / row), 1), _ROWS_AT_MOST[platform])
    return 2 ** int(math.log2(each)) * row_parts(mesh)


def lower_sampling(what: str, experiment: Experiment, mesh: Mesh, *, rows: int, coded: bool = False) -> Lowered:
    """Lowers `prefill` (of one prompt) or `decode_step` of `sample/engine/decode_step.py`, with LLaMA-2's grammar.

    The cache is updated in place. On TPUs every token is sampled: with this many rows, forced tokens do not justify a
    step of several tokens. On GPUs the step is the sampler's (`sample/engine/scheduler.py`): unrolled over the layers,
    with separate weights per layer, and with forced tokens.
    """
    graph, params, frozen = abstract_parameters(experiment, mesh, experiment.quantize)
    layout = LAYOUTS[platform_of(mesh)]
    unrolled = layout != "stacked"
    forced = FORCED if unrolled else 0
    everywhere = NamedSharding(mesh, P())

    def whole(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=everywhere)

    tables = DeviceAutomaton(
        token_ids=whole(jnp.int32, COLUMNS),
        allowed=whole(jnp.bool_, STATES, COLUMNS),
        next_state=whole(jnp.int32, STATES, COLUMNS),
        forced=whole(jnp.int32, STATES, forced),
        **{name: whole(jnp.int32, STATES) for name in ("num_forced", "after", "completed", "turn", "kind")},
        **{name: whole(jnp.int32, KINDS, COLUMNS) for name in ("first", "last", "complete")},
        elements=whole(jnp.int32, len(ELEMENTS)),
        **{name: whole(jnp.int32) for name in ("start", "end")},
        units=whole(jnp.int32, MAX_ATOMS),
    )
    prompt = whole(jnp.int32, 1, PROMPT_TOKENS), whole(jnp.int32, 1)

    def read_prompts(
        params: nnx.State, frozen: nnx.State, tables: DeviceAutomaton, tokens: Any, count: Any
    ) -> PrefillResult:
        with on_mesh(mesh):
            return prefill(nnx.merge(graph, params, frozen), tables, tokens, count, layout=layout)

    grants = AllowedValueMask(whole(jnp.bool_, rows, VALUES), whole(jnp.int32, rows))
    layers = _layers(graph, params, frozen, experiment.model.num_layers) if unrolled else None
    budget = max_batched_tokens(rows, tables) if unrolled and mesh.size == 1 else None

    def decode(
        params: nnx.State,
        frozen: nnx.State,
        layers: list[nnx.State] | None,
        tables: DeviceAutomaton,
        rows: DecodeState,
        grants: AllowedValueMask,
    ) -> DecodeState:
        with on_mesh(mesh):
            return decode_step(nnx.merge(graph, params, frozen), tables, rows, grants, layers=layers, budget=budget)

    def begin(tables: DeviceAutomaton) -> DecodeState:
        return init_decode_state(
            experiment.model,
            tables,
            rows=rows,
            prompt_tokens=PROMPT_TOKENS,
            max_tokens=MAX_TOKENS,
            layout=layout,
            coded=coded,
        )

    held = params, frozen, tables
    blank = jax.eval_shape(begin, tables)
    where = tree_shardings(blank, mesh, decode_rules(layout))
    carried = abstract(blank, where)
    ranks = dict.fromkeys(experiment.lora.targets, experiment.lora.rank)

    def flops(tokens: int, capacity: int) -> float:
        cfg = experiment.model
        return roofline.decode_flops(cfg, rows=tokens, capacity=capacity, columns=COLUMNS, adapter_ranks=ranks)

    held_beside: list[Any]
    if what == "prefill":
        arguments: tuple = (held, prompt)
        program = jax.jit(read_prompts, out_shardings=everywhere).lower(*held, *prompt)
        length, held_beside = PROMPT_TOKENS, [layers, carried.cache]
        # Every token attends to all positions of the prompt, including later ones.
        products, needed = flops(PROMPT_TOKENS, PROMPT_TOKENS), None
    else:
        arguments = (held, carried)
        compiled = jax.jit(decode, donate_argnums=4, out_shardings=where)
        program = compiled.lower(params, frozen, layers, tables, carried, grants)
        # Unused parameters are not among a program's arguments, but the sampler holds them in memory.
        length, held_beside = carried.cache.capacity, [state["blocks"] for state in (params, frozen)]
        products = flops(budget or rows * (1 + forced), length)
        needed = roofline.decode_bytes((params, frozen), (carried.cache.keys, carried.cache.values))
    return Lowered(
        program,
        flops=products,
        bytes=needed,
        arguments=roofline.bytes_on_a_chip(arguments),
        rows=rows,
        length=length,
        beside=roofline.bytes_on_a_chip(held_beside) if unrolled else 0,
    )


def _layers(graph: nnx.GraphDef, params: nnx.State, frozen: nnx.State, number: int) -> list[nnx.State]:
    """Returns the abstract result of `Transformer.layers`: each layer is sharded as the stack is."""

    def one(stack: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        where = NamedSharding(stack.sharding.mesh, P(*stack.sharding.spec[1:]))
        return jax.ShapeDtypeStruct(stack.shape[1:], stack.dtype, sharding=where)

    blocks = nnx.state(nnx.merge(graph, params, frozen).blocks)
    return [jax.tree.map(one, blocks)] * number
