"""Computes local order parameters: how similar an atom's neighbours are to an octahedron, a see-saw, etc.

These are the 37 order parameters of the fingerprint "ops" (Zimmermann and Jain, RSC Adv. 10, 6063, 2020), as pymatgen's
`LocalStructOrderParams` computes them, but for all pairs and triples of neighbours at once, in a tenth of the time.
Each takes every neighbour j in turn as the north pole and every other neighbour k as the prime meridian, and rates the
positions of the neighbours m in these coordinates.

Axis letters: j the neighbour at the north pole, k the one on the prime meridian, m any third one.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from pymatgen.core.local_env import CN_OPT_PARAMS, DEFAULT_OP_PARAMS
from scipy.special import sph_harm_y

_COLLINEAR = 1e-12  # a unit vector this close to the polar axis has no azimuth

# The motifs of each coordination number, in the fingerprint's order; names as in pymatgen's table of parameters.
MOTIFS: Mapping[int, tuple[str, ...]] = {
    1: ("sgl_bd",),
    2: ("L-shaped", "water-like", "bent 120 degrees", "bent 150 degrees", "linear"),
    3: ("trigonal planar", "trigonal non-coplanar", "T-shaped"),
    4: ("square co-planar", "tetrahedral", "rectangular see-saw-like", "see-saw-like", "trigonal pyramidal"),
    5: ("pentagonal planar", "square pyramidal", "trigonal bipyramidal"),
    6: ("hexagonal planar", "octahedral", "pentagonal pyramidal"),
    7: ("hexagonal pyramidal", "pentagonal bipyramidal"),
    8: ("body-centered cubic", "hexagonal bipyramidal"),
    9: ("q2", "q4", "q6"),
    10: ("q2", "q4", "q6"),
    11: ("q2", "q4", "q6"),
    12: ("cuboctahedral", "q2", "q4", "q6"),
}


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """Angles among the neighbours of one atom.

    Attributes:
        units: unit vectors to the neighbours.
        theta: angle of j and k at the atom, radians.
        cos_phi: cosine of the azimuth of m, with j at the pole and k on the meridian.
        meridian: whether k is another neighbour than j.
        third: whether m is neither j nor k, and k is not collinear with j, so that there is a meridian.
        azimuth: whether `third` holds and m is not collinear with j either.
    """

    units: Float[np.ndarray, " n xyz"]
    theta: Float[np.ndarray, "j k"]
    cos_phi: Float[np.ndarray, "j k m"]
    meridian: Bool[np.ndarray, "j k"]
    third: Bool[np.ndarray, "j k m"]
    azimuth: Bool[np.ndarray, "j k m"]

    @classmethod
    def of(cls, vectors: Float[np.ndarray, " n xyz"]) -> Neighbours:
        """Computes the angles from the vectors from an atom to its neighbours, in Å."""
        units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        cos = units @ units.T
        # Component of u_k perpendicular to u_j: the direction of k as seen from the pole j.
        across = units[None] - (cos / np.diag(cos)[:, None])[:, :, None] * units[:, None]
        length = np.linalg.norm(across, axis=2)
        off_axis = length >= _COLLINEAR
        across = across / np.where(off_axis, length, 1.0)[:, :, None]
        other = ~np.eye(len(units), dtype=bool)
        third = other[:, :, None] & other[:, None, :] & other[None] & off_axis[:, :, None]
        return cls(
            units=units,
            theta=np.arccos(np.clip(cos, -1.0, 1.0)),
            cos_phi=np.clip(np.einsum("jkx,jmx->jkm", across, across), -1.0, 1.0),
            meridian=other,
            third=third,
            azimuth=third & off_axis[:, None, :],
        )


def order_parameters(vectors: Float[np.ndarray, " n xyz"]) -> list[float]:
    """Returns the order parameters for coordination number n, in the order of `MOTIFS`; none for n above 12."""
    count = len(vectors)
    if count not in MOTIFS:
        return []
    if count == 1:
        return [1.0]  # "sgl_bd" is always 1 for a single neighbour
    neighbours = Neighbours.of(vectors)
    return [_value(count, motif, neighbours) for motif in MOTIFS[count]]


@functools.cache
def _definition(count: int, motif: str) -> tuple[str, dict[Any, float]]:
    """Returns the type of order parameter of a motif, and its constants, from pymatgen's tables."""
    kind, *constants = CN_OPT_PARAMS.get(count, {}).get(motif, [motif])
    found: Any = constants[0] if constants else DEFAULT_OP_PARAMS[str(kind)]
    return str(kind), dict(found or {})


