import pytest

from crystal_jax.errors import UserError
from tfds_mp20 import splits


def examples(counts: dict[str, int]):
    return [{"formula": formula, "number": i} for formula, n in counts.items() for i in range(n)]


def formulas(parts, name):
    return {example["formula"] for example in parts[name]}


def test_no_formula_is_in_two_splits_and_nothing_is_lost():
    crystals = examples({f"A{i}": 1 + i % 4 for i in range(200)})
    parts = splits.by_formula(crystals)
    train, val, test = (formulas(parts, name) for name in splits.NAMES)
    assert len(train | val | test) == len(train) + len(val) + len(test) == 200
    assert sorted(map(str, crystals)) == sorted(str(x) for part in parts.values() for x in part)
    for name in (splits.VAL, splits.TEST):
        assert 0.05 <= len(parts[name]) / len(crystals) < 0.06


def test_the_order_of_the_crystals_does_not_matter():
    crystals = examples({f"A{i}": 2 for i in range(40)})
    there, back = splits.by_formula(crystals), splits.by_formula(crystals[::-1])
    assert all(formulas(there, name) == formulas(back, name) for name in splits.NAMES)


@pytest.mark.parametrize("big", ["A", "B", "C"])
def test_three_formulas_fill_three_splits(big):
    parts = splits.by_formula(examples({"A": 1, "B": 1, "C": 1} | {big: 90}))
    assert all(len(formulas(parts, name)) == 1 for name in splits.NAMES)


def test_two_formulas_are_refused():
    with pytest.raises(UserError, match=r"^2 different formula\(s\)"):
        splits.by_formula(examples({"A": 50, "B": 50}))
