import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure

from crystal_jax.energy.model import Cell, includes_corrections, load_model
from crystal_jax.energy.potentials.jax_model import JaxModel
from crystal_jax.energy.potentials.nequix import ELEMENTS, load, params_of
from crystal_jax.energy.potentials.nequix_checkpoint import Checkpoint, read_checkpoint
from crystal_jax.errors import UserError
from crystal_jax.structures import Entry, parse
from tests.energy.conftest import distorted
from tests.energy.potentials.test_m3gnet import KNOWN, check_derivatives

ENERGIES = {"NaCl": -3.387, "MgO": -5.983, "SrTiO3": -8.025, "Si": -5.421, "Cu": -4.093}  # eV/atom, of the original


@pytest.fixture(scope="module")
def file(shared):
    return shared / "weights/nequix/nequix-oam-1.nqx"


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """One cache for the tests here, so that a program is compiled once for each number of bits."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(autouse=True)
def _shared_cache(programs, _own_cache, monkeypatch):
    monkeypatch.setenv("CRYSTAL_JAX_CACHE", str(programs))


def predict_each(model, cells):
    """One by one, so that all fit into the smallest bucket, and one program serves all tests."""
    return [model.predict([cell])[0] for cell in cells]


@pytest.fixture(scope="module")
def nequix(file):
    return load_model("nequix", weights=file)


def test_energies_are_the_originals(nequix):
    assert nequix.name == "Nequix OAM-1"
    assert not nequix.corrected
    assert not includes_corrections("nequix")
    structures = [make() for _, make, _ in KNOWN]
    found = predict_each(nequix, [Cell.of(structure) for structure in structures])
    for (name, *_), structure, prediction in zip(KNOWN, structures, found, strict=True):
        assert prediction.energy / len(structure) == pytest.approx(ENERGIES[name], abs=6e-4), name
        assert abs(prediction.forces).max() < 1e-4, name  # by symmetry


def reference(shared):
    """Crystals with displaced atoms, and what the package nequix 0.4.5 computed for them in float64, with its own lists
    of bonds: energy (eV/atom), force on the last atom (eV/Å), stress (eV/Å^3; xx, yy, zz, yz, xz, xy).
    """
    rows = json.loads(Path(__file__).with_name("nequix_reference.json").read_text())
    table = pd.read_csv(shared / "data/mp20_open/test.csv.gz", index_col="material_id")
    cells = []
    for key in rows:
        cell = Cell.of(parse(Entry(key, table.cif[key])).structure)
        moves = 0.05 * np.sin(np.arange(cell.positions.size)).reshape(cell.positions.shape)
        cells.append(Cell(cell.numbers, cell.positions + moves, cell.lattice))
    return cells, list(rows.values())


# eV/atom, eV/Å, eV/Å^3
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", (1e-9, 1e-9, 1e-9)), ("float32", (5e-6, 5e-5, 5e-6))])
def test_equals_the_original(file, shared, dtype, tolerance):
    cells, rows = reference(shared)
    assert len(cells) == 20
    with jax.enable_x64(dtype == "float64"):
        predictions = predict_each(JaxModel(load(file, dtype=dtype)), cells)
    for cell, prediction, (energy, force, stress) in zip(cells, predictions, rows, strict=True):
        assert prediction.energy / len(cell.numbers) == pytest.approx(energy, abs=tolerance[0])
        np.testing.assert_allclose(prediction.forces[-1], force, atol=tolerance[1])
        voigt = prediction.stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        np.testing.assert_allclose(voigt, stress, atol=tolerance[2])


def test_forces_and_stress_are_derivatives_of_the_energy(file):
    with jax.enable_x64(True):
        check_derivatives(JaxModel(load(file, dtype="float64")))


def test_rotated_repeated_and_moved_crystals(nequix):
    structure = distorted(2)
    larger = structure * (2, 1, 1)
    moved = structure.copy()
    moved.translate_sites([0, 1], [0.3, 0.9, 0.55])
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))  # or a reflection
    cell = Cell.of(structure)
    rotated = Cell(cell.numbers, cell.positions @ rotation, cell.lattice @ rotation)
    one, two, same, turned = predict_each(nequix, [cell, Cell.of(larger), Cell.of(moved), rotated])
    assert two.energy == pytest.approx(2 * one.energy, abs=1e-4)
    assert same.energy == pytest.approx(one.energy, abs=1e-4)
    assert turned.energy == pytest.approx(one.energy, abs=1e-4)
    np.testing.assert_allclose(turned.forces, one.forces @ rotation, atol=1e-4)
    np.testing.assert_allclose(turned.stress, rotation.T @ one.stress @ rotation, atol=1e-5)


def test_a_crystal_alone_is_as_in_a_batch(nequix):
    some = [Cell.of(distorted(seed)) for seed in range(3)]
    for cell, found in zip(some, nequix.predict(some), strict=True):
        (alone,) = nequix.predict([cell])
        assert found.energy == pytest.approx(alone.energy, abs=1e-5)
        np.testing.assert_allclose(found.forces, alone.forces, atol=1e-4)
        np.testing.assert_allclose(found.stress, alone.stress, atol=1e-5)


def test_atoms_without_bonds_have_energies_of_their_own(nequix):
    alone, pair = nequix.predict([Cell.of(Structure(Lattice.cubic(a), ["Cs"], [[0, 0, 0]])) for a in (20, 4.5)])
    assert np.isfinite(alone.energy)
    assert abs(alone.forces).max() == 0
    assert pair.energy != alone.energy


def test_bonds_at_the_cutoff_and_beyond_contribute_nothing(file):
    def pair(distance):
        return Cell(np.array([11, 17]), np.array([[0, 0, 0], [0, 0, distance]]), 20 * np.eye(3))

    with jax.enable_x64(True):
        potential = load(file, dtype="float64")
        model, longer = (JaxModel(dataclasses.replace(potential, cutoff=cutoff)) for cutoff in (6.0, 7.0))
        apart, at, inside = predict_each(longer, [pair(distance) for distance in (6.5, 6.0, 5.999)])
        crystal = Cell.of(distorted(1))
        short_list, long_list = (each.predict([crystal])[0] for each in (model, longer))
    assert apart.energy == at.energy
    assert inside.energy == pytest.approx(at.energy, abs=1e-6)
    for prediction, largest in ((apart, 0), (at, 0), (inside, 1e-4)):
        assert abs(prediction.forces).max() <= largest
    assert short_list.energy == pytest.approx(long_list.energy, abs=1e-12)
    np.testing.assert_allclose(short_list.forces, long_list.forces, atol=1e-12)


def test_the_checkpoint_is_read_in_full(file):
    checkpoint = read_checkpoint(file)
    params, references = params_of(checkpoint)
    count = sum(leaf.size for leaf in jax.tree.leaves(params)) - params.elements.size
    assert count == 707_658 - len(ELEMENTS)  # less the references
    assert references[11] == pytest.approx(-0.2285 - 4.3250839528546265, abs=1e-6)
    assert np.isnan(references[84])
    short = Checkpoint(checkpoint.settings, checkpoint.arrays[:-1])
    with pytest.raises(UserError, match=r"no array of shape \(128, 1\)"):
        params_of(short)
    with pytest.raises(UserError, match="more arrays"):
        params_of(Checkpoint(checkpoint.settings, [*checkpoint.arrays, np.zeros(3)]))


@pytest.mark.parametrize("content", [b"", b"{}\nnot numpy", b"not json\n"])
def test_damaged_checkpoints(file, tmp_path, content):
    path = tmp_path / "model.nqx"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.nqx is damaged"):
        read_checkpoint(path)
    path.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.nqx is damaged"):
        read_checkpoint(path)
