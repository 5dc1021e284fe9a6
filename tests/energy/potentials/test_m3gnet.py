import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from crystal_jax.energy.model import Cell
from crystal_jax.energy.potentials.tf_checkpoint import read_checkpoint
from crystal_jax.energy.sanity_check import known
from crystal_jax.errors import UserError
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


def test_each_variable_of_the_checkpoint_is_used(m3gnet):
    seen = set()

    class Watched(dict):
        def __getitem__(self, name):
            seen.add(name)
            return super().__getitem__(name)

        def get(self, name):
            seen.add(name)
            return super().get(name)

    whole = m3gnet.weights
    m3gnet.weights = Watched(whole)
    try:
        m3gnet.predict([Cell.of(rock_salt(5.6))])
    finally:
        m3gnet.weights = whole
    assert len(whole) == 80
    assert seen >= set(whole)
    assert sum(array.numel() for array in whole.values()) == 227_549


def test_a_crystal_alone_is_as_in_company(m3gnet):
    some = [Cell.of(distorted(0)), Cell.of(rock_salt(4.25, "Mg", "O")), Cell.of(distorted(1))]
    together = m3gnet.predict(some)
    for cell, found in zip(some, together, strict=True):
        (alone,) = m3gnet.predict([cell])
        assert found.energy == pytest.approx(alone.energy, abs=1e-5)
        np.testing.assert_allclose(found.forces, alone.forces, atol=1e-4)
        np.testing.assert_allclose(found.stress, alone.stress, atol=1e-5)


def test_forces_and_stress_are_derivatives_of_the_energy(weights):
    torch = pytest.importorskip("torch")
    from crystal_jax.energy.potentials.m3gnet import M3GNet

    model, step = M3GNet(weights, dtype=torch.float64), 1e-4
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
