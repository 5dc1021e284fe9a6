import dataclasses
from collections import Counter

import numpy as np
import pytest

from crystal_jax.config import DataConfig, TaskConfig
from crystal_jax.data.examples import ExampleMaker, crystal_of
from crystal_jax.data.mp20 import open_split
from crystal_jax.data.pipeline import fitting, train_batches, validation_batches
from crystal_jax.errors import UserError
from crystal_jax.text.crystal_text import TextFormat
from crystal_jax.text.fields import COORDINATE, ELEMENT, END, LATTICE
from crystal_jax.text.prompts import MASK
from crystal_jax.text.tokenizer import load_tokenizer

TASK = TaskConfig(infill=0.4, conditions=True, translate=True, order="random", loss="completion")
DATA = DataConfig(directory="", seq_len=256, batch_size=3, packing_bins=4, seed=0)


@pytest.fixture(scope="module")
def records(dataset):
    return open_split(dataset, "train")


def maker(**changes):
    task = TaskConfig(**{**vars(TASK), **changes})
    return ExampleMaker(load_tokenizer("atom_coordinate"), TextFormat(), task)


def segments_of(batch):
    """Every packed example as (tokens, targets, weights, positions)."""
    for row in range(len(batch["tokens"])):
        for segment in range(1, batch["segments"][row].max() + 1):
            where = batch["segments"][row] == segment
            yield tuple(batch[name][row][where] for name in ("tokens", "targets", "weights", "positions"))


def test_an_element_beyond_those_of_the_texts_is_named(records):
    heavy = dataclasses.replace(records[0], atomic_numbers=np.array([8, 104], np.int32))
    with pytest.raises(ValueError, match=r"element 104 has no symbol .* end with Lr"):
        crystal_of(heavy)


@pytest.mark.parametrize("name", ["atom_coordinate", "character", "llama2"])
def test_validation_knows_the_class_of_each_target(records, shared, name):
    tokenizer = load_tokenizer(name, shared / "tokenizer/tokenizer.model" if name == "llama2" else None)
    make = ExampleMaker(tokenizer, TextFormat(), TASK, classify=True)
    (batch,) = validation_batches(records, make, dataclasses.replace(DATA, seq_len=1024), limit=1)
    counted = batch["weights"] > 0
    assert set(np.unique(batch["classes"][counted])) == {LATTICE, ELEMENT, COORDINATE, END}
    np.testing.assert_array_equal((batch["classes"] == END) & counted, batch["targets"] == tokenizer.eos_id)


def test_packed_rows_hold_whole_examples(records):
    make = maker()
    tokenizer, text_format = make.tokenizer, make.text_format
    batches = train_batches(records, make, DATA)
    infilled = generated = 0
    for _ in range(4):
        batch = next(batches)
        assert batch["tokens"].shape == (3, 256)
        assert batch["weights"][batch["segments"] == 0].sum() == 0
        for tokens, targets, weights, positions in segments_of(batch):
            assert tokens[0] == tokenizer.bos_id
            assert targets[-1] == tokenizer.eos_id
            np.testing.assert_array_equal(tokens[1:], targets[:-1])
            np.testing.assert_array_equal(positions, np.arange(len(tokens)))
            completion = tokenizer.decode(targets[weights == 1].tolist())
            if MASK in tokenizer.decode(tokens.tolist()):
                infilled += 1
                assert completion in ("Na", "Cl", "Mg", "O", "K", "Br", "Li", "F", "Ca")
            else:
                generated += 1
                assert len(text_format.decode(completion).symbols) == 2
    assert infilled > 0
    assert generated > infilled


def test_paper_loss_counts_the_prompt_too(records):
    rng = np.random.default_rng
    counted = maker(loss="all")(records[0], rng(0))["weights"]
    completion = maker()(records[0], rng(0))["weights"]
    assert counted.all()
    assert 0 < completion.sum() < counted.sum()


def test_position_determines_the_batch(records):
    first, second = (train_batches(records, maker(), DATA) for _ in range(2))
    for _ in range(3):
        expected = next(first)
    state = first.get_state()
    following = next(first)
    second.set_state(state)
    resumed = next(second)
    assert all((resumed[name] == following[name]).all() for name in following)
    assert any((following[name] != expected[name]).any() for name in following)


