"""M3GNet as in the paper, in JAX: the network of the original checkpoint MP-2021.2.8-EFS.

Chen and Ong, Nat. Comput. Sci. 2, 718 (2022). Three identities save most of the original's arithmetic and change
results only by rounding:

* A three-body message sums a product of Legendre functions of the angle between two bonds over all pairs of bonds of an
  atom. By the addition theorem, P_l(cos θ_jk) = Σ_m C_lm(j) C_lm(k) with the solid harmonics C_lm of the directions, so
  the sum over the second bond is done once for each atom (`_three_body_messages`), and there are no triplets.
- The first layer of each perceptron acts on the features of both atoms and the bond, side by side. The products with
  the atoms' features are computed once for each atom, and then looked up for each bond.
- Values and gates share their input, so their first layers are one matrix.

Axis letters: e bonds (directed, from the source atom to the target atom), a atoms, c crystals.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from crystal_jax.energy.potentials.graph import AnyArray, Graph
from crystal_jax.energy.potentials.jax_potential import Potential
from crystal_jax.energy.potentials.tf_checkpoint import read_checkpoint
from crystal_jax.errors import UserError

CUTOFF = 5.0  # Å, longest bond
THREE_BODY_CUTOFF = 4.0  # Å, longest bond that is part of a three-body message
ELEMENTS = frozenset(range(1, 95))
_BLOCKS = 3
_DEGREE = 3  # number of radial functions and of angular momenta (from 0) in each basis

# The first three positive zeros of the spherical Bessel functions of order 0, 1, 2.
_ZEROS = (
    (math.pi, 2 * math.pi, 3 * math.pi),
    (4.493409457909064, 7.725251836937707, 10.904121659428899),
    (5.763459196894550, 9.095011330476355, 12.322940970566582),
)


class GatedInput(NamedTuple):
    """First layer of a gated perceptron on source atom, target atom and bond; columns are values, then gates."""

    source: Float[AnyArray, "64 128"]
    target: Float[AnyArray, "64 128"]
    bond: Float[AnyArray, "64 128"]
    bias: Float[AnyArray, 128]


class Layer(NamedTuple):
    """Layer of a perceptron."""

    kernel: Float[AnyArray, "n m"]
    bias: Float[AnyArray, " m"]


class BondUpdate(NamedTuple):
    """Gated perceptron of two layers on a bond and its atoms, and the layer that weights its result by the length."""

    first: GatedInput
    value: Layer
    gate: Layer
    weight: Float[AnyArray, "3 64"]


class Block(NamedTuple):
    """Parameters of one block: the three-body message, the update of the bonds, the update of the atoms."""

    neighbour: Layer
    message_value: Float[AnyArray, "9 64"]
    message_gate: Float[AnyArray, "9 64"]
    bonds: BondUpdate
    atoms: BondUpdate


class Params(NamedTuple):
    """Parameters of the network.

    Attributes:
        embedding: Features of each element, by atomic number.
        bond_embedding: Layer from the radial functions to the features of bonds.
        blocks: The blocks.
        value: Perceptron from the features of an atom to its energy.
        gate: Its gate.
        scale: Energy in eV of one unit of the network.
    """

    embedding: Float[AnyArray, "95 64"]
    bond_embedding: Float[AnyArray, "3 64"]
    blocks: tuple[Block, ...]
    value: tuple[Layer, ...]
    gate: tuple[Layer, ...]
    scale: Float[AnyArray, ""]


def load(folder: Path, *, dtype: Any = np.float32) -> Potential:
    """Reads the potential.

    Args:
        folder: folder with `m3gnet.index`, `m3gnet.data-00000-of-00001` and `m3gnet.json`.
        dtype: data type of the arithmetic; float64 needs `jax.enable_x64`.

    Raises:
        UserError: the files are not those of this model.
    """
    weights = read_checkpoint(folder / "m3gnet")
    try:
        config = json.loads(json.loads((folder / "m3gnet.json").read_text()))["config"]
        scale, references = float(config["std"]), np.array(config["element_refs"], np.float64)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}/m3gnet.json is not M3GNet's configuration ({error})") from error
    params = jax.tree.map(lambda x: np.asarray(x, dtype), params_of(weights, scale=scale))
    return Potential(
        name="M3GNet MP-2021.2.8-EFS",
        corrected=False,
        elements=ELEMENTS,
        cutoff=CUTOFF,
        params=params,
        energies=energies,
        references=references,
    )


def params_of(weights: Mapping[str, np.ndarray], *, scale: float) -> Params:
    """Arranges the variables of the checkpoint; each is used exactly once.

    Args:
        weights: the variables by name.
        scale: energy in eV of one unit of the network.

    Raises:
        UserError: a variable is missing or left over.
    """
    left = dict(weights)

    def take(name: str) -> np.ndarray:
        if name not in left:
            raise UserError(f"the checkpoint of M3GNet has no variable {name}")
        return left.pop(name)

    def layer(name: str) -> Layer:
        return Layer(take(f"{name}/kernel"), take(f"{name}/bias"))

    def bond_update(name: str, weight: str) -> BondUpdate:
        value, gate = layer(f"{name}/pipe/layers/0"), layer(f"{name}/gate/layers/0")
        source, target, bond = np.split(np.hstack([value.kernel, gate.kernel]), 3)
        first = GatedInput(source, target, bond, np.concatenate([value.bias, gate.bias]))
        return BondUpdate(
            first, layer(f"{name}/pipe/layers/1"), layer(f"{name}/gate/layers/1"), take(f"{weight}/kernel")
        )

    def block(number: int) -> Block:
        three, graph = f"three_interactions/{number}", f"graph_layers/{number}"
        return Block(
            neighbour=layer(f"{three}/update_network/pipe/layers/0"),
            message_value=take(f"{three}/update_network2/pipe/layers/0/kernel"),
            message_gate=take(f"{three}/update_network2/gate/layers/0/kernel"),
            bonds=bond_update(f"{graph}/bond_network/update_func", f"{graph}/bond_network/weight_func"),
            atoms=bond_update(f"{graph}/atom_network/bond_dense", f"{graph}/atom_network/weight_update"),
        )

    final = "final/layers/0/atom_network/update_func"
    params = Params(
        embedding=take("featurizer/atom_network/embedding/embeddings"),
        bond_embedding=take("feature_adjust/update_func/pipe/layers/0/kernel"),
        blocks=tuple(block(number) for number in range(_BLOCKS)),
        value=tuple(layer(f"{final}/pipe/layers/{number}") for number in range(3)),
        gate=tuple(layer(f"{final}/gate/layers/{number}") for number in range(3)),
        scale=np.asarray(scale),
    )
    if left:
        raise UserError(f"the checkpoint of M3GNet has unknown variables: {', '.join(sorted(left))}")
    return params


def energies(params: Params, graph: Graph, vectors: Float[AnyArray, "e 3"]) -> Float[Array, " a"]:
    """Returns the energy of each atom in eV, without the reference energies of the elements.

    A vector of at least the cut-off's length contributes nothing, so lists of bonds may contain longer ones.

    Args:
        params: the network's parameters.
        graph: elements of the atoms, and the two atoms of each bond.
        vectors: from the source to the target of each bond, Å; none is zero.
    """
    lengths = jnp.sqrt(jnp.sum(vectors**2, axis=1))
    radial = jnp.where(lengths[:, None] < CUTOFF, _smooth_bessel(lengths), 0)
    envelope = _envelope(lengths)
    # Beyond the envelope the Bessel functions are not needed, but must stay finite.
    bessel = _bessel(lengths) * envelope[:, None]
    harmonics = _solid_harmonics(vectors / lengths[:, None])
    atoms = jnp.asarray(params.embedding)[graph.numbers]
    bonds = jax.nn.silu(radial @ params.bond_embedding)
    for block in params.blocks:
        neighbours = jax.nn.sigmoid(_apply(block.neighbour, atoms))
        messages = _three_body_messages(graph, bessel * neighbours[graph.target], harmonics) * envelope[:, None]
        bonds = bonds + jax.nn.silu(messages @ block.message_value) * jax.nn.sigmoid(messages @ block.message_gate)
        bonds = bonds + _gated(block.bonds, graph, atoms, bonds) * (radial @ block.bonds.weight)
        updates = _gated(block.atoms, graph, atoms, bonds) * jax.nn.silu(radial @ block.atoms.weight)
        atoms = atoms + jax.ops.segment_sum(updates, graph.source, len(atoms), indices_are_sorted=True)
    return jnp.asarray(params.scale) * _atomic_energies(params, atoms)


def _apply(layer: Layer, x: Float[AnyArray, "... n"]) -> Float[Array, "... m"]:
    return jnp.asarray(x) @ layer.kernel + layer.bias


def _gated(
    update: BondUpdate, graph: Graph, atoms: Float[AnyArray, "a 64"], bonds: Float[AnyArray, "e 64"]
) -> Float[Array, "e 64"]:
    """Applies the gated perceptron to each bond with the features of its atoms."""
    first = update.first
    of_source, of_target = atoms @ first.source + first.bias, atoms @ first.target
    hidden = jax.nn.silu(bonds @ first.bond + of_source[graph.source] + of_target[graph.target])
    value, gate = jnp.split(hidden, 2, axis=1)
    return jax.nn.silu(_apply(update.value, value)) * jax.nn.sigmoid(_apply(update.gate, gate))


def _atomic_energies(params: Params, atoms: Float[AnyArray, "a 64"]) -> Float[Array, " a"]:
    value = gate = atoms
    for value_layer, gate_layer in zip(params.value[:-1], params.gate[:-1], strict=True):
        value, gate = jax.nn.silu(_apply(value_layer, value)), jax.nn.silu(_apply(gate_layer, gate))
    return (_apply(params.value[-1], value) * jax.nn.sigmoid(_apply(params.gate[-1], gate)))[:, 0]


def _three_body_messages(
    graph: Graph, weights: Float[AnyArray, "e 9"], harmonics: tuple[Float[AnyArray, "e m"], ...]
) -> Float[Array, "e 9"]:
    """Returns Σ_k w_k,nl Y_l0(θ_jk) over all other bonds k of the source of each bond j, ordered by l, then n.

    Args:
        graph: the bonds, sorted by source.
        weights: w_nl of each bond, ordered by l, then n.
        harmonics: solid harmonics C_lm of the bonds' directions, for each l.
    """
    num_atoms = len(graph.numbers)
    messages = []
    for order, directions in enumerate(harmonics):
        mine = weights[:, _DEGREE * order : _DEGREE * (order + 1)]
        # (e, n * m): the products of each radial with each angular function
        products = (mine[:, :, None] * directions[:, None, :]).reshape(len(mine), -1)
        of_atoms = jax.ops.segment_sum(products, graph.source, num_atoms, indices_are_sorted=True)
        of_bonds = of_atoms[graph.source].reshape(len(mine), _DEGREE, -1)
        norm = math.sqrt((2 * order + 1) / (4 * math.pi))
        messages.append(norm * ((of_bonds * directions[:, None, :]).sum(axis=2) - mine))  # a bond is not its own k
    return jnp.concatenate(messages, axis=1)


def _solid_harmonics(directions: Float[AnyArray, "e 3"]) -> tuple[Float[Array, "e m"], ...]:
    """Returns real solid harmonics of unit vectors for l = 0, 1, 2, normalised so that Σ_m C_lm(a) C_lm(b) =
    P_l(a · b).
    """
    x, y, z = directions.T
    root = math.sqrt(3)
    second = [root * x * y, root * y * z, root * z * x, root / 2 * (x**2 - y**2), 1.5 * z**2 - 0.5]
    return jnp.ones_like(directions[:, :1]), jnp.asarray(directions), jnp.stack(second, axis=1)


def _smooth_bessel(r: Float[AnyArray, " e"]) -> Float[Array, "e 3"]:
    """Returns radial functions whose first two derivatives vanish at the cut-off (Kocer et al., J. Chem. Phys. 150,
    154102, 2019).
    """
    sinc = [jnp.sin(r * (n * math.pi / CUTOFF)) / (r * (n * math.pi / CUTOFF)) for n in range(1, _DEGREE + 2)]
    basis: list[Array] = []
    d = 1.0
    for n in range(_DEGREE):
        scale = (-1) ** n * math.sqrt(2) * math.pi / CUTOFF**1.5 * (n + 1) * (n + 2) / math.sqrt(2 * n**2 + 6 * n + 5)
        f = scale * (sinc[n] + sinc[n + 1])
        if n == 0:
            basis.append(f)
            continue
        e = n**2 * (n + 2) ** 2 / (4 * (n + 1) ** 4 + 1)
        before, d = d, 1 - e / d
        basis.append((f + math.sqrt(e / before) * basis[-1]) / math.sqrt(d))
    return jnp.stack(basis, axis=1)


def _bessel(r: Float[AnyArray, " e"]) -> Float[Array, "e 9"]:
    """Returns j_l(z_ln r / cut-off), normalised in the cut-off sphere and ordered by l."""
    columns = []
    for order, zeros in enumerate(_ZEROS):
        for zero in zeros:
            at_zero = float(_spherical_bessel(order + 1, zero, math.sin(zero), math.cos(zero)))
            x = r * (zero / CUTOFF)
            columns.append(
                math.sqrt(2 / CUTOFF**3) / abs(at_zero) * _spherical_bessel(order, x, jnp.sin(x), jnp.cos(x))
            )
    return jnp.stack(columns, axis=1)


def _spherical_bessel(order: int, x: Any, sine: Any, cosine: Any) -> Any:
    """Computes j_l(x) by Rayleigh's formulas from x, sin x and cos x; x is never small, as atoms keep a distance."""
    if order == 0:
        return sine / x
    if order == 1:
        return sine / x**2 - cosine / x
    lower = [_spherical_bessel(lower, x, sine, cosine) for lower in (order - 1, order - 2)]
    return (2 * order - 1) / x * lower[0] - lower[1]


def _envelope(r: Float[AnyArray, " e"]) -> Float[Array, " e"]:
    """Returns the three-body envelope: 1 at r = 0; at the cut-off, it and its first two derivatives are 0."""
    x = r / THREE_BODY_CUTOFF
    return jnp.where(x <= 1, 1 - 10 * x**3 + 15 * x**4 - 6 * x**5, 0)


__all__ = ["CUTOFF", "ELEMENTS", "THREE_BODY_CUTOFF", "Params", "energies", "load", "params_of"]
