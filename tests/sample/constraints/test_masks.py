import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crystal_jax.sample.constraints.guide import NEVER, field_of_atom
from crystal_jax.sample.constraints.masks import (
    AllowedValueMask,
    allowed_mask,
    init_parse_state,
    make_limits,
    to_device,
)
from crystal_jax.text.conditions import formula_unit
from crystal_jax.text.crystal_text import ELEMENTS, TextFormat
from crystal_jax.text.grammar.automaton import END
from crystal_jax.text.grammar.crystal import crystal_automaton
from crystal_jax.text.tokenizer import load_tokenizer
from tests.sample.engines import Untrained


@pytest.fixture(scope="module", params=["atom_coordinate", "llama2"])
def named(request):
    """A tokenizer's name, and its file."""
    return request.param, (
        request.getfixturevalue("shared") / "tokenizer/tokenizer.model" if request.param == "llama2" else None
    )


@pytest.fixture(scope="module")
def untrained(named):
    return Untrained(*named, max_atoms=8)


@pytest.fixture(scope="module")
def engine(untrained):
    return untrained.engine(16)


def everything(automaton, rows):
    return AllowedValueMask(jnp.ones((rows, len(automaton.values)), bool), jnp.full(rows, NEVER))


@pytest.mark.parametrize("formula", ["NaCl", "Np2N", "LiFeO2", "Cu"])
def test_compositions_are_multiples_of_the_formula(untrained, engine, formula):
    unit, multiples = formula_unit(formula), Counter()
    for drawn in untrained.run(engine, 48, limits=make_limits(formula=formula, max_atoms=8)).values():
        counts = Counter(untrained.crystal(drawn).symbols)
        assert counts.keys() == unit.keys()
        assert len({counts[symbol] / unit[symbol] for symbol in unit}) == 1
        multiples[counts.total() // sum(unit.values())] += 1
        assert drawn.log_allowed_mass < 0
    assert set(multiples) <= set(range(1, 8 // sum(unit.values()) + 1))
    assert len(multiples) > 1


def test_elements_and_numbers_of_atoms(untrained, engine):
    # N, Np and Ni begin alike in some vocabularies.
    elements = ["N", "Np", "O", "Te"]
    limits = make_limits(elements=elements, min_atoms=3, max_atoms=5)
    crystals = [untrained.crystal(drawn) for drawn in untrained.run(engine, 64, limits=limits).values()]
    assert {symbol for crystal in crystals for symbol in crystal.symbols} == set(elements)
    assert {len(crystal.symbols) for crystal in crystals} == {3, 4, 5}


def test_without_limits_nothing_is_forbidden(untrained):
    automaton = untrained.automaton
    tables = to_device(automaton)
    states, n = jnp.arange(len(automaton.next_state)), len(automaton.next_state)
    limits = jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *np.shape(x))), make_limits(max_atoms=8))
    progress = init_parse_state(n)
    progress = progress._replace(counts=progress.counts.at[:, 0].set(1))
    found = allowed_mask(tables, limits, everything(automaton, n), progress, states, jnp.zeros(n, bool))
    assert (found | ~tables.allowed).all()


def test_open_elements_are_those_with_a_completion():
    """Against brute force: every multiset of up to six atoms of three elements, as a beginning."""
    untrained = Untrained("atom_coordinate", max_atoms=6)
    automaton, tables = untrained.automaton, to_device(untrained.automaton)
    symbols, unit = ["Li", "Fe", "O"], {"Li": 1, "Fe": 1, "O": 2}
    goals = [{s: m * n for s, n in unit.items()} for m in (1, 2) if m * 4 <= 6]
    limits = make_limits(formula="LiFeO2", max_atoms=6)
    after_atom = int(np.flatnonzero(automaton.turn == field_of_atom(1, 0))[0])
    done = automaton.done[automaton.kind[after_atom]]
    column = {s: int(np.flatnonzero(done == automaton.values.index(s))[0]) for s in (*symbols, END)}
    for counts in itertools.product(range(4), repeat=3):
        have = dict(zip(symbols, counts, strict=True))
        if not 0 < sum(counts) < 6 or not any(all(have[s] <= goal[s] for s in symbols) for goal in goals):
            continue
        numbers = np.zeros((1, len(ELEMENTS)), np.int32)
        for symbol, number in have.items():
            numbers[0, ELEMENTS.index(symbol)] = number
        row = jax.tree.map(lambda x: jnp.asarray(x)[None], limits)
        state = jnp.array([after_atom])
        progress = init_parse_state(1)._replace(counts=jnp.asarray(numbers))
        found = allowed_mask(tables, row, everything(automaton, 1), progress, state, jnp.zeros(1, bool))[0]
        for symbol in symbols:
            more = {**have, symbol: have[symbol] + 1}
            possible = any(all(more[s] <= goal[s] for s in symbols) for goal in goals)
            assert bool(found[column[symbol]]) == possible
        assert bool(found[column[END]]) == (have in goals)


