"""Nequix-OAM in JAX: the equivariant network of the checkpoint nequix-oam-1.

Koker, Kotak and Smidt, Training a Foundation Model for Materials on a Budget (arXiv 2508.16067, 2025). The network is a
NequIP (Batzner et al., Nat. Commun. 13, 2453, 2022) with a normalisation in each layer. The features of an atom are
tensors of degrees l = 0 to 3; the components of a degree rotate as its spherical harmonics do. A message multiplies the
features of a neighbour with the spherical harmonics of the bond's direction, and each product of degrees l1 and l2 is
projected on each degree l3 of the right parity: (l1, l2, l3) is a path. Functions of the bond's length, one for each
path and channel, weight the message.

Axis letters: e bonds (directed, from the source atom to the target atom), a atoms, m and n components of a degree, u
and w channels.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from crystal_jax.energy.potentials.graph import AnyArray, Graph
from crystal_jax.energy.potentials.jax_potential import Potential
from crystal_jax.energy.potentials.nequix_checkpoint import Checkpoint, read_checkpoint
from crystal_jax.errors import UserError

CUTOFF = 6.0  # Å, longest bond
ELEMENTS = (*range(1, 84), *range(89, 95))
_DEGREES = (0, 1, 2, 3)
_CHANNELS = (128, 64, 32, 32)  # of each degree
_LAYERS = 4
_RADIAL = 8  # radial functions
_HIDDEN = 64  # functions of the length that the radial perceptron computes
_ENVELOPE_POWER = 6
_EPSILON = 1e-12
# Root mean square of silu for normally distributed input, as e3nn-jax computes it, by which it divides silu. The exact
# value is 0.5964692.
_SILU_RMS = 0.5964586854233045


class PathParams(NamedTuple):
    """Parameters of one path of a layer.

    Attributes:
        weights: layer from the functions of the bond's length to the weights of the messages, for each channel.
        combine: layer from the sums of the messages to the updated features.
    """

    weights: Float[AnyArray, "64 u"]
    combine: Float[AnyArray, "u w"]


class Layer(NamedTuple):
    """Parameters of one layer of the network.

    Of degree 0, the updated features are the channels, then the gates of the higher degrees.

    Attributes:
        radial: perceptron from the radial functions to further functions of the bond's length. It has no biases.
        mix: layer on the channels of each atom's features, before they become messages; for each degree.
        paths: parameters of each path, in the order of `_paths`.
        skip: layer from the features to the updated features, for each degree.
        scale: factors of the normalised updated features, for each degree.
    """

    radial: tuple[Float[AnyArray, "n 64"], ...]
    mix: tuple[Float[AnyArray, "u u"], ...]
    paths: tuple[PathParams, ...]
    skip: tuple[Float[AnyArray, "u w"], ...]
    scale: tuple[Float[AnyArray, " w"], ...]


class Params(NamedTuple):
    """Parameters of the network.

    Attributes:
        elements: the features of each element, by atomic number: one of them is 1.
        layers: the layers.
        readout: layer from the features of an atom to its energy in eV.
    """

    elements: Float[AnyArray, "95 89"]
    layers: tuple[Layer, ...]
    readout: Float[AnyArray, "128 1"]


def load(path: Path, *, dtype: Any = np.float32) -> Potential:
    """Reads the potential.

    Args:
        path: the file `nequix-oam-1.nqx`.
        dtype: data type of the arithmetic; float64 needs `jax.enable_x64`.

    Raises:
        UserError: the file is not that of this model.
    """
    checkpoint = read_checkpoint(path)
    params, references = params_of(checkpoint)
    return Potential(
        name="Nequix OAM-1",
        corrected=False,
        elements=frozenset(ELEMENTS),
        cutoff=CUTOFF,
        params=jax.tree.map(lambda x: np.asarray(x, dtype), params),
        energies=energies,
        references=references,
    )


def params_of(checkpoint: Checkpoint) -> tuple[Params, Float[np.ndarray, 95]]:
    """Arranges the arrays of the checkpoint, and multiplies each with the constant factors that go with it.

    Returns:
        the parameters, and the reference energy of each element in eV by atomic number; NaN for unknown elements.

    Raises:
        UserError: an array is missing or has another shape.
    """
    arrays = iter(checkpoint.arrays)

    def take(*shape: int) -> np.ndarray:
        found = next(arrays, None)
        if found is None or found.shape != shape:
            raise UserError(f"Nequix's checkpoint has no array of shape {shape} where it belongs")
        return found.astype(np.float64)

    def linear(inputs: int, outputs: int) -> np.ndarray:
        return take(inputs, outputs) / math.sqrt(inputs)

    neighbours = math.sqrt(checkpoint.settings.number("avg_n_neighbors"))

    # The file has no names: each array is taken in its turn.
    def layer(inputs: Sequence[int], outputs: Sequence[int]) -> Layer:
        paths = _paths(len(inputs), len(outputs))
        widths = [sum(inputs[path.first] for path in paths if path.result == degree) for degree in range(len(outputs))]
        results = (outputs[0] + sum(outputs[1:]), *outputs[1:])
        radial = (take(_RADIAL, _HIDDEN), take(_HIDDEN, _HIDDEN))
        weights = take(_HIDDEN, sum(widths))
        mix = tuple(linear(width, width) for width in inputs)
        combine = [linear(width, result) / neighbours for width, result in zip(widths, results, strict=True)]
        of_paths = []
        for path in paths:
            channels = inputs[path.first]
            of_paths.append(PathParams(weights[:, :channels], combine[path.result][:channels]))
            weights, combine[path.result] = weights[:, channels:], combine[path.result][channels:]
        return Layer(
            radial=radial,
            mix=mix,
            paths=tuple(of_paths),
            skip=tuple(linear(width, result) for width, result in zip(inputs, results, strict=False)),
            scale=tuple(take(result) for result in results),
        )

    of_elements = take(len(ELEMENTS))
    shapes = [(len(ELEMENTS),), *[_CHANNELS] * (_LAYERS - 1), _CHANNELS[:1]]
    layers = tuple(layer(before, after) for before, after in itertools.pairwise(shapes))
    scale, shift = (checkpoint.settings.number(key) for key in ("scale", "shift"))
    readout = scale * linear(_CHANNELS[0], 1)
    elements = np.zeros((max(ELEMENTS) + 1, len(ELEMENTS)))
    elements[ELEMENTS, range(len(ELEMENTS))] = 1
    references = np.full(len(elements), np.nan)
    references[list(ELEMENTS)] = of_elements + shift
    if next(arrays, None) is not None:
        raise UserError("Nequix's checkpoint has more arrays than the network")
    return Params(elements, layers, readout), references


def energies(params: Params, graph: Graph, vectors: Float[AnyArray, "e 3"]) -> Float[Array, " a"]:
    """Returns the energy of each atom in eV, without the reference energies of the elements.

    A vector of at least the cut-off's length contributes nothing, so lists of bonds may contain longer ones: its radial
    functions are 0, and the perceptron on them has no biases.

    Args:
        params: the network's parameters.
        graph: elements of the atoms, and the two atoms of each bond.
        vectors: from the source to the target of each bond, Å; none is zero.
    """
    lengths = jnp.sqrt(jnp.sum(vectors**2, axis=1))
    radial = _bessel(lengths) * _envelope(lengths)[:, None]
    harmonics = [jnp.stack(each, axis=1) for each in _spherical_harmonics(*(vectors / lengths[:, None]).T)]
    products = {path: _product(path, harmonics[path.second]) for path in _paths(len(_DEGREES), len(_DEGREES))}
    features = [jnp.asarray(params.elements)[graph.numbers][:, None, :]]
    for layer in params.layers:
        features = _apply(layer, graph, radial, products, features)
    return (features[0] @ params.readout)[:, 0, 0]


class _Path(NamedTuple):
    """Degrees of a product: of the neighbour's features, of the bond's harmonics, and of the result."""

    first: int
    second: int
    result: int


def _paths(inputs: int, outputs: int) -> list[_Path]:
    """Returns the paths from features of degrees below `inputs` to those below `outputs`, ordered by the degree of the
    result. The parity of a feature is that of its degree, so the sum of the three degrees is even.
    """
    return [
        _Path(first, second, result)
        for result in range(outputs)
        for first in range(inputs)
        for second in _DEGREES
        if abs(first - second) <= result <= first + second and (first + second + result) % 2 == 0
    ]


def _apply(
    layer: Layer,
    graph: Graph,
    radial: Float[Array, "e 8"],
    products: dict[_Path, Float[Array, "e m n"]],
    features: Sequence[Float[Array, "a m u"]],
) -> list[Float[Array, "a n w"]]:
    """Applies a layer to the features of the atoms, one array for each degree."""
    hidden = jax.nn.silu(jax.nn.silu(radial @ layer.radial[0]) @ layer.radial[1])
    # Without checks of the indices, which would take another pass over each array.
    neighbours = [
        (x @ kernel).at[graph.target].get(mode="promise_in_bounds")
        for x, kernel in zip(features, layer.mix, strict=True)
    ]
    updated: list[Any] = [0] * len(layer.scale)
    for degree, (x, kernel) in enumerate(zip(features, layer.skip, strict=False)):
        updated[degree] = x @ kernel
    for path, params in zip(_paths(len(features), len(updated)), layer.paths, strict=True):
        messages = _messages(products[path], neighbours[path.first], hidden @ params.weights)
        sums = jax.ops.segment_sum(
            messages, graph.source, len(graph.numbers), indices_are_sorted=True, mode="promise_in_bounds"
        )
        updated[path.result] += sums @ params.combine
    return _gated(_normalized(updated, layer.scale))


@jax.custom_vjp
def _messages(
    product: Float[Array, "e m n"], features: Float[Array, "e m u"], weights: Float[Array, "e u"]
) -> Float[Array, "e n u"]:
    """Returns the messages of one path: the neighbours' features multiplied with the harmonics and the weights.

    Its derivative is written out, because what XLA for CPUs makes of the automatic one takes three times as long: here
    it multiplies matrices only where it must, and nothing large is stored for the reverse pass.
    """
    return _multiply(product, features) * weights[:, None, :]


def _messages_forward(*arguments: Array) -> tuple[Array, tuple[Array, ...]]:
    return _messages(*arguments), arguments


def _messages_backward(arguments: tuple[Array, ...], gradient: Float[Array, "e n u"]) -> tuple[Array, ...]:
    product, features, weights = arguments
    unweighted = _multiply(product, features)
    of_weights = functools.reduce(operator.add, (gradient[:, n] * unweighted[:, n] for n in range(gradient.shape[1])))
    weighted = gradient * weights[:, None, :]
    of_product = jnp.einsum("enu,emu->enm", weighted, features).swapaxes(1, 2)
    return of_product, _multiply(product.swapaxes(1, 2), weighted), of_weights


_messages.defvjp(_messages_forward, _messages_backward)


def _multiply(matrices: Float[Array, "e m n"], features: Float[Array, "e m u"]) -> Float[Array, "e n u"]:
    """Multiplies each bond's matrix with its features; these products are too small for XLA's product of matrices."""
    products = (matrices[:, m, :, None] * features[:, m, None, :] for m in range(matrices.shape[1]))
    return functools.reduce(operator.add, products)


def _normalized(
    features: Sequence[Float[Array, "a m w"]], scales: Sequence[Float[AnyArray, " w"]]
) -> list[Float[Array, "a m w"]]:
    """Divides all features of an atom by the root of their sum of squares, averaged over the degrees.

    A degree with n components counts 1 / n^2, as in the original, not 1 / n.
    """
    square = sum(jnp.sum(x**2, axis=(1, 2), keepdims=True) / x.shape[1] ** 2 for x in features) / len(features)
    factor = (square + _EPSILON) ** -0.5
    return [x * scale * factor for x, scale in zip(features, scales, strict=True)]


def _gated(features: Sequence[Float[Array, "a m w"]]) -> list[Float[Array, "a m u"]]:
    """Applies silu to the channels and gates of degree 0, and multiplies the higher degrees by their gates."""
    scalars, higher = jax.nn.silu(features[0]) / _SILU_RMS, features[1:]
    begin = scalars.shape[2] - sum(x.shape[2] for x in higher)
    gated = [scalars[:, :, :begin]]
    for x in higher:
        end = begin + x.shape[2]
        gated.append(x * scalars[:, :, begin:end])
        begin = end
    return gated


def _bessel(r: Float[Array, " e"]) -> Float[Array, "e 8"]:
    """Returns the spherical Bessel functions of order 0 that are zero at the cut-off."""
    frequencies = jnp.arange(1, _RADIAL + 1, dtype=r.dtype) * (math.pi / CUTOFF)
    return (2 / CUTOFF) * jnp.sin(frequencies * r[:, None]) / r[:, None]


def _envelope(r: Float[Array, " e"]) -> Float[Array, " e"]:
    """Returns the envelope: 1 at r = 0; at the cut-off, it and its first two derivatives are 0."""
    x, p = r / CUTOFF, _ENVELOPE_POWER
    polynomial = (p + 1) * (p + 2) / 2 - p * (p + 2) * x + p * (p + 1) / 2 * x**2
    return jnp.where(x < 1, 1 - polynomial * x**p, 0)


def _product(path: _Path, harmonics: Float[Array, "e m"]) -> Float[Array, "e m n"]:
    """Returns the matrix that multiplies features with harmonics and projects the product on the result's degree."""
    return jnp.einsum("ey,myn->emn", harmonics, jnp.asarray(_coupling(path), harmonics.dtype))


