"""Numbers that should not depend on the device: logits, samples and losses of crystal-tiny, and a small LLaMA's logits.

The CPU computes them once for the bundle (`references.py`), the GPU again (`correct.py`).
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from configs import crystal_tiny
from crystal_jax.checkpoint.formats.hf import HfSource
from crystal_jax.checkpoint.layout import load
from crystal_jax.checkpoint.models import load_trained
from crystal_jax.config import ExecutionConfig, LoraConfig, MeshConfig, ModelConfig
from crystal_jax.model.architectures import make_model
from crystal_jax.model.transformer import Transformer
from crystal_jax.sample.run import sample
from crystal_jax.sharding import abstract, make_mesh, tree_shardings
from crystal_jax.train.run import train

_TOY = dict(embed_dim=48, mlp_dim=64, num_layers=1, num_heads=3, num_kv_heads=3, head_dim=16)
_NO_LORA = LoraConfig(rank=0, alpha=1.0, targets=())
_UNROLLED = ExecutionConfig(scan_layers=False, remat=False)


def one_device() -> jax.sharding.Mesh:
    """The first device."""
    return make_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])


def small_llama(folder: Path, dtype: str) -> Transformer:
    """stories260K, computing in a type."""
    source = HfSource(folder)
    source.config = cfg = dataclasses.replace(source.config, dtype=dtype)
    graph, state = nnx.split(nnx.eval_shape(lambda: make_model(cfg, _NO_LORA, _UNROLLED, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, load(source, abstract(state, tree_shardings(state, one_device()))))


def crystal_tiny_model(dtype: str) -> Transformer:
    """The released model, computing in a type."""
    trained = load_trained("crystal-tiny", one_device())
    cfg: ModelConfig = dataclasses.replace(trained.experiment.model, dtype=dtype)
    model = nnx.eval_shape(lambda: make_model(cfg, _NO_LORA, _UNROLLED, rngs=nnx.Rngs(0)))
    return nnx.merge(nnx.split(model)[0], trained.params)


def some_tokens(model: Transformer) -> jax.Array:
    """Token ids [4, 64]."""
    return jax.random.randint(jax.random.key(0), (4, 64), 0, model.cfg.vocab_size)


def logits(model: Transformer, tokens: jax.Array) -> np.ndarray:
    """The full forward of single texts."""
    graph, state = nnx.split(model)

    @jax.jit
    def forward(state: nnx.State, tokens: jax.Array) -> jax.Array:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        return nnx.merge(graph, state)(tokens, positions, jnp.ones_like(tokens))

    return np.asarray(forward(state, tokens), np.float32)


def texts(folder: Path, number: int) -> list[str]:
    """Samples of crystal-tiny, seed 0, without constraints."""
    slots = min(64, number)
    table = sample("crystal-tiny", output=folder, num_samples=number, constraints=(), mesh="1,1,1", batch_size=slots)
    rows = map(json.loads, (table.parent / "samples.jsonl").read_text().splitlines())
    return [row["text"] for row in sorted(rows, key=lambda row: row["index"])]


def losses(data: Path, workdir: Path, steps: int, dtype: str = "float32", *, toy: bool = False) -> list[float]:
    """The first losses of crystal-tiny's own training, on lithium's and sodium's crystals: few are read sooner."""
    config = crystal_tiny.get_config("scratch").to_dict()
    config["model"] |= dict(dtype=dtype, **(_TOY if toy else {}))
    config["data"] |= dict(directory=str(data), include_elements=("Li", "Na"))
    if toy:
        config["data"]["batch_size"] = 4
    config["mesh"] = dict(data=1, fsdp=1, tensor=1)
    config["train"] |= dict(num_steps=steps, log_every=1, eval_every=steps, save_every=steps, eval_batches=1)
    train(config, workdir=workdir)
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]