def test_epochs_differ_and_each_covers_all(records):
    make = maker(infill=0.0, conditions=False, translate=False, order="stored")
    cfg = DataConfig(directory="", seq_len=17, batch_size=1, packing_bins=1, seed=0)
    batches = train_batches(records, make, cfg)
    n = len(records)
    epochs = [[next(batches)["targets"].tobytes() for _ in range(n)] for _ in range(2)]
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1])


def test_sorted_sites_are_in_order_after_every_translation(records):
    make = maker(infill=0.0, conditions=False, order="sorted")
    for seed in range(3):
        _, text = make.texts(records[0], np.random.default_rng(seed))
        positions = [[float(x) for x in line.split()] for line in text.split("\n")[3::2]]
        assert len(positions) > 1
        assert positions == sorted(positions)


def test_validation_is_the_same_each_time(records):
    once, again = (validation_batches(records, maker(), DATA, limit=2) for _ in range(2))
    assert all((a[name] == b[name]).all() for a, b in zip(once, again, strict=True) for name in a)


def test_what_does_not_fit_is_named(records):
    with pytest.raises(UserError, match=r"none of 2 crystals can be trained on; the first: .*seq_len is 9"):
        fitting(records[:2], maker(), seq_len=9)
    kept, left_out = fitting(records, maker(), seq_len=256)
    assert len(kept) == len(records)
    assert left_out == []


SHARDED = DataConfig(directory="", seq_len=64, batch_size=4, packing_bins=4, seed=0, shards=4)


@pytest.mark.parametrize(
    ("shards", "rows"),
    [
        (4, [(0, 1), (2, 3)]),
        (4, [(0,), (1,), (2,), (3,)]),
        (2, [(0, 2), (1, 3)]),  # a mesh may give a process rows that are apart
        (2, [(0, 1), (0, 1), (2, 3), (2, 3)]),  # and the same rows to two
        (1, [(0, 1), (2, 3)]),
    ],
)
def test_the_global_batch_does_not_depend_on_who_reads_it(records, shards, rows):
    cfg = dataclasses.replace(SHARDED, shards=shards)
    whole = train_batches(records, maker(), cfg)
    parts = [train_batches(records, maker(), cfg, rows=rows, process=i) for i in range(len(rows))]
    assert sorted(shard for part in parts for shard in part.owned) == list(range(shards))
    for _ in range(3):
        batch = next(whole)
        for theirs, part in zip(rows, parts, strict=True):
            for name, values in next(part).items():
                np.testing.assert_array_equal(values, batch[name][list(theirs)])


def test_a_position_moves_to_another_number_of_processes(records):
    pair = [train_batches(records, maker(), SHARDED, rows=[(0, 1), (2, 3)], process=i) for i in range(2)]
    for part in pair:
        next(part), next(part)
    state = {name: place for part in pair for name, place in part.get_state().items()}
    alone = train_batches(records, maker(), SHARDED)
    alone.set_state(state)
    following = next(alone)
    expected = [next(part) for part in pair]
    for name, values in following.items():
        np.testing.assert_array_equal(values, np.concatenate([part[name] for part in expected]))
    fewer = train_batches(records, maker(), dataclasses.replace(SHARDED, shards=2))
    with pytest.raises(UserError, match=r"data.shards=4, not 2"):
        fewer.set_state(state)


def test_every_example_can_be_traced_to_its_crystal(records):
    make = maker(infill=0.0, conditions=False)
    batch = next(train_batches(records, make, SHARDED))
    for row in range(4):
        held = [i for i in batch["crystals"][row] if i]
        assert len(held) == batch["segments"][row].max()
        for segment, number in enumerate(held, start=1):
            where = (batch["segments"][row] == segment) & (batch["weights"][row] == 1)
            text = make.tokenizer.decode(batch["targets"][row][where].tolist())
            written = Counter(make.text_format.decode(text).symbols)
            assert written == Counter(crystal_of(records[number - 1]).symbols)
