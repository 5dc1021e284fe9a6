import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.symmetry.groups import SpaceGroup

from crystal_jax.evaluate.chemistry.validity import MIN_DISTANCE, MIN_VOLUME
from crystal_jax.sample.constraints.geometry import KeepsDistance, LatticeSystem, ValidCell
from crystal_jax.sample.constraints.guide import NEVER, AllowedValues, Guides
from crystal_jax.text.grammar.automaton import END

ANGLES = tuple(sorted(str(i) for i in range(1, 180)))
LENGTHS = tuple(f"{i / 10:.1f}" for i in range(10, 100))
FRACTIONS = tuple(f"{i / 100:.2f}" for i in range(100))


def test_angles_that_form_a_cell():
    guide = ValidCell(lengths=LENGTHS, angles=ANGLES, shortest=0.0)
    rng = np.random.default_rng(0)
    for _ in range(50):
        alpha, beta = rng.integers(1, 180, 2)
        found = guide(["1.0", "2.0", "1.5", str(alpha), str(beta)]).open["angle"]
        for gamma, is_open in zip(ANGLES, found, strict=True):
            try:
                volume = Lattice.from_parameters(1.0, 2.0, 1.5, alpha, beta, float(gamma)).volume
            except ValueError:
                volume = 0.0
            if abs(volume - MIN_VOLUME) > 1e-3:
                sides = abs(alpha - beta) < int(gamma) < min(alpha + beta, 360 - alpha - beta)
                assert is_open == (sides and volume > MIN_VOLUME), (alpha, beta, gamma)


def test_atoms_keep_their_distance_from_their_own_images():
    """Against pymatgen's neighbours of a single atom."""
    guide = ValidCell(lengths=LENGTHS, angles=ANGLES, shortest=1.5)
    assert (guide([]).open["length"] == (np.array(LENGTHS, float) >= 1.5)).all()
    judged = 0
    for lengths in ((3.0, 3.1, 2.0), (9.9, 1.6, 4.0), (2.0, 2.0, 9.0)):
        for alpha, beta in ((90, 90), (70, 110), (20, 35), (45, 50)):
            found = guide([*map(str, lengths), str(alpha), str(beta)]).open["angle"]
            for gamma, is_open in zip(ANGLES, found, strict=True):
                if abs(alpha - beta) < int(gamma) < min(alpha + beta, 360 - alpha - beta):
                    lattice = Lattice.from_parameters(*lengths, alpha, beta, float(gamma))
                    atom = Structure(lattice, ["Na"], [[0, 0, 0]])
                    if lattice.volume > 1.0:
                        near = min((n.nn_distance for n in atom.get_neighbors(atom[0], 1.6)), default=1.6)
                        assert is_open == (near >= 1.5 + 1e-4), (lengths, alpha, beta, gamma, near)
                        judged += near < 1.5
    assert judged > 20  # are too near


@pytest.mark.parametrize("angles", [("90", "90", "90"), ("60", "60", "60"), ("35", "100", "110")])
@pytest.mark.parametrize("lengths", [("3.0", "4.0", "5.0"), ("1.0", "1.2", "9.0")])
def test_places_that_keep_the_distance(lengths, angles):
    """Against the distances that the evaluator measures."""
    guide = KeepsDistance(FRACTIONS)
    fields = [*lengths, *angles, "Na", "0.00", "0.05", "0.02", "Cl", "0.45", "0.50", "0.98", "O", "0.99", "0.06"]
    found = guide(fields).open["z"]
    assert not found.all()
    for z, is_open in zip(FRACTIONS, found, strict=True):
        places = [[0, 0.05, 0.02], [0.45, 0.5, 0.98], [0.99, 0.06, float(z)]]
        structure = Structure(Lattice.from_parameters(*map(float, (*lengths, *angles))), ["Na", "Cl", "O"], places)
        assert is_open == (structure.distance_matrix[-1, :-1].min() >= MIN_DISTANCE)


