"""Search instead of sampling: texts that a reward likes, with the model's probabilities as the guide.

Monte-Carlo tree search over the decisions of a text: its lengths, angles, elements and coordinates. A node is a
beginning, a choice is a token that grammar and limits admit. Each round goes down from the root by the rule PUCT
(Silver et al., Nature 550, 354, 2017), with the model's probabilities as the prior,

    Q(token) + c · p(token) · √(1 + visits of the node) / (1 + visits of the token)

to a beginning that was not seen before, lets the model write it to its end, and gives the reward of the finished
crystal to every choice on the way. Q is the mean reward, scaled by the smallest and the largest one seen so far.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from crystal_jax.config import ModelConfig, check_length
from crystal_jax.sample.constraints.guide import NEVER
from crystal_jax.sample.constraints.masks import (
    AllowedValueMask,
    CompositionLimits,
    allowed_mask,
    init_parse_state,
    make_limits,
    to_device,
)
from crystal_jax.sample.engine.decode_step import (
    DecodeState,
    SamplingParams,
    decode_step,
    init_decode_state,
    insert,
    is_active,
    prefill,
)
from crystal_jax.sharding import on_mesh
from crystal_jax.text.crystal_text import ELEMENTS
from crystal_jax.text.grammar.automaton import TokenAutomaton
from crystal_jax.text.layout import ATOM_WORDS, LATTICE_WORDS


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchResult:
    """A finished text.

    Attributes:
        ids: Token ids, EOS left out.
        reward: What it was given.
        calls: How many model calls had been made when it was finished.
    """

    ids: tuple[int, ...]
    reward: float
    calls: int


class _Node:
    """A beginning of a text that has been visited.

    Attributes:
        prior: Probabilities of the columns, 0 of what is not admitted.
        visits, total: Of each column: how often it was chosen, and the sum of the rewards.
        children: What stands after a column.
    """

    __slots__ = ("children", "prior", "total", "visits")

    def __init__(self, prior: Float[np.ndarray, " k"]):
        self.prior = prior
        self.visits = np.zeros(len(prior))
        self.total = np.zeros(len(prior))
        self.children: dict[int, _Node] = {}


class _Path(NamedTuple):
    """A way down: the choices, and the columns of the beginning they lead to, forced ones included."""

    choices: list[tuple[_Node, int]]
    columns: list[int]
    state: int


class _Written(NamedTuple):
    """What the host sees of a batch of beginnings: the next token's probabilities, and how they went on."""

    prior: Float[Array, "b k"]
    columns: Int[Array, "b n"]
    written: Int[Array, " b"]


