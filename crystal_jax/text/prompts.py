"""Builds the paper's three prompts: generation, conditional generation, infilling (Gruver et al., figure 3).

A prompt ends with a newline, and the completion follows directly: a crystal's text, or one element symbol.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from crystal_jax.errors import RequestError
from crystal_jax.text.layout import MASK, composition_line, composition_of

_TASK = (
    "Generate a description of the lengths and angles of the lattice vectors and then the element type and "
    "coordinates for each atom within the lattice:\n"
)
_OPENING = "Below is a description of a bulk material. "
_INFILL_OPENING = (
    'Below is a partial description of a bulk material where one element has been replaced with the string "[MASK]":\n'
)
_INFILL_TASK = "\nGenerate an element that could replace [MASK] in the bulk material:\n"

# Condition names are the columns of the CDVAE data files.
CONDITIONS: Mapping[str, str] = {
    "pretty_formula": "The chemical formula is ",
    "formation_energy_per_atom": "The formation energy per atom is ",
    "band_gap": "The band gap is ",
    "e_above_hull": "The energy above the convex hull is ",
    "spacegroup.number": "The spacegroup number is ",
}
_DRAWN = tuple(name for name in CONDITIONS if name != "pretty_formula")

# All fixed phrases of prompts; small tokenizers have a token for each.
PHRASES = (_OPENING, _TASK, _INFILL_OPENING, _INFILL_TASK, *CONDITIONS.values())

Conditions = Mapping[str, str | float | int]


def generation_prompt(conditions: Conditions | None = None) -> str:
    """Returns the prompt for a new crystal; `conditions` are stated in their own order, floats with four decimals.

    Raises:
        RequestError: a condition is unknown.
    """
    stated = []
    for name, value in (conditions or {}).items():
        if name not in CONDITIONS:
            raise RequestError(f"Unknown condition {name!r}; expected one of {', '.join(CONDITIONS)}")
        stated.append(f"{CONDITIONS[name]}{round(value, 4) if isinstance(value, float) else value}. ")
    return f"{_OPENING}{''.join(stated)}{_TASK}"


def conditions_of(prompt: str) -> dict[str, str]:
    """Returns the conditions that a prompt states, as texts by their names: the inverse of `generation_prompt`.

    The prompt may be followed by a completion. A formula that the model drew is stated like one that was asked for.
    """
    found = {}
    for name, phrase in CONDITIONS.items():
        value, end, _ = prompt.partition(phrase)[2].partition(". ")
        if end:
            found[name] = value
    return found


def infill_prompt(masked_text: str) -> str:
    """Returns the prompt that asks for the element behind `[MASK]` in a crystal's text."""
    return f"{_INFILL_OPENING}{masked_text}{_INFILL_TASK}"


def mask_element(text: str, symbol: str, *, substring: bool = False) -> str:
    """Replaces an element by `[MASK]` in the lines of atoms and in the composition.

    `substring` reproduces the published behaviour, which also turns the Ca of a carbonate into `[MASK]a`; it exists
    only for parity.
    """
    if substring:
        return text.replace(symbol, MASK)
    lines = text.split("\n")
    if counts := composition_of(lines[0]):
        lines[0] = composition_line(MASK if s == symbol else s for s, n in counts.items() for _ in range(n))
    return "\n".join(
        MASK + line.removeprefix(symbol) if line == symbol or line.startswith(f"{symbol} ") else line for line in lines
    )


def draw_conditions(properties: Conditions, rng: np.random.Generator) -> dict[str, str | float | int]:
    """Draws conditions as the paper's training does.

    k is uniform in 0…4. For k = 0 no condition is stated; otherwise the formula comes first, then k of the other four
    conditions in random order. A missing property (NaN, or a negative space group) is skipped.
    """
    k = int(rng.integers(0, len(_DRAWN) + 1))
    if k == 0:
        return {}
    drawn = [_DRAWN[i] for i in rng.permutation(len(_DRAWN))[:k]]
    return {name: properties[name] for name in ("pretty_formula", *drawn) if _is_known(name, properties)}


def _is_known(name: str, properties: Conditions) -> bool:
    value = properties.get(name)
    if value is None or value == "":
        return False
    if isinstance(value, float) and math.isnan(value):
        return False
    return not (name == "spacegroup.number" and isinstance(value, int) and value < 1)
