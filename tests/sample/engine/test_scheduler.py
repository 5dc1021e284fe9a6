import dataclasses
import threading
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pymatgen.core import Composition

from crystal_jax.evaluate.chemistry.oxidation import load_oxidation_table
from crystal_jax.evaluate.chemistry.validity import compositional_invalid_reason, structural_invalid_reason
from crystal_jax.sample.constraints.guide import AllowedValues, field_of_atom
from crystal_jax.sample.constraints.masks import make_limits
from crystal_jax.sample.constraints.rules import Rules, make_guide
from crystal_jax.sample.engine import engine as engine_module
from crystal_jax.sample.engine import programs
from crystal_jax.sample.engine.request import GenerationRequest
from tests.experiments import logits
from tests.sample.engines import Untrained


@pytest.fixture(scope="module")
def short():
    return Untrained("atom_coordinate", max_atoms=3)


@pytest.fixture(scope="module")
def reference(short):
    """Twelve texts, two prompts, three rows, one token at a time."""
    return draw_some(short, short.engine(3, jump=False))


def draw_some(untrained, engine, number=12):
    other = untrained.prompt[:1]
    requests = [GenerationRequest(index=i, prompt=other if i % 3 else untrained.prompt, seed=5) for i in range(number)]
    return untrained.answers(engine, requests)


def same(found, expected):
    assert found.keys() == expected.keys()
    assert all(found[i].ids == expected[i].ids for i in expected)
    np.testing.assert_allclose(
        [found[i].log_prob for i in expected], [expected[i].log_prob for i in expected], atol=1e-3
    )


@pytest.mark.parametrize("rows", [1, 16])
def test_texts_do_not_depend_on_their_neighbours(short, reference, rows):
    same(draw_some(short, short.engine(rows)), reference)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
@pytest.mark.parametrize("coded", [False, True])
def test_nor_on_the_layout_of_the_cache(short, reference, platform, coded, monkeypatch):
    """The layouts of GPUs and TPUs, computed on this CPU; in 8 bits few texts stay the same, but all are crystals."""
    monkeypatch.setattr(engine_module, "platform_of", lambda mesh: platform)
    monkeypatch.setattr(programs, "platform_of", lambda mesh: platform)
    drawn = draw_some(short, short.engine(4, coded=coded))
    if not coded:
        same(drawn, reference)
    assert drawn.keys() == reference.keys()
    assert all(one.complete for one in drawn.values())


def test_nor_on_decode_threads(short, reference):
    """Two threads of four slots each, which share twelve requests and one set of compiled programs."""
    engine = short.engine(7, threads=2)
    threads = set()
    advance = engine.programs.advance

    def noted(params, layers, slots, answers):
        threads.add(threading.current_thread().name)
        return advance(params, layers, slots, answers)

    engine.programs.advance = noted
    same(draw_some(short, engine), reference)
    assert threads == {"decode 0", "decode 1"}


def test_nor_on_how_many_prompts_are_read_together(short, reference):
    engine = short.engine(12, prompts_at_once=1)
    prefill, rows = engine.programs.prefill, []

    def noted(params, tokens, count):
        rows.append(len(tokens))
        return prefill(params, tokens, count)

    engine.programs.prefill = noted
    same(draw_some(short, engine), reference)
    assert len(rows) > 1
    assert set(rows) == {1}


@pytest.mark.parametrize("mesh", [(4, 1, 1), (1, 2, 2)])
def test_nor_on_the_mesh(short, reference, mesh):
    same(draw_some(short, short.engine(4, mesh=mesh)), reference)


def test_nor_on_any_of_these_with_a_cache_in_8_bits(short, reference):
    """Texts are others, since their tokens are drawn from slightly other probabilities; most are not."""
    coded = draw_some(short, short.engine(3, jump=False, coded=True))
    same(draw_some(short, short.engine(64, coded=True)), coded)
    same(draw_some(short, short.engine(4, mesh=(1, 2, 2), coded=True)), coded)
    assert sum(coded[i].ids == reference[i].ids for i in reference) >= 6


def test_attempts_made_side_by_side_count_in_their_order(short):
    """With fewer requests than slots, later attempts run before it is known that the earlier ones fail."""

    def guide(fields):
        atom, part = divmod(len(fields) - 6, 4)
        if part != 3 or atom < 1:
            return AllowedValues({}, field_of_atom(max(atom, 1), 3))
        return AllowedValues({"z": np.arange(100) < 60}, field_of_atom(atom + 1, 3))

    limits = make_limits(min_atoms=2, max_atoms=3)
    requests = [
        GenerationRequest(
            index=i, prompt=short.prompt[: 1 + i % 2], guide=guide, limits=limits, max_retries=9, attempts=2, first=i
        )
        for i in range(6)
    ]
    one_by_one = short.answers(short.engine(1), requests)
    side_by_side = short.answers(short.engine(24), requests)
    same(side_by_side, one_by_one)
    restarts = [one_by_one[i].num_restarts for i in range(6)]
    assert [side_by_side[i].num_restarts for i in range(6)] == restarts
    assert len(set(restarts)) > 2
    assert max(restarts) > 2


def test_every_request_is_answered_once(reference):
    assert sorted(reference) == list(range(12))
    assert len({drawn.ids for drawn in reference.values()}) == 12


