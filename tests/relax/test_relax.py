import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure

import crystal_jax
from crystal_jax import cli
from crystal_jax.errors import UserError
from crystal_jax.hull import run as hull_run
from tests.energy.conftest import distorted, rock_salt, weights  # noqa: F401

REFUSED = {
    "no atom has a neighbour within 5 Å": Structure(Lattice.cubic(9), ["Cs"], [[0, 0, 0]]),
    "two atoms are closer than 0.1 Å": Structure(Lattice.cubic(4), ["Li", "Li"], [[0, 0, 0], [0, 0, 0.001]]),
    "the model does not know Fm": Structure(Lattice.cubic(4), ["Fm", "O"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
    "less than 2 Å^3 an atom": Structure(Lattice.cubic(1.2), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
}


def test_structures_in_memory(weights):  # noqa: F811
    settings = dict(energy_weights=weights, progress=False, workers=1, fmax=0.02)
    result = crystal_jax.relax([distorted(0), rock_salt(5.5)], **settings)
    assert result.table["status"].tolist() == ["converged", "converged"]
    # M3GNet's rock salt, corrected, from both starts; the distorted one becomes cubic again.
    np.testing.assert_allclose(result.table["energy_per_atom"], -3.695, atol=0.01)
    assert result.table["relaxed_spacegroup"].tolist() == [225, 225]
    assert result.structures[1].composition.reduced_formula == "NaCl"
    assert "2 crystals: 2 converged" in str(result)


def test_a_crystal_that_cannot_be_relaxed_keeps_its_row_and_says_why(weights):  # noqa: F811
    structures = [*REFUSED.values(), rock_salt(5.6)]
    result = crystal_jax.relax(structures, energy_weights=weights, progress=False, workers=1)
    assert result.table["status"].tolist() == ["refused"] * len(REFUSED) + ["converged"]
    for reason, found in zip(REFUSED, result.table["reason"], strict=False):
        assert reason in found
    assert result.structures[: len(REFUSED)] == [None] * len(REFUSED)
    assert result.table["energy_per_atom"].notna().tolist() == [False] * len(REFUSED) + [True]


def test_the_command_writes_cells_with_and_without_symmetry(weights, tmp_path, capsys):  # noqa: F811
    folder = tmp_path / "in"
    folder.mkdir()
    distorted(1).to(filename=str(folder / "salt.cif"))
    (folder / "broken.cif").write_text("data_x\n_cell_length_a 3\n")
    output = tmp_path / "out"
    command = ["relax", f"--structures={folder}", f"--output={output}", f"--energy_weights={weights}", "--fmax=0.02"]
    assert cli.main(command) == 0
    assert "1 converged" in capsys.readouterr().out
    table = pd.read_csv(output / "relaxed.csv", index_col="name")
    assert table.loc["salt", "status"] == "converged"
    written = {path.name: path.read_text() for path in (output / "cif").iterdir()}
    assert sorted(written) == ["salt.cif", "salt_p1.cif"]
    assert "Fm-3m" in written["salt.cif"]
    assert "'P 1'" in written["salt_p1.cif"]
    assert cli.main(command) == 0  # continues, and finds everything done


def test_heights_above_a_hull_of_the_same_potential(weights, tmp_path):  # noqa: F811
    known = tmp_path / "known"
    known.mkdir()
    for name, structure in (
        ("salt", rock_salt(5.6)),
        ("sodium", Structure(Lattice.cubic(4.2), ["Na", "Na"], [[0, 0, 0], [0.5, 0.5, 0.5]])),
        ("chlorine", Structure(Lattice.cubic(4), ["Cl"] * 2, [[0, 0, 0], [0.5, 0.05, 0]])),
        ("oxide", rock_salt(4.25, "Mg", "O")),
    ):
        structure.to(filename=str(known / f"{name}.cif"))
    settings = dict(energy_weights=weights, progress=False, workers=1)
    path = hull_run.hull(
        tmp_path / "hull",
        structures=[known],
        chemical_system="Na-Cl",
        embedded=False,
        elemental_references=False,
        **settings,
    )
    rows = pd.read_csv(path)
    assert sorted(rows["composition"]) == ["Cl2", "Na", "NaCl"]  # the oxide is of another system
    assert set(rows["energy_model"]) == {"m3gnet"}
    # The same crystal, in another cell, lies on the hull; what is stretched and relaxes back, too.
    result = crystal_jax.relax([rock_salt(5.9), rock_salt(5.6) * (2, 1, 1)], hull=tmp_path / "hull", **settings)
    np.testing.assert_allclose(result.table["e_above_hull"], 0, atol=0.01)
    assert result.table["decomposes_to"].tolist() == ["1 NaCl"] * 2
    with pytest.raises(UserError, match="its energies are of m3gnet, not of chgnet"):
        crystal_jax.relax([rock_salt(5.9)], hull=path, energy_model="chgnet", progress=False)


def test_a_hull_without_files_has_the_elements(weights, tmp_path):  # noqa: F811
    """Energies of the elements by M3GNet, and of caesium, whose atoms it does not see, by DFT."""
    rock_salt(7.1, "Cs", "Cl").to(filename=str(tmp_path / "POSCAR"), fmt="poscar")
    path = crystal_jax.hull(
        tmp_path / "hull",
        structures=[tmp_path / "POSCAR"],
        chemical_system="Cs-Cl-Na-Fe-Si",
        embedded=False,
        energy_weights=weights,
        progress=False,
    )
    energies = pd.read_csv(path, index_col="composition")["energy_per_atom"]
    assert energies["Fe"] == pytest.approx(-8.470, abs=0.02)  # the Materials Project's by DFT
    assert energies["Na"] == pytest.approx(-1.323, abs=0.03)
    assert energies["Si"] == pytest.approx(-5.359, abs=0.01)  # M3GNet is 66 meV/atom too high here
    assert energies["Cs"] == pytest.approx(-0.8954, abs=1e-4)
    assert energies["CsCl"] < (energies["Cs"] + energies["Cl2"]) / 2 - 1.5  # it is an ionic crystal


def test_impossible_hulls(tmp_path):
    with pytest.raises(UserError, match="give --structures=FILE or --materials_project"):
        crystal_jax.hull(tmp_path)
    with pytest.raises(UserError, match="'Xx' is no element"):
        crystal_jax.hull(tmp_path, structures=[tmp_path], chemical_system="Li-Xx")
    with pytest.raises(UserError, match="needs --chemical_system"):
        crystal_jax.hull(tmp_path, materials_project=True)
