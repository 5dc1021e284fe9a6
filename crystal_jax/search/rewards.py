"""Rewards of crystals: validity, or minus the energy per atom by an energy model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from pymatgen.core import Composition

from crystal_jax.energy.model import Cell, load_model
from crystal_jax.evaluate.chemistry.oxidation import load_oxidation_table
from crystal_jax.evaluate.chemistry.validity import (
    compositional_invalid_reason,
    implausible_reason,
    structural_invalid_reason,
)
from crystal_jax.suppress_warnings import quiet
from crystal_jax.text.crystal_text import Crystal

Reward = Callable[[Crystal], float]
_WORST_ENERGY = 10.0  # eV/atom; upper bound of the energy, also used for invalid structures


def named_reward(name: str) -> Reward:
    """Returns a reward by name: `validity`, or the name of an energy model.

    `validity` is the mean of two tests, so 0, ½ or 1: the structure is valid and plausible, and the composition is
    valid. The reward of an energy model is minus the energy per atom in eV, unrelaxed, and at least -10; it is -10 if
    the structure is not valid and plausible, or has elements that the model does not cover.

    Raises:
        UserError: there is no such energy model.
    """
    return _validity() if name == "validity" else _stability(name)


def _validity() -> Reward:
    table = load_oxidation_table()

    @quiet()
    def validity(crystal: Crystal) -> float:
        balanced = compositional_invalid_reason(Composition(Counter(crystal.symbols)), table) is None
        return (_is_structure(crystal) + balanced) / 2

    return validity


def _stability(energy_model: str) -> Reward:
    model = load_model(energy_model)

    @quiet()
    def stability(crystal: Crystal) -> float:
        if not _is_structure(crystal) or any(site.specie.Z not in model.elements for site in crystal.to_structure()):
            return -_WORST_ENERGY
        (prediction,) = model.predict([Cell.of(crystal.to_structure())])
        return max(-prediction.energy / len(crystal.symbols), -_WORST_ENERGY)

    return stability


def _is_structure(crystal: Crystal) -> bool:
    """Whether the structure is valid and plausible."""
    if not crystal.forms_cell:
        return False
    structure = crystal.to_structure()
    return structural_invalid_reason(structure) is None and implausible_reason(structure) is None