@pytest.mark.parametrize(
    ("name", "number", "max_atoms"), [("atom_coordinate", 10_000, 4), ("character", 256, 20), ("llama2", 256, 20)]
)
def test_every_text_of_an_untrained_model_can_be_read(name, number, max_atoms, request):
    """Nothing but the grammar keeps these in order."""
    path = request.getfixturevalue("shared") / "tokenizer/tokenizer.model" if name == "llama2" else None
    untrained = Untrained(name, path, max_atoms=max_atoms)
    drawn = untrained.run(untrained.engine(min(number, 1000)), number)
    sizes = Counter(len(untrained.crystal(one).symbols) for one in drawn.values())
    assert sizes.total() == number
    assert {1, 2, 3} <= set(sizes) <= set(range(1, max_atoms + 1))


def test_jumping_over_forced_tokens_changes_no_text(shared):
    untrained = Untrained("llama2", shared / "tokenizer/tokenizer.model", max_atoms=4)
    jumped, stepped = (untrained.run(untrained.engine(8, jump=jump), 24) for jump in (True, False))
    same(jumped, stepped)


def test_reported_log_probability_is_that_of_the_full_forward(short):
    """The cache, the chosen columns and the masks must add up to the plain model under the grammar."""
    automaton, prompt = short.automaton, short.prompt
    column = {int(t): c for c, t in enumerate(automaton.token_ids)}
    for drawn in short.run(short.engine(8), 8, temperature=0.7, top_p=0.9).values():
        ids = (*drawn.ids, short.tokenizer.eos_id)
        scores = np.asarray(logits(short.model, jnp.array([prompt + ids])))[0, len(prompt) - 1 : -1]
        state, total = automaton.start, 0.0
        for place, token in enumerate(ids):
            masked = np.where(automaton.allowed[state], scores[place][automaton.token_ids], -np.inf)
            total += float(jax.nn.log_softmax(masked)[column[token]])
            state = int(automaton.next_state[state, column[token]])
        assert state == automaton.end
        assert total == pytest.approx(drawn.log_prob, abs=1e-3)
        assert drawn.log_allowed_mass == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("name", ["atom_coordinate", "character", "llama2"])
def test_with_charge_and_distance_every_sample_is_valid(name, request):
    """By the evaluator, for an untrained model; also where prompts and rules differ within a batch."""
    path = request.getfixturevalue("shared") / "tokenizer/tokenizer.model" if name == "llama2" else None
    untrained = Untrained(name, path, max_atoms=6)
    rules = Rules(constraints=frozenset({"charge", "distance"}), max_atoms=6)
    guide, table = make_guide(rules, untrained.automaton), load_oxidation_table()
    # Most cells of an untrained model are too large for what it puts into them.
    requests = [
        GenerationRequest(index=i, prompt=untrained.prompt, guide=guide if i % 4 else None, attempts=1000)
        for i in range(96)
    ]
    drawn = untrained.answers(untrained.engine(16), requests)
    assert sorted(drawn) == list(range(96))
    sizes, faults = Counter(), Counter()
    for index, one in drawn.items():
        assert one.complete
        crystal = untrained.crystal(one)
        valid = crystal.forms_cell and structural_invalid_reason(crystal.to_structure()) is None
        valid = valid and compositional_invalid_reason(Composition(Counter(crystal.symbols)), table) is None
        assert valid or index % 4 == 0
        faults[valid] += 1
        sizes[len(crystal.symbols)] += 1
    assert faults[False] > 0  # without the guide
    assert len(sizes) > 2


def test_a_guide_that_forbids_nothing_changes_nothing(short, reference):
    def guide(fields):
        return AllowedValues({}, field_of_atom(len(fields[6::4]) + 1, 0))

    requests = [drawn.request for drawn in reference.values()]
    guided = short.answers(short.engine(5), [dataclasses.replace(one, guide=guide) for one in requests])
    same(guided, reference)
    assert all(drawn.num_restarts == 0 for drawn in guided.values())


def test_dead_ends_are_begun_again_and_at_last_given_up(short):
    """A guide under which a further atom has a place only where x is below ½."""

    def guide(fields):
        atom, part = divmod(len(fields) - 6, 4)
        if part != 3 or atom < 1:
            return AllowedValues({}, field_of_atom(max(atom, 1), 3))
        return AllowedValues({"z": np.full(100, float(fields[-2]) < 0.5)}, field_of_atom(atom + 1, 3))

    def never(fields):
        return guide((*fields[:-2], "0.99", "0.00")) if len(fields) > 8 else guide(fields)

    requests = [GenerationRequest(index=i, prompt=short.prompt, guide=guide) for i in range(12)]
    drawn = short.answers(short.engine(4), requests)
    assert all(one.complete for one in drawn.values())
    assert all((short.crystal(one).frac_coords[1:, 0] < 0.5).all() for one in drawn.values())
    assert sum(one.num_restarts for one in drawn.values()) > 0
    hopeless = GenerationRequest(
        index=0, prompt=short.prompt, guide=never, limits=make_limits(min_atoms=2, max_atoms=3), attempts=3
    )
    (given_up,) = short.answers(short.engine(4), [hopeless]).values()
    assert not given_up.complete
    assert given_up.num_restarts == 3


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"prompt": (1,) * 999}, "a prompt of 999 tokens"),
        ({"limits": make_limits(formula="NaCl", max_atoms=9)}, "max_atoms=9; there is room for 3"),
    ],
)
def test_what_there_is_no_room_for(short, asked, message):
    with pytest.raises(ValueError, match=message):
        short.run(short.engine(2), 1, **asked)


@pytest.mark.parametrize(("temperature", "top_p"), [(-1.0, 1.0), (float("nan"), 1.0), (1.0, 0.0), (1.0, 1.1)])
def test_impossible_settings(temperature, top_p):
    with pytest.raises(ValueError, match="must be"):
        GenerationRequest(index=0, prompt=(0,), temperature=temperature, top_p=top_p)
