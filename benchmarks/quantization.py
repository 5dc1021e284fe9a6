"""What the frozen base takes in 16, 8 and 4 bits, and what the missing bits cost on real weights.

The sizes are those of the arrays that a LLaMA-2 under adapters has, norms, embedding and head included. The errors are
those of a LLaMA with trained weights (stories260K) on texts that it writes itself: of the logits, of the loss, and of
the outputs of single kernels, beside Google's qwix on the same kernels.

python -m benchmarks.quantization --weights=shared/weights/stories260K
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import qwix
from flax import nnx
from jaxtyping import Array

from crystal_jax.checkpoint.formats.hf import HfSource
from crystal_jax.checkpoint.layout import load
from crystal_jax.config import ExecutionConfig, LoraConfig, QuantizationConfig
from crystal_jax.model.attention.kv_cache import empty_cache
from crystal_jax.model.frozen_base.memory import abstract_base, gigabytes
from crystal_jax.model.frozen_base.quantize import dequantize, quantize, quantize_state
from crystal_jax.model.llama import Llama
from crystal_jax.model.presets import LLAMA2

# Of the FP16 and INT4 files, in GB.
_PUBLISHED = {"7b": (13.5, 3.9), "13b": (26.1, 7.3), "70b": (138.0, 40.7)}
_WAYS = {
    "bf16": QuantizationConfig(),
    "int8": QuantizationConfig(kind="int8"),
    "int4": QuantizationConfig(kind="int4"),
    "nf4": QuantizationConfig(kind="nf4"),
    "nf4/128": QuantizationConfig(kind="nf4", block_size=128),
}
_LORA = LoraConfig(rank=1, alpha=1.0, targets=("q",))  # B is zero: adapters that only make the base a frozen one
_EXECUTION = ExecutionConfig(scan_layers=False, remat=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="the folder of stories260K")
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    args = parser.parse_args()
    print_sizes()
    print_errors(args.weights, texts=args.texts, length=args.length)


def print_sizes() -> None:
    print(f"{'GB':5}" + "".join(f"{name:>9}" for name in _WAYS) + "   published FP16, INT4")
    for size, cfg in LLAMA2.items():
        ours = "".join(f"{gigabytes(abstract_base(cfg, way)):9.2f}" for way in _WAYS.values())
        print(f"{size:5}{ours}   " + ", ".join(f"{gb:g}" for gb in _PUBLISHED[size]))


class Stories(NamedTuple):
    """A trained model, and texts of its own."""

    graph: nnx.GraphDef
    state: nnx.State
    tokens: Array


def print_errors(weights: Path, *, texts: int, length: int) -> None:
    stories = load_stories(weights, texts=texts, length=length)
    exact, exact_loss = evaluate(stories, QuantizationConfig())
    kernels = stories.state["blocks"]["gate"]["kernel"].get_value(), stories.state["blocks"]["q"]["kernel"].get_value()
    print(f"\nstories260K, {texts} texts of {length} tokens: loss {exact_loss:.4f} nats a token")
    print(f"{'':9}{'logits, relative':>18}{'same argmax':>13}{'loss':>10}{'kernel outputs, ours and qwix':>33}")
    for name, way in _WAYS.items():
        if way.kind == "none":
            continue
        logits, loss = evaluate(stories, way)
        relative = float(jnp.linalg.norm(logits - exact) / jnp.linalg.norm(exact))
        same = float((logits.argmax(-1) == exact.argmax(-1)).mean())
        ours, theirs = np.mean([output_errors(layer, way) for kernel in kernels for layer in kernel], axis=0)
        print(f"{name:9}{relative:18.4f}{same:13.1%}{loss - exact_loss:+10.4f}{ours:22.5f}{theirs:11.5f}")


def load_stories(weights: Path, *, texts: int, length: int) -> Stories:
    """Reads the model and lets it write, each text after another second token."""
    source = HfSource(weights / "stories260K-hf")
    cfg = source.config

    def make() -> tuple[nnx.GraphDef, nnx.State]:
        return nnx.split(Llama(cfg, _LORA, _EXECUTION, rngs=nnx.Rngs(0)))

    graph, state = nnx.eval_shape(make)[0], jax.jit(lambda: make()[1])()
    adapters, base = nnx.split_state(state, nnx.LoRAParam, ...)
    state = nnx.merge_state(adapters, load(source, base))
    begin = jax.random.randint(jax.random.key(0), (texts, 1), 3, cfg.vocab_size)
    tokens = jnp.concatenate([jnp.ones_like(begin), begin], axis=1)  # 1 begins a text

    @jax.jit
    def write(tokens: Array) -> Array:
        model = nnx.merge(graph, state)
        cache = empty_cache(cfg, batch=texts, capacity=length + 1)
        hidden, cache = model.decode_forward(tokens, jnp.full(texts, 2), cache)

        def step(carry: tuple, key: Array) -> tuple[tuple, Array]:
            hidden, cache = carry
            token = jax.random.categorical(key, model.unembed(hidden)[:, 0])
            return model.decode_forward(token[:, None], jnp.ones(texts, jnp.int32), cache), token

        _, written = jax.lax.scan(step, (hidden[:, -1:], cache), jax.random.split(jax.random.key(1), length - 1))
        return jnp.concatenate([tokens, written.T], axis=1)

    return Stories(graph, state, write(tokens))


def evaluate(stories: Stories, way: QuantizationConfig) -> tuple[Array, float]:
    """Logits, and the mean loss of predicting each next token."""
    graph, state = stories.graph, stories.state
    if way.kind != "none":
        cfg = nnx.merge(graph, state).cfg
        graph, _ = nnx.eval_shape(lambda: nnx.split(Llama(cfg, _LORA, _EXECUTION, way, rngs=nnx.Rngs(0))))
        state = quantize_state(state, way)
    tokens, targets = stories.tokens[:, :-1], stories.tokens[:, 1:]
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    logits = jax.jit(lambda state: nnx.merge(graph, state)(tokens, positions, jnp.ones_like(tokens)))(state)
    return logits, float(optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean())


def output_errors(kernel: Array, way: QuantizationConfig) -> tuple[float, float]:
    """‖x W' - x W‖ / ‖x W‖ on normal x of our rounding of a kernel with one input axis, and of qwix's."""
    matrix = kernel.reshape(len(kernel), -1)
    x = jax.random.normal(jax.random.key(2), (256, len(matrix)))
    ours = dequantize(quantize(matrix, way, inputs=1), way, inputs=1, dtype=jnp.float32)
    tiles = {} if way.kind == "int8" else {0: min(way.block_size, len(matrix))}
    qtype = way.kind if way.kind == "nf4" else jnp.dtype(way.kind)
    theirs = qwix.dequantize(qwix.quantize(matrix, qtype, channelwise_axes=[1], tiled_axes=tiles))

    def error(rounded: Array) -> float:
        return float(jnp.linalg.norm(x @ (rounded - matrix)) / jnp.linalg.norm(x @ matrix))

    return error(ours), error(theirs)


if __name__ == "__main__":
    main()
