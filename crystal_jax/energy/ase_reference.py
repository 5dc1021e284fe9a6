"""The same relaxation by ASE, one crystal after the other: slow, and what the batched one is compared with."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE
from ase.stress import full_3x3_to_voigt_6_stress

from crystal_jax.energy.model import Cell, EnergyModel
from crystal_jax.energy.relax import Relaxed, RelaxSettings, Status


class ModelCalculator(Calculator):
    """An energy model as ASE's calculator."""

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012 - as in ASE

    def __init__(self, model: EnergyModel):
        super().__init__()
        self._model = model

    def calculate(self, atoms: Atoms | None = None, properties=None, system_changes=all_changes) -> None:
        """See ASE."""
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        (found,) = self._model.predict([_cell(self.atoms)])
        stress = full_3x3_to_voigt_6_stress(found.stress)
        self.results = {"energy": found.energy, "free_energy": found.energy, "forces": found.forces, "stress": stress}


def relax_with_ase(model: EnergyModel, key: str, cell: Cell, settings: RelaxSettings) -> Relaxed:
    """Relaxes one crystal with ASE's FIRE and `FrechetCellFilter`; `timeout` and `batch_atoms` are not looked at."""
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
