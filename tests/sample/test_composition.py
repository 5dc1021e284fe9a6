"""Compositions that are drawn before the crystals that are held to them."""

import csv
import itertools
import json
import shutil
from collections import Counter

import jax
import numpy as np
import pytest
from pymatgen.core import Composition

from crystal_jax.checkpoint.inference import InferenceModel
from crystal_jax.checkpoint.models import load_trained
from crystal_jax.config import MeshConfig
from crystal_jax.errors import UserError
from crystal_jax.evaluate.chemistry.oxidation import load_oxidation_table
from crystal_jax.evaluate.chemistry.validity import compositional_invalid_reason
from crystal_jax.sample.composition import CompositionRequest, CompositionSampler
from crystal_jax.sample.run import sample
from crystal_jax.score.likelihood import Likelihood
from crystal_jax.sharding import make_mesh
from crystal_jax.text.crystal_text import TextFormat
from crystal_jax.text.grammar.composition import CompositionGrammar
from crystal_jax.text.grammar.composition_constraint import CompositionConstraint
from crystal_jax.text.prompts import generation_prompt
from crystal_jax.text.tokenizer import load_tokenizer, prompt_ids

ANY = CompositionConstraint()
V3 = TextFormat(version="composition_first")


@pytest.fixture(scope="module")
def sorting(stating, tmp_path_factory):
    """The same model, which says that it has learned sorted sites."""
    workdir = tmp_path_factory.mktemp("sorting") / "run"
    shutil.copytree(stating, workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["experiment"]["task"]["order"] = "sorted"
    (workdir / "config.json").write_text(json.dumps(config))
    return workdir


@pytest.fixture(scope="module")
def draws(stating):
    """Draws the lines of some samples, whose prompts have no conditions."""
    tokenizer = load_tokenizer("atom_coordinate")
    prompt = prompt_ids(tokenizer, generation_prompt())

    def draw(indices, *, wanted=ANY, admit=lambda counts: True, at_once=16, devices=1, temperature=1.0):
        mesh = make_mesh(MeshConfig(data=devices, fsdp=1, tensor=1), jax.devices()[:devices])
        trained = load_trained(stating, mesh)
        compositions = CompositionSampler(
            trained.graph,
            trained.experiment.model,
            CompositionGrammar(tokenizer, V3),
            mesh,
            prompt_tokens=len(prompt) + 3,  # there is room for a longer one
            seed=1,
            at_once=at_once,
        )
        asked = [CompositionRequest(index=index, prompt=prompt, wanted=wanted, admit=admit) for index in indices]
        return dict(
            zip(
                indices,
                compositions(trained.params, asked, temperature=temperature, top_p=1.0),
                strict=True,
            )
        )

    return draw


def test_a_line_depends_on_its_number_alone(draws):
    many = draws(range(20))
    some = draws([3, 17], at_once=4, devices=4)
    for index in (3, 17):
        assert some[index].ids == many[index].ids
        assert some[index].log_probs == pytest.approx(many[index].log_probs, abs=1e-4)
    assert len({stated.composition for stated in many.values()}) > 5


def test_what_is_drawn_again_does_not_depend_on_its_neighbours(draws):
    """Eight attempts at once, or one."""

    def admit(counts):
        return "O" not in counts and len(counts) == 2

    few, alone = (draws(range(8), admit=admit, at_once=n) for n in (64, 8))
    assert {i: stated.ids for i, stated in few.items()} == {i: stated.ids for i, stated in alone.items()}


def test_lines_keep_to_what_is_wanted_and_admitted(draws):
    wanted = CompositionConstraint(elements=frozenset(["Na", "K", "Cl"]), min_atoms=3, max_atoms=6)
    for stated in draws(range(12), wanted=wanted, admit=lambda counts: len(counts) == 2).values():
        counts = dict(stated.composition)
        assert len(counts) == 2
        assert set(counts) <= {"Na", "K", "Cl"}
        assert 3 <= sum(counts.values()) <= 6
        assert stated.log_allowed_mass < 0
    unit = CompositionConstraint(formula="NaCl")
    numbers = {dict(stated.composition)["Cl"] for stated in draws(range(30), wanted=unit, temperature=5.0).values()}
    assert len(numbers) > 1  # how many formula units, is the model's choice


def test_lines_under_a_constraint_follow_the_models_own_distribution(draws, monkeypatch):
    """Against the exact one: the probability of each line that the constraint admits, among all of these.

    The constraint forbids most of what may follow the first element, so masks alone would end most lines there.
    """
    wanted = CompositionConstraint(elements=("Na", "K", "Cl", "F"), max_atoms=3)

    def distribution(proposals):
        monkeypatch.setattr("crystal_jax.sample.composition._PROPOSALS", proposals)
        lines = list(draws(range(1500), wanted=wanted, at_once=256).values())
        counts = Counter(line.composition for line in lines)
        exact = {line.composition: np.exp(sum(line.log_probs)) for line in lines}
        total = sum(exact.values())
        distance = 0.5 * sum(abs(counts[c] / len(lines) - exact[c] / total) for c in exact)
        return distance, len(exact)

    near, seen = distribution(32)
    far, _ = distribution(1)
    assert seen > 10
    assert near < 0.08  # 1,500 draws of some 20 lines differ by 0.05 from their own distribution
    assert far > 2 * near


def test_the_model_learns_which_compositions_there_are(draws):
    """The data are rock salts: metal and anion one to one."""
    drawn = draws(range(40), temperature=0.5).values()
    assert Counter(len(stated.composition) for stated in drawn).most_common(1)[0][0] == 2


def test_what_is_never_admitted_is_given_up(draws):
    (stated,) = draws([0], admit=lambda counts: False).values()
    assert not stated.admitted
    assert stated.rejected == 999
    drawn = draws(range(20))
    rare = drawn[0].composition
    kept = draws(range(20), admit=lambda counts: tuple(counts.items()) != rare)
    assert kept[0].rejected > 0
    assert all(kept[i] == drawn[i] for i in kept if drawn[i].composition != rare)


def test_a_sample_without_a_composition_is_a_dead_end(stating, tmp_path, monkeypatch):
    """Of which there are two, the others are there; and it is reported, not drawn for ever."""
    offered = itertools.count()
    monkeypatch.setattr(
        "crystal_jax.sample.sample_spec.make_admission", lambda *_: lambda counts: next(offered) >= 2000
    )
    monkeypatch.setattr("crystal_jax.sample.composition._ATTEMPTS", 100)
    monkeypatch.setattr("crystal_jax.sample.sample_spec._AT_ONCE", 4)
    path = sample(stating, output=tmp_path / "out", num_samples=24, batch_size=8)
    rows = [json.loads(line) for line in (path.parent / "samples.jsonl").open()]
    assert [row["index"] for row in rows] == list(range(24))
    assert [row["status"] for row in rows] == ["dead end"] * 20 + ["complete"] * 4
    assert {row["num_restarts"] for row in rows[:20]} == {100}
    with path.open(newline="") as file:
        assert [bool(line["formula"]) for line in csv.DictReader(file)] == [False] * 20 + [True] * 4


def test_what_is_not_kept_to_is_stated_again(sorting, tmp_path):
    """However many are drawn at once; and without max_retries it is kept to."""

    def rows(name, **options):
        path = sample(sorting, output=tmp_path / name, num_samples=24, seed=5, constraints="none", **options)
        return [json.loads(line) for line in (path.parent / "samples.jsonl").open()]

    held, redrawn, few = (
        rows("held", max_retries=0),
        rows("redrawn", max_retries=2),
        rows("few", max_retries=2, batch_size=4),
    )
    assert [row["text"] for row in few] == [row["text"] for row in redrawn]
    assert [row["num_restarts"] for row in few] == [row["num_restarts"] for row in redrawn]
    lines = [[row["text"].partition("\n")[0] for row in some] for some in (held, redrawn)]
    again = [row["num_restarts"] for row in redrawn]
    assert {row["num_restarts"] for row in held} == {0}
    assert all(one == other for tries, one, other in zip(again, *lines, strict=True) if tries <= 2)
    assert max(again) > 2  # and so at another composition
    assert lines[0] != lines[1]
    for row in redrawn:
        assert row["status"] == "complete"
        symbols = V3.decode(row["text"]).symbols
        assert row["text"].partition("\n")[0] == V3.layout.first_line(symbols)


def test_probabilities_are_those_of_the_whole_text(stating, tmp_path):
    """Of a text drawn in two parts, the model says what the parts come to; what the grammar forbids, aside."""
    path = sample(stating, output=tmp_path / "out", num_samples=6, batch_size=6, temperature=0.3)
    rows = [json.loads(line) for line in (path.parent / "samples.jsonl").open()]
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    tokenizer = load_tokenizer("atom_coordinate")
    model = InferenceModel(stating, load_trained(stating, mesh), tokenizer, mesh)
    likelihood = Likelihood(model, prompt=generation_prompt(), batch_size=6)
    whole = likelihood([likelihood.encode(row["text"]) for row in rows])
    for row, log_prob in zip(rows, whole, strict=True):
        assert row["tokens"] == len(row["token_log_probs"])
        # Among what the grammar admits, and after the share that the composition leaves, a text is more probable.
        assert np.isfinite(log_prob)
        assert row["log_prob"] >= log_prob - 1e-3


def test_crystals_have_the_composition_of_their_first_line(stating, tmp_path):
    """With charges that balance, in a space group that is asked for; however often the job is stopped."""
    options = dict(
        conditions={"spacegroup.number": 225}, constraints=["charge"], exclude_elements=["H"], min_atoms=3, max_atoms=8
    )
    path = sample(stating, output=tmp_path / "out", num_samples=12, batch_size=8, **options)
    rows = [json.loads(line) for line in (path.parent / "samples.jsonl").open()]
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(rows) == len(lines) == 12
    for row, line in zip(rows, lines, strict=True):
        assert "The spacegroup number is 225. Generate" in row["prompt"]
        symbols = V3.decode(row["text"]).symbols
        assert row["text"].partition("\n")[0] == V3.layout.first_line(symbols)
        assert 3 <= len(symbols) <= 8
        assert "H" not in symbols
        assert compositional_invalid_reason(Composition(line["formula"]), load_oxidation_table()) is None
    sample(stating, output=tmp_path / "again", num_samples=5, batch_size=4, **options)
    sample(stating, output=tmp_path / "again", num_samples=12, batch_size=4, **options)
    again = [json.loads(line)["text"] for line in (tmp_path / "again/samples.jsonl").open()]
    assert again == [row["text"] for row in rows]


def test_a_requested_formula_is_held_to(stating, tmp_path):
    path = sample(
        stating,
        output=tmp_path / "out",
        num_samples=6,
        batch_size=4,
        conditions={"pretty_formula": "MgO"},
        constraints=["formula", "charge", "distance"],
    )
    with path.open(newline="") as file:
        formulas = [Composition(line["formula"]).reduced_formula for line in csv.DictReader(file)]
    assert formulas == ["MgO"] * 6
    with pytest.raises(UserError, match="charges of NaO3 cannot balance"):
        sample(
            stating,
            output=tmp_path / "never",
            conditions={"pretty_formula": "NaO3"},
            constraints=["formula", "charge"],
        )
