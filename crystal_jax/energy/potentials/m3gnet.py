"""M3GNet as in the paper: the TensorFlow model MP-2021.2.8-EFS rebuilt in PyTorch, for batches of crystals.

Chen and Ong, Nat. Comput. Sci. 2, 718 (2022). matgl's M3GNet, the successor, differs from the original in its two-body
basis, in the weights of the atom update and in the readout, so its blocks would have to be patched. This module writes
the arithmetic out once, over a dictionary of the checkpoint's variables, all of which are used.

Axis letters: e bonds (directed, i → j), t triplets (two bonds of one atom), a atoms, c crystals.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pymatgen.optimization.neighbors import find_points_in_spheres

from crystal_jax.energy.model import Cell, Prediction
from crystal_jax.energy.potentials.tf_checkpoint import read_checkpoint
from crystal_jax.errors import UserError

CUTOFF = 5.0  # Å, longest bond
THREE_BODY_CUTOFF = 4.0  # Å, longest bond that is part of a triplet
BLOCKS = 3
_DEGREE = 3  # number of radial functions and of angular momenta (from 0) in each basis
_TOLERANCE = 1e-8  # Å; a neighbour closer than this is the atom itself

# The first three positive zeros of the spherical Bessel functions of order 0, 1, 2.
_ZEROS = (
    (math.pi, 2 * math.pi, 3 * math.pi),
    (4.493409457909064, 7.725251836937707, 10.904121659428899),
    (5.763459196894550, 9.095011330476355, 12.322940970566582),
)


class Graph(NamedTuple):
    """Bonds and triplets of a batch of crystals; indices run over the whole batch."""

    numbers: torch.Tensor  # a
    crystal_of_atom: torch.Tensor  # a
    source: torch.Tensor  # e
    target: torch.Tensor  # e
    shift: torch.Tensor  # (e, 3): lattice translation of the target's image, in whole lattice vectors
    receiver: torch.Tensor  # t: the bond i → j that receives the message
    giver: torch.Tensor  # t: the bond i → k that sends it


class M3GNet:
    """M3GNet potential; implements the protocol `EnergyModel`."""

    name = "M3GNet MP-2021.2.8-EFS"
    corrected = False
    elements = frozenset(range(1, 95))

    def __init__(self, folder: Path, *, dtype: torch.dtype = torch.float32):
        """Reads the checkpoint.

        Args:
            folder: folder with `m3gnet.index`, `m3gnet.data-00000-of-00001` and `m3gnet.json`.
            dtype: data type of the arithmetic.

        Raises:
            UserError: the files are not those of this model.
        """
        found = read_checkpoint(folder / "m3gnet")
        self.weights = {name: torch.tensor(array, dtype=dtype) for name, array in found.items()}
        self.dtype = dtype
        try:
            config = json.loads(json.loads((folder / "m3gnet.json").read_text()))["config"]
            self._scale = float(config["std"])
            self._references = torch.tensor(config["element_refs"], dtype=torch.float64)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder}/m3gnet.json is not M3GNet's configuration ({error})") from error

    def predict(self, cells: Sequence[Cell]) -> list[Prediction]:
        """Predicts a batch of crystals; see `EnergyModel`. A crystal without bonds has the energy of its isolated
        atoms.
        """
        graph = join([_neighbours(cell) for cell in cells], cells)
        positions = torch.tensor(np.concatenate([cell.positions for cell in cells]), dtype=self.dtype)
        positions.requires_grad_()
        lattices = torch.tensor(np.stack([cell.lattice for cell in cells]), dtype=self.dtype)
        strain = torch.zeros_like(lattices, requires_grad=True)
        energies = self.energies(graph, positions, lattices, strain)
        forces, virial = torch.autograd.grad(energies.sum(), [positions, strain])
        sizes = [len(cell.numbers) for cell in cells]
        split = np.split(-forces.numpy().astype(float), np.cumsum(sizes)[:-1])
        return [
            Prediction(float(energy), force, 0.5 * (v + v.T) / cell.volume)
            for cell, energy, force, v in zip(
                cells, energies.detach(), split, virial.numpy().astype(float), strict=True
            )
        ]

    def energies(
        self, graph: Graph, positions: torch.Tensor, lattices: torch.Tensor, strain: torch.Tensor
    ) -> torch.Tensor:
        """Returns the energies of the crystals in eV, (c,), float64.

        Args:
            graph: the bonds and triplets of the crystals.
            positions: (a, 3), Å.
            lattices: (c, 3, 3), Å.
            strain: (c, 3, 3); deforms all vectors, so that the gradient with respect to it is the stress times the
                volume.
        """
        crystal = graph.crystal_of_atom[graph.source]
        vectors = positions[graph.target] - positions[graph.source]
        vectors = vectors + torch.einsum("en,enx->ex", graph.shift.to(self.dtype), lattices[crystal])
        vectors = vectors + torch.einsum("ex,exy->ey", vectors, strain[crystal])
        lengths = torch.linalg.norm(vectors, dim=1)
        radial = _smooth_bessel(lengths)
        triple = self._three_body_basis(graph, vectors, lengths)

        w = self.weights
        atoms = w["featurizer/atom_network/embedding/embeddings"][graph.numbers]
        bonds = torch.nn.functional.silu(radial @ w["feature_adjust/update_func/pipe/layers/0/kernel"])
        for block in range(BLOCKS):
            three = f"three_interactions/{block}"
            ends = torch.sigmoid(self._linear(atoms, f"{three}/update_network/pipe/layers/0"))
            seen = triple * ends[graph.target[graph.giver]]
            message = torch.zeros(len(bonds), seen.shape[1], dtype=self.dtype).index_add(0, graph.receiver, seen)
            bonds = bonds + self._gated(message, f"{three}/update_network2", layers=1)
            layer = f"graph_layers/{block}"
            joined = torch.cat([atoms[graph.source], atoms[graph.target], bonds], dim=1)
            weight = radial @ w[f"{layer}/bond_network/weight_func/kernel"]
            bonds = bonds + self._gated(joined, f"{layer}/bond_network/update_func", layers=2) * weight
            joined = torch.cat([atoms[graph.source], atoms[graph.target], bonds], dim=1)
            weight = torch.nn.functional.silu(radial @ w[f"{layer}/atom_network/weight_update/kernel"])
            message = self._gated(joined, f"{layer}/atom_network/bond_dense", layers=2) * weight
            atoms = atoms.index_add(0, graph.source, message)
        each = self._gated(atoms, "final/layers/0/atom_network/update_func", layers=3, output=True)[:, 0]
        each = self._scale * each.double() + self._references[graph.numbers]
        return torch.zeros(len(lattices), dtype=torch.float64).index_add(0, graph.crystal_of_atom, each)

    def _three_body_basis(self, graph: Graph, vectors: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Returns the three-body basis (t, 9): spherical Bessel functions of the giver's length times Legendre
        functions of the angle, times the cut-off envelope of both bonds.
        """
        one, other = vectors[graph.receiver], vectors[graph.giver]
        cosine = (one * other).sum(dim=1) / (lengths[graph.receiver] * lengths[graph.giver])
        angular = _zonal_harmonics(cosine.clamp(-1, 1))
        radial = _bessel(lengths[graph.giver])
        envelope = _envelope(lengths)
        weight = envelope[graph.receiver] * envelope[graph.giver]
        return (radial * angular.repeat_interleave(_DEGREE, dim=1)) * weight[:, None]

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        y = x @ self.weights[f"{name}/kernel"]
        bias = self.weights.get(f"{name}/bias")
        return y if bias is None else y + bias

    def _gated(self, x: torch.Tensor, name: str, *, layers: int, output: bool = False) -> torch.Tensor:
        """Applies a multi-layer perceptron, times a gate of the same shape. With `output`, the last layer has no
        activation.
        """
        value = gate = x
        for layer in range(layers):
            last = layer == layers - 1
            value = self._linear(value, f"{name}/pipe/layers/{layer}")
            gate = self._linear(gate, f"{name}/gate/layers/{layer}")
            value = value if last and output else torch.nn.functional.silu(value)
            gate = torch.sigmoid(gate) if last else torch.nn.functional.silu(gate)
        return value * gate