@pytest.mark.parametrize("formula", ["LiFe2", "Li4Fe8", "Li0.5Fe"])
def test_the_smallest_whole_formula_is_meant(formula):
    assert formula_unit(formula) == {"Li": 1, "Fe": 2}


@pytest.mark.parametrize("formula", ["O", "O2", "O12"])
def test_a_gas_is_no_molecule_in_a_crystal(formula):
    assert formula_unit(formula) == {"O": 1}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"formula": "LiFePO4", "max_atoms": 6}, r"no multiple of LiFePO4 \(7 atoms\) has 1 to 6 atoms"),
        ({"formula": "NaCl", "elements": ["Na"]}, "NaCl has Cl, which the allowed elements leave out"),
        ({"formula": "Unobtainium3"}, "is not a chemical formula"),
        ({"formula": "()"}, "is not a chemical formula"),
        ({"elements": ["Xx"]}, "Not elements: Xx"),
        ({"elements": []}, "at least one allowed element"),
        ({"min_atoms": 5, "max_atoms": 4}, "min_atoms=5 must be at least 1 and at most max_atoms=4"),
    ],
)
def test_limits_that_nothing_is_within(asked, message):
    with pytest.raises(ValueError, match=message):
        make_limits(**asked)


def sites(crystal):
    return [tuple(round(100 * x) for x in position) for position in crystal.frac_coords]


def ascend(places):
    return all(a < b for a, b in itertools.pairwise(places))


def test_with_enough_redraws_sorted_sites_ascend(named):
    untrained, limits = Untrained(*named, max_atoms=3), make_limits(min_atoms=3, max_atoms=3)
    asked = dict(max_retries=1000, attempts=1)
    drawn = untrained.run(untrained.engine(16, sorted_sites=True), 24, limits=limits, **asked).values()
    assert all(ascend(sites(untrained.crystal(one))) for one in drawn)
    assert {len(untrained.crystal(one).symbols) for one in drawn} == {3}
    assert sum(one.num_restarts for one in drawn) > 24  # one text in six ascends by itself
    unsorted = untrained.run(untrained.engine(16), 24, limits=limits).values()
    assert not all(ascend(sites(untrained.crystal(one))) for one in unsorted)


@pytest.mark.parametrize("version", ["paper", "plain"])
def test_strict_rows_may_write_what_a_larger_site_has(version):
    """Against brute force, over some of the coordinates."""
    tokenizer = load_tokenizer("atom_coordinate")
    automaton = crystal_automaton(tokenizer, TextFormat(version=version), max_atoms=2)
    tables = to_device(automaton, sorted_sites=True)
    values = automaton.values[automaton.fields["z"]]
    rank, base = {value: i for i, value in enumerate(values)}, len(values)
    some = [values[i] for i in (0, 1, 50, base - 2, base - 1)]
    beginnings = [
        (last, begun)
        for last in itertools.product(some, repeat=3)
        for begun in itertools.chain.from_iterable(itertools.product(some, repeat=n) for n in range(3))
        if begun >= last[: len(begun)] and last != (values[-1],) * 3
    ]

    def number(*site):
        return sum(rank[value] * base ** (2 - place) for place, value in enumerate(site))

    one = jax.tree.map(jnp.asarray, make_limits(max_atoms=2))
    n = len(beginnings)
    progress = init_parse_state(n)._replace(
        least=jnp.array([number(*last) + 1 for last, _ in beginnings]),
        site=jnp.array([number(*begun) for _, begun in beginnings]),
    )
    states = [int(np.flatnonzero(automaton.turn == field_of_atom(1, len(begun) + 1))[0]) for _, begun in beginnings]
    limits = jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *x.shape)), one)
    args = tables, limits, everything(automaton, n), progress, jnp.array(states)
    reject_on_violation, lax = (np.asarray(allowed_mask(*args, jnp.full(n, flag))) for flag in (True, False))
    for (last, begun), state, columns in zip(beginnings, states, reject_on_violation, strict=True):
        done = automaton.done[automaton.kind[state]]
        found = {automaton.values[done[column]] for column in np.flatnonzero(columns & automaton.allowed[state])}
        highest = values[-1:] * (2 - len(begun))
        assert found == {value for value in values if (*begun, value, *highest) > last}
    assert (lax | ~automaton.allowed[states]).all()


def test_what_is_held_is_begun_again_first(untrained, engine):
    asked = dict(limits=make_limits(formula="NaCl", max_atoms=2))
    held, redrawn = untrained.run(engine, 24, **asked), untrained.run(engine, 24, max_retries=2, **asked)
    assert {one.num_restarts for one in held.values()} == {0}
    assert {one.num_restarts for one in redrawn.values()} == {2}  # 2 of 89 elements would have been right
    assert all(Counter(untrained.crystal(one).symbols) == {"Na": 1, "Cl": 1} for one in redrawn.values())
    few = untrained.run(untrained.engine(4), 24, max_retries=2, **asked)
    assert {i: one.ids for i, one in few.items()} == {i: one.ids for i, one in redrawn.items()}
    greedy = untrained.run(engine, 4, max_retries=2, temperature=0.0, **asked)
    assert {one.num_restarts for one in greedy.values()} == {0}
