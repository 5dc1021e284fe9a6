"""The compiled functions that decode composition lines side by side."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float, Int

from crystal_jax.config import ModelConfig
from crystal_jax.model.attention.kv_cache import Cache, empty_cache, put_rows
from crystal_jax.model.parameters import ModelGraph, Params
from crystal_jax.model.transformer import Transformer
from crystal_jax.program_cache import ProgramCache
from crystal_jax.sample.engine.draw import draw
from crystal_jax.sharding import BATCH, LAYOUTS, Layout, cache_rules, on_mesh, platform_of, tree_shardings

STREAM = 0x434F4D50  # keeps the random numbers of a composition apart from those of its crystal


class LineState(NamedTuple):
    """The KV cache of the tokens read, and the logits of the next token over the grammar's columns."""

    cache: Cache
    logits: Float[Array, "b k"]


class DrawSettings(NamedTuple):
    """Seed of the run, and temperature and nucleus of each line: NumPy arrays on the host."""

    seed: Any
    temperature: Any
    top_p: Any


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CompositionPrograms:
    """The functions that run on the device, for composition lines that are decoded side by side.

    Attributes:
        graph: Graph definition of the model.
        cfg: Configuration of the model.
        mesh: Device mesh that holds the parameters.
        columns: Token ids of the grammar's columns, [k - 1]; constants of the programs.
        ends: Token ids that end a line; constants of the programs.
        rows: Number of lines.
        capacity: Positions of the cache.
    """

    graph: ModelGraph
    cfg: ModelConfig
    mesh: Mesh
    columns: Int[np.ndarray, " c"]
    ends: Int[np.ndarray, " e"]
    rows: int
    capacity: int

    @property
    def layout(self) -> Layout:
        """Layout of the cache."""
        return LAYOUTS[platform_of(self.mesh)]

    def empty(self) -> LineState:
        """Returns an empty cache."""
        cache = empty_cache(self.cfg, batch=self.rows, capacity=self.capacity, layout=self.layout)
        return LineState(cache, jnp.zeros((self.rows, len(self.columns) + 1)))

    def read(self, params: Params, tokens: Int[Array, "b p"], count: Int[Array, " b"]) -> LineState:
        """Reads prompts."""
        with on_mesh(self.mesh):
            model = nnx.merge(self.graph, params)
            hidden, past = model.prefill(tokens, count, layout=self.layout)
            last = jnp.take_along_axis(hidden, count[:, None, None] - 1, axis=1)
            return LineState(put_rows(self.empty().cache, past, jnp.arange(self.rows)), self._logits(model, last))

    def step(
        self,
        params: Params,
        past: LineState,
        masks: Bool[Array, "2 b k"],
        numbers: Int[Array, "b 3"],
        settings: DrawSettings,
    ) -> tuple[LineState, tuple[Array, Array, Array, Array]]:
        """Draws a column per row and runs the model on it; `masks` are the grammar's and the constraints'."""
        with on_mesh(self.mesh):
            model = nnx.merge(self.graph, params)
            logits = past.logits
            log_probs = jax.nn.log_softmax(jnp.where(masks[0], logits, -jnp.inf))
            kept = jax.nn.logsumexp(jnp.where(masks[1], log_probs, -jnp.inf), axis=-1)
            heat = jnp.where(settings.temperature == 0, 1, settings.temperature)[:, None]
            tempered = jax.nn.log_softmax(jnp.where(masks[0], logits / heat, -jnp.inf))
            weight = jax.nn.logsumexp(jnp.where(masks[1], tempered, -jnp.inf), axis=-1)
            keys = jnp.broadcast_to(jax.random.fold_in(jax.random.key(settings.seed), STREAM), len(numbers))
            for part in numbers.T:
                keys = jax.vmap(jax.random.fold_in)(keys, part)
            column = draw(keys, jnp.where(masks[1], logits, -jnp.inf), settings.temperature, settings.top_p)
            token = jnp.append(jnp.array(self.columns), 0)[column]
            hidden, cache = model.decode_forward(token[:, None], jnp.ones(self.rows, jnp.int32), past.cache)
            drawn = column, jnp.take_along_axis(log_probs, column[:, None], axis=1)[:, 0], kept, weight
            return LineState(cache, self._logits(model, hidden)), drawn

    def _logits(self, model: Transformer, hidden: Float[Array, "b 1 d"]) -> Float[Array, "b k"]:
        """Returns the logits of the grammar's columns; the last one is the end of the line."""
        end = jax.nn.logsumexp(model.unembed(hidden, jnp.array(self.ends))[:, 0], axis=-1, keepdims=True)
        return jnp.concatenate([model.unembed(hidden, jnp.array(self.columns))[:, 0], end], axis=-1)

    def compiled(self) -> tuple[Any, Any]:
        """Returns `read` and `step`, compiled or loaded from the cache of programs; `step` donates the state."""
        rules = (*cache_rules(self.layout), (r"logits$", BATCH))
        where = tree_shardings(jax.eval_shape(self.empty), self.mesh, rules)
        cached = ProgramCache(self.mesh, self.description()).program
        whole = NamedSharding(self.mesh, jax.P())
        return (
            cached("read compositions", jax.jit(self.read, out_shardings=where)),
            cached("draw compositions", jax.jit(self.step, donate_argnums=1, out_shardings=(where, whole))),
        )

    def description(self) -> dict[str, Any]:
        """Returns what decides a program beside its arguments, for the cache of programs."""
        return {
            "model": f"{self.graph!r} {self.cfg!r}",
            "layout": self.layout,
            "columns": self.columns.tolist(),
            "ends": self.ends.tolist(),
            "rows": self.rows,
            "capacity": self.capacity,
        }