def _value(count: int, motif: str, neighbours: Neighbours) -> float:
    kind, p = _definition(count, motif)
    if kind in ("q2", "q4", "q6"):
        return _steinhardt(int(kind[1]), neighbours.units)
    total, norm = _KINDS[kind](neighbours, p)
    if kind == "bent":
        return float(total[neighbours.meridian].mean())
    if kind == "bcc":
        return float(total.sum() / (0.5 * count * (6 + (count - 2) * (count - 3))))
    rated = np.divide(total, norm, out=np.zeros_like(total), where=norm > 1e-12)
    return float(rated[neighbours.meridian].max())


def _steinhardt(degree: int, units: np.ndarray) -> float:
    """Computes the bond-orientational order parameter of a degree (Steinhardt et al., Phys. Rev. B 28, 784, 1983)."""
    x, y, z = units.T
    theta, phi = np.arccos(np.clip(z, -1.0, 1.0)), np.arctan2(y, x)
    orders = np.arange(degree + 1)[:, None]
    means = np.abs(sph_harm_y(degree, orders, theta, phi).mean(axis=1)) ** 2
    return float(np.sqrt(4 * np.pi / (2 * degree + 1) * (means[0] + 2 * means[1:].sum())))


def _gauss(theta: np.ndarray, target: float | np.ndarray, inverse_width: float) -> np.ndarray:
    """Returns a Gaussian of the angle that is 1 at the target; target and width are in units of π."""
    return np.exp(-0.5 * (inverse_width * (theta / np.pi - target)) ** 2)


def _cos_squared(neighbours: Neighbours, p: Mapping[Any, float]) -> np.ndarray:
    raised: np.ndarray = np.cos(p["fac_AA"] * np.arccos(neighbours.cos_phi)) ** p["exp_cos_AA"]
    return raised


Kind = Callable[[Neighbours, Mapping[Any, float]], tuple[np.ndarray, np.ndarray]]


def _bent(neighbours: Neighbours, p: Mapping[Any, float]) -> tuple[np.ndarray, np.ndarray]:
    polar = _gauss(neighbours.theta, p["TA"], p["IGW_TA"])
    return polar, np.ones_like(polar)


def _cone(neighbours: Neighbours, p: Mapping[Any, float]) -> tuple[np.ndarray, np.ndarray]:
    """Rates other neighbours at one polar angle and equal azimuths: planes, tetrahedra, pyramids."""
    target, width = (p["TA"], p["IGW_TA"]) if "TA" in p else (0.5, p["IGW_EP"])
    polar = _gauss(neighbours.theta, target, width)
    seen = neighbours.azimuth
    total = polar + np.where(seen, polar[:, None, :] * _cos_squared(neighbours, p), 0.0).sum(axis=2)
    return total, 1.0 + seen.sum(axis=2)


def _pentagon(neighbours: Neighbours, p: Mapping[Any, float]) -> tuple[np.ndarray, np.ndarray]:
    """Rates other neighbours at two polar angles, 72° and 144°, in one plane."""
    target = np.where(neighbours.theta <= p["TA"] * np.pi, 0.4, 0.8)
    polar = _gauss(neighbours.theta, target, p["IGW_TA"])
    seen = neighbours.azimuth
    total = polar + np.where(seen, polar[:, None, :] * neighbours.cos_phi**2, 0.0).sum(axis=2)
    return total, 1.0 + seen.sum(axis=2)


