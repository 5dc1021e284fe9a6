import dataclasses
import time

import numpy as np
import pytest

from crystal_jax.energy.model import Cell, Prediction
from crystal_jax.energy.relaxation.relax import relax
from crystal_jax.energy.settings import RelaxSettings
from crystal_jax.errors import UserError
from tests.energy.conftest import cells

SETTINGS = RelaxSettings(fmax=0.02, batch_atoms=6)


class Springs:
    """Pulls the second atom to half of the cell's diagonal, and the cell to a cube of side 4 Å."""

    name, corrected, elements = "springs", False, frozenset({11, 17})

    def __init__(self):
        self.batches = []

    def predict(self, some):
        self.batches.append(len(some))
        return [self.one(cell) for cell in some]

    def one(self, cell):
        middle = cell.lattice.sum(axis=0) / 2
        pull = cell.positions[1] - cell.positions[0] - middle
        metric = cell.lattice @ cell.lattice.T - 16 * np.eye(3)
        energy = 0.5 * float(pull @ pull) + 0.01 * float((metric**2).sum())
        gradient = 0.04 * metric @ cell.lattice  # with respect to the lattice vectors
        stress = cell.lattice.T @ gradient / cell.volume
        return Prediction(energy, np.array([pull, -pull]), 0.5 * (stress + stress.T))


def start(count):
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        lattice = 4 * np.eye(3) + rng.normal(scale=0.2, size=(3, 3))
        positions = np.array([np.zeros(3), lattice.sum(axis=0) / 2 + rng.normal(scale=0.3, size=3)])
        made.append((str(i), Cell(np.array([11, 17]), positions, lattice)))
    return made


def test_finds_the_minimum_of_each_and_refills():
    model = Springs()
    found = {result.key: result for result in relax(model, start(7), SETTINGS)}
    assert sorted(found) == [str(i) for i in range(7)]
    for result in found.values():
        assert (result.status, result.reason) == ("converged", "")
        assert result.energy < 0.01 < result.first_energy
        np.testing.assert_allclose(np.linalg.norm(result.cell.lattice, axis=1), 4, atol=0.1)
    assert max(model.batches) == 3  # 6 atoms
    # Three are under way until the last ones are.
    assert model.batches[: sum(r.steps for r in found.values()) // 3 - 10].count(3) > 0.9 * len(model.batches) - 30


def test_a_crystal_does_not_notice_the_others():
    alone = [next(relax(Springs(), [one], SETTINGS)) for one in start(4)]
    together = {result.key: result for result in relax(Springs(), start(4), SETTINGS)}
    for result in alone:
        assert together[result.key].energy == result.energy
        assert together[result.key].steps == result.steps


def test_steps_are_counted_for_each_crystal():
    found = list(relax(Springs(), start(5), dataclasses.replace(SETTINGS, max_steps=4)))
    assert {(result.status, result.steps) for result in found} == {("steps", 4)}
    assert all(result.succeeded for result in found)


def test_time_is_shared_by_atoms():
    class Slow(Springs):
        def predict(self, some):
            time.sleep(0.02)
            return super().predict(some)

    found = list(relax(Slow(), start(3), dataclasses.replace(SETTINGS, timeout=0.05)))
    assert {result.status for result in found} == {"timeout"}
    assert all(result.energy is None and "0.05 s" in result.reason for result in found)
    assert sum(result.seconds for result in found) == pytest.approx(0.02 * 9, rel=0.5)


def test_one_that_crashes_the_model_falls_alone():
    class Fragile(Springs):
        def one(self, cell):
            if cell.positions[0, 0] == 9:
                raise RuntimeError("isolated atom\nwith a long story")
            return super().one(cell)

    some = start(3)
    some[1][1].positions[0, 0] = 9
    found = {result.key: result for result in relax(Fragile(), some, SETTINGS)}
    assert (found["1"].status, found["1"].reason) == ("crashed", "isolated atom")
    assert found["0"].status == found["2"].status == "converged"


def explode(**changes):
    class Wild(Springs):
        def one(self, cell):
            return dataclasses.replace(super().one(cell), **changes)

    (found,) = relax(Wild(), start(1), SETTINGS)
    assert found.status == "exploded"
    assert found.energy is None
    return found.reason


def test_explosions_have_names():
    assert "not finite" in explode(energy=np.nan)
    assert "not finite" in explode(forces=np.full((2, 3), np.inf))
    assert "below -25 eV an atom" in explode(energy=-1e4)
    assert "the volume changed by more than a factor of 5" in explode(stress=-5 * np.eye(3))
    assert "the volume changed by more than a factor of 5" in explode(stress=5 * np.eye(3))


def test_too_dense_and_unknown_crystals_never_start():
    dense = Cell(np.array([11, 17]), np.zeros((2, 3)), np.eye(3))
    foreign = Cell(np.array([11, 8]), *dataclasses.astuple(start(1)[0][1])[1:])
    model = Springs()
    found = {result.key: result for result in relax(model, [("a", dense), ("b", foreign)], SETTINGS)}
    assert found["a"].reason == "less than 2 Å^3 an atom"
    assert (found["b"].status, found["b"].reason) == ("refused", "the model does not know O")
    assert model.batches == []


def test_equals_ase(m3gnet):
    ase_reference = pytest.importorskip("crystal_jax.energy.relaxation.ase_reference")
    settings = RelaxSettings(fmax=0.05)
    batched = {result.key: result for result in relax(m3gnet, cells(2), settings)}
    for key, cell in cells(2):
        expected = ase_reference.relax_with_ase(m3gnet, key, cell, settings)
        assert batched[key].status == expected.status == "converged"
        assert batched[key].energy / 2 == pytest.approx(expected.energy / 2, abs=0.005)  # eV/atom
        assert batched[key].cell.volume == pytest.approx(expected.cell.volume, rel=0.02)


@pytest.mark.parametrize("name", ["fmax", "max_steps", "timeout", "batch_atoms"])
def test_impossible_settings(name):
    with pytest.raises(UserError, match=f"{name}=0 of a relaxation must be positive"):
        RelaxSettings(**{name: 0})
