"""Calculators of the user's own as potentials."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from crystal_jax.energy.model import Cell
from crystal_jax.energy.potentials.ase_calculator import ASECalculator
from crystal_jax.energy.relaxation.relax import relax
from crystal_jax.energy.settings import RelaxSettings
from crystal_jax.errors import UserError

MODULE = """
from ase.calculators.emt import EMT

def metals():
    return EMT()

def number():
    return 7

def broken():
    raise RuntimeError("no weights here\\nand a second line")
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module in the current folder, as a user has it."""
    (tmp_path / "own_potential.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_potential"


def copper(a):
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), ["Cu"], [[0, 0, 0]])


def test_energies_forces_and_stress_are_the_calculators(module):
    model = ASECalculator(f"{module}:metals")
    assert model.name == "ase:own_potential:metals"
    step, cell = 1e-4, Cell.of(copper(3.7))
    up, down, here = model.predict([Cell.of(copper(3.7 * (1 + e))) for e in (step, -step, 0)])
    assert (up.energy - down.energy) / (2 * step) == pytest.approx(np.trace(here.stress) * cell.volume, rel=1e-4)
    np.testing.assert_allclose(here.forces, 0, atol=1e-9)


def test_crystals_are_relaxed_with_it(module):
    """Copper in EMT: 3.61 Å (Jacobsen, Stoltze and Norskov, Surface Science 366, 394, 1996)."""
    structure = copper(3.75).perturb(0.05)
    (found,) = relax(ASECalculator(f"{module}:metals"), [("copper", Cell.of(structure))], RelaxSettings(fmax=0.005))
    assert found.status == "converged"
    assert abs(np.linalg.det(found.cell.lattice)) ** (1 / 3) == pytest.approx(3.61, abs=0.02)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("own_potential", "must name a module and a function: ase:MODULE:FACTORY"),
        ("own_potential:number", "returned int, not an ASE calculator"),
        ("own_potential:broken", "gives no calculator: no weights here$"),
        ("own_potential:absent", "gives no calculator: .*has no attribute 'absent'"),
        ("no_such_module:make", "gives no calculator: No module named 'no_such_module'"),
    ],
)
def test_faults_are_one_line(module, name, problem):
    with pytest.raises(UserError, match=problem) as error:
        ASECalculator(name)
    assert "\n" not in str(error.value)
