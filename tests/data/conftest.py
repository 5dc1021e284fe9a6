from collections.abc import Callable

import pytest
from pymatgen.core import Lattice, Structure


@pytest.fixture(scope="session")
def cif() -> Callable[..., str]:
    """`cif("Po")` is the CIF of a crystal of one element, with one atom in a cube of 4 Å."""

    def cif_of(symbol: str, *, a: float = 4.0) -> str:
        return Structure(Lattice.cubic(a), [symbol], [[0, 0, 0]]).to(fmt="cif")

    return cif_of