@functools.cache
def _coupling(path: _Path) -> Float[np.ndarray, "m m m"]:
    """Returns the coefficients of a path's product, for features whose components have mean squares of 1.

    Up to their norm, they are Clebsch-Gordan coefficients in the basis of the real harmonics. For an even sum of
    degrees, these are proportional to the means of products of three harmonics over the sphere. The means are exact:
    the integrand is a polynomial of degree at most 9.
    """
    z, weights = np.polynomial.legendre.leggauss(5)
    angles = 2 * math.pi * np.arange(10) / 10
    ring = np.sqrt(1 - z**2)
    x, y = np.outer(ring, np.cos(angles)), np.outer(ring, np.sin(angles))
    harmonics = [
        np.stack([np.broadcast_to(component, x.shape) for component in components])
        for components in _spherical_harmonics(x, y, np.broadcast_to(z[:, None], x.shape))
    ]
    first, second, result = (harmonics[degree] for degree in path)
    means = np.einsum("azp,bzp,czp,z->abc", first, second, result, weights)
    return means * math.sqrt(2 * path.result + 1) / np.linalg.norm(means)


def _spherical_harmonics(x: Any, y: Any, z: Any) -> tuple[list[Any], ...]:
    """Returns the real spherical harmonics of unit vectors for l = 0 to 3, each with a mean square of 1."""
    return (
        [x * 0 + 1],
        [math.sqrt(3) * each for each in (x, y, z)],
        [
            math.sqrt(15) * x * y,
            math.sqrt(15) * y * z,
            math.sqrt(5) / 2 * (3 * z**2 - 1),
            math.sqrt(15) * x * z,
            math.sqrt(15) / 2 * (x**2 - y**2),
        ],
        [
            math.sqrt(35 / 8) * y * (3 * x**2 - y**2),
            math.sqrt(105) * x * y * z,
            math.sqrt(21 / 8) * y * (5 * z**2 - 1),
            math.sqrt(7) / 2 * z * (5 * z**2 - 3),
            math.sqrt(21 / 8) * x * (5 * z**2 - 1),
            math.sqrt(105) / 2 * z * (x**2 - y**2),
            math.sqrt(35 / 8) * x * (x**2 - 3 * y**2),
        ],
    )
