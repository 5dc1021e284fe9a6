"""Formulas that a model states itself, before it writes the crystal.

A model that was trained on prompts as well (`task.loss=all`, as published) knows how they go on after "The chemical
formula is ". A crystal that is drawn after a formula that was drawn is drawn from what the model has learned, as one
without a prompt is; but the composition is decided at once, before the lattice and the places of the atoms, and not
spread over them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Int, Key

from crystal_jax.checkpoint.models import Trained
from crystal_jax.errors import UserError
from crystal_jax.model.cache import empty_cache, put_rows
from crystal_jax.model.transformer import Transformer
from crystal_jax.sample.constraints import formula_unit
from crystal_jax.sample.decode import draw
from crystal_jax.sharding import on_mesh
from crystal_jax.text.crystal_text import ELEMENTS
from crystal_jax.text.prompts import formula_prompt
from crystal_jax.text.tokenizer import Tokenizer

LONGEST = 32  # tokens; the longest formula of MP-20 has 23 characters
_ATTEMPTS = 1000  # before a formula that nothing admits is given up
_STREAM = 0x464F524D  # a formula's random numbers are not those of its crystal


class Formulas:
    """Draws the formula of sample i, which depends on the seed and on i alone.

    Args:
        trained: The model.
        tokenizer: Its own.
        mesh: Where it is.
        elements: Those that formulas may hold.
        admit: What a formula must be, by the numbers of its atoms in the smallest whole formula; others are drawn
            again.
        seed: Of the job.
        at_once: Formulas drawn side by side; no influence on them.

    Raises:
        UserError: the model was not trained to state formulas.
    """

    def __init__(
        self,
        trained: Trained,
        tokenizer: Tokenizer,
        mesh: Mesh,
        *,
        elements: Sequence[str],
        admit: Callable[[Mapping[str, int]], bool],
        seed: int,
        at_once: int = 256,
    ):
        task = trained.experiment.task
        if not task.conditions or task.loss != "all":
            raise UserError(
                f"{trained.name} has not learned to state formulas; train with --config.task.conditions=true "
                "--config.task.loss=all, or ask for a --formula"
            )
        self._params, self._tokenizer, self._at_once = trained.params, tokenizer, at_once
        self._elements, self._admit = frozenset(elements), admit
        self._head = _beginning(tokenizer)
        within, stops = _token_sets(tokenizer, trained.experiment.model.vocab_size, self._elements)
        prompt = jnp.array([tokenizer.bos_id, *self._head])
        whole = NamedSharding(mesh, jax.P())

        def write(params: nnx.State, numbers: Int[Array, "b 2"], settings: tuple[Array, Array]) -> Int[Array, "b n"]:
            stream = jax.random.fold_in(jax.random.key(seed), _STREAM)
            keys = jax.vmap(lambda n: jax.random.fold_in(jax.random.fold_in(stream, n[0]), n[1]))(numbers)
            with on_mesh(mesh):
                model: Transformer = nnx.merge(trained.graph, params)
                return _go_on(model, prompt, keys, within, stops, settings)

        self._write = jax.jit(write, out_shardings=whole)

    def __call__(self, indices: Sequence[int], *, temperature: float, top_p: float) -> Iterator[tuple[int, str]]:
        """Pairs of a sample's number and its formula, in order; drawn as the crystals are.

        Raises:
            UserError: of some sample, none of 1,000 formulas was admitted.
        """
        settings = jnp.array(temperature), jnp.array(top_p)
        for begin in range(0, len(indices), self._at_once):
            some = list(indices[begin : begin + self._at_once])
            found: dict[int, str] = {}
            for attempt in range(_ATTEMPTS):
                if not (missing := [index for index in some if index not in found]):
                    break
                # Always as many as were compiled for.
                numbers = np.array([(index, attempt) for index in missing] or [(0, 0)], np.int32)
                numbers = np.resize(numbers, (self._at_once, 2))
                drawn = np.asarray(self._write(self._params, numbers, settings)).tolist()
                for index, ids in zip(missing, drawn, strict=False):
                    if formula := self._read(ids):
                        found[index] = formula
            else:
                raise UserError(f"none of {_ATTEMPTS} formulas that the model stated for a sample is admitted")
            yield from ((index, found[index]) for index in some)

    def _read(self, ids: Sequence[int]) -> str | None:
        """The formula that tokens begin with, if it is one and is admitted."""
        text = self._tokenizer.decode([*self._head, *ids]).removeprefix(formula_prompt())
        stated, stop, _ = text.partition(".")
        if not stop:
            return None
        try:
            unit = formula_unit(stated)
        except ValueError:
            return None
        return stated if self._elements.issuperset(unit) and self._admit(unit) else None


def _beginning(tokenizer: Tokenizer) -> list[int]:
    """The ids of a prompt up to its formula; a space before that may belong to the formula's first token."""
    examples = [tokenizer.encode(formula_prompt() + formula) for formula in ("H2O", "NaCl", "Ba(FeS2)2")]
    return [ids[0] for ids in itertools.takewhile(lambda ids: len(set(ids)) == 1, zip(*examples, strict=False))]


def _token_sets(
    tokenizer: Tokenizer, vocab_size: int, elements: frozenset[str]
) -> tuple[Bool[np.ndarray, " v"], Bool[np.ndarray, " v"]]:
    """Which tokens may stand in a formula, and which end it.

    Of tokens that are a whole element only `elements` may; what others spell together is judged afterwards.
    """
    pieces = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    closed = [not piece or (piece.strip() in ELEMENTS and piece.strip() not in elements) for piece in pieces]
    rest = vocab_size - len(pieces)  # rows that only make the vocabulary divide over a mesh
    return ~np.array(closed + [True] * rest), np.array(["." in piece for piece in pieces] + [False] * rest)


def _go_on(
    model: Transformer,
    prompt: Int[Array, " p"],
    keys: Key[Array, " b"],
    within: Bool[np.ndarray, " v"],
    stops: Bool[np.ndarray, " v"],
    settings: tuple[Array, Array],
) -> Int[Array, "b n"]:
    """`LONGEST` tokens after the prompt for each key; those after a stop mean nothing.

    `settings` are the temperature and top_p.
    """
    b, p = len(keys), len(prompt)
    hidden, read = model.read(prompt[None], jnp.array([p]))
    cache = put_rows(empty_cache(model.cfg, batch=b, capacity=p + LONGEST), read, jnp.zeros(b, jnp.int32))
    layers = model.layers()
    temperature, top_p = (jnp.full(b, setting) for setting in settings)

    def unfinished(carry: tuple) -> Array:
        return (carry[0] < LONGEST) & ~carry[1].all()

    def step(carry: tuple) -> tuple:
        number, stopped, hidden, ids, cache = carry
        logits = jnp.where(within, model.unembed(hidden)[:, -1], -jnp.inf)
        token = draw(jax.vmap(jax.random.fold_in, (0, None))(keys, number), logits, temperature, top_p)
        hidden, cache = model.extend(token[:, None], jnp.ones(b, jnp.int32), cache, layers=layers)
        ids = jax.lax.dynamic_update_slice_in_dim(ids, token[:, None], number, axis=1)
        return number + 1, stopped | jnp.asarray(stops)[token], hidden, ids, cache

    first = jnp.broadcast_to(hidden[:, -1:], (b, 1, hidden.shape[-1]))
    blank = jnp.zeros((b, LONGEST), jnp.int32)
    start = jnp.zeros((), jnp.int32), jnp.zeros(b, bool), first, blank, cache
    return jax.lax.while_loop(unfinished, step, start)[3]
