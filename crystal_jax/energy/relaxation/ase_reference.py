"""Relaxes crystals with ASE, one at a time. It is slow and serves as the reference for the batched relaxation."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE
from ase.stress import full_3x3_to_voigt_6_stress

from crystal_jax.energy.model import Cell, EnergyModel
from crystal_jax.energy.relaxation.result import Relaxed, Status
from crystal_jax.energy.settings import RelaxSettings


class ModelCalculator(Calculator):
    """ASE calculator that calls an energy model."""

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012 - as in ASE

    def __init__(self, model: EnergyModel):
        super().__init__()
        self._model = model

    def calculate(self, atoms: Atoms | None = None, properties=None, system_changes=all_changes) -> None:
        """Computes the energy (eV), forces (eV/Å) and stress (eV/Å^3, Voigt) of the atoms; see ASE."""
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        (found,) = self._model.predict([_cell(self.atoms)])
        stress = full_3x3_to_voigt_6_stress(found.stress)
        self.results = {"energy": found.energy, "free_energy": found.energy, "forces": found.forces, "stress": stress}


def relax_with_ase(model: EnergyModel, key: str, cell: Cell, settings: RelaxSettings) -> Relaxed:
    """Relaxes one crystal with ASE's FIRE and `FrechetCellFilter`. The settings `timeout` and `batch_atoms` are
    ignored.
    """
    atoms = Atoms(cell.numbers, positions=cell.positions, cell=cell.lattice, pbc=True)
    atoms.calc = ModelCalculator(model)
    first = float(atoms.get_potential_energy())
    optimizer = FIRE(FrechetCellFilter(atoms), logfile=None)
    converged = optimizer.run(fmax=settings.fmax, steps=settings.max_steps)
    status: Status = "converged" if converged else "steps"
    energy = float(atoms.get_potential_energy())
    return Relaxed(key, status, "", energy, first, optimizer.get_number_of_steps(), 0.0, _cell(atoms))


def _cell(atoms: Atoms) -> Cell:
    return Cell(np.array(atoms.numbers), np.array(atoms.positions), np.array(atoms.cell))
