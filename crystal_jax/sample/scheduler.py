"""Which text is written in which row: a queue of requests, and rows that are filled again as soon as they are free."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float, Int

from crystal_jax.config import LlamaConfig
from crystal_jax.sample.constraints import DeviceAutomaton, Limits, make_limits, to_device
from crystal_jax.sample.decode import Prompts, Rows, Wish, fill, free_rows, read_prompts, write
from crystal_jax.sharding import DECODE_RULES, on_mesh, tree_shardings
from crystal_jax.text.crystal_text import ELEMENTS
from crystal_jax.text.grammar import TokenAutomaton


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One text to be written.

    Attributes:
        index: Its number; with `seed` it decides the random numbers, so no two of one seed are alike.
        prompt: Token ids, BOS included.
        seed: Of a whole job.
        temperature: Logits are divided by it; 0 takes the most likely token.
        top_p: Draw from the smallest set of tokens that holds this share of probability.
        limits: Of the composition, from `make_limits`.
    """

    index: int
    prompt: tuple[int, ...]
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    limits: Limits = dataclasses.field(default_factory=make_limits)

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 or more, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """A finished text.

    Attributes:
        request: What was asked for.
        ids: Token ids, EOS left out.
        log_prob, log_kept: See `Rows`.
    """

    request: Request
    ids: tuple[int, ...]
    log_prob: float
    log_kept: float


class Seen(NamedTuple):
    """What the host looks at: of `Rows`, and which have ended."""

    ended: Bool[Array, " b"]
    written: Int[Array, " b"]
    columns: Int[Array, "b n"]
    log_prob: Float[Array, " b"]
    log_kept: Float[Array, " b"]