def join(neighbours: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], cells: Sequence[Cell]) -> Graph:
    """Builds one graph from the bonds of several crystals, given as sources, targets and shifts, sorted by source."""
    sizes = np.array([len(cell.numbers) for cell in cells])
    begin = np.cumsum(sizes) - sizes
    source = np.concatenate([s + b for (s, _, _), b in zip(neighbours, begin, strict=True)])
    target = np.concatenate([t + b for (_, t, _), b in zip(neighbours, begin, strict=True)])
    shift = np.concatenate([x for _, _, x in neighbours])
    positions = np.concatenate([cell.positions for cell in cells])
    lattices = np.stack([cell.lattice for cell in cells])
    crystal = np.repeat(np.arange(len(cells)), sizes)
    vectors = positions[target] - positions[source] + np.einsum("en,enx->ex", shift, lattices[crystal[source]])
    receiver, giver = _triplets(source, np.linalg.norm(vectors, axis=1) <= THREE_BODY_CUTOFF)
    numbers = np.concatenate([cell.numbers for cell in cells])
    return Graph(*(torch.as_tensor(x) for x in (numbers, crystal, source, target, shift, receiver, giver)))


def _neighbours(cell: Cell) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns sources, targets and lattice translations of all bonds of a crystal, sorted by source."""
    pbc = np.ones(3, dtype=np.int64)
    positions, lattice = np.ascontiguousarray(cell.positions), np.ascontiguousarray(cell.lattice)
    source, target, image, distance = find_points_in_spheres(
        positions, positions, r=CUTOFF, pbc=pbc, lattice=lattice, tol=_TOLERANCE
    )
    kept = np.flatnonzero((source != target) | (distance > _TOLERANCE))
    kept = kept[np.argsort(source[kept], kind="stable")]
    return source[kept], target[kept], image[kept]


def _triplets(source: np.ndarray, short: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns all ordered pairs of different short bonds of the same atom. `source` must be sorted."""
    bonds = np.flatnonzero(short)
    _, first, count = np.unique(source[bonds], return_index=True, return_counts=True)
    partners = np.repeat(count, count)  # for each bond, the number of bonds of its atom, itself included
    receiver = np.repeat(np.arange(len(bonds)), partners)
    place = np.arange(len(receiver)) - np.repeat(np.cumsum(partners) - partners, partners)
    giver = np.repeat(np.repeat(first, count), partners) + place
    different = receiver != giver
    return bonds[receiver[different]], bonds[giver[different]]


