"""First lines of texts that begin with a composition: they are drawn before the texts, which are then held to them.

Drawn so, a text has the probability that the model gives it; only what the sites say in contradiction to their first
line is left out. And what is asked of a composition is decided where it is written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float, Int

from crystal_jax.config import ModelConfig
from crystal_jax.model.cache import Cache, empty_cache, put_rows
from crystal_jax.model.transformer import Transformer
from crystal_jax.sample.decode import draw
from crystal_jax.sharding import BATCH, CACHE_RULES, on_mesh, row_parts, tree_shardings
from crystal_jax.text.first_line import FirstLine, Parts, Place, Wanted

_ATTEMPTS = 1000  # at a composition that is admitted
Admit = Callable[[Mapping[str, int]], bool]
_STREAM = 0x434F4D50  # a composition's random numbers are not those of its crystal


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToState:
    """A first line to be drawn.

    Attributes:
        index: Of its sample.
        prompt: Token ids, BOS included.
        wanted: What it must be.
        admit: What else its composition must be; others are drawn again.
        first: How many lines of this sample were drawn before.
    """

    index: int
    prompt: tuple[int, ...]
    wanted: Wanted
    admit: Admit = lambda composition: True
    first: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stated:
    """A first line.

    Attributes:
        composition: What it says.
        ids: Token ids.
        log_probs: Of them and of the line's end, which is not among them: see `Rows` in sample/decode.py.
        log_kept: Natural logarithm of the share of probability that `ToState.wanted` left.
        rejected: Lines of its sample that were drawn before it, not admitted or not kept to.
        admitted: Whether it is; if not, none of 1,000 was, and this is the last of them.
    """

    composition: Parts
    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    log_kept: float
    rejected: int = 0
    admitted: bool = True


_NOTHING = Stated(composition=(), ids=(), log_probs=(0.0,), log_kept=0.0)


class _Read(NamedTuple):
    """What has been read, and the logits of what follows: of the language's columns."""

    cache: Cache
    logits: Float[Array, "b k"]


@dataclasses.dataclass
class _Row:
    """A line being written."""

    place: Place = dataclasses.field(default_factory=Place)
    ids: list[int] = dataclasses.field(default_factory=list)
    log_probs: list[float] = dataclasses.field(default_factory=list)
    log_kept: float = 0.0
    stated: Stated | None = None
    stuck: bool = False


