"""A small folder of real crystals for all tests that train."""

from pathlib import Path

# Cation, anion, cubic lattice constant in Å.
_ROCK_SALTS = (
    ("Na", "Cl", 5.64),
    ("Mg", "O", 4.21),
    ("K", "Br", 6.60),
    ("Li", "F", 4.03),
    ("Ca", "O", 4.81),
    ("Na", "F", 4.63),
    ("K", "Cl", 6.29),
)
_CIF = """data_{formula}
_cell_length_a {a}
_cell_length_b {a}
_cell_length_c {a}
_cell_angle_alpha 60
_cell_angle_beta 60
_cell_angle_gamma 60
loop_
_atom_site_label
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
{cation} 0 0 0
{anion} 0.5 0.5 0.5
"""


def write_rock_salts(folder: Path) -> Path:
    """CIF files of primitive rock-salt cells, several lattice constants each."""
    folder.mkdir(parents=True)
    for cation, anion, a in _ROCK_SALTS:
        for i in range(4):
            side = a / 2**0.5 + 0.1 * i
            text = _CIF.format(formula=cation + anion, a=f"{side:.4f}", cation=cation, anion=anion)
            (folder / f"{cation}{anion}_{i}.cif").write_text(text)
    return folder