def _smooth_bessel(r: torch.Tensor) -> torch.Tensor:
    """Returns (e, 3) radial functions whose first two derivatives vanish at the cut-off (Kocer et al., J. Chem. Phys.
    150, 154102, 2019).
    """

    def sinc(x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x) / x

    basis: list[torch.Tensor] = []
    d = 1.0
    for n in range(_DEGREE):
        scale = (-1) ** n * math.sqrt(2) * math.pi / CUTOFF**1.5 * (n + 1) * (n + 2) / math.sqrt(2 * n**2 + 6 * n + 5)
        f = scale * (sinc(r * (n + 1) * math.pi / CUTOFF) + sinc(r * (n + 2) * math.pi / CUTOFF))
        if n == 0:
            basis.append(f)
            continue
        e = n**2 * (n + 2) ** 2 / (4 * (n + 1) ** 4 + 1)
        before, d = d, 1 - e / d
        basis.append((f + math.sqrt(e / before) * basis[-1]) / math.sqrt(d))
    return torch.stack(basis, dim=1)


def _bessel(r: torch.Tensor) -> torch.Tensor:
    """Returns j_l(z_ln r / cut-off), (t, 9), normalised in the cut-off sphere and ordered by l."""
    columns = []
    for order, zeros in enumerate(_ZEROS):
        for zero in zeros:
            norm = math.sqrt(2 / CUTOFF**3) / abs(
                float(_spherical_j(order + 1, torch.tensor(zero, dtype=torch.float64)))
            )
            columns.append(norm * _spherical_j(order, r * (zero / CUTOFF)))
    return torch.stack(columns, dim=1)


def _spherical_j(order: int, x: torch.Tensor) -> torch.Tensor:
    """Computes spherical Bessel functions by Rayleigh's formulas. x is never small, because atoms keep a distance."""
    if order == 0:
        return torch.sin(x) / x
    if order == 1:
        return torch.sin(x) / x**2 - torch.cos(x) / x
    return (2 * order - 1) / x * _spherical_j(order - 1, x) - _spherical_j(order - 2, x)


def _zonal_harmonics(cosine: torch.Tensor) -> torch.Tensor:
    """Returns the zonal harmonics Y_l0, (t, 3)."""
    legendre = (torch.ones_like(cosine), cosine, 1.5 * cosine**2 - 0.5)
    norms = (math.sqrt((2 * order + 1) / (4 * math.pi)) for order in range(_DEGREE))
    return torch.stack([norm * p for norm, p in zip(norms, legendre, strict=True)], dim=1)


def _envelope(r: torch.Tensor) -> torch.Tensor:
    """Returns the three-body envelope: 1 at r = 0; at the cut-off, it and its first two derivatives are 0."""
    x = r / THREE_BODY_CUTOFF
    return torch.where(x <= 1, 1 - 10 * x**3 + 15 * x**4 - 6 * x**5, torch.zeros_like(x))
