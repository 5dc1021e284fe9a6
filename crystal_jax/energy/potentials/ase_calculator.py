"""Any ASE calculator as an energy model: MACE, MatterSim, ORB and others, as their users have them.

`--energy_model=ase:MODULE:FACTORY` imports the module, calls the function without arguments, and takes the calculator
that it returns. The module is code of the user's own, found on Python's path or in the current folder.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crystal_jax.energy.model import Cell, Prediction
from crystal_jax.errors import UserError


class ASECalculator:
    """Energy model that calls an ASE calculator, one crystal at a time; implements the protocol `EnergyModel`.

    Args:
        name: "MODULE:FACTORY".

    Raises:
        UserError: there is no such module or function, or it fails, or does not return a calculator.
    """

    corrected = False
    elements = frozenset(range(1, 119))  # a calculator does not say; it fails on others

    def __init__(self, name: str):
        module_name, _, factory = name.partition(":")
        if not module_name or not factory:
            raise UserError(f"--energy_model=ase:{name} must name a module and a function: ase:MODULE:FACTORY")
        self.name = f"ase:{name}"
        self._calculator = _make(module_name, factory)

    def predict(self, cells: Sequence[Cell]) -> list[Prediction]:
        """See `EnergyModel`."""
        return predict_with(self._calculator, cells)


def predict_with(calculator: Any, cells: Sequence[Cell]) -> list[Prediction]:
    """Calls an ASE calculator on each crystal.

    Args:
        calculator: of class `ase.calculators.calculator.Calculator`.
        cells: the crystals.
    """
    # Late, because importing it takes long.
    from ase import Atoms

    predictions = []
    for cell in cells:
        atoms = Atoms(cell.numbers, positions=cell.positions, cell=cell.lattice, pbc=True)
        atoms.calc = calculator
        energy, forces = atoms.get_potential_energy(), np.asarray(atoms.get_forces(), float)
        predictions.append(Prediction(float(energy), forces, np.asarray(atoms.get_stress(voigt=False), float)))
    return predictions


def _make(module_name: str, factory: str) -> Any:
    """Imports the module and calls the function."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        calculator = getattr(importlib.import_module(module_name), factory)()
    except Exception as error:  # the user's code raises what it likes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"--energy_model=ase:{module_name}:{factory} gives no calculator: {reason}") from error
    if not hasattr(calculator, "get_potential_energy"):
        raise UserError(
            f"--energy_model=ase:{module_name}:{factory} returned {type(calculator).__name__}, not an ASE calculator"
        )
    return calculator
