import csv
import json

import jax
import numpy as np
import pytest
from absl import flags
from flax import nnx
from pymatgen.core import Composition

from crystal_jax import flag_fields
from crystal_jax.config import MeshConfig
from crystal_jax.errors import UserError
from crystal_jax.sample.constraints.masks import make_limits
from crystal_jax.search.config import SearchConfig
from crystal_jax.search.rewards import named_reward
from crystal_jax.search.run import define_flags, search
from crystal_jax.search.tree import Search
from crystal_jax.sharding import make_mesh
from crystal_jax.text.crystal_text import Crystal
from tests.sample.engines import FORMAT, Untrained


@pytest.fixture(scope="module")
def untrained():
    return Untrained("atom_coordinate", max_atoms=2)


def found_by(untrained, reward, *, budget, seed=0, **options):
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    tree = Search(
        nnx.graphdef(untrained.model),
        untrained.model.cfg,
        untrained.automaton,
        mesh=mesh,
        prompt=untrained.prompt,
        width=4,
        limits=make_limits(elements=["Na", "Cl", "O", "Fe"], max_atoms=2),
        **options,
    )
    return list(tree.run(nnx.state(untrained.model), reward, budget=budget, seed=seed))


def crystal(untrained, ids) -> Crystal:
    return FORMAT.decode(untrained.tokenizer.decode(list(ids)))


def test_what_is_found_is_better_than_what_is_sampled(untrained):
    """The reward is known of the first token: the search must learn to choose it."""

    def longest_first(ids):
        return float(crystal(untrained, ids).lengths[0])

    found = found_by(untrained, longest_first, budget=3000)
    rewards = [one.reward for one in found]
    sampled = rewards[:4]  # before there is a tree
    # Lengths are 1.0 to 59.9 Å, and an untrained model hardly prefers any: 30 Å on average.
    assert sum(rewards[-40:]) / 40 > 50 > sum(sampled) / 4
    assert max(rewards) >= max(sampled)
    assert [one.calls for one in found] == sorted(one.calls for one in found)
    assert 3000 <= found[-1].calls < 3000 + 4 * 15
    for one in found:
        assert set(crystal(untrained, one.ids).symbols) <= {"Na", "Cl", "O", "Fe"}


def test_rewards_may_be_negative_and_equal_seeds_find_the_same(untrained):
    def few_atoms(ids):
        return -5.0 * len(crystal(untrained, ids).symbols)

    one, other = (found_by(untrained, few_atoms, budget=600, seed=3) for _ in range(2))
    assert one == other
    assert one != found_by(untrained, few_atoms, budget=600, seed=4)


def test_the_command(trained, tmp_path):
    path = search(
        trained,
        output=tmp_path / "out",
        reward=named_reward("validity"),
        reward_name="validity",
        budget=200,
        num_samples=5,
        max_atoms=2,
        width=4,
    )
    rows = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    rewards = [row["reward"] for row in rows]
    assert rewards == sorted(rewards, reverse=True)
    assert set(rewards) <= {0.0, 0.5, 1.0}
    assert len({row["text"] for row in rows}) == len(rows)
    with path.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == min(5, len(rows))
    with pytest.raises(UserError, match="a search is not continued"):
        search(trained, output=tmp_path / "out", reward=named_reward("validity"), reward_name="validity")


def test_a_composition_is_searched_where_one_is_stated_first(stating, tmp_path):
    """The formula's, with as many formula units as the model likes; and all crystals have it."""
    path = search(
        stating,
        output=tmp_path / "out",
        reward=lambda crystal: -float(np.prod(crystal.lengths)),
        reward_name="small cells",
        conditions={"pretty_formula": "MgF2"},
        budget=200,
        num_samples=5,
        width=4,
    )
    with path.open(newline="") as file:
        formulas = {line["formula"] for line in csv.DictReader(file)}
    assert len(formulas) == 1
    assert Composition(formulas.pop()).reduced_formula == "MgF2"


def test_a_search_keeps_to_a_chemical_system(stating, tmp_path):
    """With a hint and no formula, the formula is the model's own."""
    path = search(
        stating,
        output=tmp_path / "out",
        reward=lambda crystal: 0.0,
        reward_name="none",
        conditions={"spacegroup.number": "Fm-3m"},
        chemical_system="Na-K-Cl",
        max_atoms=4,
        budget=60,
        num_samples=5,
        width=4,
    )
    with path.open(newline="") as file:
        assert {Composition(line["formula"]).chemical_system for line in csv.DictReader(file)} == {"Cl-K-Na"}
    request = json.loads((tmp_path / "out/run.json").read_text())["request"]
    assert (request["limits"]["chemical_system"], request["hints"]) == (["Na", "K", "Cl"], ["spacegroup.number"])
    assert "The chemical formula is " in request["prompt"]


def test_a_search_without_a_composition_line_needs_a_formula_beside_a_hint(trained, tmp_path):
    options = dict(output=tmp_path / "out", reward=lambda crystal: 0.0, reward_name="none", budget=20, max_atoms=2)
    with pytest.raises(UserError, match=r"to search for spacegroup\.number, give a --formula as well"):
        search(trained, conditions={"spacegroup.number": 62}, **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 0}, "budget=0 must be a whole number from 1"),
        ({"seed": 2**40}, "seed=1099511627776 must be a whole number from 0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"conditions": {"spacegroup.number": 231}}, "no space group 231"),
        ({"reward": lambda crystal: float("nan"), "budget": 20, "max_atoms": 1}, "the reward mine is nan"),
    ],
)
def test_bad_searches(trained, tmp_path, changes, message):
    arguments = {"reward": lambda crystal: 0.0, "reward_name": "mine", **changes}
    with pytest.raises(UserError, match=message):
        search(trained, output=tmp_path / "out", **arguments)


def test_the_flags_have_the_defaults_of_the_settings():
    flag_values = flags.FlagValues()
    define_flags(flag_values)
    flag_values(["search", "--checkpoint=x", "--output=y", "--batch_size=3"])
    settings = flag_fields.given(flag_values, SearchConfig)
    assert settings == {
        "budget": 10_000, "num_samples": 20, "exploration": 1.0, "temperature": 1.0, "width": 3, "seed": 0
    }  # fmt: skip


def test_no_such_reward():
    with pytest.raises(UserError, match="no energy model 'beauty'"):
        named_reward("beauty")
