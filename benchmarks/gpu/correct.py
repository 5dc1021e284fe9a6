"""Compares this device with the CPU, and cuDNN's attention with the einsums.

Products of float32 are taken in full precision here (`highest`): by default a GPU rounds their factors to TF32, as the
line `tf32` shows. A case fails where a number is further off than its type explains.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.gpu import numbers
from benchmarks.gpu.case import Case
from crystal_jax.model.attention.dot_product import attend, attend_packed, attend_positions
from crystal_jax.model.attention.kv_cache import empty_cache
from crystal_jax.model.transformer import Transformer
from crystal_jax.sharding import LAYOUTS, target_platform

# Largest differences: of logits of size 10 in float32, in bfloat16 (8 bits), and of a loss.
_FLOAT32, _BFLOAT16, _LOSS = 2e-3, 0.15, 1e-3
_ATTENTION = 2e-2  # relative, in bfloat16


def main() -> None:
    before = jax.config.jax_default_matmul_precision  # a dry run goes on in this process
    try:
        compare_all()
    finally:
        jax.config.update("jax_default_matmul_precision", before)


def compare_all() -> None:
    case = Case(__doc__)
    flags.FLAGS(["correct"])  # Grain reads absl flags of its own
    wrong: list[str] = []

    def compare(name: str, found: np.ndarray, expected: np.ndarray, limit: float) -> None:
        error = float(np.abs(np.asarray(found, np.float32) - np.asarray(expected, np.float32)).max())
        case.answer.put(name, error, "largest difference")
        if not error <= limit:
            wrong.append(f"{name}: {error:.2g}, at most {limit:.2g}")

    golden = np.load(case.bundle / "stories260K" / "hf_logits.npz")
    tiny = np.load(case.bundle / "crystal_tiny_logits.npz")["logits"]
    scale = np.abs(tiny).max()
    precisions = (("float32", "highest", _FLOAT32), ("bfloat16", "highest", _BFLOAT16), ("float32", "default", None))
    for dtype, precision, limit in precisions[:2] if case.dry_run else precisions:
        name = "tf32" if limit is None else dtype
        jax.config.update("jax_default_matmul_precision", precision)
        stories = numbers.small_llama(case.bundle / "stories260K", dtype)
        ids = jnp.asarray(golden["ids"])
        bound, expected = limit or _BFLOAT16, golden["logits"]
        compare(f"stories_{name}", numbers.logits(stories, ids), expected, bound * np.abs(expected).max())
        model = numbers.crystal_tiny_model(dtype)
        tokens = numbers.some_tokens(model)
        full = numbers.logits(model, tokens)
        compare(f"crystal_tiny_{name}", full, tiny, bound * scale)
        compare(f"cached_{name}", cached(model, tokens), full, bound * scale)
    if target_platform() == "gpu":
        jax.config.update("jax_default_matmul_precision", None)
        for name, (found, expected) in attentions().items():
            size = float(jnp.abs(expected.astype(jnp.float32)).max())
            compare(f"cudnn_{name}", found, expected, _ATTENTION * size)
    jax.config.update("jax_default_matmul_precision", "highest")
    with tempfile.TemporaryDirectory() as folder:
        of_cpu = json.loads((case.bundle / "crystal_tiny_losses.json").read_text())
        losses = numbers.losses(case.bundle / "mp20_open", Path(folder) / "run", len(of_cpu), toy=case.dry_run)
        compare("losses_float32", np.array(losses), np.array(of_cpu), _LOSS * max(of_cpu))
        half = numbers.losses(
            case.bundle / "mp20_open", Path(folder) / "half", len(of_cpu), "bfloat16", toy=case.dry_run
        )
        compare("losses_bfloat16", np.array(half), np.array(of_cpu), 0.03 * max(of_cpu))
        expected = json.loads((case.bundle / "crystal_tiny_texts.json").read_text())
        case.answer.put("samples", agreement(numbers.texts(Path(folder) / "samples", len(expected)), expected))
    if wrong:
        raise SystemExit("; ".join(wrong))


def cached(model: Transformer, tokens: jax.Array) -> np.ndarray:
    """The same logits, read in pieces behind a KV cache in this device's layout."""
    cache = empty_cache(model.cfg, batch=len(tokens), capacity=tokens.shape[1], layout=LAYOUTS[target_platform()])
    pieces = []
    for begin in range(0, tokens.shape[1], 32):
        part = tokens[:, begin : begin + 32]
        hidden, cache = model.decode_forward(part, jnp.full(len(part), part.shape[1]), cache)
        pieces.append(model.unembed(hidden))
    return np.asarray(jnp.concatenate(pieces, axis=1), np.float32)


def attentions() -> dict[str, tuple[jax.Array, jax.Array]]:
    """CuDNN's mixtures and gradients beside the einsums', in bfloat16: packed rows, and decoding."""
    b, t, n, h = 4, 1024, 8, 128
    q, k, v, g = (jax.random.normal(jax.random.key(i), (b, t, n, h), jnp.bfloat16) for i in range(4))
    segments = jnp.sort(jax.random.randint(jax.random.key(4), (b, t), 1, 5), axis=1)
    mask = (jnp.tril(jnp.ones((t, t), bool)) & (segments[:, :, None] == segments[:, None]))[:, None]

    def einsums(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask)

    def fused(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attend_packed(q, k, v, mask)

    def gradients(function) -> tuple[jax.Array, ...]:
        mixed, pull = jax.vjp(function, q, k, v)
        return mixed, *pull(g)

    pairs = zip(jax.jit(lambda: gradients(fused))(), jax.jit(lambda: gradients(einsums))(), strict=True)
    found = dict(zip(("packed", "packed_dq", "packed_dk", "packed_dv"), pairs, strict=True))
    length = jnp.array([5, 100, 517, 1000])
    few = q[:, :5]
    seen = (jnp.arange(t) <= (length[:, None] + jnp.arange(5))[..., None])[:, None]
    decode = [
        jax.jit(lambda fused: attend_positions(few, k, v, seen, length + 5, fused=fused), static_argnums=0)(fused)
        for fused in (True, False)
    ]
    return found | {"decode": (decode[0], decode[1])}


def agreement(found: list[str], expected: list[str]) -> str:
    """Says how many texts are equal, and where the first different one departs."""
    equal = [a == b for a, b in zip(found, expected, strict=True)]
    said = f"{sum(equal)} of {len(equal)} texts equal the CPU's"
    if all(equal):
        return said
    first = equal.index(False)
    pairs = zip(found[first], expected[first], strict=False)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(found[first]), len(expected[first])))
    return f"{said}; sample {first} departs at character {place} of {len(expected[first])}"


if __name__ == "__main__":
    main()
