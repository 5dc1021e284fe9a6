"""Tables and arrays on the device that decide which tokens each slot may write next.

Three things decide it: the grammar, whose automaton all slots share; the order of the sites, if they have one; and the
slot's own limits on its composition. All of them are over *columns*: indices into the few tokens that the grammar uses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from crystal_jax.text.crystal_text import ELEMENTS
from crystal_jax.text.grammar.automaton import ANY, END, TokenAutomaton
from crystal_jax.text.grammar.composition_constraint import CompositionConstraint
from crystal_jax.text.layout import ATOM_WORDS, LATTICE_WORDS

_INDEX = {symbol: i for i, symbol in enumerate(ELEMENTS)}


class SiteOrder(NamedTuple):
    """The ascending order of sites: by x, then by y, then by z.

    (x, y, z) is compared as one integer, rank(x)·R² + rank(y)·R + rank(z), with R the number of distinct coordinates.

    Attributes:
        rank: Rank of each value: how many coordinates are smaller; values of other fields rank beyond all. Shape [n].
        worth: Factor of a coordinate's rank in the integer: R² in states of x, R in states of y, 1 in all others. Shape
            [n_states].
        drawn: Rank of the coordinate that a column completes, or -1; shape [n_kinds, k].
        forced: Summand of the integer that the coordinate forced after a state adds, or 0; shape [n_states].
        closed: Whether the forced coordinate is a z, which ends the site; shape [n_states].
    """

    rank: Int[Array, " n"]
    worth: Int[Array, " n_states"]
    drawn: Int[Array, "n_kinds k"]
    forced: Int[Array, " n_states"]
    closed: Bool[Array, " n_states"]


class DeviceAutomaton(NamedTuple):
    """A `TokenAutomaton` as arrays on the device.

    Attributes:
        token_ids: Token id of each column; shape [k].
        allowed: Columns that each state admits; shape [n_states, k].
        next_state: State after a column, where it is admitted; shape [n_states, k].
        forced: Columns that must follow a state, one after another, until there is a choice; shape [n_states, j].
        num_forced: Number of columns in a row of `forced` that count; shape [n_states].
        after: State after the forced columns; shape [n_states].
        completed: Index of the element that the forced columns complete, or -1; shape [n_states].
        turn: Number of the field that a state is in; shape [n_states].
        kind: Kind of a state: states of one kind are in the same part of the same field; shape [n_states].
        first, last: Range of the values that are possible after a column, for each kind; shape [n_kinds, k].
        complete: Index of the element that a column completes, or -1; shape [n_kinds, k].
        elements: Element indices of the values of the field `element`, without its end; these values are the last ones.
            Shape [v].
        start, end: State before the first token, and state after EOS.
        units: Numbers of formula units that a cell may have, from 1 on; shape [m].
        order: Tables of the site order, if sites have one.
    """

    token_ids: Int[Array, " k"]
    allowed: Bool[Array, "n_states k"]
    next_state: Int[Array, "n_states k"]
    forced: Int[Array, "n_states j"]
    num_forced: Int[Array, " n_states"]
    after: Int[Array, " n_states"]
    completed: Int[Array, " n_states"]
    turn: Int[Array, " n_states"]
    kind: Int[Array, " n_states"]
    first: Int[Array, "n_kinds k"]
    last: Int[Array, "n_kinds k"]
    complete: Int[Array, "n_kinds k"]
    elements: Int[Array, " v"]
    start: Int[Array, ""]
    end: Int[Array, ""]
    units: Int[Array, " m"]
    order: SiteOrder | None = None


def to_device(automaton: TokenAutomaton, *, jump: bool = True, sorted_sites: bool = False) -> DeviceAutomaton:
    """Returns the tables of an automaton as arrays on the device.

    Args:
        automaton: The grammar.
        jump: States force the tokens that leave no choice; otherwise each token is drawn.
        sorted_sites: Add the tables of the site order, which is kept where a violation rejects the sequence; there are
            none where the automaton does not distinguish coordinates, or tokens span two fields.
    """
    runs = [_forced_run(automaton, state) if jump else () for state in range(len(automaton.next_state))]
    forced = np.zeros((len(runs), max(map(len, runs))), np.int32)
    elements = [_INDEX[value] for value in automaton.values[automaton.fields["element"]] if value != END]
    # Element index of each value; the last entry is for index -1, which stands for no value.
    element = np.full(len(automaton.values) + 1, -1, np.int32)
    element[automaton.fields["element"]][:-1] = elements
    complete = element[automaton.done]
    after, completed = np.arange(len(runs), dtype=np.int32), np.full(len(runs), -1, np.int32)
    for state, run in enumerate(runs):
        forced[state, : len(run)] = run
        for column in run:
            completed[state] = max(completed[state], complete[automaton.kind[after[state]], column])
            after[state] = automaton.next_state[after[state], column]
    arrays = dict(
        token_ids=automaton.token_ids,
        allowed=automaton.allowed,
        next_state=automaton.next_state,
        forced=forced,
        num_forced=np.array([len(run) for run in runs], np.int32),
        after=after,
        completed=completed,
        turn=automaton.turn,
        kind=automaton.kind,
        first=automaton.first,
        last=automaton.last,
        complete=complete,
        elements=np.array(elements, np.int32),
        start=np.int32(automaton.start),
        end=np.int32(automaton.end),
        units=np.arange(1, automaton.max_atoms + 1, dtype=np.int32),
        order=_site_order(automaton, runs) if sorted_sites else None,
    )
    return DeviceAutomaton(**jax.tree.map(jnp.asarray, arrays))


def _site_order(automaton: TokenAutomaton, runs: Sequence[Sequence[int]]) -> SiteOrder | None:
    """Returns the tables of a `SiteOrder`, given the columns that are forced after each state."""
    if "z" not in automaton.fields:  # texts by symmetry have an order of their own
        return None
    values = automaton.values[automaton.fields["z"]]
    if not automaton.separate or ANY in values:
        return None
    ranks = {value: i for i, value in enumerate(sorted(values, key=float))}
    rank = np.full(len(automaton.values) + 1, _BEYOND, np.int32)
    rank[-1] = -1  # for index -1: no value
    for place in automaton.fields["xy"], automaton.fields["z"]:
        rank[place] = [ranks[value] for value in automaton.values[place]]
    drawn = rank[automaton.done]
    drawn[drawn == _BEYOND] = -1
    part = (automaton.turn - LATTICE_WORDS) % ATOM_WORDS  # 1, 2, 3 are x, y, z
    worth = len(ranks) ** np.where((automaton.turn > LATTICE_WORDS) & (part > 0), 3 - part, 0).astype(np.int32)
    forced, closed = np.zeros(len(runs), np.int32), np.zeros(len(runs), bool)
    for begin, run in enumerate(runs):
        state = begin
        for column in run:
            if (found := drawn[automaton.kind[state], column]) >= 0:  # once per run: the next one is a choice
                forced[begin], closed[begin] = found * worth[state], worth[state] == 1
            state = automaton.next_state[state, column]
    arrays = dict(rank=rank[:-1], worth=worth, drawn=drawn, forced=forced, closed=closed)
    return SiteOrder(**jax.tree.map(jnp.asarray, arrays))


_BEYOND = 1 << 30
_LONGEST_RUN = 8  # cap on forced tokens: every step has room for the longest run, also where fewer are forced


def _forced_run(automaton: TokenAutomaton, state: int) -> tuple[int, ...]:
    """Returns the columns forced after a state; EOS ends the run, since it is drawn and the model never reads it."""
    run: list[int] = []
    while len(run) < _LONGEST_RUN and automaton.allowed[state].sum() == 1:
        column = int(automaton.allowed[state].argmax())
        state = int(automaton.next_state[state, column])
        if state == automaton.end:
            break
        run.append(column)
    return tuple(run)


class CompositionLimits(NamedTuple):
    """The `CompositionConstraint` of each slot as arrays; on the host, of one slot, as NumPy arrays.

    Attributes:
        elements: Elements that may occur, bool; shape [b, e] (no b for a single slot).
        required: Elements that must occur, bool; shape [b, e].
        formula: Atoms of each element in a formula unit; all 0 where no formula is given. Shape [b, e].
        min_elements, max_elements: Numbers of distinct elements; shape [b].
        min_atoms, max_atoms: Numbers of atoms in the cell; shape [b].
    """

    elements: Any
    required: Any
    formula: Any
    min_elements: Any
    max_elements: Any
    min_atoms: Any
    max_atoms: Any


def limits_of(constraint: CompositionConstraint) -> CompositionLimits:
    """Returns a constraint as NumPy arrays, for one slot."""
    allowed, required = (np.zeros(len(ELEMENTS), bool) for _ in range(2))
    allowed[[_INDEX[symbol] for symbol in constraint.elements]] = True
    required[[_INDEX[symbol] for symbol in constraint.required]] = True
    counts = np.zeros(len(ELEMENTS), np.int32)
    for symbol, number in constraint.unit:
        counts[_INDEX[symbol]] = number
    numbers = (constraint.min_elements, constraint.max_elements, constraint.min_atoms, constraint.max_atoms)
    return CompositionLimits(allowed, required, counts, *(np.int32(number) for number in numbers))


def make_limits(**constraint: Any) -> CompositionLimits:
    """Returns the limits of `CompositionConstraint(**constraint)`.

    Raises:
        ValueError: no composition is within the limits, or something in them is no element or formula.
    """
    return limits_of(CompositionConstraint(**constraint))


def exactly(composition: Mapping[str, int]) -> CompositionLimits:
    """Returns the limits that allow exactly these numbers of atoms, as NumPy arrays, for one slot."""
    counts = np.zeros(len(ELEMENTS), np.int32)
    counts[[_INDEX[symbol] for symbol in composition]] = list(composition.values())
    atoms, elements = np.int32(counts.sum()), np.int32(len(composition))
    return CompositionLimits(np.ones(len(ELEMENTS), bool), counts > 0, counts, elements, elements, atoms, atoms)


def unlimited() -> CompositionLimits:
    """Returns limits that allow every composition, as NumPy arrays, for one slot."""
    every, none, many = np.ones(len(ELEMENTS), bool), np.zeros(len(ELEMENTS), bool), np.int32(1 << 20)
    return CompositionLimits(every, none, np.zeros(len(ELEMENTS), np.int32), np.int32(0), many, np.int32(0), many)


class AllowedValueMask(NamedTuple):
    """The latest answers of the slots' guides (`sample/constraints/guide.py`); NumPy arrays on the host.

    Attributes:
        open: Values that the next fields may hold, by their index in `TokenAutomaton.values`, bool; shape [b, n].
        until: Number of the first field at which a slot waits for another answer; shape [b].
    """

    open: Any
    until: Any


class ParseState(NamedTuple):
    """The part of each slot's sequence that decides which tokens may follow.

    Attributes:
        counts: Atoms of each element; shape [b, e].
        least: Smallest integer (see `SiteOrder`) that the next site may have, or the current one if it is incomplete;
            shape [b].
        site: Integer of the current site, with 0 for its missing coordinates; shape [b].
    """

    counts: Int[Array, "b e"]
    least: Int[Array, " b"]
    site: Int[Array, " b"]


def init_parse_state(rows: int) -> ParseState:
    """Returns the parse state of empty sequences."""
    return ParseState(jnp.zeros((rows, len(ELEMENTS)), jnp.int32), *jnp.zeros((2, rows), jnp.int32))


def allowed_mask(
    tables: DeviceAutomaton,
    limits: CompositionLimits,
    grants: AllowedValueMask,
    progress: ParseState,
    state: Int[Array, " b"],
    reject_on_violation: Bool[Array, " b"],
) -> Bool[Array, "b k"]:
    """Returns the columns that limits and guides allow and, where `reject_on_violation`, the site order as well.

    An element is allowed if some composition within the limits has one more atom of it; the end is allowed if the
    present composition is within the limits. A column is allowed if one of the values that are possible after it is.
    The grammar's own mask, `DeviceAutomaton.allowed`, is not applied.
    """
    counts = progress.counts
    present = counts > 0
    distinct, total, size = present.sum(axis=-1), counts.sum(axis=-1), limits.formula.sum(axis=-1)
    asked = size > 0
    whole = tables.units[:, None] * limits.formula[:, None]  # [b, m, e]
    atoms = tables.units * size[:, None]
    fits = (atoms >= limits.min_atoms[:, None]) & (atoms <= limits.max_atoms[:, None])
    contains = fits & (whole >= counts[:, None]).all(axis=-1)
    more = (contains[..., None] & (whole > counts[:, None])).any(axis=1)
    # After one more atom of each element: distinct elements, required elements still missing, further elements needed.
    missing = limits.required & ~present
    then_distinct = distinct[:, None] + ~present
    then_missing = missing.sum(axis=-1)[:, None] - missing
    needed = jnp.maximum(then_missing, limits.min_elements[:, None] - then_distinct)
    fits_in = then_distinct + then_missing <= limits.max_elements[:, None]
    has_room = jnp.maximum(needed, 0) < (limits.max_atoms - total)[:, None]
    open_elements = limits.elements & jnp.where(asked[:, None], more, fits_in & has_room)
    exact = (contains & (atoms == total[:, None])).any(axis=-1)
    is_complete = (total >= limits.min_atoms) & (distinct >= limits.min_elements) & ~missing.any(axis=-1)
    may_end = jnp.where(asked, exact, is_complete)

    elements = jnp.concatenate([open_elements[:, tables.elements], may_end[:, None]], axis=1)
    granted = grants.open
    if (order := tables.order) is not None:
        worth = order.worth[state]
        granted &= (order.rank >= (progress.least // worth - progress.site // worth)[:, None]) | ~reject_on_violation[
            :, None
        ]
    others = granted.shape[1] - elements.shape[1]
    values = jnp.concatenate([granted[:, :others], granted[:, others:] & elements], axis=1)
    before = jnp.pad(jnp.cumsum(values, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))  # allowed values before each one
    kind = tables.kind[state]
    ends = jnp.take_along_axis(before, tables.last[kind], axis=1)
    return ends > jnp.take_along_axis(before, tables.first[kind], axis=1)


def advance(
    tables: DeviceAutomaton, progress: ParseState, state: Int[Array, " b"], column: Int[Array, " b"]
) -> ParseState:
    """Returns the parse state after a column and its forced columns; either may complete an element or a coordinate."""
    counts, least, site = progress
    every, kind, after = jnp.arange(counts.shape[-1]), tables.kind[state], tables.next_state[state, column]
    drawn, forced = tables.complete[kind, column], tables.completed[after]
    counts += (drawn[:, None] == every).astype(jnp.int32) + (forced[:, None] == every)
    if (order := tables.order) is not None:
        rank, worth = order.drawn[kind, column], order.worth[state]
        drawn_part = jnp.where(rank >= 0, rank * worth, 0)
        for part, closed in (drawn_part, (rank >= 0) & (worth == 1)), (order.forced[after], order.closed[after]):
            site += part
            least, site = jnp.where(closed, site + 1, least), jnp.where(closed, 0, site)
    return ParseState(counts, least, site)