class Search:
    """Searches with one model and one prompt, several beginnings side by side.

    Args:
        graph: Of the model.
        cfg: Its configuration.
        automaton: The grammar.
        mesh: Where the parameters are.
        prompt: Token ids, BOS included.
        width: Beginnings that are written to their ends side by side; more are faster, and guide each other less.
        exploration: c of the rule above.
        temperature: Of what is written beyond the tree.
        limits: Of the composition.
    """

    def __init__(
        self,
        graph: nnx.GraphDef,
        cfg: ModelConfig,
        automaton: TokenAutomaton,
        *,
        mesh: Mesh,
        prompt: Sequence[int],
        width: int = 16,
        exploration: float = 1.0,
        temperature: float = 1.0,
        limits: CompositionLimits | None = None,
    ):
        self._automaton, self._prompt, self._width, self._exploration = automaton, tuple(prompt), width, exploration
        check_length(cfg, len(self._prompt) + automaton.max_tokens - 1)  # nothing reads EOS
        tables = to_device(automaton, jump=False)
        room = len(self._prompt) + automaton.max_tokens
        grants = AllowedValueMask(jnp.ones((width, len(automaton.values)), bool), jnp.full(width, NEVER))
        each = jax.tree.map(lambda x: jnp.broadcast_to(x, (width, *np.shape(x))), limits or make_limits())

        def go_on(
            params: nnx.State,
            key: Array,
            tokens: Int[Array, "b t"],
            count: Int[Array, " b"],
            state: Int[Array, " b"],
            counts: Int[Array, "b e"],
        ) -> _Written:
            model = nnx.merge(graph, params)
            sampling = SamplingParams(
                key=jax.random.split(key, width),
                temperature=jnp.full(width, temperature),
                top_p=jnp.ones(width),
                limits=each,
                reject_on_violation=jnp.zeros(width, bool),
            )
            with on_mesh(mesh):
                read = prefill(model, tables, tokens, count)
                empty = init_decode_state(cfg, tables, rows=width, prompt_tokens=room, max_tokens=automaton.max_tokens)
                progress = init_parse_state(width)._replace(counts=counts)
                rows = insert(tables, empty, read, sampling, jnp.arange(width))._replace(state=state, progress=progress)
                open_columns = (
                    allowed_mask(tables, each, grants, progress, state, sampling.reject_on_violation)
                    & tables.allowed[state]
                )
                prior = jax.nn.softmax(jnp.where(open_columns, rows.logits, -jnp.inf), axis=-1)

                def unfinished(rows: DecodeState) -> Array:
                    return is_active(tables, rows, grants).any()

                layers = model.layers()  # within the loop, this would copy the weights in each step
                rows = jax.lax.while_loop(
                    unfinished, lambda rows: decode_step(model, tables, rows, grants, layers=layers), rows
                )
            return _Written(prior, rows.columns, rows.written)

        self._go_on = jax.jit(go_on)

    def run(
        self, params: nnx.State, reward: Callable[[tuple[int, ...]], float], *, budget: int, seed: int = 0
    ) -> Iterator[SearchResult]:
        """Yields each finished text with its reward, until `budget` model calls are spent.

        A call is one probability distribution of a next token, as plain sampling needs one for each of its tokens.

        Args:
            params: The model's.
            reward: Token ids of a crystal, EOS left out, to what is to be large; a finite number.
            budget: Model calls; the round in which they run out is finished.
            seed: Of what is written beyond the tree.
        """
        key, calls = jax.random.key(seed), 0
        root: _Node | None = None
        low, high = np.inf, -np.inf  # of the rewards
        start = _Path([], *self._forced([], self._automaton.start))
        while calls < budget:
            scale = (low, high - low) if high > low else (0.0, 0.0)
            # A way that is being tried counts as visited with the smallest reward, so that others are tried beside it.
            paths = [start if root is None else self._descend(root, start, scale) for _ in range(self._width)]
            lent = scale[0]
            key, now = jax.random.split(key)
            seen = jax.device_get(self._go_on(params, now, *self._beginnings(paths)))
            for path, prior, columns, written in zip(paths, seen.prior, seen.columns, seen.written, strict=True):
                ended = path.state == self._automaton.end
                whole = [*path.columns, *([] if ended else columns[:written].tolist())]
                calls += 0 if ended else int(written)
                ids = tuple(self._automaton.token_ids[whole[:-1]].tolist())
                value = float(reward(ids))
                low, high = min(low, value), max(high, value)
                if root is None:
                    root = _Node(prior)
                for node, column in path.choices:
                    node.total[column] += value - lent
                if path.choices and not ended:
                    node, column = path.choices[-1]
                    node.children.setdefault(column, _Node(prior))
                yield SearchResult(ids=ids, reward=value, calls=calls)

    def _descend(self, root: _Node, start: _Path, scale: tuple[float, float]) -> _Path:
        """The way to a beginning that is not in the tree, or to the end of a text."""
        low, span = scale
        node: _Node | None = root
        choices, columns, state = [], list(start.columns), start.state
        while node is not None and state != self._automaton.end:
            visits = node.visits.sum()
            known = node.visits > 0
            value = np.zeros(len(node.prior))
            if span and known.any():
                value[known] = (node.total[known] / node.visits[known] - low) / span
                value[~known] = (node.total.sum() / visits - low) / span
            score = value + self._exploration * node.prior * np.sqrt(visits + 1) / (1 + node.visits)
            column = int(np.where(node.prior > 0, score, -np.inf).argmax())
            choices.append((node, column))
            node.visits[column] += 1
            node.total[column] += low
            node, state = node.children.get(column), int(self._automaton.next_state[state, column])
            columns, state = self._forced([*columns, column], state)
        return _Path(choices, columns, state)

    def _forced(self, columns: list[int], state: int) -> tuple[list[int], int]:
        """With the tokens that leave no choice; an end is a choice of its own."""
        while state != self._automaton.end and self._automaton.allowed[state].sum() == 1:
            column = int(self._automaton.allowed[state].argmax())
            columns, state = [*columns, column], int(self._automaton.next_state[state, column])
        return columns, state

    def _beginnings(self, paths: Sequence[_Path]) -> tuple[np.ndarray, ...]:
        """Tokens and their numbers, states and atoms of beginnings; of finished ones, of an empty one."""
        tokens = np.zeros((self._width, len(self._prompt) + self._automaton.max_tokens), np.int32)
        count, state = np.zeros(self._width, np.int32), np.zeros(self._width, np.int32)
        atoms = np.zeros((self._width, len(ELEMENTS)), np.int32)
        for row, path in enumerate(paths):
            read = [*self._prompt, *self._automaton.token_ids[path.columns]]
            state[row], count[row] = path.state, len(read)
            tokens[row, : len(read)] = read
            for symbol in self._automaton.read(path.columns)[LATTICE_WORDS::ATOM_WORDS]:
                atoms[row, ELEMENTS.index(symbol)] += 1
        return tokens, count, state, atoms
