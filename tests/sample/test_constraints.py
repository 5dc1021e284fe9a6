import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crystal_jax.sample.constraints import Grants, formula_unit, make_limits, permitted, to_device
from crystal_jax.sample.guide import NEVER, turn_of
from crystal_jax.text.automaton import END
from crystal_jax.text.crystal_text import ELEMENTS
from tests.sample.engines import Untrained


@pytest.fixture(scope="module", params=["atom_coordinate", "llama2"])
def untrained(request):
    path = request.getfixturevalue("shared") / "tokenizer/tokenizer.model" if request.param == "llama2" else None
    return Untrained(request.param, path, max_atoms=8)


@pytest.fixture(scope="module")
def engine(untrained):
    return untrained.engine(16)


def everything(automaton, rows):
    return Grants(jnp.ones((rows, len(automaton.values)), bool), jnp.full(rows, NEVER))


@pytest.mark.parametrize("formula", ["NaCl", "Np2N", "LiFeO2", "Cu"])
def test_compositions_are_multiples_of_the_formula(untrained, engine, formula):
    unit, multiples = formula_unit(formula), Counter()
    for drawn in untrained.run(engine, 48, limits=make_limits(formula=formula, max_atoms=8)).values():
        counts = Counter(untrained.crystal(drawn).symbols)
        assert counts.keys() == unit.keys()
        assert len({counts[symbol] / unit[symbol] for symbol in unit}) == 1
        multiples[counts.total() // sum(unit.values())] += 1
        assert drawn.log_kept < 0
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
    states = jnp.arange(len(automaton.next_state))
    limits = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(states), *np.shape(x))), make_limits(max_atoms=8))
    counts = jnp.zeros((len(states), len(ELEMENTS)), jnp.int32).at[:, 0].set(1)
    assert (permitted(tables, limits, everything(automaton, len(states)), counts, states) | ~tables.allowed).all()


def test_open_elements_are_those_with_a_completion():
    """Against brute force: every multiset of up to six atoms of three elements, as a beginning."""
    untrained = Untrained("atom_coordinate", max_atoms=6)
    automaton, tables = untrained.automaton, to_device(untrained.automaton)
    symbols, unit = ["Li", "Fe", "O"], {"Li": 1, "Fe": 1, "O": 2}
    goals = [{s: m * n for s, n in unit.items()} for m in (1, 2) if m * 4 <= 6]
    limits = make_limits(formula="LiFeO2", max_atoms=6)
    after_atom = int(np.flatnonzero(automaton.turn == turn_of(1, 0))[0])
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
        found = permitted(tables, row, everything(automaton, 1), jnp.asarray(numbers), state)[0]
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
