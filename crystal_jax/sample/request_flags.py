"""The flags and settings that say what crystals are asked for, which `sample` and `search` share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from absl import flags

from crystal_jax import arguments
from crystal_jax.sample.requests import FORMULA, SPACEGROUP

MAX_ATOMS = 20
# Hints by name, and their flags.
HINT_FLAGS = {
    FORMULA: "formula",
    "formation_energy_per_atom": "formation_energy_per_atom",
    "band_gap": "band_gap",
    "e_above_hull": "e_above_hull",
    SPACEGROUP: "spacegroup",
}
# Least and greatest values; beyond them no job ends, or none fits into memory.
_BOUNDS = {
    "num_samples": (1, 10**9),
    "batch_size": (1, 1 << 20),
    "max_retries": (0, 10_000),
    "seed": (0, 2**32 - 1),  # JAX's keys repeat beyond
    "budget": (1, 10**9),
    "width": (1, 1 << 20),
    "max_atoms": (1, 500),  # the grammar has states for every atom
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LimitSettings:
    """Limits on every crystal, as the flags of these names."""

    chemical_system: str | Sequence[str] | None = None
    elements: Sequence[str] | None = None
    exclude_elements: Sequence[str] | None = None
    min_elements: int | None = None
    max_elements: int | None = None
    min_atoms: int | None = None
    max_atoms: int = MAX_ATOMS


def define_request_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags that say what crystals are asked for; `search` has them, too."""
    flags.DEFINE_string(
        "formula", None, "Limit: a chemical formula, such as LiFePO4; it stands in the prompt.", flag_values=flag_values
    )
    flags.DEFINE_string(
        "spacegroup", None, "Hint: a space group, by symbol or number, such as Pnma or 62.", flag_values=flag_values
    )
    flags.DEFINE_float(
        "e_above_hull", None, "Hint: an energy above the convex hull in eV/atom.", flag_values=flag_values
    )
    flags.DEFINE_float("band_gap", None, "Hint: a band gap in eV.", flag_values=flag_values)
    flags.DEFINE_float(
        "formation_energy_per_atom", None, "Hint: a formation energy in eV/atom.", flag_values=flag_values
    )
    flags.DEFINE_string(
        "chemical_system", None, "Limit: all of these elements and no others, such as Li-P-S.", flag_values=flag_values
    )
    flags.DEFINE_list("elements", None, "Limit: these elements only, such as Li,Fe,P,O.", flag_values=flag_values)
    flags.DEFINE_list("exclude_elements", None, "Limit: none of these elements.", flag_values=flag_values)
    flags.DEFINE_integer("min_elements", None, "Limit: fewest different elements.", flag_values=flag_values)
    flags.DEFINE_integer("max_elements", None, "Limit: most different elements.", flag_values=flag_values)
    flags.DEFINE_integer("min_atoms", None, "Limit: fewest atoms in a cell.", flag_values=flag_values)
    flags.DEFINE_integer("max_atoms", MAX_ATOMS, "Limit: most atoms in a cell.", flag_values=flag_values)


def hints_in(flag_values: flags.FlagValues) -> dict[str, Any]:
    """Returns the hints that flags ask for, by their names."""
    return {name: value for name, flag in HINT_FLAGS.items() if (value := flag_values[flag].value) is not None}


def limits_in(flag_values: flags.FlagValues) -> dict[str, Any]:
    """Returns the limits that flags ask for, as arguments of `sample` and `search`."""
    of_elements = ("chemical_system", "elements", "exclude_elements", "min_elements", "max_elements")
    names = (*of_elements, "min_atoms", "max_atoms")
    return {name: value for name in names if (value := flag_values[name].value) is not None}


def check_numbers(**numbers: int) -> None:
    """Raises UserError where a number is not whole, or beyond what any job can do."""
    for name, value in numbers.items():
        least, most = _BOUNDS[name]
        arguments.whole(name, value, least=least, most=most)
