import numpy as np
import pytest
from pymatgen.core import Lattice

from crystal_jax.structures.lattice import cell_fault, matrix_fault

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "cell",
    [
        (NAN, 4, 4, 90, 90, 90),
        (4, INF, 4, 90, 90, 90),
        (4, 4, 0, 90, 90, 90),
        (4, 4, -4, 90, 90, 90),
        (1e300, 4, 4, 90, 90, 90),
        (4, 4, 4, 90, 90, NAN),
        (4, 4, 4, 90, 0, 90),
        (4, 4, 4, 180, 90, 90),
        (4, 4, 4, 120, 120, 120),
        (4, 4, 4, 30, 30, 90),
        (4, 4, 0.005, 90, 90, 90),
        (4, 4, 4, 0.05, 90, 90),
    ],
)
def test_no_cell(cell):
    assert cell_fault(cell[:3], cell[3:]).startswith("the lattice forms no cell: ")


def test_a_cell_has_no_fault():
    rng = np.random.default_rng(0)
    for _ in range(200):
        matrix = rng.normal(size=(3, 3)) * 5
        lattice = Lattice(matrix)
        thin = min(lattice.d_hkl(hkl) for hkl in np.eye(3, dtype=int)) < 0.01
        assert (matrix_fault(matrix) is not None) == thin
        assert (cell_fault(lattice.abc, lattice.angles) is not None) == thin


@pytest.mark.parametrize(
    "matrix",
    [
        np.full((3, 3), NAN),
        np.diag([INF, 4, 4]),
        np.zeros((3, 3)),
        np.ones((3, 3)),
        np.diag([4, 4, 1e7]),
        np.diag([4, 4, 0.001]),
    ],
)
def test_no_three_vectors_of_a_cell(matrix):
    assert matrix_fault(np.asarray(matrix, float)).startswith("the lattice forms no cell: ")


def test_what_is_not_given_is_not_judged():
    assert cell_fault([4.0], []) is None
    assert cell_fault([NAN], []) is not None
