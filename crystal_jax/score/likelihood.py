"""Exact log-probabilities of texts that follow a prompt, from batched forward passes.

Unlike the log-probabilities of `sample`, they are normalised over all texts, not over those of the grammar.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int

from crystal_jax.checkpoint.inference import InferenceModel
from crystal_jax.errors import RequestError
from crystal_jax.model.transformer import Transformer
from crystal_jax.program_cache import ProgramCache
from crystal_jax.sharding import BATCH, on_mesh
from crystal_jax.text.tokenizer import encode_example

# Positions of a batch whose logits are in memory together.
_PLACES = 32

LogProbs = Callable[[nnx.State, Int[Array, " p"], Int[Array, "b n"]], Float[Array, "b n"]]


@functools.lru_cache(maxsize=8)  # a model is compiled only once
def make_log_probs(graph: nnx.GraphDef, mesh: Mesh) -> LogProbs:
    """Returns the jitted `log_probs(params, prompt, completions)`: the log-probability (nats) of each token, [b, n].

    Attention is causal, so padding after the end of a completion changes nothing before it, and may hold any ids.
    """

    def log_probs(params: nnx.State, prompt: Array, completions: Array) -> Array:
        with on_mesh(mesh):
            return traced(params, prompt, completions)

    def traced(params: nnx.State, prompt: Array, completions: Array) -> Array:
        model: Transformer = nnx.merge(graph, params)
        b, n = completions.shape
        read = jnp.concatenate([jnp.tile(prompt, (b, 1)), completions[:, :-1]], axis=1)
        positions = jnp.broadcast_to(jnp.arange(read.shape[1]), read.shape)
        # The token at position i predicts the next one: the prompt's last token predicts the completion's first.
        hidden = model.hidden(read, positions, jnp.ones_like(read))[:, prompt.shape[0] - 1 :]

        width = min(n, _PLACES)

        def of_some(places: tuple[Array, Array]) -> Array:
            x, targets = places
            logits = model.unembed(x)
            chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
            return chosen - jax.nn.logsumexp(logits, axis=-1)

        def in_pieces(x: Array) -> Array:
            return x.reshape(b, n // width, width, *x.shape[2:]).swapaxes(0, 1)

        pieces = jax.lax.map(of_some, (in_pieces(hidden), in_pieces(completions)))
        return pieces.swapaxes(0, 1).reshape(b, n)

    return jax.jit(log_probs)


def _padded(tokens: int) -> int:
    """Returns the padded length of a completion: a power of two or a multiple of `_PLACES`, to limit compilations."""
    return 1 << (tokens - 1).bit_length() if tokens < _PLACES else tokens + -tokens % _PLACES


class Likelihood:
    """The likelihood of texts after one prompt, under a trained model.

    Args:
        model: The model, with its tokenizer and devices.
        prompt: Text before every completion.
        batch_size: Completions per batch; rounded up to a multiple of the devices.
    """

    def __init__(self, model: InferenceModel, *, prompt: str, batch_size: int):
        self._params, self._tokenizer, self._prompt = model.trained.params, model.tokenizer, prompt
        self._jitted = make_log_probs(model.trained.graph, model.mesh)
        self._cache = ProgramCache(model.mesh, {"model": repr(model.trained.graph)})
        self._programs: dict[int, LogProbs] = {}  # by padded length
        self._prompt_ids = jnp.array([self._tokenizer.bos_id, *self._tokenizer.encode(prompt)], jnp.int32)
        self._longest = model.experiment.model.num_positions
        self._batch_size = batch_size + -batch_size % model.mesh.size
        self._where = NamedSharding(model.mesh, BATCH)

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text after the prompt, as in training: the canonical tokenisation, then EOS.

        Raises:
            RequestError: something is not in the tokenizer's vocabulary, or the text is longer than the model can read.
        """
        _, body = encode_example(self._tokenizer, self._prompt, text)
        if self._longest is not None and (length := len(self._prompt_ids) + len(body)) > self._longest:
            raise RequestError(f"{length} tokens, and the model reads {self._longest}")
        return [*body, self._tokenizer.eos_id]

    def __call__(self, completions: Sequence[Sequence[int]]) -> list[float]:
        """Returns the log-probability, in nats, of each completion; lengths may differ, and order is kept."""
        result = np.zeros(len(completions))
        padded = [_padded(len(ids)) for ids in completions]
        by_length = sorted(range(len(completions)), key=padded.__getitem__)
        for length, bucket in itertools.groupby(by_length, key=padded.__getitem__):
            places = list(bucket)
            for begin in range(0, len(places), self._batch_size):
                rows = places[begin : begin + self._batch_size]
                result[rows] = self._batch([completions[i] for i in rows], length)
        return result.tolist()

    def _batch(self, completions: Sequence[Sequence[int]], length: int) -> Float[np.ndarray, " b"]:
        # Padded to the full batch size, so that each length is compiled once.
        tokens, counts = np.zeros((2, self._batch_size, length), np.int32)
        for row, ids in enumerate(completions):
            tokens[row, : len(ids)], counts[row, : len(ids)] = ids, 1
        if length not in self._programs:
            self._programs[length] = self._cache.program(f"log_probs of {length} tokens", self._jitted)
        each = self._programs[length](self._params, self._prompt_ids, jax.device_put(tokens, self._where))
        return (jax.device_get(each).astype(np.float64) * counts).sum(axis=1)[: len(completions)]
