"""Sampling in processes of their own: several at once, and killed."""

import json
import random
import time
from pathlib import Path

import pytest

from tests.train.supervised import Group

NUMBER = 40


def draw(settings, output, *where):
    """One process of a job."""
    from tests.train.supervised import enter

    enter(output, *where)
    from crystal_jax.sample.run import sample

    sample(output=Path(output), **settings)


@pytest.fixture(scope="module")
def settings(trained):
    constraints = ["charge", "distance"]
    return dict(checkpoint=trained, num_samples=NUMBER, batch_size=4, max_atoms=4, seed=1, constraints=constraints)


@pytest.fixture(scope="module")
def alone(settings, tmp_path_factory):
    output = tmp_path_factory.mktemp("jobs") / "alone"
    finish(settings, output)
    return output


def finish(settings, output, **kwargs):
    with Group(settings, output, work=draw, **kwargs) as group:
        assert set(group.wait()) == {0}, Path(f"{output}.process0.log").read_text()[-2000:]


def lines(output):
    path = output / "samples.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def rows_of(output):
    return [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]


def same(output, other):
    rows, others = rows_of(output), rows_of(other)
    assert [row["index"] for row in rows] == list(range(NUMBER))
    for row, expected in zip(rows, others, strict=True):
        assert row["text"] == expected["text"]
        assert row["log_prob"] == pytest.approx(expected["log_prob"], abs=1e-2)
    assert (output / "samples.csv").read_text() == (other / "samples.csv").read_text()


def test_two_processes_of_four_devices_draw_the_same(settings, alone, tmp_path):
    finish({**settings, "batch_size": 8}, tmp_path / "pair", processes=2, devices=8)
    same(tmp_path / "pair", alone)


@pytest.mark.parametrize(("processes", "kills"), [(1, 5), (2, 2)])
def test_a_killed_job_has_no_duplicate_and_no_gap(settings, alone, tmp_path, processes, kills):
    output, rng = tmp_path / "killed", random.Random(processes)
    for _ in range(kills):
        wanted = lines(output) + rng.randint(1, 6)
        with Group(settings, output, work=draw, processes=processes) as group:
            while lines(output) < wanted and group.alive():
                time.sleep(0.001)
    assert 0 < lines(output) <= NUMBER
    finish(settings, output, processes=processes)
    same(output, alone)


def test_compositions_that_are_drawn_first_are_the_same_in_two_processes(settings, stating, tmp_path):
    stated = {**settings, "checkpoint": stating, "exclude_elements": ["H"]}
    finish(stated, tmp_path / "alone")
    finish({**stated, "batch_size": 8}, tmp_path / "pair", processes=2, devices=8)
    same(tmp_path / "pair", tmp_path / "alone")
