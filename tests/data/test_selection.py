import dataclasses

import pytest

from crystal_jax.config import DataConfig
from crystal_jax.data.mp20 import open_split
from crystal_jax.data.selection import selected
from crystal_jax.errors import UserError

CFG = DataConfig(directory="rock salts", seq_len=8, batch_size=1, packing_bins=1, seed=0)


@pytest.fixture(scope="module")
def records(dataset):
    return open_split(dataset, "train")


def elements(record):
    return {int(z) for z in record.atomic_numbers}


def test_a_chemistry_is_held_out_or_is_all_there_is(records):
    z = sorted(set.union(*(elements(record) for record in records)))
    symbols = {9: "F", 17: "Cl", 8: "O", 35: "Br", 16: "S"}
    number = next(n for n in z if n in symbols and 0 < sum(n in elements(r) for r in records) < len(records))
    without = selected(records, dataclasses.replace(CFG, exclude_elements=(symbols[number],)))
    containing = selected(records, dataclasses.replace(CFG, include_elements=(symbols[number],)))
    assert all(number not in elements(record) for record in without)
    assert all(number in elements(record) for record in containing)
    assert len(without) + len(containing) == len(records)
    assert selected(records, CFG) is records


def test_an_empty_choice_and_what_is_no_element_are_refused(records):
    with pytest.raises(UserError, match=r"none of \d+ crystals of rock salts is left by .*include_elements="):
        selected(records, dataclasses.replace(CFG, include_elements=("Lr",)))
    with pytest.raises(ValueError, match=r"data.exclude_elements has Xx; it is a tuple of elements"):
        dataclasses.replace(CFG, exclude_elements=("Xx",))
    with pytest.raises(ValueError, match=r"data.exclude_elements has 'H'; it is a tuple"):
        dataclasses.replace(CFG, exclude_elements="H")
