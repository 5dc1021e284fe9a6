"""Monte-Carlo tree search for sequences of high reward, with the model's probabilities as the prior.

The search runs over the tokens of a sequence: its lengths, angles, elements and coordinates. A node is a prefix, and an
action is a token that grammar and limits allow. Each round descends from the root by the rule PUCT (Silver et al.,
Nature 550, 354, 2017), with the model's probabilities as the prior,

    Q(token) + c · p(token) · √(1 + visits of the node) / (1 + visits of the token)

to a prefix that is not in the tree. The model completes that prefix, and the reward of the finished crystal is added to
every action on the path. Q is the mean reward, scaled by the smallest and the largest reward seen so far.
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
from crystal_jax.sample.engine.decode_state import DecodeState, SamplingParams, init_decode_state, insert, is_active
from crystal_jax.sample.engine.decode_step import decode_step, prefill
from crystal_jax.sharding import on_mesh
from crystal_jax.text.crystal_text import ELEMENTS
from crystal_jax.text.grammar.automaton import TokenAutomaton
from crystal_jax.text.layout import ATOM_WORDS, LATTICE_WORDS


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchResult:
    """A finished sequence.

    Attributes:
        ids: Token ids, without EOS.
        reward: Reward of the sequence.
        calls: Number of model calls made until it was finished.
    """

    ids: tuple[int, ...]
    reward: float
    calls: int


class _Node:
    """A visited prefix of a sequence.

    Attributes:
        prior: Probability of each column; 0 if it is not allowed.
        visits, total: How often each column was chosen, and the sum of its rewards.
        children: Node after each column.
    """

    __slots__ = ("children", "prior", "total", "visits")

    def __init__(self, prior: Float[np.ndarray, " k"]):
        self.prior = prior
        self.visits = np.zeros(len(prior))
        self.total = np.zeros(len(prior))
        self.children: dict[int, _Node] = {}


class _Path(NamedTuple):
    """A path down the tree.

    Attributes:
        choices: Nodes on the path, with the column chosen in each.
        columns: Columns of the prefix that the path leads to, forced ones included.
        state: Automaton state after the prefix.
    """

    choices: list[tuple[_Node, int]]
    columns: list[int]
    state: int


class _Written(NamedTuple):
    """The output of a round on the device.

    Attributes:
        prior: Probabilities of the token after each prefix.
        columns: Columns that complete each prefix.
        written: Number of these columns.
    """

    prior: Float[Array, "b k"]
    columns: Int[Array, "b n"]
    written: Int[Array, " b"]


class Search:
    """A tree search with one model and one prompt, which completes several prefixes side by side.

    Args:
        graph: Graph definition of the model.
        cfg: Configuration of the model.
        automaton: The grammar.
        mesh: Device mesh that holds the parameters.
        prompt: Token ids, BOS included.
        width: Prefixes that are completed side by side. A larger width is faster, but the prefixes of a round do not
            profit from one another's rewards.
        exploration: The constant c of the PUCT rule (see the module's docstring).
        temperature: Temperature of the tokens that complete a prefix.
        limits: Limits on the composition.

    Raises:
        UserError: the longest sequence has more tokens than the model can read.
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
        check_length(cfg, len(self._prompt) + automaton.max_tokens - 1)  # the model never reads EOS
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

                layers = model.layers()  # before the loop: within it, this would copy the weights in each step
                rows = jax.lax.while_loop(
                    unfinished, lambda rows: decode_step(model, tables, rows, grants, layers=layers), rows
                )
            return _Written(prior, rows.columns, rows.written)

        self._go_on = jax.jit(go_on)

    def run(
        self, params: nnx.State, reward: Callable[[tuple[int, ...]], float], *, budget: int, seed: int = 0
    ) -> Iterator[SearchResult]:
        """Yields each finished sequence with its reward, until `budget` model calls are spent.

        A call is one probability distribution of a next token; plain sampling needs one call per token.

        Args:
            params: Parameters of the model.
            reward: Maps the token ids of a crystal, without EOS, to the finite number to maximise.
            budget: Model calls; the round that exceeds it is completed.
            seed: Random seed of the tokens that complete prefixes.
        """
        key, calls = jax.random.key(seed), 0
        root: _Node | None = None
        low, high = np.inf, -np.inf  # smallest and largest reward
        start = _Path([], *self._forced([], self._automaton.start))
        while calls < budget:
            scale = (low, high - low) if high > low else (0.0, 0.0)
            # Virtual loss: a path in progress counts as visited with the smallest reward, so that the other slots of
            # the round take other paths.
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
        """Returns the path to a prefix that is not in the tree, or to the end of a sequence."""
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
        """Appends the tokens that leave no choice; EOS may be one of them."""
        while state != self._automaton.end and self._automaton.allowed[state].sum() == 1:
            column = int(self._automaton.allowed[state].argmax())
            columns, state = [*columns, column], int(self._automaton.next_state[state, column])
        return columns, state

    def _beginnings(self, paths: Sequence[_Path]) -> tuple[np.ndarray, ...]:
        """Returns the prefixes' tokens, padded, and their numbers of tokens, automaton states and atoms per element."""
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
