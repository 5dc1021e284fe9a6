"""Draws the simulated X-ray powder pattern of a crystal."""

from __future__ import annotations

from markupsafe import Markup, escape
from pymatgen.analysis.diffraction.xrd import XRDCalculator
from pymatgen.core import Structure

from crystal_jax.report.figures import Frame
from crystal_jax.suppress_warnings import quiet

RADIATION = "CuKa"
RANGE = (10.0, 80.0)  # degrees
_LABELLED = 4  # strongest lines with Miller indices
_LEAST = 0.5  # % of the strongest line; weaker ones are left out


@quiet()
def pattern(structure: Structure) -> Markup:
    """Returns lines at the diffraction angles 2θ of Cu Kα radiation, as high as their relative intensities (%)."""
    found = XRDCalculator(wavelength=RADIATION).get_pattern(structure, two_theta_range=RANGE)
    lines = [
        (float(angle), float(intensity), hkls[0]["hkl"])
        for angle, intensity, hkls in zip(found.x, found.y, found.hkls, strict=True)
        if intensity > _LEAST
    ]
    strongest = sorted(lines, key=lambda line: -line[1])[:_LABELLED]
    frame = Frame(RANGE, (0, 118))
    frame.axes("2θ (degrees, Cu Kα)")
    for angle, intensity, hkl in lines:
        x, name = frame.x(angle), _miller(hkl)
        frame.parts.append(
            f'<path class="xrd" d="M{x:.1f} {frame.y(0):.1f}V{frame.y(intensity):.1f}">'
            f"<title>{escape(name)}: {angle:.2f}°, {intensity:.0f} %</title></path>"
        )
        if (angle, intensity, hkl) in strongest:
            frame.text(x, frame.y(intensity) - 3, name, "middle")
    return frame.svg("Simulated X-ray powder pattern")


def _miller(hkl: tuple[int, ...]) -> str:
    """Returns Miller indices; those of hexagonal axes without the third, which the first two decide."""
    indices = (*hkl[:2], hkl[3]) if len(hkl) == 4 else hkl
    return "".join(f"{abs(index)}\u0305" if index < 0 else str(index) for index in indices)
