"""The transformer that LLaMA-2 and GPT-2 share: blocks, forward passes over packed rows or with a KV cache, and logits.

Axis letters: b batch, t query position, s key position, d embedding, n query heads, k key/value heads, h head
dimension, f hidden layer of the MLP, v vocabulary, r LoRA rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from crystal_jax.config import SPLASH_TOKENS, UNQUANTIZED, ExecutionConfig, LoraConfig, ModelConfig, QuantizationConfig
from crystal_jax.model.attention.dot_product import (
    Past,
    attend,
    attend_after,
    attend_cached,
    attend_packed,
    attend_positions,
    fits_cudnn,
)
from crystal_jax.model.attention.kv_cache import AXES, Cache, append, append_layer, arrange, dequantize_kv, quantize_kv
from crystal_jax.model.attention.splash import KEPT, attend_segments
from crystal_jax.model.cross_entropy import chunked_cross_entropy
from crystal_jax.model.layers import Dropout
from crystal_jax.model.ragged import ragged_index
from crystal_jax.sharding import Layout, split_rows, split_width, target_platform

# Attention of a block: from q [b, t, n, h], k and v [b, t, k, h] to the result [b, t, n, h], and the keys and values to
# be cached.
Attention = Callable[[Array, Array, Array], tuple[Array, tuple[Any, Any]]]


def within(mask: Bool[Array, "#b 1 t t"]) -> Attention:
    """Returns attention among the new tokens only; keys and values [b, t, k, h] are returned for the cache."""

    def attention(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, Array]]:
        return attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask), (k, v)

    return attention


def within_segments(segments: Int[Array, "b t"], execution: ExecutionConfig) -> Attention:
    """Returns attention of each token to the earlier tokens of its own segment."""
    t = segments.shape[1]
    mask = _causal(t) & (segments[:, :, None] == segments[:, None, :])[:, None]
    # Scored rows, unlike training rows, may have any length.
    if execution.attention == "cudnn" and target_platform() == "gpu" and t % 2 == 0:

        def fused(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, Array]]:
            return (attend_packed(q, k, v, mask) if fits_cudnn(q) else within(mask)(q, k, v)[0]), (k, v)

        return fused
    if execution.attention == "splash" and target_platform() == "tpu" and t % SPLASH_TOKENS == 0:

        def attention(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, Array]]:
            return attend_segments(q, k.swapaxes(1, 2), v.swapaxes(1, 2), segments), (k, v)

        return attention
    return within(mask)


class Transformer(nnx.Module):
    """A decoder-only transformer. Parameters of the blocks are stacked along a leading layer axis.

    Attributes:
        block: The architecture's block, with the interface of `llama.Block`.
        norm: The architecture's norm, with the interface of `layers.RMSNorm`.
    """

    block: ClassVar[type]
    norm: ClassVar[type]

    def __init__(
        self,
        cfg: ModelConfig,
        lora: LoraConfig,
        execution: ExecutionConfig,
        quantization: QuantizationConfig = UNQUANTIZED,
        *,
        rngs: nnx.Rngs,
    ):
        self.cfg, self.lora, self.execution = cfg, lora, execution
        param_dtype = cfg.dtype if lora.rank else jnp.float32
        init = nnx.initializers.normal(cfg.embed_dim**-0.5)
        self.embedding = nnx.Param(init(rngs.params(), (cfg.vocab_size, cfg.embed_dim), param_dtype))
        # Pods scan over layers and keep the einsums, whose operands are sharded along their own axes.
        flat = not execution.scan_layers
        self.blocks = nnx.vmap(lambda r: self.block(cfg, lora, quantization, flat=flat, rngs=r))(
            rngs.split(cfg.num_layers)
        )
        self.final_norm = self.norm(cfg, lora)
        if not cfg.tie_embeddings:
            self.lm_head = nnx.Param(init(rngs.params(), (cfg.embed_dim, cfg.vocab_size), param_dtype))

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        positions: Int[Array, "b t"],
        segments: Int[Array, "b t"],
        dropout: Dropout | None = None,
    ) -> Float[Array, "b t v"]:
        """Returns the logits of packed rows; see `hidden`."""
        return self.unembed(self.hidden(tokens, positions, segments, dropout))

    def hidden(
        self,
        tokens: Int[Array, "b t"],
        positions: Int[Array, "b t"],
        segments: Int[Array, "b t"],
        dropout: Dropout | None = None,
    ) -> Float[Array, "b t d"]:
        """Returns the last hidden states of packed rows.

        A token attends to itself and the earlier tokens of its own segment; segment 0 is padding. `dropout` is set in
        training only.
        """
        attention = within_segments(segments, self.execution)
        angles = self._angles(positions)
        graph, stacked = nnx.split(self.blocks)

        keys, rate = None, 0.0
        if dropout is not None and (dropout.rate or self.lora.dropout):
            rate = dropout.rate
            keys = jax.vmap(jax.random.fold_in, (None, 0))(dropout.key, jnp.arange(self.cfg.num_layers))

        def layer(x: Array, state: nnx.State, key: Array | None) -> Array:
            own = None if key is None else Dropout(key, rate)
            return split_rows(nnx.merge(graph, state)(x, angles, attention, own)[0])

        if self.execution.remat:
            policy = _keep_products() if self.execution.keep_products else None
            layer = jax.checkpoint(layer, prevent_cse=not self.execution.scan_layers, policy=policy)
        x = split_rows(self._embed(tokens, positions))
        if self.execution.scan_layers:
            x, _ = jax.lax.scan(lambda x, xs: (layer(x, *xs), None), x, (stacked, keys))
        else:
            for i, state in enumerate(unstack(stacked, self.cfg.num_layers)):
                x = layer(x, state, None if keys is None else keys[i])
        return x

    def prefill(
        self, tokens: Int[Array, "b t"], count: Int[Array, " b"], *, layout: Layout = "head_major"
    ) -> tuple[Float[Array, "b t d"], Cache]:
        """Runs the model on the first `count` tokens of each sequence, with padding after them.

        Returns:
            The last hidden states, for `unembed`, and a cache with a capacity of t positions.
        """
        causal = _causal(tokens.shape[1])
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)

        def arranged() -> Attention:
            def attention(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, Array]]:
                mixed, kept = within(causal)(q, k, v)
                keys, values = (arrange(x, axes.removeprefix("l")) for x, axes in zip(kept, AXES[layout], strict=True))
                return mixed, (keys, values)

            return attention

        layers = None if layout == "stacked" else self.layers()
        x, keys, values = self._read(tokens, positions, arranged, (), layers)
        return x, Cache(keys, values, count, layout)

    def decode_forward(
        self,
        tokens: Int[Array, "b t"],
        count: Int[Array, " b"],
        cache: Cache,
        *,
        layers: list[nnx.State] | None = None,
        budget: int | None = None,
    ) -> tuple[Float[Array, "b t d"], Cache]:
        """Runs the model on the first `count` new tokens of each row and appends them to its cache.

        Padding tokens are computed too; their cache entries are overwritten by the next call. With `budget`, padding is
        skipped everywhere except in attention, unless the cache is stacked. The cache must have room for t more
        positions.

        Args:
            tokens: New tokens of each row, with padding after the first `count`.
            count: Number of new tokens in each row.
            cache: KV cache of the earlier tokens.
            layers: The result of `layers`, if the cache is not stacked; a loop around this call computes it beforehand.
            budget: Upper bound on the sum of `count`.

        Returns:
            The last hidden states, for `unembed`, and the new cache.
        """
        t, length, places = tokens.shape[1], cache.length, jnp.arange(cache.capacity)
        old = (cache.keys, cache.values)
        positions = length[:, None] + jnp.arange(t)
        if cache.stacked:
            # The scan over layers only reads the cache: as its carry, or among its outputs, the cache would be in
            # memory twice.
            causal, filled = _causal(t), (places < length[:, None])[:, None, None]

            def beside(old_keys: Any, old_values: Any) -> Attention:
                past = Past(old_keys, old_values, filled)

                def attention(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Any, Any]]:
                    keys, values = k.swapaxes(1, 2), v.swapaxes(1, 2)
                    if not cache.coded:
                        return attend_after(past, q, keys, values, causal), (keys, values)
                    # Quantised for this step, too, so that results do not depend on which tokens are computed together.
                    kept = quantize_kv(keys), quantize_kv(values)
                    keys, values = (dequantize_kv(part, q.dtype) for part in kept)
                    return attend_after(past, q, keys, values, causal), kept

                return attention

            x, keys, values = self._read(tokens, positions, beside, old, None)
            return x, append(cache, keys, values, count)

        seen = (places <= positions[..., None])[:, None]
        fused = self.execution.attention == "cudnn" and target_platform() == "gpu"
        packed = None if budget is None or budget >= tokens.size else ragged_index(count, t=t, budget=budget)

        def written(old_keys: Any, old_values: Any) -> Attention:
            def attention(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Any, Any]]:
                if packed:
                    q, k, v = map(packed.unpack, (q, k, v))
                kept = append_layer((old_keys, old_values), k, v, length, cache.layout)
                if cache.layout == "position_major":
                    mixed = attend_positions(q, *kept, seen, jnp.minimum(length + t, cache.capacity), fused=fused)
                else:
                    mixed = attend_cached(q, *kept, seen)
                return packed.pack(mixed) if packed else mixed, kept

            return attention

        if packed:
            tokens, positions = packed.pack(tokens), packed.pack(positions)
        x, keys, values = self._read(tokens, positions, written, old, layers or self.layers())
        return packed.unpack(x) if packed else x, cache.replace(keys=keys, values=values, length=length + count)

    def layers(self) -> list[nnx.State]:
        """Returns the blocks' parameters by layer; unstacking them within a loop would copy them in each iteration."""
        return unstack(nnx.state(self.blocks), self.cfg.num_layers)

    def _read(
        self,
        tokens: Int[Array, "b t"],
        positions: Int[Array, "b t"],
        attention: Callable[..., Attention],
        past: tuple[Any, ...],
        layers: list[nnx.State] | None,
    ) -> tuple[Float[Array, "b t d"], Any, Any]:
        """Returns the last hidden states, and the keys and values of all layers; without `layers`, by a scan over them.

        `attention` makes the attention of a layer from that layer's part of `past`.
        """
        angles = self._angles(positions)
        graph, states = nnx.split(self.blocks)

        def layer(x: Array, xs: tuple) -> tuple[Array, tuple[Any, Any]]:
            state, *own = xs
            x, kept = nnx.merge(graph, state)(x, angles, attention(*own))
            return split_width(x), kept

        x = split_width(self._embed(tokens, positions))
        if layers is None:
            x, (keys, values) = jax.lax.scan(layer, x, (states, *past))
            return x, keys, values
        kept = []
        for xs in zip(layers, *past, strict=True):
            x, new = layer(x, xs)
            kept.append(new)
        all_keys, all_values = zip(*kept, strict=True)
        return x, all_keys, all_values

    def unembed(self, x: Float[Array, "b t d"], columns: Int[Array, " c"] | None = None) -> Float[Array, "b t v"]:
        """Returns the logits in float32, of the whole vocabulary or of the given token ids only."""
        x = self.final_norm(x)
        if self.cfg.tie_embeddings:
            rows = self.embedding[...] if columns is None else self.embedding[...][columns]
            return jnp.einsum("btd,vd->btv", x, rows.astype(x.dtype), preferred_element_type=jnp.float32)
        kernel = self.lm_head[...] if columns is None else self.lm_head[...][:, columns]
        return jnp.einsum("btd,dv->btv", x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)

    def cross_entropy(
        self, x: Float[Array, "b t d"], targets: Int[Array, "b t"], weights: Float[Array, "b t"], *, chunk: int
    ) -> Float[Array, ""]:
        """Returns the weighted sum of the cross-entropy, in nats, of hidden states from `hidden`.

        `chunk` positions of a row are processed at a time.
        """
        head = self.embedding[...].T if self.cfg.tie_embeddings else self.lm_head[...]
        return chunked_cross_entropy(self.final_norm(x), head, targets, weights, chunk=chunk)

    def _embed(self, tokens: Int[Array, "b t"], positions: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Returns the input of the first block."""
        return self.embedding[...][tokens].astype(self.cfg.dtype)

    def _angles(self, positions: Int[Array, "b t"]) -> Any:
        """Returns the position information that every block receives."""
        raise NotImplementedError


def _keep_products() -> Callable[..., Any]:
    """Returns a checkpoint policy that saves products with weights and the output of splash kernels.

    The einsums of attention have batch axes, so they are recomputed.
    """
    policies = jax.checkpoint_policies
    return policies.save_from_both_policies(
        policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(KEPT)
    )


def _causal(t: int) -> Bool[Array, "1 1 t t"]:
    return jnp.tril(jnp.ones((t, t), bool))[None, None]


def unstack(stacked: nnx.State, num_layers: int) -> list[nnx.State]:
    """Returns one tree of parameters per layer.

    It uses `lax.split`, whose gradient is one concatenation; the gradient of indexing is a sum of padded arrays.
    """
    leaves, structure = jax.tree.flatten(stacked)
    pieces = [[p.squeeze(0) for p in jax.lax.split(leaf, [1] * num_layers)] for leaf in leaves]
    return [jax.tree.unflatten(structure, layer) for layer in zip(*pieces, strict=True)]
