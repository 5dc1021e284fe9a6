"""Draws the convex hull of a candidate's chemical system, with the candidate and its competitors.

Two elements: formation energies over the composition, and the hull as a line. Three: a triangle of compositions. For
more elements, a table of the materials that compete.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape
from pymatgen.util.string import unicodeify

from crystal_jax.energy.convex_hull.hull import Hull, HullMaterial
from crystal_jax.report.figures import HEIGHT, WIDTH, Frame

_ON_HULL = 1e-4  # eV/atom above the hull, below which a material counts as on it
_SHOWN_ABOVE = 0.3  # eV/atom above the hull; higher materials are left out
_MAX_LABELS = 8
_MAX_ROWS = 8


def hull_diagram(
    hull: Hull, formula: str, shares: Mapping[str, float], formation_energy: float, above: float
) -> Markup:
    """Returns a drawing, or a table where no drawing is possible.

    Args:
        hull: the known materials.
        formula: the candidate's formula.
        shares: shares of the elements in the candidate.
        formation_energy: the candidate's formation energy, eV/atom.
        above: its energy above the hull, eV/atom.
    """
    known = [each for each in hull.materials(shares) if each.above <= _SHOWN_ABOVE]
    if len(shares) == 2:
        return _line(known, formula, shares, formation_energy)
    if len(shares) == 3:
        return _triangle(known, formula, shares, above)
    return _rows(known, formula, above)


def _line(known: Sequence[HullMaterial], formula: str, shares: Mapping[str, float], formation_energy: float) -> Markup:
    first, second = sorted(shares)
    energies = [each.formation_energy for each in known] + [formation_energy, 0.0]
    low, high = min(energies), max(*energies, 0.0)
    margin = 0.12 * (high - low) or 0.1
    frame = Frame((0, 1), (low - 1.5 * margin, high + margin))
    frame.axes(f"share of {second} in {first}–{second}; vertical: formation energy (eV/atom)")
    stable = sorted((each.shares.get(second, 0.0), each) for each in known if each.above < _ON_HULL)
    frame.line([(x, each.formation_energy) for x, each in stable], "hull")
    for each in known:
        x = each.shares.get(second, 0.0)
        is_stable = each.above < _ON_HULL
        _dot(frame, frame.x(x), frame.y(each.formation_energy), each.formula, each.above, is_stable=is_stable)
        if is_stable and 0 < x < 1:
            frame.text(frame.x(x), frame.y(each.formation_energy) + 13, unicodeify(each.formula), "middle")
    _cross(frame, frame.x(shares[second]), frame.y(formation_energy), formula)
    return frame.svg(f"Convex hull of {first}-{second}")


def _triangle(known: Sequence[HullMaterial], formula: str, shares: Mapping[str, float], above: float) -> Markup:
    symbols = sorted(shares)
    side = min(WIDTH - 80, (HEIGHT - 40) / (math.sqrt(3) / 2))
    left, bottom = (WIDTH - side) / 2, HEIGHT - 18
    frame = Frame((0, 1), (0, 1))

    def place(mix: Mapping[str, float]) -> tuple[float, float]:
        right, up = mix.get(symbols[1], 0.0), mix.get(symbols[2], 0.0)
        return left + side * (right + up / 2), bottom - side * up * math.sqrt(3) / 2

    corners = [place({symbol: 1.0}) for symbol in symbols]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in corners)
    frame.parts.append(f'<path class="hull" d="M{path}Z"/>')
    for (x, y), symbol, anchor, dx, dy in zip(
        corners, symbols, ("end", "start", "middle"), (-8, 8, 0), (5, 5, -8), strict=True
    ):
        frame.text(x + dx, y + dy, symbol, anchor, "label")
    labels = 0
    for each in sorted(known, key=lambda material: material.above):
        x, y = place(each.shares)
        is_stable = each.above < _ON_HULL
        _dot(frame, x, y, each.formula, each.above, is_stable=is_stable)
        if is_stable and len(each.shares) > 1 and labels < _MAX_LABELS:
            frame.text(x, y - 6, unicodeify(each.formula), "middle")
            labels += 1
    _cross(frame, *place(shares), f"{formula}, {above:.3f} eV/atom above the hull")
    return frame.svg(f"Compositions of {'-'.join(symbols)}")


def _rows(known: Sequence[HullMaterial], formula: str, above: float) -> Markup:
    competing = sorted(
        (each for each in known if len(each.shares) > 1), key=lambda each: (-len(each.shares), each.above)
    )
    cells = "".join(
        f"<tr><td>{escape(unicodeify(each.formula))}</td><td>{each.formation_energy:.3f}</td><td>{each.above:.3f}</td></tr>"
        for each in competing[:_MAX_ROWS]
    )
    more = f"<tr><td colspan=3>and {len(competing) - _MAX_ROWS} more</td></tr>" if len(competing) > _MAX_ROWS else ""
    return Markup(
        '<table class="competitors"><tr><th>eV/atom</th><th>formation</th><th>above hull</th></tr>'
        f"<tr class=own><td>{escape(unicodeify(formula))}</td><td></td><td>{above:.3f}</td></tr>{cells}{more}</table>"
    )


def _dot(frame: Frame, x: float, y: float, formula: str, above: float, *, is_stable: bool) -> None:
    kind = "stable" if is_stable else "unstable"
    state = "on the hull" if is_stable else f"{above:.3f} eV/atom above"
    frame.parts.append(
        f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3.2"><title>{escape(formula)}: {state}</title></circle>'
    )


def _cross(frame: Frame, x: float, y: float, title: str) -> None:
    frame.parts.append(
        f'<path class="own" d="M{x - 5:.1f} {y - 5:.1f}l10 10m0-10l-10 10"><title>{escape(title)}</title></path>'
    )
