"""Interface of energy models, and the models by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int
from pymatgen.core import Structure

from crystal_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Cell:
    """Periodic crystal as arrays.

    Attributes:
        numbers: atomic numbers.
        positions: Cartesian coordinates, in Å.
        lattice: the lattice vectors as rows, in Å.
    """

    numbers: Int[np.ndarray, " atoms"]
    positions: Float[np.ndarray, "atoms 3"]
    lattice: Float[np.ndarray, "3 3"]

    @classmethod
    def of(cls, structure: Structure) -> Cell:
        """Converts a structure; oxidation states are dropped."""
        numbers = np.array([site.specie.Z for site in structure])
        return cls(numbers, np.array(structure.cart_coords), np.array(structure.lattice.matrix))

    def to_structure(self) -> Structure:
        """Converts the cell to a structure."""
        return Structure(self.lattice, self.numbers.tolist(), self.positions, coords_are_cartesian=True)

    @property
    def volume(self) -> float:
        """Volume of the cell, in Å^3."""
        return float(abs(np.linalg.det(self.lattice)))


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Energy in eV, forces in eV/Å, and stress in eV/Å^3: ∂E/∂ε / volume, negative if the cell tends to expand."""

    energy: float
    forces: Float[np.ndarray, "atoms 3"]
    stress: Float[np.ndarray, "3 3"]


class EnergyModel(Protocol):
    """Interatomic potential.

    Attributes:
        name: name of the model, with its version.
        corrected: whether the MP2020 corrections are already part of its energies.
        elements: atomic numbers of the elements that the model covers.
    """

    name: str
    corrected: bool
    elements: frozenset[int]

    def predict(self, cells: Sequence[Cell]) -> list[Prediction]:
        """Predicts energy, forces and stress of a batch of crystals."""
        ...


def load_model(name: str, *, weights: Path | None = None) -> EnergyModel:
    """Loads a model. Models whose weights have no known hash are checked on known compounds (see `sanity_check`).

    Args:
        name: "m3gnet", the paper's model; "nequix"; "chgnet"; "matgl:NAME", a model of matgl by name or folder; or
            "ase:MODULE:FACTORY", a function that returns an ASE calculator.
        weights: folder of M3GNet's checkpoint, or Nequix's file or its folder, instead of the cache.

    Raises:
        UserError: the model does not exist, a package or the weights are missing, or the model's energies are wrong.
    """
    from crystal_jax.energy.sanity_check import check

    family = _family(name)
    try:
        model = family.load(name.partition(":")[2], weights)
    except ModuleNotFoundError as error:
        raise UserError(
            f"the energy model {name} needs the package {error.name}: "
            "pip install torch --index-url https://download.pytorch.org/whl/cpu, "
            "then pip install 'crystal-jax[energies]'"
        ) from error
    if not family.is_jax:
        check(model)
    return model


def includes_corrections(name: str) -> bool:
    """Whether a model's energies contain the MP2020 corrections, without loading it: `EnergyModel.corrected`.

    Raises:
        UserError: the model does not exist.
    """
    return _family(name).corrected


def runs_on_accelerator(name: str) -> bool:
    """Whether a model is one in JAX and JAX has a GPU or TPU; then one process serves all devices.

    Raises:
        UserError: the model does not exist.
    """
    if not _family(name).is_jax:
        return False
    import jax

    return jax.default_backend() != "cpu"


@dataclasses.dataclass(frozen=True)
class _Family:
    """Models of one kind.

    Attributes:
        load: function that loads a model from the part of its name after the colon and the folder of the weights.
        corrected: `EnergyModel.corrected`.
        is_jax: whether the model is written in JAX. Its weights have known hashes, so they are not checked again on
            known compounds.
        takes_name: whether the name has a part after a colon.
    """

    load: Callable[[str, Path | None], EnergyModel]
    corrected: bool
    is_jax: bool = False
    takes_name: bool = False


def _family(name: str) -> _Family:
    kind, _, rest = name.partition(":")
    if kind not in _FAMILIES or _FAMILIES[kind].takes_name != bool(rest):
        raise UserError(
            f"no energy model {name!r}; "
            "--energy_model is m3gnet, nequix, chgnet, matgl:NAME, ase:MODULE:FACTORY or none"
        )
    return _FAMILIES[kind]


def _m3gnet(_: str, weights: Path | None) -> EnergyModel:
    from crystal_jax.energy.potentials.jax_model import JaxModel
    from crystal_jax.energy.potentials.m3gnet import load
    from crystal_jax.energy.potentials.m3gnet_weights import m3gnet_folder

    return JaxModel(load(m3gnet_folder(weights)))


def _nequix(_: str, weights: Path | None) -> EnergyModel:
    from crystal_jax.energy.potentials.jax_model import JaxModel
    from crystal_jax.energy.potentials.nequix import load
    from crystal_jax.energy.potentials.nequix_weights import nequix_file

    return JaxModel(load(nequix_file(weights)))


def _chgnet(_: str, __: Path | None) -> EnergyModel:
    from crystal_jax.energy.potentials.chgnet import CHGNet

    return CHGNet()


def _matgl(name: str, _: Path | None) -> EnergyModel:
    from crystal_jax.energy.potentials.matgl import MatGL

    return MatGL(name)


def _ase(name: str, _: Path | None) -> EnergyModel:
    from crystal_jax.energy.potentials.ase_calculator import ASECalculator

    return ASECalculator(name)


_FAMILIES = {
    "m3gnet": _Family(_m3gnet, corrected=False, is_jax=True),
    "nequix": _Family(_nequix, corrected=False, is_jax=True),
    "chgnet": _Family(_chgnet, corrected=True),
    "matgl": _Family(_matgl, corrected=False, takes_name=True),
    "ase": _Family(_ase, corrected=False, takes_name=True),
}
