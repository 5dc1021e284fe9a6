"""A wrong type is one sentence that names the argument."""

from pathlib import Path

import pytest

from crystal_jax import arguments
from crystal_jax.errors import UserError


def test_what_is_meant_is_taken():
    assert arguments.path("output", "~/x") == Path.home() / "x"
    assert arguments.words("constraints", "charge, distance") == ["charge", "distance"]
    assert arguments.words("constraints", ("charge",)) == ["charge"]
    assert arguments.numbers("temperature", 1) == [1]
    assert arguments.numbers("temperature", [0.5, 1.0]) == [0.5, 1.0]
    assert arguments.whole("seed", 3, least=0, most=5) == 3


@pytest.mark.parametrize(
    ("check", "value"),
    [
        (arguments.path, 3),
        (arguments.path, None),
        (arguments.words, 3),
        (arguments.words, [1, 2]),
        (arguments.numbers, "warm"),
        (arguments.numbers, []),
        (arguments.numbers, [True]),
    ],
)
def test_other_types_are_a_sentence(check, value):
    with pytest.raises(UserError, match=r"^name="):
        check("name", value)


@pytest.mark.parametrize("value", [True, 1.5, -1, 10**20, "1", None])
def test_numbers_have_bounds(value):
    with pytest.raises(UserError, match="must be a whole number from 0 to 10"):
        arguments.whole("name", value, least=0, most=10)