class Engine:
    """Writes texts with one model, in a fixed number of rows, with functions that are compiled once.

    On a mesh the rows and the cache are split over its devices. On several hosts each runs the same engine with the
    same requests: what decides about the rows is the same everywhere.
    """

    def __init__(
        self,
        graph: nnx.GraphDef,
        cfg: LlamaConfig,
        automaton: TokenAutomaton,
        *,
        mesh: Mesh,
        rows: int,
        prompt_tokens: int,
        steps: int = 8,
        jump: bool = True,
    ):
        """
        Args:
            graph: Of a `Llama`.
            cfg: Its configuration.
            automaton: The grammar.
            mesh: Where the parameters are.
            rows: Texts written side by side; rounded up to a multiple of the devices that split them.
            prompt_tokens: Length of the longest prompt, BOS included.
            steps: Tokens drawn in each row between two looks of the host.
            jump: Append what the grammar forces without a step of its own.
        """
        self.mesh, self._automaton = mesh, automaton
        self.rows = rows + -rows % (mesh.shape["data"] * mesh.shape["fsdp"])
        self._prompt_tokens = prompt_tokens
        self._read: tuple[dict[tuple[int, ...], int], Prompts] | None = None
        tables = to_device(automaton, jump=jump)
        stacked = mesh.devices.flat[0].platform == "tpu"

        def begin(tables: DeviceAutomaton) -> Rows:
            longest = automaton.max_tokens
            return free_rows(
                cfg,
                tables,
                rows=self.rows,
                prompt_tokens=prompt_tokens,
                max_tokens=longest,
                stacked=stacked,
            )

        def advance(params: nnx.State, tables: DeviceAutomaton, rows: Rows) -> tuple[Rows, Seen]:
            def unfinished(carry: tuple) -> jax.Array:
                return (carry[0] < steps) & (carry[1].state != tables.end).any()

            def step(carry: tuple) -> tuple:
                return carry[0] + 1, write(nnx.merge(graph, params), tables, carry[1])

            with on_mesh(mesh):
                _, rows = jax.lax.while_loop(unfinished, step, (jnp.zeros((), jnp.int32), rows))
            return rows, Seen(rows.state == tables.end, rows.written, rows.columns, rows.log_prob, rows.log_kept)

        def read(params: nnx.State, tables: DeviceAutomaton, tokens: jax.Array, count: jax.Array) -> Prompts:
            with on_mesh(mesh):
                return read_prompts(nnx.merge(graph, params), tables, tokens, count, stacked=stacked)

        # What the host looks at is whole on every process, and the grammar's tables are on every device.
        whole = NamedSharding(mesh, jax.P())
        where = tree_shardings(jax.eval_shape(begin, tables), mesh, DECODE_RULES)
        self._tables = jax.device_put(tables, whole)
        self._begin = jax.jit(begin, out_shardings=where)
        self._advance = jax.jit(advance, donate_argnums=2, out_shardings=(where, whole))
        self._refill = jax.jit(fill, donate_argnums=1, out_shardings=where)
        self._prefill = jax.jit(read, out_shardings=whole)
        self._keys = jax.jit(jax.vmap(lambda seed, index: jax.random.fold_in(jax.random.key(seed), index)))

    def run(self, params: nnx.State, requests: Iterable[Request]) -> Iterator[Drawn]:
        """Yields each request's text as soon as it is finished, in no particular order; `params` are the model's.

        Raises:
            ValueError: a prompt is longer than `prompt_tokens`, or limits ask for what the grammar cannot write.
        """
        waiting: Iterator[Request] = iter(requests)
        given: list[Request | None] = [None] * self.rows
        rows, self._read = self._begin(self._tables), None
        while True:
            free = [row for row in range(self.rows) if given[row] is None]
            placed = dict(zip(free, waiting, strict=False))
            for row, asked in placed.items():
                given[row] = asked
            if placed:
                rows = self._refill(self._tables, rows, *self._arrays(params, placed))
            if not any(given):
                return
            rows, shown = self._advance(params, self._tables, rows)
            seen: Seen = jax.device_get(shown)
            for row in np.flatnonzero(seen.ended).tolist():
                if (request := given[row]) is not None:
                    yield self._finished(request, seen, row)
                    given[row] = None

    def _finished(self, request: Request, seen: Seen, row: int) -> Drawn:
        ids = self._automaton.token_ids[seen.columns[row, : seen.written[row] - 1]].tolist()
        return Drawn(
            request=request,
            ids=tuple(ids),
            log_prob=float(seen.log_prob[row]),
            log_kept=float(seen.log_kept[row]),
        )

    def _arrays(self, params: nnx.State, placed: Mapping[int, Request]) -> tuple[Prompts, Wish, np.ndarray]:
        """What `fill` takes: the prompts, the wishes, and which prompt goes where."""
        for request in placed.values():
            self._check(request)
        number, prompts = self._prompts(params, {request.prompt: None for request in placed.values()})
        source = np.full(self.rows, -1, np.int32)
        for row, request in placed.items():
            source[row] = number[request.prompt]
        any_request = next(iter(placed.values()))
        asked = [placed.get(row, any_request) for row in range(self.rows)]
        wish = Wish(
            key=self._keys(np.array([r.seed for r in asked]), np.array([r.index for r in asked])),
            temperature=jnp.array([r.temperature for r in asked]),
            top_p=jnp.array([r.top_p for r in asked]),
            limits=jax.tree.map(lambda *rows: np.stack(rows), *(r.limits for r in asked)),
        )
        return prompts, wish, source

    def _prompts(
        self, params: nnx.State, wanted: Iterable[tuple[int, ...]]
    ) -> tuple[dict[tuple[int, ...], int], Prompts]:
        """The prompts, read together, and the number of each; those of the last time serve again if they can."""
        number = {prompt: i for i, prompt in enumerate(wanted)}
        if self._read is None or not number.keys() <= self._read[0].keys():
            # In powers of two, so that few sizes are compiled.
            tokens = np.zeros((1 << (len(number) - 1).bit_length(), self._prompt_tokens), np.int32)
            count = np.ones(len(tokens), np.int32)
            for prompt, i in number.items():
                tokens[i, : len(prompt)], count[i] = prompt, len(prompt)
            self._read = number, self._prefill(params, self._tables, tokens, count)
        return self._read

    def _check(self, request: Request) -> None:
        if len(request.prompt) > self._prompt_tokens:
            raise ValueError(f"a prompt of {len(request.prompt)} tokens; there is room for {self._prompt_tokens}")
        most = int(request.limits.max_atoms)
        # Without a formula the grammar ends the text in time; with one it would end it before it is complete.
        if request.limits.formula.any() and most > self._automaton.max_atoms:
            raise ValueError(f"max_atoms={most}; there is room for {self._automaton.max_atoms}")
        elements = [ELEMENTS.index(symbol) for symbol in self._automaton.elements]
        beyond = np.delete(request.limits.formula, elements)
        if beyond.any() or not request.limits.elements[elements].any():
            raise ValueError("the tokenizer cannot write the elements that are asked for")
