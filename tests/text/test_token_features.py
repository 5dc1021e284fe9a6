import numpy as np
import pytest

from crystal_jax.text.token_features import token_features
from crystal_jax.text.tokenizer import AtomCoordinateTokenizer


@pytest.fixture(scope="module")
def alike():
    """The mean product of two tokens' features."""
    tokenizer = AtomCoordinateTokenizer()
    features = token_features(tokenizer)

    def product(a, b):
        return float((features[tokenizer.spell("", a)[0]] * features[tokenizer.spell("", b)[0]]).mean())

    return product


@pytest.mark.parametrize("token", ["5.0", "59.9", "90", "0.00", "0.99", "Fe", "He", "Pu"])
def test_rows_have_mean_square_one(alike, token):
    assert alike(token, token) == pytest.approx(1)


@pytest.mark.parametrize(
    ("token", "near", "far"),
    [
        ("5.0", "5.1", "5.9"),
        ("90", "91", "97"),
        ("0.31", "0.32", "0.38"),
        ("0.99", "0.01", "0.07"),
        ("Fe", "Co", "Na"),
        ("Fe", "Ru", "O"),
        ("La", "Ce", "Cl"),
        ("F", "Cl", "Cs"),
    ],
)
def test_what_is_near_is_alike(alike, token, near, far):
    assert alike(token, near) > alike(token, far) + 0.1


def test_a_whole_turn_is_none(alike):
    assert alike("0.00", "1.00") == pytest.approx(1)


def test_kinds_are_orthogonal(alike):
    kinds = ("5.0", "90", "0.50", "Fe")
    assert all(alike(a, b) == 0 for a in kinds for b in kinds if a != b)


def test_what_is_no_number_and_no_element_has_no_features():
    tokenizer = AtomCoordinateTokenizer()
    without = np.flatnonzero(~token_features(tokenizer).any(axis=1))
    assert {tokenizer.bos_id, tokenizer.eos_id} <= set(without.tolist())
    assert not any(tokenizer.decode([i]).strip() in {"Fe", "0.50", "90", "5.0"} for i in without)
