import argparse
import pickle

import numpy as np
import pytest

from crystal_jax.errors import UserError
from crystal_jax.structures import parse, read_entries


def same(entry, structure):
    found = parse(entry).structure
    return found.matches(structure) and found.formula == structure.formula


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


class Batch(dict):
    """As a library's object that is kept beside the tensors."""

    def __reduce__(self):
        return Made(), (1,), {"state": self}


class Made:
    def __call__(self, number):
        raise AssertionError("a function of the file was called")


def test_objects_of_other_libraries_are_passed_over(tmp_path, salt, cesium_chloride):
    """DiffCSP keeps the batch of torch_geometric that it read."""
    torch = pytest.importorskip("torch")
    found = tensors([salt, cesium_chloride]) | {"input_data_batch": [Batch(x=torch.zeros(3))], "time": np.float64(1)}
    torch.save(found, tmp_path / "eval_diff.pt")
    first, second = read_entries(tmp_path / "eval_diff.pt")
    assert same(first, salt)
    assert same(second, cesium_chloride)


def test_the_batch_of_torch_geometric_is_passed_over(tmp_path, salt):
    torch = pytest.importorskip("torch")
    data = pytest.importorskip("torch_geometric.data")
    batch = data.Batch.from_data_list([data.Data(num_atoms=8, num_nodes=8, frac_coords=torch.zeros(8, 3))])
    torch.save(tensors([salt]) | {"input_data_batch": batch}, tmp_path / "x.pt")
    assert same(read_entries(tmp_path / "x.pt")[0], salt)


@pytest.mark.parametrize("kind", ["numpy", "list"])
def test_arrays_and_lists_are_read(tmp_path, salt, kind):
    torch = pytest.importorskip("torch")
    found = {name: value.numpy() if kind == "numpy" else value.tolist() for name, value in tensors([salt]).items()}
    torch.save(found, tmp_path / "x.pt")
    assert same(read_entries(tmp_path / "x.pt")[0], salt)


def test_lattices_as_vectors_are_read(tmp_path, salt):
    torch = pytest.importorskip("torch")
    found = tensors([salt])
    del found["lengths"], found["angles"]
    torch.save(found | {"lattices": torch.tensor(salt.lattice.matrix)[None, None]}, tmp_path / "x.pt")
    assert same(read_entries(tmp_path / "x.pt")[0], salt)


def test_the_first_axis_is_the_repetition(tmp_path, salt, cesium_chloride):
    """Each repetition has all crystals; the request is the number of the crystal."""
    torch = pytest.importorskip("torch")
    once = tensors([salt, cesium_chloride, salt])
    torch.save({name: value.repeat(2, *[1] * (value.ndim - 1)) for name, value in once.items()}, tmp_path / "x.pt")
    entries = read_entries(tmp_path / "x.pt")
    assert [entry.request for entry in entries] == [0, 1, 2, 0, 1, 2]
    assert [parse(entry).structure.reduced_formula for entry in entries] == ["NaCl", "CsCl", "NaCl"] * 2
    torch.save(once, tmp_path / "once.pt")
    assert {entry.request for entry in read_entries(tmp_path / "once.pt")} == {None}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"angles": None}, "angles holds no numbers"),
        ({"num_atoms": "many"}, "num_atoms holds no numbers"),
        ({"num_atoms": [[-1, 9]]}, "do not fit together"),
        ({"angles": [[[1.5, 1.5, 1.5]]]}, "its angles are in radians"),
    ],
)
def test_what_is_wrong_with_tensors_is_said(tmp_path, salt, change, reason):
    torch = pytest.importorskip("torch")
    torch.save(tensors([salt]) | change, tmp_path / "x.pt")
    with pytest.raises(UserError, match=reason) as error:
        read_entries(tmp_path / "x.pt")
    assert "\x1b" not in str(error.value)
    assert "save a dictionary of these tensors alone" in str(error.value)
    found = tensors([salt])
    del found["lengths"]
    torch.save(found, tmp_path / "x.pt")
    with pytest.raises(UserError, match="it has no lengths"):
        read_entries(tmp_path / "x.pt")


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


def test_a_damaged_file(tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "bad.pt").write_text("3\nno cell\nNa 0 0\n")
    with pytest.raises(UserError, match="not ") as error:
        read_entries(tmp_path / "bad.pt")
    assert "\n" not in str(error.value)


def test_sizes_must_fit(tmp_path, salt):
    torch = pytest.importorskip("torch")
    torch.save(tensors([salt]) | {"num_atoms": torch.tensor([[7]])}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="do not fit together"):
        read_entries(tmp_path / "x.pt")
