"""The guide of texts by symmetry: random texts under it have the symmetry and the composition that they state."""

from collections import Counter

import numpy as np
import pytest
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from crystal_jax.errors import RequestError
from crystal_jax.sample.constraints.symmetry import SymmetryGuide
from crystal_jax.text.formats.wyckoff import WyckoffFormat
from crystal_jax.text.grammar.wyckoff import wyckoff_automaton
from crystal_jax.text.layout import composition_line
from crystal_jax.text.tokenizer import load_tokenizer

# Of pymatgen's own calls of spglib.
pytestmark = pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING:DeprecationWarning")
COMPOSITIONS = (
    {"Na": 1, "Cl": 1}, {"Sr": 1, "Ti": 1, "O": 3}, {"Li": 4, "Fe": 4, "P": 4, "O": 16}, {"Al": 2}, {"Si": 3, "O": 6},
    {"Mg": 2, "Al": 4, "O": 8}, {"La": 1, "Ni": 5}, {"H": 3, "N": 1},
)  # fmt: skip


@pytest.fixture(scope="module", params=["wyckoff", "character"])
def language(request):
    tokenizer = load_tokenizer(request.param)
    return tokenizer, wyckoff_automaton(tokenizer, WyckoffFormat(), max_orbits=28)


def random_text(tokenizer, automaton, guide, rng):
    """Draws a text as the engine does: at each token from those that automaton and guide allow."""
    state, columns = automaton.start, []
    answer = guide(())
    open_values = mask(automaton, answer)
    while state != automaton.end:
        if automaton.turn[state] >= answer.until:
            answer = guide(automaton.read(columns))
            open_values = mask(automaton, answer)
            assert automaton.turn[state] < answer.until
        kind = automaton.kind[state]
        allowed = [
            column
            for column in np.flatnonzero(automaton.allowed[state])
            if open_values[automaton.first[kind, column] : automaton.last[kind, column]].any()
        ]
        assert allowed, "a dead end"
        columns.append(int(rng.choice(allowed)))
        state = automaton.next_state[state, columns[-1]]
    return tokenizer.decode([int(automaton.token_ids[column]) for column in columns[:-1]]).removeprefix("\n")


def mask(automaton, answer):
    values = np.ones(len(automaton.values), bool)
    for field, allowed in answer.open.items():
        values[automaton.fields[field]] = allowed
    return values


@pytest.mark.parametrize("composition", COMPOSITIONS, ids=lambda c: composition_line(Counter(c).elements()))
def test_random_texts_are_crystals_of_their_composition(language, composition):
    rng = np.random.default_rng(0)
    guide = SymmetryGuide(language[1], composition)
    first = composition_line(Counter(composition).elements())
    groups = set()
    for _ in range(60):
        text = random_text(*language, guide, rng)
        crystal = WyckoffFormat().decode(f"{first}\n{text}")  # checks positions and composition
        assert crystal.num_atoms_primitive == sum(composition.values())
        groups.add(crystal.spacegroup)
    assert len(groups) > 10


def test_a_space_group_that_is_asked_for_is_enforced(language):
    """The crystals have at least its operations: spglib finds the group, or one that contains it."""
    rng = np.random.default_rng(1)
    composition = {"Li": 4, "Fe": 4, "P": 4, "O": 16}
    guide = SymmetryGuide(language[1], composition, spacegroup=62)
    found = 0
    for _ in range(20):
        text = random_text(*language, guide, rng)
        crystal = WyckoffFormat(has_composition=False).decode(text)
        assert crystal.spacegroup == 62
        lattice = crystal.lattice if min(crystal.lattice) > 2 else (7.0, 8.0, 9.0)
        structure = type(crystal)(62, lattice, crystal.orbits).to_structure()
        found += len(SpacegroupAnalyzer(structure, 0.001).get_symmetry_operations()) >= 8
    assert found == 20


def test_an_impossible_group_is_named(language):
    with pytest.raises(RequestError, match="space group 62 cannot be occupied with the atoms Na1Cl1"):
        SymmetryGuide(language[1], {"Na": 1, "Cl": 1}, spacegroup=62)
