"""Crystals whose energies are known, and the potential, loaded once."""

from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from crystal_jax.energy.model import Cell
from crystal_jax.energy.potentials.jax_model import JaxModel
from crystal_jax.energy.potentials.m3gnet import load
from tests.evaluate.conftest import _own_cache  # noqa: F401


@pytest.fixture(scope="session")
def weights(shared) -> Path:
    return shared / "weights/m3gnet/MP-2021.2.8-EFS"


@pytest.fixture(scope="session")
def m3gnet(weights):
    return JaxModel(load(weights))


def rock_salt(a: float, cation: str = "Na", anion: str = "Cl") -> Structure:
    """The primitive cell."""
    lattice = Lattice(a / 2 * (np.ones((3, 3)) - np.eye(3)))
    return Structure(lattice, [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]])


def distorted(seed: int, a: float = 5.6) -> Structure:
    """Rock salt, strained and with displaced atoms."""
    rng = np.random.default_rng(seed)
    structure = rock_salt(a)
    structure.apply_strain(rng.uniform(-0.04, 0.04, 3))
    return Structure(
        structure.lattice,
        structure.species,
        structure.cart_coords + rng.normal(scale=0.15, size=(2, 3)),
        coords_are_cartesian=True,
    )


def cells(count: int) -> list[tuple[str, Cell]]:
    """Distorted rock salts with a key each."""
    return [(str(seed), Cell.of(distorted(seed))) for seed in range(count)]