def test_distances_in_shares_of_the_covalent_radii():
    fields = ["5.0", "5.0", "5.0", "90", "90", "90", "Na", "0.00", "0.00", "0.00", "Cl", "0.00", "0.00"]
    sum_of_radii = 1.66 + 1.02  # Cordero et al., Dalton Trans. 2832 (2008)
    found = KeepsDistance(FRACTIONS, radii=0.5)(fields).open["z"]
    assert [float(z) for z, is_open in zip(FRACTIONS, found, strict=True) if is_open] == [
        z / 100 for z in range(100) if min(z, 100 - z) * 0.05 >= 0.5 * sum_of_radii
    ]


def test_elements_that_a_cell_has_room_for_and_ends_that_leave_it_full():
    """An atom keeps its distance from its own images; a text may end where the cell is not mostly empty."""
    elements = ("Cs", "Li", END)
    guide = KeepsDistance(FRACTIONS, elements=elements, radii=0.7, max_volume_factor=2.0, max_atoms=3)
    small = ["2.0", "2.0", "2.0", "90", "90", "90"]
    assert guide(small).open["element"].tolist()[:2] == [False, True]  # Cs would be 0.41 of its diameter apart
    assert guide(small[:4]).until == 6
    large = ["8.0", "8.0", "8.0", "90", "90", "90"]
    first = [*large, "Li", "0.00", "0.00", "0.00"]
    assert guide(first).open["element"].tolist() == [True, True, False]  # 512 Å^3 for one lithium
    assert guide([*first, "Li", "0.50", "0.50", "0.50"]).open["element"].tolist() == [False, False, False]
    full = [*large, "Cs", "0.00", "0.00", "0.00", "Cs", "0.50", "0.50", "0.50"]
    assert guide(full).open["element"].tolist() == [True, True, True]  # 338 Å^3 of spheres


def test_the_largest_volume():
    guide = ValidCell(lengths=LENGTHS, angles=ANGLES, shortest=0.0, largest=50.0)
    found = guide(["4.0", "4.0", "4.0", "90", "90"]).open["angle"]
    for gamma, is_open in zip(ANGLES, found, strict=True):
        volume = Lattice.from_parameters(4.0, 4.0, 4.0, 90, 90, float(gamma)).volume
        assert is_open == (MIN_VOLUME < volume < 50)


def test_the_first_atom_may_be_anywhere():
    guide = KeepsDistance(FRACTIONS)
    for number in range(9):
        assert guide(["3.0"] * 3 + ["90"] * 3 + ["Na", "0.00", "0.00"][: max(number - 6, 0)]) == AllowedValues({}, 13)


@pytest.mark.parametrize("number", [1, 14, 47, 62, 129, 139, 166, 194, 221, 225, 229])
def test_cells_of_a_space_group(number):
    """Whatever is drawn from what is open is compatible with the group, in pymatgen's setting or a primitive one."""
    guide = LatticeSystem(number, lengths=LENGTHS, angles=ANGLES)
    group, rng = SpaceGroup.from_int_number(number), np.random.default_rng(0)
    for _ in range(10):
        fields = []
        while len(fields) < 6:
            grant = guide(fields)
            values = LENGTHS if len(fields) < 3 else ANGLES
            (mask,) = grant.open.values()
            fields.append(str(rng.choice(np.array(values)[mask])))
        primitive = {"60": 225, "109": 229}.get(fields[3]) == number and len(set(fields[:3])) == 1
        a, b, c, alpha, beta, gamma = map(float, fields)
        rhombohedral = number == 166 and a == b == c and alpha == beta == gamma
        try:
            lattice = Lattice.from_parameters(a, b, c, alpha, beta, gamma)
        except ValueError:
            assert number == 1  # any angles, which `ValidCell` judges
            continue
        assert primitive or rhombohedral or number == 1 or group.is_compatible(lattice)


def test_several_guides_leave_open_what_each_does():
    def one(fields):
        return AllowedValues({"z": np.array([True, True, False])}, 7)

    def other(fields):
        return AllowedValues({"z": np.array([False, True, True]), "angle": np.array([True])}, 5)

    both = Guides([one, other])([])
    assert both.until == 5
    assert both.open["z"].tolist() == [False, True, False]
    assert both.open["angle"].tolist() == [True]
    assert LatticeSystem(225, lengths=LENGTHS, angles=ANGLES)(["1.0"] * 6).until == NEVER
