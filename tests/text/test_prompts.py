import math
from collections import Counter

import numpy as np
import pytest

from crystal_jax.text.prompts import draw_conditions, generation_prompt, infill_prompt, mask_element

PROPERTIES = {
    "pretty_formula": "CaCO3",
    "formation_energy_per_atom": -2.0,
    "band_gap": 4.98765,
    "e_above_hull": 0.0,
    "spacegroup.number": 167,
}


def test_generation_prompt_states_conditions_in_their_order():
    prompt = generation_prompt({"pretty_formula": "CaCO3", "spacegroup.number": 167, "band_gap": 4.98765})
    assert prompt == (
        "Below is a description of a bulk material. The chemical formula is CaCO3. The spacegroup number is 167. "
        "The band gap is 4.9877. Generate a description of the lengths and angles of the lattice vectors and then "
        "the element type and coordinates for each atom within the lattice:\n"
    )
    assert "The energy above the convex hull is 0.0. " in generation_prompt({"e_above_hull": 0.0})
    with pytest.raises(ValueError, match="Unknown condition 'colour'"):
        generation_prompt({"colour": "white"})


def test_masking_by_line_spares_other_symbols():
    text = "5.0 5.0 5.0\n90 90 90\nCa\n0.00 0.00 0.00\nC\n0.50 0.50 0.50"
    assert mask_element(text, "C").split("\n")[2::2] == ["Ca", "[MASK]"]
    assert mask_element(text, "C", substring=True).split("\n")[2::2] == ["[MASK]a", "[MASK]"]
    prompt = infill_prompt(mask_element(text, "C"))
    assert prompt.count('"[MASK]"') == 1
    assert prompt.endswith("\nGenerate an element that could replace [MASK] in the bulk material:\n")


def test_conditions_are_drawn_as_in_the_paper():
    rng = np.random.default_rng(0)
    draws = [draw_conditions(PROPERTIES, rng) for _ in range(4000)]
    numbers = Counter(len(d) for d in draws)
    # k = 0…4 in equal shares; k of the four and the formula before them.
    assert set(numbers) == {0, 2, 3, 4, 5}
    assert all(abs(n / 4000 - 0.2) < 0.03 for n in numbers.values())
    assert all(next(iter(d)) == "pretty_formula" for d in draws if d)
    orders = {tuple(d) for d in draws if len(d) == 5}
    assert len(orders) == math.factorial(4)


def test_missing_properties_are_never_stated():
    rng = np.random.default_rng(0)
    unknown = {**PROPERTIES, "band_gap": math.nan, "spacegroup.number": -1}
    stated = {name for _ in range(200) for name in draw_conditions(unknown, rng)}
    assert stated == {"pretty_formula", "formation_energy_per_atom", "e_above_hull"}