class Compositions:
    """Draws the first line of sample i, which depends on the seed and on i alone.

    Args:
        graph: Of the model.
        cfg: Its configuration.
        language: Of its first lines.
        mesh: Where its parameters are.
        prompt_tokens: Length of the longest prompt, BOS included.
        seed: Of the job.
        at_once: Lines drawn side by side; no influence on them.
    """

    def __init__(
        self,
        graph: nnx.GraphDef,
        cfg: ModelConfig,
        language: FirstLine,
        mesh: Mesh,
        *,
        prompt_tokens: int,
        seed: int,
        at_once: int = 64,
    ):
        self._language = language
        at_once += -at_once % row_parts(mesh)
        self._prompt_tokens, self._at_once = prompt_tokens, at_once
        whole = NamedSharding(mesh, jax.P())
        stacked = mesh.devices.flat[0].platform == "tpu"
        columns, ends = jnp.array(language.token_ids), jnp.array(language.ends)
        capacity = prompt_tokens + language.max_tokens

        def logits_after(model: Transformer, hidden: Float[Array, "b 1 d"]) -> Float[Array, "b k"]:
            end = jax.nn.logsumexp(model.unembed(hidden, ends)[:, 0], axis=-1, keepdims=True)
            return jnp.concatenate([model.unembed(hidden, columns)[:, 0], end], axis=-1)

        def read(params: nnx.State, tokens: Int[Array, "b p"], count: Int[Array, " b"]) -> _Read:
            with on_mesh(mesh):
                model: Transformer = nnx.merge(graph, params)
                hidden, past = model.read(tokens, count, stacked=stacked)
                cache = empty_cache(cfg, batch=at_once, capacity=capacity, stacked=stacked)
                last = jnp.take_along_axis(hidden, count[:, None, None] - 1, axis=1)
                return _Read(put_rows(cache, past, jnp.arange(at_once)), logits_after(model, last))

        def step(
            params: nnx.State,
            past: _Read,
            masks: Bool[Array, "2 b k"],
            numbers: Int[Array, "b 3"],
            settings: tuple[Array, Array],
        ) -> tuple[_Read, tuple[Array, Array, Array]]:
            """Draws a column in each row and reads it; `masks` are the grammar's and what is wanted."""
            with on_mesh(mesh):
                model: Transformer = nnx.merge(graph, params)
                logits = past.logits
                log_probs = jax.nn.log_softmax(jnp.where(masks[0], logits, -jnp.inf))
                kept = jax.nn.logsumexp(jnp.where(masks[1], log_probs, -jnp.inf), axis=-1)
                stream = jax.random.fold_in(jax.random.key(seed), _STREAM)
                keys = jnp.broadcast_to(stream, len(numbers))
                for part in numbers.T:
                    keys = jax.vmap(jax.random.fold_in)(keys, part)
                column = draw(keys, jnp.where(masks[1], logits, -jnp.inf), *settings)
                token = jnp.append(columns, 0)[column]
                hidden, cache = model.extend(token[:, None], jnp.ones(at_once, jnp.int32), past.cache)
                drawn = column, jnp.take_along_axis(log_probs, column[:, None], axis=1)[:, 0], kept
                return _Read(cache, logits_after(model, hidden)), drawn

        def empty() -> _Read:
            cache = empty_cache(cfg, batch=at_once, capacity=capacity, stacked=stacked)
            return _Read(cache, jnp.zeros((at_once, language.end + 1)))

        where = tree_shardings(jax.eval_shape(empty), mesh, (*CACHE_RULES, (r"logits$", BATCH)))
        self._read = jax.jit(read, out_shardings=where)
        self._step = jax.jit(step, donate_argnums=1, out_shardings=(where, whole))

    def __call__(
        self, params: nnx.State, asked: Sequence[ToState], *, temperature: float, top_p: float
    ) -> Iterator[Stated]:
        """The line of each, in order; `params` are the model's."""
        settings = jnp.full(self._at_once, temperature), jnp.full(self._at_once, top_p)
        for begin in range(0, len(asked), self._at_once):
            some = asked[begin : begin + self._at_once]
            found: dict[int, Stated] = {}
            attempts = 0
            while missing := [i for i in range(len(some)) if i not in found]:
                # As many attempts at once as there are rows for; of those that are admitted, the first counts.
                each = min(self._at_once // len(missing), _ATTEMPTS - attempts)
                tries = [(i, attempt) for i in missing for attempt in range(attempts, attempts + each)]
                rows = self._write(params, [(some[i], some[i].first + attempt) for i, attempt in tries], settings)
                for (i, attempt), row in zip(tries, rows, strict=True):
                    stated = row.stated or _NOTHING
                    admitted = row.stated is not None and some[i].admit(dict(stated.composition))
                    if i not in found and (admitted or attempt == _ATTEMPTS - 1):
                        rejected = some[i].first + attempt
                        found[i] = dataclasses.replace(stated, rejected=rejected, admitted=admitted)
                attempts += each
            yield from (found[i] for i in range(len(some)))

    def _write(
        self, params: nnx.State, tries: Sequence[tuple[ToState, int]], settings: tuple[Array, Array]
    ) -> list[_Row]:
        """A line for each of these, with the number of its attempt."""
        language = self._language
        # Always as many as were compiled for.
        tokens = np.zeros((self._at_once, self._prompt_tokens), np.int32)
        count = np.ones(self._at_once, np.int32)
        numbers = np.zeros((self._at_once, 3), np.int32)
        for i, (one, attempt) in enumerate(tries):
            tokens[i, : len(one.prompt)], count[i] = one.prompt, len(one.prompt)
            numbers[i, :2] = one.index, attempt
        past = self._read(params, tokens, count)
        rows = [_Row() for _ in tries]
        for number in range(language.max_tokens + 1):
            going = [i for i, row in enumerate(rows) if not row.stated and not row.stuck]
            if not going:
                break
            masks = np.zeros((2, self._at_once, language.end + 1), bool)
            masks[:, :, language.end] = True  # of rows that have ended
            masks[:, going] = False
            for i in going:
                masks[0, i] = language.open(rows[i].place, language.anything)
                masks[1, i] = language.open(rows[i].place, tries[i][0].wanted)
                rows[i].stuck = not masks[1, i].any()
                masks[:, i, language.end] |= rows[i].stuck
            numbers[:, 2] = number
            past, drawn = self._step(params, past, masks, numbers, settings)
            columns, log_probs, kept = (np.asarray(array).tolist() for array in drawn)
            for i in going:
                if not rows[i].stuck:
                    self._note(rows[i], columns[i], log_probs[i], kept[i])
        return rows

    def _note(self, row: _Row, column: int, log_prob: float, kept: float) -> None:
        """Adds what was drawn to a line."""
        row.log_probs.append(log_prob)
        row.log_kept += kept
        if column != self._language.end:
            row.ids.append(int(self._language.token_ids[column]))
            row.place = self._language.step(row.place, column)
            return
        row.stated = Stated(
            composition=self._language.composition(row.place),
            ids=tuple(row.ids),
            log_probs=tuple(row.log_probs),
            log_kept=row.log_kept,
        )
