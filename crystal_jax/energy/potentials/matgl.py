"""Potentials of matgl, loaded by name from its hub or from a folder."""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from crystal_jax.energy.model import Cell, Prediction
from crystal_jax.energy.potentials.ase_calculator import predict_with
from crystal_jax.errors import UserError
from crystal_jax.json_files import describe, read_json

_FILES = ("model.pt", "state.pt", "model.json")
_MODULE = re.compile(r"matgl\.(models|apps|layers)(\.\w+)*")


class MatGL:
    """Potential of matgl; implements the protocol `EnergyModel`. It evaluates crystals one at a time."""

    corrected = False

    def __init__(self, name: str):
        """Loads the model.

        Args:
            name: name on matgl's hub, or a folder with model.pt, state.pt and model.json.

        Raises:
            UserError: the model does not exist, or is not a potential.
        """
        import matgl
        from matgl.ext.ase import PESCalculator

        folder = Path(name).expanduser()
        if folder.is_dir():
            check_folder(folder)
            name = str(folder)
        elif os.sep in name or name.startswith("."):
            raise UserError(f"{name}: no such folder of a matgl model")
        try:
            potential = matgl.load_model(name)
            self._calculator = PESCalculator(potential, stress_unit="eV/A3")
            symbols = potential.model.element_types
        except Exception as error:  # matgl's loader, hub client and networks raise many types of errors
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"matgl cannot load {name!r} as a potential: {reason}") from error
        from ase.data import atomic_numbers

        self.elements = frozenset(atomic_numbers[symbol] for symbol in symbols)
        self.name = f"{Path(name).name} (matgl {importlib.metadata.version('matgl')})"

    def predict(self, cells: Sequence[Cell]) -> list[Prediction]:
        """Predicts the crystals one at a time; see `EnergyModel`."""
        return predict_with(self._calculator, cells)


def check_folder(folder: Path) -> None:
    """Checks that a matgl model's folder names no code other than matgl's models.

    matgl imports any module that "@module" names, in model.json and in the pickle model.pt. This function reads both
    files first; it reads the pickle without running any code.

    Raises:
        UserError: a file is missing or damaged, or names another module.
    """
    import torch

    for name in _FILES:
        if not (folder / name).is_file():
            raise UserError(f"{folder} lacks {name}; the folder of a matgl model has {', '.join(_FILES)}")
    stated = read_json(folder / "model.json")
    try:
        arguments = torch.load(folder / "model.pt", map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types of errors; all of them mean that the file is refused
        raise UserError(f"{folder / 'model.pt'} is refused: it holds more than plain values, or is damaged") from error
    for file, content in (("model.json", stated), ("model.pt", arguments)):
        for module in _modules_of(content):
            if not _MODULE.fullmatch(str(module)):
                raise UserError(
                    f"{folder / file} is refused: it names the module {describe(str(module))}, not a model of matgl"
                )


def _modules_of(content: Any) -> Iterator[Any]:
    """Yields every module named in nested dicts and lists."""
    members = content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else ()
    if isinstance(content, dict) and "@module" in content:
        yield content["@module"]
    for member in members:
        yield from _modules_of(member)
