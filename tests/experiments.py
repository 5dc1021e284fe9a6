"""Small configurations that several tests share."""

import dataclasses
import functools
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from crystal_jax.checkpoint.formats.hf import HfSource
from crystal_jax.checkpoint.layout import load
from crystal_jax.checkpoint.resize_vocab import GrownSource
from crystal_jax.config import ExecutionConfig, Gpt2Config, LlamaConfig, LoraConfig, MeshConfig, ModelConfig
from crystal_jax.model.architectures import make_model
from crystal_jax.model.transformer import Transformer
from crystal_jax.sharding import make_mesh, tree_shardings

# Odd, pairwise different sizes: a swapped axis cannot pass by accident.
TINY = LlamaConfig(
    vocab_size=97,
    embed_dim=48,
    mlp_dim=80,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    head_dim=8,
    norm_eps=3e-3,
    rope_theta=500.0,
    tie_embeddings=False,
    dtype="float32",
)
TINY_GPT2 = Gpt2Config(
    vocab_size=97,
    embed_dim=48,
    mlp_dim=80,
    num_layers=3,
    num_heads=6,
    num_positions=40,
    norm_eps=3e-3,
    dtype="float32",
)
NO_LORA = LoraConfig(rank=0, alpha=1.0, targets=())
LORA = LoraConfig(rank=4, alpha=8.0, targets=("q", "k", "v", "o"))
UNROLLED = ExecutionConfig(scan_layers=False, remat=False)
SCANNED = ExecutionConfig(scan_layers=True, remat=True)


@functools.cache
def _parameters(cfg: ModelConfig, lora: LoraConfig, execution: ExecutionConfig, seed: int):
    """Compiled: operation by operation, building a model takes a minute."""

    def build(key):
        return nnx.split(make_model(cfg, lora, execution, rngs=nnx.Rngs(key)))

    graph, _ = nnx.eval_shape(build, jax.random.key(seed))
    return graph, jax.jit(lambda key: build(key)[1])(jax.random.key(seed))


def build(
    cfg: ModelConfig = TINY,
    lora: LoraConfig = NO_LORA,
    execution: ExecutionConfig = UNROLLED,
    *,
    seed: int = 0,
) -> Transformer:
    """A model with random weights, equal in each call."""
    graph, state = _parameters(cfg, lora, execution, seed)
    return nnx.merge(graph, jax.tree.map(jnp.copy, state))  # a copy: some tests change weights


def from_hugging_face(
    folder, *, lora: LoraConfig = NO_LORA, execution: ExecutionConfig = UNROLLED, mesh=None, rows=None, **fields
) -> Transformer:
    """The checkpoint in `folder` as this project's model, on a mesh; `fields` falsify its architecture, and
    `rows` enlarges its vocabulary."""
    source = HfSource(folder)
    source.config = cfg = dataclasses.replace(source.config, **fields)
    if rows:
        source, cfg = GrownSource(source, rows), dataclasses.replace(cfg, vocab_size=rows)
    graph, state = nnx.split(nnx.eval_shape(lambda: make_model(cfg, lora, execution, rngs=nnx.Rngs(0))))
    mesh = mesh or make_mesh(MeshConfig(data=-1, fsdp=1, tensor=1))
    where = tree_shardings(state, mesh)
    like = jax.tree.map(lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to), state, where)
    return nnx.merge(graph, load(source, like))


@functools.partial(jax.jit, static_argnums=0)
def _logits(graph, state, tokens, positions, segments):
    return nnx.merge(graph, state)(tokens, positions, segments)


def logits(model: Transformer, tokens, segments=None, positions=None):
    """The full forward, compiled; one segment and counted positions unless given."""
    segments = jnp.ones_like(tokens) if segments is None else segments
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape) if positions is None else positions
    return _logits(*nnx.split(model), tokens, positions, segments)


@functools.partial(jax.jit, static_argnums=0)
def _extend(graph, state, tokens, count, cache):
    model = nnx.merge(graph, state)
    hidden, cache = model.decode_forward(tokens, count, cache)
    return model.unembed(hidden), cache


def extend(model: Transformer, tokens, count, cache):
    """Logits of further tokens and the longer cache, compiled."""
    return _extend(*nnx.split(model), tokens, count, cache)


def training_config(directory: str, **changes: dict[str, Any]) -> dict[str, Any]:
    """A configuration tree that trains in seconds; `changes` are merged into its sections.

    A model that states its architecture takes the place of the whole section.
    """
    model = {k: v for k, v in dataclasses.asdict(TINY).items() if k != "vocab_size"}
    tree: dict[str, Any] = dict(
        model={**model, "embed_dim": 32, "num_heads": 4, "num_layers": 2},
        lora=dict(rank=0, alpha=8.0, targets=("q", "v")),
        execution=dict(scan_layers=False, remat=False),
        text=dict(version="plain", coordinates="fractional"),
        tokenizer=dict(name="atom_coordinate"),
        task=dict(infill=0.3, conditions=True, translate=True, order="stored", loss="completion"),
        data=dict(directory=directory, seq_len=384, batch_size=4, packing_bins=4, seed=0),
        optimizer=dict(
            peak_lr=3e-3,
            end_lr=0.0,
            warmup_steps=2,
            b1=0.9,
            b2=0.99,
            weight_decay=0.01,
            clip_norm=1.0,
            accumulate=1,
        ),
        train=dict(num_steps=6, log_every=1, eval_every=3, save_every=3, eval_batches=1, max_to_keep=3, seed=0),
        mesh=dict(data=2, fsdp=2, tensor=1),
        base="",
    )
    for section, values in changes.items():
        whole = not isinstance(values, dict) or "architecture" in values
        tree[section] = values if whole else {**tree.get(section, {}), **values}
    return tree


# A GPT-2 for `training_config`, in place of its LLaMA-2.
GPT2_MODEL = dict(
    architecture="gpt2",
    embed_dim=32,
    mlp_dim=64,
    num_layers=2,
    num_heads=4,
    num_positions=384,
    norm_eps=1e-5,
    dtype="float32",
)


CONFIGS = sorted(p for p in (Path(__file__).parents[1] / "configs").glob("*.py") if p.stem != "__init__")


def load_config(path: Path) -> ModuleType:
    """A file of configs/, which are no part of the package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
