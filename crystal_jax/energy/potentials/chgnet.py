"""CHGNet 0.3.0 (Deng et al., Nat. Mach. Intell. 5, 1031, 2023). The package `chgnet` contains the weights."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import warnings
from collections.abc import Sequence

import numpy as np
import torch

from crystal_jax.energy.model import Cell, Prediction

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a dependency of chgnet has invalid escape sequences
    from chgnet.model import CHGNet as Network

_GPA = 160.21766208  # in one eV/Å^3


class CHGNet:
    """CHGNet potential; implements the protocol `EnergyModel`. Its training energies include the MP2020 corrections."""

    corrected = True
    elements = frozenset(range(1, 95))

    def __init__(self) -> None:
        """Loads the weights onto the CPU."""
        with contextlib.redirect_stdout(io.StringIO()):  # chgnet prints its device
            self._network = Network.load(use_device="cpu", verbose=False)
        self.name = f"CHGNet 0.3.0 (chgnet {importlib.metadata.version('chgnet')})"

    def predict(self, cells: Sequence[Cell]) -> list[Prediction]:
        """See `EnergyModel`."""
        graphs = [self._network.graph_converter(cell.to_structure()) for cell in cells]
        with torch.enable_grad():
            rows = self._network.predict_graph(graphs, task="efs", batch_size=len(graphs))
        rows = rows if isinstance(rows, list) else [rows]
        return [
            Prediction(
                energy=float(row["e"]) * len(cell.numbers),  # chgnet returns eV/atom
                forces=np.asarray(row["f"], float),
                stress=np.asarray(row["s"], float) / _GPA,
            )
            for cell, row in zip(cells, rows, strict=True)
        ]
