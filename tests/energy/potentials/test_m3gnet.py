import json
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure

from crystal_jax.energy.model import Cell
from crystal_jax.energy.potentials.jax_model import JaxModel
from crystal_jax.energy.potentials.m3gnet import load, params_of
from crystal_jax.energy.potentials.tf_checkpoint import read_checkpoint
from crystal_jax.energy.sanity_check import known
from crystal_jax.errors import UserError
from crystal_jax.structures import Entry, parse
from tests.energy.conftest import distorted, rock_salt

FACES = (np.ones((3, 3)) - np.eye(3)) / 2  # a face-centred lattice, in its cubic length
# eV/atom, of the original in TensorFlow.
KNOWN = [
    ("NaCl", lambda: rock_salt(5.69), -3.3885),
    ("MgO", lambda: rock_salt(4.25, "Mg", "O"), -5.9772),
    ("SrTiO3", lambda: known()[2].structure, -8.0205),
    ("Si", lambda: Structure(FACES * 5.469, ["Si"] * 2, [[0, 0, 0], [0.25] * 3]), -5.3586),
    ("Cu", lambda: Structure(FACES * 3.62, ["Cu"], [[0, 0, 0]]), -4.0907),
]


def test_energies_are_the_originals(m3gnet):
    structures = [make() for _, make, _ in KNOWN]
    found = m3gnet.predict([Cell.of(structure) for structure in structures])
    for (name, _, expected), structure, prediction in zip(KNOWN, structures, found, strict=True):
        assert prediction.energy / len(structure) == pytest.approx(expected, abs=1e-4), name
        assert abs(prediction.forces).max() < 1e-4, name  # by symmetry


def reference(shared):
    """Crystals with displaced atoms, and what the version in PyTorch (commit df6ab0a) computed for them in float64:
    energy (eV/atom), force on the last atom (eV/Å), stress (eV/Å^3; xx, yy, zz, yz, xz, xy).
    """
    rows = json.loads(Path(__file__).with_name("m3gnet_reference.json").read_text())
    found = {}
    for folder in ("mp20_open", "mp52_open"):
        table = pd.read_csv(shared / f"data/{folder}/test.csv.gz", index_col="material_id")
        found |= {key: table.cif[key] for key in table.index if key in rows}
    cells = []
    for key in rows:
        cell = Cell.of(parse(Entry(key, found[key])).structure)
        moves = 0.05 * np.sin(np.arange(cell.positions.size)).reshape(cell.positions.shape)
        cells.append(Cell(cell.numbers, cell.positions + moves, cell.lattice))
    return cells, list(rows.values())


# eV/atom, eV/Å, eV/Å^3
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", (1e-9, 1e-8, 1e-9)), ("float32", (2e-6, 2e-4, 3e-6))])
def test_equals_the_version_in_pytorch(weights, shared, dtype, tolerance):
    cells, rows = reference(shared)
    assert len(cells) == 200
    with jax.enable_x64(dtype == "float64"):
        predictions = JaxModel(load(weights, dtype=dtype)).predict(cells)
    for cell, prediction, (energy, force, stress) in zip(cells, predictions, rows, strict=True):
        assert prediction.energy / len(cell.numbers) == pytest.approx(energy, abs=tolerance[0])
        np.testing.assert_allclose(prediction.forces[-1], force, atol=tolerance[1])
        voigt = prediction.stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        np.testing.assert_allclose(voigt, stress, atol=tolerance[2])


def test_each_variable_of_the_checkpoint_is_used_once(weights):
    variables = read_checkpoint(weights / "m3gnet")
    assert len(variables) == 80
    params = params_of(variables, scale=1.0)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 227_549 + 1  # and the scale
    with pytest.raises(UserError, match="unknown variables: another"):
        params_of(variables | {"another": np.zeros(3)}, scale=1.0)
    del variables["graph_layers/2/atom_network/weight_update/kernel"]
    with pytest.raises(UserError, match="no variable graph_layers/2/atom_network/weight_update/kernel"):
        params_of(variables, scale=1.0)


def test_a_crystal_alone_is_as_in_company(m3gnet):
    some = [Cell.of(distorted(0)), Cell.of(rock_salt(4.25, "Mg", "O")), Cell.of(distorted(1))]
    together = m3gnet.predict(some)
    for cell, found in zip(some, together, strict=True):
        (alone,) = m3gnet.predict([cell])
        assert found.energy == pytest.approx(alone.energy, abs=1e-5)
        np.testing.assert_allclose(found.forces, alone.forces, atol=1e-4)
        np.testing.assert_allclose(found.stress, alone.stress, atol=1e-5)


def test_forces_and_stress_are_derivatives_of_the_energy(weights):
    with jax.enable_x64(True):
        check_derivatives(JaxModel(load(weights, dtype="float64")))


def check_derivatives(model):
    step = 1e-4
    cell = Cell.of(distorted(3))
    (found,) = model.predict([cell])

    def difference(change):
        moved = [change(sign * step) for sign in (1, -1)]
        up, down = model.predict(moved)
        return (up.energy - down.energy) / (2 * step)

    def push(amount):
        positions = cell.positions.copy()
        positions[1, 2] += amount
        return Cell(cell.numbers, positions, cell.lattice)

    def shear(amount):
        strain = np.eye(3)
        strain[0, 1] = strain[1, 0] = amount
        return Cell(cell.numbers, cell.positions @ strain, cell.lattice @ strain)

    assert -difference(push) == pytest.approx(found.forces[1, 2], rel=1e-4)
    assert difference(shear) / cell.volume == pytest.approx(2 * found.stress[0, 1], rel=1e-4)


def test_neither_the_cell_chosen_nor_its_place_matter(m3gnet):
    structure = distorted(2)
    larger = structure * (2, 1, 1)
    moved = structure.copy()
    moved.translate_sites([0, 1], [0.3, 0.9, 0.55])
    one, two, same = m3gnet.predict([Cell.of(s) for s in (structure, larger, moved)])
    assert two.energy == pytest.approx(2 * one.energy, abs=1e-4)
    assert same.energy == pytest.approx(one.energy, abs=1e-4)


def test_atoms_without_bonds_have_energies_of_their_own(m3gnet):
    alone, pair = m3gnet.predict([Cell.of(Structure(Lattice.cubic(a), ["Cs"], [[0, 0, 0]])) for a in (20, 4.5)])
    assert np.isfinite(alone.energy)
    assert abs(alone.forces).max() == 0
    assert pair.energy != alone.energy


@pytest.mark.parametrize("damage", ["magic", "short", "missing"])
def test_damaged_checkpoints(weights, tmp_path, damage):
    for name in ("m3gnet.index", "m3gnet.data-00000-of-00001"):
        (tmp_path / name).write_bytes((weights / name).read_bytes())
    index = tmp_path / "m3gnet.index"
    if damage == "magic":
        index.write_bytes(b"x" * 200)
    elif damage == "short":
        (tmp_path / "m3gnet.data-00000-of-00001").write_bytes(b"1234")
    else:
        index.unlink()
    with pytest.raises(UserError, match="m3gnet"):
        read_checkpoint(tmp_path / "m3gnet")
