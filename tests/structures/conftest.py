"""Hand-made crystals."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure


@pytest.fixture
def salt() -> Structure:
    """NaCl, conventional cell."""
    sodium = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    return Structure(Lattice.cubic(5.64), ["Na"] * 4 + ["Cl"] * 4, [*sodium, *(sodium + 0.5)])


@pytest.fixture
def cesium_chloride() -> Structure:
    return Structure(Lattice.cubic(4.12), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
