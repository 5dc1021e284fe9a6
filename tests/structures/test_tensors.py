import argparse
import pickle

import numpy as np
import pytest
from pymatgen.core import Structure

from crystal_jax.errors import UserError
from crystal_jax.structures import parse, read_entries


def same(entry, structure):
    found = parse(entry).structure
    return found.matches(structure) and found.formula == structure.formula


def test_extended_xyz(tmp_path, salt, cesium_chloride):
    write = pytest.importorskip("ase.io").write
    frames = [structure.to_ase_atoms() for structure in (salt, cesium_chloride)]
    molecule = frames[0].copy()
    molecule.set_pbc(False)
    write(tmp_path / "some.extxyz", [*frames, molecule])
    first, second, third = read_entries(tmp_path / "some.extxyz")
    assert same(first, salt)
    assert same(second, cesium_chloride)
    assert (third.name, third.cif, third.formula) == ("000002", "", "Na4 Cl4")
    frames[0].info["name"], frames[1].info["name"] = "salt", "other"
    write(tmp_path / "some.xyz", frames)
    assert [entry.name for entry in read_entries(tmp_path / "some.xyz")] == ["salt", "other"]


def tensors(structures, *, repetitions=True, scores=False):
    """As CDVAE writes them."""
    torch = pytest.importorskip("torch")
    kinds = np.concatenate([[site.specie.Z for site in s] for s in structures])
    arrays = {
        "frac_coords": np.concatenate([s.frac_coords for s in structures]),
        "atom_types": np.eye(100)[kinds - 1] if scores else kinds,
        "lengths": np.array([s.lattice.abc for s in structures]),
        "angles": np.array([s.lattice.angles for s in structures]),
        "num_atoms": np.array([len(s) for s in structures]),
    }
    return {name: torch.tensor(array[None] if repetitions else array) for name, array in arrays.items()}


@pytest.mark.parametrize("options", [{}, {"repetitions": False}, {"repetitions": False, "scores": True}])
def test_tensors_of_cdvae_and_diffcsp(tmp_path, salt, cesium_chloride, options):
    torch = pytest.importorskip("torch")
    found = tensors([salt, cesium_chloride], **options)
    torch.save(found | {"eval_setting": argparse.Namespace(n=2), "time": 3.5}, tmp_path / "eval_gen_x.pt")
    first, second = read_entries(tmp_path / "eval_gen_x.pt")
    assert same(first, salt)
    assert same(second, cesium_chloride)


def test_what_is_no_crystal_keeps_its_place(tmp_path, salt):
    torch = pytest.importorskip("torch")
    found = tensors([salt, salt])
    found["angles"][0, 0] = torch.tensor([120.0, 120.0, 120.0])
    found["atom_types"][0, 8] = 0
    torch.save(found, tmp_path / "x.pt")
    first, second = read_entries(tmp_path / "x.pt")
    assert parse(first).structure is None
    assert first.formula == "Na4 Cl4"
    assert (second.cif, second.formula) == ("", "")


class Evil:
    def __reduce__(self):
        return (print, ("run!",))


def test_code_in_a_pickle_is_not_run(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    torch.save({"frac_coords": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pt", "old.pt"):
        with pytest.raises(UserError, match=f"{name}: not the tensors"):
            read_entries(tmp_path / name)
    assert "run!" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["bad.extxyz", "bad.pt"])
def test_damaged_files(tmp_path, name):
    pytest.importorskip("torch")
    (tmp_path / name).write_text("3\nno cell\nNa 0 0\n")
    with pytest.raises(UserError, match="not ") as error:
        read_entries(tmp_path / name)
    assert "\n" not in str(error.value)


def test_sizes_must_fit(tmp_path, salt):
    torch = pytest.importorskip("torch")
    torch.save(tensors([salt]) | {"num_atoms": torch.tensor([[7]])}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="do not fit together"):
        read_entries(tmp_path / "x.pt")


def test_structures_survive(tmp_path):
    """Eight digits: nothing that the checks could see is lost."""
    write = pytest.importorskip("ase.io").write
    rng = np.random.default_rng(0)
    structure = Structure(4 * np.eye(3) + rng.normal(scale=0.3, size=(3, 3)), ["Li", "O"], rng.random((2, 3)))
    write(tmp_path / "a.extxyz", structure.to_ase_atoms())
    found = parse(read_entries(tmp_path / "a.extxyz")[0]).structure
    np.testing.assert_allclose(found.lattice.parameters, structure.lattice.parameters, atol=1e-6)
    np.testing.assert_allclose(found.distance_matrix, structure.distance_matrix, atol=1e-6)
