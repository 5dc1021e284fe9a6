"""Any potential of matgl, by its name on its hub or by folder."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from crystal_jax.errors import UserError
from crystal_jax.evaluate.energy.model import Cell, Prediction


class MatGL:
    """The potential; a member of the protocol `EnergyModel`. Crystals are evaluated one by one."""

    corrected = False

    def __init__(self, name: str):
        """Loads it.

        Args:
            name: of matgl's hub, or a folder with model.pt, state.pt and model.json.

        Raises:
            UserError: there is no such model, or it is no potential.
        """
        import matgl
        from matgl.ext.ase import PESCalculator

        if not Path(name).is_dir() and (os.sep in name or name.startswith(".")):
            raise UserError(f"{name}: no such folder of a matgl model")
        try:
            potential = matgl.load_model(name)
            self._calculator = PESCalculator(potential, stress_unit="eV/A3")
            symbols = potential.model.element_types
        except Exception as error:  # its loader, its hub and its networks raise nearly anything
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"matgl cannot load {name!r} as a potential: {reason}") from error
        from ase.data import atomic_numbers

        self.elements = frozenset(atomic_numbers[symbol] for symbol in symbols)
        self.name = f"{Path(name).name} (matgl {importlib.metadata.version('matgl')})"

    def predict(self, cells: Sequence[Cell]) -> list[Prediction]:
        """See `EnergyModel`."""
        return [self._one(cell) for cell in cells]

    def _one(self, cell: Cell) -> Prediction:
        from ase import Atoms

        atoms = Atoms(cell.numbers, positions=cell.positions, cell=cell.lattice, pbc=True)
        self._calculator.calculate(atoms)
        found = self._calculator.results
        xx, yy, zz, yz, xz, xy = np.asarray(found["stress"], float).reshape(-1)[:6]
        stress = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
        return Prediction(float(found["energy"]), np.asarray(found["forces"], float), stress)
