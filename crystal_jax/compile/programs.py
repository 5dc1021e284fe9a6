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
from crystal_jax.compile.analysis import roofline
from crystal_jax.config import Experiment, MeshConfig, ModelConfig
from crystal_jax.sample.constraints.masks import AllowedValueMask, DeviceAutomaton
from crystal_jax.sample.engine.decode_state import DecodeState, PrefillResult, decode_rules, init_decode_state
from crystal_jax.sample.engine.decode_step import decode_step, max_batched_tokens, prefill
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
    sampler = _AbstractSampler(experiment, mesh, rows=rows, coded=coded)
    return sampler.lower_prefill() if what == "prefill" else sampler.lower_decode()


class _AbstractSampler:
    """Shapes, types and shardings of all arrays that sampling holds on the devices.

    Attributes:
        params, frozen: parameters of the model, stacked over the layers.
        layers: parameters layer by layer, where the decode step is unrolled; otherwise None.
        tables: the automaton of the grammar.
        carried: state of the decode step, with the KV cache; `where` are its shardings.
    """

    def __init__(self, experiment: Experiment, mesh: Mesh, *, rows: int, coded: bool):
        self.experiment, self.mesh, self.rows = experiment, mesh, rows
        self.graph, self.params, self.frozen = abstract_parameters(experiment, mesh, experiment.quantize)
        self.layout = LAYOUTS[platform_of(mesh)]
        self.unrolled = self.layout != "stacked"
        self.forced = FORCED if self.unrolled else 0
        self.everywhere = NamedSharding(mesh, P())
        self.tables = self._tables()
        number = experiment.model.num_layers
        self.layers = _layers(self.graph, self.params, self.frozen, number) if self.unrolled else None

        def begin(tables: DeviceAutomaton) -> DecodeState:
            return init_decode_state(
                experiment.model,
                tables,
                rows=rows,
                prompt_tokens=PROMPT_TOKENS,
                max_tokens=MAX_TOKENS,
                layout=self.layout,
                coded=coded,
            )

        blank = jax.eval_shape(begin, self.tables)
        self.where = tree_shardings(blank, mesh, decode_rules(self.layout))
        self.carried = abstract(blank, self.where)

    def lower_prefill(self) -> Lowered:
        """Lowers the prefill of one prompt."""
        graph, mesh, layout = self.graph, self.mesh, self.layout

        def read_prompts(
            params: nnx.State, frozen: nnx.State, tables: DeviceAutomaton, tokens: Any, count: Any
        ) -> PrefillResult:
            with on_mesh(mesh):
                return prefill(nnx.merge(graph, params, frozen), tables, tokens, count, layout=layout)

        held = self.params, self.frozen, self.tables
        prompt = self._whole(jnp.int32, 1, PROMPT_TOKENS), self._whole(jnp.int32, 1)
        return Lowered(
            jax.jit(read_prompts, out_shardings=self.everywhere).lower(*held, *prompt),
            # Every token attends to all positions of the prompt, including later ones.
            flops=self._flops(PROMPT_TOKENS, PROMPT_TOKENS),
            bytes=None,
            arguments=roofline.bytes_on_a_chip((held, prompt)),
            rows=self.rows,
            length=PROMPT_TOKENS,
            beside=roofline.bytes_on_a_chip([self.layers, self.carried.cache]) if self.unrolled else 0,
        )

    def lower_decode(self) -> Lowered:
        """Lowers a decode step of all rows."""
        graph, mesh = self.graph, self.mesh
        budget = max_batched_tokens(self.rows, self.tables) if self.unrolled and mesh.size == 1 else None

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

        params, frozen, cache = self.params, self.frozen, self.carried.cache
        grants = AllowedValueMask(self._whole(jnp.bool_, self.rows, VALUES), self._whole(jnp.int32, self.rows))
        compiled = jax.jit(decode, donate_argnums=4, out_shardings=self.where)
        # Unused parameters are not among a program's arguments, but the sampler holds them in memory.
        unused = [state["blocks"] for state in (params, frozen)]
        return Lowered(
            compiled.lower(params, frozen, self.layers, self.tables, self.carried, grants),
            flops=self._flops(budget or self.rows * (1 + self.forced), cache.capacity),
            bytes=roofline.decode_bytes((params, frozen), (cache.keys, cache.values)),
            arguments=roofline.bytes_on_a_chip(((params, frozen, self.tables), self.carried)),
            rows=self.rows,
            length=cache.capacity,
            beside=roofline.bytes_on_a_chip(unused) if self.unrolled else 0,
        )

    def _tables(self) -> DeviceAutomaton:
        whole = self._whole
        return DeviceAutomaton(
            token_ids=whole(jnp.int32, COLUMNS),
            allowed=whole(jnp.bool_, STATES, COLUMNS),
            next_state=whole(jnp.int32, STATES, COLUMNS),
            forced=whole(jnp.int32, STATES, self.forced),
            **{name: whole(jnp.int32, STATES) for name in ("num_forced", "after", "completed", "turn", "kind")},
            **{name: whole(jnp.int32, KINDS, COLUMNS) for name in ("first", "last", "complete")},
            elements=whole(jnp.int32, len(ELEMENTS)),
            **{name: whole(jnp.int32) for name in ("start", "end")},
            units=whole(jnp.int32, MAX_ATOMS),
        )

    def _whole(self, dtype: Any, *shape: int) -> Any:
        """Returns an abstract array that every device holds."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self.everywhere)

    def _flops(self, tokens: int, capacity: int) -> float:
        """Returns the operations of the equations for these tokens, each with a cache of `capacity` positions."""
        cfg, lora = self.experiment.model, self.experiment.lora
        ranks = dict.fromkeys(lora.targets, lora.rank)
        return roofline.decode_flops(cfg, rows=tokens, capacity=capacity, columns=COLUMNS, adapter_ranks=ranks)


def _layers(graph: nnx.GraphDef, params: nnx.State, frozen: nnx.State, number: int) -> list[nnx.State]:
    """Returns the abstract result of `Transformer.layers`: each layer is sharded as the stack is."""

    def one(stack: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        where = NamedSharding(stack.sharding.mesh, P(*stack.sharding.spec[1:]))
        return jax.ShapeDtypeStruct(stack.shape[1:], stack.dtype, sharding=where)

    blocks = nnx.state(nnx.merge(graph, params, frozen).blocks)
    return [jax.tree.map(one, blocks)] * number