def _bipyramid(neighbours: Neighbours, p: Mapping[Any, float]) -> tuple[np.ndarray, np.ndarray]:
    """Rates one neighbour at the south pole and the others on the equator at equal azimuths (for the flat hexagon, near
    the equator).
    """
    if "TA" in p:
        folded = np.abs(neighbours.theta / np.pi - 0.5) * np.pi
        polar = _gauss(folded, p["TA"], p["IGW_TA"])
    else:
        polar = _gauss(neighbours.theta, 0.5, p["IGW_EP"])
    north = neighbours.theta < p["min_SPP"]
    pole = neighbours.third & ~north[:, None, :]
    ring = neighbours.azimuth & north[:, None, :] & north[:, :, None]
    if "w_SPP" not in p:  # the see-saw has an open ring
        ring &= np.arccos(neighbours.cos_phi) < 0.75 * np.pi
    south = _gauss(neighbours.theta, 1.0, p["IGW_SPP"])
    total = np.where(north, polar, 0.0)
    total = total + np.where(pole, south[:, None, :], 0.0).sum(axis=2)
    total = total + np.where(ring, polar[:, None, :] * _cos_squared(neighbours, p), 0.0).sum(axis=2)
    return total, north + pole.sum(axis=2) + ring.sum(axis=2).astype(float)


def _body_centred(neighbours: Neighbours, p: Mapping[Any, float]) -> tuple[np.ndarray, np.ndarray]:
    """Rates one neighbour at the south pole and the others in two rings (Peters, J. Chem. Phys. 131, 244103, 2009)."""
    theta = neighbours.theta
    south = theta >= p["min_SPP"]
    once = np.triu(np.ones_like(south), k=1)  # count each pair j, k once
    total = np.where(south, p["w_SPP"] * _gauss(theta, 1.0, p["IGW_SPP"]), 0.0)
    rings = (theta - np.pi / 2) / np.arcsin(1 / 3)
    rings = np.exp(0.5) * rings * np.exp(-0.5 * rings**2)
    side = np.where(theta > np.pi / 2, 1.0, -1.0)
    turned = np.cos(3 * np.arccos(neighbours.cos_phi)) * rings[:, None, :]
    seen = neighbours.azimuth & ~south[:, :, None]
    total = total + side * np.where(seen, turned, 0.0).sum(axis=2)
    return total * once, once.astype(float)


def _cuboctahedron(neighbours: Neighbours, p: Mapping[Any, float]) -> tuple[np.ndarray, np.ndarray]:
    """Rates one neighbour at the south pole, a ring at the equator, and a ring on either side of it."""
    theta, low, high = neighbours.theta, p[4], p[2]
    south = theta >= p["min_SPP"]
    total = np.where(south, p["w_SPP"] * _gauss(theta, 1.0, p["IGW_SPP"]), 0.0)
    norm = np.where(south, p["w_SPP"], 0.0)
    equator = (low < theta) & (theta < high)
    seen = neighbours.azimuth & ~south[:, None, :] & equator[:, :, None]
    sin_phi = np.cos(np.arccos(neighbours.cos_phi) - 0.5 * np.pi)
    off = np.exp(-0.5 * (0.0556 * (sin_phi - 0.81649658)) ** 2)
    for where, polar, azimuthal in (
        (equator, _gauss(theta, 0.5, p[5]), neighbours.cos_phi**2),
        (theta < low, _gauss(theta, 1 / 3, p[6]), off),
        (theta > high, _gauss(theta, 2 / 3, p[6]), off),
    ):
        here = seen & where[:, None, :]
        total = total + np.where(here, polar[:, None, :] * azimuthal, 0.0).sum(axis=2)
        norm = norm + here.sum(axis=2)
    return total, norm


_KINDS: Mapping[str, Kind] = {
    "bent": _bent,
    "tri_plan_max": _cone,
    "tet_max": _cone,
    "T": _cone,
    "tri_pyr": _cone,
    "sq_pyr": _cone,
    "pent_pyr": _cone,
    "hex_pyr": _cone,
    "pent_plan_max": _pentagon,
    "sq_plan_max": _bipyramid,
    "see_saw_rect": _bipyramid,
    "tri_bipyr": _bipyramid,
    "oct_max": _bipyramid,
    "hex_plan_max": _bipyramid,
    "pent_bipyr": _bipyramid,
    "hex_bipyr": _bipyramid,
    "bcc": _body_centred,
    "cuboct_max": _cuboctahedron,
}
